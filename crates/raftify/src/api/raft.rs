//! The main handle: setting a node up, admitting it to a cluster, running it.
//!
//! [`Raft::bootstrap`] performs every step that can fail before a node takes part: it checks the settings,
//! loads the storage and binds the port. [`Raft::run`] then runs all parts of the node until its end.

use std::collections::BTreeSet;
use std::future::pending;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::error::StartError;
use raftify_core::members::{LeaveJoint, check_address, check_listen_address};
use raftify_core::storage::StoredState;
use raftify_core::{
    CheckedConfig, Config, CoreStart, Incarnation, LogPosition, Member, MemberChange, MemberRole, Members,
    MembershipChange, NodeId, RaftNodeCore, RunId, StableStorage, StateKept,
};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::api::raft_node::RaftNode;
use crate::api::raft_server::RaftServer;
use crate::api::ticket::ClusterJoinTicket;
use crate::application::formatter::{CustomFormatter, DefaultFormatter};
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::{IN_MEMORY, StateMachine};
use crate::channels::backups::backup_calls;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::{EventsEnd, NodeEvents};
use crate::channels::request_queue::request_queue;
use crate::channels::server_counters::ServerCounters;
use crate::client::cluster_connection::ClusterConnection;
use crate::client::error::ClientError;
use crate::error::{AddPeersError, BootstrapError, RequestIdError, RunError};
use crate::node::begin::{FirstStart, FirstStartRequest};
use crate::node::running::NodeParts;
use crate::runtime::random::random;
use crate::runtime::signals::termination;
use crate::runtime::transport::Listener;
use crate::security::config::Tls;
use crate::security::credentials::Holder;
use crate::security::dialer::Dialer;

/// How long [`Raft::request_id`] waits for a ticket.
pub(crate) const TICKET_TIMEOUT: Duration = Duration::from_secs(30);

/// One node of a cluster: a [`RaftNode`], to which it dereferences, with the permission to run it.
///
/// Cheap to clone; all clones are the same node. [`run`](Self::run) consumes one of them, the others are used
/// meanwhile.
///
/// # How a node starts
/// Start it with one call, which returns a running node: [`begin`](Self::begin) a cluster,
/// [`begin_with`](Self::begin_with) a list of first members, [`join`](Self::join) a cluster, or
/// [`restart`](Self::restart). Each of the first three continues a matching data directory, so that a program
/// may always use the same call.
///
/// Or start it step by step, with [`bootstrap`](Self::bootstrap) and [`run`](Self::run). Nothing begins by
/// itself:
/// - On a data directory that was used before, the node continues. No other call is needed.
/// - On a fresh one, after [`add_peers`](Self::add_peers): it begins a cluster with these members, each of
///   which is started with the same list.
/// - On a fresh one, with the id of a ticket ([`request_id`](Self::request_id)): it waits until
///   [`join_cluster`](Self::join_cluster) admits it to the cluster of the ticket.
pub struct Raft<Entry, FSM: StateMachine<LogEntry = Entry>> {
    node: RaftNode<Entry, FSM>,
    server: RaftServer,
    pub(crate) raft_addr: Arc<str>,
    pub(crate) dialer: Dialer,
    pub(crate) first_start: FirstStartRequest,
    /// Additional addresses at which to look for the cluster.
    pub(crate) known_addresses: Arc<Mutex<BTreeSet<String>>>,
    /// Drawn once, so that two concurrent joins with a fresh directory still use one incarnation.
    pub(crate) incarnation: Incarnation,
}

impl<Entry, FSM: StateMachine<LogEntry = Entry>> Clone for Raft<Entry, FSM> {
    fn clone(&self) -> Self {
        Raft {
            node: self.node.clone(),
            server: self.server.clone(),
            raft_addr: Arc::clone(&self.raft_addr),
            dialer: self.dialer.clone(),
            first_start: self.first_start.clone(),
            known_addresses: Arc::clone(&self.known_addresses),
            incarnation: self.incarnation,
        }
    }
}

impl<Entry, FSM: StateMachine<LogEntry = Entry>> std::fmt::Debug for Raft<Entry, FSM> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft")
            .field("raft_addr", &self.raft_addr)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl<Entry, FSM: StateMachine<LogEntry = Entry>> Deref for Raft<Entry, FSM> {
    type Target = RaftNode<Entry, FSM>;

    fn deref(&self) -> &RaftNode<Entry, FSM> {
        &self.node
    }
}

