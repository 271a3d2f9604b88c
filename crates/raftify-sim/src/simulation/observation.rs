//! Observations of nodes, for the invariants.

use std::cmp::Ordering;
use std::sync::mpsc;

use raftify_core::{
    LocalRequestMsg, LogIndex, Members, NodeId, PeerProgress, Responder, Role, SnapshotToSend,
};

use super::{Simulation, node_lost};
use crate::coverage::Happened;
use crate::invariants::{Checked, commit, leadership};
use crate::node::Node;

impl Simulation {
    /// A leader's commit index has changed: checked before its next turn, while the membership is that of its
    /// decision.
    pub(super) fn observe_commit(&mut self, id: NodeId) -> Checked {
        let Some(status) = self.status(id) else { return Ok(()) };
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let Some(running) = &node.running else { return Ok(()) };
        let seen = running.seen;
        if status.members.as_of() != seen.members_as_of {
            self.observe_members(id, &status.members)?;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let committed = self.invariants.committed.last();
        let led = if seen.role == Role::Leader { Some(seen.term) } else { None };
        let leads = if status.role == Role::Leader { Some(status.term) } else { None };
        if let Some(term) = leads.or(led)
            && status.commit > committed
            && node.lost.is_none()
        {
            let (first, last) = (seen.members_as_of, status.members.as_of());
            let configurations: Vec<_> =
                self.invariants.membership.between(first, last).map(Members::configuration).collect();
            let Some(digest) = running.log.digest(status.commit) else {
                return Err(format!(
                    "commit index: leader {id} commits {}, which it does not have",
                    status.commit
                ));
            };
            self.invariants.committed.leader_commits(id, term, status.commit, &running.log)?;
            self.invariants.completeness.commits(term, status.commit);
            let nodes = &self.nodes;
            let holds =
                |voter: NodeId| nodes.get(&voter).is_some_and(|node| node.holds(status.commit, digest));
            commit::leader_commits(id, status.commit, &configurations, holds)?;
            for other in self.nodes.values() {
                if let Some(running) = &other.running
                    && other.lost.is_none()
                    && running.seen.role == Role::Leader
                    && running.seen.term > term
                {
                    let committed = &self.invariants.committed;
                    self.invariants.completeness.leads(
                        other.id,
                        running.seen.term,
                        &running.log,
                        committed,
                    )?;
                }
            }
        }
        if let Some(running) = self.running(id) {
            running.seen.members_as_of = status.members.as_of();
        }
        Ok(())
    }

    fn observe_members(&mut self, id: NodeId, members: &Members) -> Checked {
        if node_lost(&self.nodes, id).is_some() {
            return Ok(());
        }
        let newest = self.invariants.membership.newest_members();
        let before_members = newest.cloned();
        let was_member: Vec<NodeId> =
            newest.iter().flat_map(|newest| newest.iter().map(|member| member.id)).collect();
        let before = newest.map(|newest| (newest.as_of(), newest.len()));
        self.invariants.membership.has(id, members)?;
        let Some((as_of, count)) = before else { return Ok(()) };
        if members.as_of() > as_of {
            if self.nodes.values().any(|node| {
                node.lost.is_some() && was_member.contains(&node.id) && members.get(node.id).is_none()
            }) {
                self.coverage.saw(Happened::LostMemberRemoved);
            }
            if members.is_joint() {
                self.coverage.saw(Happened::JointConfiguration);
            }
            match members.len().cmp(&count) {
                Ordering::Greater => self.coverage.saw(Happened::MemberAdded),
                Ordering::Less => self.coverage.saw(Happened::MemberRemoved),
                Ordering::Equal => {}
            }
            if let Some(before) = before_members {
                self.count_joins(&before, members);
            }
            self.tell(format_args!("{id} has the members {members:?}"));
        }
        Ok(())
    }

    /// After each step of a node.
    pub(super) fn observe(&mut self, id: NodeId) -> Checked {
        self.observe_commit(id)?;
        let Some(status) = self.status(id) else { return Ok(()) };
        let now = self.schedule.now();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let seen = running.seen;
        commit::moves(id, seen.commit, status.commit)?;
        if status.commit > seen.commit && node.lost.is_none() {
            self.invariants.committed.commits(id, status.commit, &running.log)?;
        }
        let is_news = (seen.role, seen.term) != (status.role, status.term);
        // The own view of a node that lost its disk is not checked: no other node depends on it.
        if status.role == Role::Leader && node.lost.is_none() {
            if is_news {
                self.invariants.elections.leads(id, status.term)?;
                let committed = &self.invariants.committed;
                self.invariants.completeness.leads(id, status.term, &running.log, committed)?;
                self.coverage.saw(Happened::LeaderElected);
            }
            self.invariants.membership.leads(id, status.commit, &running.log)?;
            leadership::leads(id, status.members.is_voter(id))?;
            if !is_news
                && status.commit > seen.commit
                && let Some(place) = running.log.at(status.commit)
            {
                commit::leader_commits_of_term(id, status.term, status.commit, place.term)?;
            }
        }
        let in_force = status.members.as_of();
        // A record about members changes no quorum; a snapshot may.
        let is_change =
            running.log.at(in_force).map_or(in_force <= running.log.truncated.index, |place| place.is_change);
        if in_force > seen.in_force && seen.in_force > LogIndex::ZERO && is_change {
            self.invariants.durable.in_force(id, in_force, node.durable.commit())?;
        }
        running.seen.in_force = in_force;
        running.seen.role = status.role;
        running.seen.term = status.term;
        running.seen.commit = status.commit;
        if status.snapshot != running.retained_for {
            running.retained_for = status.snapshot;
            let keep = running.core.snapshots_in_use();
            node.disk.retain_snapshots(keep).map_err(|error| format!("{id}: {error}"))?;
        }
        if is_news {
            self.trace.add(
                now,
                format_args!(
                    "{id} is {} in term {}, last {}, commit {}",
                    status.role, status.term, status.last, status.commit
                ),
            );
        }
        Ok(())
    }

    /// The leader's view of its followers.
    fn progress(&mut self, id: NodeId) -> Vec<PeerProgress> {
        let (sender, inspected) = mpsc::channel();
        let reply = Responder::new(move |inspection| drop(sender.send(inspection)));
        let Some(running) = self.running(id) else { return Vec::new() };
        running.core.handle_local_request_msg(LocalRequestMsg::Inspect { reply });
        inspected.recv().ok().and_then(Result::ok).map_or_else(Vec::new, |inspection| inspection.progress)
    }

    /// A leader is to send a snapshot.
    pub(super) fn observe_transfer(&mut self, id: NodeId, sent: SnapshotToSend) -> Checked {
        let progress = self.progress(id);
        match (progress.iter().find(|peer| peer.id == sent.to), self.running(id)) {
            (Some(peer), Some(running)) => running.transfers.begins(id, sent, peer.matched),
            _ => Ok(()),
        }
    }

    /// A leader has received an acknowledgement: the assumed entries must be there. A node in a later term
    /// may have discarded them since.
    pub(super) fn observe_progress(&mut self, id: NodeId) -> Checked {
        let Some(status) = self.status(id).filter(|status| status.role == Role::Leader) else {
            return Ok(());
        };
        let progress = self.progress(id);
        let log = match self.nodes.get(&id) {
            Some(Node { lost: None, running: Some(running), .. }) => &running.log,
            _ => return Ok(()),
        };
        for peer in progress.iter().filter(|peer| peer.id != id) {
            if let (Some(node), Some(digest)) = (self.nodes.get(&peer.id), log.digest(peer.matched))
                && node.lost.is_none()
                && node.durable.state.hard_state.term <= status.term
            {
                let holds = node.holds(peer.matched, digest);
                commit::leader_counts(id, peer.id, peer.matched, holds)?;
            }
        }
        Ok(())
    }
}
