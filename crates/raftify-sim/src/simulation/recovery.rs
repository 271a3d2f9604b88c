//! The end of the faults: enough is repaired, and the cluster must recover within a bound.

use std::collections::BTreeSet;

use raftify_core::{LogIndex, MemberRole, Members, NodeId};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Simulation;
use crate::clients::Asked;
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::event::Event;
use crate::fault::Repair;
use crate::invariants::{Checked, commit};
use crate::nemesis::Decision;
use crate::node::Node;
use crate::schedule::{MILLISECOND, SECOND, Time};

/// The state of the time after the faults.
#[derive(Default)]
pub(super) struct AfterHeal {
    /// The time of the last request to remove a lost member.
    asked_removal_at: Time,
    /// Nodes that stay down when the others are healed.
    kept_down: BTreeSet<NodeId>,
    /// The last committed index at the time of the repair.
    commit_at_heal: LogIndex,
    has_read_all: bool,
    /// Too much was lost to continue.
    pub(super) is_hopeless: bool,
}

impl Simulation {
    /// Repairs enough for the cluster to continue.
    pub(super) fn heal(&mut self) -> Checked {
        self.healed_at = Some(self.schedule.now());
        self.tell(format_args!("the faults are over"));
        self.network.cut.clear();
        self.after_heal.commit_at_heal = self.invariants.committed.last();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let tick = self.tick_interval();
        for &id in &ids {
            self.correct(id)?;
            if let Some(node) = self.nodes.get_mut(&id) {
                node.fails_to = Default::default();
                node.apply_slowness = 1;
                // Elections end if timeouts differ more than clocks do: safety needs no clock, liveness does
                // (thesis, section 3.9).
                node.tick = tick;
            }
            self.repair(Repair::Disk(id))?;
        }
        if self.rng.percent(30) && self.scene().lost_member().is_none() {
            self.keep_some_down()?;
        }
        for id in ids {
            if !self.after_heal.kept_down.contains(&id) {
                let delay = self.rng.within((0, SECOND));
                self.schedule.after(delay, Event::Start(id));
            }
        }
        self.schedule.after(SECOND, Event::Look);
        Ok(())
    }

    /// Keeps a minority down, if the minority is unambiguous.
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
        let is_gone = |id: &NodeId| self.nodes.get(id).is_none_or(|node| node.is_gone);
        let most =
            (voters.len().div_ceil(2) - 1).saturating_sub(voters.iter().filter(|id| is_gone(id)).count());
        voters.retain(|id| !is_gone(id));
        voters.truncate(self.rng.random_range(0..=most));
        for id in voters {
            self.crash(id)?;
            self.after_heal.kept_down.insert(id);
            self.coverage.saw(Happened::HealedInPart);
        }
        Ok(())
    }

    /// Checks whether the cluster has recovered; a late recovery is a violation.
    pub(super) fn look(&mut self) -> Checked {
        let Some(healed_at) = self.healed_at else { return Ok(()) };
        let since = self.schedule.now() - healed_at;
        let election = self.world.election_timeout();
        self.schedule.after(200 * MILLISECOND, Event::Look);
        if !self.can_continue() {
            self.after_heal.is_hopeless = true;
            self.has_recovered = true;
            self.tell(format_args!("too much is lost to continue"));
            return Ok(());
        }
        let leader = self.scene().leader();
        if let (Some(lost), Some(leader)) = (self.scene().lost_member(), leader)
            && self.schedule.now() >= self.after_heal.asked_removal_at + 2 * SECOND
        {
            self.after_heal.asked_removal_at = self.schedule.now();
            self.decide(Decision::RemoveLost { leader, lost })?;
        }
        if self.recovery.is_none() {
            if leader.is_some() && self.invariants.committed.last() > self.after_heal.commit_at_heal {
                self.recovery = Some(since);
            } else if since > 40 * election {
                return Err(format!("liveness: no leader and no commit for {since} µs\n{}", self.summary()));
            } else if let Some(leader) = leader
                && since > 20 * election
            {
                // With few members, it may be that no client writes through one of them.
                return self.burst(leader, 1);
            }
            return Ok(());
        }
        if since > 100 * election {
            return Err(format!("liveness: not recovered after {since} µs\n{}", self.summary()));
        }
        if !self.clients.are_done {
            self.clients.are_done = since > 4 * SECOND.max(self.think_most() / 8);
            return Ok(());
        }
        let Some(leader) = leader else { return Ok(()) };
        if self.invariants.answers.open().next().is_some() || self.scene().lost_member().is_some() {
            return Ok(());
        }
        if !self.after_heal.has_read_all {
            self.after_heal.has_read_all = true;
            for key in 0..self.clients.keys() {
                self.call(0, leader, key, Asked::Read)?;
            }
            return Ok(());
        }
        let committed = &self.invariants.committed;
        let is_joint_permanently =
            self.invariants.membership.must_leave_joint(|index| committed.at(index).map(|entry| entry.term));
        self.has_recovered =
            self.all_are_equal(leader) && !is_joint_permanently && self.all_are_admitted(leader);
        Ok(())
    }

    fn all_are_equal(&self, leader: NodeId) -> bool {
        let Some(status) = self.status(leader) else { return false };
        let last = status.last.index;
        self.nodes.values().all(|node| {
            let is_member = status.members.get(node.id).is_some();
            match &node.running {
                // A removed node asks the voters that it knows, is refused by a majority of them, and stops.
                // If too few of these are at their known addresses, it may wait, like a node
                // that was never added.
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
                None => {
                    let stays_down = self.after_heal.kept_down.contains(&node.id);
                    !is_member || stays_down || self.nemesis.is_dead(node.id)
                }
            }
        })
    }

    /// Whether every present node has the vote that it joins for, and is recorded at its address.
    fn all_are_admitted(&self, leader: NodeId) -> bool {
        let Some(status) = self.status(leader) else { return false };
        let members = &status.members;
        self.nodes.values().filter(|node| node.is_running()).all(|node| match members.get(node.id) {
            // No node is promoted while a joint configuration waits for an operator.
            Some(member) => {
                let is_let_in = member.role != MemberRole::Joining || members.is_joint();
                is_let_in && *member.address == *node.advertised
            }
            None => true,
        })
    }

    /// Whether every configuration that may be in force has a quorum of usable nodes.
    fn can_continue(&self) -> bool {
        let is_of_use =
            |id: NodeId| self.nodes.get(&id).is_some_and(|node| node.lost.is_none() && !node.is_gone);
        let members = self.invariants.membership.newest_members();
        members.is_none_or(|members| commit::has_quorum(&members.configuration(), is_of_use))
    }

    pub(crate) fn summary(&self) -> String {
        let describe = |node: &Node| {
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
