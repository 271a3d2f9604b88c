//! Stable storage for raftify: log and metadata in LMDB, or the log in segments next to it; snapshots in
//! checksummed files.
//!
//! [`WalStorage`] and [`HeedStorage`] implement [`StableStorage`](raftify_core::StableStorage) in one
//! directory. The first is the default: it makes a write durable with one flush. The second is the simplest:
//! one LMDB transaction per write. [`convert_storage`] converts a directory from one to the other, and
//! [`ReadOnlyStorage`] reads both without changing anything, also while a node uses the directory.
//! [`check_directory`] checks all of a directory, [`recover_directory`] makes a new cluster of one.
//! `docs/disk-format.md` describes every byte. This is the only crate of the workspace with `unsafe` code:
//! where it opens LMDB and resizes its map, and where it ignores a signal.

mod backup;
mod check;
mod conversion;
#[cfg(test)]
mod fails_from;
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
mod recovery;
mod restore;
mod snapshot_files;
mod wal;

pub use backup::{BackupFile, copy_newest_snapshot, verify_snapshot_file};
pub use check::{Checked, Problem, ProblemKind, check_directory};
pub use conversion::{Conversion, convert_storage, convert_storage_with};
pub use heed_storage::{HeedLogReader, HeedStorage};
pub use layout::StorageKind;
pub use layout::snapshots::SnapshotFile;
pub use read_only::{ReadOnlyLogReader, ReadOnlyStorage};
pub use recovery::{
    RecoverError, Recovery, Survivor, choose_survivor, recover_directory, recover_directory_with,
};
pub use restore::{RestoreError, RestoreInto, Restored, restore_directories, restore_directories_with};
pub use snapshot_files::{SnapshotFileReader, SnapshotFileWriter, SnapshotFiles, SnapshotStream};
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use wal::simulation;
pub use wal::{WalLogReader, WalSettings, WalStorage};
