//! [`HeedStorage`], the contract of stable storage with everything but snapshots in LMDB. `log.rs` reads and writes the
//! rows, `storage.rs` puts them together with the snapshots. (A module named `heed` would hide the crate of that name.)

mod log;
mod storage;
#[cfg(test)]
mod tests;

pub(crate) use log::HeedLog;
pub use storage::{HeedLogReader, HeedStorage};
