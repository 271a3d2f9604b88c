//! What goes wrong, and how it is repaired. Also the operator, who asks for changes at any moment, and removes a member
//! that has lost its disk.
//!
//! What Raft itself does not survive happens only as the guarantees of the project allow: one member at a time loses its
//! disk, when all others know which life of that disk to believe, and while it is lost, no other member is removed.

use std::collections::BTreeSet;

use raftify_core::error::MembershipError;
use raftify_core::members::LeaveJoint;
use raftify_core::{
    LeaderRequest, LocalRequestMsg, LogIndex, Member, MemberChange, MemberRole, Members, MembershipChange,
    NodeId, Reservation, Responder, Role,
};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::clients::Asked;
use crate::coverage::Happened;
use crate::disk::DiskFault;
use crate::invariants::{Checked, leadership};
use crate::node::{Durable, Lost};
use crate::schedule::{MILLISECOND, SECOND, Time};
use crate::simulation::{Answered, Event, Simulation};
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
    ChangeMembers,
    Snapshot,
}

impl Fault {
    pub(crate) const ALL: [Fault; 24] = [
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
}

/// What the nemesis and the operator keep in mind.
#[derive(Default)]
pub(crate) struct Nemesis {
    /// Nodes that wait to be added.
    spares: Vec<NodeId>,
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
            Fault::ChangeMembers => self.change_members(node),
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

    // --- The operator ---

    fn disturb_leadership(&mut self, fault: Fault, node: NodeId) -> Checked {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let other = self.rng.percent(70).then(|| self.rng.one_of(&ids));
        self.tell(format_args!("{node}: {fault:?} to {other:?}"));
        let number = self.invariants.answers.asked(format!("{fault:?} on {node}"));
        let silent = other.filter(|other| fault == Fault::Transfer && self.is_silent_for(node, *other));
        let message = match fault {
            Fault::Transfer => {
                let reply = self.done(number, Some(Happened::LeaderTransferred));
                LocalRequestMsg::ForLeader(LeaderRequest::TransferLeader { to: other, reply })
            }
            Fault::Demote => {
                let leads = |id: &NodeId| self.status(*id).filter(|status| status.role == Role::Leader);
                let Some(status) = ids.iter().find_map(leads) else {
                    return self.invariants.answers.answered(number);
                };
                let leader = status.node_id;
                let silent = other.filter(|other| self.is_silent_for(leader, *other));
                let reply = self.done(number, Some(Happened::Demoted));
                let message = LocalRequestMsg::Demote { term: status.term, successor: other, reply };
                self.ask(leader, message)?;
                return self.observe_hand_over(leader, silent, number);
            }
            _ => {
                let reply = self.done(number, Some(Happened::Campaigned));
                LocalRequestMsg::Campaign { reply }
            }
        };
        self.ask(node, message)?;
        self.observe_hand_over(node, silent, number)
    }

    /// Whether `leader` leads, has long heard nothing of `other`, and hands over to nobody now.
    fn is_silent_for(&self, leader: NodeId, other: NodeId) -> bool {
        let config = &self.world.config;
        let election_ticks = config.ticks(config.election_timeout);
        let settled_ticks = config.ticks(config.membership_timeout) + 5 * election_ticks;
        let Some(running) = self.nodes.get(&leader).and_then(|node| node.running.as_ref()) else {
            return false;
        };
        let since = |ticks: u64| running.deadlines.now_ticks() - ticks;
        let status = running.core.status();
        status.role == Role::Leader
            && leader != other
            && !status.members.is_joint()
            && running.heard.get(&other).is_none_or(|heard| since(*heard) > election_ticks)
            && running.unsettled.is_none_or(|asked| since(asked) > settled_ticks)
    }

    fn observe_hand_over(&self, leader: NodeId, silent: Option<NodeId>, number: u64) -> Checked {
        match silent {
            Some(silent) => leadership::hands_over_to_silent(leader, silent, self.answers.has(number)),
            None => Ok(()),
        }
    }

