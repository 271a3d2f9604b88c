//! Storage in memory, without durability: for tests, simulations, and for measuring the cost of a disk.

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    LogReader, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage, StorageError,
    StoredState, Write,
};
use crate::entry::Entry;
use crate::types::{LogIndex, LogPosition};

/// Implements [`StableStorage`] in memory. A clone is a second handle to the same content, so that a test can
/// stop a node and start it again on the same content.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    content: Arc<Mutex<Content>>,
    snapshots: MemorySnapshotStore,
}

#[derive(Clone, Debug, Default)]
struct Content {
    state: StoredState,
    entries: BTreeMap<LogIndex, Entry>,
}

impl Content {
    fn write(&mut self, write: &Write) -> Result<(), StorageError> {
        let state = self.state.after(write)?;
        if write.reset_log.is_some() && !mutated!(SnapshotKeepsSuffix) {
            self.entries.clear();
        }
        if let Some(first) = write.append.first() {
            if !mutated!(SuffixIsKept) {
                self.entries.split_off(&first.position.index);
            }
            self.entries.extend(write.append.iter().map(|entry| (entry.position.index, entry.clone())));
        }
        self.entries = self.entries.split_off(&state.truncated.index.next());
        self.state = state;
        Ok(())
    }
}

impl StableStorage for MemoryStorage {
    type LogReader = MemoryLogReader;
    type Snapshots = MemorySnapshotStore;

    fn load(&mut self) -> Result<StoredState, StorageError> {
        Ok(self.content.lock().state.clone())
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let mut content = self.content.lock();
        for write in writes {
            content.write(write)?;
        }
        Ok(())
    }

    fn log_reader(&self) -> MemoryLogReader {
        MemoryLogReader { content: Arc::clone(&self.content) }
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
        let content = self.content.lock();
        let StoredState { truncated, last, .. } = content.state;
        if from <= truncated.index {
            return Err(StorageError::Compacted { index: from, truncated });
        }
        if until > last.index.next() {
            return Err(StorageError::BeyondEnd { index: from.max(last.index.next()), last });
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in content.entries.range(from..until.max(from)).map(|(_, entry)| entry) {
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
    unfinished: Arc<Mutex<Option<Unfinished>>>,
}

/// The received part of a snapshot. It is not in the store while a writer uses it.
#[derive(Debug)]
struct Unfinished {
    meta: SnapshotMeta,
    announced: SnapshotDigest,
    data: Vec<u8>,
}

impl SnapshotStore for MemorySnapshotStore {
    type Writer = MemorySnapshotWriter;
    type Reader = MemorySnapshotReader;

    fn create(&self, meta: &SnapshotMeta) -> Result<MemorySnapshotWriter, StorageError> {
        Ok(MemorySnapshotWriter {
            store: self.clone(),
            meta: meta.clone(),
            data: Vec::new(),
            announced: None,
        })
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        _is_wanted: &dyn Fn() -> bool,
    ) -> Result<(MemorySnapshotWriter, SnapshotDigest), StorageError> {
        let unfinished = self.unfinished.lock().take();
        let same = unfinished.filter(|left| left.meta == *meta && left.announced == announced);
        let data = same.map(|left| left.data).unwrap_or_default();
        let received = SnapshotDigest::default().followed_by(&data);
        let writer = MemorySnapshotWriter {
            store: self.clone(),
            meta: meta.clone(),
            data,
            announced: Some(announced),
        };
        Ok((writer, received))
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, MemorySnapshotReader), StorageError> {
        let snapshots = self.snapshots.lock();
        let (meta, data) = snapshots.get(&position).ok_or(StorageError::NoSnapshot { position })?;
        Ok((meta.clone(), SnapshotDigest::default().followed_by(data), Cursor::new(data.clone())))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        self.snapshots.lock().retain(|position, _| keep.contains(position));
        let newest = keep.iter().map(|position| position.index).max();
        self.unfinished
            .lock()
            .take_if(|left| newest.is_some_and(|newest| left.meta.position.index <= newest));
        Ok(())
    }
}

/// Writes the data of one snapshot into memory.
#[derive(Debug)]
pub struct MemorySnapshotWriter {
    store: MemorySnapshotStore,
    meta: SnapshotMeta,
    data: Vec<u8>,
    /// The digest of the snapshot that is being received: its data is kept when the writer is dropped.
    announced: Option<SnapshotDigest>,
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
    fn finish(mut self) -> Result<u64, StorageError> {
        self.announced = None;
        let data = std::mem::take(&mut self.data);
        let length = data.len() as u64;
        self.store.snapshots.lock().insert(self.meta.position, (self.meta.clone(), data.into()));
        Ok(length)
    }

    fn discard(mut self) {
        self.announced = None;
    }
}

impl Drop for MemorySnapshotWriter {
    fn drop(&mut self) {
        if let Some(announced) = self.announced {
            let (meta, data) = (self.meta.clone(), std::mem::take(&mut self.data));
            *self.store.unfinished.lock() = Some(Unfinished { meta, announced, data });
        }
    }
}

/// Reads the data of one snapshot from memory.
pub type MemorySnapshotReader = Cursor<Bytes>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::{self, TestDisk};

    impl TestDisk for MemoryStorage {
        type Storage = MemoryStorage;

        fn open(&self) -> Result<MemoryStorage, StorageError> {
            Ok(self.clone())
        }
    }

    #[test]
    fn memory_storage_keeps_the_contract() {
        conformance::check(MemoryStorage::default);
    }
}
