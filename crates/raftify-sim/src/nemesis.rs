//! Decides the faults and the operator's requests: looks at a [`Scene`], draws, and returns [`Action`]s. It
//! changes nothing of the world: the simulation carries the actions out. `operator` changes members, `joins`
//! admits and moves nodes.
//!
//! Faults that Raft itself does not survive happen only within the project's guarantees: one member at a time
//! loses its disk, when all others know which incarnation of that disk to believe, and while it is lost, no
//! other member is removed.

mod joins;
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raftify_core::{Members, MembershipRequest, NodeId, Role, Status};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::coverage::Happened;
use crate::disk::DiskFault;
use crate::draw::Draw;
use crate::fault::{Fault, Repair};
use crate::invariants::answers::Answers;
use crate::invariants::membership::Membership;
use crate::node::{Lost, Node};
use crate::schedule::{MILLISECOND, SECOND, Time};
use crate::world::World;

/// A decision of the nemesis.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// A fault, drawn from those of the world.
    Fault,
    /// Many proposals for one leader.
    Burst,
    /// The operator changes members while some of them are down.
    ChangeAmidFailure,
    /// A new node may be at another address than it reports.
    Hide(NodeId),
    /// A node with a wrong reported address has reported the correct one.
    Corrected(NodeId),
    /// A joining node has crashed.
    JoinerCrashed(NodeId),
    /// The operator removes this lost member through the leader.
    RemoveLost { leader: NodeId, lost: NodeId },
}

/// An action of the simulation, in the order of the decisions.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Tell(String),
    Saw(Happened),
    Later(Delay, Repair),
    Crash(NodeId),
    Start(NodeId, Delay),
    Pause(NodeId, Time),
    /// The node never starts again.
    Abandon(NodeId),
    Cut(Vec<(NodeId, NodeId)>),
    SlowDisk(NodeId, u64),
    HangDisk(NodeId),
    /// The disk has less free space than its reserve.
    FillDisk(NodeId),
    SetDiskFault(NodeId, DiskFault),
    BackUpDisk(NodeId),
    LoseDisk(NodeId, DiskLoss),
    SlowStateMachine(NodeId, u64),
    /// Its state machine fails once, in the operation of the fault.
    FailOnce(NodeId, Fault),
    /// The address from its next start on.
    Move(NodeId, Arc<str>),
    /// The node is not at its reported address.
    MoveSecretly(NodeId),
    /// No message reaches it.
    Hide(NodeId),
    Burst(NodeId, u64),
    TakeSnapshot(NodeId),
    /// A stop request, and the time until the node is killed.
    Stop(NodeId, Time),
    /// Leadership changes: the fault says how, and which node is meant to lead.
    DisturbLeadership(NodeId, Fault, Option<NodeId>),
    ReserveNodeId(NodeId),
    /// A change of members is requested from this node.
    ChangeMembers(NodeId, MembershipRequest),
    /// A decision after all earlier actions.
    Decide(Decision),
}

/// A time that is drawn when the action is carried out, because earlier actions may draw before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delay {
    Exactly(Time),
    /// This mean, after a fixed time.
    About {
        mean: Time,
        after: Time,
    },
    Within(Time, Time),
}

impl Delay {
    pub(crate) const fn about(mean: Time) -> Delay {
        Delay::About { mean, after: 0 }
    }

    pub(crate) fn draw(self, rng: &mut ChaCha8Rng) -> Time {
        match self {
            Delay::Exactly(time) => time,
            Delay::About { mean, after } => after + rng.about(mean),
            Delay::Within(least, most) => rng.within((least, most)),
        }
    }
}

/// How a disk is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskLoss {
    BitFlip,
    /// While the node continues to run.
    BitFlipAlive,
    Wipe,
    RollBack,
}

/// The part of the world that the nemesis and the operator see.
pub(crate) struct Scene<'a> {
    pub(crate) now: Time,
    /// No more faults.
    pub(crate) is_healed: bool,
    pub(crate) world: &'a World,
    pub(crate) nodes: &'a BTreeMap<NodeId, Node>,
    pub(crate) membership: &'a Membership,
    pub(crate) answers: &'a Answers,
}

impl Scene<'_> {
    fn members(&self) -> Option<&Members> {
        self.membership.newest_members()
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| node.is_running()).map(|node| node.id).collect()
    }

    fn living(&self) -> usize {
        self.nodes.values().filter(|node| !node.is_gone).count()
    }

    fn status(&self, node: NodeId) -> Option<Status> {
        Some(self.nodes.get(&node)?.running.as_ref()?.core.status())
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let judged = self.nodes.values().filter(|node| node.lost != Some(Lost::OtherList));
        let statuses = judged.filter_map(|node| self.status(node.id));
        let leaders = statuses.filter(|status| status.role == Role::Leader);
        leaders.max_by_key(|status| status.term).map(|status| status.node_id)
    }

    /// A member whose disk is lost.
    pub(crate) fn lost_member(&self) -> Option<NodeId> {
        let members = self.members()?;
        let mut lost = self.nodes.values().filter(|node| node.lost.is_some() || node.disk.has_flipped());
        lost.find(|node| members.get(node.id).is_some()).map(|node| node.id)
    }
}