    fn change_members(&mut self, node: NodeId) -> Checked {
        if let Some(lost) = self.lost_member() {
            return self.remove_lost(node, lost);
        }
        let living = self.nodes.values().filter(|node| !node.is_gone).count();
        if living < 9 && self.nemesis.spares.len() < 2 && self.rng.percent(40) {
            let number = self.invariants.answers.asked(format!("node id on {node}"));
            let answers = self.answers.clone();
            let reply = Responder::new(move |answer| answers.push(Answered::Reserved { number, answer }));
            return self.ask(node, LocalRequestMsg::ForLeader(LeaderRequest::ReserveNodeId { reply }));
        }
        let most = if self.rng.percent(60) { 1 } else { 4 };
        let leave = if self.rng.percent(50) { LeaveJoint::Automatically } else { LeaveJoint::OnRequest };
        let mut steps: Vec<MemberChange> =
            (0..self.rng.random_range(1..=most)).filter_map(|_| self.some_step()).collect();
        if self.world.peculiar.many_changes {
            if self.invariants.membership.newest_members().is_some_and(Members::is_joint)
                && self.rng.percent(70)
            {
                return self.ask_for_change(node, MembershipChange::LeaveJoint);
            }
            // Whom a change names twice, it is refused for.
            let mut named = BTreeSet::new();
            steps.retain(|step| {
                named.insert(match step {
                    MemberChange::Add(member) => member.id,
                    MemberChange::Remove(id) => *id,
                })
            });
        }
        let change = match self.rng.random_range(0..4) {
            0 => MembershipChange::LeaveJoint,
            _ => MembershipChange::Steps { steps, leave },
        };
        self.ask_for_change(node, change)
    }

    fn ask_for_change(&mut self, node: NodeId, change: MembershipChange) -> Checked {
        self.tell(format_args!("{node} is asked for {change:?}"));
        let number = self.invariants.answers.asked(format!("change of members on {node}"));
        self.nemesis.membership_requests.push(number);
        let (answers, asked) = (self.answers.clone(), change.clone());
        let reply = Responder::new(move |answer| {
            answers.push(Answered::Changed { number, change: asked, answer });
        });
        self.ask(node, LocalRequestMsg::ForLeader(LeaderRequest::ChangeMembership { change, reply }))
    }

    fn remove_lost(&mut self, node: NodeId, lost: NodeId) -> Checked {
        let members = self.invariants.membership.newest_members();
        let change = match members.is_some_and(Members::is_joint) {
            true => MembershipChange::LeaveJoint,
            false => MembershipChange::one(MemberChange::Remove(lost)),
        };
        self.ask_for_change(node, change)
    }

    /// Adds a node that waits, removes a member, or changes one's role or address.
    fn some_step(&mut self) -> Option<MemberChange> {
        let members = self.invariants.membership.newest_members()?.clone();
        if self.rng.percent(40)
            && let Some(spare) = self.nemesis.spares.pop()
        {
            return self.added(spare);
        }
        if self.world.peculiar.many_changes
            && self.rng.percent(30)
            && let Some(odd) = self.odd_step()
        {
            return Some(odd);
        }
        // Some changes make no sense, such as to add who was removed, or to remove who is no member.
        let ids: Vec<NodeId> = match self.rng.percent(10) {
            true => self.nodes.keys().copied().collect(),
            false => members.iter().map(|member| member.id).collect(),
        };
        let id = self.rng.one_of(&ids);
        if self.rng.percent(40) { Some(MemberChange::Remove(id)) } else { self.added(id) }
    }

    /// Adds who was removed, or removes the leader.
    fn odd_step(&mut self) -> Option<MemberChange> {
        if self.rng.percent(40) {
            return self.leader().map(MemberChange::Remove);
        }
        let removed: Vec<NodeId> = self.invariants.membership.removed().collect();
        if removed.is_empty() {
            return None;
        }
        let id = self.rng.one_of(&removed);
        self.added(id)
    }

