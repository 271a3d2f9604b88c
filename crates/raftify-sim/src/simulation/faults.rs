//! Carries out the decisions of the nemesis and the operator, and ends faults whose time is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use raftify_core::error::{MembershipError, StopReason};
use raftify_core::{LeaderRequest, LocalRequestMsg, MembershipRequest, NodeId, Reservation, Responder, Role};

use super::Simulation;
use crate::answers::Answered;
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::event::Event;
use crate::fault::{Fault, Repair};
use crate::invariants::{Checked, leadership};
use crate::nemesis::{Action, Decision, DiskLoss, Scene};
use crate::node::{Durable, Lost};
use crate::schedule::{MILLISECOND, SECOND, Time};

impl Simulation {
    /// The current scene for the nemesis.
    pub(super) fn scene(&self) -> Scene<'_> {
        Scene {
            now: self.schedule.now(),
            is_healed: self.healed_at.is_some(),
            world: &self.world,
            nodes: &self.nodes,
            membership: &self.invariants.membership,
            answers: &self.invariants.answers,
        }
    }

    /// The time of a fault, unless all is healed.
    pub(super) fn inject_fault(&mut self) -> Checked {
        if self.healed_at.is_some() {
            return Ok(());
        }
        let delay = self.rng.about(self.world.fault_interval);
        self.schedule.after(delay, Event::Fault);
        self.decide(Decision::Fault)
    }

    /// Lets the nemesis decide, and carries out its actions.
    pub(super) fn decide(&mut self, decision: Decision) -> Checked {
        let Simulation { nemesis, rng, schedule, healed_at, world, nodes, invariants, .. } = self;
        let scene = Scene {
            now: schedule.now(),
            is_healed: healed_at.is_some(),
            world,
            nodes,
            membership: &invariants.membership,
            answers: &invariants.answers,
        };
        for action in nemesis.decide(decision, &scene, rng) {
            self.perform(action)?;
        }
        Ok(())
    }

    pub(crate) fn perform(&mut self, action: Action) -> Checked {
        match action {
            Action::Tell(line) => self.tell(format_args!("{line}")),
            Action::Saw(what) => self.coverage.saw(what),
            Action::Later(delay, repair) => {
                let delay = delay.draw(&mut self.rng);
                self.schedule.after(delay, Event::Repair(repair));
            }
            Action::Crash(id) => return self.crash(id),
            Action::Start(id, delay) => {
                let delay = delay.draw(&mut self.rng);
                self.schedule.after(delay, Event::Start(id));
            }
            Action::Pause(id, until) => {
                self.tell(format_args!("{id} pauses"));
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.paused_until = until;
                }
            }
            Action::Abandon(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.is_gone = true;
                }
            }
            Action::Cut(links) => self.network.cut.extend(links),
            Action::SlowDisk(id, slowness) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk_slowness = slowness;
                }
            }
            Action::HangDisk(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk_hangs = true;
                }
            }
            Action::FillDisk(id) => return self.fill_disk(id, true),
            Action::SetDiskFault(id, fault) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk.set_fault(Some(fault));
                }
            }
            Action::BackUpDisk(id) => return self.back_up(id),
            Action::LoseDisk(id, loss) => return self.lose_disk(id, loss),
            Action::SlowStateMachine(id, slowness) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.apply_slowness = slowness;
                }
            }
            Action::FailOnce(id, fault) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    match fault {
                        Fault::ApplyFails => node.fails_to.apply = true,
                        Fault::SnapshotFails => node.fails_to.snapshot = true,
                        _ => node.fails_to.restore = true,
                    }
                }
            }
            Action::Move(id, address) => {
                self.network.hidden.remove(&id);
                if let Some(node) = self.nodes.get_mut(&id) {
                    (node.address, node.advertised) = (Arc::clone(&address), address);
                }
            }
            Action::MoveSecretly(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.address = format!("elsewhere-{id}:1").into();
                }
            }
            Action::Hide(id) => drop(self.network.hidden.insert(id)),
            Action::Burst(id, count) => return self.burst(id, count),
            Action::TakeSnapshot(id) => {
                self.tell(format_args!("{id} is asked for a snapshot"));
                let number = self.invariants.answers.asked(format!("snapshot of {id}"));
                let reply = self.done(number, None);
                return self.ask(id, LocalRequestMsg::MakeSnapshot { reply });
            }
            Action::Stop(id, patience) => return self.request_stop(id, patience),
            Action::DisturbLeadership(id, fault, other) => return self.disturb_leadership(fault, id, other),
            Action::ReserveNodeId(id) => return self.reserve(id),
            Action::ChangeMembers(id, request) => return self.ask_for_change(id, request),
            Action::Decide(decision) => return self.decide(decision),
        }
        Ok(())
    }

    /// Whether the disk has less free space than its reserve.
    fn fill_disk(&mut self, id: NodeId, is_full: bool) -> Checked {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.disk_is_full != is_full) else {
            return Ok(());
        };
        node.disk_is_full = is_full;
        if let Some(running) = &mut node.running {
            running.core.set_storage_full(is_full);
            return self.settle(id);
        }
        Ok(())
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
                self.tell(format_args!("the disk of {id} is healthy again"));
                if hung {
                    self.schedule.after(MILLISECOND, Event::Durable { node: id, life });
                }
                self.fill_disk(id, false)?;
            }
            Repair::StateMachine(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.apply_slowness = 1;
                }
            }
            Repair::Burst => self.decide(Decision::Burst)?,
            Repair::Correct(id) => self.correct(id)?,
            Repair::ChangeAmidFailure => self.decide(Decision::ChangeAmidFailure)?,
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

    // --- Disks ---

    fn lose_disk(&mut self, id: NodeId, loss: DiskLoss) -> Checked {
        let backup = self.nodes.get_mut(&id).and_then(|node| node.backup.take());
        if loss == DiskLoss::BitFlipAlive {
            self.tell(format_args!("{id}: BitFlip, while it runs"));
            if let Some(node) = self.nodes.get_mut(&id) {
                node.disk.flip_a_bit();
            }
            return self.read_all(id);
        }
        let known_by = match (&backup, self.nodes.get(&id)) {
            (Some((_, durable)), Some(node)) => node.is_rolled_back_to(&durable.state, &self.nodes),
            _ => BTreeMap::new(),
        };
        let incarnation = self.next_incarnation();
        let empty = self.new_disk();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        match (loss, backup) {
            (DiskLoss::Wipe, _) => {
                node.lost = Some(Lost::Wiped);
                node.disk = empty;
                node.held_before = Some(std::mem::take(&mut node.durable).log);
                node.maybe_durable.clear();
                node.incarnation = incarnation;
                self.coverage.saw(Happened::DiskWiped);
            }
            (DiskLoss::RollBack, Some((disk, durable))) => {
                node.lost = Some(Lost::RolledBack);
                node.known_by = known_by;
                node.disk = disk;
                node.held_before = Some(std::mem::replace(&mut node.durable, durable).log);
                node.maybe_durable.clear();
                self.invariants.durable.forget(id, node.incarnation);
                self.coverage.saw(Happened::DiskRolledBack);
                self.schedule.after(10 * SECOND, Event::Repair(Repair::TakeAway(id)));
            }
            _ => node.disk.flip_a_bit(),
        }
        self.tell(format_args!("{id}: {loss:?}"));
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

    // --- Addresses ---

    /// A node with a wrong reported address restarts, and reports the correct one; it requests to join there.
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
        self.decide(Decision::Corrected(id))
    }

    // --- Requests of the operator ---

    fn disturb_leadership(&mut self, fault: Fault, node: NodeId, other: Option<NodeId>) -> Checked {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
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
                return self.observe_transfer_request(leader, silent, number);
            }
            _ => {
                let reply = self.done(number, Some(Happened::Campaigned));
                LocalRequestMsg::Campaign { reply }
            }
        };
        self.ask(node, message)?;
        self.observe_transfer_request(node, silent, number)
    }

    /// Whether `leader` leads, has received nothing from `other` for long, and has no transfer in progress.
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

    fn observe_transfer_request(&self, leader: NodeId, silent: Option<NodeId>, number: u64) -> Checked {
        match silent {
            Some(silent) => leadership::transfers_to_inactive(leader, silent, self.answers.has(number)),
            None => Ok(()),
        }
    }

    /// Stops the node for a while. Before, it may transfer leadership, and answer pending requests.
    fn request_stop(&mut self, node: NodeId, patience: Time) -> Checked {
        let life = self.nodes.get(&node).map_or(0, |node| node.life);
        let Some(running) = self.running(node).filter(|running| running.stops_as.is_none()) else {
            return Ok(());
        };
        let role = running.core.status().role;
        running.stops_as = Some(role);
        running.unsettled = Some(running.deadlines.now_ticks());
        running.core.prepare_to_stop();
        self.coverage.saw(Happened::StopAsked);
        self.tell(format_args!("{node}, a {role}, gets a stop request"));
        self.schedule.after(patience, Event::Repair(Repair::CutShort(node, life)));
        self.settle(node)
    }

    fn cut_short(&mut self, node: NodeId, life: u64) -> Checked {
        if self.nodes.get(&node).is_none_or(|node| node.life != life || !node.is_running()) {
            return Ok(());
        }
        self.coverage.saw(Happened::StopCutShort);
        self.stop(node, &StopReason::Stopped)
    }

    /// A request for a node id.
    fn reserve(&mut self, node: NodeId) -> Checked {
        let number = self.invariants.answers.asked(format!("node id on {node}"));
        let answers = self.answers.clone();
        let reply = Responder::new(move |answer| answers.push(Answered::Reserved { number, answer }));
        self.ask(node, LocalRequestMsg::ForLeader(LeaderRequest::ReserveNodeId { reply }))
    }

    fn ask_for_change(&mut self, node: NodeId, request: MembershipRequest) -> Checked {
        self.tell(format_args!("{node} is asked for {request:?}"));
        self.observe_asked(&request);
        let number = self.invariants.answers.asked(format!("change of members on {node}"));
        self.nemesis.has_asked(number);
        let (answers, asked) = (self.answers.clone(), request.clone());
        let reply = Responder::new(move |answer| {
            answers.push(Answered::Changed { number, request: asked, answer });
        });
        self.ask(node, LocalRequestMsg::ForLeader(LeaderRequest::ChangeMembership { request, reply }))
    }

    /// A node id was reserved: a node waits to be added.
    pub(super) fn reserved(&mut self, answer: Result<Reservation, MembershipError>) -> Checked {
        let Ok(reservation) = answer else { return Ok(()) };
        let id = reservation.node_id;
        self.invariants.membership.reserved(id)?;
        self.coverage.saw(Happened::IdReserved);
        self.add_node(id, None);
        self.nemesis.waits(id);
        self.decide(Decision::Hide(id))?;
        self.start(id)
    }
}
