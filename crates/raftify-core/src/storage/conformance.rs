//! One case for every sentence of the contracts of [`StableStorage`], [`LogReader`] and [`SnapshotStore`]. Whoever
//! implements them calls [`check`] in a test. A violation panics and says which promise was broken.

use std::fmt::Debug;
use std::io::{Read, Write as _};
use std::sync::Arc;

use bytes::Bytes;

use super::{
    HardState, LogReader, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError, StoredState, Write,
};
use crate::entry::{Entry, EntryKind};
use crate::members::{Member, Members};
use crate::standing::{PeerStanding, Remembered, Standing};
use crate::types::{ClusterId, Identity, Incarnation, LogIndex, LogPosition, NodeId, RunId, Term};

/// A place that can be opened again and again, as a directory is after each restart of its node.
pub trait TestDisk {
    /// What is put to the test.
    type Storage: StableStorage;

    /// Opens the storage on this disk. The one opened before has been dropped.
    ///
    /// # Errors
    /// As the implementation has them; any error fails the case.
    fn open(&self) -> Result<Self::Storage, StorageError>;
}

/// Runs all cases, each on a fresh disk.
///
/// # Panics
/// If a promise is broken.
pub fn check<D: TestDisk>(fresh_disk: impl Fn() -> D) {
    macro_rules! run {
        ($($case:ident)*) => { $(
            eprintln!("conformance: {}", stringify!($case));
            $case(&fresh_disk());
        )* };
    }
    run! {
        fresh_storage_is_empty
        identity_is_written_once
        entries_survive
        append_cuts_everything_from_its_first_index_on
        longer_tail_replaces_the_old_one
        gap_in_the_log_is_refused
        entry_before_the_log_is_refused
        term_that_goes_down_in_the_log_is_refused
        committed_entry_is_never_replaced
        hard_state_survives
        hard_state_never_goes_back
        hard_state_must_fit_to_the_log
        members_survive
        memory_of_starts_survives
        snapshot_metadata_survives
        reset_forgets_all_entries
        reset_forgets_what_comes_after_its_position
        reset_never_forgets_what_is_committed
        compaction_forgets_a_prefix
        compaction_of_everything_leaves_an_empty_log
        compaction_needs_a_snapshot_and_an_entry
        parts_of_a_write_are_carried_out_in_order
        term_starts_name_every_change_of_term
        batch_is_carried_out_in_order
        refused_batch_leaves_a_prefix_of_its_writes
        empty_writes_change_nothing
        reader_stops_at_the_bytes_it_may_give_but_gives_one_entry
        reader_gives_the_whole_range_or_an_error
        reader_sees_what_was_written_and_works_on_any_thread
        snapshot_is_invisible_before_it_is_finished
        dropped_snapshot_leaves_nothing_behind
        snapshot_carries_its_metadata_and_any_number_of_bytes
        finished_snapshot_replaces_the_one_before_as_a_whole
        retain_deletes_all_others_but_those_being_written
        what_was_received_survives_and_is_gone_on_with
        what_was_received_is_gone_on_with_only_by_the_same_snapshot
        what_was_received_is_deleted_when_it_is_discarded_or_outdated
    }
}

/// An opened and loaded storage, and the disk under it.
struct Opened<'a, D: TestDisk> {
    disk: &'a D,
    storage: D::Storage,
    loaded: StoredState,
}