    fn added(&mut self, id: NodeId) -> Option<MemberChange> {
        let role = if self.rng.percent(60) { MemberRole::Voter } else { MemberRole::Learner };
        self.nemesis.addresses += 1;
        let address = format!("node-{id}:{}", 1 + self.nemesis.addresses % 60_000);
        let incarnation = Some(self.nodes.get(&id)?.incarnation);
        Some(MemberChange::Add(Member { id, address, role, incarnation }))
    }

    /// A node id was given out: there is a node that waits to be added.
    pub(crate) fn reserved(&mut self, answer: Result<Reservation, MembershipError>) -> Checked {
        let Ok(reservation) = answer else { return Ok(()) };
        let id = reservation.node_id;
        self.invariants.membership.reserved(id)?;
        self.coverage.saw(Happened::IdReserved);
        self.add_node(id);
        self.nemesis.spares.push(id);
        self.start(id)
    }

    // --- The end of the trouble ---

    /// Enough is repaired for the cluster to go on.
    pub(crate) fn heal(&mut self) -> Checked {
        self.healed_at = Some(self.schedule.now());
        self.tell(format_args!("the trouble is over"));
        self.network.cut.clear();
        self.nemesis.commit_at_heal = self.invariants.committed.last();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let tick = self.tick_interval();
        for &id in &ids {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.fails_to = Default::default();
                node.apply_slowness = 1;
                // Elections end when time-outs differ more than clocks do: safety needs no clock, liveness does (thesis,
                // section 3.9).
                node.tick = tick;
            }
            self.repair(Repair::Disk(id))?;
        }
        if self.rng.percent(30) && self.lost_member().is_none() {
            self.keep_some_down()?;
        }
        for id in ids {
            if !self.nemesis.kept_down.contains(&id) {
                let delay = self.rng.within((0, SECOND));
                self.schedule.after(delay, Event::Start(id));
            }
        }
        self.schedule.after(SECOND, Event::Look);
        Ok(())
    }

    /// A minority stays down, where it is clear what a minority is.
    fn keep_some_down(&mut self) -> Checked {
        let Some(members) = self.invariants.membership.newest_members() else { return Ok(()) };
        let members = members.clone();
        let is_settled = !members.is_joint()
            && self.nodes.values().all(|node| {
                let log = node.running.as_ref().map_or(&node.durable.log, |running| &running.log);
                log.changes_after(members.as_of()) == 0
                    && node.durable.log.changes_after(members.as_of()) == 0
                    && node.maybe_durable.iter().all(|write| write.append.is_empty())
            });
        let is_asked = self.invariants.answers.open().any(|what| what.starts_with("change of members"));
        if !is_settled || is_asked {
            return Ok(());
        }
        let mut voters: Vec<NodeId> = members.configuration().voters.into_iter().collect();
        voters.shuffle(&mut self.rng);
        let most = voters.len().div_ceil(2) - 1;
        voters.truncate(self.rng.random_range(0..=most));
        for id in voters {
            self.crash(id)?;
            self.nemesis.kept_down.insert(id);
            self.coverage.saw(Happened::HealedInPart);
        }
        Ok(())
    }

