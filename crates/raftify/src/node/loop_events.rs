//! The events that follow from the state of the raft loop: changes of the published status, snapshots, and
//! the connections to members.

use std::collections::BTreeMap;
use std::sync::Arc;

use raftify_core::error::StopReason;
use raftify_core::{
    LogIndex, LogPosition, MemberRole, Members, NodeId, SnapshotMeta, SnapshotToSend, Status,
};

use crate::channels::node_events::{Event, NodeEvents};
use crate::runtime::disk_space::DiskSpace;

/// Owned by the raft loop. Its methods are called for changes, never for entries.
pub(crate) struct LoopEvents {
    events: Arc<NodeEvents>,
    /// As last published.
    members: Arc<Members>,
    /// The members of which it is known, and whether they are reached.
    reached: BTreeMap<NodeId, bool>,
    /// The snapshot that this node has taken last; it may not be in use yet.
    taken: Option<LogPosition>,
    disk_is_full: bool,
}

impl LoopEvents {
    pub(crate) fn new(events: Arc<NodeEvents>, members: Arc<Members>) -> LoopEvents {
        LoopEvents { events, members, reached: BTreeMap::new(), taken: None, disk_is_full: false }
    }

    /// The published status changes.
    pub(crate) fn changed(&mut self, old: &Status, new: &Status) {
        let term = new.term;
        if old.term != term {
            self.events.publish(Event::TermChanged { term });
        }
        if old.role != new.role {
            self.events.publish(Event::RoleChanged { role: new.role, term });
        }
        let leader = new.leader_id;
        if old.leader_id != leader || (leader.is_some() && old.term != term) {
            self.events.publish(Event::LeaderChanged { leader, term });
        }
        if !Arc::ptr_eq(&old.members, &new.members) {
            self.members_changed(&old.members, &new.members);
            self.members = Arc::clone(&new.members);
            let members = &self.members;
            self.reached.retain(|id, _| members.get(*id).is_some());
        }
        if old.snapshot != new.snapshot
            && let Some(position) = new.snapshot
        {
            let is_own = self.taken == new.snapshot;
            self.events.publish(match is_own {
                true => Event::SnapshotTaken { position },
                false => Event::SnapshotInstalled { position },
            });
        }
    }

    fn members_changed(&self, old: &Members, new: &Members) {
        let index = new.as_of();
        for member in new.iter() {
            let id = member.id;
            let Some(before) = old.get(id) else {
                self.events.publish(Event::MemberAdded { member: member.clone(), index });
                continue;
            };
            let role = member.role;
            match closeness_to_a_vote(role).cmp(&closeness_to_a_vote(before.role)) {
                std::cmp::Ordering::Greater => {
                    self.events.publish(Event::MemberPromoted { id, role, index });
                }
                std::cmp::Ordering::Less => self.events.publish(Event::MemberDemoted { id, role, index }),
                std::cmp::Ordering::Equal => {}
            }
            if before.address != member.address {
                let (from, to) = (before.address.clone(), member.address.clone());
                self.events.publish(Event::MemberMoved { id, from, to, index });
            }
        }
        for gone in old.iter().filter(|member| new.get(member.id).is_none()) {
            self.events.publish(Event::MemberRemoved { id: gone.id, index });
        }
    }

    /// The disk was measured, and has less free space than the reserve, or not. Reported when that changes.
    pub(crate) fn disk_measured(&mut self, space: &DiskSpace, is_full: bool) {
        let (free_bytes, size_bytes) = (space.free, space.size);
        if is_full != self.disk_is_full {
            self.disk_is_full = is_full;
            self.events.publish(match is_full {
                true => Event::DiskFull { free_bytes, size_bytes },
                false => Event::DiskHasRoom { free_bytes, size_bytes },
            });
        }
    }

    pub(crate) fn snapshot_begins(&self, applied: LogIndex) {
        self.events.publish(Event::SnapshotBegun { index: applied });
    }

    /// A snapshot is durable, or was not taken. It is in use when the status says so.
    pub(crate) fn snapshot_taken(&mut self, outcome: &Result<SnapshotMeta, String>) {
        match outcome {
            Ok(meta) => self.taken = Some(meta.position),
            Err(reason) => self.events.publish(Event::SnapshotFailed { reason: reason.clone() }),
        }
    }

    pub(crate) fn snapshot_is_sent(&self, SnapshotToSend { to, position, .. }: SnapshotToSend) {
        self.events.publish(Event::SnapshotSending { to, position });
    }

    pub(crate) fn snapshot_sent(
        &self,
        SnapshotToSend { to, position, .. }: SnapshotToSend,
        outcome: &Result<(), String>,
    ) {
        self.events.publish(match outcome {
            Ok(()) => Event::SnapshotSent { to, position },
            Err(reason) => Event::SnapshotNotSent { to, position, reason: reason.clone() },
        });
    }

    /// A peer is reached, or no longer. Only changes of members are reported: other nodes may use any number
    /// of ids.
    pub(crate) fn reached(&mut self, id: NodeId, is_reached: bool) {
        if self.members.get(id).is_some() && self.reached.insert(id, is_reached) != Some(is_reached) {
            self.events.publish(match is_reached {
                true => Event::PeerReachable { id },
                false => Event::PeerUnreachable { id },
            });
        }
    }

    /// The node cannot continue.
    pub(crate) fn failed(&self, reason: &StopReason) {
        if let StopReason::Storage(reason) = reason {
            self.events.publish(Event::DiskFailed { reason: reason.clone() });
        }
    }

    pub(crate) fn stopped(&self, reason: &StopReason) {
        self.events.publish(Event::Stopped { reason: reason.clone() });
    }
}

fn closeness_to_a_vote(role: MemberRole) -> u8 {
    match role {
        MemberRole::Learner | MemberRole::Leaving => 0,
        MemberRole::Joining => 1,
        MemberRole::Voter => 2,
    }
}
