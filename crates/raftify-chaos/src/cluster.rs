//! The nodes as a cluster: its leader, the health of all nodes, removing and adding nodes.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use raftify::membership::{MemberChange, MemberRole, MembershipChange};
use raftify::status::Inspection;
use raftify::{BoxError, Member, NodeId};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::certificates::Certificates;
use crate::clients::{self, Client, Endpoints};
use crate::http::{Connection, Web};
use crate::links::{Links, Party, SPARES};
use crate::network::{Kind, Network};
use crate::node::{End, Node, Program, Setting};

/// How long a node may take to return its status.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The polling interval.
const PAUSE: Duration = Duration::from_millis(50);

/// How long recovery may take after the last disturbance. Generous: a pause of many seconds is no violation,
/// a standstill is. A large state takes longer, because it is transferred as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_PER_MEGABYTE: Duration = Duration::from_millis(500);

/// Why the cluster is not healthy.
pub(crate) enum Trouble {
    /// A process ended by itself.
    Ended(Party, End),
    /// The deadline passed; the last unmet condition.
    Unhealthy(String),
    /// A node continues though it must detect a fault; which fault.
    Undetected(Party, String),
    /// This program cannot continue.
    Failed(BoxError),
}

impl<E: Into<BoxError>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble::Failed(error.into())
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Ended(place, end) => write!(f, "node {place} ended by itself, {end}"),
            Trouble::Unhealthy(what) => write!(f, "the cluster is not healthy: {what}"),
            Trouble::Undetected(place, what) => {
                write!(f, "node {place} continues without detecting a fault: {what}")
            }
            Trouble::Failed(error) => write!(f, "the run cannot continue: {error}"),
        }
    }
}

/// All nodes and the network between them. Dropping it ends their processes and removes the network.
pub(crate) struct Cluster {
    pub nodes: Vec<Node>,
    pub network: Network,
    /// `None`: without TLS.
    pub certificates: Option<Certificates>,
    setting: Setting,
    /// The number of members while none is added or removed: those in the first slots.
    size: usize,
    endpoints: watch::Sender<Vec<Endpoints>>,
}

impl Cluster {
    /// Starts the first nodes of a new cluster.
    pub(crate) fn start(
        kind: Kind,
        count: usize,
        programs: &Path,
        directory: &Path,
        state_megabytes: u64,
        with_tls: bool,
    ) -> Result<Cluster, BoxError> {
        let members = directory.join("members.toml");
        let setting = Setting { programs: programs.to_owned(), members, state_megabytes };
        setting.check()?;
        let network = Network::start(kind, count)?;
        let raft: Vec<&str> =
            (1..=count + SPARES).map(|place| network.addresses(place).raft.as_str()).collect();
        let certificates = with_tls.then(|| Certificates::create(directory, &raft)).transpose()?;
        let mut nodes = Vec::new();
        let mut members = String::new();
        for place in 1..=count + SPARES {
            let addresses = network.addresses(place).clone();
            let is_member = place <= count;
            if is_member {
                members += &format!("[[peers]]\nid = {place}\naddress = \"{}\"\n", addresses.raft);
            }
            let web = Web { address: addresses.web.clone(), certificates: certificates.clone() };
            let grpc = clients::grpc(&addresses.raft, certificates.as_ref())?;
            let endpoints = Endpoints { web, grpc };
            let mut node = Node::new(place, addresses, endpoints, directory, state_megabytes)?;
            node.is_member = is_member;
            if !is_member {
                node.program = Program::Dynamic;
            }
            nodes.push(node);
        }
        std::fs::write(&setting.members, members)?;
        let endpoints = watch::Sender::default();
        let mut cluster = Cluster { nodes, network, certificates, setting, size: count, endpoints };
        cluster.publish_endpoints();
        for place in 1..=count {
            cluster.start_node(place)?;
        }
        Ok(cluster)
    }

    pub(crate) fn node(&mut self, place: Party) -> &mut Node {
        &mut self.nodes[place - 1]
    }

    fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_member)
    }

    /// The slots of members.
    pub(crate) fn places(&self) -> Vec<Party> {
        self.members().map(|node| node.place).collect()
    }

    /// The slots of nodes that join and leave.
    pub(crate) fn spares(&self) -> [Party; SPARES] {
        std::array::from_fn(|number| self.size + 1 + number)
    }

    pub(crate) fn webs(&self) -> Vec<Web> {
        self.members().map(|node| node.endpoints.web.clone()).collect()
    }

    /// The endpoints of the current members.
    pub(crate) fn endpoints(&self) -> watch::Receiver<Vec<Endpoints>> {
        self.endpoints.subscribe()
    }

    fn publish_endpoints(&self) {
        self.endpoints.send_replace(self.members().map(|node| node.endpoints.clone()).collect());
    }

    /// Declares whether this slot is to have a member from now on.
    pub(crate) fn set_member(&mut self, place: Party, is_member: bool) {
        self.node(place).is_member = is_member;
        self.publish_endpoints();
    }

    /// Moves the node in this slot, which is down, to another address for its peers.
    pub(crate) fn move_away(&mut self, place: Party) -> Result<(), BoxError> {
        self.node(place).move_away()?;
        self.publish_endpoints();
        Ok(())
    }

    /// The deadline for an operation that moves the whole state.
    pub(crate) fn patience(&self) -> Duration {
        let megabytes = u32::try_from(self.setting.state_megabytes).unwrap_or(u32::MAX);
        PATIENCE + PATIENCE_PER_MEGABYTE.saturating_mul(megabytes)
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.setting.state_megabytes << 20
    }

    pub(crate) fn open_links(&self) -> Links {
        Links::open(self.size)
    }

    /// Starts the process of a slot that is down.
    pub(crate) fn start_node(&mut self, place: Party) -> Result<(), BoxError> {
        // A node that restarts needs no peers, and may be given some that are down.
        let mut peers: Vec<&Node> = self.members().filter(|node| node.place != place).collect();
        peers.sort_by_key(|node| !node.is_up());
        let peers: Vec<String> = peers.into_iter().map(|node| node.addresses.raft.clone()).collect();
        self.nodes[place - 1].start(&self.setting, &self.network, &peers)
    }

    /// Opens all links, resumes and starts all processes, frees space on all disks.
    pub(crate) fn heal(&mut self) -> Result<(), BoxError> {
        self.network.set(self.open_links());
        for place in self.places() {
            let node = self.node(place);
            node.empty()?;
            node.end_delay()?;
            node.signal(Signal::CONT)?;
            if !node.is_up() {
                self.start_node(place)?;
            }
        }
        Ok(())
    }

    /// The status that a node reports.
    pub(crate) async fn inspect(&self, place: Party) -> Option<Inspection> {
        self.nodes[place - 1].inspector.clone().with_deadline(ANSWER_TIMEOUT).inspect().await.ok()
    }

    async fn inspect_all(&self) -> Vec<(Party, Option<Inspection>)> {
        let looks = self.places().into_iter().map(async |place| (place, self.inspect(place).await));
        join_all(looks).await
    }

    /// The member record of the node in this slot, if it is a member, from the nodes with the newest
    /// membership.
    pub(crate) async fn member_at(&self, place: Party) -> Option<Member> {
        let all = self.inspect_all().await;
        let known = all.into_iter().filter_map(|(_, inspection)| Some(inspection?.status.members));
        let newest = known.max_by_key(|members| members.as_of())?;
        newest.iter().find(|member| member.address == self.nodes[place - 1].addresses.raft).cloned()
    }

    /// The leader of the newest term that any node reports.
    pub(crate) async fn leader(&self) -> Option<Party> {
        let all = self.inspect_all().await;
        let leaders = all.iter().filter_map(|(place, it)| Some((*place, &it.as_ref()?.status)));
        let newest = leaders.filter(|(_, status)| status.is_leader()).max_by_key(|(_, status)| status.term);
        newest.map(|(place, _)| place)
    }

    /// The id of the node in this slot, which is up and reachable.
    pub(crate) async fn id_of(&self, place: Party) -> Result<NodeId, Trouble> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(inspection) = self.inspect(place).await {
                return Ok(inspection.status.node_id);
            }
            sleep(PAUSE).await;
        }
        Err(Trouble::Unhealthy(format!("node {place} does not return its status")))
    }

    /// Waits until every slot has a voter that answers a linearizable read, and all nodes know all members.
    pub(crate) async fn wait_until_healthy(&mut self) -> Result<(), Trouble> {
        let begin = Instant::now();
        loop {
            self.check_for_ended()?;
            let Some(missing) = self.unmet_condition().await else { return Ok(()) };
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unhealthy(missing));
            }
            sleep(PAUSE).await;
        }
    }

    fn check_for_ended(&mut self) -> Result<(), Trouble> {
        for node in self.nodes.iter_mut().filter(|node| node.is_member) {
            if let Some(end) = node.ended()? {
                return Err(Trouble::Ended(node.place, end));
            }
        }
        Ok(())
    }

    async fn unmet_condition(&self) -> Option<String> {
        let problems = join_all(self.places().into_iter().map(|place| self.unmet_condition_at(place))).await;
        problems.into_iter().flatten().next()
    }

    pub(crate) async fn unmet_condition_at(&self, place: Party) -> Option<String> {
        let Some(inspection) = self.inspect(place).await else {
            return Some(format!("node {place} does not return its status"));
        };
        let members = &inspection.status.members;
        let is_here = |member: &Member| self.members().any(|node| node.addresses.raft == member.address);
        let is_complete = members.len() == self.places().len()
            && members.iter().all(|member| member.role == MemberRole::Voter && is_here(member));
        if !is_complete || !inspection.status.is_member() {
            return Some(format!(
                "node {place} does not have all members as voters at their addresses: {members:?}"
            ));
        }
        let mut connection = Connection::new(self.nodes[place - 1].endpoints.web.clone());
        match connection.ask("GET", "/store/anything", b"", ANSWER_TIMEOUT).await {
            Ok(answer) if matches!(answer.status, 200 | 404) => None,
            outcome => Some(format!("node {place} answers no read: {outcome:?}")),
        }
    }

    /// Waits until the process of this slot has ended by itself, or is healthy. Returns the end of the
    /// process or `None`.
    pub(crate) async fn ends_or_is_healthy(&mut self, place: Party) -> Result<Option<End>, Trouble> {
        let begin = Instant::now();
        loop {
            if let Some(end) = self.node(place).ended()? {
                return Ok(Some(end));
            }
            let Some(missing) = self.unmet_condition_at(place).await else { return Ok(None) };
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unhealthy(missing));
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits until the process of this slot has ended by itself, or the deadline has passed.
    pub(crate) async fn ends(&mut self, place: Party, patience: Duration) -> Result<Option<End>, Trouble> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if let Some(end) = self.node(place).ended()? {
                return Ok(Some(end));
            }
            sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// Waits until all nodes but the one in slot `place` have everything that the cluster has committed so
    /// far.
    pub(crate) async fn wait_until_others_caught_up(&mut self, place: Party) -> Result<(), Trouble> {
        let begin = Instant::now();
        let mut wanted = None;
        loop {
            let all = self.inspect_all().await;
            let others = all.into_iter().filter(|(other, _)| *other != place);
            let others: Vec<_> = others.map(|(_, it)| it).collect();
            let last = others.iter().flatten().map(|it| it.status.last.index).max();
            // The highest committed index at the first look must be durable on all of them.
            wanted = wanted.or(last);
            if others.iter().all(|it| it.as_ref().is_some_and(|it| Some(it.durable) >= wanted)) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(Trouble::Unhealthy(format!("the others do not have entry {wanted:?}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// A client of all members but the one in this slot.
    pub(crate) fn client_without(&self, place: Party) -> Result<Client, BoxError> {
        let others = self.members().filter(|node| node.place != place).map(|node| &*node.addresses.raft);
        let client = clients::secured(Client::new(others)?, self.certificates.as_ref())?;
        Ok(client.with_deadline(PATIENCE / 4))
    }

    /// Removes an id from the cluster, through the nodes in other slots.
    pub(crate) async fn remove(&mut self, place: Party, id: NodeId) -> Result<(), Trouble> {
        let client = self.client_without(place)?;
        let begin = Instant::now();
        loop {
            let outcome = client.change_config(MembershipChange::one(MemberChange::Remove(id))).await;
            // A request that was refused or had no answer may have taken effect.
            let members = match outcome {
                Ok(members) => Some(members),
                Err(_) => client.inspect().await.ok().map(|it| (*it.status.members).clone()),
            };
            if members.is_some_and(|members| members.get(id).is_none()) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(Trouble::Unhealthy(format!(
                    "node {id} is not removed: {:?}",
                    outcome_of(&client, id).await
                )));
            }
            sleep(PAUSE).await;
        }
    }

    /// Adds a new node to the cluster in a slot that is down and empty.
    pub(crate) async fn join(&mut self, place: Party) -> Result<(), Trouble> {
        let begin = Instant::now();
        self.node(place).program = Program::Dynamic;
        loop {
            if !self.node(place).is_up() {
                self.start_node(place)?;
            }
            match self.ends_or_is_healthy(place).await? {
                None => return Ok(()),
                // The node had no id or was not admitted before its deadline: start it again.
                Some(end) if begin.elapsed() > self.patience() => return Err(Trouble::Ended(place, end)),
                Some(_) => sleep(PAUSE).await,
            }
        }
    }
}

async fn outcome_of(client: &Client, id: NodeId) -> String {
    match client.change_config(MembershipChange::one(MemberChange::Remove(id))).await {
        Ok(_) => "it is now".to_owned(),
        Err(error) => error.to_string(),
    }
}
