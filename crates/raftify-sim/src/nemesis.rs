//! What goes wrong, and how it is repaired; `operator` is one who changes members and leaders, `recovery` the end of it all.
//!
//! What Raft itself does not survive happens only as the guarantees of the project allow: one member at a time loses its
//! disk, when all others know which life of that disk to believe, and while it is lost, no other member is removed.

mod joins;
mod operator;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};

use raftify_core::{LocalRequestMsg, LogIndex, NodeId, Role};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::coverage::Happened;
use crate::disk::DiskFault;
use crate::invariants::Checked;
use crate::node::{Durable, Lost, Node};
use crate::schedule::{MILLISECOND, SECOND, Time};
use crate::simulation::{Event, Simulation};
use crate::world::Chance;

/// A kind of fault, or of intervention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    CrashOfMajority,
    CrashOfAll,
    Pause,
    PartitionTwoWay,
    PartitionOneWay,
    Isolate,
    LinksOneByOne,
    SlowDisk,
    HungDisk,
    DiskError,
    DiskFull,
    BitFlip,
    Wipe,
    RollBack,
    SlowStateMachine,
    ApplyFails,
    SnapshotFails,
    RestoreFails,
    Transfer,
    Demote,
    Campaign,
    Stop,
    ChangeMembers,
    Snapshot,
    // Only in worlds in which nodes join.
    LetNodesIn,
    JoinerDies,
    NodeMoves,
    ChangeAmidFailure,
    // Only in worlds in which who leads may hand over because of its disk.
    SlowDiskOfLeader,
}

impl Fault {
    /// Of all worlds.
    pub(crate) const ALL: [Fault; 25] = [
        Fault::Crash,
        Fault::CrashOfMajority,
        Fault::CrashOfAll,
        Fault::Pause,
        Fault::PartitionTwoWay,
        Fault::PartitionOneWay,
        Fault::Isolate,
        Fault::LinksOneByOne,
        Fault::SlowDisk,
        Fault::HungDisk,
        Fault::DiskError,
        Fault::DiskFull,
        Fault::BitFlip,
        Fault::Wipe,
        Fault::RollBack,
        Fault::SlowStateMachine,
        Fault::ApplyFails,
        Fault::SnapshotFails,
        Fault::RestoreFails,
        Fault::Transfer,
        Fault::Demote,
        Fault::Campaign,
        Fault::Stop,
        Fault::ChangeMembers,
        Fault::Snapshot,
    ];
}

/// The end of a fault, or its next part.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Cut(NodeId, NodeId),
    Restore(Vec<(NodeId, NodeId)>),
    Disk(NodeId),
    StateMachine(NodeId),
    /// A leader is to get many proposals at once.
    Burst,
    /// Who was rolled back, and did not notice, is taken away.
    TakeAway(NodeId),
    /// A node is started again, and says where it really is.
    Correct(NodeId),
    /// The operator changes members, as some of them are down.
    ChangeAmidFailure,
    /// A node that was told to stop, in this life, is waited for no longer.
    CutShort(NodeId, u64),
}

/// What the nemesis and the operator keep in mind.
#[derive(Default)]
pub(crate) struct Nemesis {
    /// Nodes that wait to be added.
    pub(crate) spares: Vec<NodeId>,
    /// Joining nodes that died for ever.
    pub(crate) dead: BTreeSet<NodeId>,
    /// Joining nodes that were cleared.
    pub(crate) cleared: BTreeSet<NodeId>,
    addresses: u64,
    /// The operator's requests about members that may still be under way.
    membership_requests: Vec<u64>,
    /// When it last asked for the removal of a lost member.
    asked_removal_at: Time,
    /// Who stays down when the others are healed.
    kept_down: BTreeSet<NodeId>,
    /// The last index committed when all was healed.
    commit_at_heal: LogIndex,
    has_read_all: bool,
    /// Too much was lost to ever go on.
    pub(crate) is_hopeless: bool,
}

