//! Keeps snapshots from being deleted between the moment they are finished and the moment the core knows of them.
//!
//! The core says which snapshots are in use; a snapshot that was just received or taken is not among them until the
//! raft loop has heard of it. [`TrackedSnapshots`] wraps the storage's own store and remembers what was finished. Nor
//! does it let anybody read on once the node stops: a large snapshot that is being restored does not hold up the end.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StorageError};

use crate::lifecycle::Lifecycle;

/// A [`SnapshotStore`] whose [`retain`](SnapshotStore::retain) spares what is newer than all that it is told to keep.
#[derive(Clone)]
pub(crate) struct TrackedSnapshots<S> {
    store: S,
    /// Finished in this process, and not older than the newest that was ever known to be in use. Locked while
    /// snapshots are deleted, so that none is finished between the decision and the deletion.
    finished: Arc<Mutex<BTreeSet<LogPosition>>>,
    lifecycle: Lifecycle,
}

impl<S> TrackedSnapshots<S> {
    pub(crate) fn new(store: S, lifecycle: Lifecycle) -> TrackedSnapshots<S> {
        TrackedSnapshots { store, finished: Arc::default(), lifecycle }
    }
}

fn lock(finished: &Mutex<BTreeSet<LogPosition>>) -> MutexGuard<'_, BTreeSet<LogPosition>> {
    finished.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: SnapshotStore> SnapshotStore for TrackedSnapshots<S> {
    type Writer = TrackedWriter<S::Writer>;
    type Reader = WantedReader<S::Reader>;

    fn create(&self, meta: &SnapshotMeta) -> Result<Self::Writer, StorageError> {
        let writer = self.store.create(meta)?;
        Ok(TrackedWriter { writer, position: meta.position, finished: Arc::clone(&self.finished) })
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, Self::Reader), StorageError> {
        let (meta, digest, reader) = self.store.open(position)?;
        Ok((meta, digest, WantedReader { reader, lifecycle: self.lifecycle.clone() }))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        let mut finished = lock(&self.finished);
        // The newest itself stays tracked: the list of another caller may be older than this one.
        if let Some(newest) = keep.iter().max_by_key(|position| position.index) {
            finished.retain(|position| position.index >= newest.index);
        }
        let keep: Vec<LogPosition> = finished.iter().chain(keep).copied().collect();
        self.store.retain(&keep)
    }
}

pub(crate) struct TrackedWriter<W> {
    writer: W,
    position: LogPosition,
    finished: Arc<Mutex<BTreeSet<LogPosition>>>,
}

impl<W: io::Write> io::Write for TrackedWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writer.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl<W: SnapshotWriter> SnapshotWriter for TrackedWriter<W> {
    fn finish(self) -> Result<u64, StorageError> {
        lock(&self.finished).insert(self.position);
        self.writer.finish()
    }
}

/// Fails once the node stops.
pub(crate) struct WantedReader<R> {
    reader: R,
    lifecycle: Lifecycle,
}

impl<R: Read> Read for WantedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.lifecycle.is_stopping() {
            return Err(io::Error::other("the node stops"));
        }
        self.reader.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::storage::MemorySnapshotStore;
    use raftify_core::{ClusterId, Member, Members, NodeId};

    use super::*;

    fn finish(store: &TrackedSnapshots<MemorySnapshotStore>, index: u64) -> LogPosition {
        let position = LogPosition::new(1, index);
        let members = Members::initial([Member::voter(NodeId::FIRST, "127.0.0.1:1")]).unwrap();
        store
            .create(&SnapshotMeta { cluster_id: ClusterId(1), position, members })
            .unwrap()
            .finish()
            .unwrap();
        position
    }

    #[test]
    fn a_finished_snapshot_that_the_core_does_not_know_yet_is_not_deleted() {
        let store = TrackedSnapshots::new(MemorySnapshotStore::default(), Lifecycle::new());
        let [old, used, new] = [1, 2, 3].map(|index| finish(&store, index));
        store.retain(&[used]).unwrap();
        assert!(store.open(old).is_err() && store.open(used).is_ok() && store.open(new).is_ok());
    }

    #[test]
    fn an_outdated_list_does_not_delete_the_newest_snapshot() {
        let store = TrackedSnapshots::new(MemorySnapshotStore::default(), Lifecycle::new());
        let [old, new] = [1, 2].map(|index| finish(&store, index));
        store.retain(&[new]).unwrap();
        store.retain(&[old]).unwrap();
        assert!(store.open(new).is_ok());
    }
}
