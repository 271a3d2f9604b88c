//! The members of a cluster: this module encodes, decodes, validates and applies membership changes.
//!
//! [`Members`] is a value: the membership as of one log index. It changes only by applying a committed
//! [`MembershipChange`] or [`MemberRecord`], in log order, on every node alike. A node stores it together
//! with its index, in one transaction, so that a replay after a restart never applies a change twice.

mod address;
mod change;
mod encoding;
mod member;
mod refusal;
mod sender;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::address::{ADDRESS_BYTES_MAX, AddressProblem, check_address, check_listen_address};
pub use self::change::{
    LeaveJoint, MemberChange, MemberRecord, MembershipChange, MembershipCommand, MembershipRequest,
};
pub use self::encoding::MembersDecodeError;
pub(crate) use self::encoding::{decode_versioned, encode_versioned};
pub use self::member::{MEMBERS_MAX, Member, MemberRole};
pub use self::refusal::MembershipRefusal;
pub use self::sender::{Sender, SenderRefusal};
use crate::types::{ClusterId, Identity, Incarnation, LogIndex, NodeId};

const MEMBERS_VERSION: u8 = 2;

/// The membership as of one log index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    as_of: LogIndex,
    members: BTreeMap<NodeId, Member>,
    /// The voters of the outgoing configuration; empty unless joint.
    outgoing: BTreeSet<NodeId>,
    leave: LeaveJoint,
    next_node_id: NodeId,
    /// Ids of removed members. They are never reused, so that a late message of the old node is never taken
    /// for one of a new node.
    removed: BTreeSet<NodeId>,
}

/// The voters and learners of a [`Members`], in the terms of consensus: raft-rs' `ConfState`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Voters of the incoming configuration.
    pub voters: BTreeSet<NodeId>,
    /// Voters of the outgoing configuration; empty unless joint.
    pub voters_outgoing: BTreeSet<NodeId>,
    /// Learners.
    pub learners: BTreeSet<NodeId>,
    /// Voters of the outgoing configuration that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<NodeId>,
}

impl Members {
    /// No member: the state of a node that waits to join a cluster.
    pub fn none() -> Members {
        Members {
            as_of: LogIndex::ZERO,
            members: BTreeMap::new(),
            outgoing: BTreeSet::new(),
            leave: LeaveJoint::Automatically,
            next_node_id: NodeId::FIRST,
            removed: BTreeSet::new(),
        }
    }

    /// The first members of a new cluster, as of index 1, where its log begins.
    ///
    /// # Errors
    /// The reason why these cannot be the members of a cluster.
    pub fn initial(members: impl IntoIterator<Item = Member>) -> Result<Members, MembershipRefusal> {
        let mut result = Members::none();
        for member in members {
            if result.members.contains_key(&member.id) {
                return Err(MembershipRefusal::NamedTwice { id: member.id });
            }
            result.set(member)?;
        }
        result.check_whole()?;
        result.as_of = LogIndex(1);
        Ok(result)
    }

    /// The log index up to which changes are included.
    pub fn as_of(&self) -> LogIndex {
        self.as_of
    }

    /// Whether there is no member: the node has not joined a cluster yet.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many members there are, learners included.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The member with this id.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether a joint configuration is in force.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether a joint configuration is in force that the leader must leave by itself.
    pub(crate) fn must_leave_joint(&self) -> bool {
        self.is_joint() && self.leave == LeaveJoint::Automatically && !mutated!(JointIsNeverLeft)
    }

