//! Nodes that are let in, and what goes wrong with that: some die while they catch up, some cannot be reached or come back
//! elsewhere; and the operator changes members while others are down.

use raftify_core::members::LeaveJoint;
use raftify_core::{
    LogIndex, Member, MemberChange, MemberRole, Members, MembershipChange, MembershipRequest, NodeId,
};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Repair;
use crate::coverage::Happened;
use crate::invariants::Checked;
use crate::schedule::SECOND;
use crate::simulation::{Event, Simulation};
use crate::world::Chance;

/// Nodes that are not gone, at most.
const NODES_MAX: usize = 10;

impl Simulation {
    /// Nodes ask to be let in: one or several at once, some of them as learners for ever.
    pub(super) fn let_nodes_in(&mut self, node: NodeId) -> Checked {
        if let Some(lost) = self.lost_member() {
            return self.remove_lost(node, lost);
        }
        let Some(members) = self.invariants.membership.newest_members().cloned() else { return Ok(()) };
        let nodes = &self.nodes;
        self.nemesis.spares.retain(|id| {
            members.get(*id).is_none()
                && !members.is_removed(*id)
                && nodes.get(id).is_some_and(|node| !node.is_gone)
        });
        self.nemesis.spares.sort();
        self.nemesis.spares.dedup();
        let living = self.nodes.values().filter(|node| !node.is_gone).count();
        let mut ids = self.nemesis.spares.clone();
        if ids.is_empty() || (living < NODES_MAX && self.rng.percent(40)) {
            for _ in living..NODES_MAX.min(living + self.rng.random_range(1..=3)) {
                self.reserve(node)?;
            }
            return Ok(());
        }
        ids.shuffle(&mut self.rng);
        ids.truncate(self.rng.random_range(1..=ids.len()));
        if self.rng.percent(20) {
            // A member asks as well, as it does when it is started with the same words again.
            let all: Vec<NodeId> = members.iter().map(|member| member.id).collect();
            ids.push(self.rng.one_of(&all));
        }
        self.ask_to_join(node, &ids)
    }

    fn ask_to_join(&mut self, node: NodeId, ids: &[NodeId]) -> Checked {
        let mut joiners = Vec::new();
        for &id in ids {
            let role = if self.rng.percent(25) { MemberRole::Learner } else { MemberRole::Voter };
            if let Some(node) = self.nodes.get(&id) {
                let (address, incarnation) = (node.advertised.to_string(), Some(node.incarnation));
                joiners.push(Member { id, address, role, incarnation });
            }
        }
        self.coverage.saw(Happened::JoinAsked);
        let request = self.on_condition(MembershipRequest::join(joiners));
        self.ask_for_change(node, request)
    }

