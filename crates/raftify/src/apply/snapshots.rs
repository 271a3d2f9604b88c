//! Protects snapshots from deletion between the moment they are finished and the moment the core knows of
//! them.
//!
//! The core lists the snapshots in use; the list lacks a snapshot that was just received or taken, until the
//! raft loop learns of it. [`TrackedSnapshots`] wraps the storage's own store and remembers finished
//! snapshots. It also remembers the newest of the core's lists, since they are processed on threads that may
//! overtake each other. A snapshot that is pinned, because it is copied elsewhere, is not deleted either. It
//! also makes reads fail once the node stops, so that the restore of a large snapshot does not delay shutdown.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StorageError};

use crate::channels::lifecycle::Lifecycle;

/// A [`SnapshotStore`] whose [`retain`](SnapshotStore::retain) keeps the listed snapshots and all newer ones.
#[derive(Clone)]
pub(crate) struct TrackedSnapshots<S> {
    store: S,
    /// Locked while snapshots are deleted, so that no snapshot is finished between the decision and the
    /// deletion.
    known: Arc<Mutex<Known>>,
    /// The number of lists so far.
    lists: Arc<AtomicU64>,
    lifecycle: Lifecycle,
}

#[derive(Default)]
struct Known {
    /// Finished in this process, and not older than the newest snapshot known to be in use.
    finished: BTreeSet<LogPosition>,
    /// The number of the newest processed list.
    list: u64,
    /// The newest processed list.
    keep: Vec<LogPosition>,
    /// How often each snapshot is pinned.
    pinned: BTreeMap<LogPosition, usize>,
}

impl Known {
    /// The snapshots that must not be deleted.
    fn kept(&self) -> Vec<LogPosition> {
        self.finished.iter().chain(&self.keep).chain(self.pinned.keys()).copied().collect()
    }
}

impl<S> TrackedSnapshots<S> {
    pub(crate) fn new(store: S, lifecycle: Lifecycle) -> TrackedSnapshots<S> {
        TrackedSnapshots { store, known: Arc::default(), lists: Arc::default(), lifecycle }
    }
}

impl<S: SnapshotStore> TrackedSnapshots<S> {
    /// The snapshots in use now. Numbered here, in the raft loop; never blocks.
    pub(crate) fn in_use(&self, keep: Vec<LogPosition>) -> InUse<S> {
        let number = self.lists.fetch_add(1, Ordering::Relaxed) + 1;
        InUse { store: self.store.clone(), known: Arc::clone(&self.known), number, keep }
    }

    /// Opens a snapshot that is not deleted until the pin is dropped. Waits for the disk.
    pub(crate) fn open_pinned(&self, position: LogPosition) -> Result<Pinned<S>, StorageError> {
        *self.known.lock().pinned.entry(position).or_default() += 1;
        let pin = Pin { snapshots: self.clone(), position };
        let (meta, digest, reader) = self.open(position)?;
        Ok(Pinned { meta, digest, reader, pin })
    }
}

/// A snapshot to be copied.
pub(crate) struct Pinned<S: SnapshotStore> {
    pub(crate) meta: SnapshotMeta,
    pub(crate) digest: SnapshotDigest,
    pub(crate) reader: WantedReader<S::Reader>,
    pub(crate) pin: Pin<S>,
}

/// Keeps a snapshot from being deleted. Dropping it deletes the snapshot, if it is no longer in use: drop it
/// on a thread that may wait for the disk.
pub(crate) struct Pin<S: SnapshotStore> {
    snapshots: TrackedSnapshots<S>,
    position: LogPosition,
}

impl<S: SnapshotStore> Drop for Pin<S> {
    fn drop(&mut self) {
        let mut known = self.snapshots.known.lock();
        if let Some(count) = known.pinned.get_mut(&self.position) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        known.pinned.remove(&self.position);
        let kept = known.kept();
        if known.list > 0 && !kept.contains(&self.position) && !self.snapshots.lifecycle.is_stopping() {
            // If it fails, the next list deletes it.
            let _ = self.snapshots.store.retain(&kept);
        }
    }
}

/// The snapshots in use at some time.
pub(crate) struct InUse<S> {
    store: S,
    known: Arc<Mutex<Known>>,
    number: u64,
    keep: Vec<LogPosition>,
}

impl<S: SnapshotStore> InUse<S> {
    /// Deletes all other snapshots except newer ones; has no effect once a newer list was processed.
    pub(crate) fn delete_others(self) -> Result<(), StorageError> {
        let mut known = self.known.lock();
        if self.number < known.list {
            return Ok(());
        }
        known.list = self.number;
        if let Some(newest) = self.keep.iter().max_by_key(|position| position.index).copied() {
            known.finished.retain(|position| position.index >= newest.index);
        }
        known.keep = self.keep;
        self.store.retain(&known.kept())
    }
}

impl<S: SnapshotStore> SnapshotStore for TrackedSnapshots<S> {
    type Writer = TrackedWriter<S::Writer>;
    type Reader = WantedReader<S::Reader>;

    fn create(&self, meta: &SnapshotMeta) -> Result<Self::Writer, StorageError> {
        let writer = self.store.create(meta)?;
        Ok(TrackedWriter { writer, position: meta.position, known: Arc::clone(&self.known) })
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Self::Writer, SnapshotDigest), StorageError> {
        let is_wanted = || is_wanted() && !self.lifecycle.is_stopping();
        let (writer, received) = self.store.receive(meta, announced, &is_wanted)?;
        Ok((TrackedWriter { writer, position: meta.position, known: Arc::clone(&self.known) }, received))
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, Self::Reader), StorageError> {
        let (meta, digest, reader) = self.store.open(position)?;
        Ok((meta, digest, WantedReader { reader, lifecycle: self.lifecycle.clone() }))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        self.in_use(keep.to_vec()).delete_others()
    }
}

pub(crate) struct TrackedWriter<W> {
    writer: W,
    position: LogPosition,
    known: Arc<Mutex<Known>>,
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
        self.known.lock().finished.insert(self.position);
        self.writer.finish()
    }

    fn discard(self) {
        self.writer.discard();
    }
}

/// A reader that fails once the node stops.
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
    fn a_pinned_snapshot_is_deleted_when_its_last_pin_is_dropped() {
        let store = TrackedSnapshots::new(MemorySnapshotStore::default(), Lifecycle::new());
        let old = finish(&store, 1);
        let [first, second] = [(); 2].map(|()| store.open_pinned(old).unwrap());
        let new = finish(&store, 2);
        store.retain(&[new]).unwrap();
        assert!(store.open(old).is_ok());
        drop(first);
        assert!(store.open(old).is_ok(), "it is pinned once more");
        drop(second);
        assert!(store.open(old).is_err() && store.open(new).is_ok());
        assert!(store.open_pinned(old).is_err());
        drop(store.open_pinned(new).unwrap());
        assert!(store.open(new).is_ok(), "it is in use");
    }

    #[test]
    fn an_outdated_list_deletes_nothing_that_is_in_use_by_now() {
        let store = TrackedSnapshots::new(MemorySnapshotStore::default(), Lifecycle::new());
        let [old, sent, new] = [1, 2, 3].map(|index| finish(&store, index));
        let [first, second, third] = [vec![old], vec![sent], vec![new, sent]].map(|keep| store.in_use(keep));
        for list in [second, third, first] {
            list.delete_others().unwrap();
        }
        assert!(store.open(old).is_err() && store.open(sent).is_ok() && store.open(new).is_ok());
    }
}
