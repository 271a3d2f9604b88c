//! One world, from its beginning to its end: carries out what the cores want done, lets everything that takes time take
//! its time, and has all invariants checked after every step.
//!
//! Two phases: for a while, things go wrong, and everything must be safe; then enough is healed, and the cluster must
//! become live within a bound: a leader, a new commit, all members equal, nobody without an answer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use raftify_core::error::{MembershipError, ReadError, StopReason};
use raftify_core::members::SenderRefusal;
use raftify_core::storage::Write;
use raftify_core::{
    ClusterId, Committed, CoreStart, Entry, Forwarding, Identity, Incarnation, LeaderRequest,
    LocalRequestMsg, LogFetch, LogIndex, LogPosition, Member, Members, MembershipChange, NodeId, RaftMessage,
    RaftMessageBody, RaftNodeCore, Reservation, Responder, Role, Sender, ServerRequestMsg, SnapshotMeta,
    SnapshotStore, Status, StorageError, Turn, TurnNumber,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::clients::Clients;
use crate::coverage::{Coverage, Happened};
use crate::disk::{Disk, Torn};
use crate::invariants::deadlines::{self, Deadlines};
use crate::invariants::{
    Checked, Invariants, bounded_log, leader_append_only, leadership, membership, terms,
};
use crate::log_picture::LogPicture;
use crate::nemesis::{Nemesis, Repair};
use crate::network::{BROKEN, Network, Packet, Proposed, break_off, forwarded};
use crate::node::{Captured, Durable, FailsTo, Lost, Node, Running, Seen, ToApply, ToWrite, Writing};
use crate::schedule::{MILLISECOND, SECOND, Schedule, Time};
use crate::store::Store;
use crate::trace::Trace;
use crate::world::{Chance, World};

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);

/// What will happen.
pub(crate) enum Event {
    Tick {
        node: NodeId,
        life: u64,
    },
    Arrive {
        from: NodeId,
        to: NodeId,
        packet: Packet,
    },
    /// The write that is under way is on the disk.
    Durable {
        node: NodeId,
        life: u64,
    },
    /// The node hears of it.
    Written {
        node: NodeId,
        life: u64,
    },
    Apply {
        node: NodeId,
        life: u64,
    },
    SnapshotWritten {
        node: NodeId,
        life: u64,
        captured: Captured,
    },
    /// `read`: what was read when it was asked for; otherwise it is read now.
    Fetched {
        node: NodeId,
        life: u64,
        fetch: LogFetch,
        read: Option<Result<Vec<Entry>, StorageError>>,
    },
    /// A connection broke: its sender hears of it, or of what it carried.
    Broke {
        from: NodeId,
        to: NodeId,
    },
    Lost(Packet, NodeId),
    Refused {
        node: NodeId,
        by: NodeId,
        refusal: SenderRefusal,
    },
    Client(usize),
    /// Something goes wrong.
    Fault,
    /// Something is repaired.
    Repair(Repair),
    Start(NodeId),
    /// The end of the trouble.
    Heal,
    /// A look at whether the cluster is well again.
    Look,
}

impl Event {
    /// In whom it happens: if that one is paused, it happens later.
    fn node(&self) -> Option<NodeId> {
        match self {
            Event::Tick { node, .. }
            | Event::Durable { node, .. }
            | Event::Written { node, .. }
            | Event::Apply { node, .. }
            | Event::SnapshotWritten { node, .. }
            | Event::Fetched { node, .. }
            | Event::Refused { node, .. }
            | Event::Arrive { to: node, .. }
            | Event::Broke { from: node, .. }
            | Event::Lost(_, node) => Some(*node),
            _ => None,
        }
    }
}

/// Something that a core, or a node that stopped, has answered.
pub(crate) enum Answered {
    Proposed {
        number: u64,
        answer: Proposed,
    },
    Read {
        number: u64,
        node: NodeId,
        answer: Result<LogIndex, ReadError>,
    },
    Changed {
        number: u64,
        change: MembershipChange,
        answer: Result<Members, MembershipError>,
    },
    Reserved {
        number: u64,
        answer: Result<Reservation, MembershipError>,
    },
    /// Something of which it only matters whether it succeeded.
    Done {
        number: u64,
        what: Option<Happened>,
        succeeded: bool,
    },
    /// It is for another node.
    Travels {
        from: NodeId,
        to: NodeId,
        packet: Packet,
    },
}

/// Where answers are put until the step that gave them is over.
#[derive(Clone, Default)]
pub(crate) struct AnswerQueue(Arc<Mutex<Vec<Answered>>>);

impl AnswerQueue {
    pub(crate) fn push(&self, answered: Answered) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(answered);
    }

    /// Whether request `number` was answered in this step.
    pub(crate) fn has(&self, number: u64) -> bool {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers
            .iter()
            .any(|answered| matches!(answered, Answered::Done { number: done, .. } if *done == number))
    }

    fn take(&self) -> Vec<Answered> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// See the module.
pub(crate) struct Simulation {
    pub(crate) world: World,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) schedule: Schedule<Event>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) network: Network,
    pub(crate) invariants: Invariants,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    pub(crate) clients: Clients,
    pub(crate) nemesis: Nemesis,
    pub(crate) answers: AnswerQueue,
    pub(crate) steps: u64,
    /// Since when nothing goes wrong any more.
    pub(crate) healed_at: Option<Time>,
    /// How long it took until there was a leader and a commit again.
    pub(crate) recovery: Option<Time>,
    /// The cluster is well again.
    pub(crate) is_well: bool,
    /// Histories that are too large to be decided.
    pub(crate) undecided: u64,
    initial: Members,
    incarnations: u64,
}

impl Simulation {
    pub(crate) fn new(seed: u64, trace: Trace) -> Simulation {
        let (world, rng) = World::of(seed);
        let member = |id: u64| {
            let node = NodeId::new(id).expect("ids are counted from one");
            let address = format!("node-{id}:1");
            if id <= world.voters { Member::voter(node, address) } else { Member::learner(node, address) }
        };
        let initial = Members::initial((1..=world.voters + world.learners).map(member))
            .expect("there is at least one voter, and no id twice");
        let mut simulation = Simulation {
            clients: Clients::new(&world),
            nemesis: Nemesis::default(),
            rng,
            schedule: Schedule::new(),
            nodes: BTreeMap::new(),
            network: Network::default(),
            invariants: Invariants::default(),
            coverage: Coverage::default(),
            trace,
            answers: AnswerQueue::default(),
            steps: 0,
            healed_at: None,
            recovery: None,
            is_well: false,
            undecided: 0,
            initial,
            incarnations: 0,
            world,
        };
        if simulation.world.clocks_percent > 0 {
            simulation.coverage.saw(Happened::ClocksDiffered);
        }
        simulation.tell(format_args!("{:?}", simulation.world.clone()));
        simulation
    }

