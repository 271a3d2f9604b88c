//! The initial state of a core, read from the storage and checked for contradictions.

use crate::error::StartError;
use crate::members::Members;
use crate::raft_rs::LogStart;
use crate::storage::{LogReader, StoredState};
use crate::types::LogPosition;

/// How many bytes of entries a starting node reads at once.
const START_READ_BYTES: u64 = 8 * 1024 * 1024;

/// The initial log of consensus, the newest membership, and the position of the state machine.
pub(super) fn log_start(
    stored: &StoredState,
    log: &impl LogReader,
) -> Result<(LogStart, Members, LogPosition), StartError> {
    let inconsistent = |reason: String| Err(StartError::Inconsistent { reason });
    let state_machine_at = stored.snapshot.as_ref().map_or(stored.truncated, |snapshot| snapshot.position);
    let applied = state_machine_at.index;
    if applied < stored.truncated.index {
        let truncated = stored.truncated;
        return inconsistent(format!(
            "the log begins after {truncated}, the snapshot ends at {state_machine_at}"
        ));
    }
    if applied > stored.last.index {
        return inconsistent(format!(
            "the snapshot is at {state_machine_at}, the log ends at {}",
            stored.last
        ));
    }
    let mut members = stored.members.clone().unwrap_or_else(Members::none);
    if mutated!(MembersAreLostOverRestart) {
        members = Members::none();
    }
    if let Some(snapshot) = &stored.snapshot
        && snapshot.members.as_of() > members.as_of()
    {
        members = snapshot.members.clone();
    }
    if stored.identity.is_none() && (!members.is_empty() || stored.last != LogPosition::ZERO) {
        return inconsistent("there is a log or a membership, but no identity".to_owned());
    }
    let mut hard_state = stored.hard_state;
    // Applied entries were committed, even if the commit index was not written again since.
    hard_state.commit = hard_state.commit.max(members.as_of()).max(applied);
    if hard_state.commit > stored.last.index {
        return inconsistent(format!(
            "index {} is committed, the log ends at {}",
            hard_state.commit, stored.last
        ));
    }
    if hard_state.term < stored.last.term {
        return inconsistent(format!("the term is {}, the log ends at {}", hard_state.term, stored.last));
    }
    let mut tail = Vec::new();
    let mut from = applied.next();
    while from <= stored.last.index {
        let read = log.read(from, stored.last.index.next(), START_READ_BYTES)?;
        match read.last() {
            Some(last) => from = last.position.index.next(),
            None => return inconsistent(format!("entry {from} could not be read")),
        }
        tail.extend(read);
    }
    let start = LogStart {
        hard_state,
        configuration: members.configuration(),
        truncated: stored.truncated,
        last: stored.last,
        term_starts: stored.term_starts.clone(),
        applied,
        tail,
        snapshot: stored.snapshot.as_ref().map(|s| (s.position, s.members.configuration())),
    };
    Ok((start, members, state_machine_at))
}
