//! State-machine safety: no two nodes apply different entries at one index (thesis, figure 3.2 and section
//! 3.6.3). So the states of all nodes are equal at equal applied indexes, also where a snapshot replaces a
//! part of the log (section 5.1).

use std::collections::BTreeMap;

use raftify_core::{LogIndex, LogPosition, NodeId, Term};

use super::Checked;
use crate::log_picture::Digest;

#[derive(Default)]
pub(crate) struct StateMachineSafety {
    applied: BTreeMap<LogIndex, Term>,
    states: BTreeMap<LogIndex, Digest>,
}

impl StateMachineSafety {
    /// `node` has applied the entry at `position`; its state is `state` now.
    pub(crate) fn applied(&mut self, node: NodeId, position: LogPosition, state: Digest) -> Checked {
        let LogPosition { term, index } = position;
        let first = *self.applied.entry(index).or_insert(term);
        if first != term {
            return Err(format!(
                "state-machine safety: {node} applies {position}, another node applied an entry of term {first}"
            ));
        }
        self.is_at(node, index, state)
    }

    /// `node` is at `index`, by a snapshot or by the log, and its state is `state`.
    pub(crate) fn is_at(&mut self, node: NodeId, index: LogIndex, state: Digest) -> Checked {
        if *self.states.entry(index).or_insert(state) == state {
            return Ok(());
        }
        Err(format!("state-machine safety: the state of {node} at {index} differs from that of other nodes"))
    }

    /// A snapshot of `state` is to replace the log up to `index`.
    pub(crate) fn snapshot(&self, node: NodeId, index: LogIndex, state: Digest) -> Checked {
        match self.states.get(&index) {
            Some(known) if *known != state => {
                Err(format!("snapshots: that of {node} at {index} differs from the log that it replaces"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_entries_at_one_index_are_rejected() {
        let mut states = StateMachineSafety::default();
        states.applied(NodeId::FIRST, LogPosition::new(2, 5), Digest(1)).unwrap();
        states.applied(NodeId::FIRST, LogPosition::new(2, 5), Digest(1)).unwrap();
        states.applied(NodeId::FIRST, LogPosition::new(3, 5), Digest(1)).unwrap_err();
    }

    #[test]
    fn states_that_differ_at_one_index_are_rejected() {
        let mut states = StateMachineSafety::default();
        states.applied(NodeId::FIRST, LogPosition::new(2, 5), Digest(1)).unwrap();
        states.is_at(NodeId::FIRST, LogIndex(5), Digest(2)).unwrap_err();
        states.is_at(NodeId::FIRST, LogIndex(6), Digest(2)).unwrap();
    }

    #[test]
    fn a_snapshot_that_differs_from_the_log_it_replaces_is_rejected() {
        let mut states = StateMachineSafety::default();
        states.applied(NodeId::FIRST, LogPosition::new(2, 5), Digest(1)).unwrap();
        states.snapshot(NodeId::FIRST, LogIndex(5), Digest(1)).unwrap();
        states.snapshot(NodeId::FIRST, LogIndex(5), Digest(3)).unwrap_err();
    }
}
