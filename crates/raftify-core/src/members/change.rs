//! Changes of the membership: as they stand in the log, and as they are asked for.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::encoding::{MembersDecodeError, decode_versioned, encode_versioned};
use super::member::{Member, MemberRole};
use crate::types::{Incarnation, LogIndex, NodeId};

const CHANGE_VERSION: u8 = 2;
const RECORD_VERSION: u8 = 2;
const REQUEST_VERSION: u8 = 1;

/// What to do with the joint configuration that a change of several members goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LeaveJoint {
    /// The leader leaves it as soon as it is committed, whichever node leads then.
    #[default]
    Automatically,
    /// It stays until `leave_joint` is called.
    OnRequest,
}

/// One step of a [`MembershipChange`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds the member; for a node that is one already, changes its role or its address.
    Add(Member),
    /// Removes the node. Its id is never given out again.
    Remove(NodeId),
    /// Gives the member another role, and leaves the rest of it as it is: promotes a learner, demotes a voter.
    SetRole {
        /// The member.
        id: NodeId,
        /// From now on.
        role: MemberRole,
    },
    /// Drops a node that is still [joining](MemberRole::Joining) and was silent for too long. It never voted: it may ask
    /// to be let in again under the same id.
    ClearJoiner(NodeId),
}

impl MemberChange {
    /// The node that the step is about.
    pub fn node_id(&self) -> NodeId {
        match self {
            MemberChange::Add(member) => member.id,
            MemberChange::Remove(id) | MemberChange::SetRole { id, .. } | MemberChange::ClearJoiner(id) => {
                *id
            }
        }
    }
}

/// A change of voters or learners, as it stands in the log.
///
/// One step changes the configuration at once; several go through a joint configuration, in which both the old and
/// the new majority must agree (thesis, section 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MembershipChange {
    /// Carries out all `steps` together.
    Steps {
        /// At least one, each for another node.
        steps: Vec<MemberChange>,
        /// Matters for more than one step only.
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

/// A replicated fact about members that changes no quorum, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberRecord {
    /// Gives out the next node id. Which one is decided when the entry is applied, so that no two callers get one.
    ReserveNodeId,
    /// From now on, node `id` is believed only with this incarnation.
    Incarnation {
        /// The node.
        id: NodeId,
        /// As first heard of.
        incarnation: Incarnation,
    },
    /// The member announced that it is now reached at another address.
    Address {
        /// The member.
        id: NodeId,
        /// As the cluster knows it: the address of another life of the node is not believed.
        incarnation: Incarnation,
        /// From now on.
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

/// What is asked of the leader, and under which conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRequest {
    /// What to do.
    pub command: MembershipCommand,
    /// Only if the membership is still the one as of this index ([`Members::as_of`](super::Members::as_of)):
    /// compare-and-set. `None`: whatever the membership is.
    pub expected: Option<LogIndex>,
    /// Make the change although it may cost the cluster its majority, or the node to be promoted is not caught up or not
    /// reached.
    pub force: bool,
}

/// What to do with the membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipCommand {
    /// Make this change. A node that is added as a voter [joins](MemberRole::Joining) first, unless the request is forced.
    Change(MembershipChange),
    /// Let these nodes in: as [`Joining`](MemberRole::Joining) nodes, or as permanent learners where the role says so. A node
    /// that is a member already stays what it is.
    Join(Vec<Member>),
}

impl From<MembershipChange> for MembershipRequest {
    fn from(change: MembershipChange) -> MembershipRequest {
        MembershipRequest { command: MembershipCommand::Change(change), expected: None, force: false }
    }
}

impl MembershipRequest {
    /// A request that lets these nodes in.
    pub fn join(joiners: Vec<Member>) -> MembershipRequest {
        MembershipRequest { command: MembershipCommand::Join(joiners), expected: None, force: false }
    }

    /// Only if the membership is still the one as of this index.
    #[must_use]
    pub fn expecting(self, as_of: LogIndex) -> MembershipRequest {
        MembershipRequest { expected: Some(as_of), ..self }
    }

    /// Without regard to majorities, to how far a node is behind, and to whether it is reached.
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
    /// If the bytes are no request of this version.
    pub fn decode(bytes: &[u8]) -> Result<MembershipRequest, MembersDecodeError> {
        decode_versioned("membership request", REQUEST_VERSION, bytes)
    }
}