/// The options besides the [`Config`]: [`Raft::bootstrap_with`].
pub struct BootstrapOptions<Entry, FSM> {
    /// Prints entries in this node's logs at trace level.
    pub formatter: Arc<dyn CustomFormatter<Entry, FSM>>,
    /// The address on which to listen (`host:port`) if it differs from the address at which the others reach
    /// this node: behind a proxy or an address translation, or on all interfaces. By default the node
    /// listens on its `raft_addr`.
    pub listen_addr: Option<String>,
    /// Where to look for the other members (`host:port`) while this node knows no leader: addresses of
    /// nodes, or a host name that resolves to the addresses of several. A name is resolved again on each
    /// attempt, and may fail to resolve for a while. With these addresses, members find each other even
    /// if all of them restart at new addresses: each is recognised by its cluster and its data
    /// directory, and the leader records the new addresses. Other nodes that answer there are ignored.
    /// By default empty: the addresses in the membership suffice as long as one node of a majority keeps
    /// its address.
    pub discover: Vec<String>,
    /// Mutual TLS with the other nodes and with clients: all nodes of a cluster use it, or none does. By
    /// default `None`: requests and data pass as they are, and every program that reaches the node's
    /// address may change the cluster; a node that listens on another address than the loopback
    /// interface then logs a warning.
    pub tls: Option<Tls>,
}

impl<Entry, FSM: StateMachine<LogEntry = Entry>> Default for BootstrapOptions<Entry, FSM> {
    fn default() -> Self {
        BootstrapOptions {
            formatter: Arc::new(DefaultFormatter),
            listen_addr: None,
            discover: Vec::new(),
            tls: None,
        }
    }
}

