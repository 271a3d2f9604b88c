//! Starting a node with one call: begin a cluster, join one, or restart. Each continues a matching data
//! directory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use raftify_core::error::MembershipError;
use raftify_core::members::{MembershipRefusal, check_address};
use raftify_core::storage::StoredState;
use raftify_core::{
    CheckedConfig, ClusterId, Config, Identity, Member, MemberRole, Members, NodeId, StableStorage,
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::api::raft::{BootstrapOptions, Raft, TICKET_TIMEOUT, check_addresses, node_dialer};
use crate::api::ticket::ClusterJoinTicket;
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::StateMachine;
use crate::error::{BeginError, BootstrapError, JoinClusterError, NodeStartError, RunError};
use crate::node::begin::FirstStart;
use crate::node::expect::{ClusterFormation, Expect, Found};
use crate::security::dialer::Dialer;
use crate::verbs::identify::probe_all;
use crate::wire::identification::Identification;

/// The pause between two rounds of asking peers doubles from the first up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How a node starts: see [`Raft::start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Begins a new cluster with this node alone.
    Begin,
    /// Begins a new cluster with these first members, each of which is started with the same list. This node
    /// is the one that has its address.
    BeginWith(Vec<Member>),
    /// Joins a running cluster.
    Join(JoinOptions),
    /// Begins a new cluster with the expected number of fresh nodes, once they have found each other, in any
    /// order of their starts; a node that finds a cluster, or starts later, joins.
    Expect(Expect),
    /// Continues the node of the data directory, and nothing else.
    Restart,
}

/// How a node joins a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    /// Any members of the cluster, each `host:port`. One is enough; with several, some may be down.
    pub peers: Vec<String>,
    /// [`Learner`](MemberRole::Learner): never votes, until it is promoted on request. Otherwise a voter;
    /// the default.
    pub role: MemberRole,
    /// How long to wait for a peer that belongs to a cluster with a leader. `None`, the default: without
    /// limit.
    pub wait_for_peers: Option<Duration>,
}

impl JoinOptions {
    /// As a voter, through any of these members of the cluster.
    pub fn new<A: Into<String>>(peers: impl IntoIterator<Item = A>) -> JoinOptions {
        let peers = peers.into_iter().map(Into::into).collect();
        JoinOptions { peers, role: MemberRole::Voter, wait_for_peers: None }
    }

    /// As a permanent learner.
    #[must_use]
    pub fn as_learner(self) -> JoinOptions {
        JoinOptions { role: MemberRole::Learner, ..self }
    }
}

impl<A: Into<String>, const N: usize> From<[A; N]> for JoinOptions {
    fn from(peers: [A; N]) -> JoinOptions {
        JoinOptions::new(peers)
    }
}

impl<A: Into<String>> From<Vec<A>> for JoinOptions {
    fn from(peers: Vec<A>) -> JoinOptions {
        JoinOptions::new(peers)
    }
}

impl From<&str> for JoinOptions {
    fn from(peer: &str) -> JoinOptions {
        JoinOptions::new([peer])
    }
}

/// The content of a data directory.
enum Directory {
    Empty,
    /// A node that has an identity and no members: it ended before it was admitted to its cluster.
    StillJoining(Identity),
    Member(Identity, Members),
}

impl Directory {
    fn of(stored: &StoredState) -> Directory {
        let snapshot = stored.snapshot.as_ref().map(|snapshot| &snapshot.members);
        let members = stored.members.iter().chain(snapshot).max_by_key(|members| members.as_of());
        match (stored.identity, members) {
            (None, _) => Directory::Empty,
            (Some(identity), Some(members)) if !members.is_empty() => {
                Directory::Member(identity, members.clone())
            }
            (Some(identity), _) => Directory::StillJoining(identity),
        }
    }
}

