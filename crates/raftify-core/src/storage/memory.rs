//! Storage that forgets with the process: for tests, simulations, and for measuring what a disk costs.

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    HardState, LogReader, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage, StorageError,
    StoredState, Write,
};
use crate::entry::Entry;
use crate::members::Members;
use crate::types::{Identity, LogIndex, LogPosition};

/// Implements [`StableStorage`] in memory. A clone is a second handle to the same content, so that a test can stop a
/// node and start it again on what it left.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    content: Arc<Mutex<Content>>,
    snapshots: MemorySnapshotStore,
}

#[derive(Clone, Debug, Default)]
struct Content {
    identity: Option<Identity>,
    hard_state: HardState,
    members: Option<Members>,
    snapshot: Option<SnapshotMeta>,
    truncated: LogPosition,
    entries: BTreeMap<LogIndex, Entry>,
}

impl Content {
    fn last(&self) -> LogPosition {
        self.entries
            .last_key_value()
            .map_or(self.truncated, |(_, entry)| entry.position)
    }

    fn write(&mut self, write: &Write) -> Result<(), StorageError> {
        if let Some(identity) = write.identity {
            if self.identity.is_some_and(|known| known != identity) {
                let reason = format!("the identity is {:?}, not {identity}", self.identity);
                return Err(StorageError::Refused { reason });
            }
            self.identity = Some(identity);
        }
        if let Some(position) = write.reset_log {
            self.entries.clear();
            self.truncated = position;
        }
        if let Some(first) = write.append.first() {
            self.append(first.position.index, &write.append)?;
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(members) = &write.members {
            self.members = Some(members.clone());
        }
        if let Some(snapshot) = &write.snapshot {
            self.snapshot = Some(snapshot.clone());
        }
        if let Some(position) = write.compact
            && position.index > self.truncated.index
        {
            self.entries = self.entries.split_off(&position.index.next());
            self.truncated = position;
        }
        Ok(())
    }

    fn append(&mut self, first: LogIndex, entries: &[Entry]) -> Result<(), StorageError> {
        let last = self.last().index;
        if first <= self.truncated.index || first > last.next() {
            let reason = format!(
                "entry {first} does not follow: the log has {} to {last}",
                self.truncated.index.next()
            );
            return Err(StorageError::Refused { reason });
        }
        self.entries.split_off(&first);
        for (entry, expected) in entries.iter().zip(first.0..) {
            if entry.position.index.0 != expected {
                let reason = format!(
                    "entry {} stands where {expected} is expected",
                    entry.position.index
                );
                return Err(StorageError::Refused { reason });
            }
            self.entries.insert(entry.position.index, entry.clone());
        }
        Ok(())
    }
}

/// A thread that panicked while it held the lock left whole values behind: each write is made on a copy first.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StableStorage for MemoryStorage {
    type LogReader = MemoryLogReader;
    type Snapshots = MemorySnapshotStore;

    fn load(&mut self) -> Result<StoredState, StorageError> {
        let content = lock(&self.content);
        let mut term = content.truncated.term;
        let mut term_starts = Vec::new();
        for entry in content.entries.values() {
            if entry.position.term != term {
                term = entry.position.term;
                term_starts.push(entry.position);
            }
        }
        Ok(StoredState {
            identity: content.identity,
            hard_state: content.hard_state,
            members: content.members.clone(),
            snapshot: content.snapshot.clone(),
            truncated: content.truncated,
            last: content.last(),
            term_starts,
        })
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let mut content = lock(&self.content);
        for write in writes {
            content.write(write)?;
        }
        Ok(())
    }

    fn log_reader(&self) -> MemoryLogReader {
        MemoryLogReader {
            content: Arc::clone(&self.content),
        }
    }

    fn snapshots(&self) -> MemorySnapshotStore {
        self.snapshots.clone()
    }
}

/// Reads the log of a [`MemoryStorage`].
#[derive(Clone, Debug)]
pub struct MemoryLogReader {
    content: Arc<Mutex<Content>>,
}

impl LogReader for MemoryLogReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        let content = lock(&self.content);
        if from <= content.truncated.index {
            return Err(StorageError::Compacted {
                index: from,
                truncated: content.truncated,
            });
        }
        let last = content.last().index;
        if until > last.next() {
            let what = format!("entry {}", last.next());
            return Err(StorageError::Corrupt {
                what,
                reason: format!("the log ends at {last}"),
            });
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in content.entries.range(from..until).map(|(_, entry)| entry) {
            bytes += entry.size_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}

/// Keeps snapshots in memory.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshotStore {
    snapshots: Arc<Mutex<BTreeMap<LogPosition, (SnapshotMeta, Bytes)>>>,
}

impl SnapshotStore for MemorySnapshotStore {
    type Writer = MemorySnapshotWriter;
    type Reader = MemorySnapshotReader;

    fn create(&self, meta: &SnapshotMeta) -> Result<MemorySnapshotWriter, StorageError> {
        Ok(MemorySnapshotWriter {
            store: self.clone(),
            meta: meta.clone(),
            data: Vec::new(),
        })
    }

    fn open(&self, position: LogPosition) -> Result<(SnapshotMeta, u64, MemorySnapshotReader), StorageError> {
        let snapshots = lock(&self.snapshots);
        let (meta, data) = snapshots
            .get(&position)
            .ok_or(StorageError::NoSnapshot { position })?;
        Ok((meta.clone(), data.len() as u64, Cursor::new(data.clone())))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        lock(&self.snapshots).retain(|position, _| keep.contains(position));
        Ok(())
    }
}

/// Takes the data of one snapshot into memory.
#[derive(Debug)]
pub struct MemorySnapshotWriter {
    store: MemorySnapshotStore,
    meta: SnapshotMeta,
    data: Vec<u8>,
}

impl io::Write for MemorySnapshotWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.data.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for MemorySnapshotWriter {
    fn finish(self) -> Result<u64, StorageError> {
        let length = self.data.len() as u64;
        lock(&self.store.snapshots).insert(self.meta.position, (self.meta, self.data.into()));
        Ok(length)
    }
}

/// Gives back the data of one snapshot from memory.
pub type MemorySnapshotReader = Cursor<Bytes>;