impl<'a, D: TestDisk> Opened<'a, D> {
    fn new(disk: &'a D) -> Opened<'a, D> {
        let mut storage = succeeds("opening", disk.open());
        let loaded = succeeds("loading", storage.load());
        Opened { disk, storage, loaded }
    }

    /// With an identity and entries 1 to `last` of term 1, all of them committed up to `commit`.
    fn with_log(disk: &'a D, last: u64, commit: u64) -> Opened<'a, D> {
        let mut opened = Opened::new(disk);
        opened.write(Write {
            identity: Some(identity()),
            append: entries(1, 1..=last),
            hard_state: Some(hard_state(1, None, commit)),
            ..Write::default()
        });
        opened
    }

    fn write(&mut self, write: Write) {
        succeeds("writing", self.storage.write(&[write]));
    }

    /// Records a snapshot whose data is there, as the contract wants it.
    fn write_snapshot(&mut self, meta: &SnapshotMeta) {
        take_snapshot(&self.storage.snapshots(), meta, b"state");
        self.write(Write { snapshot: Some(meta.clone()), ..Write::default() });
    }

    /// Asserts that `write` is refused, and that nothing of it is there then.
    fn refuses(self, promise: &str, write: Write) -> Opened<'a, D> {
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

    fn reopen(self) -> Opened<'a, D> {
        let Opened { disk, storage, .. } = self;
        drop(storage);
        Opened::new(disk)
    }

    fn read(&self, from: u64, until: u64, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.storage.log_reader().read(LogIndex(from), LogIndex(until), bytes_max)
    }

    /// The whole log, as of the last load.
    fn log(&self) -> Vec<Entry> {
        let StoredState { truncated, last, .. } = &self.loaded;
        succeeds("reading the log", self.read(truncated.index.next().0, last.index.next().0, u64::MAX))
    }
}

#[track_caller]
fn succeeds<T>(what: &str, result: Result<T, StorageError>) -> T {
    result.unwrap_or_else(|error| panic!("{what} failed: {error}"))
}

fn identity() -> Identity {
    Identity { cluster_id: ClusterId(0xc1), node_id: NodeId::FIRST, incarnation: Incarnation(0x1c) }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("the cases use ids from 1")
}

fn members() -> Members {
    let member =
        Member { incarnation: Some(Incarnation(3)), ..Member::voter(node(1), "first.example:60061") };
    let members = [member, Member::voter(node(2), "[::1]:60062"), Member::learner(node(7), "10.0.0.7:1")];
    Members::initial(members).expect("three different members with good addresses")
}

fn hard_state(term: u64, vote: Option<u64>, commit: u64) -> HardState {
    HardState { term: Term(term), vote: vote.map(node), commit: LogIndex(commit) }
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = Bytes::from(format!("entry {index} of term {term}"));
    Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload }
}

fn entries(term: u64, indexes: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    indexes.into_iter().map(|index| entry(term, index)).collect()
}

fn snapshot_meta(term: u64, index: u64) -> SnapshotMeta {
    let position = LogPosition::new(term, index);
    SnapshotMeta { cluster_id: identity().cluster_id, position, members: members() }
}

fn take_snapshot<S: SnapshotStore>(snapshots: &S, meta: &SnapshotMeta, data: &[u8]) {
    let mut writer = succeeds("beginning a snapshot", snapshots.create(meta));
    writer.write_all(data).expect("writing a snapshot");
    let length = succeeds("finishing a snapshot", writer.finish());
    assert_eq!(length, data.len() as u64, "finish tells how many bytes of data the snapshot holds");
}

fn read_snapshot<S: SnapshotStore>(snapshots: &S, position: LogPosition) -> Vec<u8> {
    let (meta, digest, mut reader) = succeeds("opening a snapshot", snapshots.open(position));
    assert_eq!(meta.position, position, "the snapshot that was asked for");
    let mut data = Vec::new();
    reader.read_to_end(&mut data).expect("reading a snapshot");
    assert_eq!(digest.data_bytes, data.len() as u64, "open tells how many bytes of data the snapshot holds");
    data
}

#[track_caller]
fn no_snapshot<S: SnapshotStore>(snapshots: &S, position: LogPosition, promise: &str) {
    match snapshots.open(position) {
        Err(StorageError::NoSnapshot { position: found }) if found == position => {}
        Err(error) => panic!("{promise}: expected that there is no snapshot, got {error}"),
        Ok(_) => panic!("{promise}: there is a snapshot"),
    }
}

#[track_caller]
fn compacted<T: Debug>(result: Result<T, StorageError>, index: u64, truncated: LogPosition) {
    match result {
        Err(StorageError::Compacted { index: i, truncated: t }) if i == LogIndex(index) && t == truncated => {
        }
        other => panic!("reading entry {index} of a log that begins after {truncated} gave {other:?}"),
    }
}

fn fresh_storage_is_empty<D: TestDisk>(disk: &D) {
    let opened = Opened::new(disk);
    assert_eq!(opened.loaded, StoredState::default());
    assert_eq!(opened.log(), []);
    assert_eq!(opened.reopen().loaded, StoredState::default(), "opening alone writes nothing that is loaded");
}