/// The full setup of a node.
struct Setup<S, Entry, FSM> {
    raft_addr: Arc<str>,
    dialer: Dialer,
    storage: S,
    stored: StoredState,
    fsm: FSM,
    config: CheckedConfig,
    options: BootstrapOptions<Entry, FSM>,
}

impl<Entry, FSM> Raft<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// Starts a node, and returns it running: in a task of the current tokio runtime, until
    /// [`quit`](crate::RaftNode::quit) or [`leave`](crate::RaftNode::leave) is called, the node cannot
    /// continue, or the last handle is dropped, which stops it like a crash. [`run`](Self::run) waits for
    /// that end, and from then on stops the node at Ctrl+C and SIGTERM.
    ///
    /// | | empty directory | directory of a member | of a node that died while it joined |
    /// |---|---|---|---|
    /// | `Begin` | begins a cluster of this node alone, under id 1 | continues it | error |
    /// | `BeginWith` | begins once all listed nodes agree, or, after 3 s, a majority of them | continues it, if it is of this list | error |
    /// | `Join` | asks the peers for an id and joins | continues it, unless the peers are of another cluster | continues under its id |
    /// | `Expect` | begins once as many nodes are here, or joins a cluster that has begun | continues it, unless the peers are of another cluster | continues to begin, or to join |
    /// | `Restart` | error | continues it | error |
    ///
    /// Returns when the cluster has begun, when a joining node takes part (a voter votes, a learner is caught
    /// up), or, on the directory of a member, at once. `Join` waits for its peers according to
    /// [`JoinOptions::wait_for_peers`], and then as long as there is progress; without progress, for
    /// [`joiner_timeout`](Config::joiner_timeout). The log says which step is missing. Blocks while the
    /// storage is read.
    ///
    /// # Errors
    /// See [`NodeStartError`]. The node does not run then, and the directory is closed.
    ///
    /// # Cancel safety
    /// Dropping the future stops the node like a crash. A second start with the same arguments continues.
    pub async fn start<S: StableStorage>(
        start: Start,
        raft_addr: impl Into<String>,
        mut storage: S,
        fsm: FSM,
        config: Config,
        options: BootstrapOptions<Entry, FSM>,
    ) -> Result<Self, NodeStartError> {
        let raft_addr: Arc<str> = raft_addr.into().into();
        let config = config.check().map_err(BootstrapError::from)?;
        check_addresses(&raft_addr, &options)?;
        let dialer = node_dialer(&raft_addr, &options)?;
        let stored = storage.load().map_err(BootstrapError::from)?;
        let directory = Directory::of(&stored);
        let setup = Setup { raft_addr, dialer, storage, stored, fsm, config, options };
        match start {
            Start::Begin => match directory {
                Directory::Empty => setup.begin(NodeId::FIRST, FirstStart::Alone).await,
                directory => setup.restart(&directory),
            },
            Start::BeginWith(listed) => setup.begin_with(&directory, listed).await,
            Start::Join(joining) => setup.join(directory, joining).await,
            Start::Expect(expect) => setup.expect(directory, expect).await,
            Start::Restart => setup.restart(&directory),
        }
    }

    /// Begins a new cluster of this node alone, or continues the node of the directory:
    /// [`start`](Self::start) with [`Start::Begin`].
    ///
    /// # Errors
    /// See [`NodeStartError`].
    ///
    /// # Cancel safety
    /// As for `start`.
    ///
    /// # Examples
    /// See the [quick start](crate#quick-start).
    pub async fn begin<S: StableStorage>(
        raft_addr: impl Into<String>,
        storage: S,
        fsm: FSM,
        config: Config,
    ) -> Result<Self, NodeStartError> {
        Self::start(Start::Begin, raft_addr, storage, fsm, config, BootstrapOptions::default()).await
    }

    /// Begins a new cluster with a list of first members, or continues the node of the directory:
    /// [`start`](Self::start) with [`Start::BeginWith`].
    ///
    /// # Errors
    /// See [`NodeStartError`].
    ///
    /// # Cancel safety
    /// As for `start`.
    pub async fn begin_with<S: StableStorage>(
        members: impl IntoIterator<Item = Member>,
        raft_addr: impl Into<String>,
        storage: S,
        fsm: FSM,
        config: Config,
    ) -> Result<Self, NodeStartError> {
        let start = Start::BeginWith(members.into_iter().collect());
        Self::start(start, raft_addr, storage, fsm, config, BootstrapOptions::default()).await
    }

    /// Joins the cluster of any of the peers (`["a:7061", "b:7061"]`), or continues the node of the
    /// directory: [`start`](Self::start) with [`Start::Join`].
    ///
    /// # Errors
    /// See [`NodeStartError`].
    ///
    /// # Cancel safety
    /// As for `start`.
    pub async fn join<S: StableStorage>(
        peers: impl Into<JoinOptions>,
        raft_addr: impl Into<String>,
        storage: S,
        fsm: FSM,
        config: Config,
    ) -> Result<Self, NodeStartError> {
        let start = Start::Join(peers.into());
        Self::start(start, raft_addr, storage, fsm, config, BootstrapOptions::default()).await
    }

    /// Continues the node of the directory: [`start`](Self::start) with [`Start::Restart`].
    ///
    /// # Errors
    /// See [`NodeStartError`].
    ///
    /// # Cancel safety
    /// As for `start`.
    pub async fn restart<S: StableStorage>(
        raft_addr: impl Into<String>,
        storage: S,
        fsm: FSM,
        config: Config,
    ) -> Result<Self, NodeStartError> {
        Self::start(Start::Restart, raft_addr, storage, fsm, config, BootstrapOptions::default()).await
    }

    /// Ends a node that could not be started for this reason, unless it has already ended for another reason.
    async fn not_started(self, error: NodeStartError) -> NodeStartError {
        self.quit().await;
        match self.run().await {
            Err(RunError::Begin(error)) => NodeStartError::Begin(error),
            Err(ended) => NodeStartError::Run(ended),
            Ok(()) => error,
        }
    }

    /// Waits until this node takes part in the cluster that it joins.
    async fn joined(
        self,
        outcome: impl AsyncFnOnce(&Self) -> Result<(), JoinClusterError>,
    ) -> Result<Self, NodeStartError> {
        match outcome(&self).await {
            Ok(()) => Ok(self),
            Err(error) => {
                let error = match error {
                    JoinClusterError::Refused(MembershipError::Refused(
                        refusal @ (MembershipRefusal::IdWasRemoved { .. }
                        | MembershipRefusal::OtherIncarnation { .. }),
                    )) => NodeStartError::DirectoryUnusable(refusal),
                    error => NodeStartError::Join(error),
                };
                Err(self.not_started(error).await)
            }
        }
    }
}

