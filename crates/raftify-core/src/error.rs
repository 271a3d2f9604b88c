//! Why a request was not served: one enum per verb. A variant exists where the caller would act differently;
//! its documentation says whether the request had no effect, was refused permanently, or has an unknown
//! outcome.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::members::{MembershipRefusal, SenderRefusal};
use crate::storage::StorageError;
use crate::types::{ClusterId, Identity, LogIndex, LogPosition, NodeId, Term};

/// Why a node does not serve requests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StopReason {
    /// The node was set up but does not run yet. The request had no effect.
    #[error("the node does not run yet: its `run` must be under way")]
    NotRunning,
    /// The node was stopped, or is stopping.
    #[error("the node has stopped")]
    Stopped,
    /// The node could not persist or read its data. Acknowledged writes are safe; the node may start again
    /// once the cause is removed.
    #[error("the node stopped because its storage failed: {0}")]
    Storage(String),
    /// The state machine failed or panicked on a committed entry. The node does not skip the entry: it
    /// applies it again when it starts.
    #[error("the node stopped because its state machine failed: {0}")]
    StateMachine(String),
    /// The node was removed from the cluster.
    #[error(
        "the node was removed from the cluster as of index {as_of}: to take part again it must join with a new ticket \
         and an empty directory"
    )]
    Removed {
        /// The membership that no longer contains the node.
        as_of: LogIndex,
    },
    /// The other nodes refuse this node.
    #[error("the other nodes refuse this one: {0}")]
    Refused(SenderRefusal),
    /// At the address that the cluster has for this node, another process runs as this node: this process was
    /// started on a copy of its directory.
    #[error(
        "a process at {address} already runs as this node, on another copy of this directory: it continues, and this process stops. \
         Remove the copy; to move the node, stop it at {address} first, and take its directory along"
    )]
    OriginalRuns {
        /// The address at which the other process answers.
        address: String,
    },
    /// A leader lacks an entry that this node knows to be committed. This happens only if members have lost
    /// acknowledged writes. This node stops serving, because its answers would differ from those of the rest
    /// of the cluster.
    #[error(
        "acknowledged writes were lost: node {leader} leads in term {term} without the entry that was committed at index \
         {missing}. This node, node {node}, stops: it still has all that was committed up to index {commit}. Keep a copy of \
         its directory, and read \"Acknowledged writes were lost\" in docs/operations.md before anything is removed"
    )]
    WritesLost {
        /// This node.
        node: NodeId,
        /// The first index at which the leader has another entry, as far as it is known.
        missing: LogIndex,
        /// The commit index of this node.
        commit: LogIndex,
        /// The leader that lacks the entry.
        leader: NodeId,
        /// The term of that leader.
        term: Term,
    },
    /// A bug in this program, or damage that passed all checks. The node stopped instead of continuing.
    #[error("the node stopped because of an internal error: {0}")]
    Internal(String),
    /// The node has not stopped, as far as is known, but did not answer for this long: its disk, its state
    /// machine or the machine delays it. The request may have taken effect, or may still do so: look at
    /// the status before you send it again.
    #[error(
        "the node did not answer within {} ms: something holds it up; whether the request took effect, or will, is not \
         known, look at the status before trying again", .0.as_millis()
    )]
    NoAnswer(Duration),
    /// The node is stopping, and did not accept the request. The request had no effect: ask another node.
    #[error("the node is stopping and did not take the request: nothing happened, ask another node")]
    Stopping,
}

impl StopReason {
    /// Whether this reason alone says that a request had no effect, so that the caller may send the same
    /// request to another node.
    pub fn nothing_happened(&self) -> bool {
        matches!(self, StopReason::NotRunning | StopReason::Stopping)
    }
}

/// The node to try instead, for a request that reached a node that does not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// The leader as far as the refusing node knows.
    pub id: NodeId,
    /// Its address.
    pub address: String,
}

