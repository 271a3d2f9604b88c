//! One world, from its beginning to its end: carries out the work of the cores with its durations, and checks
//! all invariants after every step.
//!
//! This file has the event loop and the effects of a core's turn; `lives`, `messages`, `work` and
//! `observation` have the rest; `faults` carries out the decisions of the nemesis, `recovery` checks the end.
//!
//! Two phases: at first faults are injected, and safety must hold; then enough is healed, and the cluster
//! must become live within a bound: a leader, a new commit, equal members, no unanswered request.

mod client_calls;
mod faults;
mod lives;
mod members;
mod messages;
mod observation;
mod recovery;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raftify_core::{
    Committed, Entry, LeaderRequest, LogIndex, Member, Members, NodeId, RaftMessage, Role, SnapshotStore,
    Turn,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::answers::{AnswerQueue, Answered, forwarded};
use crate::clients::Clients;
use crate::coverage::{Coverage, Happened};
use crate::draw::Draw;
use crate::event::Event;
use crate::fault::Repair;
use crate::invariants::{
    Checked, Invariants, bounded_log, deadlines, durable_state, leader_append_only, storage_reserve,
};
use crate::nemesis::Nemesis;
use crate::network::{Network, Packet};
use crate::node::{Lost, Node, ToApply, ToWrite};
use crate::reply::Reply;
use crate::schedule::{SECOND, Schedule, Time};
use crate::trace::Trace;
use crate::world::World;

use recovery::AfterHeal;

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
    nemesis: Nemesis,
    after_heal: AfterHeal,
    /// Joining nodes that were cleared.
    cleared: BTreeSet<NodeId>,
    pub(crate) answers: AnswerQueue,
    pub(crate) steps: u64,
    /// The time of the end of the faults.
    pub(crate) healed_at: Option<Time>,
    /// The time until there was a leader and a commit again.
    pub(crate) recovery: Option<Time>,
    /// The cluster has recovered.
    pub(crate) has_recovered: bool,
    /// Histories that are too large for the checker's budget.
    pub(crate) undecided: u64,
    /// Turns that are made durable together.
    pub(crate) turns_per_write_max: usize,
    pub(crate) initial: Arc<Members>,
    incarnations: u64,
}

impl Simulation {
    pub(crate) fn new(seed: u64, trace: Trace) -> Simulation {
        let (world, rng) = World::of(seed);
        Simulation::of(world, rng, trace)
    }

    /// The world before its first event.
    pub(crate) fn of(world: World, rng: ChaCha8Rng, trace: Trace) -> Simulation {
        let member = |id: u64| {
            let node = NodeId::new(id).expect("ids are counted from one");
            let address = format!("node-{id}:1");
            if id <= world.voters { Member::voter(node, address) } else { Member::learner(node, address) }
        };
        let initial = Members::initial((1..=world.voters + world.learners).map(member))
            .expect("there is at least one voter, and no id twice");
        let mut simulation = Simulation {
            clients: Clients::new(world.clients, world.keys),
            nemesis: Nemesis::default(),
            after_heal: AfterHeal::default(),
            cleared: BTreeSet::new(),
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
            has_recovered: false,
            undecided: 0,
            turns_per_write_max: usize::MAX,
            initial: Arc::new(initial),
            incarnations: 0,
            world,
        };
        if simulation.world.clocks_percent > 0 {
            simulation.coverage.saw(Happened::ClocksDiffered);
        }
        simulation.tell(format_args!("{:?}", simulation.world.clone()));
        simulation
    }

    /// Runs the world to its end.
    pub(crate) fn run(&mut self) -> Checked {
        let ids: Vec<NodeId> = self.initial.iter().map(|member| member.id).collect();
        let other_list = self.other_list();
        for node in ids {
            let strays = self.world.joins.strays.contains(&node.get());
            let list = match &other_list {
                Some(other) if strays => Arc::clone(other),
                _ => Arc::clone(&self.initial),
            };
            self.add_node(node, Some(list));
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
        if self.world.quirks.bursts {
            let delay = self.rng.about(4 * SECOND);
            self.schedule.after(delay, Event::Repair(Repair::Burst));
        }
        self.schedule.after(self.world.trouble, Event::Heal);
        while !self.has_recovered
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
            self.deliver_answers()?;
        }
        if !self.after_heal.is_hopeless {
            self.invariants.answers.end(&self.invariants.committed)?;
        }
        self.undecided = self.clients.check_histories()?;
        Ok(())
    }

    pub(crate) fn tell(&mut self, line: std::fmt::Arguments<'_>) {
        self.trace.add(self.schedule.now(), line);
    }