impl<S, Entry, FSM> Setup<S, Entry, FSM>
where
    S: StableStorage,
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// Runs the node.
    fn run(self, id: NodeId, first: Option<FirstStart>) -> Result<Raft<Entry, FSM>, NodeStartError> {
        let Setup { raft_addr, dialer, storage, stored, fsm, config, options } = self;
        let raft = Raft::bootstrap_stored(id, raft_addr, dialer, storage, stored, fsm, config, options)?;
        let laid_down: Result<bool, NodeStartError> = raft.first_start.lay_down(|| Ok(first));
        laid_down?;
        raft.spawn();
        Ok(raft)
    }

    fn restart(self, directory: &Directory) -> Result<Raft<Entry, FSM>, NodeStartError> {
        match directory {
            Directory::Empty => Err(NodeStartError::NothingToRestart),
            Directory::StillJoining(identity) => Err(still_joining(identity)),
            Directory::Member(identity, _) => self.run(identity.node_id, None),
        }
    }

    async fn begin(self, id: NodeId, first: FirstStart) -> Result<Raft<Entry, FSM>, NodeStartError> {
        let raft = self.run(id, Some(first))?;
        let begun = tokio::select! {
            biased;
            begun = raft.first_start.ended() => begun.map_err(NodeStartError::from),
            reason = raft.lifecycle().stopping() => Err(NodeStartError::Run(reason.into())),
        };
        match begun {
            Ok(()) => Ok(raft),
            Err(error) => Err(raft.not_started(error).await),
        }
    }

    async fn begin_with(
        mut self,
        directory: &Directory,
        listed: Vec<Member>,
    ) -> Result<Raft<Entry, FSM>, NodeStartError> {
        let members = Members::initial(listed).map_err(BeginError::from)?;
        let own = members.iter().find(|member| *member.address == *self.raft_addr);
        let own = own.map(|own| own.id).ok_or_else(|| NodeStartError::NotListed {
            own: self.raft_addr.to_string(),
            listed: addresses(&members),
        })?;
        let Directory::Member(identity, stored) = directory else {
            return match directory {
                Directory::StillJoining(identity) => Err(still_joining(identity)),
                _ => self.begin(own, FirstStart::Listed(members)).await,
            };
        };
        if own == identity.node_id && is_of_list(identity, stored, &members) {
            // Their addresses may have changed.
            let others = members.iter().filter(|member| member.id != own);
            self.options.discover.extend(others.map(|member| member.address.clone()));
            return self.run(own, Some(FirstStart::Listed(members)));
        }
        let Identity { node_id, cluster_id, .. } = *identity;
        let differences = match stored.differences(&members) {
            same if same.is_empty() => format!("the list has node {own} at the address of this node"),
            differences => differences,
        };
        Err(NodeStartError::OtherList { node_id, cluster_id, differences })
    }

    async fn join(
        mut self,
        directory: Directory,
        joining: JoinOptions,
    ) -> Result<Raft<Entry, FSM>, NodeStartError> {
        let mut seen = BTreeSet::from([self.raft_addr.to_string()]);
        let JoinOptions { peers, role, wait_for_peers } = joining;
        let peers: Vec<String> = peers.into_iter().filter(|peer| seen.insert(peer.clone())).collect();
        for peer in &peers {
            check_address(peer).map_err(BootstrapError::from)?;
        }
        let role = if role == MemberRole::Learner { role } else { MemberRole::Voter };
        let (address, connect_timeout) = (self.raft_addr.to_string(), self.config.connect_timeout);
        if peers.is_empty() && !matches!(directory, Directory::Member(..)) {
            return Err(NodeStartError::NoPeers { own: address });
        }
        let (identity, members) = match directory {
            Directory::Member(identity, members) => (identity, members),
            Directory::StillJoining(identity) => (identity, Members::none()),
            Directory::Empty => {
                let ticket = ask_for_ticket::<Entry, FSM>(
                    &self.dialer,
                    &address,
                    &peers,
                    wait_for_peers,
                    connect_timeout,
                )
                .await?;
                let raft = self.run(ticket.reserved_id, None)?;
                let patience = wait_for_peers.unwrap_or(Duration::MAX);
                return raft.joined(async |raft| enter(raft, ticket, role, peers, patience).await).await;
            }
        };
        check_peers(&self.dialer, &identity, &members, &peers, connect_timeout).await?;
        self.options.discover.extend(peers.iter().cloned());
        let is_in = members.get(identity.node_id).is_some_and(|own| own.role != MemberRole::Joining);
        let raft = self.run(identity.node_id, None)?;
        if is_in {
            return Ok(raft);
        }
        let Identity { node_id: id, cluster_id, incarnation } = identity;
        let joiner = Member { id, address, role, incarnation: Some(incarnation) };
        let known = members.iter().map(|member| member.address.clone());
        let admission = raft.admission(cluster_id, vec![joiner], peers.into_iter().chain(known));
        let patience = wait_for_peers.unwrap_or(Duration::MAX);
        raft.joined(async |raft| raft.be_let_in(&admission, patience).await).await
    }

    async fn expect(self, directory: Directory, expect: Expect) -> Result<Raft<Entry, FSM>, NodeStartError> {
        expect.check(&self.raft_addr)?;
        let joining = |peers: Vec<String>| JoinOptions {
            peers,
            role: MemberRole::Voter,
            wait_for_peers: expect.wait_for_peers,
        };
        let bound_to = match &directory {
            Directory::Member(..) => {
                let peers = expect.peers.clone();
                return self.join(directory, joining(peers)).await;
            }
            Directory::StillJoining(identity) => Some(identity.cluster_id),
            Directory::Empty => None,
        };
        let listen = self.options.listen_addr.clone().unwrap_or_else(|| self.raft_addr.to_string());
        let (address, config) = (Arc::clone(&self.raft_addr), self.config.clone());
        let (formation, listening) = ClusterFormation::open(
            expect.clone(),
            address,
            &listen,
            self.dialer.clone(),
            config,
            self.storage.snapshots(),
            bound_to,
        )?;
        match formation.wait(listening).await? {
            Found::Begin(id, members) => self.begin(id, FirstStart::Expected(members)).await,
            Found::Cluster(peers) => self.join(directory, joining(peers)).await,
        }
    }
}

