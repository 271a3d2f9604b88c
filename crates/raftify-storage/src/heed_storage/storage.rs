//! [`HeedStorage`]: log, snapshots and directory put together.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, StableStorage, StorageError};

use super::log::HeedLog;
use crate::files::create_durably;
use crate::layout::{self, DirectoryLock, StorageKind};
use crate::lmdb::Tables;
use crate::snapshot_files::SnapshotFiles;

/// Keeps the durable state in one directory: log and metadata in LMDB, snapshots in files next to it.
///
/// Every [`write`](StableStorage::write) is one transaction, fsynced before it returns. The database grows
/// automatically, up to the size of the disk. Every value that is read is checked against its checksum;
/// damage is an error and never skipped.
///
/// The directory belongs to this handle and to the objects that [`log_reader`](StableStorage::log_reader) and
/// [`snapshots`](StableStorage::snapshots) returned, until all of them are dropped.
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
    /// The state on disk. `None` before it was loaded, and after a failed write: the state on disk is
    /// unknown then.
    state: Option<StoredState>,
}

impl HeedStorage {
    /// Opens the storage in `directory`, and creates the directory if it does not exist.
    ///
    /// # Errors
    /// - [`StorageError::InUse`]: another process, or another handle of this one, has it open.
    /// - [`StorageError::OtherKind`]: the directory belongs to a [`WalStorage`](crate::WalStorage). Open it
    ///   with that, or [convert](crate::convert_storage) it.
    /// - [`StorageError::Io`]: the operating system returned an error, for instance for missing permission.
    /// - [`StorageError::Corrupt`], [`StorageError::Version`]: the content is damaged, or another version
    ///   wrote it. Nothing was changed. Only [`load`](StableStorage::load) checks all of the content.
    pub fn open(directory: impl AsRef<Path>) -> Result<HeedStorage, StorageError> {
        let directory = directory.as_ref();
        create_durably(directory)?;
        let lock = DirectoryLock::take(directory)?;
        layout::check_not_interrupted(directory)?;
        layout::check_no_segments_without_database(directory)?;
        let tables = Tables::open(directory, lock.clone(), StorageKind::Heed)?;
        layout::warn_of_interruptions(directory);
        Ok(HeedStorage::new(tables, SnapshotFiles::open(directory, lock)?))
    }

    pub(crate) fn new(tables: Tables, snapshots: SnapshotFiles) -> HeedStorage {
        HeedStorage { log: Arc::new(HeedLog::of(tables)), snapshots, state: None }
    }
}

impl StableStorage for HeedStorage {
    type LogReader = HeedLogReader;
    type Snapshots = SnapshotFiles;

    /// Reads and checks everything: the checksum and index of each entry, all metadata, and the file of the
    /// recorded snapshot except its data, which is checked when it is read.
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

    fn directory(&self) -> Option<PathBuf> {
        self.log.data_file().parent().map(Path::to_owned)
    }
}

impl fmt::Debug for HeedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeedStorage").field(&self.log.data_file()).finish()
    }
}

/// Reads the log of a [`HeedStorage`] concurrently with its writer.
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
