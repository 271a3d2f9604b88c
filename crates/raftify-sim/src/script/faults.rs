//! Nodes that start and crash, disks that hang and forget, links that deliver nothing.

use std::collections::BTreeSet;

use raftify_core::storage::Write;
use raftify_core::{Identity, NodeId, StateKept, Term};

use super::Cluster;
use crate::disk::Disk;
use crate::event::Event;
use crate::fault::Repair;
use crate::invariants::Invariants;
use crate::nemesis::{Action, DiskLoss};
use crate::network::Packet;
use crate::node::{Durable, Lost};
use crate::simulation::Simulation;

/// A copy of the disk of a node.
pub struct DiskCopy(Disk, Durable);

impl Cluster {
    // --- Nodes ---

    /// A running node with an empty disk. A first member begins the cluster, all others wait for their
    /// admission.
    pub fn add_node(&mut self, node: NodeId) {
        self.add_node_at(node, &format!("node-{node}:1"));
    }

    /// A node as [`Cluster::add_node`] adds it, at another address.
    pub fn add_node_at(&mut self, node: NodeId, address: &str) {
        let begins_with = self.sim.initial.get(node).map(|_| self.sim.initial.clone());
        self.sim.add_node(node, begins_with);
        self.step(|sim| sim.perform(Action::Move(node, address.into())));
        // The state machine takes one item at a time.
        self.step(|sim| sim.perform(Action::SlowStateMachine(node, 2)));
        self.start(node);
    }

    /// The state machines of `nodes` are on disk, from their next start on.
    pub fn keep_state_on_disk(&mut self, nodes: Vec<NodeId>) {
        self.on_disk = nodes.into_iter().collect();
    }

    /// Starts a stopped node on its disk. A member makes its start durable and asks the others whether they
    /// believe it, unless its disk hangs.
    pub fn start(&mut self, id: NodeId) {
        let is_on_disk = self.on_disk.contains(&id);
        let node = self.node_mut(id);
        node.is_gone = false;
        node.state_kept = if is_on_disk { StateKept::OnDisk } else { StateKept::InMemory };
        self.step(|sim| sim.start(id));
        if self.status(id).is_some_and(|status| status.members.len() > 1) && !self.node(id).disk_hangs {
            self.complete_write(id);
            self.step(|sim| {
                sim.probe(id);
                sim.settle(id)
            });
        }
    }

    /// A power failure of `node`. Its oldest pending write may be durable, all others are lost, and so is
    /// everything that it has sent and that has not arrived.
    pub fn crash(&mut self, node: NodeId) {
        self.step(|sim| sim.crash(node));
        let links: Vec<_> = self.links.keys().copied().filter(|(from, _)| *from == node).collect();
        for (from, to) in links {
            for packet in self.links.remove(&(from, to)).unwrap_or_default() {
                self.step(|sim| {
                    sim.lose(from, to, packet);
                    Ok(())
                });
            }
        }
    }

    /// A power failure as that of [`Cluster::crash`], at which no pending write is durable.
    pub fn lose_unsynced(&mut self, node: NodeId) {
        if let Some(writing) = self.sim.running(node).and_then(|running| running.writing.as_mut()) {
            writing.writes.clear();
        }
        self.crash(node);
    }

    // --- Disks ---

    /// The disk of `node` finishes no write until it is repaired.
    pub fn hang_disk(&mut self, node: NodeId) {
        self.step(|sim| sim.perform(Action::HangDisk(node)));
    }

    /// The disk of `node` has less free space than its reserve, until it is repaired.
    pub fn fill_disk(&mut self, node: NodeId) {
        self.step(|sim| sim.perform(Action::FillDisk(node)));
    }

    /// The disk of `node` is healthy again.
    pub fn repair_disk(&mut self, node: NodeId) {
        self.step(|sim| sim.repair(Repair::Disk(node)));
    }

    /// All disks are healthy again.
    pub fn repair_disks(&mut self) {
        self.ids().into_iter().for_each(|node| self.repair_disk(node));
    }

    /// The disk of a stopped node is replaced by an empty one.
    ///
    /// # Panics
    /// If the node runs.
    pub fn wipe(&mut self, node: NodeId) {
        assert!(!self.is_running(node), "the disk of a running node is not replaced");
        self.step(|sim| sim.perform(Action::LoseDisk(node, DiskLoss::Wipe)));
    }

    /// A copy of everything that is durable on `node`.
    ///
    /// # Panics
    /// If its disk cannot be read.
    pub fn copy_of_disk(&mut self, node: NodeId) -> DiskCopy {
        if !self.is_running(node) {
            // A part of the writes that were pending at a crash may be there.
            let found = self.stored(node);
            self.step(|sim| sim.compare_with_disk(node, &found));
        }
        let node = self.node_mut(node);
        let copy = node.disk.copy(node.durable.state.clone()).expect("the disks of a script are readable");
        DiskCopy(copy, node.durable.clone())
    }