fn identity_is_written_once<D: TestDisk>(disk: &D) {
    let mut opened = Opened::new(disk);
    opened.write(Write { identity: Some(identity()), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.identity, Some(identity()));
    opened.write(Write { identity: Some(identity()), ..Write::default() });
    let others = [
        Identity { cluster_id: ClusterId(0xc2), ..identity() },
        Identity { node_id: node(2), ..identity() },
        Identity { incarnation: Incarnation(0x1d), ..identity() },
    ];
    for other in others {
        opened = opened.refuses("another identity", Write { identity: Some(other), ..Write::default() });
    }
}

fn entries_survive<D: TestDisk>(disk: &D) {
    let kinds = [EntryKind::Empty, EntryKind::User, EntryKind::MembershipChange, EntryKind::MemberRecord];
    let payloads =
        [Bytes::new(), Bytes::from_static(&[0]), vec![0xa5; 70_000].into(), Bytes::from_static(b"x")];
    let log: Vec<Entry> = (1..)
        .zip(kinds.into_iter().zip(payloads))
        .map(|(index, (kind, payload))| Entry { position: LogPosition::new(2, index), kind, payload })
        .collect();
    let mut opened = Opened::new(disk);
    opened.write(Write { append: log.clone(), hard_state: Some(hard_state(2, None, 0)), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.truncated, LogPosition::ZERO);
    assert_eq!(opened.loaded.last, LogPosition::new(2, 4));
    assert_eq!(opened.log(), log);
}

fn append_cuts_everything_from_its_first_index_on<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 5, 0);
    opened.write(Write {
        append: entries(2, [3]),
        hard_state: Some(hard_state(2, None, 0)),
        ..Write::default()
    });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.last, LogPosition::new(2, 3), "a shorter new tail makes the log shorter");
    let log = [entry(1, 1), entry(1, 2), entry(2, 3)];
    assert_eq!(opened.log(), log);

    let same_term = Entry { payload: Bytes::from_static(b"another"), ..entry(1, 1) };
    opened.write(Write { append: vec![same_term.clone()], ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.last, LogPosition::new(1, 1), "the suffix is cut whatever its term");
    assert_eq!(opened.loaded.term_starts, [LogPosition::new(1, 1)]);
    assert_eq!(opened.log(), [same_term]);
}

fn longer_tail_replaces_the_old_one<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 4, 2);
    opened.write(Write {
        append: entries(3, 3..=9),
        hard_state: Some(hard_state(3, None, 2)),
        ..Write::default()
    });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.last, LogPosition::new(3, 9));
    assert_eq!(opened.log(), [entries(1, 1..=2), entries(3, 3..=9)].concat());
}

fn gap_in_the_log_is_refused<D: TestDisk>(disk: &D) {
    let empty =
        Opened::new(disk).refuses("a log starts at 1", Write { append: entries(1, [2]), ..Write::default() });
    drop(empty);
    let opened = Opened::with_log(disk, 3, 0);
    let opened = opened.refuses("a gap", Write { append: entries(1, [5]), ..Write::default() });
    opened.refuses("a gap within the new entries", Write { append: entries(1, [4, 6]), ..Write::default() });
}

fn entry_before_the_log_is_refused<D: TestDisk>(disk: &D) {
    let opened = Opened::new(disk)
        .refuses("there is no entry 0", Write { append: entries(0, [0]), ..Write::default() });
    drop(opened);
    let mut opened = Opened::with_log(disk, 4, 3);
    opened.write_snapshot(&snapshot_meta(1, 3));
    opened.write(Write { compact: Some(LogPosition::new(1, 3)), ..Write::default() });
    opened
        .refuses("an entry that was compacted away", Write { append: entries(1, 3..=5), ..Write::default() });
}

fn term_that_goes_down_in_the_log_is_refused<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 0);
    opened.write(Write {
        append: entries(3, [3]),
        hard_state: Some(hard_state(3, None, 0)),
        ..Write::default()
    });
    let opened = opened.refuses("a lower term", Write { append: entries(2, [4]), ..Write::default() });
    let down = vec![entry(3, 4), entry(2, 5)];
    opened.refuses("a lower term within the new entries", Write { append: down, ..Write::default() });
}

fn committed_entry_is_never_replaced<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 4, 3);
    let cut =
        Write { append: entries(2, [3, 4]), hard_state: Some(hard_state(2, None, 3)), ..Write::default() };
    opened.refuses("cutting a committed entry", cut);
}

fn hard_state_survives<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 3, 0);
    for state in [hard_state(1, Some(2), 0), hard_state(4, None, 1), hard_state(4, Some(u64::MAX), 1)] {
        opened.write(Write { hard_state: Some(state), ..Write::default() });
        opened = opened.reopen();
        assert_eq!(opened.loaded.hard_state, state);
    }
    let moved = hard_state(4, Some(u64::MAX), 3);
    opened.write(Write { hard_state: Some(moved), ..Write::default() });
    assert_eq!(opened.reopen().loaded.hard_state, moved, "the commit index survives");
}

