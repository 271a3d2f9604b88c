//! The time of the last message of each peer, and the first incarnation seen of each node.

use std::collections::BTreeMap;

use crate::types::{Incarnation, NodeId};

/// See the module.
pub(crate) struct Liveness {
    /// A peer counts as alive for this many ticks after its last message.
    alive_ticks: u64,
    last_heard: BTreeMap<NodeId, u64>,
    /// The first incarnation of each node, until its incarnation is replicated.
    first_incarnations: BTreeMap<NodeId, Incarnation>,
}

impl Liveness {
    pub(crate) fn new(alive_ticks: u64) -> Liveness {
        Liveness { alive_ticks, last_heard: BTreeMap::new(), first_incarnations: BTreeMap::new() }
    }

    pub(crate) fn heard_from(&mut self, peer: NodeId, now_ticks: u64) {
        self.last_heard.insert(peer, now_ticks);
    }

    pub(crate) fn last_heard(&self, peer: NodeId) -> Option<u64> {
        self.last_heard.get(&peer).copied()
    }

    pub(crate) fn is_alive(&self, peer: NodeId, now_ticks: u64) -> bool {
        self.last_heard(peer).is_some_and(|heard| now_ticks - heard <= self.alive_ticks)
    }

    /// Whether the peer has sent a message after `since_ticks`.
    pub(crate) fn was_heard_after(&self, peer: NodeId, since_ticks: u64) -> bool {
        self.last_heard(peer).is_some_and(|heard| heard > since_ticks)
    }

    /// This node's own incarnation.
    pub(crate) fn set_own_incarnation(&mut self, own: NodeId, incarnation: Incarnation) {
        self.first_incarnations.insert(own, incarnation);
    }

    /// The first incarnation seen of a node whose incarnation is not replicated yet: `presented`, if it is
    /// the first.
    pub(crate) fn note_incarnation(&mut self, id: NodeId, presented: Incarnation) -> Incarnation {
        *self.first_incarnations.entry(id).or_insert(presented)
    }

    pub(crate) fn first_incarnation(&self, id: NodeId) -> Option<Incarnation> {
        self.first_incarnations.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_alive_for_a_time_after_it_was_heard_from() {
        let (mut liveness, peer) = (Liveness::new(10), NodeId::FIRST);
        assert!(!liveness.is_alive(peer, 0));
        liveness.heard_from(peer, 5);
        assert!(liveness.is_alive(peer, 15) && !liveness.is_alive(peer, 16));
        assert!(liveness.was_heard_after(peer, 4) && !liveness.was_heard_after(peer, 5));
    }

    #[test]
    fn the_first_incarnation_heard_of_a_node_counts() {
        let (mut liveness, peer) = (Liveness::new(10), NodeId::FIRST);
        assert_eq!(liveness.note_incarnation(peer, Incarnation(1)), Incarnation(1));
        assert_eq!(liveness.note_incarnation(peer, Incarnation(2)), Incarnation(1));
        assert_eq!(liveness.first_incarnation(peer), Some(Incarnation(1)));
    }
}
