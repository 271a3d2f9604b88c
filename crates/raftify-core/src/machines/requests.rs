//! Requests for the leader that this node has accepted and not yet answered: proposals that will be appended
//! to the log together, proposals that wait for their entry to be applied, and requests that wait until they
//! can be served.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::config::Config;
use crate::error::{LeaderHint, MembershipError, ProposeError, StopReason, TransferError, UnknownOutcome};
use crate::machines::pending_replies::PendingReplies;
use crate::members::{Members, MembershipRequest};
use crate::request::{Forwarding, LeaderRequest, ProposalReply, Responder};
use crate::types::LogPosition;
use crate::verb_error::{Refusal, VerbError};

/// See the module.
pub(crate) struct Requests<R> {
    /// Proposals that are in the log.
    proposals: PendingReplies<R>,
    batch: Batch<R>,
    deferred: Deferred<R>,
}

/// Proposals that will be appended to the log together, with one call of raft-rs.
struct Batch<R> {
    proposals: Vec<Proposal<R>>,
    bytes: u64,
    /// The tick in which its first proposal arrived.
    since_ticks: u64,
}

/// A proposal that is not yet in the log.
pub(crate) struct Proposal<R> {
    pub(crate) payload: Bytes,
    pub(crate) reply: R,
    pub(crate) forwarding: Forwarding,
    pub(crate) deadline_ticks: u64,
}

/// Requests that cannot be served yet, in order of arrival.
struct Deferred<R> {
    requests: VecDeque<DeferredRequest<R>>,
    /// The bytes of the entries to be proposed.
    bytes: u64,
}

/// A request that this node has accepted and cannot serve yet, or tries to serve again.
pub(crate) struct DeferredRequest<R> {
    pub(crate) request: LeaderRequest<R>,
    pub(crate) forwarding: Forwarding,
    pub(crate) deadline_ticks: u64,
    pub(crate) until: Until,
}

/// A request to change the membership, with the data needed to defer it.
pub(crate) struct ChangeRequest {
    pub(crate) request: MembershipRequest,
    pub(crate) reply: Responder<Members, MembershipError>,
    pub(crate) forwarding: Forwarding,
    pub(crate) deadline_ticks: u64,
    /// When it was first found to need voters that are alive: now, if it is new.
    pub(crate) since_ticks: u64,
}

impl ChangeRequest {
    pub(crate) fn deferred<R>(self, until: Until) -> DeferredRequest<R> {
        let ChangeRequest { request, reply, forwarding, deadline_ticks, .. } = self;
        let request = LeaderRequest::ChangeMembership { request, reply };
        DeferredRequest { request, forwarding, deadline_ticks, until }
    }
}

/// The condition that a deferred request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// A leader is known, no leadership transfer is in progress, and a new leader has applied the entries
    /// that it found.
    LeadershipIsSettled,
    /// Leadership is transferred: the change removes the vote of this leader.
    Transferred,
    /// No other change of the membership is pending.
    ChangeIsDone,
    /// Enough of the voters after the change have responded.
    VotersAreAlive {
        /// When the change was first considered.
        since_ticks: u64,
    },
}

/// Why a request for the leader is not served on this node, whatever its kind.
#[derive(Clone, Debug)]
pub(crate) enum NotServed {
    NoLeader,
    NotLeader(LeaderHint),
    Busy { waiting: u64 },
    Stopped(StopReason),
}

impl Refusal for NotServed {
    fn error<E: VerbError>(self) -> E {
        match self {
            NotServed::NoLeader => E::no_leader(),
            NotServed::NotLeader(leader) => E::not_leader(leader),
            NotServed::Busy { waiting } => E::busy(waiting).unwrap_or_else(E::no_leader),
            NotServed::Stopped(reason) => reason.into(),
        }
    }
}

impl<R> Default for Batch<R> {
    fn default() -> Self {
        Batch { proposals: Vec::new(), bytes: 0, since_ticks: 0 }
    }
}

impl<R> Default for Deferred<R> {
    fn default() -> Self {
        Deferred { requests: VecDeque::new(), bytes: 0 }
    }
}

impl<R> Deferred<R> {
    fn push(&mut self, deferred: DeferredRequest<R>) {
        self.bytes += deferred.request.payload_bytes();
        self.requests.push_back(deferred);
    }
}

impl<R: ProposalReply> Requests<R> {
    pub(crate) fn new() -> Requests<R> {
        Requests { batch: Batch::default(), proposals: PendingReplies::new(), deferred: Deferred::default() }
    }

    /// How many requests are not answered yet.
    pub(crate) fn len(&self) -> usize {
        self.proposals.len() + self.batch.proposals.len() + self.deferred.requests.len()
    }

    // --- Proposals ---

    /// How many proposals are in the log and wait to be applied.
    pub(crate) fn proposals_in_log(&self) -> usize {
        self.proposals.len()
    }

    /// How many proposals there are, in the log or about to be.
    pub(crate) fn proposals(&self) -> usize {
        self.proposals.len() + self.batch.proposals.len()
    }