fn hard_state_never_goes_back<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 3, 0);
    opened.write(Write { hard_state: Some(hard_state(5, Some(2), 2)), ..Write::default() });
    let backwards = [
        ("a lower term", hard_state(4, Some(2), 2)),
        ("another vote in the same term", hard_state(5, Some(3), 2)),
        ("a forgotten vote in the same term", hard_state(5, None, 2)),
        ("a lower commit index", hard_state(5, Some(2), 1)),
    ];
    for (promise, state) in backwards {
        opened = opened.refuses(promise, Write { hard_state: Some(state), ..Write::default() });
    }
}

fn hard_state_must_fit_to_the_log<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 3, 0);
    let beyond = Write { hard_state: Some(hard_state(1, None, 4)), ..Write::default() };
    let opened = opened.refuses("a commit index beyond the log", beyond);
    opened.refuses(
        "an entry of a term that was never seen",
        Write { append: entries(2, [4]), ..Write::default() },
    );
}

fn memory_of_starts_survives<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 1);
    for starts in [1, 2] {
        let told = Standing { starts: 7, term: Term(3), vote: Some(node(2)), index: LogIndex(starts) };
        let peer = PeerStanding { incarnation: Incarnation(5), run: RunId(u64::MAX), told };
        let remembered = Arc::new(Remembered { starts, peers: [(node(2), peer)].into() });
        let write = Write { remembered: Some(Arc::clone(&remembered)), ..Write::default() };
        opened.write(write);
        opened = opened.reopen();
        assert_eq!(opened.loaded.remembered, remembered);
        opened.write(Write { append: entries(1, [2 + starts]), ..Write::default() });
        opened = opened.reopen();
        assert_eq!(opened.loaded.remembered, remembered, "other writes leave it");
    }
}

fn members_survive<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 1, 1);
    for stored in [Members::none(), members()] {
        opened.write(Write { members: Some(stored.clone()), ..Write::default() });
        opened = opened.reopen();
        assert_eq!(
            opened.loaded.members,
            Some(stored),
            "members keep addresses, incarnations and their index"
        );
    }
}

fn snapshot_metadata_survives<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 9, 9);
    for index in [4, 9] {
        opened.write_snapshot(&snapshot_meta(1, index));
        opened = opened.reopen();
        assert_eq!(opened.loaded.snapshot, Some(snapshot_meta(1, index)));
        assert_eq!(read_snapshot(&opened.storage.snapshots(), LogPosition::new(1, index)), b"state");
    }
    assert_eq!(opened.loaded.last, LogPosition::new(1, 9), "a snapshot alone forgets no entry");
    assert_eq!(opened.loaded.truncated, LogPosition::ZERO);
}

fn reset_forgets_all_entries<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 5, 2);
    let meta = snapshot_meta(6, 40);
    take_snapshot(&opened.storage.snapshots(), &meta, b"received");
    opened.write(Write {
        reset_log: Some(meta.position),
        hard_state: Some(hard_state(6, None, 40)),
        members: Some(meta.members.clone()),
        snapshot: Some(meta.clone()),
        ..Write::default()
    });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.truncated, meta.position);
    assert_eq!(opened.loaded.last, meta.position);
    assert_eq!(opened.loaded.term_starts, []);
    compacted(opened.read(5, 6, 1), 5, meta.position);
    compacted(opened.read(40, 41, 1), 40, meta.position);
    opened.write(Write { append: entries(6, [41]), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.log(), entries(6, [41]), "the log goes on after the position");
    assert_eq!(opened.loaded.term_starts, [], "entry 41 has the term of the truncated position");
}

fn reset_forgets_what_comes_after_its_position<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 9, 2);
    let meta = snapshot_meta(6, 4);
    take_snapshot(&opened.storage.snapshots(), &meta, b"received");
    opened.write(Write {
        reset_log: Some(meta.position),
        hard_state: Some(hard_state(6, None, 4)),
        members: Some(meta.members.clone()),
        snapshot: Some(meta.clone()),
        ..Write::default()
    });
    let mut opened = opened.reopen();
    assert_eq!((opened.loaded.truncated, opened.loaded.last), (meta.position, meta.position));
    opened.write(Write { append: entries(6, [5]), ..Write::default() });
    assert_eq!(opened.reopen().log(), entries(6, [5]), "nothing of the old log is left after it");
}