    /// The disk of a stopped node is replaced by a copy of it.
    ///
    /// # Panics
    /// If the node runs.
    pub fn roll_back(&mut self, node: NodeId, DiskCopy(disk, durable): DiskCopy) {
        assert!(!self.is_running(node), "the disk of a running node is not replaced");
        self.node_mut(node).backup = Some((disk, durable));
        self.step(|sim| sim.perform(Action::LoseDisk(node, DiskLoss::RollBack)));
    }

    /// The disk of a stopped node is replaced by one that has nothing but its identity: it is pledged to the
    /// cluster, and has not begun it.
    ///
    /// # Panics
    /// If the disk cannot be written.
    pub fn pledge(&mut self, node: NodeId) {
        let (cluster_id, incarnation) = (self.cluster_id(), self.incarnation(node));
        self.wipe(node);
        let sim = &mut self.sim;
        sim.invariants.durable.forget(node, incarnation);
        let this = sim.nodes.get_mut(&node).expect("the test has added this node");
        this.incarnation = incarnation;
        let identity = Identity { cluster_id, node_id: node, incarnation };
        let write = Write { identity: Some(identity), ..Write::default() };
        this.durable.state = this.durable.state.after(&write).expect("an empty disk accepts an identity");
        this.disk.write(&[write], &mut sim.rng).expect("the disk is healthy");
        // No other node depends on what it had before.
        (this.lost, this.held_before) = (None, None);
    }

    /// From now on, the invariants judge what happens as if the world began with the disks as they are, and
    /// do not judge `outlived`, which alone has acknowledged entries that the others have lost: by
    /// design, such a world violates most of them. The other nodes must be stopped.
    ///
    /// # Panics
    /// If the disks of the others contradict each other.
    pub fn judge_without(&mut self, outlived: NodeId) {
        let Simulation { invariants, nodes, .. } = &mut self.sim;
        *invariants = Invariants::default();
        let mut outcome = Ok(());
        for node in nodes.values_mut() {
            node.held_before = None;
            node.lost = (node.id == outlived).then_some(Lost::Alone);
            if node.lost.is_none() && node.durable.commit() > invariants.committed.last() {
                let (commit, log) = (node.durable.commit(), &node.durable.log);
                outcome = outcome.and(invariants.committed.leader_commits(node.id, Term::ZERO, commit, log));
            }
        }
        self.judge(outcome);
    }

    // --- The network ---

    /// Links that deliver nothing, from and to.
    pub fn cut(&mut self) -> &mut BTreeSet<(NodeId, NodeId)> {
        &mut self.sim.network.cut
    }

    /// Nodes that can be connected to, but do not say whether they believe a node.
    pub fn undecided(&mut self) -> &mut BTreeSet<NodeId> {
        &mut self.sim.network.undecided
    }

    /// This percentage of messages is lost.
    pub fn lose_percent(&mut self, percent: u32) {
        self.sim.world.loss_percent = percent;
    }

    /// No node can connect to `node` at its address, though messages arrive.
    pub fn hide_address(&mut self, node: NodeId) {
        self.step(|sim| sim.perform(Action::MoveSecretly(node)));
    }

    /// `node` is at its address again.
    pub fn show_address(&mut self, node: NodeId) {
        let node = self.node_mut(node);
        node.address = node.advertised.clone();
    }

    /// `node` is at another address, and says so.
    pub fn move_to(&mut self, node: NodeId, address: &str) {
        self.step(|sim| sim.perform(Action::Move(node, address.into())));
    }

    /// Everything in flight on a link is lost. The sender notices only that its requests failed.
    pub fn drop_packets(&mut self, from: NodeId, to: NodeId) {
        while let Some(packet) = self.links.get_mut(&(from, to)).and_then(|packets| packets.pop_front()) {
            if !matches!(packet, Packet::Raft { .. }) {
                self.step(|sim| {
                    sim.lose(from, to, packet);
                    Ok(())
                });
            }
        }
    }

    /// The packet does not arrive, and its sender learns that the connection broke.
    pub(super) fn break_connection(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        self.step(|sim| {
            if !matches!(packet, Packet::Raft { .. }) {
                sim.lose(from, to, packet);
            }
            sim.happen(Event::Broke { from, to })
        });
    }

    pub(super) fn repair_all(&mut self) {
        self.cut().clear();
        self.undecided().clear();
        self.lose_percent(0);
        self.repair_disks();
        for id in self.ids() {
            let node = self.node(id);
            if !node.is_running() && !node.is_gone && node.lost.is_none() {
                self.start(id);
            }
        }
    }
}