    /// Whether a proposal of this size fits in addition to those that wait, of which `uncommitted_bytes` are
    /// in the log. One proposal always fits.
    pub(crate) fn has_room(&self, bytes: u64, uncommitted_bytes: u64, config: &Config) -> bool {
        let waiting_bytes = uncommitted_bytes + self.batch.bytes;
        self.proposals() < config.proposals_in_flight_max
            && (waiting_bytes == 0 || waiting_bytes + bytes <= config.uncommitted_bytes_max)
    }

    pub(crate) fn add_to_batch(&mut self, proposal: Proposal<R>, now_ticks: u64) {
        if self.batch.proposals.is_empty() {
            self.batch.since_ticks = now_ticks;
        }
        self.batch.bytes += proposal.payload.len() as u64;
        self.batch.proposals.push(proposal);
    }

    /// Whether the batch may still grow: it has begun in this tick, and has fewer bytes than this.
    pub(crate) fn may_batch_grow(&self, now_ticks: u64, bytes_max: u64) -> bool {
        self.batch.since_ticks == now_ticks && self.batch.bytes < bytes_max
    }

    pub(crate) fn take_batch(&mut self) -> Vec<Proposal<R>> {
        std::mem::take(&mut self.batch).proposals
    }

    /// The proposal is in the log.
    pub(crate) fn add_pending(&mut self, position: LogPosition, reply: R, deadline_ticks: u64) {
        self.proposals.insert(position, reply, deadline_ticks);
    }

    /// The entry at `position` is delivered. Returns the proposal that waits for exactly this entry, and
    /// refuses those that wait for another entry at this index.
    pub(crate) fn resolve(&mut self, position: LogPosition) -> Option<R> {
        let resolved = self.proposals.resolve(position);
        for reply in resolved.superseded {
            reply.refuse(ProposeError::NotApplied { index: position.index });
        }
        resolved.applied
    }

