//! Stable storage for raftify: log and metadata in LMDB, or the log in segments beside it; snapshots in checksummed
//! files.
//!
//! [`HeedStorage`] and [`WalStorage`] implement [`StableStorage`](raftify_core::StableStorage) in one directory. The
//! first is the simplest: one LMDB transaction per write. The second makes a write durable by one flush.
//! [`ReadOnlyStorage`] looks into a directory of the first without changing it, also while a node works on it.
//! `docs/disk-format.md` describes every byte. This is the only crate of the workspace with `unsafe` code: where LMDB is opened and its map resized.

mod directory;
mod environment;
mod files;
mod format;
mod snapshot_files;
mod storage;
mod wal;

pub use snapshot_files::{SnapshotFile, SnapshotFileReader, SnapshotFileWriter, SnapshotFiles};
pub use storage::{HeedLogReader, HeedStorage, ReadOnlyStorage};
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use wal::encode_record;
pub use wal::{WalLogReader, WalStorage};

use std::io;
use std::path::Path;

use raftify_core::StorageError;

/// Turns what the operating system said about `path` into the error of this crate.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::Io { action, path: path.to_owned(), source }
}
