//! The nodes together: who leads, whether all are well, how one is removed and another one comes in.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use raftify::membership::{MemberChange, MemberRole, MembershipChange};
use raftify::status::Inspection;
use raftify::{BoxError, Member, NodeId};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::clients::{self, Client, Doors};
use crate::http::Connection;
use crate::links::{Links, Party, SPARES};
use crate::network::{Kind, Network};
use crate::node::{End, Node, Program, Setting};

/// How long a node may take to say how it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What must be well within this long after nothing disturbs it any more. Generous: joints of many seconds are no
/// violation, standing still is. Where the state is large, it has to travel besides.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_PER_MEGABYTE: Duration = Duration::from_millis(500);

/// Why the cluster is not well.
pub(crate) enum Trouble {
    /// A process ended by itself.
    Ended(Party, End),
    /// Patience ran out; what was missing last.
    Unwell(String),
    /// A node goes on, though it must have noticed; what.
    Unnoticed(Party, String),
    /// This program cannot go on.
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
            Trouble::Unwell(what) => write!(f, "the cluster is not well: {what}"),
            Trouble::Unnoticed(place, what) => {
                write!(f, "node {place} goes on as if nothing had happened: {what}")
            }
            Trouble::Failed(error) => write!(f, "the run cannot go on: {error}"),
        }
    }
}

/// All nodes and what is between them. Their processes end, and the network goes, with it.
pub(crate) struct Cluster {
    pub nodes: Vec<Node>,
    pub network: Network,
    setting: Setting,
    /// How many members there are while none comes or goes: those at the first places.
    size: usize,
    doors: watch::Sender<Vec<Doors>>,
}

