//! What a node must never forget, over all its restarts: its term never falls, it gives one vote in a term, its commit
//! index and its newest snapshot never go back, and while it runs, nothing is applied twice or out of order (thesis,
//! sections 3.4, 3.8 and 5.1). A node that lost its disk is another incarnation.

use std::collections::BTreeMap;

use raftify_core::storage::Write;
use raftify_core::{HardState, Incarnation, LogIndex, NodeId};

use super::Checked;

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
    /// `node` has `write` on its disk.
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

    /// `node` has this on its disk, as it is written or as it is found.
    pub(crate) fn has(&mut self, node: NodeId, incarnation: Incarnation, now: HardState) -> Checked {
        let before = &mut self.nodes.entry((node, incarnation)).or_default().hard_state;
        if now.term < before.term || now.commit < before.commit {
            return Err(format!("durable state: that of {node} goes back from {before:?} to {now:?}"));
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

    /// `node` has lost its disk, or a part of what was on it.
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

#[cfg(test)]
mod tests {
    use raftify_core::Term;

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
    fn applying_out_of_order_is_rejected() {
        let durable = DurableState::default();
        durable.applies(NodeId::FIRST, LogIndex(4), LogIndex(5)).unwrap();
        for wrong in [3, 4, 6] {
            durable.applies(NodeId::FIRST, LogIndex(4), LogIndex(wrong)).unwrap_err();
        }
    }
}
