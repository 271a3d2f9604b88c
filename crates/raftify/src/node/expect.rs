//! `bootstrap_expect`: fresh nodes that only know the addresses to search find each other, and begin exactly
//! one cluster.
//!
//! Each node first waits: it listens, and answers with its address and the number of nodes that it expects.
//! When the expected number of nodes is present, the first members are their addresses in order. A node then
//! pledges itself: it writes the identity of that cluster durably, and cannot join any other cluster from
//! then on. The cluster begins only when all of its first members have pledged themselves, so that no two
//! clusters can begin from lists that have a node in common.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FusedFuture, FutureExt};
use raftify_core::members::{MEMBERS_MAX, check_address};
use raftify_core::{CheckedConfig, ClusterId, Member, Members, NodeId, SnapshotStore, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

use crate::channels::backups::backup_calls;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::NodeEvents;
use crate::channels::request_queue::request_queue;
use crate::error::{BootstrapError, NodeStartError};
use crate::network::outbox::Outbox;
use crate::network::server::access::Access;
use crate::network::server::{ServerContext, serve};
use crate::node::begin::SAID_EVERY;
use crate::runtime::random::random;
use crate::runtime::transport::{self, Listener};
use crate::runtime::worker::Blocking;
use crate::security::dialer::Dialer;
use crate::verbs::identify::probe_all;
use crate::wire::identification::{Identification, Plan};

/// The pause between two rounds of requests doubles from the first up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long nodes may contradict each other before this one gives up.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(10);

/// How a node finds others with which to begin a cluster, or a cluster to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// How many fresh nodes must have found each other before a cluster begins. The number is the same on
    /// each of them, and more than half of all started nodes: with 2n nodes, two groups of n that cannot
    /// reach each other would begin two clusters.
    ///
    /// If a list of IP addresses is longer, that number of addresses, the first in text order, begin the
    /// cluster, and the others join. A host name resolves to an unknown number of nodes: with names,
    /// this must be the number of all started nodes. Otherwise nodes may pledge themselves to different
    /// clusters, and wait until their directories are emptied; two clusters never begin.
    pub count: usize,
    /// The addresses to search: addresses of nodes, with or without this node's own, or host names that
    /// resolve to the addresses of several; each `host:port`.
    pub peers: Vec<String>,
    /// How long to wait until the cluster has begun or was found. `None`: without limit.
    pub wait_for_peers: Option<Duration>,
}

/// The next step of a waiting node.
pub(crate) enum Found {
    /// Begin with these first members; the id is this node's.
    Begin(NodeId, Members),
    /// A cluster has begun already: these addresses lead to it.
    Cluster(Vec<String>),
}

impl Expect {
    /// Checks the arguments before another node was seen.
    ///
    /// # Errors
    /// The problem with the number, or with an address.
    pub(crate) fn check(&self, own: &str) -> Result<(), NodeStartError> {
        for peer in &self.peers {
            check_address(peer).map_err(BootstrapError::from)?;
        }
        let (count, listed) = (self.count, self.listed(own).len());
        let is_numeric = self.is_numeric(own);
        // It is unknown how many nodes a name stands for.
        let too_many = is_numeric && count > listed;
        let too_few = is_numeric && count * 2 <= listed;
        if count == 0 || count > MEMBERS_MAX || too_many || too_few {
            return Err(NodeStartError::BadExpect { count, listed });
        }
        Ok(())
    }
}

impl Expect {
    /// All different given addresses, including this node's own.
    fn listed<'a>(&'a self, own: &'a str) -> BTreeSet<&'a str> {
        self.peers.iter().map(String::as_str).chain([own]).collect()
    }

    /// Whether each address stands for one node.
    fn is_numeric(&self, own: &str) -> bool {
        self.listed(own).iter().all(|address| address.parse::<SocketAddr>().is_ok())
    }
}

/// A node without an id. It answers with its address; every other request is rejected.
pub(crate) struct ClusterFormation {
    expect: Expect,
    address: Arc<str>,
    dialer: Dialer,
    config: CheckedConfig,
    plan: Plan,
    /// The cluster to which this node has pledged itself.
    bound_to: Option<ClusterId>,
    outbox: Outbox,
}

/// The server of a waiting node. It runs inside the wait: when the wait is dropped, it releases the port at
/// once.
pub(crate) struct Listening {
    close: oneshot::Sender<()>,
    serving: BoxFuture<'static, ()>,
}

/// A lookup of a host name that is under way.
type Lookup = oneshot::Receiver<io::Result<Vec<SocketAddr>>>;

/// The result of one round.
#[derive(Default)]
struct Round {
    cluster: Vec<String>,
    /// The addresses of the other fresh nodes.
    fresh: BTreeSet<String>,
    /// The first members of a cluster that others are about to begin, including this node.
    decided: Option<Members>,
    problems: Vec<String>,
    /// The contradiction of each node that answered, if any.
    heard: Vec<(String, Option<Conflict>)>,
}