/// Why a proposal got no reply from the state machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ProposeError {
    /// The proposal had no effect: no leader was known until the deadline.
    #[error("no leader is known: an election is under way, or this node cannot reach a majority")]
    NoLeader,
    /// The proposal had no effect: this node does not lead, and may not forward the request.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// The proposal had no effect: the limit of proposals that wait to be accepted, committed or applied is
    /// reached, in number or in bytes ([`Config`](crate::Config) has the limits). Try again a little
    /// later.
    #[error("as much waits as may, in number or in bytes ({waiting} proposals): try again a little later")]
    Busy {
        /// How many proposals wait for their answer. It may be zero: entries whose callers no longer wait
        /// count until they are committed and applied.
        waiting: u64,
    },
    /// The proposal had no effect, and never will: the entry is over the size limit.
    #[error("the entry has {bytes} bytes, the limit is {limit} (entry_bytes_max)")]
    TooLarge {
        /// The size of the encoded entry.
        bytes: u64,
        /// The configured limit.
        limit: u64,
    },
    /// The proposal had no effect: the entry could not be encoded.
    #[error("the entry could not be encoded: {0}")]
    Encode(String),
    /// Another entry was committed at the index of this one: this entry was not applied and never will be. It
    /// is safe to propose it again.
    #[error("the entry was not applied: a new leader put another one at index {index}")]
    NotApplied {
        /// The index of the entry.
        index: LogIndex,
    },
    /// The outcome is unknown: the entry may have been applied, or may still be. Propose it again only if
    /// applying it twice does no harm.
    #[error("the outcome is unknown: {0}")]
    Unknown(UnknownOutcome),
    /// The proposal had no effect: this node has stopped, or is stopping, and did not accept the entry. It is
    /// safe to propose it to another node. An entry that the node had already accepted is reported as
    /// [`Unknown`](Self::Unknown).
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// The proposal had no effect: a node on the way, or the node at which it was proposed, could not decode
    /// the entry. If it were in the log, it would stop every node. A program of another, perhaps newer,
    /// version proposed it, or its type encodes values that it cannot decode.
    #[error("the entry cannot be decoded: {0}")]
    Undecodable(String),
    /// The proposal had no effect: the disk of the leader, or those of so many voters that the others are no
    /// majority, have less free space than [`storage_reserve_bytes`](crate::Config::storage_reserve_bytes).
    /// Reads and membership changes are served. Proposals are taken again as soon as there is space.
    #[error(
        "{} full: less free space than storage_reserve_bytes. The proposal had no effect; reads are served. Make room on \
         the disk, or replace the node by one that has room", disks_are(.full)
    )]
    StorageFull {
        /// The voters whose disks are full.
        full: Vec<NodeId>,
    },
}

impl ProposeError {
    /// Whether the entry was certainly not applied, and never will be, so that proposing it again, to this
    /// node or another, does not apply it twice.
    pub fn nothing_happened(&self) -> bool {
        match self {
            ProposeError::Unknown(_) | ProposeError::Stopped(StopReason::NoAnswer(_)) => false,
            ProposeError::NoLeader
            | ProposeError::NotLeader(_)
            | ProposeError::Busy { .. }
            | ProposeError::TooLarge { .. }
            | ProposeError::Encode(_)
            | ProposeError::StorageFull { .. }
            | ProposeError::NotApplied { .. }
            | ProposeError::Stopped(_)
            | ProposeError::Undecodable(_) => true,
        }
    }
}

/// Why the outcome of a request is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum UnknownOutcome {
    /// The deadline passed first.
    #[error("no answer within {} ms; it may still take effect", .0.as_millis())]
    TimedOut(Duration),
    /// The node installed a snapshot that covers the entry, so that it never computed the reply.
    #[error("a snapshot covered the entry before its reply was computed")]
    CoveredBySnapshot,
    /// The connection to the node that was asked, usually the leader, broke after the request was sent.
    #[error("the connection to the node that was asked broke: {0}")]
    ConnectionLost(String),
    /// The reply arrived, but could not be decoded: the entry was applied.
    #[error("the entry was applied, but its reply could not be decoded: {0}")]
    BadReply(String),
    /// The node that had accepted the request stopped before it learned the outcome.
    #[error("the node that had taken the request stopped before its outcome was known: {0}")]
    NodeStopped(StopReason),
}