    /// Runs it to its end.
    pub(crate) fn run(&mut self) -> Checked {
        let ids: Vec<NodeId> = self.initial.iter().map(|member| member.id).collect();
        for node in ids {
            self.add_node(node);
            let delay = self.rng.within((0, SECOND / 2));
            self.schedule.after(delay, Event::Start(node));
        }
        for client in 0..self.clients.count() {
            let delay = self.rng.within((0, 2 * SECOND));
            self.schedule.after(delay, Event::Client(client));
        }
        if !self.world.faults.is_empty() {
            let delay = self.rng.about(self.world.fault_interval);
            self.schedule.after(delay, Event::Fault);
        }
        if self.world.peculiar.bursts {
            let delay = self.rng.about(4 * SECOND);
            self.schedule.after(delay, Event::Repair(Repair::Burst));
        }
        self.schedule.after(self.world.trouble, Event::Heal);
        while !self.is_well
            && let Some(event) = self.schedule.next()
        {
            if let Some(node) = event.node().and_then(|node| self.nodes.get(&node))
                && node.paused_until > self.schedule.now()
            {
                self.schedule.at(node.paused_until, event);
                continue;
            }
            self.steps += 1;
            self.happen(event)?;
            self.hand_out_answers()?;
        }
        if !self.nemesis.is_hopeless {
            self.invariants.answers.end(&self.invariants.committed)?;
        }
        self.undecided = self.clients.check_histories()?;
        Ok(())
    }

    pub(crate) fn tell(&mut self, line: std::fmt::Arguments<'_>) {
        self.trace.add(self.schedule.now(), line);
    }

    fn happen(&mut self, event: Event) -> Checked {
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Durable { node, life } => self.becomes_durable(node, life),
            Event::Written { node, life } => self.hears_of_write(node, life),
            Event::Apply { node, life } => self.apply(node, life),
            Event::SnapshotWritten { node, life, captured } => self.snapshot_written(node, life, &captured),
            Event::Fetched { node, life, fetch, read } => self.fetched(node, life, fetch, read),
            Event::Broke { from, to } => {
                self.network.breaking.remove(&(from, to));
                match self.running(from) {
                    Some(running) => running.core.report_unreachable(to),
                    None => return Ok(()),
                }
                self.settle(from)
            }
            Event::Lost(packet, node) => self.hears_of_loss(packet, node),
            Event::Refused { node, by, refusal } => {
                match self.running(node) {
                    Some(running) => running.core.refused_by(by, refusal),
                    None => return Ok(()),
                }
                self.settle(node)
            }
            Event::Client(client) => self.client_acts(client),
            Event::Fault => self.something_goes_wrong(),
            Event::Repair(repair) => self.repair(repair),
            Event::Start(node) => self.start(node),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    // --- Nodes ---

    pub(crate) fn running(&mut self, node: NodeId) -> Option<&mut Running> {
        self.nodes.get_mut(&node)?.running.as_mut()
    }

    /// Only if it is still in this life.
    fn alive(&mut self, node: NodeId, life: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&node).filter(|node| node.life == life && node.is_running())
    }

    pub(crate) fn status(&self, node: NodeId) -> Option<Status> {
        Some(self.nodes.get(&node)?.running.as_ref()?.core.status())
    }

    /// By a clock that is right.
    pub(crate) fn tick_interval(&self) -> Time {
        u64::try_from(self.world.config.tick_interval.as_micros()).unwrap_or(Time::MAX)
    }

    /// A node with an empty disk, not yet started.
    pub(crate) fn add_node(&mut self, id: NodeId) {
        let spread = self.world.clocks_percent;
        let tick = self.tick_interval() * self.rng.random_range(100 - spread / 2..=100 + spread) / 100;
        let incarnation = self.next_incarnation();
        let node = Node {
            id,
            incarnation,
            disk: self.new_disk(),
            durable: Durable::default(),
            maybe_durable: Vec::new(),
            held_before: None,
            lost: None,
            is_gone: false,
            life: 0,
            running: None,
            tick,
            paused_until: 0,
            disk_hangs: false,
            disk_slowness: 1,
            apply_slowness: 1,
            fails_to: FailsTo::default(),
            backup: None,
        };
        self.nodes.insert(id, node);
    }

    pub(crate) fn new_disk(&mut self) -> Disk {
        match self.world.peculiar.segments {
            true => Disk::with_segments(self.rng.random()),
            false => Disk::with_model(),
        }
    }

