//! Requests that only a leader can serve: they are served, forwarded, deferred or refused.

use std::time::Duration;

use super::RaftNodeCore;
use crate::error::{ProposeError, StopReason};
use crate::machines::{
    ChangeRequest, DeferredRequest, MembershipWaiter, NotServed, Proposal, TransferWaiter, Until,
};
use crate::members::MemberRecord;
use crate::request::{Forwarding, LeaderRequest, ProposalReply};
use crate::turn::Forward;
use crate::types::NodeId;

/// With fewer entries under way, a batch would not save as much as the wait for it costs: measured with 64 and
/// with 256 clients.
const UNSETTLED_ENTRIES_MAX: u64 = 64;

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn take_request(
        &mut self,
        request: LeaderRequest<R>,
        forwarding: Forwarding,
        within: Duration,
    ) {
        if self.lifecycle.is_stopping() && forwarding != Forwarding::Never {
            return request.refuse(NotServed::Stopped(StopReason::Stopping));
        }
        let timeout = match &request {
            LeaderRequest::Propose { .. } => self.node.config().propose_timeout,
            _ => self.node.config().membership_timeout,
        };
        let deadline_ticks = self.node.deadline(timeout.min(within));
        let until = Until::LeadershipIsSettled;
        self.route(DeferredRequest { request, forwarding, deadline_ticks, until });
    }

    /// Routes a request that this node has accepted.
    fn route(&mut self, taken: DeferredRequest<R>) {
        let is_settled = !self.leadership.is_transferring();
        if self.consensus.is_leader() {
            if !is_settled && !matches!(taken.request, LeaderRequest::TransferLeader { .. }) {
                self.defer(taken, Until::LeadershipIsSettled);
            } else if self.lifecycle.is_stopping() {
                // The node that forwarded it asks again when another leader is known.
                taken.request.refuse(NotServed::Stopped(StopReason::Stopping));
            } else {
                self.serve(taken);
            }
        } else if let Some(leader) = self.status().leader_hint() {
            match taken.forwarding {
                Forwarding::Allowed | Forwarding::IfLeaderIsKnown => self.forward(leader.id, taken.request),
                Forwarding::Never if mutated!(ForwardsForEver) => self.forward(leader.id, taken.request),
                Forwarding::Never => taken.request.refuse(NotServed::NotLeader(leader)),
            }
        } else if !is_settled || (taken.forwarding == Forwarding::Allowed && !mutated!(NoLeaderIsAnAnswer)) {
            self.defer(taken, Until::LeadershipIsSettled);
        } else {
            // The node that forwarded it waits itself.
            taken.request.refuse(NotServed::NoLeader);
        }
    }

    fn forward(&mut self, to: NodeId, request: LeaderRequest<R>) {
        self.pipeline.next().forward.push(Forward { to, request });
    }

    pub(super) fn defer(&mut self, taken: DeferredRequest<R>, until: Until) {
        self.requests.defer(DeferredRequest { until, ..taken }, self.node.config());
    }

    /// Retries every deferred request, once leadership is settled.
    pub(super) fn retry_deferred(&mut self) {
        if self.leadership.is_transferring() || self.consensus.leader().is_none() {
            return;
        }
        for deferred in self.requests.take_deferred() {
            let forwarding = match deferred.until {
                // The request may be forwarded to the new leader although it was forwarded to this node.
                Until::Transferred => Forwarding::Allowed,
                Until::LeadershipIsSettled | Until::ChangeIsDone | Until::VotersAreAlive { .. } => {
                    deferred.forwarding
                }
            };
            self.route(DeferredRequest { forwarding, ..deferred });
        }
    }

    fn serve(&mut self, taken: DeferredRequest<R>) {
        let DeferredRequest { request, forwarding, deadline_ticks, until } = taken;
        match request {
            LeaderRequest::Propose { payload, reply } => {
                self.add_to_batch(Proposal { payload, reply, forwarding, deadline_ticks });
            }
            LeaderRequest::ChangeMembership { request, reply } => {
                let since_ticks = match until {
                    Until::VotersAreAlive { since_ticks } => since_ticks,
                    _ => self.node.now(),
                };
                let change = ChangeRequest { request, reply, forwarding, deadline_ticks, since_ticks };
                self.change_membership(change);
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
        let config = self.node.config();
        let (bytes, limit) = (proposal.payload.len() as u64, config.entry_bytes_max);
        if bytes > limit {
            return proposal.reply.refuse(ProposeError::TooLarge { bytes, limit });
        }
        if let Err(refusal) = self.check_storage_room() {
            return proposal.reply.refuse(refusal);
        }
        if !self.requests.has_room(bytes, self.consensus.uncommitted_bytes(), config)
            || self.pipeline.unwritten_bytes() > config.uncommitted_bytes_max
            || self.delivery.unapplied_bytes() > config.unapplied_bytes_max
        {
            let waiting = self.requests.proposals() as u64;
            return proposal.reply.refuse(ProposeError::Busy { waiting });
        }
        self.requests.add_to_batch(proposal, self.node.now());
    }

    /// Whether the proposals that have arrived wait for more. While many entries of the log are neither
    /// durable here nor committed, further ones become one batch, with one message to each follower, instead
    /// of one for each time the raft loop woke. A slow disk of this leader does not hold them up for longer
    /// than the followers take, nor slow followers for longer than the disk takes, nor both for longer than
    /// a tick.
    fn holds_batch(&self) -> bool {
        let settled = self.consensus.durable().max(self.consensus.commit());
        self.consensus.is_leader()
            && self.consensus.last().index.0.saturating_sub(settled.0) >= UNSETTLED_ENTRIES_MAX
            && (self.requests.may_batch_grow(self.node.now(), self.node.config().message_bytes_max)
                || mutated!(BatchWaitsForEver))
    }

    /// Appends the proposals that have arrived to the log, unless they wait for more.
    pub(super) fn flush_batch(&mut self) {
        if self.holds_batch() {
            return;
        }
        let mut proposals = self.requests.take_batch();
        if proposals.is_empty() {
            return;
        }
        if !self.consensus.is_leader() || self.leadership.is_transferring() {
            // Leadership was lost after their arrival, or is being transferred.
            for Proposal { payload, reply, forwarding, deadline_ticks } in proposals {
                let (request, until) =
                    (LeaderRequest::Propose { payload, reply }, Until::LeadershipIsSettled);
                self.route(DeferredRequest { request, forwarding, deadline_ticks, until });
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
            let waiting = self.requests.proposals_in_log() as u64;
            for (reply, _) in replies {
                reply.refuse(ProposeError::Busy { waiting });
            }
            return;
        };
        for (reply, deadline_ticks) in replies {
            self.requests.add_pending(position, reply, deadline_ticks);
            position.index = position.index.next();
        }
    }

    // --- Deadlines and shutdown ---

    pub(super) fn expire_requests(&mut self) {
        let (now, config) = (self.node.now(), self.node.config());
        self.requests.expire(now, config);
        self.membership.expire(now, config.membership_timeout);
    }

    pub(super) fn refuse_all(&mut self, reason: &StopReason) {
        self.requests.stop(reason);
        self.membership.stop(reason);
        for forward in self.pipeline.next().forward.drain(..) {
            forward.request.refuse(NotServed::Stopped(StopReason::Stopping));
        }
        self.leadership.stop(reason);
    }
}
