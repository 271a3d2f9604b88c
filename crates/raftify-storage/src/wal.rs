//! [`WalStorage`], the contract of stable storage with the least work for each write: entries and hard state in an
//! append-only log of segments, what is rare in LMDB.
//!
//! `segment.rs` knows one file, `record.rs` the bytes of one write, `log.rs` appends and reads, `recovery.rs` finds the
//! log again after a crash, `metadata.rs` keeps what is rare, `view.rs` looks at it all beside another process. This
//! file puts them together with the snapshots. `simulation.rs` has the log on a disk in memory, for the simulator.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, StableStorage, StorageError};

use crate::conversion;
use crate::directory::{self, DirectoryLock};
use crate::environment::DATA_FILE;
use crate::files::{LockedDirectory, ReadOnlySystem, SegmentOperations};
use crate::format::StorageKind;
use crate::io_error;
use crate::snapshot_files::SnapshotFiles;
use crate::storage::Log;

use log::{SegmentLog, SegmentReader};

#[cfg(test)]
mod crash_tests;
mod log;
mod metadata;
mod record;
mod recovery;
mod segment;
#[cfg(any(test, feature = "simulation"))]
mod simulated_disk;
#[cfg(feature = "simulation")]
pub mod simulation;
#[cfg(test)]
mod tests;
mod view;

pub(crate) use view::SegmentView;

/// Of the segments, in the data directory.
pub(crate) const DIRECTORY: &str = "log";

/// The files of a segment log in `data_directory`, if there are any.
pub(crate) fn segments_in(data_directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let directory = data_directory.join(DIRECTORY);
    let mut paths = ReadOnlySystem.list(&directory).map_err(io_error("list", &directory))?;
    paths.retain(|path| segment::name_of(path).is_some());
    Ok(paths)
}

/// That a directory without LMDB is new, and has not lost it: there might be acknowledged entries in the segments.
pub(crate) fn check_no_segments(data_directory: &Path) -> Result<(), StorageError> {
    match segments_in(data_directory)?.first() {
        None => Ok(()),
        Some(path) => Err(StorageError::Corrupt {
            what: data_directory.display().to_string(),
            reason: format!("there is {}, but no {DATA_FILE}", path.display()),
        }),
    }
}

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
/// transaction of LMDB follows. The entries' places are kept in memory, 16 bytes for each.
///
/// After a write that failed, everything is refused until the directory is opened again; nothing that was acknowledged
/// is lost by that. The directory belongs to this handle, to what [`log_reader`](StableStorage::log_reader) and
/// [`snapshots`](StableStorage::snapshots) gave out, and to nobody else until all of them are dropped.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::WalStorage;
///
/// let directory = tempfile::tempdir()?;
/// let mut storage = WalStorage::open(directory.path().join("node-1"))?;
/// let state = storage.load()?;
/// assert!(state.identity.is_none(), "a new directory belongs to nobody");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WalStorage {
    log: SegmentLog<Log>,
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

    fn with_segment_bytes(directory: &Path, segment_bytes: u64) -> Result<WalStorage, StorageError> {
        directory::create_durably(directory)?;
        let lock = DirectoryLock::take(directory)?;
        let metadata = Log::open(directory, lock.clone(), StorageKind::Wal)?;
        conversion::warn_of_left(directory);
        let snapshots = SnapshotFiles::open(directory, lock.clone())?;
        WalStorage::new(directory, lock, metadata, snapshots, segment_bytes)
    }

    /// With the log in `directory`, which exists and belongs to this process.
    pub(crate) fn new(
        directory: &Path,
        lock: DirectoryLock,
        metadata: Log,
        snapshots: SnapshotFiles,
        segment_bytes: u64,
    ) -> Result<WalStorage, StorageError> {
        let segments = directory.join(DIRECTORY);
        directory::create_durably(&segments)?;
        let operations = Arc::new(LockedDirectory(lock.clone()));
        let log = SegmentLog::new(segments, operations, metadata, segment_bytes);
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

/// The record of a write that appends `entries`, into the empty `out`: for benches.
#[cfg(feature = "testing")]
#[doc(hidden)]
pub fn encode_record(entries: &[Entry], out: &mut Vec<u8>) {
    let hard_state = raftify_core::HardState::default();
    let change =
        record::Change { reset: false, entries: entries.iter().collect(), hard_state, metadata: None };
    change.encode(segment::Life(1), 1, out);
}

/// Reads any bytes as a record: as they are, and with checksums that fit.
#[cfg(feature = "testing")]
pub(crate) fn read_record(bytes: &[u8]) {
    let life = segment::Life(1);
    record::read(life, bytes);
    record::read(life, &record::with_checksums(life, bytes));
}

/// Reads any bytes as the metadata in a record. What can be read is written again, and must be the same.
#[cfg(feature = "testing")]
pub(crate) fn read_metadata(bytes: &[u8]) {
    if let Ok(metadata) = metadata::Metadata::decode(bytes) {
        assert_eq!(metadata::Metadata::decode(&metadata.encode()).ok(), Some(metadata));
    }
}

/// Reads the log of a [`WalStorage`] beside its writer. Nothing can be read before the storage was loaded.
#[derive(Clone)]
pub struct WalLogReader {
    reader: SegmentReader,
    /// Keeps other processes out for as long as somebody reads here.
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
