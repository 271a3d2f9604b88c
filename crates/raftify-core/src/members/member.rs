//! One member and its role.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, NodeId};

/// The maximum number of members of a cluster. A larger quorum would only be slower; the limit keeps every
/// table small.
pub const MEMBERS_MAX: usize = 64;

/// The role of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Votes and counts towards the quorum.
    Voter,
    /// Receives the log, but neither votes nor counts towards the quorum (thesis, section 4.2.1). It stays a
    /// learner until it is promoted on request.
    Learner,
    /// A learner that is to become a voter: the leader promotes it as soon as it has caught up and a majority
    /// of the voters has reached it.
    Joining,
    /// A voter of the outgoing half of a joint configuration only: it is removed as soon as the joint
    /// configuration is left.
    Leaving,
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MemberRole::Voter => "voter",
            MemberRole::Learner => "learner",
            MemberRole::Joining => "joining",
            MemberRole::Leaving => "leaving",
        })
    }
}

/// A replicated fact: this node belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The id of the node.
    pub id: NodeId,
    /// The address of its raft server: `host:port`, the host a name or an IP address.
    pub address: String,
    /// Its role.
    pub role: MemberRole,
    /// The incarnation of its data directory; `None` until the cluster has recorded the first one.
    pub incarnation: Option<Incarnation>,
}

impl Member {
    /// A voter at `address`.
    pub fn voter(id: NodeId, address: impl Into<String>) -> Member {
        Member { id, address: address.into(), role: MemberRole::Voter, incarnation: None }
    }

    /// A learner at `address`.
    pub fn learner(id: NodeId, address: impl Into<String>) -> Member {
        Member { id, address: address.into(), role: MemberRole::Learner, incarnation: None }
    }
}
