//! [`WalStorage`]: log, metadata, snapshots and directory put together.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, StableStorage, StorageError};

use super::log::SegmentLog;
use super::reader::SegmentReader;
use crate::files::create_durably;
use crate::layout::{self, DirectoryLock, LockedDirectory, StorageKind, segments};
use crate::lmdb::Tables;
use crate::snapshot_files::SnapshotFiles;

/// The settings of the log of a [`WalStorage`].
///
/// # Examples
/// ```
/// use raftify_storage::{WalSettings, WalStorage};
///
/// # let directory = tempfile::tempdir()?;
/// let settings = WalSettings { segment_bytes: 1 << 20 };
/// let storage = WalStorage::open_with(directory.path(), settings)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalSettings {
    /// The size of a file of the log, in bytes: from 64 KiB to 256 MiB, by default 16 MiB.
    ///
    /// Larger files are switched less often. Smaller files are created faster (zeros and one flush, in the
    /// background), and are released sooner after a compaction. A directory has at least two of them,
    /// and soon three. A write is never split: if it needs more space, it gets a file of its own size.
    /// Loading reads one file at a time into memory. The size may change each time a directory is
    /// opened; existing files keep theirs.
    pub segment_bytes: u64,
}

impl WalSettings {
    const SEGMENT_BYTES_MIN: u64 = 64 << 10;
    const SEGMENT_BYTES_MAX: u64 = 256 << 20;

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let (min, max) = (WalSettings::SEGMENT_BYTES_MIN, WalSettings::SEGMENT_BYTES_MAX);
        match self.segment_bytes {
            bytes if (min..=max).contains(&bytes) => Ok(()),
            value => Err(StorageError::Setting { setting: "segment_bytes", value, min, max }),
        }
    }
}

impl Default for WalSettings {
    /// Large enough that switching to the next segment is rare, small enough that creating one takes some
    /// milliseconds of disk time, and that a new directory stays small.
    fn default() -> WalSettings {
        WalSettings { segment_bytes: 16 << 20 }
    }
}

/// Keeps the durable state in one directory: entries and hard state in a segment log, identity, membership
/// and the catalogue of snapshots in LMDB, snapshots in files.
///
/// Every [`write`](StableStorage::write) is one record: one sequential write into a file that was zeroed
/// before, and one flush, whatever it contains. A transaction of LMDB follows only if identity, membership,
/// newest snapshot or the beginning of the log change. The offsets of entries are kept in memory, 16 bytes
/// for each.
///
/// After a failed write, every operation is refused until the directory is opened again; no acknowledged
/// write is lost by that. The directory belongs to this handle and to the objects that
/// [`log_reader`](StableStorage::log_reader) and [`snapshots`](StableStorage::snapshots) returned, until all
/// of them are dropped.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::WalStorage;
///
/// let directory = tempfile::tempdir()?;
/// let mut storage = WalStorage::open(directory.path().join("node-1"))?;
/// let state = storage.load()?;
/// assert!(state.identity.is_none(), "a new directory belongs to no node");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WalStorage {
    pub(super) log: SegmentLog<Tables>,
    snapshots: SnapshotFiles,
    directory: PathBuf,
    lock: DirectoryLock,
}

impl WalStorage {
    /// Opens the storage in `directory` with default settings, and creates the directory if it does not
    /// exist.
    ///
    /// # Errors
    /// - [`StorageError::InUse`]: another process, or another handle of this one, has it open.
    /// - [`StorageError::OtherKind`]: the directory belongs to a [`HeedStorage`](crate::HeedStorage). Open it
    ///   with that, or [convert](crate::convert_storage) it.
    /// - [`StorageError::Io`]: the operating system returned an error, for instance for missing permission.
    /// - [`StorageError::Corrupt`], [`StorageError::Version`]: the content is damaged, or another version
    ///   wrote it. Nothing was changed. Only [`load`](StableStorage::load) checks the log.
    pub fn open(directory: impl AsRef<Path>) -> Result<WalStorage, StorageError> {
        WalStorage::open_with(directory, WalSettings::default())
    }

    /// Opens the storage in `directory`, and creates the directory if it does not exist.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`StorageError::Setting`] if a setting is outside of its range.
    pub fn open_with(directory: impl AsRef<Path>, settings: WalSettings) -> Result<WalStorage, StorageError> {
        settings.check()?;
        WalStorage::with_segment_bytes(directory.as_ref(), settings.segment_bytes)
    }

    pub(super) fn with_segment_bytes(
        directory: &Path,
        segment_bytes: u64,
    ) -> Result<WalStorage, StorageError> {
        create_durably(directory)?;
        let lock = DirectoryLock::take(directory)?;
        layout::check_not_interrupted(directory)?;
        let metadata = Tables::open(directory, lock.clone(), StorageKind::Wal)?;
        layout::warn_of_interruptions(directory);
        let snapshots = SnapshotFiles::open(directory, lock.clone())?;
        WalStorage::new(directory, lock, metadata, snapshots, segment_bytes)
    }

    /// With the log in `directory`, which exists and belongs to this process.
    pub(crate) fn new(
        directory: &Path,
        lock: DirectoryLock,
        metadata: Tables,
        snapshots: SnapshotFiles,
        segment_bytes: u64,
    ) -> Result<WalStorage, StorageError> {
        let log = directory.join(segments::DIRECTORY);
        create_durably(&log)?;
        let operations = Arc::new(LockedDirectory(lock.clone()));
        let log = SegmentLog::new(log, operations, metadata, segment_bytes);
        Ok(WalStorage { log, snapshots, directory: directory.to_owned(), lock })
    }
}

impl StableStorage for WalStorage {
    type LogReader = WalLogReader;
    type Snapshots = SnapshotFiles;

    /// Reads and checks everything: the checksum and offset of each record, all metadata, and the file of the
    /// recorded snapshot except its data, which is checked when it is read. A last record that was not
    /// completely written is dropped, with one tracing event: it was never acknowledged.
    fn load(&mut self) -> Result<StoredState, StorageError> {
        let state = self.log.load()?;
        if let Some(snapshot) = &state.snapshot {
            self.snapshots.check_recorded(snapshot)?;
        }
        Ok(state)
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        self.snapshots.check_to_be_recorded(writes)?;
        self.log.write(writes)
    }

    fn log_reader(&self) -> WalLogReader {
        WalLogReader { reader: self.log.reader(), _lock: self.lock.clone() }
    }

    fn snapshots(&self) -> SnapshotFiles {
        self.snapshots.clone()
    }

    fn directory(&self) -> Option<PathBuf> {
        Some(self.directory.clone())
    }
}

impl fmt::Debug for WalStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WalStorage").field(&self.directory).finish()
    }
}

/// Reads the log of a [`WalStorage`] concurrently with its writer. No entry can be read before the storage
/// was loaded.
#[derive(Clone)]
pub struct WalLogReader {
    reader: SegmentReader,
    /// Excludes other processes as long as this reader exists.
    _lock: DirectoryLock,
}

impl LogReader for WalLogReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.reader.read(from, until, bytes_max)
    }
}

impl fmt::Debug for WalLogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WalLogReader").field(self.reader.directory()).finish()
    }
}