fn reset_never_forgets_what_is_committed<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 5, 4);
    let reset =
        Write { reset_log: Some(LogPosition::new(1, 3)), append: entries(1, 4..=5), ..Write::default() };
    opened.refuses("a log that begins again before its commit index", reset);
}

fn compaction_forgets_a_prefix<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 8, 6);
    opened.write_snapshot(&snapshot_meta(1, 6));
    let position = LogPosition::new(1, 4);
    opened.write(Write { compact: Some(position), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!((opened.loaded.truncated, opened.loaded.last), (position, LogPosition::new(1, 8)));
    assert_eq!(opened.log(), entries(1, 5..=8));
    compacted(opened.read(4, 9, u64::MAX), 4, position);
    opened.write(Write { compact: Some(LogPosition::new(1, 2)), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.truncated, position, "compaction up to an earlier place changes nothing");
    assert_eq!(opened.log(), entries(1, 5..=8));
}

fn compaction_of_everything_leaves_an_empty_log<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 3, 3);
    opened.write_snapshot(&snapshot_meta(1, 3));
    let last = LogPosition::new(1, 3);
    opened.write(Write { compact: Some(last), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!((opened.loaded.truncated, opened.loaded.last), (last, last));
    assert_eq!(opened.log(), []);
    opened.write(Write { append: entries(1, [4]), ..Write::default() });
    assert_eq!(opened.reopen().log(), entries(1, [4]));
}

fn compaction_needs_a_snapshot_and_an_entry<D: TestDisk>(disk: &D) {
    let compact = |term, index| Write { compact: Some(LogPosition::new(term, index)), ..Write::default() };
    let mut opened = Opened::with_log(disk, 6, 6).refuses("compaction without a snapshot", compact(1, 1));
    opened.write_snapshot(&snapshot_meta(1, 4));
    let opened = opened.refuses("compaction beyond the snapshot", compact(1, 5));
    let opened = opened.refuses("compaction beyond the log", compact(1, 7));
    opened.refuses("compaction at another term than the entry's", compact(2, 3));
}

fn parts_of_a_write_are_carried_out_in_order<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 3, 0);
    let meta = snapshot_meta(4, 15);
    take_snapshot(&opened.storage.snapshots(), &meta, b"state");
    let remembered = Arc::new(Remembered { starts: 3, ..Remembered::default() });
    opened.write(Write {
        identity: Some(identity()),
        reset_log: Some(LogPosition::new(3, 10)),
        append: entries(4, 11..=20),
        hard_state: Some(hard_state(5, Some(1), 16)),
        members: Some(members()),
        remembered: Some(Arc::clone(&remembered)),
        snapshot: Some(meta.clone()),
        compact: Some(LogPosition::new(4, 12)),
    });
    let opened = opened.reopen();
    let expected = StoredState {
        identity: Some(identity()),
        hard_state: hard_state(5, Some(1), 16),
        members: Some(members()),
        remembered,
        snapshot: Some(meta),
        truncated: LogPosition::new(4, 12),
        last: LogPosition::new(4, 20),
        term_starts: vec![],
    };
    assert_eq!(opened.loaded, expected);
    assert_eq!(opened.log(), entries(4, 13..=20));
}