/// Checks that the peers do not belong to another cluster than this directory. One peer of the same cluster
/// is enough; no answer at all is accepted as well.
async fn check_peers(
    dialer: &Dialer,
    own: &Identity,
    members: &Members,
    peers: &[String],
    connect_timeout: Duration,
) -> Result<(), NodeStartError> {
    let answers = probe_all(dialer, peers.iter().map(String::as_str), connect_timeout).await;
    let (mut other, mut problems) = (None, Vec::new());
    for (peer, answer) in answers {
        match answer.map(|answer| answer.identity) {
            Ok(Some(identity)) if identity.cluster_id == own.cluster_id => return Ok(()),
            Ok(Some(identity)) => {
                other.get_or_insert((peer.to_owned(), identity.cluster_id));
            }
            Ok(None) => problems.push(format!("{peer} belongs to no cluster yet")),
            Err(problem) => problems.push(problem),
        }
    }
    if let Some((peer, other)) = other {
        let (own, node_id, members) = (own.cluster_id, own.node_id, addresses(members));
        return Err(NodeStartError::AlreadyInCluster { own, node_id, members, peer, other });
    }
    if !problems.is_empty() {
        warn!(
            node = %own.node_id,
            "continues in cluster {} although no peer confirms it: {}", own.cluster_id, problems.join("; ")
        );
    }
    Ok(())
}