impl Simulation {
    /// Something is drawn, and happens if it can.
    pub(crate) fn something_goes_wrong(&mut self) -> Checked {
        if self.healed_at.is_some() {
            return Ok(());
        }
        let delay = self.rng.about(self.world.fault_interval);
        self.schedule.after(delay, Event::Fault);
        let fault = self.rng.one_of(&self.world.faults);
        let running: Vec<NodeId> =
            self.nodes.values().filter(|node| node.is_running()).map(|node| node.id).collect();
        if running.is_empty() {
            return Ok(());
        }
        let node = self.rng.one_of(&running);
        match fault {
            Fault::Crash => {
                self.coverage.saw(Happened::CrashOfOne);
                self.crash_for_a_while(&[node])
            }
            Fault::CrashOfMajority => {
                let voters: Vec<NodeId> = running
                    .iter()
                    .copied()
                    .filter(|node| self.status(*node).is_some_and(|status| status.members.is_voter(*node)))
                    .collect();
                self.coverage.saw(Happened::CrashOfMajority);
                self.crash_for_a_while(&voters[..voters.len() / 2 + voters.len() % 2])
            }
            Fault::CrashOfAll => {
                self.coverage.saw(Happened::CrashOfAll);
                self.crash_for_a_while(&running)
            }
            Fault::Pause => {
                let election = self.election_timeout();
                let until = self.schedule.now() + election + self.rng.within((0, 3 * election));
                self.coverage.saw(Happened::Pause);
                self.tell(format_args!("{node} pauses"));
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.paused_until = until;
                }
                Ok(())
            }
            Fault::PartitionTwoWay | Fault::PartitionOneWay | Fault::Isolate => self.partition(fault, node),
            Fault::LinksOneByOne => {
                self.stop_links();
                Ok(())
            }
            Fault::SlowDisk | Fault::HungDisk | Fault::DiskError | Fault::DiskFull => {
                self.spoil_disk(fault, node);
                Ok(())
            }
            Fault::SlowDiskOfLeader => {
                self.slow_down_leader();
                Ok(())
            }
            Fault::BitFlip | Fault::Wipe | Fault::RollBack => self.lose_disk(fault, node),
            Fault::SlowStateMachine => {
                let slowness = self.rng.random_range(2..30);
                self.coverage.saw(Happened::SlowStateMachine);
                self.tell(format_args!("the state machine of {node} is slow"));
                if let Some(node) = self.nodes.get_mut(&node) {
                    node.apply_slowness = slowness;
                }
                let delay = self.rng.about(3 * SECOND);
                self.schedule.after(delay, Event::Repair(Repair::StateMachine(node)));
                Ok(())
            }
            Fault::ApplyFails | Fault::SnapshotFails | Fault::RestoreFails => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    match fault {
                        Fault::ApplyFails => node.fails_to.apply = true,
                        Fault::SnapshotFails => node.fails_to.snapshot = true,
                        _ => node.fails_to.restore = true,
                    }
                }
                Ok(())
            }
            Fault::Transfer | Fault::Demote | Fault::Campaign => self.disturb_leadership(fault, node),
            Fault::Stop => self.tell_to_stop(node),
            Fault::ChangeMembers => self.change_members(node),
            Fault::LetNodesIn => self.let_nodes_in(node),
            Fault::JoinerDies => self.joiner_dies(),
            Fault::NodeMoves => self.nodes_move(node),
            Fault::ChangeAmidFailure => self.change_amid_failure(),
            Fault::Snapshot => {
                let count = if self.rng.percent(50) { 2 } else { 1 };
                if count == 2 {
                    self.coverage.saw(Happened::SnapshotsInARow);
                }
                for _ in 0..count {
                    self.tell(format_args!("{node} is asked for a snapshot"));
                    let number = self.invariants.answers.asked(format!("snapshot of {node}"));
                    let reply = self.done(number, None);
                    self.ask(node, LocalRequestMsg::MakeSnapshot { reply })?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn election_timeout(&self) -> Time {
        u64::try_from(self.world.config.election_timeout.as_micros()).unwrap_or(Time::MAX)
    }

    pub(crate) fn repair(&mut self, repair: Repair) -> Checked {
        match repair {
            Repair::Cut(from, to) => {
                if self.healed_at.is_none() {
                    self.network.cut.insert((from, to));
                }
            }
            Repair::Restore(links) => {
                for link in links {
                    self.network.cut.remove(&link);
                }
            }
            Repair::Disk(id) => {
                let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
                node.disk_slowness = 1;
                node.disk.set_fault(None);
                let hung = std::mem::take(&mut node.disk_hangs);
                let life = node.life;
                self.tell(format_args!("the disk of {id} is well again"));
                if hung {
                    self.schedule.after(MILLISECOND, Event::Durable { node: id, life });
                }
            }
            Repair::StateMachine(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.apply_slowness = 1;
                }
            }
            Repair::Burst => self.burst_on_leader()?,
            Repair::Correct(id) => self.correct(id)?,
            Repair::ChangeAmidFailure => self.ask_amid_failure()?,
            Repair::CutShort(id, life) => self.cut_short(id, life)?,
            Repair::TakeAway(id) => {
                self.crash(id)?;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.is_gone = true;
                }
            }
        }
        Ok(())
    }

    fn crash_for_a_while(&mut self, nodes: &[NodeId]) -> Checked {
        for &node in nodes {
            self.crash(node)?;
            let delay = self.rng.about(2 * SECOND);
            self.schedule.after(delay, Event::Start(node));
        }
        Ok(())
    }

    /// A leader gets many proposals at once; mostly, they reach nobody else.
    pub(crate) fn burst_on_leader(&mut self) -> Checked {
        if self.healed_at.is_some() {
            return Ok(());
        }
        let delay = self.rng.about(4 * SECOND);
        self.schedule.after(delay, Event::Repair(Repair::Burst));
        let Some(leader) = self.leader() else { return Ok(()) };
        self.coverage.saw(Happened::Burst);
        if self.rng.percent(70) {
            self.partition(Fault::Isolate, leader)?;
        }
        let count = self.rng.random_range(5..60);
        self.burst(leader, count)
    }

    // --- Links ---

    fn partition(&mut self, fault: Fault, node: NodeId) -> Checked {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let side: BTreeSet<NodeId> = match fault {
            Fault::Isolate => BTreeSet::from([node]),
            _ => ids.iter().copied().filter(|_| self.rng.percent(50)).collect(),
        };
        let both_ways = fault == Fault::PartitionTwoWay || (fault == Fault::Isolate && self.rng.percent(50));
        let mut links = Vec::new();
        for &from in &ids {
            for &to in &ids {
                let leaves = side.contains(&from) && !side.contains(&to);
                let enters = !side.contains(&from) && side.contains(&to);
                if leaves || (both_ways && enters) {
                    links.push((from, to));
                }
            }
        }
        if links.is_empty() {
            return Ok(());
        }
        self.coverage.saw(match both_ways {
            true => Happened::PartitionTwoWay,
            false => Happened::PartitionOneWay,
        });
        self.tell(format_args!("the links {links:?} are cut"));
        self.network.cut.extend(&links);
        let delay = self.rng.about(4 * SECOND);
        self.schedule.after(delay, Event::Repair(Repair::Restore(links)));
        Ok(())
    }

    /// One after the other; and back in another order.
    fn stop_links(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let mut links: Vec<(NodeId, NodeId)> = ids
            .iter()
            .flat_map(|from| ids.iter().map(|to| (*from, *to)))
            .filter(|(from, to)| from != to)
            .collect();
        if links.is_empty() {
            return;
        }
        links.shuffle(&mut self.rng);
        links.truncate(self.rng.random_range(1..=links.len()));
        self.coverage.saw(Happened::LinksOneByOne);
        self.tell(format_args!("the links {links:?} stop one by one"));
        let pause = self.rng.within((10 * MILLISECOND, 300 * MILLISECOND));
        let mut delay = 0;
        for (from, to) in &links {
            self.schedule.after(delay, Event::Repair(Repair::Cut(*from, *to)));
            delay += pause;
        }
        links.shuffle(&mut self.rng);
        delay += self.rng.about(SECOND);
        for link in links {
            self.schedule.after(delay, Event::Repair(Repair::Restore(vec![link])));
            delay += pause;
        }
    }

    // --- Disks ---

    fn spoil_disk(&mut self, fault: Fault, id: NodeId) {
        self.tell(format_args!("the disk of {id}: {fault:?}"));
        let slowness = self.rng.random_range(10..100);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match fault {
            Fault::SlowDisk => {
                node.disk_slowness = slowness;
                self.coverage.saw(Happened::DiskSlow);
            }
            Fault::HungDisk => {
                node.disk_hangs = true;
                self.coverage.saw(Happened::DiskHung);
            }
            Fault::DiskError => {
                // Counted when a write meets it.
                return node.disk.set_fault(Some(DiskFault::Error));
            }
            _ => node.disk.set_fault(Some(DiskFault::Full)),
        }
        let delay = self.rng.about(4 * SECOND);
        self.schedule.after(delay, Event::Repair(Repair::Disk(id)));
    }

    /// The disk of a node that leads takes for each write a multiple of what counts as slow, for long.
    fn slow_down_leader(&mut self) {
        let leads = |node: &&Node| {
            node.running.as_ref().is_some_and(|running| running.core.status().role == Role::Leader)
        };
        let Some(id) = self.nodes.values().find(leads).map(|node| node.id) else { return };
        let slow = u64::try_from(self.world.config.slow_write_time.as_micros()).unwrap_or(Time::MAX);
        let slowness = slow * self.rng.random_range(3..8) / self.world.write_delay.1.max(1);
        self.tell(format_args!("the disk of {id}, which leads, is {slowness} times as slow"));
        self.coverage.saw(Happened::DiskOfLeaderSlow);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk_slowness = slowness.max(2);
        }
        let delay = 2 * SECOND + self.rng.about(8 * SECOND);
        self.schedule.after(delay, Event::Repair(Repair::Disk(id)));
    }

    fn lose_disk(&mut self, fault: Fault, id: NodeId) -> Checked {
        if fault == Fault::RollBack && self.nodes.values().all(|node| node.backup.is_none()) {
            return self.back_up(id);
        }
        let id = match fault {
            Fault::RollBack => match self.nodes.values().find(|node| node.backup.is_some()) {
                Some(node) => node.id,
                None => return Ok(()),
            },
            _ => id,
        };
        if !self.may_lose(id, fault == Fault::Wipe) {
            return Ok(());
        }
        let backup = self.nodes.get_mut(&id).and_then(|node| node.backup.take());
        if fault == Fault::BitFlip && self.world.peculiar.segments && self.rng.percent(50) {
            self.tell(format_args!("{id}: {fault:?}, while it runs"));
            if let Some(node) = self.nodes.get_mut(&id) {
                node.disk.flip_a_bit();
            }
            return self.read_all(id);
        }
        self.crash(id)?;
        let known_by = match (&backup, self.nodes.get(&id)) {
            (Some((_, durable)), Some(node)) => node.is_rolled_back_to(&durable.state, &self.nodes),
            _ => BTreeMap::new(),
        };
        let incarnation = self.next_incarnation();
        let empty = self.new_disk();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        match (fault, backup) {
            (Fault::BitFlip, _) => {
                node.disk.flip_a_bit();
            }
            (Fault::Wipe, _) => {
                node.lost = Some(Lost::Wiped);
                node.disk = empty;
                node.held_before = Some(std::mem::take(&mut node.durable).log);
                node.maybe_durable.clear();
                node.incarnation = incarnation;
                self.coverage.saw(Happened::DiskWiped);
            }
            (_, Some((disk, durable))) => {
                node.lost = Some(Lost::RolledBack);
                node.known_by = known_by;
                node.disk = disk;
                node.held_before = Some(std::mem::replace(&mut node.durable, durable).log);
                node.maybe_durable.clear();
                self.invariants.durable.forget(id, node.incarnation);
                self.coverage.saw(Happened::DiskRolledBack);
                self.schedule.after(10 * SECOND, Event::Repair(Repair::TakeAway(id)));
            }
            _ => return Ok(()),
        }
        self.tell(format_args!("{id}: {fault:?}"));
        let delay = self.rng.about(SECOND);
        self.schedule.after(delay, Event::Start(id));
        Ok(())
    }

    fn back_up(&mut self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.lost.is_none() && !node.disk.has_flipped() && node.durable.state.identity.is_some() {
            let copy =
                node.disk.copy(node.durable.state.clone()).map_err(|error| format!("{id}: {error}"))?;
            node.backup = Some((copy, Durable::clone(&node.durable)));
        }
        Ok(())
    }

    /// Whether the cluster can do without the disk of `id`, and will know what became of it.
    fn may_lose(&self, id: NodeId, is_wiped: bool) -> bool {
        let Some(members) = self.invariants.membership.newest_members() else { return false };
        let is_member = |id| members.get(id).is_some();
        if members.is_joint() || !is_member(id) || self.lost_member().is_some() {
            return false;
        }
        if is_wiped && self.world.voters == 1 && id == NodeId::FIRST {
            // It would begin a new cluster of its own: see `docs/operations.md`.
            return false;
        }
        let is_asked =
            self.nemesis.membership_requests.iter().any(|number| self.invariants.answers.is_open(*number));
        let voters = members.configuration().voters;
        if is_asked || (members.is_voter(id) && voters.len() - 1 <= voters.len() / 2) {
            return false;
        }
        self.nodes.values().filter(|node| !node.is_gone).all(|node| {
            let durable = &node.durable;
            let own = durable.state.members.as_ref();
            let log = node.running.as_ref().map_or(&durable.log, |running| &running.log);
            let knows = own.and_then(|own| own.get(id)).is_some_and(|member| member.incarnation.is_some());
            // Until a removal is in force there as well, who was removed is missed in elections.
            let is_settled = !voters.contains(&node.id)
                || own.is_some_and(|own| !own.is_joint() && own.configuration().voters == voters);
            is_settled
                && log.changes_after(members.as_of()) == 0
                && durable.log.changes_after(members.as_of()) == 0
                && (node.id == id || !is_wiped || knows)
        })
    }

    /// A member whose disk is lost.
    fn lost_member(&self) -> Option<NodeId> {
        let members = self.invariants.membership.newest_members()?;
        let mut lost = self.nodes.values().filter(|node| node.lost.is_some() || node.disk.has_flipped());
        lost.find(|node| members.get(node.id).is_some()).map(|node| node.id)
    }
}
