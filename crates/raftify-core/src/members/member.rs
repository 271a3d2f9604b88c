//! One member, and what it may do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, NodeId};

/// Most members a cluster may have. A quorum of more would only be slower; the limit keeps every table small.
pub const MEMBERS_MAX: usize = 64;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Votes and counts towards the quorum.
    Voter,
    /// Receives the log, but neither votes nor counts (thesis, section 4.2.1). Stays one until it is promoted on request.
    Learner,
    /// A learner on its way to become a voter: the leader promotes it as soon as it is caught up and a majority of the
    /// voters has reached it.
    Joining,
    /// A voter of the outgoing half of a joint configuration only: gone as soon as the joint configuration is left.
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
    /// Which node.
    pub id: NodeId,
    /// Where its raft server listens: `host:port`, the host a name or an IP address.
    pub address: String,
    /// What it may do.
    pub role: MemberRole,
    /// The life of its data directory; `None` until the node has first been heard of.
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