impl<Entry, FSM> Raft<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// Sets a node up: checks the settings, loads the storage, and listens on `raft_addr` (`host:port`, as
    /// the other nodes reach it). The node writes nothing and contacts no other node before
    /// [`run`](Self::run).
    ///
    /// Blocks while the storage is read.
    ///
    /// # Errors
    /// See [`BootstrapError`]; nothing is changed.
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

    /// Like [`bootstrap`](Self::bootstrap), for applications that print their own entries, or whose listen
    /// address differs from the advertised address.
    ///
    /// # Errors
    /// The errors of `bootstrap`.
    pub fn bootstrap_with<S: StableStorage>(
        node_id: NodeId,
        raft_addr: impl Into<String>,
        mut storage: S,
        fsm: FSM,
        config: Config,
        options: BootstrapOptions<Entry, FSM>,
    ) -> Result<Self, BootstrapError> {
        let config = config.check()?;
        let raft_addr: Arc<str> = raft_addr.into().into();
        check_addresses(&raft_addr, &options)?;
        let dialer = node_dialer(&raft_addr, &options)?;
        let stored = storage.load()?;
        Self::bootstrap_stored(node_id, raft_addr, dialer, storage, stored, fsm, config, options)
    }

    /// [`bootstrap_with`](Self::bootstrap_with) with checked settings and the loaded content of the storage.
    #[expect(clippy::too_many_arguments, reason = "the arguments of bootstrap_with, checked and loaded")]
    pub(crate) fn bootstrap_stored<S: StableStorage>(
        node_id: NodeId,
        raft_addr: Arc<str>,
        dialer: Dialer,
        storage: S,
        stored: StoredState,
        fsm: FSM,
        config: CheckedConfig,
        options: BootstrapOptions<Entry, FSM>,
    ) -> Result<Self, BootstrapError> {
        if let Some(credentials) = dialer.credentials() {
            credentials.check_ids(node_id, stored.identity.map(|identity| identity.cluster_id))?;
        }
        let (state_kept, recovered) = applied_by(&fsm, &stored)?;
        let snapshot = stored.snapshot.clone();
        let start = CoreStart {
            node_id,
            address: raft_addr.to_string(),
            config: config.clone(),
            seed: random(),
            run: RunId(random()),
            stored,
            state_kept,
        };
        let core = RaftNodeCore::new(start, &storage.log_reader()).map_err(|error| match error {
            StartError::Storage(error) => BootstrapError::Storage(error),
            error => BootstrapError::Start(error),
        })?;
        let listener = Listener::bind(options.listen_addr.as_deref().unwrap_or(&raft_addr))?;
        let listen_address = listener
            .local_addr()
            .map_err(|source| BootstrapError::Listen { address: raft_addr.to_string(), source })?;
        if dialer.credentials().is_none() && listener.is_reached_by_others() {
            warn!(
                node = %node_id,
                "the node listens on {listen_address} without TLS: every program that reaches this address can read and \
                 change all data and remove nodes, and data passes unencrypted. Configure TLS, or keep the address in a \
                 private network"
            );
        }
        let server_counters = Arc::new(ServerCounters::default());
        let server = RaftServer::new(Arc::clone(&raft_addr), listen_address, Arc::clone(&server_counters));

        let (requests, local_requests) =
            request_queue(config.request_queue_max, config.request_queue_bytes_max);
        let (queries, waiting_queries) = mpsc::channel(config.reads_in_flight_max);
        let status = watch::Sender::new(core.status());
        let (lifecycle, metrics) = (Lifecycle::new(), Arc::new(NodeMetrics::new(node_id)));
        let events = NodeEvents::new();
        let backup_calls = backup_calls();
        let node = RaftNode::new(
            config.clone(),
            dialer.clone(),
            requests.clone(),
            (queries, backup_calls.0.clone()),
            status.subscribe(),
            lifecycle.clone(),
            (Arc::clone(&metrics), Arc::clone(&events)),
        );
        let (first_start, incarnation) = (FirstStartRequest::new(), Incarnation(random()));
        let parts = NodeParts {
            core,
            config,
            raft_addr: Arc::clone(&raft_addr),
            dialer: dialer.clone(),
            storage,
            state_machine: fsm,
            snapshot,
            recovered,
            listener,
            server_counters,
            metrics,
            events: EventsEnd(events),
            requests,
            local_requests,
            queries: waiting_queries,
            backup_calls,
            status,
            formatter: options.formatter,
            first_start: first_start.clone(),
            incarnation,
            plan: watch::Sender::new(None),
            discover: options.discover,
        };
        lifecycle.set_runner(Box::new(|lifecycle| Box::pin(parts.run(lifecycle))));
        Ok(Raft {
            node,
            server,
            raft_addr,
            dialer,
            first_start,
            known_addresses: Arc::default(),
            incarnation,
        })
    }

    /// The handle of this node, to which `Raft` also dereferences: one method for each verb.
    pub fn raft_node(&self) -> &RaftNode<Entry, FSM> {
        &self.node
    }

    /// The gRPC server of this node: its listen address, and the counters of received requests.
    pub fn raft_server(&self) -> &RaftServer {
        &self.server
    }

    /// Asks the cluster of `peer_addr`, any of its members, for an id for a new node that will listen on
    /// `raft_addr`. The node is then bootstrapped under [`reserved_id`](ClusterJoinTicket::reserved_id),
    /// run, and admitted with [`join_cluster`](Self::join_cluster). Each id is issued once; an unused
    /// ticket costs nothing. Waits at most 30 s; [`request_id_within`](Self::request_id_within) takes
    /// another limit.
    ///
    /// # Errors
    /// See [`RequestIdError`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave an unused reserved id, which is harmless.
    pub async fn request_id(
        raft_addr: impl Into<String>,
        peer_addr: impl Into<String>,
    ) -> Result<ClusterJoinTicket, RequestIdError> {
        Self::request_id_within(TICKET_TIMEOUT, raft_addr, peer_addr).await
    }

    /// Like [`request_id`](Self::request_id), for at most `timeout`.
    ///
    /// # Errors
    /// The errors of `request_id`.
    ///
    /// # Cancel safety
    /// As for `request_id`.
    pub async fn request_id_within(
        timeout: Duration,
        raft_addr: impl Into<String>,
        peer_addr: impl Into<String>,
    ) -> Result<ClusterJoinTicket, RequestIdError> {
        Self::request_id_from(&Dialer::default(), timeout, raft_addr.into(), peer_addr.into()).await
    }

    /// Like [`request_id_within`](Self::request_id_within), over TLS, with the certificate of the new node:
    /// it must be for the host of `raft_addr`, because the cluster admits a node only at an address that
    /// its certificate covers.
    ///
    /// # Errors
    /// See [`RequestIdError`].
    ///
    /// # Cancel safety
    /// As for `request_id`.
    pub async fn request_id_with_tls(
        timeout: Duration,
        raft_addr: impl Into<String>,
        peer_addr: impl Into<String>,
        tls: &Tls,
    ) -> Result<ClusterJoinTicket, RequestIdError> {
        let address: String = raft_addr.into();
        check_address(&address)?;
        let dialer = Dialer::load(Some(tls), &Holder::Node { address: address.clone() })?;
        Self::request_id_from(&dialer, timeout, address, peer_addr.into()).await
    }

    pub(crate) async fn request_id_from(
        dialer: &Dialer,
        timeout: Duration,
        raft_addr: String,
        address: String,
    ) -> Result<ClusterJoinTicket, RequestIdError> {
        check_address(&raft_addr)?;
        check_address(&address)?;
        let reserved = async {
            let cluster = ClusterConnection::new([address.as_str()], timeout)?;
            cluster.with_dialer(dialer.clone()).reserve_node_id().await
        };
        let (cluster_id, reservation) = reserved.await.map_err(|error| match error {
            ClientError::Answer(refusal) => RequestIdError::Refused(refusal),
            error => RequestIdError::Unreachable { address: address.clone(), reason: error.to_string() },
        })?;
        let leader = reservation.members.get(reservation.leader);
        let ticket = ClusterJoinTicket {
            cluster_id,
            reserved_id: reservation.node_id,
            raft_addr,
            leader_id: reservation.leader,
            leader_addr: leader.map_or_else(|| address.clone(), |leader| leader.address.clone()),
            peers: reservation.members.iter().cloned().collect(),
            peer_addr: address,
            role: MemberRole::Voter,
            expires_at: 0,
        };
        Ok(ticket.valid_for(ClusterJoinTicket::LIFETIME))
    }

    /// Runs the node to its end: until [`quit`](RaftNode::quit) or [`leave`](RaftNode::leave) is called on
    /// any clone, the process gets Ctrl+C or SIGTERM, or the node cannot continue. Then everything is
    /// flushed and closed, and every request is answered, before this returns. A second signal makes the
    /// node stop without waiting for pending replies and for the transfer of leadership. A node that
    /// [`start`](Self::start) has returned runs already: this waits for its end.
    ///
    /// Must be called once, on a tokio runtime with time and I/O enabled. Signals have an effect from the
    /// first poll of the future on.
    ///
    /// # Errors
    /// [`RunError`] says why the node ended without a stop request.
    ///
    /// # Cancel safety
    /// Dropping the future stops the node like a crash: no acknowledged write is lost, every request is
    /// answered, and the storage is closed a little later, when other threads have finished with it.
    pub fn run(self) -> impl Future<Output = Result<(), RunError>> + Send + 'static {
        let node_id = self.id();
        let first = async move {
            termination().await;
            info!(node = %node_id, "asked to stop by a signal");
        };
        let second = async move {
            termination().await;
            info!(node = %node_id, "asked again to stop by a signal: stops at once");
        };
        self.run_between(first, second)
    }

    /// Like [`run`](Self::run), for programs that handle signals themselves: the node stops when `shutdown`
    /// resolves, as by [`quit`](RaftNode::quit), and pays no attention to signals.
    ///
    /// # Errors
    /// The errors of `run`.
    ///
    /// # Cancel safety
    /// As for `run`.
    ///
    /// # Examples
    /// ```no_run
    /// # use raftify::{LogEntry, Raft, StateMachine};
    /// # async fn example<M: StateMachine>(raft: Raft<M::LogEntry, M>) -> Result<(), raftify::BoxError> {
    /// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    /// let node = tokio::spawn(raft.run_until(async { drop(stopped.await) }));
    /// // Later, when the program shuts down:
    /// drop(stop);
    /// node.await??;
    /// # Ok(())
    /// # }
    /// ```
    pub fn run_until(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = Result<(), RunError>> + Send + 'static {
        self.run_between(shutdown, pending())
    }

    /// Runs the node until `stop` resolves, and then to its end: an orderly one, until `stop_at_once`
    /// resolves, which is polled from then on.
    fn run_between(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
        stop_at_once: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = Result<(), RunError>> + Send + 'static {
        // At once: a caller that spawns this future and continues has a running node.
        self.lifecycle().run_called();
        async move {
            let lifecycle = self.lifecycle();
            let mut run = pin!(async {
                match self.node.take_task() {
                    Some(task) => task.ended().await,
                    None => lifecycle.run().await,
                }
            });
            tokio::select! {
                biased;
                ended = &mut run => return ended,
                () = stop => lifecycle.ask_to_quit(),
            }
            tokio::select! {
                biased;
                ended = &mut run => return ended,
                () = stop_at_once => lifecycle.ask_to_quit_at_once(),
            }
            run.await
        }
    }

    /// Makes `peers` members of the cluster.
    ///
    /// Before [`run`](Self::run), on a fresh directory: the peers are the first members of a new cluster, and
    /// this node must be one of them. Every node is started with the same list. The cluster begins once
    /// all listed nodes agree on the list, or, after some seconds, a majority of them; `run` ends with
    /// [`BeginError`](crate::error::BeginError) if the lists differ. On a directory that was used before,
    /// the stored membership counts, and the list is only compared with it, so that a program may call
    /// this at every start.
    ///
    /// After the call of `run`, on a node that is not a member yet: nothing is added.
    /// [`join_cluster`](Self::join_cluster) also asks at these addresses.
    ///
    /// While the node runs as a member: the peers are added to the cluster in one change, as by
    /// [`change_config`](RaftNode::change_config).
    ///
    /// # Errors
    /// See [`AddPeersError`].
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn add_peers(&self, peers: impl IntoIterator<Item = Member>) -> Result<(), AddPeersError> {
        // The caller's own code, which may be slow.
        let peers: Vec<Member> = peers.into_iter().collect();
        if self.first_start.lay_down(|| self.first_members(&peers))? {
            return Ok(());
        }
        let lifecycle = self.lifecycle();
        if !lifecycle.is_stopping() && !self.status().borrow().is_member() {
            let mut known = self.known_addresses.lock();
            known.extend(peers.into_iter().map(|peer| peer.address));
            return Ok(());
        }
        let steps = peers.into_iter().map(MemberChange::Add).collect();
        let change = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
        Ok(self.change_config(change).await.map(drop)?)
    }

    /// The first members, if the node does not run yet.
    fn first_members(&self, peers: &[Member]) -> Result<Option<FirstStart>, AddPeersError> {
        let (id, lifecycle) = (self.id(), self.lifecycle());
        let is_listed = peers.iter().any(|peer| peer.id == id);
        if !lifecycle.is_waiting() || (lifecycle.was_run_called() && !is_listed) {
            return Ok(None);
        }
        let members = Members::initial(peers.iter().cloned())?;
        let own = members.get(id).ok_or(AddPeersError::NotListed { id })?;
        if *own.address != *self.raft_addr {
            let (listed, own) = (own.address.clone(), self.raft_addr.to_string());
            return Err(AddPeersError::OtherAddress { id, listed, own });
        }
        Ok(Some(FirstStart::Listed(members)))
    }
}

