//! Admission of nodes and its faults: some die while they catch up, some are unreachable or restart at
//! another address; and the operator changes members while others are down.

use raftify_core::members::LeaveJoint;
use raftify_core::{
    LogIndex, Member, MemberChange, MemberRole, Members, MembershipChange, MembershipRequest, NodeId,
};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::operator::remove_lost;
use super::{Action, Decision, Delay, Nemesis, Scene};
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::fault::Repair;
use crate::schedule::SECOND;

/// The maximum number of nodes that are not gone.
const NODES_MAX: usize = 10;

impl Nemesis {
    /// Nodes request to join: one or several at once, some of them as permanent learners.
    pub(super) fn admit_nodes(
        &mut self,
        scene: &Scene<'_>,
        rng: &mut ChaCha8Rng,
        node: NodeId,
    ) -> Vec<Action> {
        if let Some(lost) = scene.lost_member() {
            return vec![remove_lost(scene, node, lost)];
        }
        let Some(members) = scene.members() else { return Vec::new() };
        self.spares.retain(|id| {
            members.get(*id).is_none()
                && !members.is_removed(*id)
                && scene.nodes.get(id).is_some_and(|node| !node.is_gone)
        });
        self.spares.sort();
        self.spares.dedup();
        let living = scene.living();
        let mut ids = self.spares.clone();
        if ids.is_empty() || (living < NODES_MAX && rng.percent(40)) {
            let more = NODES_MAX.min(living + rng.random_range(1..=3)).saturating_sub(living);
            return vec![Action::ReserveNodeId(node); more];
        }
        ids.shuffle(rng);
        ids.truncate(rng.random_range(1..=ids.len()));
        if rng.percent(20) {
            // A member requests it as well, as it does when it is restarted with the same arguments.
            let all: Vec<NodeId> = members.iter().map(|member| member.id).collect();
            ids.push(rng.one_of(&all));
        }
        ask_to_join(scene, rng, node, &ids)
    }

    /// A node that has reported its real address requests to join there.
    pub(super) fn ask_again_to_join(
        &self,
        scene: &Scene<'_>,
        rng: &mut ChaCha8Rng,
        id: NodeId,
    ) -> Vec<Action> {
        match scene.leader() {
            Some(leader) if !scene.is_healed && self.is_joining(scene, id) => {
                ask_to_join(scene, rng, leader, &[id])
            }
            _ => Vec::new(),
        }
    }

    fn is_joining(&self, scene: &Scene<'_>, id: NodeId) -> bool {
        let member = scene.members().and_then(|members| members.get(id));
        member.map_or(self.spares.contains(&id), |member| member.role == MemberRole::Joining)
    }

    /// A node that is joining, or about to, dies: permanently, for a while, or to restart at another address.
    pub(super) fn joiner_dies(&self, scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
        let running = scene.nodes.values().filter(|node| node.lost.is_none() && node.is_running());
        let joining: Vec<NodeId> =
            running.map(|node| node.id).filter(|id| self.is_joining(scene, *id)).collect();
        if joining.is_empty() {
            return Vec::new();
        }
        // Admitted nodes first: a dead one of these is to be cleared.
        let is_let_in = |id: &&NodeId| scene.members().is_some_and(|members| members.get(**id).is_some());
        let let_in: Vec<NodeId> = joining.iter().filter(is_let_in).copied().collect();
        let id = rng.one_of(if let_in.is_empty() { &joining } else { &let_in });
        vec![Action::Crash(id), Action::Decide(Decision::JoinerCrashed(id))]
    }

    pub(super) fn joiner_crashed(&mut self, rng: &mut ChaCha8Rng, id: NodeId) -> Vec<Action> {
        if rng.percent(35) {
            self.dead.insert(id);
            return vec![
                Action::Tell(format!("{id} dies permanently")),
                Action::Saw(Happened::JoinerDied),
                Action::Abandon(id),
            ];
        }
        let mut actions = Vec::new();
        if rng.percent(40) {
            actions.extend([Action::Move(id, self.fresh_address(id)), Action::Saw(Happened::NodeMoved)]);
        }
        let away = rng.one_of(&[SECOND, 5 * SECOND, 10 * SECOND]);
        actions.push(Action::Start(id, Delay::Exactly(rng.about(away))));
        actions
    }

    /// Nodes restart at other addresses: one, or all of them.
    pub(super) fn nodes_move(
        &mut self,
        scene: &Scene<'_>,
        rng: &mut ChaCha8Rng,
        node: NodeId,
    ) -> Vec<Action> {
        let ids: Vec<NodeId> = match rng.percent(20) {
            true => scene.nodes.values().filter(|node| !node.is_gone).map(|node| node.id).collect(),
            false => vec![node],
        };
        let mut actions: Vec<Action> =
            ids.iter().map(|id| Action::Move(*id, self.fresh_address(*id))).collect();
        actions.push(Action::Tell(format!("{ids:?} move")));
        actions.extend(super::crash_for_a_while(Happened::NodeMoved, &ids));
        actions
    }