    /// Whether the cluster is well again; if it is not in time, that is a violation.
    pub(crate) fn look(&mut self) -> Checked {
        let Some(healed_at) = self.healed_at else { return Ok(()) };
        let since = self.schedule.now() - healed_at;
        let election = self.election_timeout();
        self.schedule.after(200 * MILLISECOND, Event::Look);
        if !self.can_go_on() {
            self.nemesis.is_hopeless = true;
            self.is_well = true;
            self.tell(format_args!("too much is lost to go on"));
            return Ok(());
        }
        let leader = self.leader();
        if let (Some(lost), Some(leader)) = (self.lost_member(), leader)
            && self.schedule.now() >= self.nemesis.asked_removal_at + 2 * SECOND
        {
            self.nemesis.asked_removal_at = self.schedule.now();
            self.remove_lost(leader, lost)?;
        }
        if self.recovery.is_none() {
            if leader.is_some() && self.invariants.committed.last() > self.nemesis.commit_at_heal {
                self.recovery = Some(since);
            } else if since > 40 * election {
                return Err(format!("liveness: no leader and no commit for {since} µs\n{}", self.summary()));
            } else if let Some(leader) = leader
                && since > 20 * election
            {
                // Where few nodes are members, it may be that no client asks one of them for a write.
                return self.burst(leader, 1);
            }
            return Ok(());
        }
        if since > 100 * election {
            return Err(format!("liveness: not well after {since} µs\n{}", self.summary()));
        }
        if !self.clients.are_done {
            self.clients.are_done = since > 4 * SECOND.max(self.think_most() / 8);
            return Ok(());
        }
        let Some(leader) = leader else { return Ok(()) };
        if self.invariants.answers.open().next().is_some() || self.lost_member().is_some() {
            return Ok(());
        }
        if !self.nemesis.has_read_all {
            self.nemesis.has_read_all = true;
            for key in 0..self.clients.keys() {
                self.call(0, leader, key, Asked::Read)?;
            }
            return Ok(());
        }
        let committed = &self.invariants.committed;
        let is_joint_for_ever =
            self.invariants.membership.must_leave_joint(|index| committed.at(index).map(|entry| entry.term));
        self.is_well = self.all_are_equal(leader) && !is_joint_for_ever;
        Ok(())
    }

    /// The leader of the highest term.
    fn leader(&self) -> Option<NodeId> {
        let statuses = self.nodes.keys().filter_map(|node| self.status(*node));
        let leaders = statuses.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node_id)
    }

    fn all_are_equal(&self, leader: NodeId) -> bool {
        let Some(status) = self.status(leader) else { return false };
        let last = status.last.index;
        self.nodes.values().all(|node| {
            let is_member = status.members.get(node.id).is_some();
            match &node.running {
                // Who was removed asks the voters that it knows, is refused by a majority of them, and stops. If too few of
                // these are left where it knows them, it may wait, like a node that was never added.
                Some(running) if !is_member => {
                    let own = running.core.status().members;
                    let mut others = own.configuration().voters;
                    others.remove(&node.id);
                    let address =
                        |members: &Members, id| members.get(id).map(|member| member.address.clone());
                    let is_there = |id: &&NodeId| address(&own, **id) == address(&status.members, **id);
                    let tell = others.iter().filter(is_there).count();
                    node.lost.is_some() || tell <= others.len() / 2
                }
                Some(running) => {
                    running.at.index == last
                        && running.core.status().applied == last
                        && running.core.status().leader_id == Some(leader)
                }
                None => !is_member || self.nemesis.kept_down.contains(&node.id),
            }
        })
    }

    /// Whether every configuration that may be in force has a quorum of nodes that are of use.
    fn can_go_on(&self) -> bool {
        let is_of_use =
            |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.lost.is_none() && !node.is_gone);
        let is_quorum =
            |voters: &BTreeSet<NodeId>| voters.iter().filter(|id| is_of_use(id)).count() > voters.len() / 2;
        let Some(members) = self.invariants.membership.newest_members() else { return true };
        let configuration = members.configuration();
        is_quorum(&configuration.voters)
            && (configuration.voters_outgoing.is_empty() || is_quorum(&configuration.voters_outgoing))
    }

    fn summary(&self) -> String {
        let describe = |node: &crate::node::Node| {
            let state = match &node.running {
                None => "stopped".to_owned(),
                Some(running) => {
                    let status = running.core.status();
                    format!(
                        "{} in term {}, leader {:?}, last {}, commit {}, applied {}, log after {}, members {:?}",
                        status.role,
                        status.term,
                        status.leader_id,
                        status.last,
                        status.commit,
                        status.applied,
                        status.truncated,
                        status.members
                    )
                }
            };
            format!("{}: lost {:?}, gone {}, {state}", node.id, node.lost, node.is_gone)
        };
        let nodes: Vec<String> = self.nodes.values().map(describe).collect();
        let open: Vec<&str> = self.invariants.answers.open().collect();
        format!("{}\nunanswered: {open:?}", nodes.join("\n"))
    }
}
