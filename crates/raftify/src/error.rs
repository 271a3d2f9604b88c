//! Why something did not work: one enum per verb of this crate, beside those of the core, which are passed on here.
//! Each variant says what it means for the data and what to do.

use std::io;
use std::time::Duration;

use raftify_core::{ClusterId, LogPosition, NodeId};

pub use raftify_core::config::ConfigError;
pub use raftify_core::error::{
    CampaignError, DemoteError, JoinError, LeaderHint, MembershipError, ProposeError, ReadError,
    SnapshotError, StartError, StopReason, TransferError, UnknownOutcome,
};
pub use raftify_core::members::{AddressProblem, MembershipRefusal, SenderRefusal};
pub use raftify_core::storage::StorageError;

/// Any error of the user's code.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a node could not be set up. Nothing was written in any of these cases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The settings contradict themselves; all problems are named at once.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is not of the form `host:port`.
    #[error(transparent)]
    Address(#[from] AddressProblem),
    /// The host of the address is not known. Check the name, or give an IP address of this machine.
    #[error("address {address} cannot be resolved: {source}")]
    Unresolved {
        /// As given.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Another program, or another node, listens there. Stop it, or give this node another port.
    #[error("address {address} is taken: another program listens there")]
    PortTaken {
        /// As given.
        address: String,
    },
    /// The address cannot be listened on: it is none of this machine, or the port needs privileges.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The directory belongs to another node, or what it holds contradicts itself.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What is stored could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The state machine keeps its state itself, and has applied what this node's log does not hold: it is that of
    /// another node, or the log has lost entries. In the first case start with an empty state machine: it is restored
    /// from snapshot and log. In the second, what this node acknowledged is gone: remove it, and let it join again with
    /// an empty directory and an empty state machine.
    #[error(
        "the state machine has applied {applied}, but {reason}: it belongs to another log, or the log has lost entries"
    )]
    StateMachine {
        /// What it says.
        applied: LogPosition,
        /// What the log says.
        reason: String,
    },
}

/// Why [`Raft::run`](crate::Raft::run) ended other than by [`quit`](crate::RaftNode::quit),
/// [`leave`](crate::RaftNode::leave) or a signal. In every case all callers were answered and the storage is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// `run` was called before on this node or on a clone of it. The one that runs is not disturbed. To run a node
    /// again, bootstrap it again.
    #[error("this node was run already: bootstrap it again to run it again")]
    AlreadyRunning,
    /// The node could not go on. What was acknowledged is safe; the reason says what to do before the next start.
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// The node could not begin its cluster: see [`JoinError`]. Nothing was written.
    #[error("the cluster could not be started: {0}")]
    Start(#[source] JoinError),
    /// The server that other nodes talk to ended. What was acknowledged is safe; start the node again.
    #[error("the raft server ended: {0}")]
    Server(String),
}

/// Why no ticket was given. Nothing happened but, at worst, that an id is reserved which nobody will use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestIdError {
    /// One of the addresses is not of the form `host:port`.
    #[error(transparent)]
    Address(#[from] AddressProblem),
    /// The peer cannot be reached. Try another member.
    #[error("no ticket from {address}: {reason}")]
    Unreachable {
        /// Of the peer.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The cluster gave no id. The reason says whether it is worth trying again.
    #[error("the cluster gave no id: {0}")]
    Refused(#[from] MembershipError),
}

/// Why peers were not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeersError {
    /// These cannot be the first members of a cluster. Nothing happened.
    #[error(transparent)]
    Members(#[from] MembershipRefusal),
    /// The list must name this node too, since every node of a static cluster is given the same list. Nothing
    /// happened.
    #[error(
        "node {id} is missing in the list of peers: every node is given the same list, with itself in it"
    )]
    NotListed {
        /// This node.
        id: NodeId,
    },
    /// This node listens elsewhere than the list tells the others. Nothing happened.
    #[error("the list of peers says that node {id} listens on {listed}, but it was bootstrapped with {own}")]
    OtherAddress {
        /// This node.
        id: NodeId,
        /// In the list.
        listed: String,
        /// As bootstrapped.
        own: String,
    },
    /// The node runs already, and its cluster did not make the change. The reason says what became of it.
    #[error(transparent)]
    Change(#[from] MembershipError),
}

/// Why this node is not in the cluster yet. Calling again with the same tickets is safe in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinClusterError {
    /// None of the tickets was made out for this node. Bootstrap the node under the id that the ticket reserves.
    #[error("no ticket is for node {id}: bootstrap the node under the id of its ticket")]
    NoTicket {
        /// This node.
        id: NodeId,
    },
    /// The tickets are of different clusters.
    #[error("the tickets are of different clusters, {first} and {second}")]
    DifferentClusters {
        /// Of one ticket.
        first: ClusterId,
        /// Of another.
        second: ClusterId,
    },
    /// The others would look for this node where it does not listen. Ask for a ticket with the right address.
    #[error("the ticket says that node {id} listens on {ticket}, but it was bootstrapped with {own}")]
    OtherAddress {
        /// This node.
        id: NodeId,
        /// In the ticket.
        ticket: String,
        /// As bootstrapped.
        own: String,
    },
    /// The directory belongs to another node or cluster. Nothing was written: use an empty directory.
    #[error(transparent)]
    Directory(#[from] JoinError),
    /// Nobody that the ticket names could be asked.
    #[error("no member of the cluster could be asked: {0}")]
    Unreachable(String),
    /// The cluster did not let this node in; the reason says whether trying again can help.
    #[error("the cluster did not let this node in: {0}")]
    Refused(#[source] MembershipError),
    /// The cluster agreed, but this node has not heard from it yet. Can the others reach this node's address?
    #[error("the cluster agreed, but within {} ms this node has not heard from it: can the others reach {own}?", .waited.as_millis())]
    NotHeardOf {
        /// How long this node waited.
        waited: Duration,
        /// Its address.
        own: String,
    },
    /// This node has stopped, or does not run: [`Raft::run`](crate::Raft::run) must be under way.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why [`RaftNode::wait_for_leader`](crate::RaftNode::wait_for_leader) gave up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// No leader was known in time.
    #[error("no leader was known within {} ms: too few nodes can reach each other", .0.as_millis())]
    NoLeader(Duration),
    /// This node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}
