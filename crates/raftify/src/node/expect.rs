//! `bootstrap_expect`: fresh nodes that know nothing but where to look find each other, and begin exactly one cluster.
//!
//! Each node first waits: it listens, and answers which address it has and how many nodes it expects. When as
//! many are there as are expected, their addresses in order make the first members. A node then pledges itself: it writes the
//! identity of that cluster to its disk, and is of no use to any other one from then on. The cluster begins only when all of
//! its first members have pledged themselves, so that no two clusters can begin from lists that have a node in common.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FusedFuture, FutureExt};
use raftify_core::members::{MEMBERS_MAX, check_address};
use raftify_core::{
    CheckedConfig, ClusterId, LogIndex, LogPosition, Member, Members, NodeId, Role, SnapshotStore, Status,
    Term,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

use crate::channels::request_queue::request_queue;
use crate::error::{BootstrapError, NodeStartError};
use crate::network::outbox::Outbox;
use crate::network::probe::probe_all;
use crate::network::server::{ServerContext, serve};
use crate::node::begin::SAID_EVERY;
use crate::runtime::random::random;
use crate::runtime::transport::{self, Listener};
use crate::runtime::worker::Blocking;
use crate::wire::identification::{Identification, Plan};

/// The pause between two rounds of asking doubles from the first up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// So long nodes may contradict each other before this one gives up.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(10);

/// How a node finds others to begin a cluster with, or a cluster to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// How many fresh nodes must have found each other before a cluster begins. The same on each of them, and more than half
    /// of all that are started: of 2n nodes, two groups of n that do not see each other would begin two clusters.
    ///
    /// Of a list of IP addresses that is longer, the first so many addresses in their order as text begin, and the others
    /// join. Of names, it is not known how many nodes they stand for: there, this must be the number of all nodes that are
    /// started. Otherwise nodes may pledge themselves to different clusters, and wait until their directories are emptied;
    /// two clusters never begin.
    pub count: usize,
    /// Where to look: addresses of nodes, this one's own among them or not, or names of hosts that resolve to the addresses
    /// of several; each `host:port`.
    pub peers: Vec<String>,
    /// How long to wait until the cluster has begun or was found. `None`: for ever.
    pub wait_for_peers: Option<Duration>,
}

/// What a node that waits is to do next.
pub(crate) enum Found {
    /// Begin with these first members, of which this node is the one with that id.
    Begin(NodeId, Members),
    /// A cluster has begun already: these addresses lead to it.
    Cluster(Vec<String>),
}

impl Expect {
    /// Checks what can be checked before another node was seen.
    ///
    /// # Errors
    /// What is wrong with the number, or with an address.
    pub(crate) fn check(&self, own: &str) -> Result<(), NodeStartError> {
        for peer in &self.peers {
            check_address(peer).map_err(BootstrapError::from)?;
        }
        let (count, listed) = (self.count, self.listed(own).len());
        let is_numeric = self.is_numeric(own);
        // Of a name, it is not known how many nodes it stands for.
        let too_many = is_numeric && count > listed;
        let too_few = is_numeric && count * 2 <= listed;
        if count == 0 || count > MEMBERS_MAX || too_many || too_few {
            return Err(NodeStartError::BadExpect { count, listed });
        }
        Ok(())
    }
}

impl Expect {
    /// All different addresses that are given, this node's own among them.
    fn listed<'a>(&'a self, own: &'a str) -> BTreeSet<&'a str> {
        self.peers.iter().map(String::as_str).chain([own]).collect()
    }

    /// Whether each address stands for one node.
    fn is_numeric(&self, own: &str) -> bool {
        self.listed(own).iter().all(|address| address.parse::<SocketAddr>().is_ok())
    }
}

/// A node that has no id yet. It answers which address it has; everything else is refused.
pub(crate) struct ClusterFormation {
    expect: Expect,
    address: Arc<str>,
    config: CheckedConfig,
    plan: Plan,
    /// The cluster that this node has pledged itself to.
    bound_to: Option<ClusterId>,
    outbox: Outbox,
}

/// The server of a node that waits. It runs where it is waited for: dropped with that, it leaves the port at once.
pub(crate) struct Listening {
    close: oneshot::Sender<()>,
    serving: BoxFuture<'static, ()>,
}

/// A host name that is being resolved.
type Lookup = oneshot::Receiver<io::Result<Vec<SocketAddr>>>;

/// What was seen in one round.
#[derive(Default)]
struct Round {
    cluster: Vec<String>,
    /// The addresses of the nodes that are fresh as well.
    fresh: BTreeSet<String>,
    /// What others are about to begin, with this node among them.
    decided: Option<Members>,
    problems: Vec<String>,
    /// What each node that answered contradicts, if anything.
    heard: Vec<(String, Option<Conflict>)>,
}

/// What another node contradicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conflict {
    /// It expects another number of nodes.
    Expects(u32),
    /// It belongs to another cluster than the one that this node has pledged itself to.
    BelongsTo { other: ClusterId, pledged: ClusterId },
}

impl ClusterFormation {
    /// Listens on `listen_address`.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(crate) fn open<S: SnapshotStore>(
        expect: Expect,
        address: Arc<str>,
        listen_address: &str,
        config: CheckedConfig,
        snapshots: S,
        bound_to: Option<ClusterId>,
    ) -> Result<(ClusterFormation, Listening), BootstrapError> {
        let listener = Listener::bind(listen_address)?;
        let count = u32::try_from(expect.count).unwrap_or(u32::MAX);
        let plan = Plan { members: Members::none(), expect: count, nonce: random() };
        let (events, _) = mpsc::unbounded_channel();
        let blocking = Blocking::new();
        let outbox =
            Outbox::start(address.to_string(), config.clone(), snapshots.clone(), blocking.clone(), events);
        // Nothing takes requests from the queue: each is refused.
        let (requests, _) = request_queue(1, 1);
        let remembered = watch::Sender::new(Arc::default()).subscribe();
        let context = ServerContext {
            counters: Arc::default(),
            remembered,
            requests,
            status: watch::Sender::new(no_status()).subscribe(),
            address: Arc::clone(&address),
            plan: watch::Sender::new(Some(plan.clone())).subscribe(),
            earlier_life: watch::Sender::new(None),
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
        let formation = ClusterFormation { expect, address, config, plan, bound_to, outbox };
        Ok((formation, Listening { close, serving: serving.boxed() }))
    }

    /// Waits until enough nodes are there, or a cluster.
    ///
    /// # Errors
    /// If nodes contradict each other for long, or nothing was found in time.
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
        // A node that gave up because of a contradiction, and is silent now, is still not started with the right words.
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

    /// A lookup that hangs is not begun again before it has ended.
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
        for (address, answer) in probe_all(asked, self.config.connect_timeout).await {
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

    /// The first members, if they are here.
    fn first_members(&self, fresh: &BTreeSet<String>) -> Option<Members> {
        let count = self.expect.count;
        let first: Vec<&str> = match self.expect.is_numeric(&self.address) {
            // The same ones on all nodes, whichever of them are up.
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

    /// These first members and the id that this node has among them, if it is one, and may be.
    fn own_place(&self, members: Members) -> Option<(NodeId, Members)> {
        let own = members.iter().find(|member| *member.address == *self.address)?.id;
        let may_be = self.bound_to.is_none_or(|bound_to| bound_to == members.derive_cluster_id());
        may_be.then_some((own, members))
    }
}

/// Of a node that has none.
fn no_status() -> Status {
    Status {
        node_id: NodeId::FIRST,
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