    /// A snapshot covers everything up to `position`.
    pub(crate) fn cover(&mut self, position: LogPosition) {
        for reply in self.proposals.take_covered(position.index) {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::CoveredBySnapshot));
        }
    }

    // --- Deferred requests ---

    /// Keeps a request until it can be served, or refuses it if the limit of deferred requests is reached.
    /// One request always fits.
    pub(crate) fn defer(&mut self, deferred: DeferredRequest<R>, config: &Config) {
        let waiting = self.deferred.requests.len();
        let bytes = self.deferred.bytes + deferred.request.payload_bytes();
        if waiting >= config.proposals_in_flight_max || (waiting > 0 && bytes > config.uncommitted_bytes_max)
        {
            return deferred.request.refuse(NotServed::Busy { waiting: waiting as u64 });
        }
        self.deferred.push(deferred);
    }

    pub(crate) fn take_deferred(&mut self) -> VecDeque<DeferredRequest<R>> {
        std::mem::take(&mut self.deferred).requests
    }

    /// A leadership transfer has failed. The changes that waited for it get the reason; all others continue
    /// to wait.
    pub(crate) fn transfer_failed(&mut self, error: &TransferError) {
        for deferred in self.take_deferred() {
            match (deferred.until, deferred.request) {
                (Until::Transferred, LeaderRequest::ChangeMembership { reply, .. }) => {
                    reply.answer(Err(MembershipError::TransferFailed(error.clone())));
                }
                (_, request) => self.deferred.push(DeferredRequest { request, ..deferred }),
            }
        }
    }

    /// This node is to stop and knows no leader: another node may find one earlier.
    pub(crate) fn refuse_what_waits_for_a_leader(&mut self) {
        for deferred in self.take_deferred() {
            match deferred.until {
                Until::LeadershipIsSettled => {
                    deferred.request.refuse(NotServed::Stopped(StopReason::Stopping));
                }
                _ => self.deferred.push(deferred),
            }
        }
    }

    // --- Deadlines and shutdown ---

    /// Answers the requests whose deadline has passed.
    pub(crate) fn expire(&mut self, now_ticks: u64, config: &Config) {
        let of_proposals = if mutated!(ProposalsHaveNoDeadline) { 0 } else { now_ticks };
        for reply in self.proposals.take_expired(of_proposals) {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::TimedOut(config.propose_timeout)));
        }
        for deferred in self.take_deferred() {
            if deferred.deadline_ticks > now_ticks {
                self.deferred.push(deferred);
                continue;
            }
            // It was never proposed.
            match (deferred.until, deferred.request) {
                (Until::ChangeIsDone, LeaderRequest::ChangeMembership { reply, .. }) => {
                    reply.answer(Err(MembershipError::ChangePending));
                }
                (_, request) => request.refuse(NotServed::NoLeader),
            }
        }
    }

    /// Answers all requests. Entries in the log may still be applied.
    pub(crate) fn stop(&mut self, reason: &StopReason) {
        for proposal in self.take_batch() {
            proposal.reply.refuse(StopReason::Stopping.into());
        }
        for reply in self.proposals.take_all() {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::NodeStopped(reason.clone())));
        }
        for deferred in self.take_deferred() {
            deferred.request.refuse(NotServed::Stopped(StopReason::Stopping));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;
    use crate::members::{MemberChange, MembershipChange, MembershipCommand};
    use crate::types::NodeId;

    struct Reply(u64, Sender<(u64, ProposeError)>);

    impl ProposalReply for Reply {
        fn refuse(self, error: ProposeError) {
            self.1.send((self.0, error)).unwrap();
        }
    }

    fn deferred(number: u64, answers: &Sender<(u64, ProposeError)>) -> DeferredRequest<Reply> {
        let reply = Reply(number, answers.clone());
        DeferredRequest {
            request: LeaderRequest::Propose { payload: Bytes::from_static(b"12345"), reply },
            forwarding: Forwarding::Allowed,
            deadline_ticks: 10 * number,
            until: Until::LeadershipIsSettled,
        }
    }

    fn change(until: Until) -> (DeferredRequest<Reply>, Receiver<MembershipError>) {
        let (answered, answer) = mpsc::channel();
        let reply = Responder::new(move |outcome: Result<_, MembershipError>| {
            answered.send(outcome.unwrap_err()).unwrap();
        });
        let change = MembershipChange::one(MemberChange::Remove(NodeId::FIRST));
        let command = MembershipCommand::Change(change);
        let request = MembershipRequest { command, expected: None, force: false };
        let request = LeaderRequest::ChangeMembership { request, reply };
        (DeferredRequest { request, forwarding: Forwarding::Allowed, deadline_ticks: 5, until }, answer)
    }

    #[test]
    fn deferred_requests_are_bounded_in_number_and_in_bytes_and_one_always_has_room() {
        let (answers, answer) = mpsc::channel();
        let mut requests = Requests::new();
        let small = Config { uncommitted_bytes_max: 4, ..Config::default() };
        requests.defer(deferred(1, &answers), &small);
        assert!(answer.try_recv().is_err());
        requests.defer(deferred(2, &answers), &small);
        assert!(matches!(answer.try_recv(), Ok((2, ProposeError::Busy { waiting: 1 }))));
        let few = Config { proposals_in_flight_max: 1, ..Config::default() };
        requests.defer(deferred(3, &answers), &few);
        assert!(matches!(answer.try_recv(), Ok((3, ProposeError::Busy { waiting: 1 }))));
        assert_eq!(requests.len(), 1);
    }

    #[test]
    fn a_deferred_request_whose_deadline_passes_did_not_happen_and_the_others_keep_their_order() {
        let (answers, answer) = mpsc::channel();
        let mut requests = Requests::new();
        let config = Config::default();
        for number in [2, 1, 3] {
            requests.defer(deferred(number, &answers), &config);
        }
        requests.expire(10, &config);
        assert!(matches!(answer.try_recv(), Ok((1, ProposeError::NoLeader))));
        let left: Vec<u64> =
            requests.take_deferred().iter().map(|deferred| deferred.deadline_ticks).collect();
        assert_eq!(left, [20, 30]);
    }

    #[test]
    fn a_failed_transfer_is_the_answer_only_to_changes_that_waited_for_it() {
        let (answers, answer) = mpsc::channel();
        let mut requests = Requests::new();
        let (waits, failed) = change(Until::Transferred);
        let (other, pending) = change(Until::ChangeIsDone);
        let config = Config::default();
        requests.defer(waits, &config);
        requests.defer(other, &config);
        requests.defer(deferred(1, &answers), &config);
        requests.transfer_failed(&TransferError::NoSuccessor);
        assert!(matches!(failed.try_recv(), Ok(MembershipError::TransferFailed(_))));
        assert!(pending.try_recv().is_err() && answer.try_recv().is_err());
        requests.expire(5, &config);
        assert!(matches!(pending.try_recv(), Ok(MembershipError::ChangePending)));
        assert_eq!(requests.len(), 1);
    }

    #[test]
    fn a_batch_is_bounded_and_one_proposal_always_has_room() {
        let (answers, _answer) = mpsc::channel();
        let mut requests = Requests::new();
        let config = Config { uncommitted_bytes_max: 8, proposals_in_flight_max: 2, ..Config::default() };
        assert!(requests.has_room(100, 0, &config), "nothing waits");
        assert!(!requests.has_room(100, 1, &config), "some of it is in the log");
        for number in 1..=2 {
            assert!(requests.has_room(4, 0, &config));
            let (payload, reply) = (Bytes::from_static(b"1234"), Reply(number, answers.clone()));
            let forwarding = Forwarding::Allowed;
            requests.add_to_batch(Proposal { payload, reply, forwarding, deadline_ticks: 1 }, 0);
        }
        assert!(!requests.has_room(0, 0, &config), "two are as many as may be");
        assert_eq!(requests.take_batch().len(), 2);
        assert_eq!(requests.proposals(), 0);
    }
}
