//! A cluster without chance, stepped by hand: for tests of one situation each.
//!
//! It is the simulation without its schedule. Nodes, disks, network and state machines are the same, and
//! after every step all invariants are checked, so that a step that violates one fails the test with the name
//! of that invariant. But no time passes by itself: the test decides which message arrives, which write
//! becomes durable, which clock ticks. The seed determines nothing but the election timeouts and which part
//! of a pending write a crash keeps.
//!
//! What a test says through [`Cluster::core`] reaches the core past the invariants, which observe its effects
//! with the next step. A test that must violate an invariant says so: [`Cluster::judge_without`].
//!
//! ```
//! use raftify_sim::script::{Cluster, take, test_config};
//!
//! let mut cluster = Cluster::new(7, 3, test_config());
//! let leader = cluster.until_leader();
//! let proposal = cluster.propose(leader);
//! cluster.settle();
//! assert!(take(&proposal).expect("it is answered").is_ok());
//! ```

mod faults;
mod outcome;
mod progress;
mod requests;
mod steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use raftify_core::error::StopReason;
use raftify_core::storage::StoredState;
use raftify_core::{
    ClusterId, Config, Incarnation, LogPosition, NodeId, RaftNodeCore, Role, Sender, Status, TurnNumber,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use faults::DiskCopy;
pub use outcome::{Outcome, outcome, payload, reply_to, responder, take};

pub use crate::reply::Reply;

use crate::invariants::Checked;
use crate::network::Packet;
use crate::node::{Node, Running};
use crate::simulation::Simulation;
use crate::trace::Trace;
use crate::world::World;

/// From and to.
type Link = (NodeId, NodeId);

/// The node id of a test.
///
/// # Panics
/// If `number` is zero.
pub fn id(number: u64) -> NodeId {
    NodeId::new(number).expect("the id of a test is not zero")
}

/// Settings with short times: a tick is 10 ms, an election timeout ten ticks.
pub fn test_config() -> Config {
    Config {
        tick_interval: Duration::from_millis(10),
        heartbeat_interval: Duration::from_millis(20),
        election_timeout: Duration::from_millis(100),
        disk_stall_timeout: Duration::from_millis(500),
        propose_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(2),
        membership_timeout: Duration::from_secs(3),
        snapshot_entries: Some(40),
        log_entries_kept: 10,
        log_bytes_kept_for_followers: 0,
        log_cache_bytes: 400,
        message_bytes_max: 1024,
        ..Config::default()
    }
}

/// A cluster that is stepped by hand. All methods that step it panic if a step violates an invariant.
pub struct Cluster {
    sim: Simulation,
    /// Messages and requests in flight.
    links: BTreeMap<Link, VecDeque<Packet>>,
    /// Snapshots that have not reached the ends of their links.
    snapshots: Vec<(Link, Packet)>,
    /// Answers of nodes to other nodes.
    answers: VecDeque<(Link, Packet)>,
    /// Snapshots stay in flight until [`Cluster::deliver_snapshots`].
    pub slow_snapshots: bool,
    /// Snapshots are written only when a follower waits for them.
    pub leisurely_snapshots: bool,
    /// State machines that are on disk from the next start on. All others are in memory.
    on_disk: BTreeSet<NodeId>,
    snapshots_installed: usize,
    proposals: Vec<outcome::Proposal>,
    reservations: Vec<outcome::Reserved>,
}

impl Cluster {
    /// Voters `1..=voters`, all running, with empty logs.
    ///
    /// # Panics
    /// If the settings are invalid.
    pub fn new(seed: u64, voters: u64, config: Config) -> Cluster {
        let config = config.check().expect("the settings of a test are valid");
        let world = World::calm(voters, config);
        let mut sim =
            Simulation::of(world, ChaCha8Rng::seed_from_u64(seed), Trace::On(format!("seed {seed}\n")));
        // Each step makes one turn durable, unless a test asks for more.
        sim.turns_per_write_max = 1;
        let mut cluster = Cluster {
            sim,
            links: BTreeMap::new(),
            snapshots: Vec::new(),
            answers: VecDeque::new(),
            slow_snapshots: false,
            leisurely_snapshots: false,
            on_disk: BTreeSet::new(),
            snapshots_installed: 0,
            proposals: Vec::new(),
            reservations: Vec::new(),
        };
        for number in 1..=voters {
            cluster.add_node(id(number));
        }
        cluster
    }

    fn node(&self, node: NodeId) -> &Node {
        self.sim.nodes.get(&node).expect("the test has added this node")
    }

    fn node_mut(&mut self, node: NodeId) -> &mut Node {
        self.sim.nodes.get_mut(&node).expect("the test has added this node")
    }

    fn run_of(&mut self, node: NodeId) -> &mut Running {
        self.sim.running(node).expect("the node runs")
    }

    /// All nodes, running or not.
    pub fn ids(&self) -> Vec<NodeId> {
        self.sim.nodes.keys().copied().collect()
    }

    /// The cluster that the first members begin.
    pub fn cluster_id(&self) -> ClusterId {
        self.sim.initial.derive_cluster_id()
    }

    /// The incarnation of the disk of `node`.
    ///
    /// # Panics
    /// If there is no such node; so do all methods that return something of a node.
    pub fn incarnation(&self, node: NodeId) -> Incarnation {
        self.node(node).incarnation
    }

    /// Whether `node` exists and runs.
    pub fn is_running(&self, node: NodeId) -> bool {
        self.sim.nodes.get(&node).is_some_and(Node::is_running)
    }

    /// Why `node` stopped by itself, the last time that it did.
    pub fn stopped_because(&self, node: NodeId) -> Option<StopReason> {
        self.node(node).stopped_because.clone()
    }

    /// The core of a running node. [`Cluster::run_turns`] carries out what follows from a call to it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn core(&mut self, node: NodeId) -> &mut RaftNodeCore<Reply> {
        &mut self.run_of(node).core
    }

    /// `None` if it does not run.
    pub fn status(&self, node: NodeId) -> Option<Status> {
        self.sim.status(node)
    }

    /// The leader of the highest term.
    pub fn leader(&self) -> Option<NodeId> {
        let statuses = self.sim.nodes.keys().filter_map(|node| self.status(*node));
        let leaders = statuses.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node_id)
    }

    /// The durable state of `node`, as its storage loads it.
    ///
    /// # Panics
    /// If it cannot be loaded.
    pub fn stored(&mut self, node: NodeId) -> StoredState {
        self.node_mut(node).disk.load().expect("the disks of a script are readable")
    }

    /// Whether all other nodes know the incarnation of `node`, so that they notice the loss of its disk.
    pub fn is_incarnation_known(&mut self, node: NodeId) -> bool {
        self.ids().into_iter().all(|other| {
            let members = self.stored(other).members;
            other == node || members.and_then(|members| members.get(node)?.incarnation).is_some()
        })
    }

    /// The turns of `node` that wait for its disk, and how many entries each appends.
    pub fn waiting_turns(&mut self, node: NodeId) -> Vec<(TurnNumber, usize)> {
        let running = self.run_of(node);
        let entries = |writes: &[raftify_core::storage::Write]| writes.iter().map(|w| w.append.len()).sum();
        let first = running.writing.iter().map(|writing| (writing.number, entries(&writing.writes)));
        let others = running.to_write.iter().map(|turn| (turn.number, entries(turn.write.as_slice())));
        first.chain(others).collect()
    }

    /// How a message from one node to another introduces its sender, and which incarnation it is meant for.
    ///
    /// # Panics
    /// If the start of the sender is not durable yet.
    pub fn introduction(&self, from: NodeId, to: NodeId) -> (Sender, Option<Incarnation>) {
        self.sim.introduction(from, to).expect("the start of the sender is durable")
    }

    /// The number of messages and requests in flight on a link.
    pub fn packets(&self, from: NodeId, to: NodeId) -> usize {
        self.links.get(&(from, to)).map_or(0, VecDeque::len)
    }

    /// Whether snapshots are in flight that [`Cluster::deliver_snapshots`] delivers.
    pub fn is_sending_snapshots(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// The number of snapshots of leaders that became durable on followers.
    pub fn snapshots_installed(&self) -> usize {
        self.snapshots_installed
    }

    /// The positions of all acknowledged proposals.
    pub fn acknowledged(&self) -> Vec<LogPosition> {
        self.proposals.iter().filter_map(|proposal| take(proposal)?.ok()).collect()
    }

    /// What happened, one line for each event.
    pub fn trace(&self) -> &str {
        self.sim.trace.lines()
    }

    /// Carries out a step, what follows from it without delay, and checks the invariants.
    fn step(&mut self, step: impl FnOnce(&mut Simulation) -> Checked) {
        let outcome = step(&mut self.sim).and_then(|()| self.sim.deliver_answers());
        self.judge(outcome);
        self.take_events();
    }

    /// # Panics
    /// If the step violates an invariant.
    fn judge(&self, outcome: Checked) {
        if let Err(violation) = outcome {
            panic!("{violation}\n{}\n{}", self.trace(), self.sim.summary());
        }
    }
}
