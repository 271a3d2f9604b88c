//! Changing the membership, as leader: what is accepted, what waits, and what the leader does by itself: it promotes joining
//! nodes, clears those that are gone, and replicates what members say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::RaftNodeCore;
use super::joiners::Joiners;
use super::requests::WhyParked;
use crate::error::{MembershipError, UnknownOutcome};
use crate::members::{
    LeaveJoint, Member, MemberChange, MemberRecord, MemberRole, Members, MembershipChange, MembershipCommand,
    MembershipRefusal, MembershipRequest, Sender,
};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::request::{Forwarding, LeaderRequest, ProposalReply, Reservation, Responder};
use crate::types::{Incarnation, LogIndex, NodeId};

/// What this node knows of the membership besides what is replicated, and what its leader is about to do with it.
#[derive(Default)]
pub(super) struct MembershipWork {
    /// The change that this leader has proposed and that is not yet in force.
    pub(super) pending_change: Option<LogIndex>,
    /// Who waits for a joint configuration to be left, and until when.
    awaiting_leave: Vec<(Responder<Members, MembershipError>, u64)>,
    /// Whose incarnation this leader has proposed to replicate.
    recording_incarnations: BTreeSet<NodeId>,
    /// Which new addresses this leader has proposed to replicate.
    recording_addresses: BTreeSet<(NodeId, String)>,
    joiners: Joiners,
    /// The nodes that this one has reached, and where.
    reached: BTreeMap<NodeId, (Incarnation, String)>,
    /// As of which index each member is at the address that it has, as far as this was seen to change.
    addresses_as_of: BTreeMap<NodeId, LogIndex>,
    /// The membership that this node started with.
    begun_as_of: LogIndex,
    /// Since when this leader waits for a word of the voters that it needs after it has promoted joining nodes.
    promotes_since_ticks: Option<u64>,
    /// When the leader was last told of them.
    told_ticks: u64,
}

impl MembershipWork {
    pub(super) fn begin(members: &Members) -> MembershipWork {
        MembershipWork { begun_as_of: members.as_of(), ..MembershipWork::default() }
    }

    /// The membership is about to change: what voters have said of one address counts for no other.
    pub(super) fn members_change(&mut self, before: &Members, after: &Members) {
        self.addresses_as_of.retain(|id, _| after.get(*id).is_some());
        for member in after.iter() {
            if before.get(member.id).is_none_or(|known| known.address != member.address) {
                self.addresses_as_of.insert(member.id, after.as_of());
                self.joiners.forget_reached(member.id);
            }
        }
    }

    /// Whether this node has reached the member where it is to be found.
    fn has_reached(&self, member: &Member) -> bool {
        self.reached.get(&member.id).is_some_and(|(incarnation, address)| {
            member.incarnation == Some(*incarnation) && member.address == *address
        })
    }

    /// What a leader knows is of no use to a follower, or to the leader of another term.
    pub(super) fn leadership_lost(&mut self) {
        self.promotes_since_ticks = None;
        self.pending_change = None;
        self.recording_incarnations.clear();
        self.recording_addresses.clear();
        self.joiners = Joiners::default();
    }

    /// Whether a request waits for a joint configuration to be left.
    pub(super) fn is_awaited(&self) -> bool {
        !self.awaiting_leave.is_empty()
    }

    pub(super) fn refuse_all(&mut self, error: &MembershipError) {
        for (reply, _) in self.awaiting_leave.drain(..) {
            reply.answer(Err(error.clone()));
        }
    }
}

/// Who waits for an entry about members.
#[derive(Debug)]
pub(super) enum MembershipWaiter {
    Change(Responder<Members, MembershipError>),
    Reservation(Responder<Reservation, MembershipError>),
    /// The leader itself proposed it.
    Nobody,
}

impl MembershipWaiter {
    pub(super) fn refuse(self, error: MembershipError) {
        match self {
            MembershipWaiter::Change(reply) => reply.answer(Err(error)),
            MembershipWaiter::Reservation(reply) => reply.answer(Err(error)),
            MembershipWaiter::Nobody => {}
        }
    }
}

impl<R: ProposalReply> RaftNodeCore<R> {
    // --- What is asked for ---

