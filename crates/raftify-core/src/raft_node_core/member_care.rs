//! Automatic membership management of a leader: it promotes joining nodes, removes joining nodes that are
//! silent, leaves joint configurations, and replicates the incarnations and addresses that members announce.
//! The voters tell it which nodes they have reached.

use std::sync::Arc;

use tracing::{debug, info, warn};

use super::RaftNodeCore;
use crate::machines::MembershipWaiter;
use crate::members::{LeaveJoint, Member, MemberChange, MemberRecord, MemberRole, MembershipChange, Sender};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::request::ProposalReply;
use crate::types::{Incarnation, LogIndex, NodeId};

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Whether this leader may propose an entry without a request.
    fn may_propose(&self) -> bool {
        self.consensus.is_leader()
            && !self.leadership.is_transferring()
            && self.consensus.has_committed_in_term()
    }

    /// Whether this leader may propose a membership change without a request.
    fn may_change(&self) -> bool {
        self.may_propose() && !self.membership.has_proposed_change() && !self.consensus.has_pending_change()
    }

    /// Replicates the incarnation of every member that has sent a message and whose incarnation is not
    /// recorded yet, and the new address of this node.
    pub(super) fn record_members(&mut self) {
        if !self.may_propose() {
            return;
        }
        let unknown: Vec<NodeId> = self
            .membership
            .members()
            .iter()
            .filter(|member| member.incarnation.is_none())
            .map(|member| member.id)
            .collect();
        for id in unknown {
            if let Some(incarnation) = self.liveness.first_incarnation(id)
                && !self.membership.records_incarnation(id)
                && self
                    .propose_record(&MemberRecord::Incarnation { id, incarnation }, MembershipWaiter::Leader)
            {
                self.membership.incarnation_proposed(id);
            }
        }
        if let Some(identity) = self.node.identity() {
            let address = self.node.address().to_owned();
            self.record_address(self.node.id(), identity.incarnation, address);
        }
    }

    /// A member has identified itself with another address than the one in the membership.
    pub(super) fn announced(&mut self, sender: &Sender, address: String) {
        if self.may_propose() {
            self.record_address(sender.id, sender.incarnation, address);
        }
    }

    fn record_address(&mut self, id: NodeId, incarnation: Incarnation, address: String) {
        let Some(member) = self.membership.members().get(id) else { return };
        let is_taken =
            self.membership.members().iter().any(|other| other.id != id && other.address == address);
        if member.incarnation != Some(incarnation) || member.address == address || is_taken {
            return;
        }
        let key = (id, address);
        if self.membership.records_address(&key) {
            return;
        }
        info!(node = %self.node.id(), member = %id, from = member.address, to = key.1, "a member is at a new address");
        let record = MemberRecord::Address { id, incarnation, address: key.1.clone() };
        if self.propose_record(&record, MembershipWaiter::Leader) {
            self.membership.address_proposed(key);
        }
    }

    /// Leaves a joint configuration that must be left automatically.
    pub(super) fn leave_joint_if_due(&mut self) {
        if !self.membership.members().must_leave_joint() || !self.may_change() {
            return;
        }
        if self.membership.members().get(self.node.id()).is_some_and(|own| own.role == MemberRole::Voter) {
            self.propose_change(&MembershipChange::LeaveJoint, MembershipWaiter::Leader);
        } else if !self.leadership.is_paused(self.node.now())
            && let Err(error) = self.transfer_before(&Arc::clone(self.membership.members()))
        {
            debug!(node = %self.node.id(), "cannot transfer leadership to leave the joint configuration yet: {error}");
        }
    }

    /// Watches the non-voting nodes: promotes the joining nodes that are ready, all of them in one change,
    /// and removes those that are silent.
    pub(super) fn tend_joiners(&mut self) {
        let is_watched = |member: &&Member| matches!(member.role, MemberRole::Learner | MemberRole::Joining);
        if !self.membership.members().iter().any(|member| is_watched(&member)) {
            return;
        }
        if !self.consensus.is_leader() {
            return self.tell_leader_if_due();
        }
        let (last, now) = (self.consensus.last().index, self.node.now());
        let members = Arc::clone(self.membership.members());
        let joiners = &mut self.membership.joiners;
        joiners.retain(|id| members.get(id).is_some_and(|member| is_watched(&member)));
        for peer in self.consensus.progress() {
            if members.get(peer.id).is_some_and(|member| is_watched(&member)) {
                joiners.observe(peer.id, peer.matched, last, now);
            }
        }
        if !self.may_change() || members.is_joint() {
            return;
        }
        let (mut steps, mut gone) = (Vec::new(), None);
        for joiner in members.iter().filter(|member| member.role == MemberRole::Joining) {
            let id = joiner.id;
            if self.check_may_vote(joiner).is_ok() && (self.is_alive(id) || mutated!(AcceptsStrandingChange))
            {
                steps.push(MemberChange::SetRole { id, role: MemberRole::Voter });
            } else if self.is_gone(id) {
                gone = Some(id);
            }
        }
        if steps.is_empty() {
            self.membership.promotion_ends();
            let Some(id) = gone else { return };
            warn!(node = %self.node.id(), joiner = %id, "sent nothing for {:?}: it is removed, and may join again", self.node.config().joiner_timeout);
            steps.push(MemberChange::ClearJoiner(id));
        }
        let change = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
        let after = match members.changed(LogIndex::ZERO, &change) {
            Ok(after) => after,
            Err(refusal) => return warn!(node = %self.node.id(), "cannot {change}: {refusal}"),
        };
        let since = self.membership.promotes_since(now);
        match self.check_majority(&after, since) {
            Ok(()) => {
                self.membership.promotion_ends();
                self.propose_change(&change, MembershipWaiter::Leader);
            }
            Err(error) if now - since > self.node.ticks(self.node.config().election_timeout) => {
                debug!(node = %self.node.id(), "cannot {change} yet: {error}");
                self.membership.promotion_ends();
            }
            Err(_) => {}
        }
    }

    /// Whether a joining node was silent for so long that it is removed.
    fn is_gone(&self, id: NodeId) -> bool {
        let first_seen = self.membership.joiners.first_seen_ticks(id).unwrap_or(self.node.now());
        let heard = self.liveness.last_heard(id).unwrap_or(0).max(first_seen);
        self.node.now() - heard > self.node.ticks(self.node.config().joiner_timeout)
    }

    // --- Reached nodes ---

    /// The shell has connected to a peer at `address`, and that incarnation of the peer answers there. It
    /// counts if this is the address in the membership, now or later.
    pub fn peer_reached(&mut self, peer: NodeId, incarnation: Incarnation, address: String) {
        if self.membership.reached.reach(peer, incarnation, address) {
            // The peer may have been started just now: requests wait on it until it knows the leader.
            self.consensus.send_heartbeats();
        }
    }

    /// The connection to a peer broke, or another node answers at its address.
    pub fn peer_unreached(&mut self, peer: NodeId) {
        self.membership.reached.lose(peer);
    }

    /// A voter reports to this leader which nodes it has reached.
    pub(super) fn told_of_reached(&mut self, voter: &Sender, peers: Vec<(NodeId, Incarnation)>) {
        if !self.consensus.is_leader() || !self.membership.members().is_voter(voter.id) {
            return;
        }
        for (id, incarnation) in peers {
            if self.membership.members().get(id).is_some() && self.membership.reached.knows_address(voter, id)
            {
                self.membership.joiners.was_reached(id, incarnation, voter.id, self.node.now());
            }
        }
    }

    /// A voter reports to the leader which non-voting nodes it has reached. It repeats the report, because
    /// the message may be lost, and leaders change.
    fn tell_leader_if_due(&mut self) {
        let Some(leader) = self.consensus.leader() else { return };
        let (now, interval_ticks) = (self.node.now(), self.node.ticks(self.node.config().election_timeout));
        let (members, reached) = (self.membership.members(), &self.membership.reached);
        if !reached.is_telling_due(now, interval_ticks) || !members.is_voter(self.node.id()) {
            return;
        }
        let is_watched = |member: &&Member| matches!(member.role, MemberRole::Learner | MemberRole::Joining);
        let reached = members.iter().filter(|member| is_watched(member) && reached.has_reached(member));
        let peers: Vec<(NodeId, Incarnation)> =
            reached.filter_map(|member| Some((member.id, member.incarnation?))).collect();
        self.membership.reached.told(now);
        if !peers.is_empty() {
            let (from, term) = (self.node.id(), self.consensus.term());
            let body = RaftMessageBody::Reached { peers };
            self.pipeline.next().send_now.push(RaftMessage { from, to: leader, term, body });
        }
    }
}
