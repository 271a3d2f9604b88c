//! The addresses at which this node has reached its peers, and the address for which the report of a voter
//! counts.

use std::collections::BTreeMap;

use crate::members::{Member, Members, Sender};
use crate::types::{Incarnation, LogIndex, NodeId};

/// See the module.
pub(crate) struct ReachedPeers {
    /// The nodes that this node has reached, and their addresses.
    reached: BTreeMap<NodeId, (Incarnation, String)>,
    /// The index as of which each member has its address, as far as this node has seen it change.
    addresses_as_of: BTreeMap<NodeId, LogIndex>,
    /// The membership with which this node has started.
    begun_as_of: LogIndex,
    /// When the last report to the leader was sent; zero: send one at once.
    told_ticks: u64,
}

impl ReachedPeers {
    pub(crate) fn new(begun_as_of: LogIndex) -> ReachedPeers {
        let (reached, addresses_as_of) = (BTreeMap::new(), BTreeMap::new());
        ReachedPeers { reached, addresses_as_of, begun_as_of, told_ticks: 0 }
    }

    /// This incarnation of the peer answers at `address`. Returns whether that is new.
    pub(crate) fn reach(&mut self, peer: NodeId, incarnation: Incarnation, address: String) -> bool {
        let reached = (incarnation, address);
        let is_news = self.reached.get(&peer) != Some(&reached);
        if is_news {
            self.reached.insert(peer, reached);
            self.told_ticks = 0;
        }
        is_news
    }

    pub(crate) fn lose(&mut self, peer: NodeId) {
        self.reached.remove(&peer);
    }

    /// Whether this node has reached the member at its address in the membership.
    pub(crate) fn has_reached(&self, member: &Member) -> bool {
        self.reached.get(&member.id).is_some_and(|(incarnation, address)| {
            member.incarnation == Some(*incarnation) && member.address == *address
        })
    }

    /// The membership is about to change. Returns the members that are new or have moved: the report of a
    /// voter about one address does not count for another.
    pub(crate) fn members_change(&mut self, before: &Members, after: &Members) -> Vec<NodeId> {
        self.addresses_as_of.retain(|id, _| after.get(*id).is_some());
        let has_moved =
            |member: &&Member| before.get(member.id).is_none_or(|known| known.address != member.address);
        let moved: Vec<NodeId> = after.iter().filter(has_moved).map(|member| member.id).collect();
        self.addresses_as_of.extend(moved.iter().map(|id| (*id, after.as_of())));
        moved
    }

    /// Whether a voter that reports that it has reached this member means the member's present address. A
    /// voter that does not know the newest address has reached the node at an older one.
    pub(crate) fn knows_address(&self, voter: &Sender, member: NodeId) -> bool {
        let known_since = self.addresses_as_of.get(&member).copied().unwrap_or(self.begun_as_of);
        voter.members_as_of >= known_since
    }

    /// Whether the next report to the leader is due, `interval_ticks` after the last one.
    pub(crate) fn is_telling_due(&self, now_ticks: u64, interval_ticks: u64) -> bool {
        self.told_ticks == 0 || now_ticks - self.told_ticks >= interval_ticks
    }

    pub(crate) fn told(&mut self, now_ticks: u64) {
        self.told_ticks = now_ticks.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable_state::Started;
    use crate::members::MemberRecord;

    #[test]
    fn the_word_of_a_voter_counts_only_for_the_address_that_it_knows() {
        let [first, second] = [1, 2].map(|id| NodeId::new(id).unwrap());
        let incarnation = Incarnation(7);
        let member = Member { incarnation: Some(incarnation), ..Member::voter(second, "old:1") };
        let before = Members::initial([Member::voter(first, "first:1"), member]).unwrap();
        let record = MemberRecord::Address { id: second, incarnation, address: "new:1".to_owned() };
        let after = before.recorded(LogIndex(5), &record);
        let mut peers = ReachedPeers::new(before.as_of());
        let voter = |as_of| Sender {
            id: first,
            incarnation: Incarnation(1),
            members_as_of: LogIndex(as_of),
            started: Started::default(),
        };
        assert!(peers.knows_address(&voter(1), second));
        peers.reach(second, incarnation, "old:1".to_owned());
        assert!(peers.has_reached(before.get(second).unwrap()));

        assert_eq!(peers.members_change(&before, &after), [second]);
        assert!(!peers.knows_address(&voter(4), second) && peers.knows_address(&voter(5), second));
        assert!(peers.knows_address(&voter(1), first), "it has not moved");
        assert!(!peers.has_reached(after.get(second).unwrap()));
    }

    #[test]
    fn the_leader_is_told_of_a_new_peer_at_once_and_then_now_and_again() {
        let mut peers = ReachedPeers::new(LogIndex::ZERO);
        let reach = |peers: &mut ReachedPeers| peers.reach(NodeId::FIRST, Incarnation(1), "a:1".to_owned());
        peers.told(0);
        assert!(!peers.is_telling_due(10, 10) && peers.is_telling_due(11, 10));
        peers.told(11);
        reach(&mut peers);
        assert!(peers.is_telling_due(12, 10));
        peers.told(12);
        reach(&mut peers);
        assert!(!peers.is_telling_due(13, 10), "nothing new");
    }
}
