//! Snapshot data in files beside the log, each named by its position and checksummed block by block.
//!
//! A file is written under a temporary name, synced, renamed, and the directory synced: under its own name it is
//! whole or not there. What is received of another node's snapshot has a name that says of which one it is, and is
//! continued after a restart.
//!
//! `store.rs` has the snapshots of one directory, `writer.rs` and `reader.rs` one file each, `encoding.rs` its bytes,
//! which `docs/disk-format.md` describes; `directory.rs` is what the store and its writers share.

mod directory;
mod encoding;
mod reader;
mod store;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(feature = "testing")]
pub(crate) use encoding::encode_file;
pub use reader::SnapshotFileReader;
pub(crate) use reader::{check_recorded, open_at};
pub use store::SnapshotFiles;
pub use writer::SnapshotFileWriter;
