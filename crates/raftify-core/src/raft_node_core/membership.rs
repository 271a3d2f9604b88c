//! Changes the membership, as leader: decides which change is accepted, and which must wait.

use std::collections::BTreeSet;

use tracing::info;

use super::RaftNodeCore;
use crate::error::MembershipError;
use crate::machines::{ChangeRequest, MembershipWaiter, Until};
use crate::members::{
    LeaveJoint, Member, MemberChange, MemberRecord, MemberRole, Members, MembershipChange, MembershipCommand,
    MembershipRefusal, MembershipRequest,
};
use crate::request::ProposalReply;
use crate::types::{LogIndex, NodeId};

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn change_membership(&mut self, asked: ChangeRequest) {
        // A joint configuration that is left automatically is a change that is still in progress.
        if self.membership.is_change_pending() {
            if mutated!(PendingChangeIsNotAnswered) {
                return std::mem::forget(asked.reply);
            }
            return self.defer_change(asked, Until::ChangeIsDone);
        }
        let (change, after) = match self.plan_change(&asked.request) {
            Ok(Some(planned)) => planned,
            // The membership is already as requested.
            Ok(None) => return asked.reply.answer(Ok(Members::clone(self.membership.members()))),
            Err(MembershipError::Refused(_)) if mutated!(RefusedChangeSucceeds) => {
                return asked.reply.answer(Ok(Members::clone(self.membership.members())));
            }
            Err(error) => return asked.reply.answer(Err(error)),
        };
        if self.consensus.has_pending_change() || !self.consensus.has_committed_in_term() {
            // A new leader: the unapplied part of the log may contain a change of an earlier leader.
            return self.defer_change(asked, Until::LeadershipIsSettled);
        }
        if !asked.request.force {
            if let Err(error) = self.check_new_voters(&change, &after) {
                return asked.reply.answer(Err(error));
            }
            let since_ticks = asked.since_ticks;
            if let Err(error) = self.check_majority(&after, since_ticks) {
                // A voter that was alive a moment ago may be down: live voters respond to the next heartbeat.
                let patience_ticks = self.node.ticks(self.node.config().election_timeout);
                return match self.node.now() - since_ticks <= patience_ticks {
                    true => self.defer_change(asked, Until::VotersAreAlive { since_ticks }),
                    false => asked.reply.answer(Err(error)),
                };
            }
        }
        if !after.is_voter(self.node.id()) && !mutated!(RemovedLeaderLeads) {
            return match self.transfer_before(&after) {
                Ok(()) => self.defer_change(asked, Until::Transferred),
                Err(error) => asked.reply.answer(Err(MembershipError::TransferFailed(error))),
            };
        }
        self.propose_change(&change, MembershipWaiter::Change(asked.reply));
    }

    fn defer_change(&mut self, asked: ChangeRequest, until: Until) {
        self.requests.defer(asked.deferred(until), self.node.config());
    }

    /// The change that the request results in, with the membership after it; `None` if there is nothing to
    /// change.
    fn plan_change(
        &self,
        request: &MembershipRequest,
    ) -> Result<Option<(MembershipChange, Members)>, MembershipError> {
        if let Some(expected) = request.expected
            && expected != self.membership.members().as_of()
        {
            return Err(MembershipError::MembershipMoved {
                expected,
                actual: self.membership.members().as_of(),
            });
        }
        let change = match &request.command {
            MembershipCommand::Change(change) if request.force => change.clone(),
            MembershipCommand::Change(change) => self.learners_first(change),
            MembershipCommand::Join(joiners) => match self.let_in(joiners)? {
                Some(change) => change,
                None => return Ok(None),
            },
        };
        let after = self.membership.members().changed(LogIndex::ZERO, &change)?;
        Ok(Some((change, after)))
    }

    /// A node becomes a voter only when it has the log: a node that is added as a voter joins first.
    fn learners_first(&self, change: &MembershipChange) -> MembershipChange {
        let mut change = change.clone();
        if let MembershipChange::Steps { steps, .. } = &mut change {
            for step in steps {
                if let MemberChange::Add(member) = step
                    && member.role == MemberRole::Voter
                    && self.membership.members().get(member.id).is_none()
                {
                    member.role = MemberRole::Joining;
                }
            }
        }
        change
    }

    /// The steps that add these nodes. An existing member keeps its role, but its address may have changed; a
    /// joining node at the same address that is silent is removed.
    fn let_in(&self, joiners: &[Member]) -> Result<Option<MembershipChange>, MembershipRefusal> {
        let mut steps = Vec::new();
        for joiner in joiners {
            let id = joiner.id;
            let role = match self.membership.members().get(id) {
                Some(known)
                    if (&known.address, known.incarnation) == (&joiner.address, joiner.incarnation) =>
                {
                    continue;
                }
                Some(known) if known.incarnation.is_none() && known.address != joiner.address => {
                    let (known, new) = (known.address.clone(), joiner.address.clone());
                    return Err(MembershipRefusal::OtherAddress { id, known, new });
                }
                Some(known) => known.role,
                None if joiner.role == MemberRole::Learner => MemberRole::Learner,
                None => MemberRole::Joining,
            };
            let holder = self
                .membership
                .members()
                .iter()
                .find(|other| other.address == joiner.address && other.id != id);
            if let Some(holder) = holder
                && holder.role == MemberRole::Joining
            {
                steps.push(MemberChange::ClearJoiner(holder.id));
            }
            steps.push(MemberChange::Add(Member { role, ..joiner.clone() }));
        }
        let leave = LeaveJoint::Automatically;
        Ok((!steps.is_empty()).then_some(MembershipChange::Steps { steps, leave }))
    }

    /// Whether each new voter has caught up and was reached.
    fn check_new_voters(&self, change: &MembershipChange, after: &Members) -> Result<(), MembershipError> {
        let MembershipChange::Steps { steps, .. } = change else { return Ok(()) };
        for member in steps.iter().filter_map(|step| after.get(step.node_id())) {
            if member.role == MemberRole::Voter && !self.membership.members().is_voter(member.id) {
                self.check_may_vote(member)?;
            }
        }
        Ok(())
    }

    /// Whether the node may become a voter, as the membership would have it.
    pub(super) fn check_may_vote(&self, joiner: &Member) -> Result<(), MembershipError> {
        let id = joiner.id;
        let (last, now) = (self.consensus.last().index, self.node.now());
        let joiners = &self.membership.joiners;
        let lag = joiners.lag(id, last, now, self.node.config());
        if !lag.is_close {
            return Err(MembershipError::NotCaughtUp { id, matched: lag.matched, last });
        }
        let voters = self.membership.members().configuration().voters;
        let is_there =
            self.membership.members().get(id).is_some_and(|member| member.address == joiner.address);
        let mut by: BTreeSet<NodeId> = match joiner.incarnation.filter(|_| is_there) {
            Some(incarnation) => {
                joiners.reached_by(id, incarnation, now, self.node.config()).into_iter().collect()
            }
            None => BTreeSet::new(),
        };
        if self.membership.reached.has_reached(joiner) {
            by.insert(self.node.id());
        }
        if by.intersection(&voters).count() <= voters.len() / 2 && !mutated!(PromotesTheUnreached) {
            let by = voters.intersection(&by).copied().collect();
            return Err(MembershipError::NotReached { id, by, voters: voters.len() });
        }
        Ok(())
    }

    /// A change may not leave fewer live voters than a majority, in either half of a joint configuration. A
    /// voter is alive if it has sent a message after `since_ticks`, when the change was first considered.
    pub(super) fn check_majority(&self, after: &Members, since_ticks: u64) -> Result<(), MembershipError> {
        let (now, then) = (self.membership.members().configuration(), after.configuration());
        if now.voters == then.voters || mutated!(AcceptsStrandingChange) {
            return Ok(());
        }
        for half in [&then.voters, &then.voters_outgoing] {
            let is_alive =
                |id: &NodeId| *id == self.node.id() || self.liveness.was_heard_after(*id, since_ticks);
            let missing: Vec<NodeId> = half.iter().copied().filter(|id| !is_alive(id)).collect();
            let alive = half.len() - missing.len();
            if !half.is_empty() && alive <= half.len() / 2 {
                return Err(MembershipError::WouldLoseMajority { voters: half.len(), missing });
            }
        }
        Ok(())
    }

    // --- Proposals ---

    pub(super) fn propose_change(&mut self, change: &MembershipChange, waiter: MembershipWaiter) {
        self.flush_batch();
        match self.consensus.propose_change(change) {
            Ok(position) => {
                info!(node = %self.node.id(), at = %position, "proposed a membership change: {change}");
                self.membership.change_proposed(position, waiter, self.membership_deadline());
            }
            Err(_) => waiter.refuse(self.too_busy()),
        }
    }

    /// Returns whether it could be proposed.
    pub(super) fn propose_record(&mut self, record: &MemberRecord, waiter: MembershipWaiter) -> bool {
        self.flush_batch();
        match self.consensus.propose_record(record.encode()) {
            Ok(position) => {
                self.membership.record_proposed(position, waiter, self.membership_deadline());
                true
            }
            Err(_) => {
                waiter.refuse(self.too_busy());
                false
            }
        }
    }

    pub(super) fn membership_deadline(&self) -> u64 {
        self.node.deadline(self.node.config().membership_timeout)
    }

    fn too_busy(&self) -> MembershipError {
        MembershipError::Busy { waiting: self.requests.proposals_in_log() as u64 }
    }
}
