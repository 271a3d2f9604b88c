//! The durable state of a node, across all its restarts: its term never decreases, it gives one vote in a
//! term, its commit index and its newest snapshot never go back, and while it runs, no entry is applied twice
//! or out of order (thesis, sections 3.4, 3.8 and 5.1). A node that lost its disk is another incarnation.
//! Overwritten entries are gone (figure 3.1, AppendEntries, and section 5.3: a snapshot in place of the log).
//! And a node must not return to a membership before one that is in force: the commit index that covers the
//! latter is durable first, here, and before a removed node stops, where others could still need its vote
//! (section 4.2.2: the availability of the old configuration until the new one is committed).

use std::collections::BTreeMap;

use raftify_core::storage::Write;
use raftify_core::{HardState, Incarnation, LogIndex, LogPosition, NodeId, StateKept, Term};

use super::Checked;
use crate::log_picture::LogPicture;

#[derive(Default)]
pub(crate) struct DurableState {
    nodes: BTreeMap<(NodeId, Incarnation), Remembered>,
}

#[derive(Default)]
struct Remembered {
    hard_state: HardState,
    snapshot: LogIndex,
}

impl DurableState {
    /// `write` is durable on `node`.
    pub(crate) fn written(&mut self, node: NodeId, incarnation: Incarnation, write: &Write) -> Checked {
        if let Some(hard_state) = write.hard_state {
            self.has(node, incarnation, hard_state)?;
        }
        let remembered = self.nodes.entry((node, incarnation)).or_default();
        if let Some(snapshot) = &write.snapshot {
            let (before, now) = (remembered.snapshot, snapshot.position.index);
            if now < before {
                return Err(format!(
                    "durable state: the snapshot of {node} goes back from {before} to {now}"
                ));
            }
            remembered.snapshot = now;
        }
        Ok(())
    }

    /// `node` has this durable state, as it was written or as it was read.
    pub(crate) fn has(&mut self, node: NodeId, incarnation: Incarnation, now: HardState) -> Checked {
        let before = &mut self.nodes.entry((node, incarnation)).or_default().hard_state;
        if now.term < before.term || now.commit < before.commit {
            return Err(format!("durable state: the state of {node} goes back from {before:?} to {now:?}"));
        }
        if now.term == before.term && before.vote.is_some() && now.vote != before.vote {
            let (first, second) = (before.vote, now.vote);
            return Err(format!(
                "durable state: {node} votes twice in term {}: {first:?}, {second:?}",
                now.term
            ));
        }
        *before = now;
        Ok(())
    }

    /// After a write, the storage of `node` reports that its log goes from after `truncated` to `last`; it
    /// should be `log`.
    pub(crate) fn log_is(
        &self,
        node: NodeId,
        (truncated, last): (LogPosition, LogPosition),
        log: &LogPicture,
    ) -> Checked {
        if (truncated, last) == (log.truncated, log.last_position()) {
            return Ok(());
        }
        let (after, until) = (log.truncated, log.last_position());
        Err(format!(
            "durable state: the log of {node} goes from {truncated} to {last}, but the writes give {after} to {until}"
        ))
    }

    /// `node` has `commit` durably as its commit index, and a log up to `last`.
    pub(crate) fn commits_within_log(&self, node: NodeId, commit: LogIndex, last: LogIndex) -> Checked {
        if commit <= last {
            return Ok(());
        }
        Err(format!("durable state: {node} regards {commit} as committed, and its log ends at {last}"))
    }

    /// A change at `index` is in force on `node`, which has `commit` durably.
    pub(crate) fn in_force(&self, node: NodeId, index: LogIndex, commit: LogIndex) -> Checked {
        if commit >= index {
            return Ok(());
        }
        Err(format!(
            "durable state: the change of members at {index} is in force on {node}, where the durable commit index is only {commit}"
        ))
    }

    /// `node` stops because it was removed at `index` or later; the remaining voters have these durable
    /// commit indexes.
    pub(crate) fn leaves(&self, node: NodeId, index: LogIndex, commits: &[LogIndex]) -> Checked {
        let know = commits.iter().filter(|commit| **commit >= index).count();
        if know > commits.len() / 2 {
            return Ok(());
        }
        Err(format!(
            "durable state: {node} stops, removed at {index}, of {} voters only {know} have that commit index durably",
            commits.len()
        ))
    }

    /// `node` has lost its disk, or a part of its data.
    pub(crate) fn forget(&mut self, node: NodeId, incarnation: Incarnation) {
        self.nodes.remove(&(node, incarnation));
    }