    /// Whether `id` votes in the configuration in force, in either half of a joint one.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.outgoing.contains(&id) || self.get(id).is_some_and(|member| member.role == MemberRole::Voter)
    }

    /// The next id that will be reserved.
    pub fn next_node_id(&self) -> NodeId {
        self.next_node_id
    }

    /// In the terms of consensus.
    pub fn configuration(&self) -> Configuration {
        let mut configuration =
            Configuration { voters_outgoing: self.outgoing.clone(), ..Default::default() };
        for member in self.members.values() {
            let set = match member.role {
                MemberRole::Voter => &mut configuration.voters,
                MemberRole::Learner | MemberRole::Joining if self.outgoing.contains(&member.id) => {
                    &mut configuration.learners_next
                }
                MemberRole::Learner | MemberRole::Joining => &mut configuration.learners,
                MemberRole::Leaving => continue,
            };
            set.insert(member.id);
        }
        configuration
    }

    /// The membership after `change`, the entry at `index`.
    ///
    /// # Errors
    /// Why the change is invalid. The result is the same on every node, so that all nodes skip an invalid
    /// change.
    pub fn changed(&self, index: LogIndex, change: &MembershipChange) -> Result<Members, MembershipRefusal> {
        let mut result = self.clone();
        result.as_of = index;
        match change {
            MembershipChange::Steps { steps, leave } => result.take_steps(steps, *leave)?,
            MembershipChange::LeaveJoint => result.leave_joint()?,
        }
        result.check_whole()?;
        Ok(result)
    }

    /// The membership after `record`, the entry at `index`.
    pub fn recorded(&self, index: LogIndex, record: &MemberRecord) -> Members {
        let mut result = self.clone();
        result.as_of = index;
        match record {
            MemberRecord::ReserveNodeId if mutated!(ReservationsRepeat) => {}
            MemberRecord::ReserveNodeId => {
                result.next_node_id = self.next_node_id.next().unwrap_or(self.next_node_id);
            }
            MemberRecord::Incarnation { id, incarnation } => {
                // The first record wins: a later one could only come from a directory that replaced the
                // first.
                if let Some(member) = result.members.get_mut(id) {
                    member.incarnation.get_or_insert(*incarnation);
                }
            }
            MemberRecord::Address { id, incarnation, address } => result.move_to(*id, *incarnation, address),
        }
        result
    }

    /// The member has announced a new address. All nodes alike ignore an announcement that does not fit.
    fn move_to(&mut self, id: NodeId, incarnation: Incarnation, address: &str) {
        let is_free = self.members.values().all(|member| member.id == id || member.address != address);
        if let Some(member) = self.members.get_mut(&id)
            && member.incarnation == Some(incarnation)
            && is_free
            && check_address(address).is_ok()
        {
            address.clone_into(&mut member.address);
        }
    }

    fn take_steps(&mut self, steps: &[MemberChange], leave: LeaveJoint) -> Result<(), MembershipRefusal> {
        if self.is_joint() {
            return Err(MembershipRefusal::AlreadyJoint);
        }
        if steps.is_empty() {
            return Err(MembershipRefusal::NoSteps);
        }
        let mut named = BTreeSet::new();
        let before = self.configuration().voters;
        for step in steps {
            let id = step.node_id();
            if !named.insert(id) {
                return Err(MembershipRefusal::NamedTwice { id });
            }
        }
        if steps.len() > 1 && !mutated!(SeveralVotersAtOnce) {
            self.outgoing = before;
            self.leave = leave;
        }
        for step in steps {
            match step {
                MemberChange::Add(member) => self.set(member.clone())?,
                MemberChange::Remove(id) => self.remove(*id)?,
                MemberChange::SetRole { id, role } => self.set_role(*id, *role)?,
                MemberChange::ClearJoiner(id) => self.clear_joiner(*id)?,
            }
        }
        Ok(())
    }

    fn set_role(&mut self, id: NodeId, role: MemberRole) -> Result<(), MembershipRefusal> {
        let member = self.members.get(&id).ok_or(MembershipRefusal::UnknownMember { id })?;
        if member.role == role {
            return Err(MembershipRefusal::HasRole { id, role });
        }
        self.set(Member { role, ..member.clone() })
    }

    fn clear_joiner(&mut self, id: NodeId) -> Result<(), MembershipRefusal> {
        match self.get(id) {
            Some(member) if member.role == MemberRole::Joining => drop(self.members.remove(&id)),
            Some(_) => return Err(MembershipRefusal::NotJoining { id }),
            None => return Err(MembershipRefusal::UnknownMember { id }),
        }
        Ok(())
    }

    fn set(&mut self, mut member: Member) -> Result<(), MembershipRefusal> {
        let id = member.id;
        check_address(&member.address).map_err(|problem| MembershipRefusal::BadAddress { id, problem })?;
        if member.role == MemberRole::Leaving {
            return Err(MembershipRefusal::CannotAddLeaving { id });
        }
        if self.removed.contains(&id) && !mutated!(RemovedIdsComeBack) {
            return Err(MembershipRefusal::IdWasRemoved { id });
        }
        if let Some(holder) = self.members.values().find(|m| m.address == member.address && m.id != id) {
            return Err(MembershipRefusal::AddressTaken { id, address: member.address, holder: holder.id });
        }
        if let Some(known) = self.members.get(&id) {
            if member.role == MemberRole::Joining
                && (known.role == MemberRole::Voter || self.outgoing.contains(&id))
            {
                return Err(MembershipRefusal::CannotJoinAgain { id });
            }
            match (known.incarnation, member.incarnation) {
                (Some(known), Some(new)) if known != new => {
                    return Err(MembershipRefusal::OtherIncarnation { id, known, new });
                }
                (known, new) => member.incarnation = new.or(known),
            }
        }
        let after = id.next().ok_or(MembershipRefusal::IdsExhausted)?;
        self.next_node_id = self.next_node_id.max(after);
        self.members.insert(id, member);
        Ok(())
    }

    fn remove(&mut self, id: NodeId) -> Result<(), MembershipRefusal> {
        let member = self.members.get_mut(&id).ok_or(MembershipRefusal::UnknownMember { id })?;
        if self.outgoing.contains(&id) {
            member.role = MemberRole::Leaving;
        } else {
            self.members.remove(&id);
            self.removed.insert(id);
        }
        Ok(())
    }

    fn leave_joint(&mut self) -> Result<(), MembershipRefusal> {
        if !self.is_joint() {
            return Err(MembershipRefusal::NotJoint);
        }
        self.outgoing.clear();
        self.leave = LeaveJoint::Automatically;
        let leaving: Vec<NodeId> =
            self.members.values().filter(|m| m.role == MemberRole::Leaving).map(|m| m.id).collect();
        for id in leaving {
            self.members.remove(&id);
            self.removed.insert(id);
        }
        Ok(())
    }

    /// The invariants of every membership.
    fn check_whole(&self) -> Result<(), MembershipRefusal> {
        if !self.members.values().any(|member| member.role == MemberRole::Voter) {
            return Err(MembershipRefusal::LastVoter);
        }
        if self.members.len() > MEMBERS_MAX {
            return Err(MembershipRefusal::TooManyMembers { count: self.members.len() });
        }
        Ok(())
    }

    /// Whether the node `own` accepts messages of `sender`. `receiver` is the incarnation of the receiver as
    /// far as the sender knows it. The node checks every message before it reaches consensus.
    ///
    /// # Errors
    /// Why not. All of the reasons are final. [`SenderRefusal::OtherReceiver`] concerns the receiver, not the
    /// sender.
    pub fn check_sender(
        &self,
        sender: &Sender,
        receiver: Option<Incarnation>,
        own: &Identity,
    ) -> Result<(), SenderRefusal> {
        if sender.id == own.node_id {
            return Err(SenderRefusal::SameId { id: own.node_id });
        }
        if mutated!(IncarnationIsNotChecked) && self.get(sender.id).is_some() {
            return Ok(());
        }
        match self.get(sender.id) {
            Some(member) => match member.incarnation {
                Some(known) if known != sender.incarnation => {
                    return Err(SenderRefusal::Fenced {
                        id: sender.id,
                        known,
                        presented: sender.incarnation,
                    });
                }
                _ => {}
            },
            // The sender may have been added by a change that has not reached this node: it may even be the
            // leader that will send it. This node judges only a sender that claims no newer
            // membership than its own.
            None if !self.is_empty() && sender.members_as_of <= self.as_of => {
                return Err(SenderRefusal::NotAMember { id: sender.id, as_of: self.as_of });
            }
            None => {}
        }
        match receiver {
            Some(expected) if expected != own.incarnation => {
                Err(SenderRefusal::OtherReceiver { id: own.node_id, expected, actual: own.incarnation })
            }
            _ => Ok(()),
        }
    }

    /// For storage and snapshots: a version, then the value.
    pub fn encode(&self) -> Bytes {
        encode_versioned(MEMBERS_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the version is unknown, or the bytes do not describe a valid membership.
    pub fn decode(bytes: &[u8]) -> Result<Members, MembersDecodeError> {
        let members: Members = decode_versioned("membership", MEMBERS_VERSION, bytes)?;
        let consistent = members.members.iter().all(|(id, member)| *id == member.id)
            && members.outgoing.iter().all(|id| members.members.contains_key(id))
            && members
                .members
                .values()
                .all(|m| m.role != MemberRole::Leaving || members.outgoing.contains(&m.id));
        if !consistent {
            return Err(MembersDecodeError::Inconsistent);
        }
        if !members.is_empty() {
            members.check_whole().map_err(|_| MembersDecodeError::Inconsistent)?;
        }
        Ok(members)
    }

    /// A cluster id that every node derives alike from the same first members: their ids, addresses and
    /// roles.
    pub fn derive_cluster_id(&self) -> ClusterId {
        // FNV-1a: any stable hash will do, since the id only has to differ between differently configured
        // clusters.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for member in self.members.values() {
            let role = if mutated!(RoleLeftOutOfClusterId) { 0 } else { member.role as u8 };
            let id = member.id.get().to_le_bytes();
            for byte in id.iter().chain(member.address.as_bytes()).chain(&[0, role]) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        ClusterId(hash)
    }

    /// The differences of the `other` membership from this one, in words; empty if there is none.
    pub fn differences(&self, other: &Members) -> String {
        let ids: BTreeSet<NodeId> = self.members.keys().chain(other.members.keys()).copied().collect();
        let described = |member: Option<&Member>| match member {
            Some(member) => format!("a {} at {}", member.role, member.address),
            None => "not listed".to_owned(),
        };
        let differs = |id: &NodeId| {
            let (here, there) = (self.get(*id), other.get(*id));
            let same = here.map(|m| (&m.address, m.role)) == there.map(|m| (&m.address, m.role));
            (!same).then(|| format!("node {id} is {} here and {} there", described(here), described(there)))
        };
        ids.iter().filter_map(differs).collect::<Vec<_>>().join(", ")
    }

    /// Whether `id` was a member, and was removed: it can never join again.
    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed.contains(&id)
    }

    /// Whether `id` is a member, or was removed. A node that its own membership does not contain is about to
    /// be added: its membership is from before that.
    pub fn knows(&self, id: NodeId) -> bool {
        self.members.contains_key(&id) || self.is_removed(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(roles: [MemberRole; 3]) -> Members {
        let member = |(role, number)| Member {
            role,
            ..Member::voter(NodeId::new(number).expect("not zero"), format!("node-{number}:1"))
        };
        Members::initial(roles.into_iter().zip(1..).map(member)).expect("a possible list")
    }

    #[test]
    fn first_members_that_differ_in_a_role_only_are_another_cluster_and_the_difference_is_named() {
        use MemberRole::{Joining, Learner, Voter};
        let all = first([Voter, Voter, Voter]);
        for other in [first([Voter, Learner, Learner]), first([Voter, Voter, Joining])] {
            assert_ne!(all.derive_cluster_id(), other.derive_cluster_id());
        }
        assert_eq!(all.derive_cluster_id(), first([Voter, Voter, Voter]).derive_cluster_id());
        assert_eq!(
            all.differences(&first([Voter, Voter, Learner])),
            "node 3 is a voter at node-3:1 here and a learner at node-3:1 there"
        );
        assert_eq!(all.differences(&all), "");
    }
}