/// Loads the certificates of a node.
pub(crate) fn node_dialer<Entry, FSM>(
    raft_addr: &str,
    options: &BootstrapOptions<Entry, FSM>,
) -> Result<Dialer, BootstrapError> {
    Ok(Dialer::load(options.tls.as_ref(), &Holder::Node { address: raft_addr.to_owned() })?)
}

/// Checks the listen address, the advertised address, and the addresses at which to look for others.
pub(crate) fn check_addresses<Entry, FSM>(
    raft_addr: &str,
    options: &BootstrapOptions<Entry, FSM>,
) -> Result<(), BootstrapError> {
    check_address(raft_addr)?;
    options.listen_addr.as_deref().map(check_listen_address).transpose()?;
    options.discover.iter().try_for_each(|address| check_address(address))?;
    Ok(())
}

/// Whether the state machine keeps its own state, and its applied position, if this node's log contains that
/// position.
fn applied_by<FSM: StateMachine>(
    state_machine: &FSM,
    stored: &StoredState,
) -> Result<(StateKept, LogPosition), BootstrapError> {
    let applied = state_machine.applied();
    if applied == IN_MEMORY {
        return Ok((StateKept::InMemory, LogPosition::ZERO));
    }
    let refused = |reason| Err(BootstrapError::StateMachine { applied, reason });
    if applied.index > stored.last.index {
        return refused(format!("this node's log ends at {}", stored.last));
    }
    match stored.term_at(applied.index) {
        Some(term) if term != applied.term => {
            refused(format!("in this node's log, that entry is of term {term}"))
        }
        _ => Ok((StateKept::OnDisk, applied)),
    }
}
