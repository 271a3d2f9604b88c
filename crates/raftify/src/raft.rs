//! What a user holds: setting a node up, letting it into a cluster, running it.
//!
//! [`Raft::bootstrap`] does everything that can fail before a node takes part: it checks the settings, loads the
//! storage and takes the port. [`Raft::run`] then runs all parts of the node until its end.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftify_core::error::{JoinError, MembershipError, StartError};
use raftify_core::members::{LeaveJoint, check_address, check_listen_address};
use raftify_core::storage::StoredState;
use raftify_core::{
    ClusterId, Config, CoreStart, Identity, Incarnation, LocalRequestMsg, LogPosition, Member, MemberChange,
    Members, MembershipChange, MembershipRequest, NodeId, RaftNodeCore, StableStorage,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::chance::random;
use crate::error::{AddPeersError, BootstrapError, JoinClusterError, RequestIdError, RunError};
use crate::formatter::{CustomFormatter, DefaultFormatter};
use crate::lifecycle::Lifecycle;
use crate::log_entry::AbstractLogEntry;
use crate::raft_client::{ClientError, ClusterConnection};
use crate::raft_node::RaftNode;
use crate::request_queue::request_queue;
use crate::running::NodeParts;
use crate::state_machine::AbstractStateMachine;
use crate::transport::Listener;

/// How long [`Raft::request_id`] waits for a ticket.
const TICKET_DEADLINE: Duration = Duration::from_secs(30);

/// One node of a cluster: a [`RaftNode`], to which it dereferences, and the right to run it.
///
/// Cheap to clone; all clones are the same node. One of them is [`run`](Self::run), the others are used meanwhile.
///
/// # How a node starts
/// - On a data directory that was used before, it simply goes on. Nothing else needs to be called.
/// - On a fresh one, as [`NodeId::FIRST`]: it begins a new cluster with itself as the only voter.
/// - On a fresh one, after [`add_peers`](Self::add_peers): it begins a cluster with these members, each of which is
///   started with the same list.
/// - On a fresh one, with the id of a ticket ([`request_id`](Self::request_id)): it waits until
///   [`join_cluster`](Self::join_cluster) lets it into the cluster of the ticket.
pub struct Raft<LogEntry, FSM: AbstractStateMachine<LogEntry = LogEntry>> {
    node: RaftNode<LogEntry, FSM>,
    raft_addr: Arc<str>,
    first_members: Arc<Mutex<Option<Members>>>,
    /// Drawn once, so that a fresh directory that joins twice at a time is still one directory.
    incarnation: Incarnation,
}

impl<LogEntry, FSM: AbstractStateMachine<LogEntry = LogEntry>> Clone for Raft<LogEntry, FSM> {
    fn clone(&self) -> Self {
        Raft {
            node: self.node.clone(),
            raft_addr: Arc::clone(&self.raft_addr),
            first_members: Arc::clone(&self.first_members),
            incarnation: self.incarnation,
        }
    }
}

impl<LogEntry, FSM: AbstractStateMachine<LogEntry = LogEntry>> std::fmt::Debug for Raft<LogEntry, FSM> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft")
            .field("raft_addr", &self.raft_addr)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl<LogEntry, FSM: AbstractStateMachine<LogEntry = LogEntry>> Deref for Raft<LogEntry, FSM> {
    type Target = RaftNode<LogEntry, FSM>;

    fn deref(&self) -> &RaftNode<LogEntry, FSM> {
        &self.node
    }
}

/// What can be set besides the [`Config`]: [`Raft::bootstrap_with`].
pub struct BootstrapOptions<LogEntry, FSM> {
    /// Where raft-rs logs to; by default to `tracing`, like everything else in this crate.
    pub logger: Option<slog::Logger>,
    /// Prints entries in this node's logs at trace level.
    pub formatter: Arc<dyn CustomFormatter<LogEntry, FSM>>,
    /// Where to listen (`host:port`) when that is not where the others reach this node: behind a proxy or an address
    /// translation, or on all interfaces. By default the node listens on its `raft_addr`.
    pub listen_addr: Option<String>,
    /// Where to look for the other members (`host:port`) while this node knows no leader: addresses of nodes, or a host name
    /// that stands for the addresses of several. A name is resolved again on each attempt, and may fail to resolve for a
    /// while. By these, members that all came back at new addresses find each other: each is recognised by its cluster and
    /// its data directory, and the leader records the new addresses. Other nodes that answer there are passed over. By
    /// default empty: the addresses that the membership has are enough as long as one of a majority stays where it is.
    pub discover: Vec<String>,
}

impl<LogEntry, FSM: AbstractStateMachine<LogEntry = LogEntry>> Default for BootstrapOptions<LogEntry, FSM> {
    fn default() -> Self {
        BootstrapOptions {
            logger: None,
            formatter: Arc::new(DefaultFormatter),
            listen_addr: None,
            discover: Vec::new(),
        }
    }
}

/// The right to join a cluster under an id that nobody else has. Plain data, to be passed on in any way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterJoinTicket {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The id under which the holder must be bootstrapped.
    pub reserved_id: NodeId,
    /// Where the holder will listen.
    pub raft_addr: String,
    /// The leader when the ticket was written.
    pub leader_id: NodeId,
    /// Its address.
    pub leader_addr: String,
    /// The members when the ticket was written.
    pub peers: Vec<Member>,
}

