//! Stable storage for raftify: log and metadata in LMDB, or the log in segments beside it; snapshots in checksummed
//! files.
//!
//! [`WalStorage`] and [`HeedStorage`] implement [`StableStorage`](raftify_core::StableStorage) in one directory. The
//! first is the default: it makes a write durable by one flush. The second is the simplest: one LMDB transaction per
//! write. [`convert_storage`] makes a directory of the one into one of the other, and [`ReadOnlyStorage`] looks into
//! both without changing anything, also while a node works there. `docs/disk-format.md` describes every byte. This is
//! the only crate of the workspace with `unsafe` code: where LMDB is opened and its map resized, and where a signal is
//! ignored.

mod conversion;
mod descriptors;
mod directory;
mod environment;
mod file_size;
mod files;
mod format;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod inner;
mod read_only;
mod snapshot_files;
mod storage;
mod wal;

pub use conversion::{Conversion, convert_storage, convert_storage_with};
pub use format::StorageKind;
pub use read_only::{ReadOnlyLogReader, ReadOnlyStorage};
pub use snapshot_files::{SnapshotFile, SnapshotFileReader, SnapshotFileWriter, SnapshotFiles};
pub use storage::{HeedLogReader, HeedStorage};
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use wal::simulation;
pub use wal::{WalLogReader, WalSettings, WalStorage};

use std::io;
use std::path::Path;

use raftify_core::StorageError;

/// Turns what the operating system, or what stands before it, said about `path` into the error of this crate.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| match source.downcast::<StorageError>() {
        Ok(error) => error,
        Err(source) => StorageError::Io { action, path: path.to_owned(), source },
    }
}