    /// `node`, whose state machine is at `before`, applies the entry at `index`.
    pub(crate) fn applies(&self, node: NodeId, before: LogIndex, index: LogIndex) -> Checked {
        if index == before.next() {
            return Ok(());
        }
        Err(format!("applied index: {node} applies {index} after {before}"))
    }
}

/// `node` delivers the entry at `position`, which is not durable there, to its state machine: allowed only
/// for a state machine in memory, and only for an entry that a majority has and that changes no members
/// (thesis, section 10.2.1).
pub(crate) fn delivers_beyond_log(
    node: NodeId,
    position: LogPosition,
    kept: StateKept,
    is_allowed: bool,
) -> Checked {
    if kept == StateKept::InMemory && is_allowed {
        return Ok(());
    }
    Err(format!(
        "durable state: {node} delivers {position}, which is not durable there, to a state machine {kept:?}"
    ))
}

/// The durable state of `node` is that at `kept`; its log goes up to `last`, and has an entry of term `there`
/// at that index, if it reaches back so far.
pub(crate) fn keeps_what_is_in_the_state(
    node: NodeId,
    kept: LogPosition,
    last: LogPosition,
    there: Option<Term>,
) -> Checked {
    if kept.index <= last.index && there.is_none_or(|term| term == kept.term) {
        return Ok(());
    }
    Err(format!(
        "durable state: the state machine of {node} is durably at {kept}, its log ends at {last} and has {there:?} there"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
        HardState { term: Term(term), vote: NodeId::new(vote), commit: LogIndex(commit) }
    }

    #[test]
    fn forgetting_term_vote_or_commit_is_rejected() {
        let (node, life) = (NodeId::FIRST, Incarnation(1));
        for wrong in [hard_state(3, 1, 5), hard_state(4, 1, 5), hard_state(4, 0, 5), hard_state(4, 2, 4)] {
            let mut durable = DurableState::default();
            durable.has(node, life, hard_state(3, 1, 4)).unwrap();
            durable.has(node, life, hard_state(4, 0, 5)).unwrap();
            durable.has(node, life, hard_state(4, 2, 5)).unwrap();
            durable.has(node, life, wrong).unwrap_err();
            durable.has(node, Incarnation(2), wrong).expect("another life of the disk");
        }
    }

    #[test]
    fn a_commit_index_or_a_state_beyond_the_log_is_rejected() {
        let durable = DurableState::default();
        durable.commits_within_log(NodeId::FIRST, LogIndex(5), LogIndex(5)).unwrap();
        durable.commits_within_log(NodeId::FIRST, LogIndex(6), LogIndex(5)).unwrap_err();
        let hands_out =
            |kept, is_allowed| delivers_beyond_log(NodeId::FIRST, LogPosition::new(2, 9), kept, is_allowed);
        hands_out(StateKept::InMemory, true).unwrap();
        hands_out(StateKept::InMemory, false).unwrap_err();
        hands_out(StateKept::OnDisk, true).unwrap_err();
        let keeps = |kept, there| {
            let (kept, last) = (LogPosition::new(2, kept), LogPosition::new(3, 9));
            keeps_what_is_in_the_state(NodeId::FIRST, kept, last, there)
        };
        keeps(9, Some(Term(2))).unwrap();
        keeps(3, None).expect("that part of the log is gone");
        keeps(10, None).unwrap_err();
        keeps(9, Some(Term(3))).unwrap_err();
    }

    #[test]
    fn applying_out_of_order_is_rejected() {
        let durable = DurableState::default();
        durable.applies(NodeId::FIRST, LogIndex(4), LogIndex(5)).unwrap();
        for wrong in [3, 4, 6] {
            durable.applies(NodeId::FIRST, LogIndex(4), LogIndex(wrong)).unwrap_err();
        }
    }

    #[test]
    fn a_log_that_keeps_overwritten_entries_is_rejected() {
        let log = LogPicture::default();
        let durable = DurableState::default();
        durable.log_is(NodeId::FIRST, (LogPosition::ZERO, LogPosition::ZERO), &log).unwrap();
        durable.log_is(NodeId::FIRST, (LogPosition::ZERO, LogPosition::new(1, 1)), &log).unwrap_err();
    }

    #[test]
    fn a_membership_that_a_restart_could_lose_is_rejected() {
        let durable = DurableState::default();
        durable.in_force(NodeId::FIRST, LogIndex(5), LogIndex(5)).unwrap();
        durable.in_force(NodeId::FIRST, LogIndex(5), LogIndex(4)).unwrap_err();
        durable.leaves(NodeId::FIRST, LogIndex(5), &[LogIndex(5), LogIndex(6), LogIndex(4)]).unwrap();
        durable.leaves(NodeId::FIRST, LogIndex(5), &[LogIndex(5), LogIndex(4)]).unwrap_err();
    }
}