/// The state of the nemesis and the operator.
#[derive(Default)]
pub(crate) struct Nemesis {
    /// Nodes that wait to be added.
    spares: Vec<NodeId>,
    /// Joining nodes that died permanently.
    dead: BTreeSet<NodeId>,
    addresses: u64,
    /// The operator's requests about members that may still be pending.
    membership_requests: Vec<u64>,
}

impl Nemesis {
    /// A node waits to be added.
    pub(crate) fn waits(&mut self, node: NodeId) {
        if !self.spares.contains(&node) {
            self.spares.push(node);
        }
    }

    /// Whether this joining node died permanently.
    pub(crate) fn is_dead(&self, node: NodeId) -> bool {
        self.dead.contains(&node)
    }

    /// The operator has requested a change of members, under this number.
    pub(crate) fn has_asked(&mut self, number: u64) {
        self.membership_requests.push(number);
    }

    pub(crate) fn decide(
        &mut self,
        decision: Decision,
        scene: &Scene<'_>,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Action> {
        match decision {
            Decision::Fault => self.inject_fault(scene, rng),
            Decision::Burst => burst_on_leader(scene, rng),
            Decision::ChangeAmidFailure => self.ask_amid_failure(scene, rng),
            Decision::Hide(id) => hide_some(scene, rng, id),
            Decision::Corrected(id) => self.ask_again_to_join(scene, rng, id),
            Decision::JoinerCrashed(id) => self.joiner_crashed(rng, id),
            Decision::RemoveLost { leader, lost } => vec![operator::remove_lost(scene, leader, lost)],
        }
    }

    /// Draws a fault, which happens if it is possible.
    fn inject_fault(&mut self, scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
        let fault = rng.one_of(&scene.world.faults);
        let running = scene.running();
        if running.is_empty() {
            return Vec::new();
        }
        let node = rng.one_of(&running);
        match fault {
            Fault::Crash => crash_for_a_while(Happened::CrashOfOne, &[node]),
            Fault::CrashOfMajority => {
                let voters: Vec<NodeId> = running
                    .iter()
                    .copied()
                    .filter(|node| scene.status(*node).is_some_and(|status| status.members.is_voter(*node)))
                    .collect();
                let count = voters.len() / 2 + voters.len() % 2;
                crash_for_a_while(Happened::CrashOfMajority, &voters[..count])
            }
            Fault::CrashOfAll => crash_for_a_while(Happened::CrashOfAll, &running),
            Fault::Pause => {
                let election = scene.world.election_timeout();
                let until = scene.now + election + rng.within((0, 3 * election));
                vec![Action::Saw(Happened::Pause), Action::Pause(node, until)]
            }
            Fault::PartitionTwoWay | Fault::PartitionOneWay | Fault::Isolate => {
                partition(scene, rng, fault, node)
            }
            Fault::LinksOneByOne => stop_links(scene, rng),
            Fault::SlowDisk | Fault::HungDisk | Fault::DiskError | Fault::DiskFull => {
                spoil_disk(rng, fault, node)
            }
            Fault::SlowDiskOfLeader => slow_down_leader(scene, rng),
            Fault::DiskAlmostFull => fill_disks(rng, &running),
            Fault::BitFlip | Fault::Wipe | Fault::RollBack => self.lose_disk(scene, rng, fault, node),
            Fault::SlowStateMachine => {
                let slowness = rng.random_range(2..30);
                let delay = Delay::Exactly(rng.about(3 * SECOND));
                vec![
                    Action::Saw(Happened::SlowStateMachine),
                    Action::Tell(format!("the state machine of {node} is slow")),
                    Action::SlowStateMachine(node, slowness),
                    Action::Later(delay, Repair::StateMachine(node)),
                ]
            }
            Fault::ApplyFails | Fault::SnapshotFails | Fault::RestoreFails => {
                vec![Action::FailOnce(node, fault)]
            }
            Fault::Transfer | Fault::Demote | Fault::Campaign => {
                let ids: Vec<NodeId> = scene.nodes.keys().copied().collect();
                let other = rng.percent(70).then(|| rng.one_of(&ids));
                vec![Action::DisturbLeadership(node, fault, other)]
            }
            Fault::Stop => vec![Action::Stop(node, rng.about(scene.world.election_timeout()))],
            Fault::ChangeMembers => self.change_members(scene, rng, node),
            Fault::AdmitNodes => self.admit_nodes(scene, rng, node),
            Fault::JoinerDies => self.joiner_dies(scene, rng),
            Fault::NodeMoves => self.nodes_move(scene, rng, node),
            Fault::ChangeAmidFailure => self.change_amid_failure(scene, rng),
            Fault::Snapshot => match rng.percent(50) {
                true => vec![
                    Action::Saw(Happened::SnapshotsInARow),
                    Action::TakeSnapshot(node),
                    Action::TakeSnapshot(node),
                ],
                false => vec![Action::TakeSnapshot(node)],
            },
        }
    }

