//! [`WalStorage`], the contract of stable storage with the least work for each write: entries and hard state in an
//! append-only log of segments, what is rare in LMDB.
//!
//! `segment.rs` knows one file, `record.rs` the bytes of one write, `log.rs` appends and reads, `recovery.rs` finds the
//! log again after a crash, `metadata.rs` keeps what is rare. This file puts them together with the snapshots.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, SnapshotStore, StableStorage, StorageError};

use crate::directory::{self, DirectoryLock};
use crate::files::OperatingSystem;
use crate::format::Kind;
use crate::snapshot_files::SnapshotFiles;
use crate::storage::{Log, check_snapshot_file};

use log::{SegmentLog, SegmentReader};

#[cfg(test)]
mod crash_tests;
mod log;
mod metadata;
mod record;
mod recovery;
mod segment;
#[cfg(test)]
mod simulated_disk;
#[cfg(test)]
mod tests;

const DIRECTORY: &str = "log";

/// The size of a segment: large enough that going on to the next one is rare, small enough that making one (zeros,
/// one flush) takes some milliseconds of the disk's time, and that a new directory stays small.
const SEGMENT_BYTES: u64 = 16 << 20;

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
    /// Opens the storage in `directory`, and makes the directory if it is not there.
    ///
    /// # Errors
    /// - [`StorageError::InUse`]: another process, or another handle of this one, has it open.
    /// - [`StorageError::OtherKind`]: a [`HeedStorage`](crate::HeedStorage) keeps this directory.
    /// - [`StorageError::Io`]: the system refused, for instance for lack of permission.
    /// - [`StorageError::Corrupt`], [`StorageError::Version`]: this is not what was written, or not by this version.
    ///   Nothing was changed. The log is checked by [`load`](StableStorage::load) only.
    pub fn open(directory: impl AsRef<Path>) -> Result<WalStorage, StorageError> {
        WalStorage::with_segment_bytes(directory.as_ref(), SEGMENT_BYTES)
    }

    fn with_segment_bytes(directory: &Path, segment_bytes: u64) -> Result<WalStorage, StorageError> {
        directory::create_durably(directory)?;
        let lock = DirectoryLock::take(directory)?;
        let metadata = Log::open(directory, lock.clone(), Kind::Wal)?;
        let segments = directory.join(DIRECTORY);
        directory::create_durably(&segments)?;
        Ok(WalStorage {
            log: SegmentLog::new(segments, Arc::new(OperatingSystem), metadata, segment_bytes),
            snapshots: SnapshotFiles::open(directory, lock.clone())?,
            directory: directory.to_owned(),
            lock,
        })
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
            check_snapshot_file(snapshot, &self.snapshots.path(snapshot.position), || {
                self.snapshots.open(snapshot.position)
            })?;
        }
        Ok(state)
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        for snapshot in writes.iter().filter_map(|write| write.snapshot.as_ref()) {
            let path = self.snapshots.path(snapshot.position);
            let opened = check_snapshot_file(snapshot, &path, || self.snapshots.open(snapshot.position));
            opened.map_err(|error| StorageError::Refused { reason: error.to_string() })?;
        }
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
