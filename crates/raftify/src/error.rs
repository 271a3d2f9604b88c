//! The errors of this crate: one enum per verb, and the errors of the core, which are re-exported here. Each
//! variant states the consequence for the data and the action to take.

use std::io;
use std::time::Duration;

use raftify_core::{ClusterId, LogPosition, NodeId};
use serde::{Deserialize, Serialize};

pub use crate::security::config::TlsError;

pub use raftify_core::config::ConfigError;
pub use raftify_core::error::{
    CampaignError, DemoteError, JoinError, LeaderHint, MembershipError, ProposeError, ReadError,
    SnapshotError, StartError, StopReason, TransferError, UnknownOutcome,
};
pub use raftify_core::members::{AddressProblem, MembershipRefusal, SenderRefusal};
pub use raftify_core::storage::StorageError;

/// Any error of the user's code.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a node made no backup, or did not complete one. The node and its snapshots are unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BackupRefused {
    /// The node could not take the snapshot that was to be copied.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// The newest snapshot was asked for, and the node has none: let it take one first.
    #[error("the node has not taken a snapshot yet: let it take one first")]
    NoSnapshot,
    /// As many backups as possible are under way, or the queue of the node is full. Try again later.
    #[error("the node is busy: {under_way} backups or requests are under way or waiting, try again later")]
    Busy {
        /// How many there are.
        under_way: u64,
    },
    /// The snapshot could not be read: it is damaged, or the disk has failed. Check the directory of the node
    /// (`raftify-cli check`), and back up another member.
    #[error("the snapshot cannot be read: {0}")]
    Unreadable(String),
    /// The receiver, or the writer of the caller, took no data for this long.
    #[error("the receiver of the backup took no data for {} s", after.as_secs())]
    TooSlow {
        /// The [`snapshot_chunk_timeout`](crate::Config::snapshot_chunk_timeout) of the node.
        after: Duration,
    },
    /// The node stops, or has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

/// Why [`RaftNode::backup`](crate::RaftNode::backup) made no backup. What was written is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The node did not provide it, or not all of it.
    #[error(transparent)]
    Refused(#[from] BackupRefused),
    /// The writer of the caller failed or panicked.
    #[error("the backup cannot be written: {0}")]
    Write(io::Error),
}

/// Why a node could not be set up. Nothing is written in any of these cases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The settings contradict each other; the error lists all problems at once.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is not of the form `host:port`.
    #[error(transparent)]
    Address(#[from] AddressProblem),
    /// The host name of the address is unknown. Check the name, or use an IP address of this machine.
    #[error("address {address} cannot be resolved: {source}")]
    Unresolved {
        /// The address, as given.
        address: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// Another program, or another node, listens on this address. Stop it, or give this node another port.
    #[error("address {address} is taken: another program listens there")]
    PortTaken {
        /// The address, as given.
        address: String,
    },
    /// This node cannot listen on the address: the address does not belong to this machine, or the port needs
    /// privileges.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address, as given.
        address: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The directory belongs to another node, or its content is inconsistent.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The stored data cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The state machine keeps its own state, and has applied entries that this node's log does not contain:
    /// the state belongs to another node, or the log has lost entries. In the first case, start with an
    /// empty state machine: it is restored from snapshot and log. In the second case, the writes that
    /// this node acknowledged are lost here: remove the node, and let it join again with an empty
    /// directory and an empty state machine.
    #[error(
        "the state machine has applied {applied}, but {reason}: it belongs to another log, or the log has lost entries"
    )]
    StateMachine {
        /// The position that the state machine reports.
        applied: LogPosition,
        /// The reason, from the log.
        reason: String,
    },
}

/// Why [`Raft::run`](crate::Raft::run) ended other than by [`quit`](crate::RaftNode::quit),
/// [`leave`](crate::RaftNode::leave) or a signal. In every case all callers have an answer and the storage is
/// closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// `run` was already called on this node or on a clone of it. The earlier call continues. To run a node
    /// again, bootstrap it again.
    #[error("this node was run already: bootstrap it again to run it again")]
    AlreadyRunning,
    /// The node could not continue. Acknowledged writes are safe; the reason says what to do before the next
    /// start.
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// The node could not begin its cluster. Nothing is written.
    #[error("the cluster could not begin: {0}")]
    Begin(#[from] BeginError),
    /// The gRPC server of this node ended. Acknowledged writes are safe; start the node again.
    #[error("the raft server ended: {0}")]
    Server(String),
}

