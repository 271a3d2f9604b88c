//! One host and the runs of its node: bootstrapped, run, ended in one of many ways, and bootstrapped again.
//!
//! The end of each run is checked: everything is closed, and every request is answered.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use raftify::error::{
    BootstrapError, JoinClusterError, MembershipError, MembershipRefusal, NodeStartError, RunError,
    StopReason,
};
use raftify::start::{BootstrapOptions, Expect, Start};
use raftify::status::Status;
use raftify::storage::StorageError;
use raftify::{ClusterJoinTicket, Config, Member, NodeId, Raft};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, Node, in_time};
use crate::disk::Disk;
use crate::machine::{Profile, Registers};
use crate::record::Record;

mod orders;

pub(crate) use orders::Order;

/// How a node enters its cluster.
#[derive(Clone, Debug)]
pub(crate) enum StartMode {
    /// It begins a new one, alone.
    Alone,
    /// It begins one with these nodes, which all get the same list.
    Together(NodeId, Vec<Member>),
    /// It requests a ticket from one of these addresses, after a while.
    Joins(Duration, Vec<String>),
    /// After a while, it begins one with the expected number of others, or joins the one that has begun.
    Expects(Duration, Expect),
}

/// The world's view of a host.
#[derive(Default)]
pub(crate) struct Seen {
    /// The node of the current run.
    pub(crate) status: RefCell<Option<watch::Receiver<Status>>>,
    /// Orders to the current run.
    pub(crate) orders: RefCell<Option<mpsc::UnboundedSender<Order>>>,
    /// The node is no longer a member, and its host has nothing to do.
    pub(crate) is_gone: Cell<bool>,
    /// The node must not start again.
    pub(crate) rests: Cell<bool>,
    /// The process was killed, and is not started again yet.
    pub(crate) is_killed: Cell<bool>,
    /// Whether a probe has succeeded.
    pub(crate) probed: Rc<Cell<bool>>,
    lives: Cell<u64>,
}

/// The state of one host that outlives its node.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) number: u64,
    pub(crate) seed: u64,
    pub(crate) start_mode: StartMode,
    pub(crate) config: Config,
    pub(crate) profile: Profile,
    pub(crate) disk: Disk,
    pub(crate) record: Record,
    pub(crate) seen: Seen,
    /// The number of clients of its handle, and the pause of each between two calls.
    pub(crate) users: u64,
    pub(crate) pause_max: Duration,
    /// The maximum number of additional bytes of some of their entries.
    pub(crate) padding_bytes_max: usize,
    /// The longest pause between two runs.
    pub(crate) down_max: Duration,
}

/// How one run ended.
enum End {
    Again,
    Gone,
}

/// The time after which everything must be closed, once `run` was dropped and the last operation of the disk
/// is over. Entries that are being applied are applied to their end.
const CLOSING_MAX: Duration = Duration::from_secs(2);

/// The maximum number of disk operations that begin after `run` was dropped: the write of the queue, and one
/// for each task that another thread has just received.
const LAST_OPERATIONS_MAX: u64 = 8;

/// The maximum duration of a node's end, without the operations of the disk: connections that hang are
/// aborted after 2 s, twice, and before that the node may transfer leadership and answer for 2 s.
const QUIT_MAX: Duration = Duration::from_secs(10);

/// The time after its deadline at which a call gives up on the core, with a margin for a step of the
/// simulation.
const GRACE: Duration = Duration::from_millis(1200);

impl Host {
    /// Everything that runs on the host: nothing while its process is killed.
    pub(crate) async fn process(self: Rc<Self>) -> turmoil::Result {
        if self.seen.is_killed.get() {
            std::future::pending::<()>().await;
        }
        self.live().await
    }

