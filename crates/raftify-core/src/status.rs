//! The public status of a node, as plain data.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::LeaderHint;
use crate::members::Members;
use crate::types::{Identity, LogIndex, LogPosition, NodeId, Term};

/// The role of a node in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The node follows a leader, or waits for one.
    #[default]
    Follower,
    /// The node asks whether it would be elected (pre-vote).
    PreCandidate,
    /// The node asks for votes.
    Candidate,
    /// The node leads.
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

/// The status of a node. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node_id: NodeId,
    /// The identity of its data directory; `None` while the node waits for a cluster.
    pub identity: Option<Identity>,
    /// The role of the node.
    pub role: Role,
    /// The term of the node.
    pub term: Term,
    /// The leader of that term, if known. Another node may have been elected since.
    pub leader_id: Option<NodeId>,
    /// The last index known to be committed.
    pub commit: LogIndex,
    /// The last index that the state machine has applied.
    pub applied: LogIndex,
    /// The last entry of the log, durable or not.
    pub last: LogPosition,
    /// The position before the first entry of the log.
    pub truncated: LogPosition,
    /// The newest snapshot, if there is one.
    pub snapshot: Option<LogPosition>,
    /// The members of the cluster, as far as applied here.
    pub members: Arc<Members>,
}

impl Status {
    /// The status of a node that holds nothing: no identity, no log, no members.
    pub fn initial(node_id: NodeId) -> Status {
        Status {
            node_id,
            identity: None,
            role: Role::Follower,
            term: Term::ZERO,
            leader_id: None,
            commit: LogIndex::ZERO,
            applied: LogIndex::ZERO,
            last: LogPosition::ZERO,
            truncated: LogPosition::ZERO,
            snapshot: None,
            members: Arc::new(Members::none()),
        }
    }

    /// Whether this node leads, as far as it knows: there may be a newer leader that it does not know of.
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

/// How many elections a node has started since its process started, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elections {
    /// No message of a leader arrived within the election timeout. With pre-vote, this counts the questions
    /// of the pre-vote as well, which cost no leader its term.
    pub timeout: u64,
    /// The leader transferred its leadership to this node.
    pub transfer: u64,
    /// The user of this node asked for an election, or the node is the only voter.
    pub requested: u64,
}

/// Full diagnostics of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The status of the node.
    pub status: Status,
    /// On the leader, the replication progress of the other members.
    pub progress: Vec<PeerProgress>,
    /// How many proposals wait on this node for their reply.
    pub proposals_waiting: u64,
    /// How many reads wait on this node.
    pub reads_waiting: u64,
    /// How many bytes of entries the core holds in memory.
    pub log_cache_bytes: u64,
    /// The last index that is durable on this node.
    pub durable: LogIndex,
    /// The file system of the data directory, as measured at most some seconds ago; `None` if it is not
    /// known.
    pub disk: Option<DiskSpace>,
    /// The members whose disks have less free space than their
    /// [reserve](crate::Config::storage_reserve_bytes), as far as this node knows.
    pub storage_full: Vec<NodeId>,
}

/// The space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    /// Free space for the process, in bytes: without the reserve of the superuser.
    pub free_bytes: u64,
    /// The size of the file system, in bytes.
    pub size_bytes: u64,
}

/// The replication progress of another member, as the leader knows it (thesis, section 10.2.1; raft-rs
/// `Progress`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerProgress {
    /// The member.
    pub id: NodeId,
    /// The last index up to which its log agrees with the leader's and is durable.
    pub matched: LogIndex,
    /// The next entry to send.
    pub next: LogIndex,
    /// How the leader sends to it.
    pub state: ReplicationState,
    /// Whether the leader received a message from it within the last election timeout.
    pub recently_active: bool,
    /// How long ago this node received a message from it, in milliseconds, with the resolution of
    /// [`tick_interval`](crate::Config::tick_interval); `None`: never since this node was started.
    pub heard_millis: Option<u64>,
}

/// How a leader sends to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicationState {
    /// Looking for the index at which the logs agree.
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
