//! A data directory, of either storage, that is only looked at: by tools, also beside a running node.

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

/// A data directory that is only looked at, whichever storage keeps it. Nothing of the node's is ever written.
///
/// A node may work on the directory meanwhile. [`load`](Self::load) shows it as it is at that moment. So do the reads
/// of a directory of [`HeedStorage`](crate::HeedStorage); those of a [`WalStorage`](crate::WalStorage) show what the last
/// `load` found, for as long as the node has not given it up, and look again then.
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
    /// - [`StorageError::Io`]: there is no such directory, nothing in it, or no permission.
    /// - [`StorageError::InUse`]: this same process has it open.
    /// - [`StorageError::Database`], [`StorageError::Corrupt`], [`StorageError::Version`]: this is not what a node
    ///   wrote, or not of this version.
    pub fn open(directory: impl AsRef<Path>) -> Result<ReadOnlyStorage, StorageError> {
        let directory = directory.as_ref().to_owned();
        let tables = Tables::open_read_only(&directory)?;
        let entries = match tables.kind()? {
            StorageKind::Heed => Entries::Heed(Arc::new(HeedLog::of(tables))),
            StorageKind::Wal => Entries::Wal(Arc::new(SegmentView::new(&directory, tables))),
        };
        Ok(ReadOnlyStorage { entries, directory })
    }

    /// Which storage keeps the directory.
    pub fn kind(&self) -> StorageKind {
        match self.entries {
            Entries::Heed(_) => StorageKind::Heed,
            Entries::Wal(_) => StorageKind::Wal,
        }
    }

    /// Reads and checks everything, as `load` of the node itself does. Something that a node has just begun to write
    /// is not there yet.
    ///
    /// # Errors
    /// As there, and [`StorageError::Changing`] if the node changes it faster than it can be read.
    pub fn load(&self) -> Result<StoredState, StorageError> {
        let mut state = self.look()?;
        loop {
            let Some(snapshot) = &state.snapshot else {
                return Ok(state);
            };
            let Err(error) = snapshot_files::check_recorded(&self.snapshot_directory(), snapshot) else {
                return Ok(state);
            };
            // The node may have replaced it by a newer one since the metadata were read.
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

    /// For reading entries.
    pub fn log_reader(&self) -> ReadOnlyLogReader {
        ReadOnlyLogReader { entries: self.entries.clone() }
    }

    /// The finished snapshot files, the newest last. A node keeps those that its metadata do not record only until
    /// it records the next one.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn snapshots(&self) -> Result<Vec<SnapshotFile>, StorageError> {
        snapshots::list(&self.directory)
    }

    /// Opens one snapshot; also how many bytes of data it holds.
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