fn term_starts_name_every_change_of_term<D: TestDisk>(disk: &D) {
    let log = [entries(1, 1..=2), entries(3, 3..=3), entries(4, 4..=7), entries(9, 8..=8)].concat();
    let mut opened = Opened::new(disk);
    opened.write(Write { append: log, hard_state: Some(hard_state(9, None, 6)), ..Write::default() });
    let starts = [(1, 1), (3, 3), (4, 4), (9, 8)].map(|(term, index)| LogPosition::new(term, index));
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.term_starts, starts);
    opened.write_snapshot(&snapshot_meta(4, 6));
    opened.write(Write { compact: Some(LogPosition::new(3, 3)), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!(
        opened.loaded.term_starts,
        starts[2..],
        "the term after the truncated position differs from its own"
    );
    opened.write(Write { compact: Some(LogPosition::new(4, 5)), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.term_starts, starts[3..]);
    opened.write(Write { append: entries(9, [7]), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.term_starts, [LogPosition::new(9, 7)], "a cut suffix takes its terms with it");
}

fn batch_is_carried_out_in_order<D: TestDisk>(disk: &D) {
    let mut opened = Opened::new(disk);
    let batch = [
        Write { identity: Some(identity()), ..Write::default() },
        Write { append: entries(1, 1..=5), hard_state: Some(hard_state(1, Some(1), 0)), ..Write::default() },
        Write { append: entries(2, 4..=4), hard_state: Some(hard_state(2, None, 3)), ..Write::default() },
        Write { hard_state: Some(hard_state(2, None, 4)), ..Write::default() },
    ];
    succeeds("writing a batch", opened.storage.write(&batch));
    let opened = opened.reopen();
    assert_eq!(opened.loaded.identity, Some(identity()));
    assert_eq!(opened.loaded.hard_state, hard_state(2, None, 4));
    assert_eq!(opened.log(), [entries(1, 1..=3), entries(2, [4])].concat());
}

fn refused_batch_leaves_a_prefix_of_its_writes<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 0).reopen();
    let before = opened.loaded.clone();
    let good = Write { append: entries(1, [3]), ..Write::default() };
    let half_bad =
        Write { append: entries(1, [4]), hard_state: Some(hard_state(0, None, 0)), ..Write::default() };
    assert!(
        opened.storage.write(&[good, half_bad]).is_err(),
        "a write that contradicts what is stored is refused"
    );
    let after = opened.reopen();
    let with_first = StoredState { last: LogPosition::new(1, 3), ..before.clone() };
    let loaded = after.loaded.clone();
    assert!(
        loaded == before || loaded == with_first,
        "neither none nor all of the first write is there: {loaded:?}"
    );
    assert_eq!(after.log(), entries(1, 1..=loaded.last.index.0));
}

fn empty_writes_change_nothing<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 1).reopen();
    succeeds("an empty batch", opened.storage.write(&[]));
    opened.write(Write::default());
    let before = opened.loaded.clone();
    assert_eq!(opened.reopen().loaded, before);
}

fn reader_stops_at_the_bytes_it_may_give_but_gives_one_entry<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 9, 0);
    let size = entry(1, 1).size_bytes();
    for (bytes_max, count) in [(0, 1), (1, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (9 * size, 6)] {
        let read = succeeds("reading", opened.read(2, 8, bytes_max));
        assert_eq!(read, entries(1, 2..2 + count), "with {bytes_max} bytes for entries of {size}");
    }
}

fn reader_gives_the_whole_range_or_an_error<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 5, 0);
    assert_eq!(
        succeeds("reading", opened.read(2, 5, u64::MAX)),
        entries(1, 2..=4),
        "the end is not included"
    );
    assert_eq!(succeeds("reading nothing", opened.read(3, 3, u64::MAX)), []);
    assert_eq!(succeeds("reading backwards", opened.read(5, 2, u64::MAX)), []);
    assert_eq!(succeeds("reading after the end", opened.read(6, 6, u64::MAX)), []);
    compacted(opened.read(0, 3, u64::MAX), 0, LogPosition::ZERO);
    opened.write(Write { append: entries(1, [4]), ..Write::default() });
    for (from, until, bytes_max) in [(5, 6, 1), (2, 6, u64::MAX), (1, 6, 0), (9, 11, 1)] {
        match opened.read(from, until, bytes_max) {
            Err(StorageError::BeyondEnd { index, last }) => {
                assert_eq!((index, last), (LogIndex(from.max(5)), LogPosition::new(1, 4)));
            }
            other => panic!("reading {from} to {until} of a log that ends at 4 gave {other:?}"),
        }
    }
}

fn reader_sees_what_was_written_and_works_on_any_thread<D: TestDisk>(disk: &D) {
    let mut opened = Opened::new(disk);
    let reader = opened.storage.log_reader();
    for index in 1..=20 {
        let write = Write {
            append: entries(1, [index]),
            hard_state: Some(hard_state(1, None, 0)),
            ..Write::default()
        };
        opened.write(write);
        let reader = reader.clone();
        let read = std::thread::scope(|scope| {
            let read = scope.spawn(move || reader.read(LogIndex(1), LogIndex(index + 1), u64::MAX));
            read.join().expect("a reader must not panic")
        });
        assert_eq!(succeeds("reading", read), entries(1, 1..=index), "a write is visible when it returns");
    }
}

