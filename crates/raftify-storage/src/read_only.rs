//! A data directory, of either storage, opened read-only: by tools, also while its node is running.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::StoredState;
use raftify_core::{Entry, LogIndex, LogPosition, LogReader, SnapshotMeta, StorageError};

use crate::heed_storage::HeedLog;
use crate::layout::StorageKind;
use crate::layout::snapshots::{self, SnapshotFile};
use crate::lmdb::Tables;
use crate::snapshot_files::{self, SnapshotFileReader};
use crate::wal::SegmentView;

/// A data directory opened read-only, whichever its storage. It never writes to the files of the node.
///
/// A node may use the directory meanwhile. [`load`](Self::load) returns its state at that moment. Reads from
/// a directory of [`HeedStorage`](crate::HeedStorage) also do; those from a [`WalStorage`](crate::WalStorage)
/// return the data that the last `load` found, as long as the node has not released it, and otherwise load
/// again.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::{ReadOnlyStorage, StorageKind, WalStorage};
///
/// # let directory = tempfile::tempdir()?;
/// WalStorage::open(directory.path())?.load()?;
/// let storage = ReadOnlyStorage::open(directory.path())?;
/// assert_eq!(storage.kind(), StorageKind::Wal);
/// assert!(storage.load()?.identity.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ReadOnlyStorage {
    entries: Entries,
    directory: PathBuf,
}

#[derive(Clone)]
enum Entries {
    Heed(Arc<HeedLog>),
    Wal(Arc<SegmentView>),
}

impl ReadOnlyStorage {
    /// Opens `directory`.
    ///
    /// # Errors
    /// - [`StorageError::Io`]: the directory is missing or empty, or there is no permission.
    /// - [`StorageError::InUse`]: the same process has it open.
    /// - [`StorageError::Database`], [`StorageError::Corrupt`], [`StorageError::Version`]: the content is not
    ///   what a node wrote, or a node of another version wrote it.
    pub fn open(directory: impl AsRef<Path>) -> Result<ReadOnlyStorage, StorageError> {
        let directory = directory.as_ref().to_owned();
        let tables = Tables::open_read_only(&directory)?;
        let entries = match tables.kind()? {
            StorageKind::Heed => Entries::Heed(Arc::new(HeedLog::of(tables))),
            StorageKind::Wal => Entries::Wal(Arc::new(SegmentView::new(&directory, tables))),
        };
        Ok(ReadOnlyStorage { entries, directory })
    }

    /// The storage of the directory.
    pub fn kind(&self) -> StorageKind {
        match self.entries {
            Entries::Heed(_) => StorageKind::Heed,
            Entries::Wal(_) => StorageKind::Wal,
        }
    }

    /// Reads and checks everything, as the node does in `load`. It does not return a write that the node has
    /// only begun.
    ///
    /// # Errors
    /// As for the `load` of the node, and [`StorageError::Changing`] if the node changes the data faster than
    /// it can be read.
    pub fn load(&self) -> Result<StoredState, StorageError> {
        let mut state = self.look()?;
        loop {
            let Some(snapshot) = &state.snapshot else {
                return Ok(state);
            };
            let Err(error) = snapshot_files::check_recorded(&self.snapshot_directory(), snapshot) else {
                return Ok(state);
            };
            // The node may have replaced it by a newer one since the metadata was read.
            let now = self.look()?;
            if now.snapshot == state.snapshot {
                return Err(error);
            }
            state = now;
        }
    }

    fn look(&self) -> Result<StoredState, StorageError> {
        match &self.entries {
            Entries::Heed(log) => log.load(),
            Entries::Wal(view) => view.load(),
        }
    }

    /// A reader for entries.
    pub fn log_reader(&self) -> ReadOnlyLogReader {
        ReadOnlyLogReader { entries: self.entries.clone() }
    }

    /// The finished snapshot files, the newest last. A node keeps those that its metadata does not record
    /// only until it records the next one.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn snapshots(&self) -> Result<Vec<SnapshotFile>, StorageError> {
        snapshots::list(&self.directory)
    }

    /// Opens one snapshot; also returns how many bytes of data it holds.
    ///
    /// # Errors
    /// As [`SnapshotStore::open`](raftify_core::SnapshotStore::open).
    pub fn open_snapshot(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, u64, SnapshotFileReader), StorageError> {
        let (meta, digest, reader) = snapshot_files::open_at(&self.snapshot_directory(), position)?;
        Ok((meta, digest.data_bytes, reader))
    }

    fn snapshot_directory(&self) -> PathBuf {
        snapshots::directory_in(&self.directory)
    }
}

impl fmt::Debug for ReadOnlyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOnlyStorage")
            .field("directory", &self.directory)
            .field("kind", &self.kind())
            .finish()
    }
}

/// Reads the log of a [`ReadOnlyStorage`].
#[derive(Clone)]
pub struct ReadOnlyLogReader {
    entries: Entries,
}

impl LogReader for ReadOnlyLogReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        match &self.entries {
            Entries::Heed(log) => log.read(from, until, bytes_max),
            Entries::Wal(view) => view.read(from, until, bytes_max),
        }
    }
}

impl fmt::Debug for ReadOnlyLogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOnlyLogReader").finish_non_exhaustive()
    }
}