    fn lose_disk(&self, scene: &Scene<'_>, rng: &mut ChaCha8Rng, fault: Fault, node: NodeId) -> Vec<Action> {
        let backed_up = scene.nodes.values().find(|node| node.backup.is_some()).map(|node| node.id);
        let (id, loss) = match (fault, backed_up) {
            (Fault::RollBack, None) => return vec![Action::BackUpDisk(node)],
            (Fault::RollBack, Some(backed_up)) => (backed_up, DiskLoss::RollBack),
            (Fault::Wipe, _) => (node, DiskLoss::Wipe),
            _ => (node, DiskLoss::BitFlip),
        };
        if !self.may_lose(scene, id, loss == DiskLoss::Wipe) {
            return Vec::new();
        }
        if loss == DiskLoss::BitFlip && scene.world.quirks.segments && rng.percent(50) {
            return vec![Action::LoseDisk(id, DiskLoss::BitFlipAlive)];
        }
        vec![Action::Crash(id), Action::LoseDisk(id, loss), Action::Start(id, Delay::about(SECOND))]
    }

    /// Whether the cluster can tolerate the loss of the disk of `id`, and will know its incarnation
    /// afterwards.
    fn may_lose(&self, scene: &Scene<'_>, id: NodeId, is_wiped: bool) -> bool {
        let Some(members) = scene.members() else { return false };
        let is_member = |id| members.get(id).is_some();
        if members.is_joint() || !is_member(id) || scene.lost_member().is_some() {
            return false;
        }
        if is_wiped && scene.world.voters == 1 && id == NodeId::FIRST {
            // It would begin a separate cluster: see `docs/operations.md`.
            return false;
        }
        let is_asked = self.membership_requests.iter().any(|number| scene.answers.is_open(*number));
        let voters = members.configuration().voters;
        if is_asked || (members.is_voter(id) && voters.len() - 1 <= voters.len() / 2) {
            return false;
        }
        scene.nodes.values().filter(|node| !node.is_gone).all(|node| {
            let durable = &node.durable;
            let own = durable.state.members.as_ref();
            let log = node.running.as_ref().map_or(&durable.log, |running| &running.log);
            let knows = own.and_then(|own| own.get(id)).is_some_and(|member| member.incarnation.is_some());
            // Until a removal is in force there as well, the removed node is missing in elections.
            let is_settled = !voters.contains(&node.id)
                || own.is_some_and(|own| !own.is_joint() && own.configuration().voters == voters);
            is_settled
                && log.changes_after(members.as_of()) == 0
                && durable.log.changes_after(members.as_of()) == 0
                && (node.id == id || !is_wiped || knows)
        })
    }
}

fn crash_for_a_while(what: Happened, nodes: &[NodeId]) -> Vec<Action> {
    let mut actions = vec![Action::Saw(what)];
    for &node in nodes {
        actions.extend([Action::Crash(node), Action::Start(node, Delay::about(2 * SECOND))]);
    }
    actions
}

/// A leader receives many proposals at once; in most cases they reach no other node.
fn burst_on_leader(scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
    if scene.is_healed {
        return Vec::new();
    }
    let mut actions = vec![Action::Later(Delay::Exactly(rng.about(4 * SECOND)), Repair::Burst)];
    let Some(leader) = scene.leader() else { return actions };
    actions.push(Action::Saw(Happened::Burst));
    if rng.percent(70) {
        actions.extend(partition(scene, rng, Fault::Isolate, leader));
    }
    actions.push(Action::Burst(leader, rng.random_range(5..60)));
    actions
}

// --- Links ---

fn partition(scene: &Scene<'_>, rng: &mut ChaCha8Rng, fault: Fault, node: NodeId) -> Vec<Action> {
    let ids: Vec<NodeId> = scene.nodes.keys().copied().collect();
    let side: BTreeSet<NodeId> = match fault {
        Fault::Isolate => BTreeSet::from([node]),
        _ => ids.iter().copied().filter(|_| rng.percent(50)).collect(),
    };
    let both_ways = fault == Fault::PartitionTwoWay || (fault == Fault::Isolate && rng.percent(50));
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
        return Vec::new();
    }
    let what = if both_ways { Happened::PartitionTwoWay } else { Happened::PartitionOneWay };
    let delay = Delay::Exactly(rng.about(4 * SECOND));
    vec![
        Action::Saw(what),
        Action::Tell(format!("the links {links:?} are cut")),
        Action::Cut(links.clone()),
        Action::Later(delay, Repair::Restore(links)),
    ]
}

