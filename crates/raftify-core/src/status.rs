//! The public picture of a node, as plain data.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::LeaderHint;
use crate::members::Members;
use crate::types::{Identity, LogIndex, LogPosition, NodeId, Term};

/// What a node is in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it would be elected (pre-vote).
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Follower => "follower",
            Role::PreCandidate => "pre-candidate",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        })
    }
}

/// Where a node stands. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node_id: NodeId,
    /// Whose directory it runs on; `None` while it waits for a cluster.
    pub identity: Option<Identity>,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader of that term, if known. Another node may have been elected since.
    pub leader_id: Option<NodeId>,
    /// The last index known to be committed.
    pub commit: LogIndex,
    /// The last index that the state machine has applied.
    pub applied: LogIndex,
    /// The log's last entry, durable or not.
    pub last: LogPosition,
    /// The position before the log's first entry.
    pub truncated: LogPosition,
    /// The newest snapshot, if there is one.
    pub snapshot: Option<LogPosition>,
    /// Who belongs to the cluster, as far as applied here.
    pub members: Arc<Members>,
}

impl Status {
    /// Whether this node leads, as far as it knows: a newer leader may exist that it has not heard of.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether this node is a member, as far as applied here.
    pub fn is_member(&self) -> bool {
        self.members.get(self.node_id).is_some()
    }

    /// The leader and its address, if both are known.
    pub fn leader_hint(&self) -> Option<LeaderHint> {
        let leader = self.members.get(self.leader_id?)?;
        Some(LeaderHint { id: leader.id, address: leader.address.clone() })
    }
}

/// Everything about a node's state, for people who look for a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Where it stands.
    pub status: Status,
    /// On the leader, what it knows of the others.
    pub progress: Vec<PeerProgress>,
    /// How many proposals wait here for their reply.
    pub proposals_waiting: u64,
    /// How many reads wait here.
    pub reads_waiting: u64,
    /// How many bytes of entries the core holds in memory.
    pub log_cache_bytes: u64,
    /// The last index that is durable here.
    pub durable: LogIndex,
}

/// What a leader knows of another member (thesis, section 10.2.1; raft-rs `Progress`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerProgress {
    /// The member.
    pub id: NodeId,
    /// Up to here its log agrees and is durable.
    pub matched: LogIndex,
    /// The next entry to send.
    pub next: LogIndex,
    /// How it is sent to.
    pub state: ReplicationState,
    /// Whether it was heard of within the last election timeout.
    pub recently_active: bool,
}

/// How a leader sends to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicationState {
    /// Looking for the place where the logs agree.
    Probe,
    /// Streaming entries.
    Replicate,
    /// Sending a snapshot.
    Snapshot,
}

impl fmt::Display for ReplicationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ReplicationState::Probe => "probe",
            ReplicationState::Replicate => "replicate",
            ReplicationState::Snapshot => "snapshot",
        })
    }
}
