//! The operator: requests membership changes at any moment, and removes a member that has lost its disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use raftify_core::members::LeaveJoint;
use raftify_core::{Member, MemberChange, MemberRole, Members, MembershipChange, NodeId};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{Action, Nemesis, Scene};
use crate::draw::Draw;

impl Nemesis {
    pub(super) fn change_members(
        &mut self,
        scene: &Scene<'_>,
        rng: &mut ChaCha8Rng,
        node: NodeId,
    ) -> Vec<Action> {
        if let Some(lost) = scene.lost_member() {
            return vec![remove_lost(scene, node, lost)];
        }
        if scene.living() < 9 && self.spares.len() < 2 && rng.percent(40) {
            return vec![Action::ReserveNodeId(node)];
        }
        let most = if rng.percent(60) { 1 } else { 4 };
        let leave = if rng.percent(50) { LeaveJoint::Automatically } else { LeaveJoint::OnRequest };
        let mut steps: Vec<MemberChange> =
            (0..rng.random_range(1..=most)).filter_map(|_| self.some_step(scene, rng)).collect();
        if scene.world.quirks.many_changes {
            if scene.members().is_some_and(Members::is_joint) && rng.percent(70) {
                return vec![Action::ChangeMembers(node, MembershipChange::LeaveJoint.into())];
            }
            // A change that names a node twice is refused.
            let mut named = BTreeSet::new();
            steps.retain(|step| named.insert(step.node_id()));
        }
        let change = match rng.random_range(0..4) {
            0 => MembershipChange::LeaveJoint,
            _ => MembershipChange::Steps { steps, leave },
        };
        vec![Action::ChangeMembers(node, change.into())]
    }

    /// Adds a waiting node, removes a member, or changes one's role or address.
    fn some_step(&mut self, scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Option<MemberChange> {
        let members = scene.members()?;
        if rng.percent(40)
            && let Some(spare) = self.spares.pop()
        {
            return self.added(scene, rng, spare);
        }
        if scene.world.quirks.many_changes
            && rng.percent(30)
            && let Some(odd) = self.odd_step(scene, rng)
        {
            return Some(odd);
        }
        // Some changes are invalid, such as adding a removed node, or removing a node that is not a member.
        let ids: Vec<NodeId> = match rng.percent(10) {
            true => scene.nodes.keys().copied().collect(),
            false => members.iter().map(|member| member.id).collect(),
        };
        let id = rng.one_of(&ids);
        if rng.percent(40) { Some(MemberChange::Remove(id)) } else { self.added(scene, rng, id) }
    }

    /// Adds a node that was removed, or removes the leader.
    fn odd_step(&mut self, scene: &Scene<'_>, rng: &mut ChaCha8Rng) -> Option<MemberChange> {
        if rng.percent(40) {
            return scene.leader().map(MemberChange::Remove);
        }
        let removed: Vec<NodeId> = scene.membership.removed().collect();
        if removed.is_empty() {
            return None;
        }
        let id = rng.one_of(&removed);
        self.added(scene, rng, id)
    }

    fn added(&mut self, scene: &Scene<'_>, rng: &mut ChaCha8Rng, id: NodeId) -> Option<MemberChange> {
        let role = if rng.percent(60) { MemberRole::Voter } else { MemberRole::Learner };
        let is_known = scene.membership.removed_after(id).is_some();
        // A wrong recorded address does no harm: the member reports its own.
        let elsewhere = self.fresh_address(id);
        let node = scene.nodes.get(&id)?;
        let address = if is_known { elsewhere } else { Arc::clone(&node.advertised) }.to_string();
        let incarnation = Some(node.incarnation);
        Some(MemberChange::Add(Member { id, address, role, incarnation }))
    }

    pub(super) fn fresh_address(&mut self, id: NodeId) -> Arc<str> {
        self.addresses += 1;
        format!("node-{id}:{}", 1 + self.addresses % 60_000).into()
    }
}

/// Requests from `node` the removal of the member whose disk is lost.
pub(super) fn remove_lost(scene: &Scene<'_>, node: NodeId, lost: NodeId) -> Action {
    let change = match scene.members().is_some_and(Members::is_joint) {
        true => MembershipChange::LeaveJoint,
        false => MembershipChange::one(MemberChange::Remove(lost)),
    };
    Action::ChangeMembers(node, change.into())
}