    pub(crate) fn happen(&mut self, event: Event) -> Checked {
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::AnnounceCommit { node, life } => self.announce_commit(node, life),
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Durable { node, life } => self.becomes_durable(node, life),
            Event::Written { node, life } => self.write_reported(node, life),
            Event::Apply { node, life } => self.apply(node, life),
            Event::SnapshotWritten { node, life, position } => self.snapshot_written(node, life, position),
            Event::Fetched { node, life, fetch, read } => self.fetched(node, life, fetch, read),
            Event::Broke { from, to } => {
                self.network.breaking.remove(&(from, to));
                match self.running(from) {
                    Some(running) => running.core.report_unreachable(to),
                    None => return Ok(()),
                }
                self.settle(from)
            }
            Event::Lost(packet, node) => self.loss_reported(packet, node),
            Event::Refused { node, by, refusal } => {
                match self.running(node) {
                    Some(running) => running.core.refused_by(by, refusal),
                    None => return Ok(()),
                }
                self.settle(node)
            }
            Event::Client(client) => self.client_acts(client),
            Event::Fault => self.inject_fault(),
            Event::Repair(repair) => self.repair(repair),
            Event::Start(node) => self.start(node),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    // --- Turns ---

    /// Carries out the work of `id`, except what takes time, and checks its results.
    pub(crate) fn settle(&mut self, id: NodeId) -> Checked {
        if self.running(id).is_none() {
            return Ok(());
        }
        self.observe_commit(id)?;
        while let Some(turn) = self.running(id).and_then(|running| running.core.ready()) {
            self.observe_commit(id)?;
            self.carry_out(id, turn)?;
        }
        self.announce_commit_soon(id);
        self.observe(id)?;
        if let Some(reason) = self.running(id).and_then(|running| running.core.stop_reason().cloned()) {
            self.stop(id, &reason)?;
        }
        self.stop_if_ready(id)
    }

    fn carry_out(&mut self, id: NodeId, mut turn: Turn<Reply>) -> Checked {
        let Some(status) = self.status(id) else { return Ok(()) };
        if let Some(write) = &turn.write {
            self.observe_proposed_changes(id, &status, write)?;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        if let Some(write) = &turn.write {
            let seen = running.seen;
            if seen.role == Role::Leader && status.role == Role::Leader && seen.term == status.term {
                leader_append_only::writes(id, status.term, running.log.last(), write)?;
            }
            storage_reserve::writes(id, &status, node.disk_is_full, write)?;
            if node.lost.is_none() {
                self.invariants.committed.writes(id, status.term, &running.log, write)?;
                write.append.iter().for_each(|entry| self.invariants.membership.logged(entry));
            }
            if write.append.first().is_some_and(|first| first.position.index <= running.log.last()) {
                self.coverage.saw(Happened::EntriesOverwritten);
            }
            if write.compact.is_some() {
                self.coverage.saw(Happened::LogCompacted);
            }
            if let (Some(_), Some(snapshot)) = (write.reset_log, &write.snapshot) {
                self.coverage.saw(Happened::SnapshotInstalled);
                if !snapshot.members.knows(id) {
                    self.coverage.saw(Happened::EarlierSnapshotInstalled);
                }
            }
            running.log.take(write, |position| self.invariants.logs.digest(position));
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
                self.rng.percent(self.world.quirks.crashes_percent)
                    || (is_leader && self.rng.percent(self.world.quirks.leader_crashes_percent))
            });
        for item in &mut turn.committed {
            if let Committed::User { reply: Some(reply), .. } = item {
                reply.waits = None;
            }
            let position = item.position();
            if position.index <= node.durable.state.last.index || position.index == LogIndex(1) {
                continue;
            }
            self.coverage.saw(Happened::AheadOfDisk);
            let is_plain = matches!(item, Committed::User { .. } | Committed::Nothing { .. });
            let is_committed = node.lost.is_some() || self.invariants.committed.is_committed(position);
            durable_state::delivers_beyond_log(id, position, node.state_kept, is_plain && is_committed)?;
        }
        let (number, write) = (turn.number, turn.write.take());
        let send_after = std::mem::take(&mut turn.send_after);
        if write.is_some() || !send_after.is_empty() {
            let asked_ticks = running.deadlines.now_ticks();
            running.to_write.push_back(ToWrite { number, asked_ticks, write, send_after });
        }
        running.to_apply.extend(turn.committed.drain(..).map(ToApply::Committed));
        running.to_apply.extend(turn.take_snapshot.map(ToApply::TakeSnapshot));
        if turn.hurry_snapshot {
            self.hurry_snapshot(id);
        }
        if crashes {
            return self.crash_after_sending(id, turn.send_now);
        }
        self.send_out(id, life, turn)?;
        self.begin_write(id);
        self.begin_apply(id);
        Ok(())
    }

    /// Packets and reads that do not wait for anything.
    fn send_out(&mut self, id: NodeId, life: u64, turn: Turn<Reply>) -> Checked {
        self.send_messages(id, turn.send_now);
        for fetch in turn.fetch {
            let mut delay = self.rng.within(self.world.write_delay);
            let mut read = None;
            // A repaired disk is a fast one: a second for each message would keep a slow follower behind for
            // minutes.
            if self.world.quirks.late_reads
                && self.healed_at.is_none()
                && let Some(node) = self.nodes.get(&id)
            {
                read = Some(node.disk.read(fetch.from, fetch.until, fetch.bytes_max));
                delay += self.rng.about(SECOND);
                self.coverage.saw(Happened::LateRead);
            }
            self.schedule.after(delay, Event::Fetched { node: id, life, fetch, read });
        }
        for sent in turn.send_snapshots {
            self.observe_transfer(id, sent)?;
            let Some(node) = self.nodes.get(&id) else { continue };
            let position = sent.position;
            let opened = node.disk.snapshots().open(position);
            let (snapshot, ..) =
                opened.map_err(|error| format!("snapshots: {id} is to send one: {error}"))?;
            let data = node.disk.read_snapshot(position).map_err(|error| format!("{id}: {error}"))?;
            if let Some((sender, receiver)) = self.introduction(id, sent.to) {
                self.send(id, sent.to, Packet::Snapshot { sender, receiver, sent, snapshot, data, life });
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
            self.send(id, round.leader, Packet::ReadRound { round: round.round, life });
        }
        Ok(())
    }

    /// A power failure of `id` after some of `messages` were sent, before or during the write of the same
    /// turn.
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

    // --- Answers ---

    pub(crate) fn deliver_answers(&mut self) -> Checked {
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
                    Answered::Changed { number, request, answer } => {
                        self.invariants.answers.answered(number)?;
                        self.changed(&request, answer)?;
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
