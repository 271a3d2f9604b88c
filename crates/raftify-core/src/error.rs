//! Why a request was not served: one enum per verb. A variant exists where the caller would act differently; its
//! documentation says which of the three it is: nothing happened, refused for good, or unknown.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::members::{MembershipRefusal, SenderRefusal};
use crate::storage::StorageError;
use crate::types::{ClusterId, Identity, LogIndex, LogPosition, NodeId, Term};

/// Why a node does not serve requests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StopReason {
    /// It was set up but does not run yet. Nothing happened.
    #[error("the node does not run yet: its `run` must be under way")]
    NotRunning,
    /// It was stopped, or is stopping.
    #[error("the node has stopped")]
    Stopped,
    /// It could not persist or read what it must. What was acknowledged is safe; the node may start again once the
    /// cause is gone.
    #[error("the node stopped because its storage failed: {0}")]
    Storage(String),
    /// The state machine failed or panicked on a committed entry, which is not skipped: the node will meet it again
    /// when it starts.
    #[error("the node stopped because its state machine failed: {0}")]
    StateMachine(String),
    /// It was removed from the cluster.
    #[error(
        "the node was removed from the cluster as of index {as_of}: to take part again it must join with a new ticket \
         and an empty directory"
    )]
    Removed {
        /// The membership in which it is missing.
        as_of: LogIndex,
    },
    /// The other nodes refuse it.
    #[error("the other nodes refuse this one: {0}")]
    Refused(SenderRefusal),
    /// At the address that the cluster has for this node, another process runs as this node: this one was started on a copy
    /// of its directory.
    #[error(
        "a process at {address} runs as this node already, on another copy of this directory: it goes on, and this one stops. \
         Remove the copy; to move the node, stop it at {address} first, and take its directory along"
    )]
    OriginalRuns {
        /// Where it answers.
        address: String,
    },
    /// A leader does not have what this node knows to be committed, which no leader lacks unless members have forgotten
    /// what they acknowledged. This node serves nothing any more: it would answer otherwise than the rest of the cluster.
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
        /// Up to where this node has what was committed.
        commit: LogIndex,
        /// Who leads without it.
        leader: NodeId,
        /// In which term.
        term: Term,
    },
    /// A defect of this program, or damage that passed all checks. The node stopped rather than go on.
    #[error("the node stopped because of an internal error: {0}")]
    Internal(String),
    /// It has not stopped, as far as is known, but did not answer for so long: its disk, its state machine or the machine
    /// holds it up. What was asked for may have taken effect, or may yet: look at the status before asking again.
    #[error(
        "the node did not answer within {} ms: something holds it up; whether the request took effect, or will, is not \
         known, look at the status before trying again", .0.as_millis()
    )]
    NoAnswer(Duration),
    /// It is stopping, and did not take the request. Nothing happened: ask another node.
    #[error("the node is stopping and did not take the request: nothing happened, ask another node")]
    Stopping,
}

impl StopReason {
    /// Whether it says by itself that a request had no effect, so that the same request may be made elsewhere.
    pub fn nothing_happened(&self) -> bool {
        matches!(self, StopReason::NotRunning | StopReason::Stopping)
    }
}

/// Where to try instead, for a request that reached a node that does not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// The leader as far as the refusing node knows.
    pub id: NodeId,
    /// Its address.
    pub address: String,
}

/// Why a proposal got no reply of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ProposeError {
    /// Nothing was written: no leader was known until the deadline.
    #[error("no leader is known: an election is under way, or this node cannot reach a majority")]
    NoLeader,
    /// Nothing was written: this node does not lead, and may not forward the request.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// Nothing was written: as much waits as may wait, in number or in bytes, to be taken up, committed or applied
    /// ([`Config`](crate::Config) has the limits). Try again a little later.
    #[error("as much waits as may, in number or in bytes ({waiting} proposals): try again a little later")]
    Busy {
        /// How many proposals wait for their answer. That may be none: entries of those who have given up waiting count
        /// until they are committed and applied.
        waiting: u64,
    },
    /// Nothing was written, nor ever will be: the entry is over the limit.
    #[error("the entry has {bytes} bytes, the limit is {limit} (entry_bytes_max)")]
    TooLarge {
        /// Of the encoded entry.
        bytes: u64,
        /// As configured.
        limit: u64,
    },
    /// Nothing was written: the entry could not be encoded.
    #[error("the entry could not be encoded: {0}")]
    Encode(String),
    /// Another entry took this one's place: it was not applied and never will be. Safe to propose again.
    #[error("the entry was not applied: a new leader put another one at index {index}")]
    NotApplied {
        /// Where it had stood.
        index: LogIndex,
    },
    /// The outcome is unknown: it may have been applied, or may yet be. Propose again only if twice does no harm.
    #[error("the outcome is unknown: {0}")]
    Unknown(UnknownOutcome),
    /// Nothing was written: this node has stopped, or is stopping, and did not take the entry. Safe to propose to another
    /// node. What it had taken already is [`Unknown`](Self::Unknown).
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// Nothing was written: a node on the way, or the one at which it was proposed, could not decode the entry. In the log
    /// it would have stopped every node. It was proposed by a program of another, perhaps newer, version, or its type
    /// encodes what it cannot decode.
    #[error("the entry cannot be decoded: {0}")]
    Undecodable(String),
}

