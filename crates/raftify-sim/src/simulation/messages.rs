//! Requests and notifications to nodes, and the fate of their packets.

use std::sync::Arc;

use raftify_core::error::{InstallError, ReadError, StopReason};
use raftify_core::members::SenderRefusal;
use raftify_core::{
    Forwarding, Incarnation, LocalRequestMsg, NodeId, RaftMessage, RaftMessageBody, Responder, Role, Sender,
    ServerRequestMsg,
};

use super::{Simulation, node_lost};
use crate::answers::{Answered, BROKEN, break_off};
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::event::Event;
use crate::invariants::{Checked, deadlines, leadership, membership, terms};
use crate::network::Packet;
use crate::node::Lost;
use crate::reply::Reply;
use crate::schedule::{MILLISECOND, SECOND};

impl Simulation {
    // --- The core's inputs ---

    /// Sends a request to a running node.
    pub(crate) fn ask(&mut self, node: NodeId, message: LocalRequestMsg<Reply>) -> Checked {
        if node_lost(&self.nodes, node).is_some_and(Lost::is_not_checked) {
            // As with its packets: at the time of the copy it may have been the only voter, and still assumes
            // that.
            drop(message);
            return self.settle(node);
        }
        self.take_in_request(node, message)
    }

    pub(crate) fn take_in_request(&mut self, node: NodeId, message: LocalRequestMsg<Reply>) -> Checked {
        let most_ticks = self.most_ticks_for_proposals();
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

    /// A proposal may wait for a leader, and then for its entry.
    fn most_ticks_for_proposals(&self) -> u64 {
        2 * self.world.config.ticks(self.world.config.propose_timeout) + 1
    }

    /// A request that must be answered within the time for reads.
    pub(crate) fn awaited_read(&mut self, node: NodeId) -> Option<deadlines::Waits> {
        let most_ticks = self.world.config.ticks(self.world.config.read_timeout);
        Some(self.running(node)?.deadlines.asked("a read", most_ticks))
    }

    /// A reply of which only success or failure matters.
    pub(crate) fn done<T, E>(&self, number: u64, what: Option<Happened>) -> Responder<T, E>
    where
        E: From<StopReason>,
    {
        let answers = self.answers.clone();
        Responder::new(move |answer: Result<T, E>| {
            answers.push(Answered::Done { number, what, succeeded: answer.is_ok() });
        })
    }

    pub(super) fn tick(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let tick = node.tick;
        self.probe_if_due(id);
        self.schedule.after(tick, Event::Tick { node: id, life });
        self.pass_tick(id)
    }

    /// A tick of the clock of `id`.
    pub(crate) fn pass_tick(&mut self, id: NodeId) -> Checked {
        let is_full = self.nodes.get(&id).is_some_and(|node| node.disk_is_full);
        if let Some(running) = self.running(id) {
            running.core.tick();
            running.deadlines.tick(id)?;
            if is_full {
                // A leader transfers leadership by itself.
                running.unsettled = Some(running.deadlines.now_ticks());
            }
        }
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

    /// As the raft loop of a node does, unless the next entries carry the commit index before.
    pub(super) fn announce_commit_soon(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        if let Some(running) = &mut node.running
            && running.core.has_unannounced_commit()
            && !std::mem::replace(&mut running.announces_commit, true)
        {
            self.schedule.after(2 * MILLISECOND, Event::AnnounceCommit { node: id, life });
        }
    }

    pub(crate) fn announce_commit(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        if let Some(running) = &mut node.running {
            running.announces_commit = false;
            running.core.announce_commit();
        }
        self.settle(id)
    }

    pub(crate) fn arrive(&mut self, from: NodeId, to: NodeId, packet: Packet) -> Checked {
        if !self.network.delivers(from, to) || self.running(to).is_none() {
            self.lose(from, to, packet);
            return Ok(());
        }
        if !self.is_of_one_cluster(from, to)? {
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
            let remembered = self.running(to).map(|running| Arc::clone(running.core.remembered()));
            let is_member = status.members.get(sender.id).is_some();
            let believed = status.members.check_sender(sender, *receiver, &identity).and_then(|()| {
                remembered.filter(|_| is_member).map_or(Ok(()), |remembered| remembered.check(sender))
            });
            if let Err(refusal) = believed {
                if let SenderRefusal::OtherReceiver { .. }
                | SenderRefusal::RolledBack { .. }
                | SenderRefusal::StartedTwice { .. } = refusal
                {
                    let (sender, receiver, address) = (*sender, *receiver, "".into());
                    let nothing = Packet::Raft { sender, receiver, address, messages: Vec::new() };
                    self.take_in(from, to, nothing)?;
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
            if let Packet::Raft { sender, address, .. } = &packet {
                self.announce(to, &status.members, *sender, address);
            }
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
            Packet::Raft { sender, receiver, messages, .. } => {
                running.heard.insert(from, running.deadlines.now_ticks());
                let is_durable = running.writing.is_none() && running.to_write.is_empty();
                taught = messages.iter().filter_map(|message| terms::taught_by(message, is_durable)).max();
                // Answers of nodes that are not members are ignored.
                taught = taught.filter(|term| {
                    *term > running.seen.term
                        && !is_from_lost
                        && running.core.status().members.get(from).is_some()
                        && !running.core.is_hearing()
                });
                ServerRequestMsg::RaftMessages { sender, receiver, messages }
            }
            Packet::Snapshot { sender, receiver, sent, snapshot, data, life } => {
                running.heard.insert(from, running.deadlines.now_ticks());
                node.disk.write_snapshot(&snapshot, &data).map_err(|error| format!("{to}: {error}"))?;
                let term = sent.term;
                let reply = Responder::new(move |answer: Result<(), InstallError>| {
                    let outcome = answer.map_err(|error| error.to_string());
                    let packet = Packet::SnapshotSent { sent, outcome, life };
                    answers.push(Answered::Travels { from: to, to: from, packet });
                });
                ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply }
            }
            Packet::Request(mut request) => {
                running.is_asked(&mut request, most_ticks);
                ServerRequestMsg::ForLeader { request, forwarding: Forwarding::Never }
            }
            Packet::ReadRound { round, life } => {
                let reply = Responder::new(move |answer| {
                    drop(read_waits);
                    let packet = Packet::ReadRoundAnswered { round, answer, life };
                    answers.push(Answered::Travels { from: to, to: from, packet });
                });
                ServerRequestMsg::ConfirmReadIndex { reply }
            }
            Packet::SnapshotSent { sent, outcome, life: asked } => {
                if asked == life {
                    running.snapshot_reported(sent, outcome);
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

    pub(crate) fn introduction(&self, from: NodeId, to: NodeId) -> Option<(Sender, Option<Incarnation>)> {
        let node = self.nodes.get(&from)?;
        let core = &node.running.as_ref()?.core;
        let (sender, members) = (core.sender()?, core.status().members);
        Some((sender, members.get(to).and_then(|member| member.incarnation)))
    }

    pub(super) fn send_messages(&mut self, from: NodeId, messages: Vec<RaftMessage>) {
        let mut messages = messages.into_iter().peekable();
        while let Some(message) = messages.next() {
            let to = message.to;
            let mut together = vec![message];
            while let Some(next) = messages.next_if(|next| next.to == to) {
                together.push(next);
            }
            if let Some((sender, receiver)) = self.introduction(from, to) {
                let Some(node) = self.nodes.get(&from) else { return };
                let address = Arc::clone(&node.advertised);
                self.send(from, to, Packet::Raft { sender, receiver, address, messages: together });
            }
        }
    }

    pub(crate) fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if self.nodes.get(&from).is_some_and(|node| node.is_mute) {
            // See `docs/testing.md`.
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
            if self.rng.percent(self.world.quirks.lingering_percent)
                && let Some(packet) = packet.duplicate()
            {
                self.coverage.saw(Happened::MessageLingered);
                let delay = self.rng.about(2 * SECOND);
                self.schedule.at(at + delay, Event::Arrive { from, to, packet });
            }
            if let Packet::Snapshot { .. } | Packet::SnapshotSent { .. } = packet
                && self.world.quirks.lingering_percent > 0
            {
                // They have a separate connection, and do not delay messages.
                let delay = self.rng.about(SECOND);
                return self.schedule.at(at + delay, Event::Arrive { from, to, packet });
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

    /// A packet is lost. Its sender, if it waits for an outcome, learns the error of a broken connection.
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

    pub(super) fn loss_reported(&mut self, packet: Packet, id: NodeId) -> Checked {
        self.coverage.saw(Happened::ConnectionBroke);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let life = node.life;
        match (packet, &mut node.running) {
            (Packet::Request(request), _) => break_off(request),
            (Packet::Answer(answer), _) => answer.breaks(),
            (
                Packet::Snapshot { sent, life: asked, .. } | Packet::SnapshotSent { sent, life: asked, .. },
                Some(running),
            ) if asked == life => running.snapshot_reported(sent, Err(BROKEN.to_owned())),
            (
                Packet::ReadRound { round, life: asked }
                | Packet::ReadRoundAnswered { round, life: asked, .. },
                Some(running),
            ) if asked == life => {
                running.core.read_round_answered(round, Err(ReadError::ConnectionLost(BROKEN.to_owned())));
            }
            _ => {}
        }
        self.settle(id)
    }
}
