//! [`HeedStorage`], which implements the contract of stable storage with everything except snapshots in LMDB.
//! `log.rs` reads and writes the rows, `storage.rs` combines them with the snapshots. (A module named `heed`
//! would hide the crate of that name.)

mod log;
mod storage;
#[cfg(test)]
mod tests;

pub(crate) use log::HeedLog;
pub use storage::{HeedLogReader, HeedStorage};
