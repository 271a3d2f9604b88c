//! LMDB: `environment.rs` opens it with full durability and lets its map grow, `values.rs` has the bytes of
//! each value, `tables.rs` reads and writes values with checks, `pages.rs` checks a file without LMDB. LMDB holds the rarely written data of both
//! storages, and the entries of `HeedStorage`.

mod environment;
pub(crate) mod pages;
mod tables;
pub(crate) mod values;

pub(crate) use environment::Failure;
pub(crate) use tables::{ReadTxn, Tables};
