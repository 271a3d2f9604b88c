//! The storage of a node's log: a model of the contract of all storages, or the real segment log on a
//! simulated disk; and the faults of disks: they lose unsynced data, tear the last write, fail once, fill up,
//! flip bits, are wiped, or are rolled back to an older copy. The simulation decides the duration of their
//! operations.

use raftify_core::storage::{MemoryLogReader, MemorySnapshotStore, MemoryStorage, StoredState, Write};
use raftify_core::{
    Entry, LogIndex, LogPosition, LogReader, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError,
};
use raftify_storage::simulation::{Cut, SimulatedLog, SimulatedLogReader};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::io::{Read, Write as _};

/// The fault of the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// A single error.
    Error,
    /// No space, until some is freed.
    Full,
}

/// The fate of a write that was pending at a power failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Torn {
    Lost,
    Kept,
    InPart,
}

/// The log of a node.
enum Log {
    Model(MemoryStorage),
    Segments(Box<SimulatedLog>),
}

/// Reads the log concurrently with its writer.
#[derive(Clone)]
pub(crate) enum DiskReader {
    Model(MemoryLogReader),
    Segments(SimulatedLogReader),
}

impl LogReader for DiskReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        match self {
            DiskReader::Model(reader) => reader.read(from, until, bytes_max),
            DiskReader::Segments(reader) => reader.read(from, until, bytes_max),
        }
    }
}

/// A disk.
pub(crate) struct Disk {
    log: Log,
    snapshots: MemorySnapshotStore,
    finished: Vec<LogPosition>,
    fault: Option<DiskFault>,
    /// A bit has flipped in data that only a read checks. Real storages detect it by their checksums.
    damaged: bool,
}

fn simulated(what: &str) -> StorageError {
    StorageError::Io {
        action: "write to",
        path: "disk".into(),
        source: std::io::Error::other(what.to_owned()),
    }
}

fn flipped() -> StorageError {
    StorageError::Corrupt { what: "an entry".to_owned(), reason: "a bit has flipped".to_owned() }
}

fn write_in_part(
    log: &mut MemoryStorage,
    writes: &[Write],
    rng: &mut ChaCha8Rng,
) -> Result<Torn, StorageError> {
    let kept = rng.random_range(0..=writes.len());
    log.write(&writes[..kept])?;
    Ok(match kept {
        0 => Torn::Lost,
        all if all == writes.len() => Torn::Kept,
        _ => Torn::InPart,
    })
}

impl From<Cut> for Torn {
    fn from(cut: Cut) -> Torn {
        match cut {
            Cut::Before => Torn::Lost,
            Cut::Within => Torn::InPart,
            Cut::After => Torn::Kept,
        }
    }
}

impl Disk {
    /// An empty disk, with the model of a log.
    pub(crate) fn with_model() -> Disk {
        Disk::with(Log::Model(MemoryStorage::default()))
    }

    /// An empty disk, with the segment log. `seed` determines its failures.
    pub(crate) fn with_segments(seed: u64) -> Disk {
        Disk::with(Log::Segments(Box::new(SimulatedLog::new(seed))))
    }

    fn with(log: Log) -> Disk {
        Disk {
            log,
            snapshots: MemorySnapshotStore::default(),
            finished: Vec::new(),
            fault: None,
            damaged: false,
        }
    }

    pub(crate) fn has_segments(&self) -> bool {
        matches!(self.log, Log::Segments(_))
    }

    pub(crate) fn load(&mut self) -> Result<StoredState, StorageError> {
        match &mut self.log {
            Log::Model(_) if self.damaged => Err(flipped()),
            Log::Model(log) => log.load(),
            Log::Segments(log) => log.load(),
        }
    }

    /// Durable when it returns. After an error, a part of it may be durable.
    pub(crate) fn write(&mut self, writes: &[Write], rng: &mut ChaCha8Rng) -> Result<(), StorageError> {
        match (&mut self.log, self.fault) {
            (Log::Model(log), None) => log.write(writes),
            (Log::Model(log), Some(fault)) => {
                if fault == DiskFault::Error {
                    self.fault = None;
                }
                log.write(&writes[..rng.random_range(0..=writes.len())])?;
                Err(simulated(if fault == DiskFault::Full { "no space left" } else { "input/output error" }))
            }
            (Log::Segments(log), Some(DiskFault::Error)) => {
                // Some failures have no effect; then the next write fails.
                log.write_and_fail(writes).inspect_err(|_| self.fault = None)
            }
            (Log::Segments(log), _) => log.write(writes),
        }
    }

    /// A power failure while `writes` are pending.
    pub(crate) fn lose_power(
        &mut self,
        writes: &[Write],
        rng: &mut ChaCha8Rng,
    ) -> Result<Torn, StorageError> {
        match &mut self.log {
            Log::Model(log) => write_in_part(log, writes, rng),
            Log::Segments(log) => Ok(log.lose_power(writes).into()),
        }
    }

