//! Single steps: a message arrives, a write becomes durable, an entry is applied, a clock ticks.

use raftify_core::{NodeId, SnapshotReason};

use super::Cluster;
use super::outcome::take;
use crate::event::Event;
use crate::network::Packet;

impl Cluster {
    /// The next message or request on a link arrives, or is lost if the link is cut or the receiver is down.
    ///
    /// `false`: there is none.
    pub fn deliver(&mut self, from: NodeId, to: NodeId) -> bool {
        let Some(packet) = self.links.get_mut(&(from, to)).and_then(|packets| packets.pop_front()) else {
            return false;
        };
        if self.sim.network.delivers(from, to) && self.is_running(to) {
            self.step(|sim| sim.arrive(from, to, packet));
        } else {
            self.break_connection(from, to, packet);
        }
        true
    }

    /// The answers of nodes to other nodes arrive: outcomes of snapshots, rounds of reads, forwarded
    /// requests.
    pub fn deliver_answers(&mut self) {
        while let Some(((from, to), packet)) = self.answers.pop_front() {
            self.step(|sim| sim.arrive(from, to, packet));
        }
    }

    /// Snapshots in flight reach the ends of their links. Returns their number.
    pub fn deliver_snapshots(&mut self) -> usize {
        let snapshots = std::mem::take(&mut self.snapshots);
        let count = snapshots.len();
        for (link, packet) in snapshots {
            self.links.entry(link).or_default().push_back(packet);
        }
        count
    }

    /// The oldest waiting turn of `node` becomes durable. `false`: there is none, or its disk hangs.
    pub fn complete_write(&mut self, node: NodeId) -> bool {
        self.complete_writes(node, 1)
    }

    /// The `count` oldest waiting turns of `node` become durable together. `false`: there is none, or its
    /// disk hangs.
    pub fn complete_writes(&mut self, node: NodeId, count: usize) -> bool {
        let Some(this) = self.sim.nodes.get_mut(&node).filter(|this| !this.disk_hangs) else { return false };
        let life = this.life;
        let Some(running) = &mut this.running else { return false };
        let Some(first) = running.writing.take() else { return false };
        let more = running.to_write.len().min(count.saturating_sub(1));
        let writing = running.to_write.drain(..more).fold(first, crate::node::Writing::with);
        let installs =
            writing.writes.iter().filter(|w| w.reset_log.is_some() && w.snapshot.is_some()).count();
        running.writing = Some(writing);
        self.snapshots_installed += installs;
        self.step(|sim| sim.becomes_durable(node, life));
        true
    }

    /// The state machine of `node` takes its next item. `false`: there is none.
    pub fn apply_one(&mut self, node: NodeId) -> bool {
        let Some(this) = self.sim.nodes.get(&node) else { return false };
        let life = this.life;
        if this.running.as_ref().is_none_or(|running| running.to_apply.is_empty()) {
            return false;
        }
        self.step(|sim| sim.apply(node, life));
        true
    }

    /// The clock of `node` ticks. It connects to all members first.
    pub fn tick(&mut self, node: NodeId) {
        self.step(|sim| {
            sim.probe(node);
            sim.pass_tick(node)
        });
    }

    /// Takes what the last step has scheduled: packets go to their links, and everything that the test does
    /// not decide happens at once.
    pub(super) fn take_events(&mut self) {
        loop {
            let events = self.sim.schedule.take_all();
            if events.is_empty() {
                break;
            }
            for event in events {
                self.take_event(event);
            }
        }
        for reservation in self.reservations.extract_if(.., |reserved| take(reserved).is_some()) {
            if let Some(Ok(reservation)) = take(&reservation)
                && let Err(violation) = self.sim.invariants.membership.reserved(reservation.node_id)
            {
                panic!("{violation}");
            }
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, packet } => self.take_packet(from, to, packet),
            Event::SnapshotWritten { node, .. } if self.leisurely_snapshots && !self.is_awaited(node) => {}
            Event::AnnounceCommit { .. }
            | Event::Fetched { .. }
            | Event::SnapshotWritten { .. }
            | Event::Broke { .. }
            | Event::Lost(..)
            | Event::Refused { .. } => {
                let outcome = self.sim.happen(event).and_then(|()| self.sim.deliver_answers());
                self.judge(outcome);
            }
            // The test decides when these happen, if they do.
            Event::Tick { .. }
            | Event::Durable { .. }
            | Event::Written { .. }
            | Event::Apply { .. }
            | Event::Start(_)
            | Event::Repair(_)
            | Event::Client(_)
            | Event::Fault
            | Event::Heal
            | Event::Look => {}
        }
    }

    fn take_packet(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let link = (from, to);
        match packet {
            Packet::SnapshotSent { .. } | Packet::ReadRoundAnswered { .. } | Packet::Answer(_) => {
                self.answers.push_back((link, packet));
            }
            Packet::Snapshot { .. } if self.slow_snapshots => self.snapshots.push((link, packet)),
            _ => self.links.entry(link).or_default().push_back(packet),
        }
    }

    /// Whether a follower waits for the snapshot that `node` takes.
    fn is_awaited(&self, node: NodeId) -> bool {
        let running = self.node(node).running.as_ref();
        let captured = running.and_then(|running| running.captured.as_ref());
        captured.is_some_and(|captured| captured.reason == SnapshotReason::Awaited)
    }
}