    pub(super) fn change_membership(
        &mut self,
        request: MembershipRequest,
        reply: Responder<Members, MembershipError>,
        forwarding: Forwarding,
    ) {
        // A joint configuration that is left by itself is a change that is still under way.
        if self.membership_work.pending_change.is_some() || self.members.must_leave_joint() {
            if mutated!(PendingChangeIsNotAnswered) {
                return std::mem::forget(reply);
            }
            let request = LeaderRequest::ChangeMembership { request, reply };
            return self.park(request, forwarding, WhyParked::ChangePending);
        }
        let (change, after) = match self.plan_change(&request) {
            Ok(Some(planned)) => planned,
            // Everything is already as it is asked for.
            Ok(None) => return reply.answer(Ok(Members::clone(&self.members))),
            Err(MembershipError::Refused(_)) if mutated!(RefusedChangeSucceeds) => {
                return reply.answer(Ok(Members::clone(&self.members)));
            }
            Err(error) => return reply.answer(Err(error)),
        };
        let to_park = |reply| LeaderRequest::ChangeMembership { request: request.clone(), reply };
        if self.consensus.has_pending_change() || !self.consensus.has_committed_in_term() {
            // A new leader: an earlier one's change may stand in the part of the log that is not yet applied.
            return self.park(to_park(reply), forwarding, WhyParked::LeadershipUnsettled);
        }
        if !request.force {
            if let Err(error) = self.check_new_voters(&change, &after) {
                return reply.answer(Err(error));
            }
            let since = self.checks_voters_since.unwrap_or(self.now_ticks);
            if let Err(error) = self.check_majority(&after, since) {
                // A voter that was alive a moment ago may be gone: those that are alive say so with the next heartbeat.
                return match self.now_ticks - since <= self.config.ticks(self.config.election_timeout) {
                    true => self.park(
                        to_park(reply),
                        forwarding,
                        WhyParked::AwaitingVoters { since_ticks: since },
                    ),
                    false => reply.answer(Err(error)),
                };
            }
        }
        if !after.is_voter(self.node_id) && !mutated!(RemovedLeaderLeads) {
            return match self.hand_over(&after) {
                Ok(()) => self.park(to_park(reply), forwarding, WhyParked::AfterHandover),
                Err(error) => reply.answer(Err(MembershipError::HandoverFailed(error))),
            };
        }
        self.propose_change(&change, MembershipWaiter::Change(reply));
    }

    /// The change that the request comes to, with the membership after it; `None` if there is nothing to change.
    fn plan_change(
        &self,
        request: &MembershipRequest,
    ) -> Result<Option<(MembershipChange, Members)>, MembershipError> {
        if let Some(expected) = request.expected
            && expected != self.members.as_of()
        {
            return Err(MembershipError::MembershipMoved { expected, actual: self.members.as_of() });
        }
        let change = match &request.command {
            MembershipCommand::Change(change) if request.force => change.clone(),
            MembershipCommand::Change(change) => self.learners_first(change),
            MembershipCommand::Join(joiners) => match self.let_in(joiners)? {
                Some(change) => change,
                None => return Ok(None),
            },
        };
        let after = self.members.changed(LogIndex::ZERO, &change)?;
        Ok(Some((change, after)))
    }

    /// A node becomes a voter only when it has the log: one that is added as a voter joins first.
    fn learners_first(&self, change: &MembershipChange) -> MembershipChange {
        let mut change = change.clone();
        if let MembershipChange::Steps { steps, .. } = &mut change {
            for step in steps {
                if let MemberChange::Add(member) = step
                    && member.role == MemberRole::Voter
                    && self.members.get(member.id).is_none()
                {
                    member.role = MemberRole::Joining;
                }
            }
        }
        change
    }

