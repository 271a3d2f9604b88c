//! Snapshot data in files next to the log, each named by its position and checksummed block by block.
//!
//! A file is written under a temporary name, fsynced and renamed, and the directory is fsynced: under its
//! final name it is complete or missing. The file of a snapshot that is being received from another node has
//! a name that identifies the snapshot, so that the transfer continues after a restart.
//!
//! `store.rs` has the snapshots of one directory, `writer.rs` and `reader.rs` one file each, `stream.rs` writes
//! one to any writer, `encoding.rs` has their bytes, which `docs/disk-format.md` describes; `directory.rs` has the state that the store and its
//! writers share.

mod directory;
mod encoding;
mod reader;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(feature = "testing")]
pub(crate) use encoding::encode_file;
pub use reader::SnapshotFileReader;
pub(crate) use reader::{check_recorded, open_at};
pub use store::SnapshotFiles;
pub use stream::SnapshotStream;
pub use writer::SnapshotFileWriter;