impl ProposeError {
    /// Whether the entry was certainly not applied, and never will be, so that proposing it again, here or elsewhere, does
    /// not apply it twice.
    pub fn nothing_happened(&self) -> bool {
        match self {
            ProposeError::Unknown(_) | ProposeError::Stopped(StopReason::NoAnswer(_)) => false,
            ProposeError::NoLeader
            | ProposeError::NotLeader(_)
            | ProposeError::Busy { .. }
            | ProposeError::TooLarge { .. }
            | ProposeError::Encode(_)
            | ProposeError::NotApplied { .. }
            | ProposeError::Stopped(_)
            | ProposeError::Undecodable(_) => true,
        }
    }
}

/// Why the outcome of a request is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum UnknownOutcome {
    /// The deadline passed first.
    #[error("no answer within {} ms; it may still take effect", .0.as_millis())]
    TimedOut(Duration),
    /// A snapshot that covers the entry was installed, so that its reply was never computed here.
    #[error("a snapshot covered the entry before its reply was computed")]
    CoveredBySnapshot,
    /// The connection to the node that was asked, mostly the leader, broke after the request was sent.
    #[error("the connection to the node that was asked broke: {0}")]
    ConnectionLost(String),
    /// The reply arrived, but could not be decoded: the entry was applied.
    #[error("the entry was applied, but its reply could not be decoded: {0}")]
    BadReply(String),
    /// The node that had taken the request stopped before it saw the outcome.
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
    /// This node does not lead, and only the leader can confirm an index. Only other nodes and clients ever see this.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// Too many reads wait.
    #[error("{waiting} reads are waiting, which is as many as may")]
    Busy {
        /// How many wait.
        waiting: u64,
    },
    /// Leadership could not be confirmed, or this node did not catch up, in time.
    #[error("the read was not confirmed within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The connection to the leader failed, or, for a client, that to the node it asked.
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
    /// Nothing was written: no leader is known.
    #[error("no leader is known: an election is under way, or this node cannot reach a majority")]
    NoLeader,
    /// Nothing was written: this node does not lead, and may not forward the request.
    #[error("this node does not lead the cluster, node {} at {} does", .0.id, .0.address)]
    NotLeader(LeaderHint),
    /// Nothing was written: the change waited for its turn until its deadline, and another one is still not in force.
    #[error(
        "another membership change is not yet in force, and changes are made one at a time: try again when it is"
    )]
    ChangePending,
    /// Nothing was changed: the membership is another one than the request was made from. Look at the members, and decide
    /// again.
    #[error(
        "the membership has changed: the request was made from the one as of index {expected}, it is now as of {actual}"
    )]
    MembershipMoved {
        /// As the request says.
        expected: LogIndex,
        /// As it is.
        actual: LogIndex,
    },
    /// Nothing was changed: after the change, the voters that the leader has heard from within an election timeout would be
    /// no majority, and the cluster could not decide anything any more. Start the missing nodes, or remove them first; or
    /// make the request with [`force`](crate::members::MembershipRequest::force).
    #[error(
        "the change would leave {voters} voters of which {} missing: the rest is no majority, and the cluster would stop for \
         good. Start the missing nodes or remove them first, or force the change", missing_are(.missing)
    )]
    WouldLoseMajority {
        /// How many voters there would be.
        voters: usize,
        /// Those of them that the leader has not heard from within an election timeout.
        missing: Vec<NodeId>,
    },
    /// Nothing was changed: the node has not received enough of the log to vote. Try again when it has.
    #[error(
        "node {id} is not caught up: its log agrees up to index {matched}, the leader's ends at {last}; try again later"
    )]
    NotCaughtUp {
        /// The node.
        id: NodeId,
        /// Up to where its log agrees with the leader's.
        matched: LogIndex,
        /// Where the leader's log ends.
        last: LogIndex,
    },
    /// Nothing was changed: too few voters have reached the node at its advertised address. Can they connect to it?
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
    /// Nothing was written: too many requests wait.
    #[error("{waiting} requests are waiting, which is as many as may")]
    Busy {
        /// How many wait.
        waiting: u64,
    },
    /// Nothing was changed: the change makes no sense in the present membership.
    #[error(transparent)]
    Refused(#[from] MembershipRefusal),
    /// Nothing was changed: a leader cannot take its own vote away before another voter has taken over, and none did.
    #[error("this node leads and could not transfer leadership first: {0}")]
    TransferFailed(TransferError),
    /// Another entry took the change's place: it was not made. Safe to try again.
    #[error("the change was not made: a new leader put another entry at index {index}")]
    NotApplied {
        /// Where it had stood.
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
    let ids: Vec<String> = missing.iter().map(ToString::to_string).collect();
    match ids.as_slice() {
        [one] => format!("node {one} is"),
        _ => format!("nodes {} are", ids.join(", ")),
    }
}

/// Why leadership was not transferred. The cluster is unharmed in every case.
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
    /// The target was not heard of lately.
    #[error("node {id} was not heard of within the last election timeout")]
    Unreachable {
        /// The target.
        id: NodeId,
    },
    /// There is no voter that could take over.
    #[error("no other voter is alive that could take over")]
    NoSuccessor,
    /// Another transfer is under way.
    #[error("leadership is being transferred to node {to} already")]
    TransferPending {
        /// Its target.
        to: NodeId,
    },
    /// The target did not take over in time; the old leader leads on, or an election is under way.
    #[error("node {to} did not take over within an election timeout")]
    TimedOut {
        /// The target.
        to: NodeId,
    },
    /// The connection to the leader failed, or, for a client, that to the node it asked; the transfer may be under way.
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
    /// It leads already.
    #[error("this node leads already")]
    AlreadyLeader,
    /// It is a learner, or no member.
    #[error("this node is not a voter, so it cannot lead")]
    NotAVoter,
    /// It must first write or apply what it has received. Try again a moment later.
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
    /// It does not lead in that term: nothing to do.
    #[error("this node does not lead in term {asked}; it is a {role} in term {term}")]
    NotLeaderInTerm {
        /// As asked.
        asked: Term,
        /// As it is.
        term: Term,
        /// What it is, in words.
        role: String,
    },
    /// The successor did not take over; this node leads on.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why no snapshot was taken. The old one stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Nothing has been applied yet.
    #[error("nothing has been applied yet, so there is nothing to take a snapshot of")]
    NothingApplied,
    /// The state machine or the disk failed.
    #[error("the snapshot could not be taken: {0}")]
    Failed(String),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a node did not begin or enter a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JoinError {
    /// Its directory belongs to somebody else.
    #[error("this directory belongs to {stored}, it cannot be used for {asked}")]
    OtherIdentity {
        /// As stored.
        stored: Identity,
        /// As asked for.
        asked: Identity,
    },
    /// It has a membership already.
    #[error("this node is a member of cluster {cluster_id} already")]
    AlreadyMember {
        /// Of which.
        cluster_id: ClusterId,
    },
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a snapshot from another node was not installed. The old state stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum InstallError {
    /// Who sent it is not believed.
    #[error(transparent)]
    Sender(#[from] SenderRefusal),
    /// The sender no longer leads.
    #[error("the snapshot is of term {term}, this node has seen term {newer}")]
    StaleLeader {
        /// Of the sender.
        term: Term,
        /// Of this node.
        newer: Term,
    },
    /// It makes no sense here.
    #[error("the snapshot at {position} cannot be installed: {reason}")]
    Refused {
        /// Which one.
        position: LogPosition,
        /// Why.
        reason: String,
    },
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why a core cannot start on what its storage holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The directory belongs to another node.
    #[error(
        "this directory belongs to {stored}, but the node was started with id {asked}: use the directory of node {asked}, \
         or start it with id {}", stored.node_id
    )]
    OtherNode {
        /// As stored.
        stored: Identity,
        /// As asked for.
        asked: NodeId,
    },
    /// What is stored contradicts itself.
    #[error("the stored state contradicts itself: {reason}")]
    Inconsistent {
        /// How.
        reason: String,
    },
    /// It could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