/// Why a linearizable read cannot be served now. Reads change nothing: trying again is always safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader is known.
    #[error("no leader is known: an election is under way, or this node cannot reach a majority")]
    NoLeader,
    /// This node does not lead, and only the leader can confirm an index. Only other nodes and clients see
    /// this error.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// The limit of waiting reads is reached.
    #[error("the read queue is full: {waiting} reads are waiting")]
    Busy {
        /// How many reads wait.
        waiting: u64,
    },
    /// The leader could not confirm its leadership, or this node did not catch up, in time.
    #[error("the read was not confirmed within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The connection to the leader failed, or, for a client, the connection to the node that it asked.
    #[error("the connection to the node that was asked failed: {0}")]
    ConnectionLost(String),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a membership request was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MembershipError {
    /// The request had no effect: no leader is known.
    #[error("no leader is known: an election is under way, or this node cannot reach a majority")]
    NoLeader,
    /// The request had no effect: this node does not lead, and may not forward the request.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// The request had no effect: the change waited for its turn until its deadline, and another change is
    /// still not in force.
    #[error(
        "another membership change is not yet in force, and changes are made one at a time: try again when it is"
    )]
    ChangePending,
    /// The request had no effect: the membership differs from the one that the request expects. Look at the
    /// members, and decide again.
    #[error(
        "the membership has changed: the request was made from the one as of index {expected}, it is now as of {actual}"
    )]
    MembershipMoved {
        /// The index that the request expects.
        expected: LogIndex,
        /// The index of the present membership.
        actual: LogIndex,
    },
    /// The request had no effect: after the change, the voters from which the leader has received messages
    /// within an election timeout would be no majority, and the cluster could not commit anything any
    /// more. Start the missing nodes, or remove them first; or make the request with
    /// [`force`](crate::members::MembershipRequest::force).
    #[error(
        "the change would leave {voters} voters of which {} missing: the others are no majority, and the cluster would stop for \
         good. Start the missing nodes or remove them first, or force the change", missing_are(.missing)
    )]
    WouldLoseMajority {
        /// How many voters there would be.
        voters: usize,
        /// The voters from which the leader has received no message within an election timeout.
        missing: Vec<NodeId>,
    },
    /// The request had no effect: the node has not received enough of the log to vote. Try again when it has.
    #[error(
        "node {id} is not caught up: its log agrees up to index {matched}, the leader's ends at {last}; try again later"
    )]
    NotCaughtUp {
        /// The node.
        id: NodeId,
        /// The last index up to which its log agrees with the leader's.
        matched: LogIndex,
        /// The last index of the leader's log.
        last: LogIndex,
    },
    /// The request had no effect: too few voters have reached the node at its advertised address. Check
    /// whether they can connect to it.
    #[error(
        "node {id} was reached at its advertised address by {} of {voters} voters, which is no majority: check its address, \
         and what stands between", .by.len()
    )]
    NotReached {
        /// The node.
        id: NodeId,
        /// The voters that have reached it.
        by: Vec<NodeId>,
        /// How many voters there are.
        voters: usize,
    },
    /// The request had no effect: the limit of waiting requests is reached.
    #[error("the request queue is full: {waiting} requests are waiting")]
    Busy {
        /// How many requests wait.
        waiting: u64,
    },
    /// The request had no effect: the present membership does not allow the change.
    #[error(transparent)]
    Refused(#[from] MembershipRefusal),
    /// The request had no effect: a leader cannot remove its own vote before another voter has taken over,
    /// and none did.
    #[error("this node leads and could not transfer leadership first: {0}")]
    TransferFailed(TransferError),
    /// Another entry was committed at the index of the change: the change was not made. It is safe to try
    /// again.
    #[error("the change was not made: a new leader put another entry at index {index}")]
    NotApplied {
        /// The index of the change.
        index: LogIndex,
    },
    /// The outcome is unknown: look at the members before trying again.
    #[error("the outcome is unknown: {0}")]
    Unknown(UnknownOutcome),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

fn missing_are(missing: &[NodeId]) -> String {
    match missing {
        [one] => format!("node {one} is"),
        _ => format!("nodes {} are", listed(missing)),
    }
}

fn disks_are(full: &[NodeId]) -> String {
    match full {
        [one] => format!("the disk of node {one} is"),
        _ => format!("the disks of nodes {} are", listed(full)),
    }
}

fn listed(ids: &[NodeId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why leadership was not transferred. The cluster works normally in every case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TransferError {
    /// No leader is known.
    #[error("no leader is known: an election is under way, or this node cannot reach a majority")]
    NoLeader,
    /// This node does not lead, and may not forward the request.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// The target is no voter.
    #[error("node {id} is not a voter, so it cannot lead")]
    NotAVoter {
        /// The target.
        id: NodeId,
    },
    /// The leader received no message from the target within the last election timeout.
    #[error("node {id} sent nothing within the last election timeout")]
    Unreachable {
        /// The target.
        id: NodeId,
    },
    /// There is no other voter that is alive and could take over.
    #[error("no other voter is alive that could take over")]
    NoSuccessor,
    /// Another transfer is in progress.
    #[error("leadership is being transferred to node {to} already")]
    TransferPending {
        /// Its target.
        to: NodeId,
    },
    /// The target did not take over in time; the old leader continues to lead, or an election is in progress.
    #[error("node {to} did not take over within an election timeout")]
    TimedOut {
        /// The target.
        to: NodeId,
    },
    /// The connection to the leader failed, or, for a client, the connection to the node that it asked; the
    /// transfer may be in progress.
    #[error("the connection to the node that was asked failed: {0}")]
    ConnectionLost(String),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why this node does not stand for election.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CampaignError {
    /// This node leads already.
    #[error("this node leads already")]
    AlreadyLeader,
    /// This node is a learner, or no member.
    #[error("this node is not a voter, so it cannot lead")]
    NotAVoter,
    /// This node must first write or apply the entries that it has received. Try again a moment later.
    #[error("this node must first write or apply what it has received")]
    NotReady,
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why this node did not step down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DemoteError {
    /// This node does not lead in that term: there is nothing to do.
    #[error("this node does not lead in term {asked}; it is a {role} in term {term}")]
    NotLeaderInTerm {
        /// The term in the request.
        asked: Term,
        /// The term of this node.
        term: Term,
        /// The role of this node, in words.
        role: String,
    },
    /// The successor did not take over; this node continues to lead.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why the node took no snapshot. The old one stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The node has not applied any entry yet.
    #[error("nothing has been applied yet, so there is nothing to take a snapshot of")]
    NothingApplied,
    /// The state machine or the disk failed.
    #[error("the snapshot could not be taken: {0}")]
    Failed(String),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a node did not start or join a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JoinError {
    /// The directory belongs to another node or cluster.
    #[error("this directory belongs to {stored}, it cannot be used for {asked}")]
    OtherIdentity {
        /// The stored identity.
        stored: Identity,
        /// The requested identity.
        asked: Identity,
    },
    /// The node has a membership already.
    #[error("this node is a member of cluster {cluster_id} already")]
    AlreadyMember {
        /// The cluster that it belongs to.
        cluster_id: ClusterId,
    },
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a node did not install a snapshot from another node. The old state stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum InstallError {
    /// This node refuses the sender.
    #[error(transparent)]
    Sender(#[from] SenderRefusal),
    /// The sender no longer leads.
    #[error("the snapshot is of term {term}, this node has seen term {newer}")]
    StaleLeader {
        /// The term of the sender.
        term: Term,
        /// The term of this node.
        newer: Term,
    },
    /// The snapshot does not fit the state of this node.
    #[error("the snapshot at {position} cannot be installed: {reason}")]
    Refused {
        /// The position of the snapshot.
        position: LogPosition,
        /// The reason.
        reason: String,
    },
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a core cannot start from the contents of its storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The directory belongs to another node.
    #[error(
        "this directory belongs to {stored}, but the node was started with id {asked}: use the directory of node {asked}, \
         or start it with id {}", stored.node_id
    )]
    OtherNode {
        /// The stored identity.
        stored: Identity,
        /// The requested node id.
        asked: NodeId,
    },
    /// The stored state contradicts itself.
    #[error("the stored state contradicts itself: {reason}")]
    Inconsistent {
        /// The contradiction.
        reason: String,
    },
    /// The stored state could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