    /// The tasks of the host, until it crashes.
    async fn live(self: Rc<Self>) -> turmoil::Result {
        loop {
            let life = self.seen.lives.get();
            self.seen.lives.set(life + 1);
            let mut chance = ChaCha8Rng::seed_from_u64(self.seed ^ (life << 32));
            let end = self.life(&mut chance).await;
            self.seen.status.take();
            self.seen.orders.take();
            if matches!(end, End::Gone) {
                self.record.event(&self.name, "is gone");
                self.seen.is_gone.set(true);
            }
            let pause = chance.random_range(Duration::ZERO..=self.down_max);
            sleep(pause).await;
            while self.seen.is_gone.get() || self.seen.rests.get() {
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn violation(&self, what: impl std::fmt::Display) {
        self.record.violation(&self.name, what);
    }

    async fn life(&self, chance: &mut ChaCha8Rng) -> End {
        let ticket = match &self.start_mode {
            StartMode::Joins(after, peers) => match self.disk.ticket() {
                Some(ticket) => Some(ticket),
                None => {
                    sleep(*after).await;
                    Some(self.get_ticket(peers, chance).await)
                }
            },
            _ => None,
        };
        let node = match &self.start_mode {
            StartMode::Expects(after, expect) => match self.start(*after, expect, chance).await {
                Ok(node) => node,
                Err(end) => return end,
            },
            _ => match self.bootstrap(ticket.as_ref(), chance).await {
                Some(node) => node,
                None => return End::Again,
            },
        };
        let (orders, mut ordered) = mpsc::unbounded_channel();
        self.seen.orders.replace(Some(orders));
        self.seen.status.replace(Some(node.status()));
        let mut users = JoinSet::new();
        let was_refused = Rc::new(Cell::new(false));
        let (drop_run, dropped) = watch::channel(false);
        let running = node.clone().run();
        let mut running = tokio::task::spawn_local(let_go(running, dropped));
        users.spawn_local(watch_status(self.record.clone(), self.name.clone(), node.status()));
        if let Some(ticket) = ticket {
            // Joining lasts as long as there is progress, and this long without any.
            let limit = 3 * (self.config.membership_timeout + GRACE) + 2 * self.config.joiner_timeout;
            for _ in 0..chance.random_range(1..=2) {
                users.spawn_local(join(
                    self.record.clone(),
                    self.name.clone(),
                    node.clone(),
                    ticket.clone(),
                    limit,
                    Rc::clone(&was_refused),
                ));
            }
        }
        for user in 0..self.users {
            let client = self.client(user, chance);
            let (propose, read) =
                (self.config.propose_timeout + GRACE, 2 * (self.config.read_timeout + GRACE));
            users.spawn_local(client.use_node(node.clone(), propose, read));
        }
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut running => break ended,
                Some(order) = ordered.recv() => {
                    users.spawn_local(self.order(order, &node, &drop_run, chance));
                }
            }
        };
        self.seen.orders.take();
        let end = match ended {
            Ok(ended) => match self.judge(ended, &node).await {
                End::Again if was_refused.get() => End::Gone,
                end => end,
            },
            Err(error) => {
                self.violation(format_args!("run panicked: {error}"));
                End::Again
            }
        };
        // Every request is answered.
        while !users.is_empty() {
            match timeout(GRACE, users.join_next()).await {
                Ok(Some(Err(error))) => self.violation(format_args!("a user panicked: {error}")),
                Ok(_) => {}
                Err(_) => {
                    self.violation(format_args!("{} users of a node that has ended still wait", users.len()));
                    break;
                }
            }
        }
        end
    }

    fn client(&self, user: u64, chance: &mut ChaCha8Rng) -> Client {
        let name = format!("{} user {user}", self.name);
        let chance = ChaCha8Rng::from_rng(chance);
        Client::new(name, self.number * 100 + user, chance, self.record.clone(), self.pause_max)
            .with_padding(self.padding_bytes_max)
    }

    async fn get_ticket(&self, peers: &[String], chance: &mut ChaCha8Rng) -> ClusterJoinTicket {
        loop {
            let peer = &peers[chance.random_range(0..peers.len())];
            let asked = Raft::<_, Registers>::request_id(&self.address, peer);
            match in_time(&self.record, &self.name, Duration::from_secs(31), "request_id", asked).await {
                Some(Ok(ticket)) => {
                    self.record.event(&self.name, format_args!("has a ticket for id {}", ticket.reserved_id));
                    self.record.count("ticket");
                    self.disk.keep_ticket(ticket.clone());
                    return ticket;
                }
                Some(Err(error)) => self.record.event(&self.name, format_args!("no ticket: {error}")),
                None => {}
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Waits until the node has begun a cluster with the others, or has joined theirs, or has an order to
    /// end.
    async fn start(&self, after: Duration, expect: &Expect, chance: &mut ChaCha8Rng) -> Result<Node, End> {
        if self.seen.lives.get() == 1 {
            sleep(after).await;
        }
        let (orders, mut ordered) = mpsc::unbounded_channel();
        self.seen.orders.replace(Some(orders));
        let began = Instant::now();
        loop {
            let machine =
                Registers::new(&self.name, self.profile, self.record.clone(), ChaCha8Rng::from_rng(chance));
            self.record.event(&self.name, format_args!("expects {} nodes", expect.count));
            let starting = async {
                let disk = self.disk.open().map_err(BootstrapError::from)?;
                let (start, options) = (Start::Expect(expect.clone()), BootstrapOptions::default());
                Raft::start(start, &*self.address, disk, machine, self.config.clone(), options).await
            };
            let told_to_end = async {
                loop {
                    match ordered.recv().await {
                        Some(Order::Quit | Order::QuitHalf(..) | Order::Drop) => break,
                        Some(_) => {}
                        None => std::future::pending().await,
                    }
                }
            };
            let started = tokio::select! {
                biased;
                () = told_to_end => {
                    self.record.event(&self.name, "start was dropped");
                    self.record.count("start dropped");
                    None
                }
                started = starting => Some(started),
            };
            let Some(started) = started else {
                self.must_close("start").await;
                return Err(End::Again);
            };
            match started {
                Ok(node) => {
                    self.record.event(&self.name, format_args!("started as node {}", node.id()));
                    self.record.count("expected");
                    return Ok(node);
                }
                // The remains of an earlier run that was dropped half way.
                Err(NodeStartError::Bootstrap(
                    BootstrapError::Storage(StorageError::InUse { .. }) | BootstrapError::PortTaken { .. },
                )) if began.elapsed() < CLOSING_MAX => sleep(Duration::from_millis(20)).await,
                Err(
                    error @ (NodeStartError::DirectoryUnusable(_)
                    | NodeStartError::Run(RunError::Stopped(StopReason::Removed { .. }))),
                ) => {
                    self.record.event(&self.name, format_args!("not started: {error}"));
                    self.record.count("removed");
                    return Err(End::Gone);
                }
                Err(error) => {
                    if !self.disk.take_failure() {
                        self.violation(format_args!("cannot start: {error}"));
                    }
                    self.record.event(&self.name, format_args!("not started: {error}"));
                    return Err(End::Again);
                }
            }
        }
    }

    async fn bootstrap(&self, ticket: Option<&ClusterJoinTicket>, chance: &mut ChaCha8Rng) -> Option<Node> {
        let id = match (&self.start_mode, ticket) {
            (StartMode::Together(id, _), _) => *id,
            (_, Some(ticket)) => ticket.reserved_id,
            _ => NodeId::FIRST,
        };
        let began = Instant::now();
        let node = loop {
            let machine =
                Registers::new(&self.name, self.profile, self.record.clone(), ChaCha8Rng::from_rng(chance));
            let bootstrapped = self
                .disk
                .open()
                .map_err(BootstrapError::from)
                .and_then(|disk| Raft::bootstrap(id, &*self.address, disk, machine, self.config.clone()));
            match bootstrapped {
                Ok(node) => break node,
                // The remains of an earlier run that was dropped half way.
                Err(
                    BootstrapError::Storage(StorageError::InUse { .. }) | BootstrapError::PortTaken { .. },
                ) if began.elapsed() < CLOSING_MAX => {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) if self.disk.take_failure() => {
                    self.record.event(&self.name, format_args!("not bootstrapped: {error}"));
                    return None;
                }
                Err(error) => {
                    self.violation(format_args!("cannot bootstrap: {error}"));
                    return None;
                }
            }
        };
        self.record.event(&self.name, format_args!("bootstrapped as node {id}"));
        self.record.count("bootstrapped");
        let first = match &self.start_mode {
            StartMode::Alone => vec![Member::voter(id, &*self.address)],
            StartMode::Together(_, members) => members.clone(),
            StartMode::Joins(..) | StartMode::Expects(..) => Vec::new(),
        };
        if !first.is_empty()
            && let Err(error) = node.add_peers(first).await
        {
            self.violation(format_args!("add_peers: {error}"));
        }
        Some(node)
    }

    /// What must hold after a future that owns the disk was dropped.
    async fn must_close(&self, what: &str) {
        let before = self.disk.operations();
        let mut idle_since = Instant::now();
        while !self.disk.is_closed() {
            idle_since = idle_since.max(Instant::now() + self.disk.busy_for());
            if idle_since.elapsed() > CLOSING_MAX {
                self.violation(format_args!(
                    "{what} was dropped, and the disk, idle for {CLOSING_MAX:?}, is still in use"
                ));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let operations = self.disk.operations() - before;
        if operations > LAST_OPERATIONS_MAX {
            self.violation(format_args!(
                "{operations} operations of the disk began after {what} was dropped"
            ));
        }
    }

    /// What must hold when `run` has ended.
    async fn judge(&self, ended: Option<Result<(), RunError>>, node: &Node) -> End {
        let Some(ended) = ended else {
            self.record.event(&self.name, "run was dropped");
            self.record.count("run dropped");
            self.must_close("run").await;
            return End::Again;
        };
        if !self.disk.is_closed() {
            self.violation("run has returned and the disk is still in use");
        }
        let told = in_time(&self.record, &self.name, GRACE, "quit after the end", node.quit()).await;
        if told.is_none() {
            return End::Again;
        }
        match &ended {
            Ok(()) => self.record.event(&self.name, "run returned"),
            Err(error) => self.record.event(&self.name, format_args!("run returned: {error}")),
        }
        let was_removed = {
            let status = node.status();
            let status = status.borrow();
            status.identity.is_some() && !status.is_member() && status.members.knows(status.node_id)
        };
        match ended {
            Ok(())
                if was_removed
                    && node.status().borrow().members.as_of() > raftify::status::LogIndex::ZERO =>
            {
                End::Gone
            }
            Ok(()) => End::Again,
            Err(RunError::Stopped(StopReason::Removed { .. })) => {
                self.record.count("removed");
                End::Gone
            }
            Err(RunError::Stopped(StopReason::Storage(_))) if self.disk.take_failure() => {
                self.record.count("disk failed");
                End::Again
            }
            Err(error) => {
                self.violation(format_args!("run failed: {error}"));
                End::Again
            }
        }
    }
}

/// Resolves to `None` if `future` was dropped before it ended.
async fn let_go<F: Future>(future: F, mut dropped: watch::Receiver<bool>) -> Option<F::Output> {
    tokio::select! {
        biased;
        _ = dropped.wait_for(|dropped| *dropped) => None,
        output = future => Some(output),
    }
}

async fn watch_status(record: Record, name: String, mut status: watch::Receiver<Status>) {
    let mut shown = String::new();
    loop {
        let line = {
            let status = status.borrow_and_update();
            if let Some(identity) = status.identity
                && !status.members.is_empty()
            {
                record.has_begun(&name, identity.cluster_id);
            }
            format!(
                "{} in term {}, leader {:?}, members {:?}",
                status.role,
                status.term,
                status.leader_id.map(NodeId::get),
                status.members.iter().map(|member| member.id.get()).collect::<Vec<_>>()
            )
        };
        if line != shown {
            record.event(&name, &line);
            shown = line;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until it is a member, or has stopped. A node that was removed before it learned that it was a member
/// learns of it only here: it knows no node that could report it.
async fn join(
    record: Record,
    name: String,
    node: Node,
    ticket: ClusterJoinTicket,
    limit: Duration,
    was_refused: Rc<Cell<bool>>,
) {
    loop {
        let joined =
            in_time(&record, &name, limit, "join_cluster", node.join_cluster(vec![ticket.clone()])).await;
        match joined {
            Some(Ok(())) => {
                record.count("joined");
                return record.event(&name, "is a member");
            }
            Some(Err(JoinClusterError::Refused(MembershipError::Refused(
                MembershipRefusal::IdWasRemoved { .. },
            )))) => {
                record.event(&name, "was removed before it was a member");
                was_refused.set(true);
                return node.quit().await;
            }
            Some(Err(JoinClusterError::Stopped(reason))) => {
                return record.event(&name, format_args!("does not join: {reason}"));
            }
            Some(Err(error)) => record.event(&name, format_args!("not joined: {error}")),
            None => return,
        }
        sleep(Duration::from_millis(300)).await;
    }
}
