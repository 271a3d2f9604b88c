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

/// How a [`WalStorage`] lays out its log.
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
    /// Larger ones are changed more rarely; smaller ones are quicker made (zeros and one flush, beside the writer),
    /// and given back sooner after a compaction. A directory has at least two of them, soon three. What one write
    /// holds is never split: if it needs more, it gets a file of its own size. Loading reads one file at a time into
    /// memory. The size may be another one each time a directory is opened; files that are there keep theirs.
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
    /// Large enough that going on to the next segment is rare, small enough that making one takes some milliseconds of
    /// the disk's time, and that a new directory stays small.
    fn default() -> WalSettings {
        WalSettings { segment_bytes: 16 << 20 }
    }
}

/// Keeps what must survive a crash in one directory: entries and hard state in a segment log, identity, membership and
/// the catalogue of snapshots in LMDB, snapshots in files.
///
/// Every [`write`](StableStorage::write) is one record: one sequential write into a file that was zeroed before, and
/// one flush, whatever it holds. Only if identity, membership, newest snapshot or the beginning of the log change, a
/// transaction of LMDB follows. The entries' offsets are kept in memory, 16 bytes for each.
///
/// After a write that failed, everything is refused until the directory is opened again; nothing that was acknowledged
/// is lost by that. The directory belongs to this handle, to what [`log_reader`](StableStorage::log_reader) and
/// [`snapshots`](StableStorage::snapshots) gave out until all of them are dropped.
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
    /// Opens the storage in `directory` with default settings, and makes the directory if it is not there.
    ///
    /// # Errors
    /// - [`StorageError::InUse`]: another process, or another handle of this one, has it open.
    /// - [`StorageError::OtherKind`]: a [`HeedStorage`](crate::HeedStorage) keeps this directory. Open it with that, or
    ///   [convert](crate::convert_storage) it.
    /// - [`StorageError::Io`]: the system refused, for instance for lack of permission.
    /// - [`StorageError::Corrupt`], [`StorageError::Version`]: this is not what was written, or not by this version.
    ///   Nothing was changed. The log is checked by [`load`](StableStorage::load) only.
    pub fn open(directory: impl AsRef<Path>) -> Result<WalStorage, StorageError> {
        WalStorage::open_with(directory, WalSettings::default())
    }

    /// Opens the storage in `directory`, and makes the directory if it is not there.
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
        let metadata = Tables::open(directory, lock.clone(), StorageKind::Wal)?;
        layout::warn_of_interrupted_conversion(directory);
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

    /// Reads and checks everything: each record's checksum and place, all metadata, and the recorded snapshot's file
    /// but for its data, which is checked when it is read. A last record that was not written to its end is dropped,
    /// with one line of tracing: it was never acknowledged.
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
}

impl fmt::Debug for WalStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WalStorage").field(&self.directory).finish()
    }
}

/// Reads the log of a [`WalStorage`] beside its writer. Nothing can be read before the storage was loaded.
#[derive(Clone)]
pub struct WalLogReader {
    reader: SegmentReader,
    /// Keeps other processes out for as long as this reader exists.
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