impl<LogEntry, FSM> Raft<LogEntry, FSM>
where
    LogEntry: AbstractLogEntry,
    FSM: AbstractStateMachine<LogEntry = LogEntry>,
{
    /// Sets a node up: checks the settings, loads the storage, and listens on `raft_addr` (`host:port`, as the other
    /// nodes reach it). Nothing is written and nobody is talked to before [`run`](Self::run).
    ///
    /// Blocks while the storage is read.
    ///
    /// # Errors
    /// See [`BootstrapError`]; nothing was changed.
    ///
    /// # Examples
    /// See the [quick start](crate#quick-start).
    pub fn bootstrap<S: StableStorage>(
        node_id: NodeId,
        raft_addr: impl Into<String>,
        storage: S,
        fsm: FSM,
        config: Config,
    ) -> Result<Self, BootstrapError> {
        Self::bootstrap_with(node_id, raft_addr, storage, fsm, config, BootstrapOptions::default())
    }

    /// Like [`bootstrap`](Self::bootstrap), for applications that log through `slog`, print their own entries, or listen
    /// elsewhere than where they are reached.
    ///
    /// # Errors
    /// Those of `bootstrap`.
    pub fn bootstrap_with<S: StableStorage>(
        node_id: NodeId,
        raft_addr: impl Into<String>,
        mut storage: S,
        fsm: FSM,
        config: Config,
        options: BootstrapOptions<LogEntry, FSM>,
    ) -> Result<Self, BootstrapError> {
        let config = config.check()?;
        let raft_addr: Arc<str> = raft_addr.into().into();
        check_address(&raft_addr)?;
        options.listen_addr.as_deref().map(check_listen_address).transpose()?;
        options.discover.iter().try_for_each(|address| check_address(address))?;
        let stored = storage.load()?;
        let recovered = applied_by(&fsm, &stored)?;
        let snapshot = stored.snapshot.clone();
        let start = CoreStart {
            node_id,
            address: raft_addr.to_string(),
            config: config.clone(),
            seed: random(),
            stored,
            logger: options.logger,
        };
        let core = RaftNodeCore::new(start, &storage.log_reader()).map_err(|error| match error {
            StartError::Storage(error) => BootstrapError::Storage(error),
            error => BootstrapError::Start(error),
        })?;
        let listener = Listener::bind(options.listen_addr.as_deref().unwrap_or(&raft_addr))?;

        let (requests, local_requests) =
            request_queue(config.request_queue_max, config.request_queue_bytes_max);
        let (queries, waiting_queries) = mpsc::channel(config.reads_in_flight_max);
        let status = watch::Sender::new(core.status());
        let lifecycle = Lifecycle::new();
        let node = RaftNode::new(config.clone(), requests, queries, status.subscribe(), lifecycle.clone());
        let first_members = Arc::new(Mutex::new(None));
        let parts = NodeParts {
            core,
            config,
            raft_addr: Arc::clone(&raft_addr),
            storage,
            state_machine: fsm,
            snapshot,
            recovered,
            listener,
            local_requests,
            queries: waiting_queries,
            status,
            formatter: options.formatter,
            first_members: Arc::clone(&first_members),
            plan: watch::Sender::new(None),
            discover: options.discover,
        };
        lifecycle.set_runner(Box::new(|lifecycle| Box::pin(parts.run(lifecycle))));
        Ok(Raft { node, raft_addr, first_members, incarnation: Incarnation(random()) })
    }

    /// Asks the cluster of `peer_addr`, any of its members, for an id for a new node that will listen on `raft_addr`.
    /// The node is then bootstrapped under [`reserved_id`](ClusterJoinTicket::reserved_id), run, and let in with
    /// [`join_cluster`](Self::join_cluster). An id is given out once; a ticket that is never used costs nothing. Waits
    /// at most 30 s.
    ///
    /// # Errors
    /// See [`RequestIdError`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave an id reserved that nobody uses, which is harmless.
    pub async fn request_id(
        raft_addr: impl Into<String>,
        peer_addr: impl Into<String>,
    ) -> Result<ClusterJoinTicket, RequestIdError> {
        let (raft_addr, address) = (raft_addr.into(), peer_addr.into());
        check_address(&raft_addr)?;
        check_address(&address)?;
        let reserved =
            async { ClusterConnection::new([address.as_str()], TICKET_DEADLINE)?.reserve_node_id().await };
        let (cluster_id, reservation) = reserved.await.map_err(|error| match error {
            ClientError::Answer(refusal) => RequestIdError::Refused(refusal),
            error => RequestIdError::Unreachable { address: address.clone(), reason: error.to_string() },
        })?;
        let leader = reservation.members.get(reservation.leader);
        Ok(ClusterJoinTicket {
            cluster_id,
            reserved_id: reservation.node_id,
            raft_addr,
            leader_id: reservation.leader,
            leader_addr: leader.map_or(address, |leader| leader.address.clone()),
            peers: reservation.members.iter().cloned().collect(),
        })
    }

    /// Runs the node to its end: until [`quit`](RaftNode::quit) or [`leave`](RaftNode::leave) is called on any clone,
    /// the process gets Ctrl+C or SIGTERM, or the node cannot go on. Then everything is flushed and closed, and
    /// everybody is answered, before this returns.
    ///
    /// Must be called once, on a tokio runtime with time and I/O enabled.
    ///
    /// # Errors
    /// [`RunError`] says why the node ended if nobody asked it to.
    ///
    /// # Cancel safety
    /// Dropping the future stops the node as a crash would: nothing acknowledged is lost, everybody is answered, and
    /// the storage is closed a little later, when what other threads were doing with it is done.
    pub async fn run(self) -> Result<(), RunError> {
        self.node.lifecycle().run().await
    }

    /// Makes `peers` members of the cluster.
    ///
    /// Before [`run`](Self::run), on a fresh directory: they are the first members of a new cluster, and this node
    /// must be one of them. Every node is started with the same list. On a directory that was used before, the stored
    /// membership counts, and the list is only compared with it, so that a program may call this at every start.
    ///
    /// While the node runs: they are added to the cluster in one change, like by
    /// [`change_config`](RaftNode::change_config).
    ///
    /// # Errors
    /// See [`AddPeersError`].
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn add_peers(&self, peers: impl IntoIterator<Item = Member>) -> Result<(), AddPeersError> {
        // The caller's own code, which may take its time.
        let peers: Vec<Member> = peers.into_iter().collect();
        if self.begins_with(&peers)? {
            return Ok(());
        }
        let steps = peers.into_iter().map(MemberChange::Add).collect();
        let change = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
        Ok(self.change_config(change).await.map(drop)?)
    }

    /// Whether these are the members to begin with, because the node does not run yet.
    fn begins_with(&self, peers: &[Member]) -> Result<bool, AddPeersError> {
        // Held until they are laid down: who begins to run meanwhile waits here before it takes them.
        let mut first_members = self.first_members.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.node.lifecycle().is_waiting() {
            return Ok(false);
        }
        let members = Members::initial(peers.iter().cloned())?;
        let id = self.get_id();
        let own = members.get(id).ok_or(AddPeersError::NotListed { id })?;
        if *own.address != *self.raft_addr {
            let (listed, own) = (own.address.clone(), self.raft_addr.to_string());
            return Err(AddPeersError::OtherAddress { id, listed, own });
        }
        *first_members = Some(members);
        Ok(true)
    }

    /// Lets this node into the cluster of its ticket, and resolves once it is a member and knows it. The node must be
    /// [running](Self::run) meanwhile. A node that is a member already has nothing to do: this may be called at every
    /// start.
    ///
    /// Tickets of other nodes may be given as well: these are added in the same change, before they are started.
    ///
    /// Waits at most [`membership_timeout`](Config::membership_timeout) for each of three things: that its identity is
    /// durable here, that the cluster has added it, and that it has heard from the cluster.
    ///
    /// # Errors
    /// See [`JoinClusterError`]; calling again with the same tickets is safe.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the node a member already; calling again is safe.
    pub async fn join_cluster(&self, tickets: Vec<ClusterJoinTicket>) -> Result<(), JoinClusterError> {
        let id = self.get_id();
        let own = tickets
            .iter()
            .find(|ticket| ticket.reserved_id == id)
            .ok_or(JoinClusterError::NoTicket { id })?;
        if let Some(other) = tickets.iter().find(|ticket| ticket.cluster_id != own.cluster_id) {
            return Err(JoinClusterError::DifferentClusters {
                first: own.cluster_id,
                second: other.cluster_id,
            });
        }
        if *own.raft_addr != *self.raft_addr {
            let (ticket, own) = (own.raft_addr.clone(), self.raft_addr.to_string());
            return Err(JoinClusterError::OtherAddress { id, ticket, own });
        }
        let identity = self.take_on_identity(own.cluster_id).await?;
        if self.status().borrow().is_member() {
            return Ok(());
        }
        let joiners = tickets.iter().map(|ticket| {
            let incarnation = (ticket.reserved_id == id).then_some(identity.incarnation);
            Member { incarnation, ..Member::voter(ticket.reserved_id, &ticket.raft_addr) }
        });
        let request = MembershipRequest::join(joiners.collect());
        self.ask_to_be_added(own, &request).await?;
        self.wait_until_member().await
    }

    /// Makes this directory one of the cluster, durably, so that the cluster's messages are believed.
    async fn take_on_identity(&self, cluster_id: ClusterId) -> Result<Identity, JoinClusterError> {
        let known = self.status().borrow().identity;
        let incarnation = known.map_or(self.incarnation, |identity| identity.incarnation);
        let identity = Identity { cluster_id, node_id: self.get_id(), incarnation };
        let request = |reply| LocalRequestMsg::AwaitCluster { identity, reply };
        match self.node.request(self.node.config().membership_timeout, request).await {
            Ok(()) => Ok(identity),
            Err(JoinError::AlreadyMember { cluster_id: member_of }) if member_of == cluster_id => {
                Ok(identity)
            }
            Err(JoinError::Stopped(reason)) => Err(JoinClusterError::Stopped(reason)),
            Err(error) => Err(JoinClusterError::Directory(error)),
        }
    }

    async fn ask_to_be_added(
        &self,
        ticket: &ClusterJoinTicket,
        request: &MembershipRequest,
    ) -> Result<(), JoinClusterError> {
        let others =
            ticket.peers.iter().map(|peer| &peer.address).filter(|address| **address != ticket.raft_addr);
        let addresses = [&ticket.leader_addr].into_iter().chain(others).map(String::as_str);
        let within = self.node.config().membership_timeout;
        let added = async {
            ClusterConnection::new(addresses, within)?.to(ticket.cluster_id).change_config(request).await
        };
        let added = tokio::select! {
            biased;
            reason = self.node.lifecycle().stopping() => return Err(reason.into()),
            added = added => added,
        };
        match added {
            Ok(_) => Ok(()),
            // It may have been made: whether it was shows when this node hears from the cluster.
            Err(ClientError::Answer(MembershipError::Unknown(_))) => Ok(()),
            Err(ClientError::Answer(refusal)) => Err(JoinClusterError::Refused(refusal)),
            Err(error) => Err(JoinClusterError::Unreachable(error.to_string())),
        }
    }

    async fn wait_until_member(&self) -> Result<(), JoinClusterError> {
        let waited = self.node.config().membership_timeout;
        let mut status = self.status();
        tokio::select! {
            biased;
            member = timeout(waited, status.wait_for(|status| status.is_member())) => match member {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(self.node.lifecycle().stop_reason().into()),
                Err(_) => Err(JoinClusterError::NotHeardOf { waited, own: self.raft_addr.to_string() }),
            },
            reason = self.node.lifecycle().stopping() => Err(reason.into()),
        }
    }
}

/// What the state machine has applied, if it is what this node's log holds.
fn applied_by<FSM: AbstractStateMachine>(
    state_machine: &FSM,
    stored: &StoredState,
) -> Result<LogPosition, BootstrapError> {
    let applied = state_machine.applied();
    let refused = |reason| Err(BootstrapError::StateMachine { applied, reason });
    if applied.index > stored.last.index {
        return refused(format!("this node's log ends at {}", stored.last));
    }
    match stored.term_at(applied.index) {
        Some(term) if term != applied.term => {
            refused(format!("in this node's log, that entry is of term {term}"))
        }
        _ => Ok(applied),
    }
}