/// Waits until a peer belongs to a cluster that issues a ticket.
async fn ask_for_ticket<Entry, FSM>(
    dialer: &Dialer,
    raft_addr: &str,
    peers: &[String],
    wait: Option<Duration>,
    connect_timeout: Duration,
) -> Result<ClusterJoinTicket, NodeStartError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let began = Instant::now();
    let mut pause = PAUSE_MIN;
    let mut said = BTreeSet::new();
    loop {
        let (cluster, mut problems) = find_cluster(dialer, peers, connect_timeout).await?;
        let is_found = cluster.is_some();
        if let Some((cluster_id, members)) = cluster {
            if !problems.is_empty() && said.insert("problems") {
                warn!("joins cluster {cluster_id}; not all peers are of use: {}", problems.join("; "));
            }
            for peer in members {
                let (own, peer) = (raft_addr.to_owned(), peer.to_owned());
                match Raft::<Entry, FSM>::request_id_from(dialer, TICKET_TIMEOUT, own, peer).await {
                    Ok(ticket) => return Ok(ticket),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
        let (waited, reason) = (began.elapsed(), problems.join("; "));
        if wait.is_some_and(|wait| waited >= wait) {
            return Err(NodeStartError::NoCluster { waited, reason });
        }
        if !is_found && said.insert("up") {
            info!("waiting for {} to be up: {reason}", peers.join(", "));
        } else if is_found && said.insert("ticket") {
            info!("waiting for the cluster of {} to let this node in: {reason}", peers.join(", "));
        }
        sleep(pause.min(wait.map_or(pause, |wait| wait.saturating_sub(waited)))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The cluster of the peers and the peers that belong to it, if there is one, and why the other peers do not.
async fn find_cluster<'a>(
    dialer: &Dialer,
    peers: &'a [String],
    connect_timeout: Duration,
) -> Result<(Option<(ClusterId, Vec<&'a str>)>, Vec<String>), NodeStartError> {
    let answers = probe_all(dialer, peers.iter().map(String::as_str), connect_timeout).await;
    let mut cluster: Option<(ClusterId, Vec<&str>)> = None;
    let mut problems = Vec::new();
    for (peer, answer) in answers {
        match (answer, &mut cluster) {
            (Err(problem), _) => problems.push(problem),
            (Ok(Identification { identity: None, .. }), _) => {
                problems.push(format!("{peer} belongs to no cluster yet"));
            }
            (Ok(Identification { members, .. }), _) if members.is_empty() => {
                problems.push(format!("{peer} has not been admitted to its cluster yet"));
            }
            (Ok(Identification { identity: Some(identity), .. }), None) => {
                cluster = Some((identity.cluster_id, vec![peer]));
            }
            (Ok(Identification { identity: Some(identity), .. }), Some((first, found))) => {
                if identity.cluster_id != *first {
                    return Err(NodeStartError::TwoClusters {
                        first_peer: found[0].to_owned(),
                        first: *first,
                        second_peer: peer.to_owned(),
                        second: identity.cluster_id,
                    });
                }
                found.push(peer);
            }
        }
    }
    Ok((cluster, problems))
}

/// Takes on the identity that a ticket gives, and enters the cluster.
async fn enter<Entry, FSM>(
    raft: &Raft<Entry, FSM>,
    ticket: ClusterJoinTicket,
    role: MemberRole,
    peers: Vec<String>,
    patience: Duration,
) -> Result<(), JoinClusterError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let identity = raft.take_on_identity(ticket.cluster_id).await?;
    let (id, address) = (ticket.reserved_id, ticket.raft_addr);
    let joiner = Member { id, address, role, incarnation: Some(identity.incarnation) };
    let known = [ticket.leader_addr].into_iter().chain(ticket.peers.into_iter().map(|peer| peer.address));
    let addresses = [ticket.peer_addr].into_iter().chain(peers).chain(known);
    let admission = raft.admission(ticket.cluster_id, vec![joiner], addresses);
    raft.be_let_in(&admission, patience).await
}

fn still_joining(identity: &Identity) -> NodeStartError {
    NodeStartError::StillJoining { node_id: identity.node_id, cluster_id: identity.cluster_id }
}

/// Whether the directory of a member belongs to the cluster of this list. The list may be older, or have
/// newer addresses, as long as it has the same nodes or contains another current member unchanged.
fn is_of_list(identity: &Identity, stored: &Members, listed: &Members) -> bool {
    let has_another = listed
        .iter()
        .filter(|member| member.id != identity.node_id)
        .any(|member| stored.get(member.id).is_some_and(|known| known.address == member.address));
    let has_same_ids = stored.iter().map(|member| member.id).eq(listed.iter().map(|member| member.id));
    listed.derive_cluster_id() == identity.cluster_id || has_another || has_same_ids
}

/// The nodes and their addresses, as text.
fn addresses(members: &Members) -> String {
    if members.is_empty() {
        return "none yet".to_owned();
    }
    let members = members.iter().map(|member| format!("node {} at {}", member.id, member.address));
    members.collect::<Vec<String>>().join(", ")
}
