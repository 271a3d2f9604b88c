//! A storage that is opened repeatedly on one disk, and the values that the cases write to it.

use std::fmt::Debug;
use std::io::{Read, Write as _};

use bytes::Bytes;

use crate::entry::{Entry, EntryKind};
use crate::members::{Member, Members};
use crate::storage::{
    HardState, LogReader, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage, StorageError,
    StoredState, Write,
};
use crate::types::{ClusterId, Identity, Incarnation, LogIndex, LogPosition, NodeId, Term};

/// A disk that can be opened repeatedly, as a directory is after each restart of its node.
pub trait TestDisk {
    /// The storage under test.
    type Storage: StableStorage;

    /// Opens the storage on this disk. The one opened before has been dropped.
    ///
    /// # Errors
    /// The errors of the implementation; any error fails the case.
    fn open(&self) -> Result<Self::Storage, StorageError>;
}

/// An opened and loaded storage, and the disk under it.
pub(super) struct Opened<'a, D: TestDisk> {
    pub(super) disk: &'a D,
    pub(super) storage: D::Storage,
    pub(super) loaded: StoredState,
}

impl<'a, D: TestDisk> Opened<'a, D> {
    pub(super) fn new(disk: &'a D) -> Opened<'a, D> {
        let mut storage = succeeds("opening", disk.open());
        let loaded = succeeds("loading", storage.load());
        Opened { disk, storage, loaded }
    }

    /// With an identity and entries 1 to `last` of term 1, all of them committed up to `commit`.
    pub(super) fn with_log(disk: &'a D, last: u64, commit: u64) -> Opened<'a, D> {
        let mut opened = Opened::new(disk);
        opened.write(Write {
            identity: Some(identity()),
            append: entries(1, 1..=last),
            hard_state: Some(hard_state(1, None, commit)),
            ..Write::default()
        });
        opened
    }

    pub(super) fn write(&mut self, write: Write) {
        succeeds("writing", self.storage.write(&[write]));
    }

    /// Records a snapshot whose data is stored, as the contract requires.
    pub(super) fn write_snapshot(&mut self, meta: &SnapshotMeta) {
        take_snapshot(&self.storage.snapshots(), meta, b"state");
        self.write(Write { snapshot: Some(meta.clone()), ..Write::default() });
    }

    /// Asserts that `write` is refused, and that no part of it is stored then.
    pub(super) fn refuses(self, promise: &str, write: Write) -> Opened<'a, D> {
        let mut before = self.reopen();
        match before.storage.write(&[write]) {
            Err(StorageError::Refused { .. }) => {}
            other => panic!("{promise}: expected a refusal, got {other:?}"),
        }
        let log = before.log();
        let state = before.loaded.clone();
        let after = before.reopen();
        assert_eq!(after.loaded, state, "{promise}: the refused write changed the state");
        assert_eq!(after.log(), log, "{promise}: the refused write changed the log");
        after
    }

    pub(super) fn reopen(self) -> Opened<'a, D> {
        let Opened { disk, storage, .. } = self;
        drop(storage);
        Opened::new(disk)
    }

    pub(super) fn read(&self, from: u64, until: u64, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.storage.log_reader().read(LogIndex(from), LogIndex(until), bytes_max)
    }

    /// The whole log, as of the last load.
    pub(super) fn log(&self) -> Vec<Entry> {
        let StoredState { truncated, last, .. } = &self.loaded;
        succeeds("reading the log", self.read(truncated.index.next().0, last.index.next().0, u64::MAX))
    }
}

#[track_caller]
pub(super) fn succeeds<T>(what: &str, result: Result<T, StorageError>) -> T {
    result.unwrap_or_else(|error| panic!("{what} failed: {error}"))
}

pub(super) fn identity() -> Identity {
    Identity { cluster_id: ClusterId(0xc1), node_id: NodeId::FIRST, incarnation: Incarnation(0x1c) }
}

pub(super) fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("the cases use ids from 1")
}

pub(super) fn members() -> Members {
    let member =
        Member { incarnation: Some(Incarnation(3)), ..Member::voter(node(1), "first.example:60061") };
    let members = [member, Member::voter(node(2), "[::1]:60062"), Member::learner(node(7), "10.0.0.7:1")];
    Members::initial(members).expect("three different members with good addresses")
}

pub(super) fn hard_state(term: u64, vote: Option<u64>, commit: u64) -> HardState {
    HardState { term: Term(term), vote: vote.map(node), commit: LogIndex(commit) }
}

pub(super) fn entry(term: u64, index: u64) -> Entry {
    let payload = Bytes::from(format!("entry {index} of term {term}"));
    Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload }
}

pub(super) fn entries(term: u64, indexes: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    indexes.into_iter().map(|index| entry(term, index)).collect()
}

pub(super) fn snapshot_meta(term: u64, index: u64) -> SnapshotMeta {
    let position = LogPosition::new(term, index);
    SnapshotMeta { cluster_id: identity().cluster_id, position, members: members() }
}

pub(super) fn take_snapshot<S: SnapshotStore>(snapshots: &S, meta: &SnapshotMeta, data: &[u8]) {
    let mut writer = succeeds("beginning a snapshot", snapshots.create(meta));
    writer.write_all(data).expect("writing a snapshot");
    let length = succeeds("finishing a snapshot", writer.finish());
    assert_eq!(length, data.len() as u64, "finish tells how many bytes of data the snapshot holds");
}

pub(super) fn read_snapshot<S: SnapshotStore>(snapshots: &S, position: LogPosition) -> Vec<u8> {
    let (meta, digest, mut reader) = succeeds("opening a snapshot", snapshots.open(position));
    assert_eq!(meta.position, position, "the snapshot that was asked for");
    let mut data = Vec::new();
    reader.read_to_end(&mut data).expect("reading a snapshot");
    assert_eq!(digest.data_bytes, data.len() as u64, "open tells how many bytes of data the snapshot holds");
    data
}

#[track_caller]
pub(super) fn no_snapshot<S: SnapshotStore>(snapshots: &S, position: LogPosition, promise: &str) {
    match snapshots.open(position) {
        Err(StorageError::NoSnapshot { position: found }) if found == position => {}
        Err(error) => panic!("{promise}: expected that there is no snapshot, got {error}"),
        Ok(_) => panic!("{promise}: there is a snapshot"),
    }
}

#[track_caller]
pub(super) fn compacted<T: Debug>(result: Result<T, StorageError>, index: u64, truncated: LogPosition) {
    match result {
        Err(StorageError::Compacted { index: i, truncated: t }) if i == LogIndex(index) && t == truncated => {
        }
        other => panic!("reading entry {index} of a log that begins after {truncated} gave {other:?}"),
    }
}