/// A contradiction between this node and another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conflict {
    /// It expects another number of nodes.
    Expects(u32),
    /// It belongs to another cluster than the one to which this node has pledged itself.
    BelongsTo { other: ClusterId, pledged: ClusterId },
}

impl ClusterFormation {
    /// Listens on `listen_address`.
    ///
    /// # Errors
    /// If it is not possible to listen on the address.
    pub(crate) fn open<S: SnapshotStore>(
        expect: Expect,
        address: Arc<str>,
        listen_address: &str,
        dialer: Dialer,
        config: CheckedConfig,
        snapshots: S,
        bound_to: Option<ClusterId>,
    ) -> Result<(ClusterFormation, Listening), BootstrapError> {
        let listener = Listener::bind(listen_address)?;
        let count = u32::try_from(expect.count).unwrap_or(u32::MAX);
        let plan = Plan { members: Members::none(), expect: count, nonce: random() };
        let (events, _) = mpsc::unbounded_channel();
        let (blocking, metrics) = (Blocking::new(), Arc::new(NodeMetrics::unrecorded()));
        let outbox = Outbox::start(
            address.to_string(),
            dialer.clone(),
            config.clone(),
            snapshots.clone(),
            blocking.clone(),
            events,
            Arc::clone(&metrics),
        );
        // No component takes requests from the queue: each is rejected.
        let (requests, _) = request_queue(1, 1);
        let remembered = watch::Sender::new(Arc::default()).subscribe();
        let status = watch::Sender::new(Status::initial(NodeId::FIRST)).subscribe();
        let counters = Arc::default();
        let context = ServerContext {
            access: Arc::new(Access::new(Arc::clone(&address), status.clone(), Arc::clone(&counters))),
            dialer: dialer.clone(),
            counters,
            metrics,
            events: NodeEvents::new(),
            // As above.
            backups: backup_calls().0,
            lifecycle: Lifecycle::new(),
            // It is not in service before it has an id.
            stops: watch::Sender::new(true).subscribe(),
            remembered,
            requests,
            status,
            address: Arc::clone(&address),
            plan: watch::Sender::new(Some(plan.clone())).subscribe(),
            earlier_incarnation: watch::Sender::new(None),
            snapshots,
            config: config.clone(),
            outbox: outbox.clone(),
            blocking,
            snapshot_bytes_received: Arc::default(),
            remote_reply: crate::channels::reply::Reply::<()>::Remote,
            check_entry: |_| Ok(()),
        };
        let (close, closed) = oneshot::channel::<()>();
        let serving = async move {
            if let Err(error) = serve(listener, context, async { drop(closed.await) }).await {
                error!("the node cannot be found any more: {error}");
            }
        };
        let formation = ClusterFormation { expect, address, dialer, config, plan, bound_to, outbox };
        Ok((formation, Listening { close, serving: serving.boxed() }))
    }

    /// Waits until enough nodes are present, or a cluster is found.
    ///
    /// # Errors
    /// If nodes contradict each other for long, or no cluster was found in time.
    pub(crate) async fn wait(self, listening: Listening) -> Result<Found, NodeStartError> {
        let Listening { close, serving } = listening;
        let mut serving = serving.fuse();
        let found = {
            let mut found = pin!(self.look_around());
            tokio::select! {
                found = &mut found => found,
                () = &mut serving => found.await,
            }
        };
        // So that the node itself can listen there.
        drop(close);
        if !serving.is_terminated() {
            serving.await;
        }
        self.outbox.shutdown().await;
        found
    }

