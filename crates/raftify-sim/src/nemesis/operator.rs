//! The operator: asks for other leaders and members at any moment, and removes a member that has lost its disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use raftify_core::error::{MembershipError, StopReason};
use raftify_core::members::LeaveJoint;
use raftify_core::{
    LeaderRequest, LocalRequestMsg, Member, MemberChange, MemberRole, Members, MembershipChange,
    MembershipRequest, NodeId, Reservation, Responder, Role,
};
use rand::RngExt;

use super::{Fault, Repair};
use crate::coverage::Happened;
use crate::invariants::{Checked, leadership};
use crate::simulation::{Answered, Event, Simulation};
use crate::world::Chance;

impl Simulation {
    pub(super) fn disturb_leadership(&mut self, fault: Fault, node: NodeId) -> Checked {
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

    /// The node is stopped for a while. It may hand over leadership, and answer what it has taken, before.
    pub(super) fn tell_to_stop(&mut self, node: NodeId) -> Checked {
        let (life, patience) =
            (self.nodes.get(&node).map_or(0, |node| node.life), self.rng.about(self.election_timeout()));
        let Some(running) = self.running(node).filter(|running| running.stops_as.is_none()) else {
            return Ok(());
        };
        let role = running.core.status().role;
        running.stops_as = Some(role);
        running.unsettled = Some(running.deadlines.now_ticks());
        running.core.prepare_to_stop();
        self.coverage.saw(Happened::StopAsked);
        self.tell(format_args!("{node}, a {role}, is told to stop"));
        self.schedule.after(patience, Event::Repair(Repair::CutShort(node, life)));
        self.settle(node)
    }

    pub(super) fn cut_short(&mut self, node: NodeId, life: u64) -> Checked {
        if self.nodes.get(&node).is_none_or(|node| node.life != life || !node.is_running()) {
            return Ok(());
        }
        self.coverage.saw(Happened::StopCutShort);
        self.stop(node, &StopReason::Stopped)
    }

    pub(super) fn change_members(&mut self, node: NodeId) -> Checked {
        if let Some(lost) = self.lost_member() {
            return self.remove_lost(node, lost);
        }
        let living = self.nodes.values().filter(|node| !node.is_gone).count();
        if living < 9 && self.nemesis.spares.len() < 2 && self.rng.percent(40) {
            return self.reserve(node);
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
            steps.retain(|step| named.insert(step.node_id()));
        }
        let change = match self.rng.random_range(0..4) {
            0 => MembershipChange::LeaveJoint,
            _ => MembershipChange::Steps { steps, leave },
        };
        self.ask_for_change(node, change)
    }

    /// A node id is asked for.
    pub(super) fn reserve(&mut self, node: NodeId) -> Checked {
        let number = self.invariants.answers.asked(format!("node id on {node}"));
        let answers = self.answers.clone();
        let reply = Responder::new(move |answer| answers.push(Answered::Reserved { number, answer }));
        self.ask(node, LocalRequestMsg::ForLeader(LeaderRequest::ReserveNodeId { reply }))
    }

    pub(super) fn ask_for_change(&mut self, node: NodeId, request: impl Into<MembershipRequest>) -> Checked {
        let request = request.into();
        self.tell(format_args!("{node} is asked for {request:?}"));
        self.observe_asked(&request);
        let number = self.invariants.answers.asked(format!("change of members on {node}"));
        self.nemesis.membership_requests.push(number);
        let (answers, asked) = (self.answers.clone(), request.clone());
        let reply = Responder::new(move |answer| {
            answers.push(Answered::Changed { number, request: asked, answer });
        });
        self.ask(node, LocalRequestMsg::ForLeader(LeaderRequest::ChangeMembership { request, reply }))
    }

    pub(super) fn remove_lost(&mut self, node: NodeId, lost: NodeId) -> Checked {
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
        let is_known = self.invariants.membership.removed_after(id).is_some();
        // To record a member at an address where it is not harms nobody: the member says where it is.
        let elsewhere = self.fresh_address(id);
        let node = self.nodes.get(&id)?;
        let address = if is_known { elsewhere } else { Arc::clone(&node.advertised) }.to_string();
        let incarnation = Some(node.incarnation);
        Some(MemberChange::Add(Member { id, address, role, incarnation }))
    }

    pub(crate) fn fresh_address(&mut self, id: NodeId) -> Arc<str> {
        self.nemesis.addresses += 1;
        format!("node-{id}:{}", 1 + self.nemesis.addresses % 60_000).into()
    }

    /// A node id was given out: there is a node that waits to be added.
    pub(crate) fn reserved(&mut self, answer: Result<Reservation, MembershipError>) -> Checked {
        let Ok(reservation) = answer else { return Ok(()) };
        let id = reservation.node_id;
        self.invariants.membership.reserved(id)?;
        self.coverage.saw(Happened::IdReserved);
        self.add_node(id, None);
        self.nemesis.spares.push(id);
        self.hide_some(id);
        self.start(id)
    }
}
