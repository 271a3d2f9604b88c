//! The removal of this node: whether it has applied it, which members have reported it, and when the cluster
//! no longer needs the node.

use std::collections::BTreeSet;

use crate::machines::liveness::Liveness;
use crate::types::{LogIndex, NodeId};

/// See the module.
#[derive(Default)]
pub(crate) struct Retirement {
    /// Whether this node has applied its own removal.
    is_retired: bool,
    /// Set since members refuse this node because it was removed.
    removal: Option<Removal>,
}

/// The reports of other nodes about the removal of this node.
struct Removal {
    told_by: BTreeSet<NodeId>,
    /// The newest membership that does not contain this node.
    as_of: LogIndex,
    since_ticks: u64,
}

impl Retirement {
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// This node has applied its own removal.
    pub(crate) fn retire(&mut self) {
        self.is_retired = true;
    }

    /// A membership is in force. A joining node that was cleared may have been added again: then it stops
    /// asking whether the cluster needs it.
    pub(crate) fn members_changed(&mut self, is_member: bool) {
        self.is_retired &= !is_member;
    }

    /// Whether a member has reported the removal to this node.
    pub(crate) fn is_told(&self) -> bool {
        self.removal.is_some()
    }

    /// A member refuses this node because it was removed. Other members may not know that yet, and may still
    /// need it.
    pub(crate) fn told(&mut self, by: NodeId, as_of: LogIndex, now_ticks: u64) {
        let removal = self.removal.get_or_insert_with(|| Removal {
            told_by: BTreeSet::new(),
            as_of,
            since_ticks: now_ticks,
        });
        removal.told_by.insert(by);
        removal.as_of = removal.as_of.max(as_of);
    }

    /// A node that knows the membership `as_of` this index sends messages to this node. A member that did not
    /// know this node yet, or had forgotten it in a crash, also refused it; but no node that knows of a
    /// removal sends messages to the removed node.
    pub(crate) fn spoken_to(&mut self, as_of: LogIndex) {
        self.removal.take_if(|removal| removal.as_of < as_of);
    }

    /// The membership that does not contain this node, if the node is no longer needed: a majority of the
    /// other `voters` knows of the removal. The voters may have changed since this node learned of a
    /// membership. A node that does not know its own removal therefore waits for silent voters only for
    /// this many ticks.
    pub(crate) fn not_needed(
        &self,
        voters: &BTreeSet<NodeId>,
        liveness: &Liveness,
        is_yet_to_be_added: bool,
        now_ticks: u64,
        patience_ticks: u64,
    ) -> Option<LogIndex> {
        let Removal { told_by, as_of, since_ticks } = self.removal.as_ref()?;
        // A member that does not know of a node yet also refuses it.
        let is_majority = !is_yet_to_be_added && voters.intersection(told_by).count() > voters.len() / 2;
        let last_heard = voters.difference(told_by).filter_map(|voter| liveness.last_heard(*voter)).max();
        let waits_since = last_heard.map_or(*since_ticks, |heard| heard.max(*since_ticks));
        let is_alone = !self.is_retired && now_ticks - waits_since > patience_ticks;
        (is_majority || is_alone || mutated!(RemovedNodeStopsAtOnce)).then_some(*as_of)
    }

    /// Whether this member has reported the removal.
    pub(crate) fn was_told_by(&self, member: NodeId) -> bool {
        self.removal.as_ref().is_some_and(|removal| removal.told_by.contains(&member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: u64 = 100;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn told_by(ids: impl IntoIterator<Item = u64>) -> Retirement {
        let mut retirement = Retirement::default();
        for id in ids {
            retirement.told(node(id), LogIndex(id), 0);
        }
        retirement
    }

    #[test]
    fn a_removed_node_is_not_needed_when_a_majority_of_the_others_knows_of_its_removal() {
        let (voters, liveness) = ([2, 3, 4].map(node).into(), Liveness::new(10));
        let mut retirement = told_by([2]);
        retirement.retire();
        assert_eq!(retirement.not_needed(&voters, &liveness, false, 1000, PATIENCE), None);
        retirement.told(node(3), LogIndex(3), 5);
        assert_eq!(retirement.not_needed(&voters, &liveness, false, 5, PATIENCE), Some(LogIndex(3)));
        assert_eq!(
            retirement.not_needed(&voters, &liveness, true, 5, PATIENCE),
            None,
            "a node that is about to be added is refused as well"
        );
        assert!(retirement.was_told_by(node(3)) && !retirement.was_told_by(node(4)));
    }

    #[test]
    fn a_node_that_does_not_know_its_removal_waits_for_silent_voters_only_for_a_time() {
        let (voters, mut liveness) = ([2, 3, 4].map(node).into(), Liveness::new(10));
        let retirement = told_by([2]);
        assert_eq!(retirement.not_needed(&voters, &liveness, false, 100, PATIENCE), None);
        assert_eq!(retirement.not_needed(&voters, &liveness, false, 101, PATIENCE), Some(LogIndex(2)));
        liveness.heard_from(node(3), 50);
        assert_eq!(retirement.not_needed(&voters, &liveness, false, 150, PATIENCE), None);
        assert_eq!(retirement.not_needed(&voters, &liveness, false, 151, PATIENCE), Some(LogIndex(2)));
    }

    #[test]
    fn what_was_said_of_a_removal_is_forgotten_when_a_node_that_knows_a_newer_membership_speaks() {
        let mut retirement = told_by([2]);
        retirement.spoken_to(LogIndex(2));
        assert!(retirement.is_told());
        retirement.spoken_to(LogIndex(3));
        assert!(!retirement.is_told());
    }

    #[test]
    fn a_node_that_is_let_in_again_is_not_retired() {
        let mut retirement = Retirement::default();
        retirement.retire();
        retirement.members_changed(false);
        assert!(retirement.is_retired());
        retirement.members_changed(true);
        assert!(!retirement.is_retired());
    }
}