/// Why a node did not begin a cluster with the given members. Nothing is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// These members cannot be the first members of a cluster.
    #[error(transparent)]
    Members(#[from] MembershipRefusal),
    /// A listed node has another list, or belongs to another cluster. Two clusters would begin. Give all
    /// nodes the same list, and restart the nodes whose list was wrong.
    #[error(
        "the node at {address} has other first members than this node, and all must be started with the same list: \
         {differences}"
    )]
    ConflictingMembers {
        /// The address of the listed node.
        address: String,
        /// The differences between the two lists, as text.
        differences: String,
    },
    /// Two entries of the list lead to one node, under two names of one address. List each node once.
    #[error(
        "{first} and {second} lead to the same node, node {id}: the list has one address twice, under two names"
    )]
    SameAddress {
        /// One entry.
        first: String,
        /// The other entry.
        second: String,
        /// The node that answers at both addresses.
        id: NodeId,
    },
    /// The cluster of this list has already begun, with another data directory of this node: that directory
    /// was wiped or replaced. Remove the node from the cluster, and let it join with an empty directory.
    #[error(
        "cluster {cluster_id} has begun already, as the node at {address} says, and knows node {id} with another data \
         directory: this one was wiped or replaced, and what it once acknowledged is gone. Remove node {id} from the \
         cluster, and let it join (Raft::join) with an empty directory"
    )]
    Wiped {
        /// This node.
        id: NodeId,
        /// The cluster.
        cluster_id: ClusterId,
        /// The address of the member that knows another directory.
        address: String,
    },
    /// The core rejected the start.
    #[error(transparent)]
    Start(JoinError),
}

