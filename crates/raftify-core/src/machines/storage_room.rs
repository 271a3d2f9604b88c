//! Which voters have room on their disks: a node whose disk is almost full takes no proposals.
//!
//! A node learns from its caller whether its own disk is full, and reports it to the other members for as long
//! as it is. A report expires: a member that has room again reports nothing. Counted in ticks.

use std::collections::{BTreeMap, BTreeSet};

use crate::members::Configuration;
use crate::types::NodeId;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct StorageRoom {
    is_full: bool,
    /// When this node last reported that its disk is full; `None` if it has to do so now.
    reported_ticks: Option<u64>,
    /// The full members, each until the tick at which its last report expires.
    full_peers: BTreeMap<NodeId, u64>,
    /// No further transfer because of the disk before this tick.
    pause_until_ticks: u64,
}

impl StorageRoom {
    /// This node's own disk. Returns whether that is new.
    pub(crate) fn set_full(&mut self, is_full: bool) -> bool {
        let is_new = self.is_full != is_full;
        if is_new {
            self.is_full = is_full;
            self.reported_ticks = None;
            self.pause_until_ticks = 0;
        }
        is_new
    }

    /// Whether this node's own disk is full.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// The member has reported that its disk is full.
    pub(crate) fn reported(&mut self, peer: NodeId, until_ticks: u64) {
        self.full_peers.insert(peer, until_ticks);
    }

    /// Called at every tick. Forgets expired reports.
    pub(crate) fn tick(&mut self, now_ticks: u64) {
        self.full_peers.retain(|_, until_ticks| *until_ticks > now_ticks);
    }

    /// Whether to report to the other members now that this disk is full.
    pub(crate) fn take_report_due(&mut self, now_ticks: u64, interval_ticks: u64) -> bool {
        let is_due =
            self.is_full && self.reported_ticks.is_none_or(|last| now_ticks - last >= interval_ticks);
        if is_due {
            self.reported_ticks = Some(now_ticks);
        }
        is_due
    }

    /// Whether the disk of another member is full, as far as it has reported.
    pub(crate) fn is_peer_full(&self, peer: NodeId) -> bool {
        self.full_peers.contains_key(&peer)
    }

    /// Whether no disk is known to be full: the usual case.
    pub(crate) fn all_have_room(&self) -> bool {
        !self.is_full && self.full_peers.is_empty()
    }

    /// Whether a leader should try now to transfer its leadership because its disk is full: once in each
    /// `pause_ticks`.
    pub(crate) fn take_transfer_due(&mut self, now_ticks: u64, pause_ticks: u64) -> bool {
        let is_due = self.is_full && now_ticks >= self.pause_until_ticks;
        if is_due {
            self.pause_until_ticks = now_ticks + pause_ticks;
        }
        is_due
    }

    /// The full voters, if the leader `own` must take no proposals because of them: its own disk is full, or
    /// the voters with room are no majority in one half of the configuration.
    pub(crate) fn refuses(&self, own: NodeId, configuration: &Configuration) -> Option<Vec<NodeId>> {
        let is_full = |id: &NodeId| if *id == own { self.is_full } else { self.is_peer_full(*id) };
        let lacks_majority = |half: &BTreeSet<NodeId>| {
            !half.is_empty() && half.iter().filter(|id| !is_full(id)).count() <= half.len() / 2
        };
        let Configuration { voters, voters_outgoing, .. } = configuration;
        let refuses = self.is_full || lacks_majority(voters) || lacks_majority(voters_outgoing);
        (refuses && !mutated!(FullDiskTakesProposals))
            .then(|| voters.union(voters_outgoing).copied().filter(is_full).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn voters(numbers: std::ops::RangeInclusive<u64>) -> BTreeSet<NodeId> {
        numbers.map(id).collect()
    }

    #[test]
    fn a_leader_refuses_if_its_own_disk_or_those_of_a_majority_are_full() {
        let configuration = Configuration { voters: voters(1..=3), ..Default::default() };
        let mut room = StorageRoom::default();
        assert_eq!(room.refuses(id(1), &configuration), None);
        room.reported(id(2), 10);
        assert_eq!(room.refuses(id(1), &configuration), None, "two of three have room");
        room.reported(id(3), 10);
        assert_eq!(room.refuses(id(1), &configuration), Some(vec![id(2), id(3)]));
        room.tick(10);
        assert!(room.all_have_room(), "the reports have expired");
        assert!(room.set_full(true) && !room.set_full(true));
        assert_eq!(room.refuses(id(1), &configuration), Some(vec![id(1)]));
        assert!(room.set_full(false));
        assert_eq!(room.refuses(id(1), &configuration), None);
    }

    #[test]
    fn both_halves_of_a_joint_configuration_need_a_majority_with_room() {
        let configuration =
            Configuration { voters: voters(1..=3), voters_outgoing: voters(3..=5), ..Default::default() };
        let mut room = StorageRoom::default();
        room.reported(id(4), 10);
        assert_eq!(room.refuses(id(1), &configuration), None);
        room.reported(id(5), 10);
        assert_eq!(room.refuses(id(1), &configuration), Some(vec![id(4), id(5)]));
    }

    #[test]
    fn a_full_disk_is_reported_at_once_and_then_in_intervals() {
        let mut room = StorageRoom::default();
        assert!(!room.take_report_due(7, 3));
        room.set_full(true);
        assert!(room.take_report_due(7, 3) && !room.take_report_due(9, 3) && room.take_report_due(10, 3));
        assert!(room.take_transfer_due(7, 5) && !room.take_transfer_due(11, 5));
        assert!(room.take_transfer_due(12, 5));
    }
}
