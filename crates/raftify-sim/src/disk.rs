//! What keeps a node's log: a model of the contract that all storages are tried against; and all that disks do wrong: they lose what was not synced, tear the last write, fail once,
//! fill up, flip bits, are wiped, or are rolled back to an older copy. How long they take is the simulation's.

use raftify_core::storage::{MemoryLogReader, MemorySnapshotStore, MemoryStorage, StoredState, Write};
use raftify_core::{
    Entry, LogIndex, LogPosition, LogReader, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::io::{Read, Write as _};

/// What the next write will meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// An error, once.
    Error,
    /// No room, until there is some again.
    Full,
}

/// What became of a write that was under way when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Torn {
    Lost,
    Kept,
    InPart,
}

/// A disk.
pub(crate) struct Disk {
    log: MemoryStorage,
    snapshots: MemorySnapshotStore,
    finished: Vec<LogPosition>,
    pub(crate) fault: Option<DiskFault>,
    /// A bit has flipped in what only reading it shows. Real storages notice it by their checksums.
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

impl Disk {
    /// An empty one.
    pub(crate) fn new() -> Disk {
        let log = MemoryStorage::default();
        Disk {
            log,
            snapshots: MemorySnapshotStore::default(),
            finished: Vec::new(),
            fault: None,
            damaged: false,
        }
    }

    pub(crate) fn load(&mut self) -> Result<StoredState, StorageError> {
        if self.damaged {
            return Err(flipped());
        }
        self.log.load()
    }

    /// Durable when it returns. After an error, a part of it may be.
    pub(crate) fn write(&mut self, writes: &[Write], rng: &mut ChaCha8Rng) -> Result<(), StorageError> {
        let Some(fault) = self.fault else {
            return self.log.write(writes);
        };
        if fault == DiskFault::Error {
            self.fault = None;
        }
        self.log.write(&writes[..rng.random_range(0..=writes.len())])?;
        Err(simulated(if fault == DiskFault::Full { "no space left" } else { "input/output error" }))
    }

    /// The power goes while `writes` are under way.
    pub(crate) fn lose_power(
        &mut self,
        writes: &[Write],
        rng: &mut ChaCha8Rng,
    ) -> Result<Torn, StorageError> {
        let kept = rng.random_range(0..=writes.len());
        self.log.write(&writes[..kept])?;
        Ok(match kept {
            0 => Torn::Lost,
            all if all == writes.len() => Torn::Kept,
            _ => Torn::InPart,
        })
    }

    /// Entries, as a node reads them beside the writer.
    pub(crate) fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        if self.damaged {
            return Err(flipped());
        }
        self.log.log_reader().read(from, until, bytes_max)
    }

    /// A second view on the log.
    pub(crate) fn log_reader(&self) -> MemoryLogReader {
        self.log.log_reader()
    }

    /// Whether a bit has flipped.
    pub(crate) fn has_flipped(&self) -> bool {
        self.damaged
    }

    pub(crate) fn set_full(&mut self) {
        self.fault = Some(DiskFault::Full);
    }

    /// There is room again, and nothing fails.
    pub(crate) fn repair(&mut self) {
        self.fault = None;
    }

    pub(crate) fn flip_a_bit(&mut self) {
        self.damaged = true;
    }

    /// A second disk with the same content.
    pub(crate) fn copy(&mut self) -> Result<Disk, StorageError> {
        let state = self.load()?;
        let mut copy = Disk::new();
        if let Some(snapshot) = &state.snapshot {
            let data = self.read_snapshot(snapshot.position)?;
            copy.write_snapshot(snapshot, &data)?;
        }
        let append = self.read(state.truncated.index.next(), state.last.index.next(), u64::MAX)?;
        let whole = Write {
            identity: state.identity,
            reset_log: Some(state.truncated),
            append,
            hard_state: Some(state.hard_state),
            members: state.members,
            snapshot: state.snapshot,
            compact: None,
        };
        copy.log.write(&[whole])?;
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

    /// Deletes the snapshots that are not in use, but for those that were finished since the core was asked.
    pub(crate) fn retain_snapshots(&mut self, in_use: Vec<LogPosition>) -> Result<(), StorageError> {
        let newest = in_use.iter().map(|position| position.index).max().unwrap_or_default();
        self.finished.retain(|position| position.index >= newest);
        let mut keep = in_use;
        keep.extend(&self.finished);
        self.snapshots.retain(&keep)
    }
}