fn snapshot_is_invisible_before_it_is_finished<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    no_snapshot(&snapshots, meta.position, "nothing was written yet");
    let mut writer = succeeds("beginning a snapshot", snapshots.create(&meta));
    no_snapshot(&snapshots, meta.position, "a snapshot that was begun");
    writer.write_all(&[1; 200_000]).expect("writing a snapshot");
    writer.flush().expect("flushing a snapshot");
    no_snapshot(&snapshots, meta.position, "a snapshot that is half written");
    succeeds("finishing a snapshot", writer.finish());
    assert_eq!(read_snapshot(&snapshots, meta.position), [1; 200_000]);
    drop(snapshots);
    let snapshots = Opened::new(disk).storage.snapshots();
    assert_eq!(read_snapshot(&snapshots, meta.position), [1; 200_000], "a finished snapshot survives");
    no_snapshot(&snapshots, LogPosition::new(3, 7), "another term is another position");
}

fn dropped_snapshot_leaves_nothing_behind<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    let mut writer = succeeds("beginning a snapshot", snapshots.create(&meta));
    writer.write_all(&[1; 200_000]).expect("writing a snapshot");
    drop(writer);
    no_snapshot(&snapshots, meta.position, "a snapshot that was dropped");
    drop(snapshots);
    no_snapshot(
        &Opened::new(disk).storage.snapshots(),
        meta.position,
        "a snapshot that was dropped, reopened",
    );
}

fn snapshot_carries_its_metadata_and_any_number_of_bytes<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    for (index, length) in (1..).zip([0_usize, 1, 65_535, 65_536, 65_537, 131_072, 1_000_003]) {
        let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let meta = snapshot_meta(3, index);
        take_snapshot(&snapshots, &meta, &data);
        let (found, digest, _) = succeeds("opening a snapshot", snapshots.open(meta.position));
        assert_eq!(found, meta, "cluster id, position and members are the snapshot's own");
        assert_eq!(digest, SnapshotDigest::default().followed_by(&data), "the digest is that of the data");
        assert!(read_snapshot(&snapshots, meta.position) == data, "{length} bytes come back as they were");
    }
}

fn finished_snapshot_replaces_the_one_before_as_a_whole<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    take_snapshot(&snapshots, &meta, b"a longer first one");
    let mut one = succeeds("beginning a snapshot", snapshots.create(&meta));
    let mut other = succeeds("beginning a second one at the same place", snapshots.create(&meta));
    one.write_all(b"one").expect("writing a snapshot");
    other.write_all(b"other").expect("writing a snapshot");
    assert_eq!(read_snapshot(&snapshots, meta.position), b"a longer first one");
    succeeds("finishing a snapshot", one.finish());
    assert_eq!(read_snapshot(&snapshots, meta.position), b"one");
    succeeds("finishing a snapshot", other.finish());
    assert_eq!(read_snapshot(&snapshots, meta.position), b"other");
}

fn retain_deletes_all_others_but_those_being_written<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    for index in 1..=4 {
        take_snapshot(&snapshots, &snapshot_meta(1, index), b"state");
    }
    let being_written = snapshot_meta(1, 5);
    let mut writer = succeeds("beginning a snapshot", snapshots.create(&being_written));
    writer.write_all(b"being ").expect("writing a snapshot");
    let keep = [LogPosition::new(1, 2), LogPosition::new(1, 4), LogPosition::new(8, 8)];
    succeeds("retaining", snapshots.retain(&keep));
    for index in [1, 3] {
        no_snapshot(&snapshots, LogPosition::new(1, index), "retain deletes what it is not told to keep");
    }
    for index in [2, 4] {
        assert_eq!(read_snapshot(&snapshots, LogPosition::new(1, index)), b"state");
    }
    writer.write_all(b"written").expect("writing a snapshot");
    succeeds("finishing a snapshot", writer.finish());
    assert_eq!(read_snapshot(&snapshots, being_written.position), b"being written");
    succeeds("retaining nothing", snapshots.retain(&[]));
    no_snapshot(&snapshots, being_written.position, "retain deletes what it is not told to keep");
}

/// Begins to receive `data`, or goes on; how many bytes are there.
fn receive<S: SnapshotStore>(snapshots: &S, meta: &SnapshotMeta, data: &[u8]) -> (S::Writer, usize) {
    let announced = SnapshotDigest::default().followed_by(data);
    let (writer, received) = succeeds("receiving", snapshots.receive(meta, announced, &|| true));
    let length = received.data_bytes as usize;
    assert_eq!(
        received,
        SnapshotDigest::default().followed_by(&data[..length]),
        "what is there of a snapshot is a beginning of it"
    );
    (writer, length)
}