    async fn look_around(&self) -> Result<Found, NodeStartError> {
        let began = Instant::now();
        let (mut pause, mut said, mut conflict_since) = (PAUSE_MIN, None::<Instant>, None::<Instant>);
        // A node that gave up because of a contradiction, and no longer answers, must still be started with
        // other arguments.
        let mut conflicts = BTreeMap::new();
        let mut lookups = BTreeMap::new();
        loop {
            let round = self.look(&mut lookups).await;
            if !round.cluster.is_empty() {
                return Ok(Found::Cluster(round.cluster));
            }
            for (address, conflict) in round.heard {
                match conflict {
                    Some(conflict) => drop(conflicts.insert(address, conflict)),
                    None => drop(conflicts.remove(&address)),
                }
            }
            if let Some((address, conflict)) = conflicts.first_key_value() {
                let since = *conflict_since.get_or_insert_with(Instant::now);
                let error = self.contradicted(address, *conflict);
                if since.elapsed() >= CONFLICT_PATIENCE {
                    return Err(error);
                }
                if said.is_none_or(|at: Instant| at.elapsed() >= SAID_EVERY) {
                    said = Some(Instant::now());
                    error!("{error}");
                }
            } else {
                conflict_since = None;
                let first = round.decided.or_else(|| self.first_members(&round.fresh));
                if let Some((id, members)) = first.and_then(|members| self.own_place(members)) {
                    return Ok(Found::Begin(id, members));
                }
                let waited = began.elapsed();
                let reason = round.problems.join("; ");
                if self.expect.wait_for_peers.is_some_and(|wait| waited >= wait) {
                    return Err(NodeStartError::NoCluster { waited, reason });
                }
                if said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                    said = Some(Instant::now());
                    let (here, count) = (round.fresh.len(), self.expect.count);
                    info!("waiting for {count} nodes to begin a cluster, {here} are here: {reason}");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn contradicted(&self, address: &str, conflict: Conflict) -> NodeStartError {
        let address = address.to_owned();
        match conflict {
            Conflict::Expects(other) => {
                NodeStartError::ExpectDiffers { own: self.expect.count, address, other: other as usize }
            }
            Conflict::BelongsTo { other, pledged } => {
                NodeStartError::PledgedToOther { pledged, address, other }
            }
        }
    }

    /// A lookup that hangs is not started again before it has ended.
    async fn look(&self, lookups: &mut BTreeMap<String, Lookup>) -> Round {
        let mut round = Round { fresh: BTreeSet::from([self.address.to_string()]), ..Round::default() };
        let mut addresses = BTreeSet::new();
        for peer in &self.expect.peers {
            let lookup = lookups.entry(peer.clone()).or_insert_with(|| transport::resolve(peer));
            let outcome = timeout(self.config.connect_timeout, lookup).await;
            if outcome.is_ok() {
                lookups.remove(peer);
            }
            match outcome {
                Ok(Ok(Ok(found))) => addresses.extend(found.iter().map(ToString::to_string)),
                Ok(Ok(Err(error))) => round.problems.push(format!("{peer} cannot be resolved: {error}")),
                Ok(Err(_)) | Err(_) => round.problems.push(format!("{peer} was not resolved in time")),
            }
        }
        let asked: Vec<&str> = addresses.iter().map(String::as_str).take(MEMBERS_MAX).collect();
        for (address, answer) in probe_all(&self.dialer, asked, self.config.connect_timeout).await {
            match answer {
                Ok(answer) => self.hear(address, answer, &mut round),
                Err(problem) => round.problems.push(problem),
            }
        }
        round
    }

    fn hear(&self, address: &str, answer: Identification, round: &mut Round) {
        if answer.plan.as_ref().is_some_and(|plan| plan.nonce == self.plan.nonce) {
            return;
        }
        let conflict = match (self.bound_to, answer.identity, &answer.plan) {
            (Some(pledged), Some(identity), _) if pledged != identity.cluster_id => {
                Some(Conflict::BelongsTo { other: identity.cluster_id, pledged })
            }
            (_, _, Some(plan)) if plan.expect != self.plan.expect => Some(Conflict::Expects(plan.expect)),
            _ => None,
        };
        round.heard.push((address.to_owned(), conflict));
        if conflict.is_some() {
            return;
        }
        if answer.identity.is_some() && !answer.members.is_empty() {
            return round.cluster.push(address.to_owned());
        }
        match answer.plan {
            Some(plan) if plan.members.is_empty() => drop(round.fresh.insert(answer.address)),
            Some(plan)
                if plan.members.len() == self.expect.count
                    && plan.members.iter().any(|member| *member.address == *self.address) =>
            {
                round.decided = Some(plan.members);
            }
            Some(_) => round.problems.push(format!(
                "{address} is about to begin a cluster without this node, which joins it then"
            )),
            None if answer.identity.is_none() => {
                round.problems.push(format!("{address} was not told to begin a cluster"));
            }
            None => {}
        }
    }

    /// The first members, if they are present.
    fn first_members(&self, fresh: &BTreeSet<String>) -> Option<Members> {
        let count = self.expect.count;
        let first: Vec<&str> = match self.expect.is_numeric(&self.address) {
            // The same members on all nodes, regardless of which nodes are up.
            true => self.expect.listed(&self.address).into_iter().take(count).collect(),
            false => fresh.iter().map(String::as_str).take(count).collect(),
        };
        if first.len() < count || !first.iter().all(|address| fresh.contains(*address)) {
            return None;
        }
        let member = |(id, address): (u64, &str)| Some(Member::voter(NodeId::new(id)?, address));
        let first: Option<Vec<Member>> = (1..).zip(first).map(member).collect();
        Members::initial(first?).ok()
    }

    /// These first members and this node's id among them, if it is one and may begin.
    fn own_place(&self, members: Members) -> Option<(NodeId, Members)> {
        let own = members.iter().find(|member| *member.address == *self.address)?.id;
        let may_be = self.bound_to.is_none_or(|bound_to| bound_to == members.derive_cluster_id());
        may_be.then_some((own, members))
    }
}