/// Why a node did not start. If a directory was in use, it is closed again; unless the variant says
/// otherwise, it is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeStartError {
    /// The node could not be set up.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// `Restart`: the directory contains no node. It is new, or it was wiped.
    #[error(
        "the data directory holds no node to restart: it is empty, or it was wiped. To begin a new cluster use \
         Raft::begin; to let this node into a running cluster use Raft::join"
    )]
    NothingToRestart,
    /// The node of this directory has not been admitted to its cluster yet. Start it with `Join`, or use an
    /// empty directory.
    #[error(
        "the data directory belongs to node {node_id}, which was joining cluster {cluster_id} and is no member yet: \
         continue with Raft::join and a member of that cluster, or use an empty directory"
    )]
    StillJoining {
        /// The id, as stored.
        node_id: NodeId,
        /// The cluster, as stored.
        cluster_id: ClusterId,
    },
    /// `BeginWith`: no entry of the list has this node's address.
    #[error("no listed member has the address of this node, {own}; the list has {listed}")]
    NotListed {
        /// This node's `raft_addr`.
        own: String,
        /// All listed addresses.
        listed: String,
    },
    /// `BeginWith`: the directory belongs to another node, or to another cluster.
    #[error(
        "the data directory belongs to node {node_id} of cluster {cluster_id}, which does not fit the list: {differences}. \
         Use Raft::restart to continue it, or an empty directory to begin with the list"
    )]
    OtherList {
        /// The id, as stored.
        node_id: NodeId,
        /// The cluster, as stored.
        cluster_id: ClusterId,
        /// The differences between the directory and the list, as text.
        differences: String,
    },
    /// `Join`: the directory already belongs to a cluster, and the peers belong to another one.
    #[error(
        "this node belongs to cluster {own} already (node {node_id}; members {members}), and the peer {peer} to cluster \
         {other}. To continue in {own}, start it without that peer (memstore: remove --peer-addr); to join {other}, use \
         an empty data directory"
    )]
    AlreadyInCluster {
        /// The cluster of the directory.
        own: ClusterId,
        /// The id, as stored.
        node_id: NodeId,
        /// The members, as stored: ids and addresses.
        members: String,
        /// The address of a peer.
        peer: String,
        /// The cluster of the peer.
        other: ClusterId,
    },
    /// `Join`: no address of another node was given.
    #[error(
        "no peer to join was given: name at least one member of the cluster, as host:port, other than {own}"
    )]
    NoPeers {
        /// This node's address.
        own: String,
    },
    /// `Join`: two peers belong to two clusters. Name the peers of one.
    #[error(
        "the peers belong to two clusters: {first_peer} to cluster {first}, {second_peer} to cluster {second}. Name the \
         members of one of them"
    )]
    TwoClusters {
        /// The address of one peer.
        first_peer: String,
        /// The cluster of that peer.
        first: ClusterId,
        /// The address of the other peer.
        second_peer: String,
        /// The cluster of the other peer.
        second: ClusterId,
    },
    /// `Expect`: the number does not fit the list. It must be at least 1, at most the number of listed nodes,
    /// and more than half of it, or two clusters could begin.
    #[error(
        "{count} nodes are expected to begin a cluster, and {listed} are listed: expect at least 1, at most as many as are \
         listed, and more than half of them, or two clusters could begin"
    )]
    BadExpect {
        /// The number, as given.
        count: usize,
        /// How many different addresses are listed, including this node's.
        listed: usize,
    },
    /// `Expect`: another node expects another number. Start all nodes with the same number.
    #[error(
        "this node expects {own} nodes to begin a cluster, the one at {address} expects {other}: give all the same number"
    )]
    ExpectDiffers {
        /// The number of this node.
        own: usize,
        /// The address of the other node.
        address: String,
        /// The number of the other node.
        other: usize,
    },
    /// `Expect`: this node was about to begin one cluster when it ended, and the other nodes belong to
    /// another one. To join the other cluster, use an empty directory.
    #[error(
        "this node was about to begin cluster {pledged}, and the node at {address} belongs to cluster {other}: use an empty \
         data directory to join that one"
    )]
    PledgedToOther {
        /// The cluster that this node was about to begin, as stored.
        pledged: ClusterId,
        /// The address of the other node.
        address: String,
        /// The cluster of the other node.
        other: ClusterId,
    },
    /// `Join`: no peer belonged to a cluster with a leader in time. Try again, or increase the wait
    /// (`JoinOptions::wait_for_peers`).
    #[error("no peer let this node in within {} s: {reason}", .waited.as_secs())]
    NoCluster {
        /// How long the node waited.
        waited: Duration,
        /// The last answer of each peer.
        reason: String,
    },
    /// `Join`: the cluster knows this node's id with another directory, or has removed it. This directory is
    /// no longer usable: use an empty one.
    #[error("{0}. This data directory cannot be used for that cluster any more: join with an empty one")]
    DirectoryUnusable(MembershipRefusal),
    /// `Join`: the cluster was found, but this node did not become an active member. It may be a member
    /// already: a restart with the same directory continues.
    #[error(transparent)]
    Join(#[from] JoinClusterError),
    /// `BeginWith`: this node and the other nodes do not agree.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The node ran, and ended.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Why no ticket was issued. Nothing happened, except that an id may be reserved and remain unused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestIdError {
    /// One of the addresses is not of the form `host:port`.
    #[error(transparent)]
    Address(#[from] AddressProblem),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The peer cannot be reached. Try another member.
    #[error("no ticket from {address}: {reason}")]
    Unreachable {
        /// The address of the peer.
        address: String,
        /// The cause of the failure.
        reason: String,
    },
    /// The cluster reserved no id. The reason says whether a retry can help.
    #[error("the cluster gave no id: {0}")]
    Refused(#[from] MembershipError),
}

/// Why peers were not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeersError {
    /// These members cannot be the first members of a cluster. Nothing happened.
    #[error(transparent)]
    Members(#[from] MembershipRefusal),
    /// The list must include this node too, since every node of a static cluster gets the same list. Nothing
    /// happened.
    #[error(
        "node {id} is missing in the list of peers: every node is given the same list, with itself in it"
    )]
    NotListed {
        /// This node.
        id: NodeId,
    },
    /// This node listens on another address than the list says. Nothing happened.
    #[error("the list of peers says that node {id} listens on {listed}, but it was bootstrapped with {own}")]
    OtherAddress {
        /// This node.
        id: NodeId,
        /// The address in the list.
        listed: String,
        /// The address with which the node was bootstrapped.
        own: String,
    },
    /// The node runs already, and its cluster did not make the change. The reason states the outcome.
    #[error(transparent)]
    Change(#[from] MembershipError),
}

/// Why this node is not in the cluster yet. A second call with the same tickets is safe in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinClusterError {
    /// None of the tickets is for this node. Bootstrap the node under the id that the ticket reserves.
    #[error("no ticket is for node {id}: bootstrap the node under the id of its ticket")]
    NoTicket {
        /// This node.
        id: NodeId,
    },
    /// The tickets belong to different clusters.
    #[error("the tickets are of different clusters, {first} and {second}")]
    DifferentClusters {
        /// The cluster of one ticket.
        first: ClusterId,
        /// The cluster of another ticket.
        second: ClusterId,
    },
    /// The ticket has another address than the one on which this node listens. Ask for a ticket with the
    /// right address.
    #[error("the ticket says that node {id} listens on {ticket}, but it was bootstrapped with {own}")]
    OtherAddress {
        /// This node.
        id: NodeId,
        /// The address in the ticket.
        ticket: String,
        /// The address with which the node was bootstrapped.
        own: String,
    },
    /// The ticket has expired before the node was admitted. Ask for a new one, and use an empty directory.
    #[error("the ticket of node {id} expired {} s ago: ask for a new one", .since.as_secs())]
    TicketExpired {
        /// This node.
        id: NodeId,
        /// How long ago.
        since: Duration,
    },
    /// The directory belongs to another node or cluster. Nothing is written: use an empty directory.
    #[error(transparent)]
    Directory(#[from] JoinError),
    /// None of the members in the ticket can be reached.
    #[error("no member of the cluster could be asked: {0}")]
    Unreachable(String),
    /// The cluster did not admit this node; the reason says whether a retry can help.
    #[error("the cluster did not let this node in: {0}")]
    Refused(#[source] MembershipError),
    /// The cluster admitted this node, but then nothing progressed for too long: neither the log, nor a
    /// snapshot, nor the membership. The reason says which step is missing.
    #[error(
        "the cluster agreed, but this node at {own} has made no progress for {} s: {reason}", .waited.as_secs()
    )]
    NoProgress {
        /// How long there was no progress.
        waited: Duration,
        /// The address of this node.
        own: String,
        /// The step that is missing.
        reason: String,
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
