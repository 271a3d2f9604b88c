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
mod fields;
mod files;
mod heed_storage;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod inner;
mod layout;
mod lmdb;
#[cfg(test)]
mod random_writes;
mod read_only;
mod snapshot_files;
mod wal;

pub use conversion::{Conversion, convert_storage, convert_storage_with};
pub use heed_storage::{HeedLogReader, HeedStorage};
pub use layout::StorageKind;
pub use layout::snapshots::SnapshotFile;
pub use read_only::{ReadOnlyLogReader, ReadOnlyStorage};
pub use snapshot_files::{SnapshotFileReader, SnapshotFileWriter, SnapshotFiles};
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use wal::simulation;
pub use wal::{WalLogReader, WalSettings, WalStorage};
