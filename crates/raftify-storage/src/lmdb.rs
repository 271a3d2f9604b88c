//! LMDB: `environment.rs` opens it with full durability and lets its map grow, `values.rs` has the bytes of each value,
//! `tables.rs` reads and writes values that are checked. What is rare stands here for both storages; the entries of
//! `HeedStorage` as well.

mod environment;
mod tables;
pub(crate) mod values;

pub(crate) use environment::Failure;
pub(crate) use tables::{ReadTxn, Tables};