    /// The process ends while `writes` are pending; the operating system keeps its part of them.
    pub(crate) fn end_process(
        &mut self,
        writes: &[Write],
        rng: &mut ChaCha8Rng,
    ) -> Result<Torn, StorageError> {
        match &mut self.log {
            // A disk that fails has no part of them.
            Log::Model(_) if self.fault.is_some() => Ok(Torn::Lost),
            Log::Model(log) => write_in_part(log, writes, rng),
            Log::Segments(log) => Ok(log.end_process(writes).into()),
        }
    }

    /// The entries, as a node reads them concurrently with the writer.
    pub(crate) fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        match &self.log {
            Log::Model(_) if self.damaged => Err(flipped()),
            _ => self.log_reader().read(from, until, bytes_max),
        }
    }

    /// The position before the first entry, and the last one, as a concurrent reader sees them.
    pub(crate) fn ends(&self) -> Result<(LogPosition, LogPosition), StorageError> {
        let beyond = LogIndex(u64::MAX / 2);
        let truncated = match self.read(LogIndex::ZERO, LogIndex::ZERO, 0) {
            Err(StorageError::Compacted { truncated, .. }) => truncated,
            Err(error) => return Err(error),
            Ok(_) => LogPosition::ZERO,
        };
        match self.read(beyond, beyond.next(), 0) {
            Err(StorageError::BeyondEnd { last, .. }) => Ok((truncated, last)),
            Err(error) => Err(error),
            Ok(_) => Ok((truncated, LogPosition::ZERO)),
        }
    }

    /// A second view of the log.
    pub(crate) fn log_reader(&self) -> DiskReader {
        match &self.log {
            Log::Model(log) => DiskReader::Model(log.log_reader()),
            Log::Segments(log) => DiskReader::Segments(log.log_reader()),
        }
    }

    pub(crate) fn fault(&self) -> Option<DiskFault> {
        self.fault
    }

    /// Whether a bit has flipped.
    pub(crate) fn has_flipped(&self) -> bool {
        self.damaged
    }

    /// Sets its fault.
    pub(crate) fn set_fault(&mut self, fault: Option<DiskFault>) {
        self.fault = fault;
        if let Log::Segments(log) = &mut self.log {
            log.set_full(fault == Some(DiskFault::Full));
        }
    }

    /// Has no effect while nothing is stored.
    pub(crate) fn flip_a_bit(&mut self) {
        self.damaged |= match &mut self.log {
            Log::Model(_) => true,
            Log::Segments(log) => log.turn_a_bit(),
        };
    }

    /// A second disk with the same content, which is `state` and the entries.
    pub(crate) fn copy(&mut self, state: StoredState) -> Result<Disk, StorageError> {
        let log = match &mut self.log {
            Log::Model(_) => {
                let append = self.read(state.truncated.index.next(), state.last.index.next(), u64::MAX)?;
                let whole = Write {
                    identity: state.identity,
                    reset_log: Some(state.truncated),
                    append,
                    hard_state: Some(state.hard_state),
                    members: state.members,
                    remembered: Some(state.remembered),
                    snapshot: state.snapshot.clone(),
                    compact: None,
                };
                let mut log = MemoryStorage::default();
                log.write(&[whole])?;
                Log::Model(log)
            }
            Log::Segments(log) => Log::Segments(Box::new(log.copy())),
        };
        let mut copy = Disk::with(log);
        if let Some(snapshot) = &state.snapshot {
            let data = self.read_snapshot(snapshot.position)?;
            copy.write_snapshot(snapshot, &data)?;
        }
        Ok(copy)
    }

    pub(crate) fn write_snapshot(&mut self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StorageError> {
        let mut writer = self.snapshots.create(meta)?;
        writer.write_all(data).map_err(|source| StorageError::Io {
            action: "write to",
            path: "snapshot".into(),
            source,
        })?;
        writer.finish()?;
        self.finished.push(meta.position);
        Ok(())
    }

    pub(crate) fn read_snapshot(&self, position: LogPosition) -> Result<Vec<u8>, StorageError> {
        let (_, _, mut reader) = self.snapshots.open(position)?;
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(|source| StorageError::Io {
            action: "read",
            path: "snapshot".into(),
            source,
        })?;
        Ok(data)
    }

    pub(crate) fn snapshots(&self) -> &MemorySnapshotStore {
        &self.snapshots
    }

    /// Deletes the snapshots that are not in use, except those that were finished after the core's request.
    pub(crate) fn retain_snapshots(&mut self, in_use: Vec<LogPosition>) -> Result<(), StorageError> {
        let newest = in_use.iter().map(|position| position.index).max().unwrap_or_default();
        self.finished.retain(|position| position.index >= newest);
        let mut keep = in_use;
        keep.extend(&self.finished);
        self.snapshots.retain(&keep)
    }
}
