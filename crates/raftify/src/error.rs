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
    /// The node could not begin its cluster. Nothing was written.
    #[error("the cluster could not begin: {0}")]
    Begin(#[from] BeginError),
    /// The server that other nodes talk to ended. What was acknowledged is safe; start the node again.
    #[error("the raft server ended: {0}")]
    Server(String),
}

/// Why a node did not begin a cluster with the members that it was given. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// These cannot be the first members of a cluster.
    #[error(transparent)]
    Members(#[from] MembershipRefusal),
    /// A listed node was given another list, or belongs to another cluster. Two clusters would begin. Give all nodes the
    /// same list, and start those again whose list was wrong.
    #[error(
        "the node at {address} has other first members than this node, and all must be started with the same list: \
         {differences}"
    )]
    ConflictingMembers {
        /// Of the listed node.
        address: String,
        /// In words: what is listed here, and what there.
        differences: String,
    },
    /// Two entries of the list lead to one node, under two names of one address. Each node has one entry.
    #[error(
        "{first} and {second} lead to the same node, node {id}: the list has one address twice, under two names"
    )]
    SameAddress {
        /// One entry.
        first: String,
        /// The other one.
        second: String,
        /// The node that answers at both.
        id: NodeId,
    },
    /// The cluster of this list has begun before, with another data directory of this node: this one was wiped or
    /// replaced. Remove the node from the cluster, and let it join with an empty directory.
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
        /// The member that knows another directory.
        address: String,
    },
    /// The core did not begin it.
    #[error(transparent)]
    Start(JoinError),
}

/// Why a node did not start. If a directory was in use, it is closed again, and unless the variant says otherwise nothing
/// in it has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeStartError {
    /// The node could not be set up.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// `Restart`: the directory holds no node. It is a new one, or it was wiped.
    #[error(
        "the data directory holds no node to restart: it is empty, or it was wiped. To begin a new cluster use \
         Raft::begin; to let this node into a running cluster use Raft::join"
    )]
    NothingToRestart,
    /// The directory is that of a node that has not been let into its cluster yet. Start it with `Join`, or use an empty
    /// directory.
    #[error(
        "the data directory belongs to node {node_id}, which was joining cluster {cluster_id} and is no member yet: \
         continue with Raft::join and a member of that cluster, or use an empty directory"
    )]
    StillJoining {
        /// As stored.
        node_id: NodeId,
        /// As stored.
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
    /// `BeginWith`: the directory is that of another node, or of another cluster.
    #[error(
        "the data directory belongs to node {node_id} of cluster {cluster_id}, which does not fit the list: {differences}. \
         Use Raft::restart to continue it, or an empty directory to begin with the list"
    )]
    OtherList {
        /// As stored.
        node_id: NodeId,
        /// As stored.
        cluster_id: ClusterId,
        /// In words: what is stored here, and what the list has there.
        differences: String,
    },
    /// `Join`: the directory belongs to a cluster already, and the peers to another one.
    #[error(
        "this node belongs to cluster {own} already (node {node_id}; members {members}), and the peer {peer} to cluster \
         {other}. To continue in {own}, start it without that peer (memstore: remove --peer-addr); to join {other}, use \
         an empty data directory"
    )]
    AlreadyInCluster {
        /// The cluster of the directory.
        own: ClusterId,
        /// As stored.
        node_id: NodeId,
        /// As stored: ids and addresses.
        members: String,
        /// The address of a peer.
        peer: String,
        /// Its cluster.
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
        /// Its cluster.
        first: ClusterId,
        /// The address of the other.
        second_peer: String,
        /// Its cluster.
        second: ClusterId,
    },
    /// `Expect`: the number does not fit the list. It must be at least 1, at most the number of listed nodes, and more than
    /// half of it, or two clusters could begin.
    #[error(
        "{count} nodes are expected to begin a cluster, and {listed} are listed: expect at least 1, at most as many as are \
         listed, and more than half of them, or two clusters could begin"
    )]
    BadExpect {
        /// As given.
        count: usize,
        /// How many different addresses are listed, this node's among them.
        listed: usize,
    },
    /// `Expect`: another node expects another number. Start all of them with the same.
    #[error(
        "this node expects {own} nodes to begin a cluster, the one at {address} expects {other}: give all the same number"
    )]
    ExpectDiffers {
        /// As given.
        own: usize,
        /// Of the other node.
        address: String,
        /// As it was given.
        other: usize,
    },
    /// `Expect`: this node was about to begin one cluster when it ended, and the other nodes belong to another one. To join
    /// that, use an empty directory.
    #[error(
        "this node was about to begin cluster {pledged}, and the node at {address} belongs to cluster {other}: use an empty \
         data directory to join that one"
    )]
    PledgedToOther {
        /// As stored.
        pledged: ClusterId,
        /// Of the other node.
        address: String,
        /// Its cluster.
        other: ClusterId,
    },
    /// `Join`: no peer belonged to a cluster with a leader in time. Try again, or wait longer (`JoinOptions::wait_for_peers`).
    #[error("no peer let this node in within {} s: {reason}", .waited.as_secs())]
    NoCluster {
        /// For so long.
        waited: Duration,
        /// What each of the peers answered last.
        reason: String,
    },
    /// `Join`: the cluster knows this node's id with another directory, or has removed it. This directory is of no use
    /// any more: use an empty one.
    #[error("{0}. This data directory cannot be used for that cluster any more: join with an empty one")]
    DirectoryUnusable(MembershipRefusal),
    /// `Join`: the cluster was found, and this node did not become a member that takes part. It may be one already:
    /// starting again with the same directory continues.
    #[error(transparent)]
    Join(#[from] JoinClusterError),
    /// `BeginWith`: this node and the others do not agree.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The node ran, and ended.
    #[error(transparent)]
    Run(#[from] RunError),
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
    /// The cluster agreed, but nothing has progressed for so long: neither the log, nor a snapshot, nor the membership.
    /// The reason says what was waited for.
    #[error(
        "the cluster agreed, but this node at {own} has made no progress for {} s: {reason}", .waited.as_secs()
    )]
    NoProgress {
        /// How long nothing has progressed.
        waited: Duration,
        /// The address of this node.
        own: String,
        /// What is missing.
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
