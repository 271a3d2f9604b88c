//! Requests that only a leader can serve: where they go, who waits for them, and handing over leadership.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tracing::info;

use super::RaftNodeCore;
use super::membership::MembershipWaiter;
use crate::error::{
    CampaignError, DemoteError, LeaderHint, MembershipError, ProposeError, StopReason, TransferError,
    UnknownOutcome,
};
use crate::members::{Member, MemberRecord, MemberRole, Members};
use crate::request::{Forwarding, LeaderRequest, ProposalReply, Responder};
use crate::status::Role;
use crate::turn::Forward;
use crate::types::{NodeId, Term};

/// Proposals that will go into the log together, with one call of raft-rs.
pub(super) struct Batch<R> {
    proposals: Vec<Proposal<R>>,
    bytes: u64,
}

struct Proposal<R> {
    payload: Bytes,
    reply: R,
    forwarding: Forwarding,
    deadline_ticks: u64,
}

impl<R> Default for Batch<R> {
    fn default() -> Self {
        Batch { proposals: Vec::new(), bytes: 0 }
    }
}

impl<R> Batch<R> {
    pub(super) fn len(&self) -> usize {
        self.proposals.len()
    }
}

/// A request that waits until it is clear who leads.
pub(super) struct Parked<R> {
    request: LeaderRequest<R>,
    forwarding: Forwarding,
    deadline_ticks: u64,
    why: WhyParked,
}

/// All requests that wait until it is clear who leads, in the order in which they came.
pub(super) struct Parking<R> {
    requests: VecDeque<Parked<R>>,
    /// Of the entries to be proposed.
    bytes: u64,
}

impl<R> Default for Parking<R> {
    fn default() -> Self {
        Parking { requests: VecDeque::new(), bytes: 0 }
    }
}

impl<R> Parking<R> {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    fn push(&mut self, parked: Parked<R>) {
        self.bytes += parked.request.payload_bytes();
        self.requests.push_back(parked);
    }

