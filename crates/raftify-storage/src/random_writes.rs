//! Random writes to a storage, and their elements: for the tests of both storages.

use bytes::Bytes;
use proptest::prelude::*;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, LogIndex, LogPosition, Member, Members, NodeId, SnapshotMeta,
    Term,
};

/// A change that a test derives from the present state.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append { back: u64, count: u64, term: u64 },
    HardState { term: u64, vote: u64, commit: u64 },
    Members,
    Snapshot { back: u64 },
    Compact { back: u64 },
    Reset { forward: u64, term: u64 },
    Reopen,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u64, 1..6_u64, 0..2_u64).prop_map(|(back, count, term)| Step::Append { back, count, term }),
        4 => (0..2_u64, 0..3_u64, 0..5_u64).prop_map(|(term, vote, commit)| Step::HardState { term, vote, commit }),
        1 => Just(Step::Members),
        2 => (0..3_u64).prop_map(|back| Step::Snapshot { back }),
        2 => (0..3_u64).prop_map(|back| Step::Compact { back }),
        1 => (0..9_u64, 0..2_u64).prop_map(|(forward, term)| Step::Reset { forward, term }),
        2 => Just(Step::Reopen),
    ]
}

pub(crate) fn write_of(step: &Step, state: &StoredState) -> Write {
    let position_at = |index: u64| {
        let index = LogIndex(index);
        LogPosition { term: state.term_at(index).unwrap_or(state.last.term), index }
    };
    let mut write = Write::default();
    let HardState { term: now, commit, .. } = state.hard_state;
    match *step {
        Step::Append { back, count, term } => {
            let first = (state.last.index.0 + 1).saturating_sub(back).max(1);
            write.append = entries(now.0 + term, first..first + count);
            write.hard_state = Some(HardState { term: Term(now.0 + term), ..state.hard_state });
        }
        Step::HardState { term, vote, commit: forward } => {
            let (term, commit) = (Term(now.0 + term), LogIndex(commit.0 + forward));
            write.hard_state = Some(HardState { term, vote: NodeId::new(vote), commit });
        }
        Step::Members => write.members = Some(members()),
        Step::Snapshot { back } => {
            let position = position_at(commit.0.saturating_sub(back));
            write.snapshot = Some(SnapshotMeta { position, ..snapshot_meta(0, 0) });
        }
        Step::Compact { back } => {
            let snapshot = state.snapshot.as_ref().map_or(0, |snapshot| snapshot.position.index.0);
            write.compact = Some(position_at(snapshot.saturating_sub(back)));
        }
        Step::Reset { forward, term } => {
            let position = LogPosition::new(now.0 + term, commit.0 + forward);
            write.reset_log = Some(position);
            write.snapshot = Some(SnapshotMeta { position, ..snapshot_meta(0, 0) });
            write.hard_state =
                Some(HardState { term: position.term, commit: position.index, ..state.hard_state });
        }
        Step::Reopen => {}
    }
    write
}

pub(crate) fn entries(term: u64, indexes: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    let entry = |index| {
        let payload = Bytes::from(format!("entry {index} of term {term}"));
        Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload }
    };
    indexes.into_iter().map(entry).collect()
}

pub(crate) fn members() -> Members {
    Members::initial([Member::voter(NodeId::FIRST, "node.example:60061")]).unwrap()
}

pub(crate) fn snapshot_meta(term: u64, index: u64) -> SnapshotMeta {
    SnapshotMeta { cluster_id: ClusterId(7), position: LogPosition::new(term, index), members: members() }
}