    /// The steps that let these nodes in. One that is a member already stays what it is, but may have moved; a node that
    /// began to join at the same address, and is gone, makes room.
    fn let_in(&self, joiners: &[Member]) -> Result<Option<MembershipChange>, MembershipRefusal> {
        let mut steps = Vec::new();
        for joiner in joiners {
            let id = joiner.id;
            let role = match self.members.get(id) {
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
            let holder = self.members.iter().find(|other| other.address == joiner.address && other.id != id);
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

    /// Whether each new voter is caught up and reached.
    fn check_new_voters(&self, change: &MembershipChange, after: &Members) -> Result<(), MembershipError> {
        let MembershipChange::Steps { steps, .. } = change else { return Ok(()) };
        for member in steps.iter().filter_map(|step| after.get(step.node_id())) {
            if member.role == MemberRole::Voter && !self.members.is_voter(member.id) {
                self.check_may_vote(member)?;
            }
        }
        Ok(())
    }

    /// Whether the node may become the voter that the membership would have it be.
    fn check_may_vote(&self, joiner: &Member) -> Result<(), MembershipError> {
        let id = joiner.id;
        let (last, now) = (self.consensus.last().index, self.now_ticks);
        let joiners = &self.membership_work.joiners;
        let lag = joiners.lag(id, last, now, &self.config);
        if !lag.is_close {
            return Err(MembershipError::NotCaughtUp { id, matched: lag.matched, last });
        }
        let voters = self.members.configuration().voters;
        let is_there = self.members.get(id).is_some_and(|member| member.address == joiner.address);
        let mut by: BTreeSet<NodeId> = match joiner.incarnation.filter(|_| is_there) {
            Some(incarnation) => joiners.reached_by(id, incarnation, now, &self.config).into_iter().collect(),
            None => BTreeSet::new(),
        };
        if self.membership_work.has_reached(joiner) {
            by.insert(self.node_id);
        }
        if by.intersection(&voters).count() <= voters.len() / 2 && !mutated!(PromotesTheUnreached) {
            let by = voters.intersection(&by).copied().collect();
            return Err(MembershipError::NotReached { id, by, voters: voters.len() });
        }
        Ok(())
    }

    /// A change may not leave fewer live voters than a majority, in either half of a joint configuration. Alive is a voter
    /// that was heard from after `since_ticks`, when the change was first looked at.
    fn check_majority(&self, after: &Members, since_ticks: u64) -> Result<(), MembershipError> {
        let (now, then) = (self.members.configuration(), after.configuration());
        if now.voters == then.voters || mutated!(AcceptsStrandingChange) {
            return Ok(());
        }
        for half in [&then.voters, &then.voters_outgoing] {
            let is_alive = |id: &NodeId| {
                *id == self.node_id || self.last_heard.get(id).is_some_and(|heard| *heard > since_ticks)
            };
            let missing: Vec<NodeId> = half.iter().copied().filter(|id| !is_alive(id)).collect();
            let alive = half.len() - missing.len();
            if !half.is_empty() && alive <= half.len() / 2 {
                return Err(MembershipError::WouldLoseMajority { voters: half.len(), missing });
            }
        }
        Ok(())
    }

    // --- What is proposed ---

    fn propose_change(&mut self, change: &MembershipChange, waiter: MembershipWaiter) {
        self.flush_batch();
        match self.consensus.propose_change(change) {
            Ok(position) => {
                info!(node = %self.node_id, at = %position, "proposed a membership change: {change}");
                self.membership_work.pending_change = Some(position.index);
                self.membership.insert(position, waiter, self.deadline(self.config.membership_timeout));
            }
            Err(_) => waiter.refuse(MembershipError::Busy { waiting: self.proposals.len() as u64 }),
        }
    }

    /// Whether it could be proposed.
    pub(super) fn propose_record(&mut self, record: &MemberRecord, waiter: MembershipWaiter) -> bool {
        self.flush_batch();
        match self.consensus.propose_record(record.encode()) {
            Ok(position) => {
                self.membership.insert(position, waiter, self.deadline(self.config.membership_timeout));
                true
            }
            Err(_) => {
                waiter.refuse(MembershipError::Busy { waiting: self.proposals.len() as u64 });
                false
            }
        }
    }

    // --- What the leader does by itself ---

    /// Whether this leader may propose something of its own accord.
    fn may_propose(&self) -> bool {
        self.consensus.is_leader() && self.transfer.is_none() && self.consensus.has_committed_in_term()
    }

    /// Whether this leader may propose a change of the membership of its own accord.
    fn may_change(&self) -> bool {
        self.may_propose()
            && self.membership_work.pending_change.is_none()
            && !self.consensus.has_pending_change()
    }

    /// Replicates the incarnation of every member that was heard of and is not yet known by one, and this node's own new
    /// address.
    pub(super) fn record_members(&mut self) {
        if !self.may_propose() {
            return;
        }
        let unknown: Vec<NodeId> = self
            .members
            .iter()
            .filter(|member| member.incarnation.is_none())
            .map(|member| member.id)
            .collect();
        for id in unknown {
            if let Some(&incarnation) = self.first_incarnations.get(&id)
                && !self.membership_work.recording_incarnations.contains(&id)
                && self
                    .propose_record(&MemberRecord::Incarnation { id, incarnation }, MembershipWaiter::Nobody)
            {
                self.membership_work.recording_incarnations.insert(id);
            }
        }
        if let Some(identity) = self.identity {
            let address = self.address.clone();
            self.record_address(self.node_id, identity.incarnation, address);
        }
    }

    /// A member has introduced itself with another address than the membership has.
    pub(super) fn announced(&mut self, sender: &Sender, address: String) {
        if self.may_propose() {
            self.record_address(sender.id, sender.incarnation, address);
        }
    }

    fn record_address(&mut self, id: NodeId, incarnation: Incarnation, address: String) {
        let Some(member) = self.members.get(id) else { return };
        let is_taken = self.members.iter().any(|other| other.id != id && other.address == address);
        if member.incarnation != Some(incarnation) || member.address == address || is_taken {
            return;
        }
        let key = (id, address);
        if self.membership_work.recording_addresses.contains(&key) {
            return;
        }
        info!(node = %self.node_id, member = %id, from = member.address, to = key.1, "a member is at a new address");
        let record = MemberRecord::Address { id, incarnation, address: key.1.clone() };
        if self.propose_record(&record, MembershipWaiter::Nobody) {
            self.membership_work.recording_addresses.insert(key);
        }
    }

    /// A membership is in force: what was proposed for it may be proposed again.
    pub(super) fn recorded(&mut self, record: &MemberRecord) {
        if let MemberRecord::Address { id, address, .. } = record {
            self.membership_work.recording_addresses.remove(&(*id, address.clone()));
        }
    }

    /// Leaves a joint configuration that is to be left by itself.
    pub(super) fn leave_joint_if_due(&mut self) {
        if !self.members.must_leave_joint() || !self.may_change() {
            return;
        }
        if self.members.get(self.node_id).is_some_and(|own| own.role == MemberRole::Voter) {
            self.propose_change(&MembershipChange::LeaveJoint, MembershipWaiter::Nobody);
        } else if self.now_ticks >= self.hand_overs.pause_until_ticks
            && let Err(error) = self.hand_over(&Arc::clone(&self.members))
        {
            debug!(node = %self.node_id, "cannot hand over to leave the joint configuration yet: {error}");
        }
    }

    /// Watches the nodes that do not vote: promotes those that are joining and ready for it, all of them in one change, and
    /// clears those that are gone.
    pub(super) fn tend_joiners(&mut self) {
        let is_watched = |member: &&Member| matches!(member.role, MemberRole::Learner | MemberRole::Joining);
        if !self.members.iter().any(|member| is_watched(&member)) {
            return;
        }
        if !self.consensus.is_leader() {
            return self.tell_leader_if_due();
        }
        let (last, now) = (self.consensus.last().index, self.now_ticks);
        let members = Arc::clone(&self.members);
        let joiners = &mut self.membership_work.joiners;
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
            self.membership_work.promotes_since_ticks = None;
            let Some(id) = gone else { return };
            warn!(node = %self.node_id, joiner = %id, "was not heard from for {:?}: it is cleared, and may join again", self.config.joiner_timeout);
            steps.push(MemberChange::ClearJoiner(id));
        }
        let change = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
        let after = match members.changed(LogIndex::ZERO, &change) {
            Ok(after) => after,
            Err(refusal) => return warn!(node = %self.node_id, "cannot {change}: {refusal}"),
        };
        let since = *self.membership_work.promotes_since_ticks.get_or_insert(now);
        match self.check_majority(&after, since) {
            Ok(()) => {
                self.membership_work.promotes_since_ticks = None;
                self.propose_change(&change, MembershipWaiter::Nobody);
            }
            Err(error) if now - since > self.config.ticks(self.config.election_timeout) => {
                debug!(node = %self.node_id, "cannot {change} yet: {error}");
                self.membership_work.promotes_since_ticks = None;
            }
            Err(_) => {}
        }
    }

    /// Whether a joining node was silent for so long that it is cleared.
    fn is_gone(&self, id: NodeId) -> bool {
        let first_seen = self.membership_work.joiners.first_seen_ticks(id).unwrap_or(self.now_ticks);
        let heard = self.last_heard.get(&id).copied().unwrap_or(0).max(first_seen);
        self.now_ticks - heard > self.config.ticks(self.config.joiner_timeout)
    }

    // --- Who was reached ---

    /// The shell has connected to a peer at `address`, and that incarnation of it answers there. It counts if this is the
    /// address that the membership has, now or later.
    pub fn peer_reached(&mut self, peer: NodeId, incarnation: Incarnation, address: String) {
        let reached = (incarnation, address);
        if self.membership_work.reached.get(&peer) != Some(&reached) {
            self.membership_work.reached.insert(peer, reached);
            // To be told at once.
            self.membership_work.told_ticks = 0;
            // The peer may have been started just now: requests wait there until it knows the leader.
            self.consensus.send_heartbeats();
        }
    }

    /// The connection to a peer broke, or another node answers at its address.
    pub fn peer_unreached(&mut self, peer: NodeId) {
        self.membership_work.reached.remove(&peer);
    }

    /// A voter has told this leader which nodes it has reached.
    pub(super) fn told_of_reached(&mut self, voter: &Sender, peers: Vec<(NodeId, Incarnation)>) {
        if !self.consensus.is_leader() || !self.members.is_voter(voter.id) {
            return;
        }
        let work = &mut self.membership_work;
        for (id, incarnation) in peers {
            // A voter that does not know the newest address has reached the node at an older one.
            let known_since = work.addresses_as_of.get(&id).copied().unwrap_or(work.begun_as_of);
            if self.members.get(id).is_some() && voter.members_as_of >= known_since {
                work.joiners.was_reached(id, incarnation, voter.id, self.now_ticks);
            }
        }
    }

    /// A voter tells the leader which of the nodes that do not vote it has reached: now and then, as the message may be
    /// lost, and leaders change.
    fn tell_leader_if_due(&mut self) {
        let work = &mut self.membership_work;
        let is_due = work.told_ticks == 0
            || self.now_ticks - work.told_ticks >= self.config.ticks(self.config.election_timeout);
        let Some(leader) = self.consensus.leader() else { return };
        if !is_due || !self.members.is_voter(self.node_id) {
            return;
        }
        let is_watched = |member: &&Member| matches!(member.role, MemberRole::Learner | MemberRole::Joining);
        let reached = self.members.iter().filter(|member| is_watched(member) && work.has_reached(member));
        let peers: Vec<(NodeId, Incarnation)> =
            reached.filter_map(|member| Some((member.id, member.incarnation?))).collect();
        work.told_ticks = self.now_ticks.max(1);
        if !peers.is_empty() {
            let (from, term) = (self.node_id, self.consensus.term());
            let body = RaftMessageBody::Reached { peers };
            self.next.send_now.push(RaftMessage { from, to: leader, term, body });
        }
    }

    // --- Answers and deadlines ---

    /// A membership change that is in force is answered with success: at once, or when its joint configuration is left.
    pub(super) fn answer_change(&mut self, change: &MembershipChange, waiter: MembershipWaiter) {
        let MembershipWaiter::Change(reply) = waiter else {
            return;
        };
        match change {
            MembershipChange::Steps { leave: LeaveJoint::Automatically, .. } if change.enters_joint() => {
                let deadline_ticks = self.deadline(self.config.membership_timeout);
                self.membership_work.awaiting_leave.push((reply, deadline_ticks));
            }
            _ => reply.answer(Ok(Members::clone(&self.members))),
        }
    }

    /// The joint configuration was left.
    pub(super) fn answer_joint_left(&mut self) {
        for (reply, _) in self.membership_work.awaiting_leave.drain(..) {
            reply.answer(Ok(Members::clone(&self.members)));
        }
    }

    pub(super) fn expire_membership_requests(&mut self) {
        let unknown = MembershipError::Unknown(UnknownOutcome::TimedOut(self.config.membership_timeout));
        for waiter in self.membership.take_expired(self.now_ticks) {
            waiter.refuse(unknown.clone());
        }
        let now = self.now_ticks;
        for (reply, _) in self.membership_work.awaiting_leave.extract_if(.., |(_, deadline)| *deadline <= now)
        {
            reply.answer(Err(unknown.clone()));
        }
    }
}