    fn take_all(&mut self) -> VecDeque<Parked<R>> {
        std::mem::take(self).requests
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WhyParked {
    /// No leader is known, leadership is being handed over, or a new leader must first apply what it found.
    LeadershipUnsettled,
    /// The change takes the vote from this leader, which therefore hands over first.
    AfterHandover,
    /// Changes of the membership are made one at a time.
    ChangePending,
    /// Enough of the voters after the change must say that they are alive.
    AwaitingVoters {
        /// When the change was first looked at.
        since_ticks: u64,
    },
}

/// A hand-over of leadership that this leader has begun.
pub(super) struct Transfer {
    to: NodeId,
    deadline_ticks: u64,
    waiters: Vec<TransferWaiter>,
}

/// What this leader knows of its hand-overs that came to nothing.
#[derive(Default)]
pub(super) struct HandOvers {
    /// Who did not take over, for instance because its state machine is restoring a snapshot: others are tried first.
    unfit: BTreeSet<NodeId>,
    /// No further one is begun before, unless somebody asks for it: requests wait during each.
    pub(super) pause_until_ticks: u64,
}

enum TransferWaiter {
    Transfer(Responder<NodeId, TransferError>),
    Demote(Responder<(), DemoteError>),
}

impl TransferWaiter {
    fn answer(self, outcome: Result<NodeId, TransferError>) {
        match self {
            TransferWaiter::Transfer(reply) => reply.answer(outcome),
            TransferWaiter::Demote(reply) => reply.answer(outcome.map(|_| ()).map_err(DemoteError::Transfer)),
        }
    }
}

/// Why a request for the leader is not served here, whatever it asks for.
#[derive(Clone)]
enum NotServed {
    NoLeader,
    NotLeader(LeaderHint),
    Busy { waiting: u64 },
    Stopped(StopReason),
}

fn refuse<R: ProposalReply>(request: LeaderRequest<R>, why: NotServed) {
    match request {
        LeaderRequest::Propose { reply, .. } => reply.refuse(match why {
            NotServed::NoLeader => ProposeError::NoLeader,
            NotServed::NotLeader(leader) => ProposeError::NotLeader(leader),
            NotServed::Busy { waiting } => ProposeError::Busy { waiting },
            NotServed::Stopped(reason) => reason.into(),
        }),
        LeaderRequest::ChangeMembership { reply, .. } => reply.answer(Err(membership_error(why))),
        LeaderRequest::ReserveNodeId { reply } => reply.answer(Err(membership_error(why))),
        LeaderRequest::TransferLeader { reply, .. } => reply.answer(Err(match why {
            NotServed::NoLeader | NotServed::Busy { .. } => TransferError::NoLeader,
            NotServed::NotLeader(leader) => TransferError::NotLeader(leader),
            NotServed::Stopped(reason) => reason.into(),
        })),
    }
}

fn membership_error(why: NotServed) -> MembershipError {
    match why {
        NotServed::NoLeader => MembershipError::NoLeader,
        NotServed::NotLeader(leader) => MembershipError::NotLeader(leader),
        NotServed::Busy { waiting } => MembershipError::Busy { waiting },
        NotServed::Stopped(reason) => reason.into(),
    }
}

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Serves, forwards, parks or refuses a request for the leader.
    pub(super) fn take_request(
        &mut self,
        request: LeaderRequest<R>,
        forwarding: Forwarding,
        within: Duration,
    ) {
        if self.is_stopping && forwarding != Forwarding::Never {
            return refuse(request, NotServed::Stopped(StopReason::Stopping));
        }
        let deadline_ticks = self.deadline(self.patience(&request).min(within));
        self.route(request, forwarding, deadline_ticks);
    }

    /// Where a request goes that this node has taken.
    fn route(&mut self, request: LeaderRequest<R>, forwarding: Forwarding, deadline_ticks: u64) {
        let is_settled = self.transfer.is_none();
        if self.consensus.is_leader() {
            if !is_settled && !matches!(request, LeaderRequest::TransferLeader { .. }) {
                self.park_until(deadline_ticks, request, forwarding, WhyParked::LeadershipUnsettled);
            } else if self.is_stopping {
                // Who forwarded it asks again when another leader is known.
                refuse(request, NotServed::Stopped(StopReason::Stopping));
            } else {
                self.serve(request, forwarding, deadline_ticks);
            }
        } else if let Some(leader) = self.status().leader_hint() {
            match forwarding {
                Forwarding::Allowed | Forwarding::IfLeaderIsKnown => {
                    self.next.forward.push(Forward { to: leader.id, request });
                }
                Forwarding::Never if mutated!(ForwardsForEver) => {
                    self.next.forward.push(Forward { to: leader.id, request })
                }
                Forwarding::Never => refuse(request, NotServed::NotLeader(leader)),
            }
        } else if !is_settled || (forwarding == Forwarding::Allowed && !mutated!(NoLeaderIsAnAnswer)) {
            self.park_until(deadline_ticks, request, forwarding, WhyParked::LeadershipUnsettled);
        } else {
            // The node that has forwarded it waits by itself.
            refuse(request, NotServed::NoLeader);
        }
    }

    fn patience(&self, request: &LeaderRequest<R>) -> Duration {
        match request {
            LeaderRequest::Propose { .. } => self.config.propose_timeout,
            _ => self.config.membership_timeout,
        }
    }

    pub(super) fn park(&mut self, request: LeaderRequest<R>, forwarding: Forwarding, why: WhyParked) {
        let deadline_ticks = self.deadline(self.patience(&request));
        self.park_until(deadline_ticks, request, forwarding, why);
    }

    fn park_until(
        &mut self,
        deadline_ticks: u64,
        request: LeaderRequest<R>,
        forwarding: Forwarding,
        why: WhyParked,
    ) {
        let waiting = self.parked.len();
        let bytes = self.parked.bytes + request.payload_bytes();
        if waiting >= self.config.proposals_in_flight_max
            || (waiting > 0 && bytes > self.config.uncommitted_bytes_max)
        {
            return refuse(request, NotServed::Busy { waiting: waiting as u64 });
        }
        self.parked.push(Parked { request, forwarding, deadline_ticks, why });
    }

    /// Gives every parked request another try, once leadership is settled.
    pub(super) fn unpark(&mut self) {
        if self.transfer.is_some() || (!self.consensus.is_leader() && self.consensus.leader().is_none()) {
            return;
        }
        for parked in self.parked.take_all() {
            let deadline_ticks = parked.deadline_ticks;
            // After a hand-over, the new leader may be asked although the request was forwarded to this node.
            let forwarding = match parked.why {
                WhyParked::AfterHandover => Forwarding::Allowed,
                WhyParked::LeadershipUnsettled
                | WhyParked::ChangePending
                | WhyParked::AwaitingVoters { .. } => parked.forwarding,
            };
            let before = self.parked.len();
            self.checks_voters_since = match parked.why {
                WhyParked::AwaitingVoters { since_ticks } => Some(since_ticks),
                _ => None,
            };
            self.route(parked.request, forwarding, deadline_ticks);
            self.checks_voters_since = None;
            if let Some(again) = self.parked.requests.get_mut(before) {
                again.deadline_ticks = deadline_ticks;
            }
        }
    }

    fn serve(&mut self, request: LeaderRequest<R>, forwarding: Forwarding, deadline_ticks: u64) {
        match request {
            LeaderRequest::Propose { payload, reply } => {
                self.add_to_batch(Proposal { payload, reply, forwarding, deadline_ticks });
            }
            LeaderRequest::ChangeMembership { request, reply } => {
                self.change_membership(request, reply, forwarding)
            }
            LeaderRequest::ReserveNodeId { reply } => {
                self.propose_record(&MemberRecord::ReserveNodeId, MembershipWaiter::Reservation(reply));
            }
            LeaderRequest::TransferLeader { to, reply } => {
                self.transfer_leader(to, TransferWaiter::Transfer(reply))
            }
        }
    }

    // --- Proposals ---

    fn add_to_batch(&mut self, proposal: Proposal<R>) {
        let bytes = proposal.payload.len() as u64;
        let limit = self.config.entry_bytes_max;
        if bytes > limit {
            return proposal.reply.refuse(ProposeError::TooLarge { bytes, limit });
        }
        let waiting = self.proposals.len() + self.batch.len();
        let held = self.consensus.uncommitted_bytes() + self.batch.bytes;
        if waiting >= self.config.proposals_in_flight_max
            || (held > 0 && held + bytes > self.config.uncommitted_bytes_max)
            || self.unwritten_bytes > self.config.uncommitted_bytes_max
            || self.unapplied_bytes > self.config.unapplied_bytes_max
        {
            return proposal.reply.refuse(ProposeError::Busy { waiting: waiting as u64 });
        }
        self.batch.bytes += bytes;
        self.batch.proposals.push(proposal);
    }

    /// Puts all proposals that have come in since into the log.
    pub(super) fn flush_batch(&mut self) {
        let mut proposals = std::mem::take(&mut self.batch).proposals;
        if proposals.is_empty() {
            return;
        }
        if !self.consensus.is_leader() {
            // Leadership was lost between their arrival and now.
            for Proposal { payload, reply, forwarding, deadline_ticks } in proposals {
                self.route(LeaderRequest::Propose { payload, reply }, forwarding, deadline_ticks);
            }
            return;
        }
        // Those that have waited for a leader have the earlier deadlines.
        proposals.sort_by_key(|proposal| proposal.deadline_ticks);
        let (payloads, replies): (Vec<_>, Vec<_>) = proposals
            .into_iter()
            .map(|proposal| (proposal.payload, (proposal.reply, proposal.deadline_ticks)))
            .unzip();
        let Ok(mut position) = self.consensus.propose(payloads) else {
            let waiting = self.proposals.len() as u64;
            for (reply, _) in replies {
                reply.refuse(ProposeError::Busy { waiting });
            }
            return;
        };
        for (reply, deadline_ticks) in replies {
            self.proposals.insert(position, reply, deadline_ticks);
            position.index = position.index.next();
        }
    }

    // --- Leadership ---

    pub(super) fn campaign(&mut self, reply: Responder<(), CampaignError>) {
        reply.answer(if self.consensus.is_leader() {
            Err(CampaignError::AlreadyLeader)
        } else if !self.members.is_voter(self.node_id) {
            Err(CampaignError::NotAVoter)
        } else if !self.is_hearing() && self.consensus.campaign() {
            Ok(())
        } else {
            Err(CampaignError::NotReady)
        });
    }

    pub(super) fn demote(
        &mut self,
        term: Term,
        successor: Option<NodeId>,
        reply: Responder<(), DemoteError>,
    ) {
        if !self.consensus.is_leader() || self.consensus.term() != term {
            let role: Role = self.consensus.role();
            let error = DemoteError::NotLeaderInTerm {
                asked: term,
                term: self.consensus.term(),
                role: role.to_string(),
            };
            return reply.answer(Err(error));
        }
        match successor {
            Some(to) if to == self.node_id => reply.answer(Err(TransferError::NoSuccessor.into())),
            Some(to) => self.transfer_leader(Some(to), TransferWaiter::Demote(reply)),
            None => {
                self.flush_batch();
                self.consensus.step_down();
                reply.answer(Ok(()));
            }
        }
    }

    fn transfer_leader(&mut self, to: Option<NodeId>, waiter: TransferWaiter) {
        if let Some(transfer) = &mut self.transfer {
            let pending = transfer.to;
            if to.is_none_or(|to| to == pending) {
                transfer.waiters.push(waiter);
            } else {
                waiter.answer(Err(TransferError::TransferPending { to: pending }));
            }
            return;
        }
        if to == Some(self.node_id) {
            return waiter.answer(Ok(self.node_id));
        }
        match to.map_or_else(|| self.successor(&self.members), Ok).and_then(|to| self.begin_transfer(to)) {
            Ok(transfer) => transfer.waiters.push(waiter),
            Err(error) => waiter.answer(Err(error)),
        }
    }

    /// Begins to hand over to the best successor that is still a voter `after` the change, unless a hand-over is under
    /// way. To whom the change takes the vote from as well would only hand over in turn.
    pub(super) fn hand_over(&mut self, after: &Members) -> Result<(), TransferError> {
        if self.transfer.is_none() {
            let to = self.successor(after)?;
            self.begin_transfer(to)?;
        }
        Ok(())
    }

    /// The most caught-up voter that is alive, and a voter `after` a change as well.
    pub(super) fn successor(&self, after: &Members) -> Result<NodeId, TransferError> {
        let mut candidates = self.consensus.progress();
        let is_voter = |members: &Members, id| {
            members.get(id).is_some_and(|member: &Member| member.role == MemberRole::Voter)
        };
        candidates.retain(|peer| {
            peer.id != self.node_id
                && is_voter(&self.members, peer.id)
                && is_voter(after, peer.id)
                && self.is_alive(peer.id)
        });
        candidates
            .iter()
            .max_by_key(|peer| (!self.hand_overs.unfit.contains(&peer.id), peer.matched))
            .map(|peer| peer.id)
            .ok_or(TransferError::NoSuccessor)
    }

    pub(super) fn begin_transfer(&mut self, to: NodeId) -> Result<&mut Transfer, TransferError> {
        if self.members.get(to).is_none_or(|member| member.role != MemberRole::Voter) {
            return Err(TransferError::NotAVoter { id: to });
        }
        if !self.is_alive(to) && !mutated!(TransfersToTheDead) {
            return Err(TransferError::Unreachable { id: to });
        }
        self.flush_batch();
        self.consensus.transfer_leader(to);
        if self.consensus.transferee() != Some(to) {
            return Err(TransferError::NotAVoter { id: to });
        }
        info!(node = %self.node_id, %to, "handing over leadership");
        // raft-rs gives up after one election timeout; then a leader must be found.
        let deadline_ticks = self.deadline(self.config.election_timeout * 4);
        Ok(self.transfer.insert(Transfer { to, deadline_ticks, waiters: Vec::new() }))
    }

    /// Notices what has become of leadership since the last look.
    pub(super) fn look_at_leadership(&mut self) {
        let leads = self.consensus.is_leader().then(|| self.consensus.term());
        if self.led.is_some() && self.led != leads {
            self.reads.leadership_lost();
            self.membership_work.leadership_lost();
            self.hand_overs = HandOvers::default();
        }
        self.led = leads;
        let Some(Transfer { to, deadline_ticks, .. }) = self.transfer else {
            return;
        };
        let expired = self.now_ticks >= deadline_ticks;
        let outcome = match self.consensus.leader() {
            Some(leader) if leader == to => Ok(to),
            Some(leader) if leader == self.node_id => match self.consensus.transferee() {
                Some(_) if !expired => return,
                _ => Err(TransferError::TimedOut { to }),
            },
            None if !expired => return,
            _ => Err(TransferError::TimedOut { to }),
        };
        let Some(transfer) = self.transfer.take() else {
            return;
        };
        if let Err(error) = &outcome {
            if self.consensus.is_leader() {
                self.note_failed_hand_over(to);
            }
            // Who waited for the hand-over gets its reason; all others go on as soon as a leader is known.
            for parked in self.parked.take_all() {
                match (parked.why, parked.request) {
                    (WhyParked::AfterHandover, LeaderRequest::ChangeMembership { reply, .. }) => {
                        reply.answer(Err(MembershipError::HandoverFailed(error.clone())));
                    }
                    (why, request) => self.parked.push(Parked { request, why, ..parked }),
                }
            }
        }
        for waiter in transfer.waiters {
            waiter.answer(outcome.clone());
        }
    }

    fn note_failed_hand_over(&mut self, to: NodeId) {
        self.hand_overs.pause_until_ticks = self.deadline(self.config.election_timeout * 4);
        let unfit = &self.hand_overs.unfit;
        if self.other_voters().iter().all(|other| unfit.contains(other) || !self.is_alive(*other)) {
            // All have failed: what kept the first of them from it may be over.
            self.hand_overs.unfit.clear();
        }
        self.hand_overs.unfit.insert(to);
    }

    // --- Deadlines and the end ---

    pub(super) fn expire_requests(&mut self) {
        let now = self.now_ticks;
        let of_proposals = if mutated!(ProposalsHaveNoDeadline) { 0 } else { now };
        for reply in self.proposals.take_expired(of_proposals) {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::TimedOut(self.config.propose_timeout)));
        }
        self.expire_membership_requests();
        for parked in self.parked.take_all() {
            if parked.deadline_ticks > now {
                self.parked.push(parked);
            } else {
                // It never came to be proposed.
                match (parked.why, parked.request) {
                    (WhyParked::ChangePending, LeaderRequest::ChangeMembership { reply, .. }) => {
                        reply.answer(Err(MembershipError::ChangePending));
                    }
                    (_, request) => refuse(request, NotServed::NoLeader),
                }
            }
        }
    }

    pub(super) fn refuse_what_waits_for_a_leader(&mut self) {
        for parked in self.parked.take_all() {
            match parked.why {
                WhyParked::LeadershipUnsettled => {
                    refuse(parked.request, NotServed::Stopped(StopReason::Stopping))
                }
                _ => self.parked.push(parked),
            }
        }
    }

    pub(super) fn refuse_all(&mut self, reason: &StopReason) {
        let not_taken = NotServed::Stopped(StopReason::Stopping);
        for proposal in std::mem::take(&mut self.batch).proposals {
            proposal.reply.refuse(StopReason::Stopping.into());
        }
        for reply in self.proposals.take_all() {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::NodeStopped(reason.clone())));
        }
        for waiter in self.membership.take_all() {
            waiter.refuse(reason.clone().into());
        }
        self.membership_work.refuse_all(&reason.clone().into());
        for parked in self.parked.take_all() {
            refuse(parked.request, not_taken.clone());
        }
        for forward in self.next.forward.drain(..) {
            refuse(forward.request, not_taken.clone());
        }
        if let Some(transfer) = self.transfer.take() {
            for waiter in transfer.waiters {
                waiter.answer(Err(reason.clone().into()));
            }
        }
    }
}