impl Cluster {
    /// Starts the first nodes of a new cluster.
    pub(crate) fn start(
        kind: Kind,
        count: usize,
        programs: &Path,
        directory: &Path,
        state_megabytes: u64,
    ) -> Result<Cluster, BoxError> {
        let members = directory.join("members.toml");
        let setting = Setting { programs: programs.to_owned(), members, state_megabytes };
        setting.check()?;
        let network = Network::start(kind, count)?;
        let mut nodes = Vec::new();
        let mut members = String::new();
        for place in 1..=count + SPARES {
            let addresses = network.addresses(place).clone();
            let is_member = place <= count;
            if is_member {
                members += &format!("[[peers]]\nid = {place}\naddress = \"{}\"\n", addresses.raft);
            }
            let doors = Doors { web: addresses.web.clone(), grpc: clients::grpc(&addresses.raft)? };
            let mut node = Node::new(place, addresses, doors, directory, state_megabytes)?;
            node.is_member = is_member;
            if !is_member {
                node.program = Program::Dynamic;
            }
            nodes.push(node);
        }
        std::fs::write(&setting.members, members)?;
        let doors = watch::Sender::default();
        let mut cluster = Cluster { nodes, network, setting, size: count, doors };
        cluster.publish_doors();
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

    /// Where members are.
    pub(crate) fn places(&self) -> Vec<Party> {
        self.members().map(|node| node.place).collect()
    }

    /// Where nodes may join that leave again.
    pub(crate) fn spares(&self) -> [Party; SPARES] {
        std::array::from_fn(|number| self.size + 1 + number)
    }

    pub(crate) fn webs(&self) -> Vec<String> {
        self.members().map(|node| node.doors.web.clone()).collect()
    }

    /// The doors of the members, as they come and go.
    pub(crate) fn doors(&self) -> watch::Receiver<Vec<Doors>> {
        self.doors.subscribe()
    }

    fn publish_doors(&self) {
        self.doors.send_replace(self.members().map(|node| node.doors.clone()).collect());
    }

    /// Says that a member is to be at this place from now on, or none.
    pub(crate) fn set_member(&mut self, place: Party, is_member: bool) {
        self.node(place).is_member = is_member;
        self.publish_doors();
    }

    /// Where the others reach the node at this place, which is down, it is from now on at another address.
    pub(crate) fn move_away(&mut self, place: Party) -> Result<(), BoxError> {
        self.node(place).move_away()?;
        self.publish_doors();
        Ok(())
    }

    /// How long something may take that moves the whole state.
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

    /// Starts the process of a place that is down.
    pub(crate) fn start_node(&mut self, place: Party) -> Result<(), BoxError> {
        // Who only goes on needs none, and may be given some that are down.
        let mut peers: Vec<&Node> = self.members().filter(|node| node.place != place).collect();
        peers.sort_by_key(|node| !node.is_up());
        let peers: Vec<String> = peers.into_iter().map(|node| node.addresses.raft.clone()).collect();
        self.nodes[place - 1].start(&self.setting, &self.network, &peers)
    }

    /// Opens all links, wakes and starts all processes, makes room on all disks.
    pub(crate) fn heal(&mut self) -> Result<(), BoxError> {
        self.network.set(self.open_links());
        for place in self.places() {
            let node = self.node(place);
            node.empty()?;
            node.hasten()?;
            node.signal(Signal::CONT)?;
            if !node.is_up() {
                self.start_node(place)?;
            }
        }
        Ok(())
    }

    /// What a node says about itself.
    pub(crate) async fn inspect(&self, place: Party) -> Option<Inspection> {
        self.nodes[place - 1].inspector.clone().with_deadline(ANSWER_TIMEOUT).inspect().await.ok()
    }

    async fn inspect_all(&self) -> Vec<(Party, Option<Inspection>)> {
        let looks = self.places().into_iter().map(async |place| (place, self.inspect(place).await));
        join_all(looks).await
    }

    /// What the members know of the node at this place, if it is a member: those that know the newest membership.
    pub(crate) async fn member_at(&self, place: Party) -> Option<Member> {
        let all = self.inspect_all().await;
        let known = all.into_iter().filter_map(|(_, inspection)| Some(inspection?.status.members));
        let newest = known.max_by_key(|members| members.as_of())?;
        newest.iter().find(|member| member.address == self.nodes[place - 1].addresses.raft).cloned()
    }

    /// Who leads in the newest term that anybody tells.
    pub(crate) async fn leader(&self) -> Option<Party> {
        let all = self.inspect_all().await;
        let leaders = all.iter().filter_map(|(place, it)| Some((*place, &it.as_ref()?.status)));
        let newest = leaders.filter(|(_, status)| status.is_leader()).max_by_key(|(_, status)| status.term);
        newest.map(|(place, _)| place)
    }

    /// The id of the node that is at this place, is up and can be reached.
    pub(crate) async fn id_of(&self, place: Party) -> Result<NodeId, Trouble> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(inspection) = self.inspect(place).await {
                return Ok(inspection.status.node_id);
            }
            sleep(PAUSE).await;
        }
        Err(Trouble::Unwell(format!("node {place} does not say how it is")))
    }

    /// Waits until every place has a voter that answers a linearizable read, and all know of all.
    pub(crate) async fn wait_until_well(&mut self) -> Result<(), Trouble> {
        let begin = Instant::now();
        loop {
            self.look_for_ended()?;
            let Some(missing) = self.what_is_missing().await else { return Ok(()) };
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unwell(missing));
            }
            sleep(PAUSE).await;
        }
    }

    fn look_for_ended(&mut self) -> Result<(), Trouble> {
        for node in self.nodes.iter_mut().filter(|node| node.is_member) {
            if let Some(end) = node.ended()? {
                return Err(Trouble::Ended(node.place, end));
            }
        }
        Ok(())
    }

    async fn what_is_missing(&self) -> Option<String> {
        let problems = join_all(self.places().into_iter().map(|place| self.what_is_missing_at(place))).await;
        problems.into_iter().flatten().next()
    }

    pub(crate) async fn what_is_missing_at(&self, place: Party) -> Option<String> {
        let Some(inspection) = self.inspect(place).await else {
            return Some(format!("node {place} does not say how it is"));
        };
        let members = &inspection.status.members;
        let is_here = |member: &Member| self.members().any(|node| node.addresses.raft == member.address);
        let is_complete = members.len() == self.places().len()
            && members.iter().all(|member| member.role == MemberRole::Voter && is_here(member));
        if !is_complete || !inspection.status.is_member() {
            return Some(format!(
                "node {place} does not have all members as voters, where they are: {members:?}"
            ));
        }
        let mut connection = Connection::new(self.nodes[place - 1].doors.web.clone());
        match connection.ask("GET", "/store/anything", b"", ANSWER_TIMEOUT).await {
            Ok(answer) if matches!(answer.status, 200 | 404) => None,
            outcome => Some(format!("node {place} answers no read: {outcome:?}")),
        }
    }

    /// Waits until the process of this place has ended by itself, or is well; what ended or `None`.
    pub(crate) async fn ends_or_is_well(&mut self, place: Party) -> Result<Option<End>, Trouble> {
        let begin = Instant::now();
        loop {
            if let Some(end) = self.node(place).ended()? {
                return Ok(Some(end));
            }
            let Some(missing) = self.what_is_missing_at(place).await else { return Ok(None) };
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unwell(missing));
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits until the process of this place has ended by itself, but no longer than patience lasts.
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

    /// Waits until everybody but the one at `place` has what the cluster has committed so far.
    pub(crate) async fn wait_until_others_have_all(&mut self, place: Party) -> Result<(), Trouble> {
        let begin = Instant::now();
        let mut wanted = None;
        loop {
            let all = self.inspect_all().await;
            let others = all.into_iter().filter(|(other, _)| *other != place);
            let others: Vec<_> = others.map(|(_, it)| it).collect();
            let last = others.iter().flatten().map(|it| it.status.last.index).max();
            // As much as any of them had at the first look, durable everywhere.
            wanted = wanted.or(last);
            if others.iter().all(|it| it.as_ref().is_some_and(|it| Some(it.durable) >= wanted)) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(Trouble::Unwell(format!("the others do not have entry {wanted:?}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// A client of all members but the one at this place.
    pub(crate) fn client_without(&self, place: Party) -> Result<Client, BoxError> {
        let others = self.members().filter(|node| node.place != place).map(|node| &*node.addresses.raft);
        Ok(Client::new(others)?.with_deadline(PATIENCE / 4))
    }

    /// Takes an id out of the cluster, by the word of the nodes at other places.
    pub(crate) async fn remove(&mut self, place: Party, id: NodeId) -> Result<(), Trouble> {
        let client = self.client_without(place)?;
        let begin = Instant::now();
        loop {
            let outcome = client.change_config(MembershipChange::one(MemberChange::Remove(id))).await;
            // What was unknown or refused may have happened all the same.
            let members = match outcome {
                Ok(members) => Some(members),
                Err(_) => client.inspect().await.ok().map(|it| (*it.status.members).clone()),
            };
            if members.is_some_and(|members| members.get(id).is_none()) {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(Trouble::Unwell(format!(
                    "node {id} is not removed: {:?}",
                    outcome_of(&client, id).await
                )));
            }
            sleep(PAUSE).await;
        }
    }

    /// Lets a new node into the cluster at a place that is down and empty.
    pub(crate) async fn join(&mut self, place: Party) -> Result<(), Trouble> {
        let begin = Instant::now();
        self.node(place).program = Program::Dynamic;
        loop {
            if !self.node(place).is_up() {
                self.start_node(place)?;
            }
            match self.ends_or_is_well(place).await? {
                None => return Ok(()),
                // It was given no id or not let in, in the time that it had: it asks again.
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
