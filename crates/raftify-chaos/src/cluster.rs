//! The nodes together: who leads, whether all are well, how one is removed and another one comes in.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use raftify::{BoxError, Inspection, MemberChange, MemberRole, MembershipChange, NodeId};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::clients::{self, Client, Doors};
use crate::http::Connection;
use crate::links::{Links, Party};
use crate::network::{Kind, Network};
use crate::node::{End, Node, Program, Setting};

/// How long a node may take to say how it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What must be well within this long after nothing disturbs it any more. Generous: joints of many seconds are no
/// violation, standing still is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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
            Trouble::Unwell(what) => write!(f, "{PATIENCE:?} after all was healed, {what}"),
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
}

impl Cluster {
    /// Starts the first nodes of a new cluster.
    pub(crate) fn start(
        kind: Kind,
        count: usize,
        programs: &Path,
        directory: &Path,
    ) -> Result<Cluster, BoxError> {
        let setting = Setting { programs: programs.to_owned(), members: directory.join("members.toml") };
        setting.check()?;
        let network = Network::start(kind, count)?;
        let mut nodes = Vec::new();
        let mut members = String::new();
        for place in 1..=count {
            let addresses = network.addresses(place).clone();
            members += &format!("[[peers]]\nid = {place}\naddress = \"{}\"\n", addresses.raft);
            let doors = Doors { web: addresses.web.clone(), grpc: clients::grpc(&addresses.raft)? };
            nodes.push(Node::new(place, addresses, doors, directory)?);
        }
        std::fs::write(&setting.members, members)?;
        let mut cluster = Cluster { nodes, network, setting };
        for place in 1..=count {
            cluster.start_node(place)?;
        }
        Ok(cluster)
    }

    pub(crate) fn node(&mut self, place: Party) -> &mut Node {
        &mut self.nodes[place - 1]
    }

    pub(crate) fn places(&self) -> Vec<Party> {
        (1..=self.nodes.len()).collect()
    }

    pub(crate) fn webs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.doors.web.clone()).collect()
    }

    pub(crate) fn doors(&self) -> Vec<Doors> {
        self.nodes.iter().map(|node| node.doors.clone()).collect()
    }

    /// Starts the process of a place that is down.
    pub(crate) fn start_node(&mut self, place: Party) -> Result<(), BoxError> {
        // Who only goes on needs none, and may be given one that is down.
        let peer = self.nodes.iter().filter(|node| node.place != place).max_by_key(|node| node.is_up());
        let peer = peer.map_or(String::new(), |node| node.addresses.raft.clone());
        self.nodes[place - 1].start(&self.setting, &self.network, &peer)
    }

    /// Opens all links, wakes and starts all processes, makes room on all disks.
    pub(crate) fn heal(&mut self) -> Result<(), BoxError> {
        self.network.set(Links::open(self.nodes.len()));
        for place in self.places() {
            let node = self.node(place);
            node.empty()?;
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

    async fn inspect_all(&self) -> Vec<Option<Inspection>> {
        join_all(self.places().into_iter().map(|place| self.inspect(place))).await
    }

    /// Who leads in the newest term that anybody tells.
    pub(crate) async fn leader(&self) -> Option<Party> {
        let all = self.inspect_all().await;
        let leaders = (1..).zip(&all).filter_map(|(place, it)| Some((place, &it.as_ref()?.status)));
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
            if begin.elapsed() > PATIENCE {
                return Err(Trouble::Unwell(missing));
            }
            sleep(PAUSE).await;
        }
    }

    fn look_for_ended(&mut self) -> Result<(), Trouble> {
        for node in &mut self.nodes {
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
        let is_complete = members.len() == self.nodes.len()
            && members.iter().all(|member| member.role == MemberRole::Voter);
        if !is_complete || !inspection.status.is_member() {
            return Some(format!("node {place} does not have all members as voters: {members:?}"));
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
            if begin.elapsed() > PATIENCE {
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
            let others: Vec<_> =
                (1..).zip(all).filter(|(other, _)| *other != place).map(|(_, it)| it).collect();
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

    /// Takes an id out of the cluster, by the word of the nodes at other places.
    pub(crate) async fn remove(&mut self, place: Party, id: NodeId) -> Result<(), Trouble> {
        let others = self.nodes.iter().filter(|node| node.place != place).map(|node| &*node.addresses.raft);
        let client = Client::new(others)?.with_deadline(PATIENCE / 4);
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
                Some(end) if begin.elapsed() > PATIENCE => return Err(Trouble::Ended(place, end)),
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