    /// Some nodes that are to join are not where they say, and some of these get no messages either.
    pub(super) fn hide_some(&mut self, id: NodeId) {
        if !self.world.joins.hidden || self.healed_at.is_some() || !self.rng.percent(40) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.address = format!("elsewhere-{id}:1").into();
        }
        if self.rng.percent(50) {
            self.network.hidden.insert(id);
        }
        self.coverage.saw(Happened::NodeHidden);
        self.tell(format_args!("{id} is not where it says"));
        let delay = self.rng.about(8 * SECOND);
        self.schedule.after(delay, Event::Repair(Repair::Correct(id)));
    }

    /// A node that is not where it says is started again, and says where it is; it asks to be let in there.
    pub(super) fn correct(&mut self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if node.address == node.advertised && !self.network.hidden.contains(&id) {
            return Ok(());
        }
        node.advertised = node.address.clone();
        self.network.hidden.remove(&id);
        self.crash(id)?;
        self.tell(format_args!("{id} says where it is"));
        let delay = self.rng.within((0, SECOND));
        self.schedule.after(delay, Event::Start(id));
        match self.leader() {
            Some(leader) if self.healed_at.is_none() && self.is_joining(id) => {
                self.ask_to_join(leader, &[id])
            }
            _ => Ok(()),
        }
    }

    fn is_joining(&self, id: NodeId) -> bool {
        let members = self.invariants.membership.newest_members();
        let member = members.and_then(|members| members.get(id));
        member.map_or(self.nemesis.spares.contains(&id), |member| member.role == MemberRole::Joining)
    }

    /// A node that is joining, or about to, dies: for ever, for a while, or to come back elsewhere.
    pub(super) fn joiner_dies(&mut self) -> Checked {
        let joining: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|node| node.lost.is_none() && node.is_running())
            .map(|node| node.id)
            .collect();
        let joining: Vec<NodeId> = joining.into_iter().filter(|id| self.is_joining(*id)).collect();
        if joining.is_empty() {
            return Ok(());
        }
        // Those that are let in already first: a dead one of these is to be cleared.
        let known = self.invariants.membership.newest_members();
        let is_let_in = |id: &&NodeId| known.is_some_and(|members| members.get(**id).is_some());
        let let_in: Vec<NodeId> = joining.iter().filter(is_let_in).copied().collect();
        let id = self.rng.one_of(if let_in.is_empty() { &joining } else { &let_in });
        self.crash(id)?;
        if self.rng.percent(35) {
            self.tell(format_args!("{id} dies for ever"));
            self.coverage.saw(Happened::JoinerDied);
            self.nemesis.dead.insert(id);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.is_gone = true;
            }
            return Ok(());
        }
        if self.rng.percent(40) {
            self.move_node(id);
            self.coverage.saw(Happened::NodeMoved);
        }
        let away = self.rng.one_of(&[SECOND, 5 * SECOND, 10 * SECOND]);
        let delay = self.rng.about(away);
        self.schedule.after(delay, Event::Start(id));
        Ok(())
    }

    /// Nodes are started again at other addresses: one, or all of them.
    pub(super) fn nodes_move(&mut self, node: NodeId) -> Checked {
        let ids: Vec<NodeId> = match self.rng.percent(20) {
            true => self.nodes.values().filter(|node| !node.is_gone).map(|node| node.id).collect(),
            false => vec![node],
        };
        for &id in &ids {
            self.move_node(id);
        }
        self.tell(format_args!("{ids:?} move"));
        self.coverage.saw(Happened::NodeMoved);
        self.crash_for_a_while(&ids)
    }

    // --- Changes while others are down ---

    /// The operator changes members while some voters are down; if none is, some crash first.
    pub(super) fn change_amid_failure(&mut self) -> Checked {
        if let (Some(lost), Some(leader)) = (self.lost_member(), self.leader()) {
            return self.remove_lost(leader, lost);
        }
        let Some(members) = self.invariants.membership.newest_members() else { return Ok(()) };
        let (mut up, down): (Vec<NodeId>, Vec<NodeId>) =
            members.configuration().voters.iter().partition(|id| self.status(**id).is_some());
        if !down.is_empty() || up.len() < 2 {
            return self.ask_amid_failure();
        }
        up.shuffle(&mut self.rng);
        up.truncate(self.rng.random_range(1..=up.len() / 2));
        for &id in &up {
            self.crash(id)?;
            let delay = 2 * self.election_timeout() + self.rng.about(4 * SECOND);
            self.schedule.after(delay, Event::Start(id));
        }
        // By then, a leader may know.
        let election = self.election_timeout();
        for _ in 0..3 {
            let delay = self.rng.within((election / 2, 3 * election));
            self.schedule.after(delay, Event::Repair(Repair::ChangeAmidFailure));
        }
        Ok(())
    }

    pub(super) fn ask_amid_failure(&mut self) -> Checked {
        let Some(leader) = self.leader().filter(|_| self.healed_at.is_none() && self.lost_member().is_none())
        else {
            return Ok(());
        };
        let Some(members) = self.invariants.membership.newest_members().cloned() else { return Ok(()) };
        if members.is_joint() && self.rng.percent(70) {
            return self.ask_for_change(leader, MembershipChange::LeaveJoint);
        }
        let voters: Vec<NodeId> = members.configuration().voters.into_iter().collect();
        let others: Vec<NodeId> =
            members.iter().filter(|member| !members.is_voter(member.id)).map(|member| member.id).collect();
        let voter = self.rng.one_of(&voters);
        let other = (!others.is_empty()).then(|| self.rng.one_of(&others));
        let promoted = other.map(|id| MemberChange::SetRole { id, role: MemberRole::Voter });
        let mut steps = match self.rng.random_range(0..5) {
            0 => vec![MemberChange::Remove(voter)],
            1 => vec![MemberChange::SetRole { id: voter, role: MemberRole::Learner }],
            2 => promoted.into_iter().collect(),
            3 => {
                // Replaced by a learner, or by a node that is new.
                let new = promoted.or_else(|| self.new_voter());
                std::iter::once(MemberChange::Remove(voter)).chain(new).collect()
            }
            _ => voters.iter().map(|id| MemberChange::Remove(*id)).collect(),
        };
        if steps.len() > 2 {
            steps.shuffle(&mut self.rng);
            steps.truncate(2);
        }
        if steps.is_empty() {
            return Ok(());
        }
        let leave = if self.rng.percent(80) { LeaveJoint::Automatically } else { LeaveJoint::OnRequest };
        let mut request = MembershipRequest::from(MembershipChange::Steps { steps, leave });
        if self.world.joins.forced && self.rng.percent(15) {
            request = request.forced();
        }
        let request = self.on_condition(request);
        self.ask_for_change(leader, request)
    }

    fn new_voter(&self) -> Option<MemberChange> {
        let id = *self.nemesis.spares.last()?;
        let node = self.nodes.get(&id)?;
        let voter = Member::voter(id, &*node.advertised);
        Some(MemberChange::Add(Member { incarnation: Some(node.incarnation), ..voter }))
    }

    /// In some worlds, many requests hold only for the membership that the operator knows, which may be an older one.
    fn on_condition(&mut self, request: MembershipRequest) -> MembershipRequest {
        if !self.world.joins.conditional || self.rng.percent(40) {
            return request;
        }
        let newest = self.invariants.membership.newest_members().map_or(LogIndex::ZERO, Members::as_of);
        let age = self.rng.one_of(&[0, 0, 0, 1, 2]);
        request.expecting(LogIndex(newest.0.saturating_sub(age)))
    }
}