    // --- Changes while others are down ---

    /// The operator changes members while some voters are down; if none is, some crash first.
    pub(super) fn change_amid_failure(&mut self, scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
        if let (Some(lost), Some(leader)) = (scene.lost_member(), scene.leader()) {
            return vec![remove_lost(scene, leader, lost)];
        }
        let Some(members) = scene.members() else { return Vec::new() };
        let (mut up, down): (Vec<NodeId>, Vec<NodeId>) =
            members.configuration().voters.iter().partition(|id| scene.status(**id).is_some());
        if !down.is_empty() || up.len() < 2 {
            return self.ask_amid_failure(scene, rng);
        }
        up.shuffle(rng);
        up.truncate(rng.random_range(1..=up.len() / 2));
        let election = scene.world.election_timeout();
        let mut actions = Vec::new();
        for &id in &up {
            let delay = Delay::About { mean: 4 * SECOND, after: 2 * election };
            actions.extend([Action::Crash(id), Action::Start(id, delay)]);
        }
        // By then, the leader may know.
        for _ in 0..3 {
            let delay = Delay::Within(election / 2, 3 * election);
            actions.push(Action::Later(delay, Repair::ChangeAmidFailure));
        }
        actions
    }

    pub(super) fn ask_amid_failure(&self, scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Vec<Action> {
        let Some(leader) = scene.leader().filter(|_| !scene.is_healed && scene.lost_member().is_none())
        else {
            return Vec::new();
        };
        let Some(members) = scene.members() else { return Vec::new() };
        if members.is_joint() && rng.percent(70) {
            return vec![Action::ChangeMembers(leader, MembershipChange::LeaveJoint.into())];
        }
        let voters: Vec<NodeId> = members.configuration().voters.into_iter().collect();
        let others: Vec<NodeId> =
            members.iter().filter(|member| !members.is_voter(member.id)).map(|member| member.id).collect();
        let voter = rng.one_of(&voters);
        let other = (!others.is_empty()).then(|| rng.one_of(&others));
        let promoted = other.map(|id| MemberChange::SetRole { id, role: MemberRole::Voter });
        let mut steps = match rng.random_range(0..5) {
            0 => vec![MemberChange::Remove(voter)],
            1 => vec![MemberChange::SetRole { id: voter, role: MemberRole::Learner }],
            2 => promoted.into_iter().collect(),
            3 => {
                // Replaced by a learner, or by a new node.
                let new = promoted.or_else(|| self.new_voter(scene));
                std::iter::once(MemberChange::Remove(voter)).chain(new).collect()
            }
            _ => voters.iter().map(|id| MemberChange::Remove(*id)).collect(),
        };
        if steps.len() > 2 {
            steps.shuffle(rng);
            steps.truncate(2);
        }
        if steps.is_empty() {
            return Vec::new();
        }
        let leave = if rng.percent(80) { LeaveJoint::Automatically } else { LeaveJoint::OnRequest };
        let mut request = MembershipRequest::from(MembershipChange::Steps { steps, leave });
        if scene.world.joins.forced && rng.percent(15) {
            request = request.forced();
        }
        vec![Action::ChangeMembers(leader, on_condition(scene, rng, request))]
    }

    fn new_voter(&self, scene: &Scene<'_>) -> Option<MemberChange> {
        let id = *self.spares.last()?;
        let node = scene.nodes.get(&id)?;
        let voter = Member::voter(id, &*node.advertised);
        Some(MemberChange::Add(Member { incarnation: Some(node.incarnation), ..voter }))
    }
}

fn ask_to_join(scene: &Scene<'_>, rng: &mut ChaCha8Rng, node: NodeId, ids: &[NodeId]) -> Vec<Action> {
    let mut joiners = Vec::new();
    for &id in ids {
        let role = if rng.percent(25) { MemberRole::Learner } else { MemberRole::Voter };
        if let Some(node) = scene.nodes.get(&id) {
            let (address, incarnation) = (node.advertised.to_string(), Some(node.incarnation));
            joiners.push(Member { id, address, role, incarnation });
        }
    }
    let request = on_condition(scene, rng, MembershipRequest::join(joiners));
    vec![Action::Saw(Happened::JoinAsked), Action::ChangeMembers(node, request)]
}

/// In some worlds, many requests require the membership that the operator knows, which may be outdated.
fn on_condition(scene: &Scene<'_>, rng: &mut ChaCha8Rng, request: MembershipRequest) -> MembershipRequest {
    if !scene.world.joins.conditional || rng.percent(40) {
        return request;
    }
    let newest = scene.members().map_or(LogIndex::ZERO, Members::as_of);
    let age = rng.one_of(&[0, 0, 0, 1, 2]);
    request.expecting(LogIndex(newest.0.saturating_sub(age)))
}