    pub(crate) fn next_incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        Incarnation(self.incarnations)
    }

    /// Starts a stopped node on what its disk holds.
    pub(crate) fn start(&mut self, id: NodeId) -> Checked {
        let seed = self.rng.random();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let is_of_no_use = node.is_gone || (node.lost.is_some_and(|lost| lost == Lost::Damaged));
        if node.is_running() || is_of_no_use {
            return Ok(());
        }
        let stored = match node.disk.load() {
            Ok(stored) => stored,
            Err(error) => return self.cannot_start(id, &error),
        };
        self.compare_with_disk(id, &stored)?;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let mut store = Store::default();
        if let Some(snapshot) = &stored.snapshot {
            let position = snapshot.position;
            if std::mem::take(&mut node.fails_to.restore) {
                self.coverage.saw(Happened::RestoreFailed);
                self.tell(format_args!("{id} cannot restore the snapshot at {position}"));
                let delay = self.rng.about(SECOND);
                self.schedule.after(delay, Event::Start(id));
                return Ok(());
            }
            let data = node.disk.read_snapshot(position).map_err(|error| format!("{id}: {error}"))?;
            store = Store::decode(&data).ok_or_else(|| format!("the snapshot of {id} cannot be decoded"))?;
            if node.lost.is_none() {
                self.invariants.states.is_at(id, position.index, store.digest())?;
            }
        }
        let at = stored.snapshot.as_ref().map_or(stored.truncated, |snapshot| snapshot.position);
        let members =
            stored.snapshot.as_ref().map_or_else(Members::none, |snapshot| snapshot.members.clone());
        let is_fresh = stored.identity.is_none();
        let identity = Identity { cluster_id: CLUSTER, node_id: id, incarnation: node.incarnation };
        let start = CoreStart {
            node_id: id,
            config: self.world.config.clone(),
            seed,
            stored,
            logger: Some(slog::Logger::root(slog::Discard, slog::o!())),
        };
        let reader = node.disk.log_reader();
        let core =
            RaftNodeCore::new(start, &reader).map_err(|error| format!("{id} cannot start: {error}"))?;
        node.life += 1;
        let (life, tick) = (node.life, node.tick);
        node.running = Some(Running {
            core,
            store,
            members,
            at,
            log: node.durable.log.clone(),
            to_write: VecDeque::new(),
            writing: None,
            to_apply: VecDeque::new(),
            is_applying: false,
            seen: Seen {
                role: Role::Follower,
                term: raftify_core::Term::ZERO,
                commit: LogIndex::ZERO,
                members_as_of: LogIndex::ZERO,
                in_force: LogIndex::ZERO,
            },
            retained_for: None,
            deadlines: Deadlines::default(),
            heard: BTreeMap::new(),
            unsettled: None,
        });
        self.tell(format_args!("{id} starts"));
        let delay = self.rng.within((0, tick));
        self.schedule.after(delay, Event::Tick { node: id, life });
        if is_fresh {
            let number = self.invariants.answers.asked(format!("identity of {id}"));
            let reply = self.done(number, None);
            let message = match self.initial.get(id) {
                Some(_) => LocalRequestMsg::StartCluster { identity, members: self.initial.clone(), reply },
                None => LocalRequestMsg::AwaitCluster { identity, reply },
            };
            self.ask(id, message)?;
        }
        self.settle(id)
    }

    fn cannot_start(&mut self, id: NodeId, error: &StorageError) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let is_damage = matches!(error, StorageError::Corrupt { .. } | StorageError::Version { .. });
        if is_damage && node.disk.has_flipped() {
            node.lost = Some(Lost::Damaged);
            self.coverage.saw(Happened::BitFlip);
            self.tell(format_args!("{id} cannot start: {error}"));
            return Ok(());
        }
        if node.disk.fault().is_some() && !is_damage {
            self.tell(format_args!("{id} cannot start yet: {error}"));
            let delay = self.rng.about(SECOND);
            self.schedule.after(delay, Event::Start(id));
            return Ok(());
        }
        Err(format!("storage: {id} cannot load what it wrote: {error}"))
    }

    /// What a disk holds is what was acknowledged, and then some of what was under way: nothing else.
    fn compare_with_disk(&mut self, id: NodeId, found: &raftify_core::storage::StoredState) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let mut durable = node.durable.clone();
        let mut maybe = std::mem::take(&mut node.maybe_durable).into_iter();
        while durable.state != *found {
            let Some(write) = maybe.next() else {
                return Err(format!(
                    "storage: {id} finds {found:?}, which is neither what was acknowledged nor what was under way: {:?}",
                    node.durable.state
                ));
            };
            durable.state = durable.state.after(&write).map_err(|error| format!("{id}: {error}"))?;
            durable.log.take(&write, |position| self.invariants.logs.digest(position));
            self.invariants.logs.writes(id, &write, &durable.log)?;
            self.invariants.durable.written(id, node.incarnation, &write)?;
        }
        let log = picture_of(&node.disk, found, |position| self.invariants.logs.digest(position))?;
        if log != durable.log {
            return Err(format!("storage: {id} finds other entries in its log than it wrote"));
        }
        self.invariants.durable.has(id, node.incarnation, found.hard_state)?;
        node.durable = durable;
        Ok(())
    }

    /// Reads the log of `id` beside its writer: what can be read is what was written.
    pub(crate) fn read_all(&self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let digest_of = |position| self.invariants.logs.digest(position);
        match picture_of(&node.disk, &node.durable.state, digest_of) {
            Ok(log) if log != node.durable.log => {
                Err(format!("storage: {id} reads other entries than were written"))
            }
            _ => Ok(()),
        }
    }

    /// The power of `id` fails: what is under way may be durable, in part or not at all; all else is gone.
    pub(crate) fn crash(&mut self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(running) = node.running.take() else { return Ok(()) };
        node.paused_until = 0;
        let writes = running.writing.map(|writing| writing.writes).unwrap_or_default();
        if !writes.is_empty() || node.disk.has_segments() {
            let torn = node.disk.lose_power(&writes, &mut self.rng);
            let torn = torn.map_err(|error| format!("{id}: {error}"))?;
            self.coverage.saw(match torn {
                Torn::Lost => Happened::UnsyncedLost,
                Torn::Kept => Happened::UnsyncedKept,
                Torn::InPart => Happened::TornWrite,
            });
            // What was uncertain before is so still, if nothing was written since.
            node.maybe_durable.extend(writes);
        }
        self.tell(format_args!("{id} crashes"));
        Ok(())
    }

    /// It stops by itself, or because what it stands on has failed.
    pub(crate) fn stop(&mut self, id: NodeId, reason: &StopReason) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(mut running) = node.running.take() else { return Ok(()) };
        let own_members = running.core.status().members;
        running.core.stop(reason);
        if let Some(writing) = running.writing.filter(|writing| !writing.is_durable) {
            node.maybe_durable = writing.writes;
            let ended = node.disk.end_process(&node.maybe_durable, &mut self.rng);
            ended.map_err(|error| format!("{id}: {error}"))?;
        }
        self.tell(format_args!("{id} stops: {reason}"));
        match reason {
            StopReason::Internal(_) => return Err(format!("{id} stops: {reason}")),
            StopReason::Removed { as_of } => {
                let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
                node.is_gone = true;
                self.coverage.saw(Happened::RemovedNodeStopped);
                let members = self.invariants.membership.between(*as_of, *as_of).next();
                if members.is_none_or(|members| members.get(id).is_some()) {
                    return Err(format!("{id} stops because it was removed as of {as_of}, which is not so"));
                }
                self.observe_leaving(id, &own_members)?;
            }
            StopReason::Refused(refusal) => match node_lost(&self.nodes, id) {
                Some(Lost::Wiped) => {
                    self.coverage.saw(Happened::WipedRefused);
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.is_gone = true;
                    }
                }
                _ => return Err(format!("{id} stops because it is refused: {refusal}")),
            },
            StopReason::Storage(reason) if reason.contains("had acknowledged are missing") => {
                match node_lost(&self.nodes, id) {
                    Some(lost @ (Lost::RolledBack | Lost::Wiped)) => {
                        self.coverage.saw(match lost {
                            Lost::Wiped => Happened::WipedRefused,
                            _ => Happened::RollBackNoticed,
                        });
                        if let Some(node) = self.nodes.get_mut(&id) {
                            node.is_gone = true;
                        }
                    }
                    _ => return Err(format!("{id} stops: {reason}")),
                }
            }
            _ => {
                let delay = self.rng.about(2 * SECOND);
                self.schedule.after(delay, Event::Start(id));
            }
        }
        Ok(())
    }

    /// `id` stops because it was removed. If it knows by itself, it has waited for those who may still need its vote.
    fn observe_leaving(&self, id: NodeId, own: &Members) -> Checked {
        if own.is_empty() || own.get(id).is_some() {
            return Ok(());
        }
        let voters = own.configuration().voters;
        let voters: Option<Vec<&Node>> = voters.iter().map(|voter| self.nodes.get(voter)).collect();
        let Some(voters) = voters.filter(|voters| voters.iter().all(|node| node.lost.is_none())) else {
            return Ok(());
        };
        let commits: Vec<LogIndex> = voters.iter().map(|node| node.durable.commit()).collect();
        match self.invariants.membership.removed_after(id).map(LogIndex::next) {
            Some(index) => self.invariants.durable.leaves(id, index, &commits),
            None => Ok(()),
        }
    }

    // --- The core's inputs ---

    /// Asks a running node something.
    pub(crate) fn ask(&mut self, node: NodeId, message: LocalRequestMsg<crate::network::Reply>) -> Checked {
        let most_ticks = self.most_ticks_for_proposals();
        if node_lost(&self.nodes, node) == Some(Lost::RolledBack) {
            // As with what it sends: when the copy was made it may have been the only voter, and it takes itself for that.
            drop(message);
            return self.settle(node);
        }
        if let Some(running) = self.running(node) {
            let mut message = message;
            match &mut message {
                LocalRequestMsg::ForLeader(request) => running.is_asked(request, most_ticks),
                LocalRequestMsg::Demote { .. } => running.unsettled = Some(running.deadlines.now_ticks()),
                _ => {}
            }
            running.core.handle_local_request_msg(message);
            self.settle(node)?;
        }
        Ok(())
    }

    /// A proposal may wait until leadership is settled, and then for its entry.
    fn most_ticks_for_proposals(&self) -> u64 {
        2 * self.world.config.ticks(self.world.config.propose_timeout) + 1
    }

    /// A question to a node that is to be answered within the time for reads.
    pub(crate) fn awaited_read(&mut self, node: NodeId) -> Option<deadlines::Waits> {
        let most_ticks = self.world.config.ticks(self.world.config.read_timeout);
        Some(self.running(node)?.deadlines.asked("a read", most_ticks))
    }

    /// A reply of which it only matters whether it is success.
    pub(crate) fn done<T, E>(&self, number: u64, what: Option<Happened>) -> Responder<T, E>
    where
        E: From<StopReason>,
    {
        let answers = self.answers.clone();
        Responder::new(move |answer: Result<T, E>| {
            answers.push(Answered::Done { number, what, succeeded: answer.is_ok() });
        })
    }

    fn tick(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let tick = node.tick;
        if let Some(running) = &mut node.running {
            running.core.tick();
            running.deadlines.tick(id)?;
        }
        self.schedule.after(tick, Event::Tick { node: id, life });
        self.settle(id)?;
        let most = self.world.config.ticks(self.world.config.disk_stall_timeout);
        match self.running(id) {
            Some(running) if running.seen.role == Role::Leader => {
                let now = running.deadlines.now_ticks();
                let stalled = running.oldest_write().map_or(0, |asked| now - asked);
                leadership::leads_with_disk(id, stalled, most)
            }
            _ => Ok(()),
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, packet: Packet) -> Checked {
        if !self.network.delivers(from, to) || self.running(to).is_none() {
            self.lose(from, to, packet);
            return Ok(());
        }
        if let Packet::Raft { sender, receiver, .. } | Packet::Snapshot { sender, receiver, .. } = &packet
            && let Some(status) = self.status(to)
        {
            let Some(identity) = status.identity else {
                self.lose(from, to, packet);
                return Ok(());
            };
            if let Err(refusal) = status.members.check_sender(sender, *receiver, &identity) {
                if let SenderRefusal::OtherReceiver { .. } = refusal {
                    let (sender, receiver) = (*sender, *receiver);
                    self.take_in(from, to, Packet::Raft { sender, receiver, messages: Vec::new() })?;
                }
                if let Packet::Snapshot { .. } = packet {
                    self.lose(from, to, packet);
                }
                if self.network.delivers(to, from) {
                    let delay = self.rng.within(self.world.message_delay);
                    self.schedule.after(delay, Event::Refused { node: from, by: to, refusal });
                }
                return self.settle(to);
            }
            let known = status.members.get(sender.id).and_then(|member| member.incarnation);
            membership::believes(to, known, sender.incarnation)?;
        }
        let is_acknowledgement = matches!(&packet, Packet::Raft { messages, .. } if messages
            .iter()
            .any(|message| matches!(message.body, RaftMessageBody::AppendResponse { .. })));
        self.take_in(from, to, packet)?;
        self.settle(to)?;
        if is_acknowledgement { self.observe_progress(to) } else { Ok(()) }
    }

    fn take_in(&mut self, from: NodeId, to: NodeId, packet: Packet) -> Checked {
        let answers = self.answers.clone();
        let from_life = self.nodes.get(&from).map_or(0, |node| node.life);
        let is_from_lost = node_lost(&self.nodes, from).is_some();
        let most_ticks = self.most_ticks_for_proposals();
        let read_waits = match &packet {
            Packet::ReadRound { .. } => self.awaited_read(to),
            _ => None,
        };
        let Some(node) = self.nodes.get_mut(&to) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        let mut taught = None;
        let message = match packet {
            Packet::Raft { sender, receiver, messages } => {
                running.heard.insert(from, running.deadlines.now_ticks());
                let is_durable = running.writing.is_none() && running.to_write.is_empty();
                taught = messages.iter().filter_map(|message| terms::taught_by(message, is_durable)).max();
                // Answers of who is no member are not heard.
                taught = taught.filter(|term| {
                    *term > running.seen.term
                        && !is_from_lost
                        && running.core.status().members.get(from).is_some()
                });
                ServerRequestMsg::RaftMessages { sender, receiver, messages }
            }
            Packet::Snapshot { sender, receiver, sent, snapshot, data } => {
                running.heard.insert(from, running.deadlines.now_ticks());
                node.disk.write_snapshot(&snapshot, &data).map_err(|error| format!("{to}: {error}"))?;
                let term = sent.term;
                let reply = Responder::new(move |answer: Result<(), raftify_core::error::InstallError>| {
                    let outcome = answer.map_err(|error| error.to_string());
                    let packet = Packet::SnapshotSent { sent, outcome, life: from_life };
                    answers.push(Answered::Travels { from: to, to: from, packet });
                });
                ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply }
            }
            Packet::Request(mut request) => {
                running.is_asked(&mut request, most_ticks);
                ServerRequestMsg::ForLeader { request, forwarding: Forwarding::Never }
            }
            Packet::ReadRound { round } => {
                let reply = Responder::new(move |answer| {
                    drop(read_waits);
                    let packet = Packet::ReadRoundAnswered { round, answer, life: from_life };
                    answers.push(Answered::Travels { from: to, to: from, packet });
                });
                ServerRequestMsg::ConfirmReadIndex { reply }
            }
            Packet::SnapshotSent { sent, outcome, life: asked } => {
                if asked == life {
                    running.core.snapshot_sent(sent, outcome);
                }
                return Ok(());
            }
            Packet::ReadRoundAnswered { round, answer, life: asked } => {
                if asked == life {
                    running.core.read_round_answered(round, answer);
                }
                return Ok(());
            }
            Packet::Answer(answer) => {
                answer.arrives();
                return Ok(());
            }
        };
        running.core.handle_server_request_msg(message);
        match taught {
            Some(taught) if running.core.stop_reason().is_none() => {
                terms::learns(to, taught, running.core.status().term)
            }
            _ => Ok(()),
        }
    }

    // --- Sending ---

    fn introduction(&self, from: NodeId, to: NodeId) -> Option<(Sender, Option<Incarnation>)> {
        let node = self.nodes.get(&from)?;
        let members = node.running.as_ref()?.core.status().members;
        let sender = Sender { id: from, incarnation: node.incarnation, members_as_of: members.as_of() };
        Some((sender, members.get(to).and_then(|member| member.incarnation)))
    }

    fn send_messages(&mut self, from: NodeId, messages: Vec<RaftMessage>) {
        let mut messages = messages.into_iter().peekable();
        while let Some(message) = messages.next() {
            let to = message.to;
            let mut together = vec![message];
            while let Some(next) = messages.next_if(|next| next.to == to) {
                together.push(next);
            }
            if let Some((sender, receiver)) = self.introduction(from, to) {
                self.send(from, to, Packet::Raft { sender, receiver, messages: together });
            }
        }
    }

    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if self.nodes.get(&from).is_some_and(|node| node.lost == Some(Lost::RolledBack)) {
            // Nothing that it says can be relied on, and nobody can tell: see `docs/testing.md`.
            return self.lose(from, to, packet);
        }
        let now = self.schedule.now();
        let mut at = now + self.rng.within(self.world.message_delay);
        if let Packet::Snapshot { .. } = packet {
            at += self.rng.about(20 * MILLISECOND);
        }
        if self.healed_at.is_none() {
            if self.rng.percent(self.world.loss_percent) {
                self.coverage.saw(Happened::MessageLost);
                return self.lose(from, to, packet);
            }
            if self.rng.percent(self.world.duplicates_percent)
                && let Some(packet) = packet.duplicate()
            {
                self.coverage.saw(Happened::MessageDuplicated);
                let delay = self.rng.about(100 * MILLISECOND);
                self.schedule.at(at + delay, Event::Arrive { from, to, packet });
            }
            if self.rng.percent(self.world.peculiar.lingering_percent)
                && let Some(packet) = packet.duplicate()
            {
                self.coverage.saw(Happened::MessageLingered);
                let delay = self.rng.about(2 * SECOND);
                self.schedule.at(at + delay, Event::Arrive { from, to, packet });
            }
            if self.rng.percent(self.world.disorder_percent) {
                let later = at + self.rng.about(50 * MILLISECOND);
                if self.network.overtakes(from, to, at) {
                    self.coverage.saw(Happened::MessageOvertaken);
                }
                let at = if self.rng.percent(50) { at } else { later };
                return self.schedule.at(at, Event::Arrive { from, to, packet });
            }
        }
        let at = self.network.in_order(from, to, at);
        self.schedule.at(at, Event::Arrive { from, to, packet });
    }

    /// A packet does not arrive. Whoever waits for what comes of it learns what a broken connection tells.
    pub(crate) fn lose(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let delay = self.rng.within(self.world.message_delay);
        match packet {
            Packet::Raft { .. } => {
                if self.rng.percent(50) && self.network.breaking.insert((from, to)) {
                    self.schedule.after(delay, Event::Broke { from, to });
                }
            }
            Packet::Snapshot { .. } | Packet::Request(_) | Packet::ReadRound { .. } => {
                self.schedule.after(delay, Event::Lost(packet, from));
            }
            Packet::SnapshotSent { .. } | Packet::ReadRoundAnswered { .. } | Packet::Answer(_) => {
                self.schedule.after(delay, Event::Lost(packet, to));
            }
        }
    }

    fn hears_of_loss(&mut self, packet: Packet, id: NodeId) -> Checked {
        self.coverage.saw(Happened::ConnectionBroke);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let life = node.life;
        match (packet, &mut node.running) {
            (Packet::Request(request), _) => break_off(request),
            (Packet::Answer(answer), _) => answer.breaks(),
            (Packet::Snapshot { sent, .. }, Some(running)) => {
                running.core.snapshot_sent(sent, Err(BROKEN.to_owned()));
            }
            (Packet::SnapshotSent { sent, life: asked, .. }, Some(running)) if asked == life => {
                running.core.snapshot_sent(sent, Err(BROKEN.to_owned()));
            }
            (Packet::ReadRound { round }, Some(running)) => {
                running.core.read_round_answered(round, Err(ReadError::ConnectionLost(BROKEN.to_owned())));
            }
            (Packet::ReadRoundAnswered { round, life: asked, .. }, Some(running)) if asked == life => {
                running.core.read_round_answered(round, Err(ReadError::ConnectionLost(BROKEN.to_owned())));
            }
            _ => {}
        }
        self.settle(id)
    }

    // --- Turns ---

    /// Carries out everything that `id` wants done, up to what takes time, and checks what it shows.
    pub(crate) fn settle(&mut self, id: NodeId) -> Checked {
        if self.running(id).is_none() {
            return Ok(());
        }
        self.observe_commit(id)?;
        while let Some(turn) = self.running(id).and_then(|running| running.core.ready()) {
            self.observe_commit(id)?;
            self.carry_out(id, turn)?;
        }
        self.observe(id)?;
        if let Some(reason) = self.running(id).and_then(|running| running.core.stop_reason().cloned()) {
            self.stop(id, &reason)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, id: NodeId, mut turn: Turn<crate::network::Reply>) -> Checked {
        let Some(status) = self.status(id) else { return Ok(()) };
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        if let Some(write) = &turn.write {
            let seen = running.seen;
            if seen.role == Role::Leader && status.role == Role::Leader && seen.term == status.term {
                leader_append_only::writes(id, status.term, running.log.last(), write)?;
            }
            if node.lost.is_none() {
                self.invariants.committed.writes(id, &running.log, write)?;
            }
            if write.append.first().is_some_and(|first| first.position.index <= running.log.last()) {
                self.coverage.saw(Happened::EntriesOverwritten);
            }
            if write.compact.is_some() {
                self.coverage.saw(Happened::LogCompacted);
            }
            if write.reset_log.is_some() && write.snapshot.is_some() {
                self.coverage.saw(Happened::SnapshotInstalled);
            }
            running.log.take(write, |position| self.invariants.logs.digest(position));
            write.append.iter().for_each(|entry| self.invariants.membership.logged(entry));
            if let Some(snapshot) = &write.snapshot {
                let config = &self.world.config;
                let kept =
                    config.log_entries_kept + config.log_bytes_kept_for_followers / Entry::OVERHEAD_BYTES;
                bounded_log::records(id, snapshot.position.index, running.log.truncated.index, kept)?;
            }
        }
        let crashes = self.healed_at.is_none()
            && turn.write.as_ref().is_some_and(|write| {
                let is_leader = status.role == Role::Leader && !write.append.is_empty();
                self.rng.percent(self.world.peculiar.crashes_percent)
                    || (is_leader && self.rng.percent(self.world.peculiar.leader_crashes_percent))
            });
        for item in &mut turn.committed {
            if let Committed::User { reply: Some(reply), .. } = item {
                reply.waits = None;
            }
            let index = item.position().index;
            if index > node.durable.state.last.index && index > LogIndex(1) {
                return Err(format!(
                    "durability: {id} hands out {index} to be applied before it is durable there"
                ));
            }
        }
        if turn.write.is_some() || !turn.send_after.is_empty() {
            let Turn { number, write, send_after, .. } = turn;
            let asked_ticks = running.deadlines.now_ticks();
            running.to_write.push_back(ToWrite { number, asked_ticks, write, send_after });
        }
        running.to_apply.extend(turn.committed.into_iter().map(ToApply::Committed));
        if turn.take_snapshot {
            running.to_apply.push_back(ToApply::TakeSnapshot);
        }
        if crashes {
            return self.crash_after_sending(id, turn.send_now);
        }
        self.send_messages(id, turn.send_now);
        for fetch in turn.fetch {
            let mut delay = self.rng.within(self.world.write_delay);
            let mut read = None;
            if self.world.peculiar.late_reads
                && let Some(node) = self.nodes.get(&id)
            {
                read = Some(node.disk.read(fetch.from, fetch.until, fetch.bytes_max));
                delay += self.rng.about(SECOND);
                self.coverage.saw(Happened::LateRead);
            }
            self.schedule.after(delay, Event::Fetched { node: id, life, fetch, read });
        }
        for sent in turn.send_snapshots {
            let Some(node) = self.nodes.get(&id) else { continue };
            let position = sent.position;
            let opened = node.disk.snapshots().open(position);
            let (snapshot, ..) =
                opened.map_err(|error| format!("snapshots: {id} is to send one: {error}"))?;
            let data = node.disk.read_snapshot(position).map_err(|error| format!("{id}: {error}"))?;
            if let Some((sender, receiver)) = self.introduction(id, sent.to) {
                self.send(id, sent.to, Packet::Snapshot { sender, receiver, sent, snapshot, data });
            }
        }
        for mut forward in turn.forward {
            self.coverage.saw(Happened::WriteForwarded);
            if let LeaderRequest::Propose { reply, .. } = &mut forward.request {
                deadlines::forwards(id, reply.was_forwarded)?;
                reply.waits = None;
            }
            let request = forwarded(forward.request, id, forward.to, &self.answers);
            self.send(id, forward.to, Packet::Request(request));
        }
        if let Some(round) = turn.read_round {
            self.send(id, round.leader, Packet::ReadRound { round: round.round });
        }
        self.begin_write(id);
        self.begin_apply(id);
        Ok(())
    }

    /// The power of `id` fails when some of `messages` have left, before or while what belongs to them is written.
    fn crash_after_sending(&mut self, id: NodeId, mut messages: Vec<RaftMessage>) -> Checked {
        let most = messages.len();
        messages.truncate(self.rng.random_range(0..=most));
        self.send_messages(id, messages);
        if self.rng.percent(50) {
            self.begin_write(id);
        }
        self.coverage.saw(Happened::CrashBeforeWrite);
        self.crash(id)?;
        let delay = self.rng.about(SECOND);
        self.schedule.after(delay, Event::Start(id));
        Ok(())
    }

    // --- The disk ---

    /// Writes what has queued up, if nothing is under way.
    pub(crate) fn begin_write(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(running) = &mut node.running else { return };
        let Some(last) = running.to_write.back() else { return };
        if running.writing.is_some() {
            return;
        }
        let mut writing = Writing {
            number: last.number,
            asked_ticks: None,
            writes: Vec::new(),
            send_after: Vec::new(),
            is_durable: false,
        };
        for ToWrite { write, send_after, asked_ticks, .. } in running.to_write.drain(..) {
            if write.is_some() {
                writing.asked_ticks.get_or_insert(asked_ticks);
            }
            writing.writes.extend(write);
            writing.send_after.extend(send_after);
        }
        let delay = match writing.writes.is_empty() {
            true => 0,
            false => self.rng.within(self.world.write_delay) * node.disk_slowness,
        };
        running.writing = Some(writing);
        if !node.disk_hangs {
            self.schedule.after(delay, Event::Durable { node: id, life });
        }
    }

    fn becomes_durable(&mut self, id: NodeId, life: u64) -> Checked {
        let hangs = self.nodes.get(&id).is_some_and(|node| node.disk_hangs);
        let Some(node) = self.alive(id, life).filter(|_| !hangs) else { return Ok(()) };
        let Some(writing) = node.running.as_mut().and_then(|running| running.writing.as_mut()) else {
            return Ok(());
        };
        if writing.is_durable {
            return Ok(());
        }
        let writes = std::mem::take(&mut writing.writes);
        writing.is_durable = true;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !writes.is_empty()
            && let Err(error) = node.disk.write(&writes, &mut self.rng)
        {
            if let StorageError::Refused { .. } = error {
                return Err(format!("storage: {id}: {error}"));
            }
            if node.disk.has_segments() && node.disk.write(&writes, &mut self.rng).is_ok() {
                return Err(format!("storage: {id} takes another write after one that failed: {error}"));
            }
            self.coverage.saw(match node.disk.fault() {
                Some(_) => Happened::DiskFull,
                None => Happened::DiskError,
            });
            node.maybe_durable = writes;
            return self.stop(id, &StopReason::Storage(error.to_string()));
        }
        for write in &writes {
            self.invariants.durable.written(id, node.incarnation, write)?;
            let after = node.durable.state.after(write).map_err(|error| format!("storage: {id}: {error}"))?;
            node.durable.state = after;
            node.durable.log.take(write, |position| self.invariants.logs.digest(position));
            self.invariants.logs.writes(id, write, &node.durable.log)?;
        }
        if !node.disk.has_flipped() {
            let ends = node.disk.ends().map_err(|error| format!("storage: {id}: {error}"))?;
            self.invariants.durable.log_is(id, ends, &node.durable.log)?;
        }
        if self.rng.percent(self.world.late_percent) && self.healed_at.is_none() {
            self.coverage.saw(Happened::LateCompletion);
            let delay = self.rng.about(200 * MILLISECOND);
            self.schedule.after(delay, Event::Written { node: id, life });
            return Ok(());
        }
        self.hears_of_write(id, life)
    }

    fn hears_of_write(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let Some(Writing { number, send_after, .. }) = running.writing.take_if(|writing| writing.is_durable)
        else {
            return Ok(());
        };
        running.core.written(number);
        // News that come twice, or of an older write after a newer one, change nothing.
        running.core.written(number);
        running.core.written(TurnNumber(number.0.saturating_sub(1)));
        self.send_messages(id, send_after);
        self.begin_write(id);
        self.settle(id)
    }

    fn fetched(
        &mut self,
        id: NodeId,
        life: u64,
        fetch: LogFetch,
        read: Option<Result<Vec<Entry>, StorageError>>,
    ) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        match read.unwrap_or_else(|| node.disk.read(fetch.from, fetch.until, fetch.bytes_max)) {
            Err(error @ StorageError::Corrupt { .. }) if node.disk.has_flipped() => {
                node.lost = Some(Lost::Damaged);
                self.coverage.saw(Happened::BitFlip);
                return self.stop(id, &StopReason::Storage(error.to_string()));
            }
            Err(error @ StorageError::Corrupt { .. }) => return Err(format!("storage: {id}: {error}")),
            result => {
                if let Some(running) = &mut node.running {
                    running.core.fetched(fetch, result);
                }
                self.coverage.saw(Happened::EntriesFetched);
            }
        }
        self.settle(id)
    }

    // --- The state machine ---

    pub(crate) fn begin_apply(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(running) = &mut node.running else { return };
        if running.is_applying || running.to_apply.is_empty() {
            return;
        }
        running.is_applying = true;
        let delay = self.rng.within(self.world.apply_delay) + (node.apply_slowness - 1) * 20 * MILLISECOND;
        self.schedule.after(delay, Event::Apply { node: id, life });
    }

    /// Takes in what waits, up to a snapshot.
    fn apply(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let most = if node.apply_slowness > 1 { 1 } else { 64 };
        if let Some(running) = &mut node.running {
            running.is_applying = false;
        }
        for _ in 0..most {
            let next = self.running(id).and_then(|running| running.to_apply.pop_front());
            match next {
                None => break,
                Some(ToApply::TakeSnapshot) => {
                    self.take_snapshot(id)?;
                    break;
                }
                Some(ToApply::Committed(item)) => self.apply_item(id, item)?,
            }
        }
        let Some(running) = self.running(id) else { return Ok(()) };
        running.core.applied(running.at.index);
        self.begin_apply(id);
        self.settle(id)
    }

    fn apply_item(&mut self, id: NodeId, item: Committed<crate::network::Reply>) -> Checked {
        let position = item.position();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let is_lost = node.lost.is_some();
        let Some(running) = &mut node.running else { return Ok(()) };
        match item {
            Committed::User { payload, reply, .. } => {
                if std::mem::take(&mut node.fails_to.apply) {
                    self.coverage.saw(Happened::ApplyFailed);
                    let reason = StopReason::StateMachine("it was told to fail".to_owned());
                    if let Some(reply) = reply {
                        reply.answer(Err(reason.clone().into()));
                    }
                    return self.stop(id, &reason);
                }
                self.invariants.durable.applies(id, running.at.index, position.index)?;
                let effect = running.store.apply(&payload)?;
                if let Some(reply) = reply {
                    reply.answer(Ok((position, effect)));
                }
            }
            Committed::Members { members, .. } => {
                running.members = Members::clone(&members);
                if let Some(ToApply::Committed(next @ Committed::Install { .. })) = running.to_apply.front()
                    && next.position() == position
                {
                    // The state follows.
                    return Ok(());
                }
                if position != running.at && position.index > LogIndex(1) {
                    self.invariants.durable.applies(id, running.at.index, position.index)?;
                }
            }
            Committed::Nothing { .. } => {
                self.invariants.durable.applies(id, running.at.index, position.index)?;
            }
            Committed::Install { snapshot } => {
                if std::mem::take(&mut node.fails_to.restore) {
                    self.coverage.saw(Happened::RestoreFailed);
                    let reason = StopReason::StateMachine("it was told to fail".to_owned());
                    return self.stop(id, &reason);
                }
                let data = node.disk.read_snapshot(position).map_err(|error| format!("{id}: {error}"))?;
                running.store = Store::decode(&data)
                    .ok_or_else(|| format!("{id} cannot decode the snapshot at {position}"))?;
                running.members = snapshot.members.clone();
            }
        }
        running.at = position;
        if !is_lost {
            self.invariants.states.applied(id, position, running.store.digest())?;
            self.invariants.membership.applied(id, position.index, &running.members)?;
            if position.index > LogIndex(1) && !self.invariants.committed.is_committed(position) {
                return Err(format!(
                    "state-machine safety: {id} applies {position}, which no leader has committed"
                ));
            }
        }
        Ok(())
    }

    fn take_snapshot(&mut self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        if std::mem::take(&mut node.fails_to.snapshot) {
            self.coverage.saw(Happened::SnapshotFailed);
            running.core.snapshot_taken(Err("it was told to fail".to_owned()));
            return Ok(());
        }
        if node.lost.is_none() {
            self.invariants.states.snapshot(id, running.at.index, running.store.digest())?;
        }
        let meta =
            SnapshotMeta { cluster_id: CLUSTER, position: running.at, members: running.members.clone() };
        let captured = Captured { meta, data: running.store.encode() };
        let delay = self.rng.about(5 * MILLISECOND * node.disk_slowness);
        self.schedule.after(delay, Event::SnapshotWritten { node: id, life, captured });
        Ok(())
    }

    fn snapshot_written(&mut self, id: NodeId, life: u64, captured: &Captured) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        node.disk.write_snapshot(&captured.meta, &captured.data).map_err(|error| format!("{id}: {error}"))?;
        if let Some(running) = &mut node.running {
            running.core.snapshot_taken(Ok(captured.meta.clone()));
        }
        self.coverage.saw(Happened::SnapshotTaken);
        self.settle(id)
    }

    // --- What can be seen ---

    /// A leader's commit index has moved: before its next turn, while the membership is that by which it decided.
    fn observe_commit(&mut self, id: NodeId) -> Checked {
        let Some(status) = self.status(id) else { return Ok(()) };
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let Some(running) = &node.running else { return Ok(()) };
        let seen = running.seen;
        if status.members.as_of() != seen.members_as_of {
            self.observe_members(id, &status.members)?;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let committed = self.invariants.committed.last();
        let led = if seen.role == Role::Leader { Some(seen.term) } else { None };
        let leads = if status.role == Role::Leader { Some(status.term) } else { None };
        if let Some(term) = leads.or(led)
            && status.commit > committed
            && node.lost.is_none()
        {
            let (first, last) = (seen.members_as_of, status.members.as_of());
            let configurations: Vec<_> =
                self.invariants.membership.between(first, last).map(Members::configuration).collect();
            let Some(digest) = running.log.digest(status.commit) else {
                return Err(format!(
                    "commit index: leader {id} commits {}, which it does not have",
                    status.commit
                ));
            };
            self.invariants.committed.leader_commits(id, status.commit, &running.log)?;
            self.invariants.completeness.commits(term, status.commit);
            let nodes = &self.nodes;
            let holds =
                |voter: NodeId| nodes.get(&voter).is_some_and(|node| node.holds(status.commit, digest));
            self.invariants.commit.leader_commits(id, status.commit, &configurations, holds)?;
            for other in self.nodes.values() {
                if let Some(running) = &other.running
                    && other.lost.is_none()
                    && running.seen.role == Role::Leader
                    && running.seen.term > term
                {
                    let committed = &self.invariants.committed;
                    self.invariants.completeness.leads(
                        other.id,
                        running.seen.term,
                        &running.log,
                        committed,
                    )?;
                }
            }
        }
        if let Some(running) = self.running(id) {
            running.seen.members_as_of = status.members.as_of();
        }
        Ok(())
    }

    fn observe_members(&mut self, id: NodeId, members: &Members) -> Checked {
        if self.nodes.get(&id).is_some_and(|node| node.lost == Some(Lost::Wiped)) {
            return Ok(());
        }
        let newest = self.invariants.membership.newest_members();
        let was_member: Vec<NodeId> =
            newest.iter().flat_map(|newest| newest.iter().map(|member| member.id)).collect();
        let before = newest.map(|newest| (newest.as_of(), newest.len()));
        self.invariants.membership.has(id, members)?;
        let Some((as_of, count)) = before else { return Ok(()) };
        if members.as_of() > as_of {
            if self.nodes.values().any(|node| {
                node.lost.is_some() && was_member.contains(&node.id) && members.get(node.id).is_none()
            }) {
                self.coverage.saw(Happened::LostMemberRemoved);
            }
            if members.is_joint() {
                self.coverage.saw(Happened::JointConfiguration);
            }
            match members.len().cmp(&count) {
                std::cmp::Ordering::Greater => self.coverage.saw(Happened::MemberAdded),
                std::cmp::Ordering::Less => self.coverage.saw(Happened::MemberRemoved),
                std::cmp::Ordering::Equal => {}
            }
            self.tell(format_args!("{id} has the members {members:?}"));
        }
        Ok(())
    }

    /// After each step of a node.
    fn observe(&mut self, id: NodeId) -> Checked {
        self.observe_commit(id)?;
        let Some(status) = self.status(id) else { return Ok(()) };
        let now = self.schedule.now();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let seen = running.seen;
        self.invariants.commit.moves(id, seen.commit, status.commit)?;
        if status.commit > seen.commit && node.lost.is_none() {
            self.invariants.committed.commits(id, status.commit, &running.log)?;
        }
        let is_news = (seen.role, seen.term) != (status.role, status.term);
        // What a node that lost its disk takes itself for is not judged: nobody hears of it.
        if status.role == Role::Leader && node.lost.is_none() {
            if is_news {
                self.invariants.elections.leads(id, status.term)?;
                let committed = &self.invariants.committed;
                self.invariants.completeness.leads(id, status.term, &running.log, committed)?;
                self.coverage.saw(Happened::LeaderElected);
            }
            self.invariants.membership.leads(id, status.commit, &running.log)?;
            leadership::leads(id, status.members.is_voter(id))?;
            if !is_news
                && status.commit > seen.commit
                && let Some(place) = running.log.at(status.commit)
            {
                let commit = &self.invariants.commit;
                commit.leader_commits_of_term(id, status.term, status.commit, place.term)?;
            }
        }
        let in_force = status.members.as_of();
        // A record about members changes no quorum; what comes from a snapshot may.
        let is_change =
            running.log.at(in_force).map_or(in_force <= running.log.truncated.index, |place| place.is_change);
        if in_force > seen.in_force && seen.in_force > LogIndex::ZERO && is_change {
            self.invariants.durable.in_force(id, in_force, node.durable.commit())?;
        }
        running.seen.in_force = in_force;
        running.seen.role = status.role;
        running.seen.term = status.term;
        running.seen.commit = status.commit;
        if status.snapshot != running.retained_for {
            running.retained_for = status.snapshot;
            let keep = running.core.snapshots_in_use();
            node.disk.retain_snapshots(keep).map_err(|error| format!("{id}: {error}"))?;
        }
        if is_news {
            self.trace.add(
                now,
                format_args!(
                    "{id} is {} in term {}, last {}, commit {}",
                    status.role, status.term, status.last, status.commit
                ),
            );
        }
        Ok(())
    }

    /// A leader has heard an acknowledgement: what it counts on is there. Who is in a later term may have given it up since.
    fn observe_progress(&mut self, id: NodeId) -> Checked {
        let Some(status) = self.status(id).filter(|status| status.role == Role::Leader) else {
            return Ok(());
        };
        let (sender, inspected) = mpsc::channel();
        let reply = Responder::new(move |inspection| drop(sender.send(inspection)));
        let Some(running) = self.running(id) else { return Ok(()) };
        running.core.handle_local_request_msg(LocalRequestMsg::Inspect { reply });
        let Ok(Ok(inspection)) = inspected.recv() else { return Ok(()) };
        let log = match self.nodes.get(&id) {
            Some(Node { lost: None, running: Some(running), .. }) => &running.log,
            _ => return Ok(()),
        };
        for peer in inspection.progress.iter().filter(|peer| peer.id != id) {
            if let (Some(node), Some(digest)) = (self.nodes.get(&peer.id), log.digest(peer.matched))
                && node.lost.is_none()
                && node.durable.state.hard_state.term <= status.term
            {
                let holds = node.holds(peer.matched, digest);
                self.invariants.commit.leader_counts(id, peer.id, peer.matched, holds)?;
            }
        }
        Ok(())
    }

    // --- Answers ---

    pub(crate) fn hand_out_answers(&mut self) -> Checked {
        loop {
            let answered = self.answers.take();
            if answered.is_empty() {
                return Ok(());
            }
            for answered in answered {
                match answered {
                    Answered::Travels { from, to, packet } => match self.running(from) {
                        Some(_) => self.send(from, to, packet),
                        None => self.lose(from, to, packet),
                    },
                    Answered::Proposed { number, answer } => {
                        self.invariants.answers.answered(number)?;
                        self.proposed(number, answer)?;
                    }
                    Answered::Read { number, node, answer } => {
                        self.invariants.answers.answered(number)?;
                        self.read(number, node, answer)?;
                    }
                    Answered::Changed { number, change, answer } => {
                        self.invariants.answers.answered(number)?;
                        if let Ok(members) = answer {
                            membership::changed(&change, &members)?;
                        }
                    }
                    Answered::Reserved { number, answer } => {
                        self.invariants.answers.answered(number)?;
                        self.reserved(answer)?;
                    }
                    Answered::Done { number, what, succeeded } => {
                        self.invariants.answers.answered(number)?;
                        if let Some(what) = what.filter(|_| succeeded) {
                            self.coverage.saw(what);
                        }
                    }
                }
            }
        }
    }
}

fn node_lost(nodes: &BTreeMap<NodeId, Node>, id: NodeId) -> Option<Lost> {
    nodes.get(&id)?.lost
}

/// What the log of `disk` holds.
fn picture_of(
    disk: &Disk,
    state: &raftify_core::storage::StoredState,
    digest_of: impl Fn(LogPosition) -> crate::log_picture::Digest,
) -> Result<LogPicture, String> {
    let mut picture = LogPicture::beginning_after(state.truncated, digest_of(state.truncated));
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    let append = disk.read(from, until, u64::MAX).map_err(|error| error.to_string())?;
    picture.take(&Write { append, ..Write::default() }, digest_of);
    Ok(picture)
}
