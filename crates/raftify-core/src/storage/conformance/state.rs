//! All cases except those of the log: identity, hard state, members, metadata; and the order and atomicity of
//! writes.

use std::sync::Arc;

use super::opened::{
    Opened, TestDisk, entries, hard_state, identity, members, node, read_snapshot, snapshot_meta, succeeds,
    take_snapshot,
};
use crate::durable_state::{DurableState, PeerRecord};
use crate::members::Members;
use crate::remembered::Remembered;
use crate::storage::{StableStorage, StoredState, Write};
use crate::types::{ClusterId, Identity, Incarnation, LogIndex, LogPosition, RunId, Term};

pub(super) fn fresh_storage_is_empty<D: TestDisk>(disk: &D) {
    let opened = Opened::new(disk);
    assert_eq!(opened.loaded, StoredState::default());
    assert_eq!(opened.log(), []);
    assert_eq!(opened.reopen().loaded, StoredState::default(), "opening alone writes nothing that is loaded");
}

pub(super) fn identity_is_written_once<D: TestDisk>(disk: &D) {
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

pub(super) fn hard_state_survives<D: TestDisk>(disk: &D) {
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

pub(super) fn hard_state_never_goes_back<D: TestDisk>(disk: &D) {
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

pub(super) fn hard_state_must_fit_to_the_log<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 3, 0);
    let beyond = Write { hard_state: Some(hard_state(1, None, 4)), ..Write::default() };
    let opened = opened.refuses("a commit index beyond the log", beyond);
    opened.refuses(
        "an entry of a term that was never seen",
        Write { append: entries(2, [4]), ..Write::default() },
    );
}

pub(super) fn memory_of_starts_survives<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 1);
    for starts in [1, 2] {
        let told = DurableState { starts: 7, term: Term(3), vote: Some(node(2)), index: LogIndex(starts) };
        let peer = PeerRecord { incarnation: Incarnation(5), run: RunId(u64::MAX), told };
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

pub(super) fn members_survive<D: TestDisk>(disk: &D) {
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

pub(super) fn snapshot_metadata_survives<D: TestDisk>(disk: &D) {
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

pub(super) fn parts_of_a_write_are_carried_out_in_order<D: TestDisk>(disk: &D) {
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

pub(super) fn batch_is_carried_out_in_order<D: TestDisk>(disk: &D) {
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

pub(super) fn refused_batch_leaves_a_prefix_of_its_writes<D: TestDisk>(disk: &D) {
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

pub(super) fn empty_writes_change_nothing<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 1).reopen();
    succeeds("an empty batch", opened.storage.write(&[]));
    opened.write(Write::default());
    let before = opened.loaded.clone();
    assert_eq!(opened.reopen().loaded, before);
}
