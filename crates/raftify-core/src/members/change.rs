//! Membership changes: as they are in the log, and as callers request them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::encoding::{MembersDecodeError, decode_versioned, encode_versioned};
use super::member::{Member, MemberRole};
use crate::types::{Incarnation, LogIndex, NodeId};

const CHANGE_VERSION: u8 = 2;
const RECORD_VERSION: u8 = 2;
const REQUEST_VERSION: u8 = 1;

/// When to leave the joint configuration that a change of several members goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LeaveJoint {
    /// The leader leaves it as soon as it is committed, whichever node leads then.
    #[default]
    Automatically,
    /// The joint configuration stays until `leave_joint` is called.
    OnRequest,
}

/// One step of a [`MembershipChange`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds the member; for an existing member, changes its role or its address.
    Add(Member),
    /// Removes the node. Its id is never reused.
    Remove(NodeId),
    /// Gives the member another role and changes nothing else: promotes a learner, demotes a voter.
    SetRole {
        /// The member.
        id: NodeId,
        /// The new role.
        role: MemberRole,
    },
    /// Drops a node that is still [joining](MemberRole::Joining) and was silent for too long. It never voted:
    /// it may join again under the same id.
    ClearJoiner(NodeId),
}

impl MemberChange {
    /// The node that the step concerns.
    pub fn node_id(&self) -> NodeId {
        match self {
            MemberChange::Add(member) => member.id,
            MemberChange::Remove(id) | MemberChange::SetRole { id, .. } | MemberChange::ClearJoiner(id) => {
                *id
            }
        }
    }
}

/// A change of voters or learners, as it is in the log.
///
/// One step changes the configuration at once; several go through a joint configuration, in which both the
/// old and the new majority must agree (thesis, section 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MembershipChange {
    /// Carries out all `steps` together.
    Steps {
        /// At least one, each for another node.
        steps: Vec<MemberChange>,
        /// Matters only for more than one step.
        leave: LeaveJoint,
    },
    /// Leaves the joint configuration.
    LeaveJoint,
}

impl MembershipChange {
    /// A change of a single member.
    pub fn one(step: MemberChange) -> MembershipChange {
        MembershipChange::Steps { steps: vec![step], leave: LeaveJoint::Automatically }
    }

    /// Whether this change goes through a joint configuration.
    pub(crate) fn enters_joint(&self) -> bool {
        matches!(self, MembershipChange::Steps { steps, .. } if steps.len() > 1)
            && !mutated!(SeveralVotersAtOnce)
    }

    /// The payload of its log entry.
    pub fn encode(&self) -> Bytes {
        encode_versioned(CHANGE_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<MembershipChange, MembersDecodeError> {
        decode_versioned("membership change", CHANGE_VERSION, bytes)
    }
}

impl fmt::Display for MembershipChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MembershipChange::Steps { steps, .. } = self else {
            return f.write_str("leave the joint configuration");
        };
        for (number, step) in steps.iter().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            match step {
                MemberChange::Add(Member { id, address, role, .. }) => {
                    write!(f, "{separator}add {role} {id} at {address}")?;
                }
                MemberChange::Remove(id) => write!(f, "{separator}remove node {id}")?,
                MemberChange::SetRole { id, role } => write!(f, "{separator}make node {id} a {role}")?,
                MemberChange::ClearJoiner(id) => write!(f, "{separator}clear joining node {id}")?,
            }
        }
        Ok(())
    }
}

/// A replicated fact about members that changes no quorum, as it is in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberRecord {
    /// Reserves the next node id. The id is determined when the entry is applied, so that no two callers get
    /// the same one.
    ReserveNodeId,
    /// From now on, only this incarnation of node `id` is accepted.
    Incarnation {
        /// The node.
        id: NodeId,
        /// The first incarnation that was seen.
        incarnation: Incarnation,
    },
    /// The member announced that its address has changed.
    Address {
        /// The member.
        id: NodeId,
        /// The incarnation that the cluster knows: the address of another incarnation of the node is
        /// ignored.
        incarnation: Incarnation,
        /// The new address.
        address: String,
    },
}

impl MemberRecord {
    /// The payload of its log entry.
    pub fn encode(&self) -> Bytes {
        encode_versioned(RECORD_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<MemberRecord, MembersDecodeError> {
        decode_versioned("member record", RECORD_VERSION, bytes)
    }
}

/// A request to the leader to change the membership, and its conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRequest {
    /// The change.
    pub command: MembershipCommand,
    /// Only if the membership is still the one as of this index ([`Members::as_of`](super::Members::as_of)):
    /// compare-and-set. `None`: any membership.
    pub expected: Option<LogIndex>,
    /// Make the change even if it may cost the cluster its majority, or if the node to be promoted has not
    /// caught up or was not reached.
    pub force: bool,
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipCommand {
    /// Make this change. A node that is added as a voter [joins](MemberRole::Joining) first, unless the
    /// request is forced.
    Change(MembershipChange),
    /// Add these nodes: as [`Joining`](MemberRole::Joining) nodes, or as permanent learners where the role
    /// says so. An existing member keeps its role.
    Join(Vec<Member>),
}

impl From<MembershipChange> for MembershipRequest {
    fn from(change: MembershipChange) -> MembershipRequest {
        MembershipRequest { command: MembershipCommand::Change(change), expected: None, force: false }
    }
}

impl MembershipRequest {
    /// A request that adds these nodes.
    pub fn join(joiners: Vec<Member>) -> MembershipRequest {
        MembershipRequest { command: MembershipCommand::Join(joiners), expected: None, force: false }
    }

    /// Only if the membership is still the one as of this index.
    #[must_use]
    pub fn expecting(self, as_of: LogIndex) -> MembershipRequest {
        MembershipRequest { expected: Some(as_of), ..self }
    }

    /// Without regard to majorities, to how far a node is behind, and to whether voters can reach it.
    #[must_use]
    pub fn forced(self) -> MembershipRequest {
        MembershipRequest { force: true, ..self }
    }

    /// For the wire: a version, then the value.
    pub fn encode(&self) -> Bytes {
        encode_versioned(REQUEST_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the bytes are not a request of this version.
    pub fn decode(bytes: &[u8]) -> Result<MembershipRequest, MembersDecodeError> {
        decode_versioned("membership request", REQUEST_VERSION, bytes)
    }
}
