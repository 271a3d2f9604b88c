//! Many steps: until nothing is in flight, until a condition holds, until everything is repaired.

use raftify_core::{LogPosition, NodeId};

use super::outcome::take;
use super::{Cluster, Link};

/// More steps, or ticks, mean that the cluster never comes to rest.
const STEPS_MAX: usize = 100_000;
const TICKS_MAX: usize = 2000;

impl Cluster {
    /// Carries out everything that is in flight, in a fixed order, until nothing is. No clock ticks.
    ///
    /// # Panics
    /// If there is always something.
    pub fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            self.deliver_answers();
            let mut has_moved = false;
            for node in self.ids() {
                has_moved |= self.complete_write(node);
                has_moved |= self.apply_one(node);
            }
            for (from, to) in self.busy_links() {
                has_moved |= self.deliver(from, to);
            }
            if !has_moved && self.answers.is_empty() {
                return;
            }
        }
        panic!("the cluster never comes to rest\n{}\n{}", self.trace(), self.sim.summary());
    }

    fn busy_links(&self) -> Vec<Link> {
        self.links.iter().filter(|(_, packets)| !packets.is_empty()).map(|(link, _)| *link).collect()
    }

    /// All clocks tick, `ticks` times, and the cluster settles after each tick.
    pub fn pass_ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for node in self.ids() {
                self.tick(node);
            }
            self.settle();
        }
    }

    /// Lets time pass until `condition` holds.
    ///
    /// # Panics
    /// If it does not hold after 2000 ticks.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Cluster) -> bool) {
        for _ in 0..TICKS_MAX {
            if condition(self) {
                return;
            }
            self.pass_ticks(1);
        }
        panic!("never came true: {what}\n{}\n{}", self.trace(), self.sim.summary());
    }

    /// Lets time pass until there is a leader that all running members follow.
    ///
    /// # Panics
    /// If there is none after 2000 ticks.
    pub fn until_leader(&mut self) -> NodeId {
        let mut found = None;
        self.until("there is a leader that all running members follow", |cluster| {
            found = cluster.leader().filter(|leader| cluster.is_followed(*leader));
            found.is_some()
        });
        found.expect("the condition holds")
    }

    fn is_followed(&self, leader: NodeId) -> bool {
        self.status(leader).is_some_and(|status| {
            status.members.iter().all(|member| {
                let known = self.status(member.id);
                known.is_none_or(|other| other.leader_id == Some(leader) && other.term == status.term)
            })
        })
    }

    /// Proposes on `node`, and then on the current leader, until one proposal is applied.
    ///
    /// # Panics
    /// If none is after 2000 ticks.
    pub fn until_proposed(&mut self, node: NodeId) -> LogPosition {
        let mut result = self.propose(node);
        let mut position = None;
        self.until("a proposal is applied", |cluster| {
            match take(&result) {
                Some(Ok(applied)) => position = Some(applied),
                // The node may have been removed.
                Some(Err(_)) => result = cluster.propose(cluster.leader().unwrap_or(node)),
                None => {}
            }
            position.is_some()
        });
        position.expect("the condition holds")
    }

    /// Repairs everything and starts all nodes that can be of use. Then the cluster must become live, all
    /// members must become equal, every request must be answered, no acknowledged write may be missing,
    /// and the history of all proposals and reads must be linearizable.
    ///
    /// # Panics
    /// If one of this is not so.
    pub fn check_recovery(&mut self) {
        self.repair_all();
        let leader = self.until_leader();
        self.until_proposed(leader);
        self.until("all members have applied everything", |cluster| {
            cluster.leader().is_some_and(|leader| cluster.all_have_applied(leader))
        });
        self.pass_ticks(400);
        let invariants = &self.sim.invariants;
        self.judge(invariants.answers.end(&invariants.committed));
        self.judge(self.sim.clients.check_histories().map(drop));
        let term_at = |index| invariants.committed.at(index).map(|entry| entry.term);
        let is_left = !invariants.membership.must_leave_joint(term_at);
        assert!(is_left, "membership: the joint configuration is not left\n{}", self.sim.summary());
    }

    fn all_have_applied(&self, leader: NodeId) -> bool {
        let Some(status) = self.status(leader) else { return false };
        let last = status.last.index;
        status
            .members
            .iter()
            .filter_map(|member| self.sim.nodes.get(&member.id)?.running.as_ref())
            .all(|running| running.at.index == last && running.core.status().applied == last)
    }
}