/// One after the other; and restored in another order.
fn stop_links(scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
    let ids: Vec<NodeId> = scene.nodes.keys().copied().collect();
    let mut links: Vec<(NodeId, NodeId)> = ids
        .iter()
        .flat_map(|from| ids.iter().map(|to| (*from, *to)))
        .filter(|(from, to)| from != to)
        .collect();
    if links.is_empty() {
        return Vec::new();
    }
    links.shuffle(rng);
    links.truncate(rng.random_range(1..=links.len()));
    let mut actions = vec![
        Action::Saw(Happened::LinksOneByOne),
        Action::Tell(format!("the links {links:?} stop one by one")),
    ];
    let pause = rng.within((10 * MILLISECOND, 300 * MILLISECOND));
    let mut delay = 0;
    for (from, to) in &links {
        actions.push(Action::Later(Delay::Exactly(delay), Repair::Cut(*from, *to)));
        delay += pause;
    }
    links.shuffle(rng);
    delay += rng.about(SECOND);
    for link in links {
        actions.push(Action::Later(Delay::Exactly(delay), Repair::Restore(vec![link])));
        delay += pause;
    }
    actions
}

// --- Disks ---

fn spoil_disk(rng: &mut ChaCha8Rng, fault: Fault, id: NodeId) -> Vec<Action> {
    let mut actions = vec![Action::Tell(format!("the disk of {id}: {fault:?}"))];
    let slowness = rng.random_range(10..100);
    match fault {
        Fault::SlowDisk => {
            actions.extend([Action::SlowDisk(id, slowness), Action::Saw(Happened::DiskSlow)]);
        }
        Fault::HungDisk => actions.extend([Action::HangDisk(id), Action::Saw(Happened::DiskHung)]),
        Fault::DiskError => {
            // Counted when it affects a write.
            actions.push(Action::SetDiskFault(id, DiskFault::Error));
            return actions;
        }
        _ => actions.push(Action::SetDiskFault(id, DiskFault::Full)),
    }
    actions.push(Action::Later(Delay::Exactly(rng.about(4 * SECOND)), Repair::Disk(id)));
    actions
}

/// The disks of one node, or of some, are almost full for a while.
fn fill_disks(rng: &mut ChaCha8Rng, running: &[NodeId]) -> Vec<Action> {
    let mut nodes = running.to_vec();
    nodes.shuffle(rng);
    nodes.truncate(rng.random_range(1..=nodes.len().max(1)));
    let mut actions = vec![
        Action::Tell(format!("the disks of {nodes:?} are almost full")),
        Action::Saw(Happened::DiskAlmostFull),
    ];
    for id in nodes {
        actions.push(Action::FillDisk(id));
        actions.push(Action::Later(Delay::Exactly(rng.about(3 * SECOND)), Repair::Disk(id)));
    }
    actions
}

/// The disk of a leader is slow by a multiple of the limit of the settings, for long.
fn slow_down_leader(scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
    let leads = |node: &&Node| {
        node.running.as_ref().is_some_and(|running| running.core.status().role == Role::Leader)
    };
    let Some(id) = scene.nodes.values().find(leads).map(|node| node.id) else { return Vec::new() };
    let slow = u64::try_from(scene.world.config.slow_write_time.as_micros()).unwrap_or(Time::MAX);
    let slowness = slow * rng.random_range(3..8) / scene.world.write_delay.1.max(1);
    let delay = Delay::Exactly(2 * SECOND + rng.about(8 * SECOND));
    vec![
        Action::Tell(format!("the disk of {id}, which leads, is {slowness} times as slow")),
        Action::Saw(Happened::DiskOfLeaderSlow),
        Action::SlowDisk(id, slowness.max(2)),
        Action::Later(delay, Repair::Disk(id)),
    ]
}

/// Some joining nodes are not at their reported addresses, and some of these receive no messages either.
fn hide_some(scene: &Scene<'_>, rng: &mut ChaCha8Rng, id: NodeId) -> Vec<Action> {
    if !scene.world.joins.hidden || scene.is_healed || !rng.percent(40) {
        return Vec::new();
    }
    let mut actions = vec![Action::MoveSecretly(id)];
    if rng.percent(50) {
        actions.push(Action::Hide(id));
    }
    let delay = Delay::Exactly(rng.about(8 * SECOND));
    actions.extend([
        Action::Saw(Happened::NodeHidden),
        Action::Tell(format!("{id} is not where it says")),
        Action::Later(delay, Repair::Correct(id)),
    ]);
    actions
}
