//! [`HeedStorage`]: log, snapshots and directory put together.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, StableStorage, StorageError};

use super::log::HeedLog;
use crate::files::create_durably;
use crate::layout::{self, DirectoryLock, StorageKind};
use crate::lmdb::Tables;
use crate::snapshot_files::SnapshotFiles;

/// Keeps what must survive a crash in one directory: log and metadata in LMDB, snapshots in files beside it.
///
/// Every [`write`](StableStorage::write) is one transaction, synced to the disk before it returns. The database grows
/// by itself, up to what the disk holds. What is read is checked against checksums; damage is an error and never
/// skipped.
///
/// The directory belongs to this handle, to what [`log_reader`](StableStorage::log_reader) and
/// [`snapshots`](StableStorage::snapshots) gave out until all of them are dropped.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::HeedStorage;
///
/// let directory = tempfile::tempdir()?;
/// let mut storage = HeedStorage::open(directory.path().join("node-1"))?;
/// let state = storage.load()?;
/// assert!(state.identity.is_none(), "a new directory belongs to no node");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct HeedStorage {
    pub(super) log: Arc<HeedLog>,
    snapshots: SnapshotFiles,
    /// As on disk. `None` before it was loaded, and after a write that failed: what is on disk is not known then.
    state: Option<StoredState>,
}

impl HeedStorage {
    /// Opens the storage in `directory`, and makes the directory if it is not there.
    ///
    /// # Errors
    /// - [`StorageError::InUse`]: another process, or another handle of this one, has it open.
    /// - [`StorageError::OtherKind`]: a [`WalStorage`](crate::WalStorage) keeps this directory. Open it with that, or
    ///   [convert](crate::convert_storage) it.
    /// - [`StorageError::Io`]: the system refused, for instance for lack of permission.
    /// - [`StorageError::Corrupt`], [`StorageError::Version`]: this is not what was written, or not by this version.
    ///   Nothing was changed. All of the content is checked by [`load`](StableStorage::load) only.
    pub fn open(directory: impl AsRef<Path>) -> Result<HeedStorage, StorageError> {
        let directory = directory.as_ref();
        create_durably(directory)?;
        let lock = DirectoryLock::take(directory)?;
        layout::check_no_segments_without_database(directory)?;
        let tables = Tables::open(directory, lock.clone(), StorageKind::Heed)?;
        layout::warn_of_interrupted_conversion(directory);
        Ok(HeedStorage::new(tables, SnapshotFiles::open(directory, lock)?))
    }

    pub(crate) fn new(tables: Tables, snapshots: SnapshotFiles) -> HeedStorage {
        HeedStorage { log: Arc::new(HeedLog::of(tables)), snapshots, state: None }
    }
}

impl StableStorage for HeedStorage {
    type LogReader = HeedLogReader;
    type Snapshots = SnapshotFiles;

    /// Reads and checks everything: each entry's checksum and place, all metadata, and the recorded snapshot's file
    /// but for its data, which is checked when it is read.
    fn load(&mut self) -> Result<StoredState, StorageError> {
        let state = self.log.load()?;
        if let Some(snapshot) = &state.snapshot {
            self.snapshots.check_recorded(snapshot)?;
        }
        self.log.delete_all_left(state.truncated.index)?;
        self.state = Some(state.clone());
        Ok(state)
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let Some(before) = self.state.take() else {
            let reason =
                "the state on disk is not known: load it first, or open it again after a failed write";
            return Err(StorageError::Refused { reason: reason.to_owned() });
        };
        self.snapshots.check_to_be_recorded(writes)?;
        let after = self.log.write(&before, writes)?;
        self.state = Some(after);
        Ok(())
    }

    fn log_reader(&self) -> HeedLogReader {
        HeedLogReader { log: Arc::clone(&self.log) }
    }

    fn snapshots(&self) -> SnapshotFiles {
        self.snapshots.clone()
    }
}

impl fmt::Debug for HeedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeedStorage").field(&self.log.data_file()).finish()
    }
}

/// Reads the log of a [`HeedStorage`] beside its writer.
#[derive(Clone)]
pub struct HeedLogReader {
    log: Arc<HeedLog>,
}

impl LogReader for HeedLogReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.read(from, until, bytes_max)
    }
}

impl fmt::Debug for HeedLogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeedLogReader").field(&self.log.data_file()).finish()
    }
}