/// Receives a part of `data` in addition, and breaks off.
fn receive_part<S: SnapshotStore>(snapshots: &S, meta: &SnapshotMeta, data: &[u8], until: usize) -> usize {
    let (mut writer, begin_at) = receive(snapshots, meta, data);
    writer.write_all(&data[begin_at..until]).expect("receiving a snapshot");
    begin_at
}

fn numbered_data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at) as u8).collect()
}

fn what_was_received_survives_and_is_gone_on_with<D: TestDisk>(disk: &D) {
    let meta = snapshot_meta(2, 7);
    let data = numbered_data(400_000);
    let mut there = 0;
    for until in [0, 1, 65_536, 65_537, 200_000, 400_000] {
        let snapshots = Opened::new(disk).storage.snapshots();
        assert_eq!(receive_part(&snapshots, &meta, &data, until), there, "what was received stays");
        no_snapshot(&snapshots, meta.position, "a snapshot that is not received in full");
        drop(snapshots);
        let snapshots = Opened::new(disk).storage.snapshots();
        no_snapshot(&snapshots, meta.position, "a snapshot that is not received in full, reopened");
        let (_, left) = receive(&snapshots, &meta, &data);
        assert_eq!(left, until, "a writer that is dropped keeps all that it took in");
        there = left;
    }
    let snapshots = Opened::new(disk).storage.snapshots();
    let (writer, _) = receive(&snapshots, &meta, &data);
    assert_eq!(succeeds("finishing a snapshot", writer.finish()), data.len() as u64);
    assert!(read_snapshot(&snapshots, meta.position) == data, "the parts make up the whole");
    assert_eq!(receive(&snapshots, &meta, &data).1, 0, "nothing is left of one that was finished");
}

fn what_was_received_is_gone_on_with_only_by_the_same_snapshot<D: TestDisk>(disk: &D) {
    let meta = snapshot_meta(2, 7);
    let data = numbered_data(200_000);
    let mut other_data = data.clone();
    other_data[0] ^= 1;
    let other_members = SnapshotMeta { members: Members::none(), ..meta.clone() };
    let other_cluster = SnapshotMeta { cluster_id: ClusterId(99), ..meta.clone() };
    let others = [
        (&snapshot_meta(2, 8), &data[..]),
        (&snapshot_meta(3, 7), &data[..]),
        (&other_members, &data[..]),
        (&other_cluster, &data[..]),
        (&meta, &other_data[..]),
        (&meta, &data[..199_999]),
    ];
    for (other, other_data) in others {
        let snapshots = Opened::new(disk).storage.snapshots();
        assert_eq!(receive_part(&snapshots, &meta, &data, 150_000), 0);
        assert_eq!(receive_part(&snapshots, other, other_data, 100), 0, "{other:?} is another snapshot");
        assert_eq!(receive_part(&snapshots, &meta, &data, 100), 0, "one unfinished snapshot is kept at most");
        receive(&snapshots, &meta, &data).0.discard();
    }
}

fn what_was_received_is_deleted_when_it_is_discarded_or_outdated<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    let data = numbered_data(100_000);
    receive_part(&snapshots, &meta, &data, 70_000);
    let (writer, begin_at) = receive(&snapshots, &meta, &data);
    assert_eq!(begin_at, 70_000);
    writer.discard();
    assert_eq!(receive_part(&snapshots, &meta, &data, 70_000), 0, "nothing is left of what was discarded");
    let at = |index| LogPosition::new(2, index);
    succeeds("retaining nothing", snapshots.retain(&[]));
    succeeds("retaining an older one", snapshots.retain(&[at(6)]));
    let (mut writer, begin_at) = receive(&snapshots, &meta, &data);
    assert_eq!(begin_at, 70_000, "it is newer than all that is to be kept");
    succeeds("retaining a newer one", snapshots.retain(&[at(6), at(8)]));
    writer.write_all(&data[begin_at..80_000]).expect("receiving a snapshot");
    drop(writer);
    assert_eq!(receive(&snapshots, &meta, &data).1, 80_000, "it was being received");
    succeeds("retaining a newer one", snapshots.retain(&[at(6), at(8)]));
    assert_eq!(receive(&snapshots, &meta, &data).1, 0, "it is older than one that is to be kept");
}
