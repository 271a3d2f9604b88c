//! Whether hard state, log, membership and snapshot fit together: what a node requires when it starts.

use std::path::Path;

use raftify_core::storage::StoredState;
use raftify_core::{LogPosition, Members};

use super::{Checked, ProblemKind};

pub(super) fn check(directory: &Path, state: &StoredState, checked: &mut Checked) {
    let StoredState { identity, hard_state, members, snapshot, truncated, last, .. } = state;
    let mut problem = |kind, reason: String| checked.problem(kind, directory.display(), reason);
    if hard_state.commit < truncated.index || hard_state.commit > last.index {
        let (commit, first) = (hard_state.commit, truncated.index);
        let reason = format!("the commit index is {commit}, but the log goes from {first} to {}", last.index);
        problem(ProblemKind::CommitOutsideLog, reason);
    }
    if hard_state.term < last.term {
        let reason = format!("the term is {}, but the last entry is {last}", hard_state.term);
        problem(ProblemKind::TermBehindLog, reason);
    }
    let is_used = *last != LogPosition::ZERO || members.as_ref().is_some_and(|members| !members.is_empty());
    if identity.is_none() && is_used {
        problem(ProblemKind::NoIdentity, "there is a log or a membership, but no identity".to_owned());
    }
    if let Some(as_of) = members.as_ref().map(Members::as_of)
        && as_of > last.index
    {
        let reason = format!("the membership is as of {as_of}, but the log ends at {last}");
        problem(ProblemKind::MembersBeyondLog, reason);
    }
    let Some(snapshot) = snapshot else { return };
    let position = snapshot.position;
    if position.index < truncated.index {
        let reason = format!("the log begins after {truncated}, but the snapshot ends at {position}");
        problem(ProblemKind::GapAfterSnapshot, reason);
    } else if state.term_at(position.index) != Some(position.term) {
        let reason =
            format!("the snapshot ends at {position}, of which the log, up to {last}, knows nothing");
        problem(ProblemKind::SnapshotBeyondLog, reason);
    }
    if snapshot.members.as_of() > position.index {
        let as_of = snapshot.members.as_of();
        let reason = format!("the membership of the snapshot is as of {as_of}, but it ends at {position}");
        problem(ProblemKind::MembersBeyondLog, reason);
    }
}
