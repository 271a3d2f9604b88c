//! The leadership of this node: the term in which it leads, the transfer of its leadership, and failed
//! transfers.

use std::collections::BTreeSet;

use crate::error::{DemoteError, StopReason, TransferError};
use crate::machines::own_disk::OwnDisk;
use crate::machines::storage_room::StorageRoom;
use crate::request::Responder;
use crate::status::PeerProgress;
use crate::types::{NodeId, Term};

/// See the module.
#[derive(Default)]
pub(crate) struct Leadership {
    /// The term in which this node led at the last call.
    led: Option<Term>,
    transfer: Option<Transfer>,
    /// Nodes that did not take over, for instance because their state machine restores a snapshot: the
    /// leader tries others first.
    unfit: BTreeSet<NodeId>,
    /// The leader begins no further transfer before this tick, unless one is requested: requests wait during
    /// each.
    pause_until_ticks: u64,
    pub(crate) own_disk: OwnDisk,
    pub(crate) storage_room: StorageRoom,
}

/// A transfer of leadership that this leader has begun.
struct Transfer {
    to: NodeId,
    deadline_ticks: u64,
    waiters: Vec<TransferWaiter>,
}

/// A request that waits for the outcome of a transfer.
#[derive(Debug)]
pub(crate) enum TransferWaiter {
    Transfer(Responder<NodeId, TransferError>),
    Demote(Responder<(), DemoteError>),
}

impl TransferWaiter {
    pub(crate) fn answer(self, outcome: Result<NodeId, TransferError>) {
        match self {
            TransferWaiter::Transfer(reply) => reply.answer(outcome),
            TransferWaiter::Demote(reply) => reply.answer(outcome.map(|_| ()).map_err(DemoteError::Transfer)),
        }
    }
}

/// A completed or failed transfer.
pub(crate) struct EndedTransfer {
    pub(crate) to: NodeId,
    pub(crate) outcome: Result<NodeId, TransferError>,
    waiters: Vec<TransferWaiter>,
}

impl EndedTransfer {
    pub(crate) fn answer(self) {
        for waiter in self.waiters {
            waiter.answer(self.outcome.clone());
        }
    }
}

impl Leadership {
    /// Records the term in which this node leads now, if it does. Returns whether it led before, and no
    /// longer leads in that term.
    pub(crate) fn observe(&mut self, leads: Option<Term>) -> bool {
        let is_lost = self.led.is_some() && self.led != leads;
        self.led = leads;
        if is_lost {
            self.unfit.clear();
            self.pause_until_ticks = 0;
        }
        is_lost
    }

    pub(crate) fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// A transfer has begun.
    pub(crate) fn begin_transfer(&mut self, to: NodeId, deadline_ticks: u64) {
        self.transfer = Some(Transfer { to, deadline_ticks, waiters: Vec::new() });
    }

    /// Waits for the transfer in progress, if its target is this node or the request names none.
    pub(crate) fn join_transfer(&mut self, to: Option<NodeId>, waiter: TransferWaiter) {
        match &mut self.transfer {
            Some(transfer) if to.is_none_or(|to| to == transfer.to) => transfer.waiters.push(waiter),
            Some(Transfer { to, .. }) => waiter.answer(Err(TransferError::TransferPending { to: *to })),
            None => waiter.answer(Err(TransferError::NoLeader)),
        }
    }

    /// The transfer in progress, if it has ended: another node leads, consensus has cancelled it, or the
    /// deadline has passed.
    pub(crate) fn take_ended(
        &mut self,
        own_id: NodeId,
        leader: Option<NodeId>,
        transferee: Option<NodeId>,
        now_ticks: u64,
    ) -> Option<EndedTransfer> {
        let Transfer { to, deadline_ticks, .. } = *self.transfer.as_ref()?;
        let is_over = now_ticks >= deadline_ticks;
        let is_pending = match leader {
            Some(leader) if leader == own_id => transferee.is_some(),
            Some(_) => false,
            None => true,
        };
        if is_pending && !is_over {
            return None;
        }
        let outcome = if leader == Some(to) { Ok(to) } else { Err(TransferError::TimedOut { to }) };
        let waiters = self.transfer.take()?.waiters;
        Some(EndedTransfer { to, outcome, waiters })
    }

    /// `to` did not take over. `others` are the voters that could: once all of them have failed, the leader
    /// may try each again, because the obstacle of the first may be gone.
    pub(crate) fn note_failed(
        &mut self,
        to: NodeId,
        mut others: impl Iterator<Item = NodeId>,
        pause_until_ticks: u64,
    ) {
        self.pause_until_ticks = pause_until_ticks;
        if others.all(|other| self.unfit.contains(&other)) {
            self.unfit.clear();
        }
        self.unfit.insert(to);
    }

    /// Whether a transfer that was not requested must wait, because one has failed.
    pub(crate) fn is_paused(&self, now_ticks: u64) -> bool {
        now_ticks < self.pause_until_ticks
    }

    /// The most caught-up one; candidates that have failed to take over count only if there is no other.
    pub(crate) fn best_successor(&self, candidates: &[PeerProgress]) -> Result<NodeId, TransferError> {
        candidates
            .iter()
            .max_by_key(|peer| (!self.unfit.contains(&peer.id), peer.matched))
            .map(|peer| peer.id)
            .ok_or(TransferError::NoSuccessor)
    }

    pub(crate) fn stop(&mut self, reason: &StopReason) {
        if let Some(transfer) = self.transfer.take() {
            for waiter in transfer.waiters {
                waiter.answer(Err(reason.clone().into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::status::ReplicationState;
    use crate::types::LogIndex;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn peer(id: u64, matched: u64) -> PeerProgress {
        let (matched, next) = (LogIndex(matched), LogIndex(matched + 1));
        let state = ReplicationState::Replicate;
        PeerProgress { id: node(id), matched, next, state, recently_active: true }
    }

    #[test]
    fn a_transfer_ends_when_another_node_leads_when_consensus_gives_up_or_at_its_deadline() {
        let (own, to, third) = (node(1), node(2), node(3));
        let ended = |leader, transferee, now| {
            let mut leadership = Leadership::default();
            leadership.begin_transfer(to, 10);
            leadership.take_ended(own, leader, transferee, now).map(|ended| ended.outcome)
        };
        let timed_out = Some(Err(TransferError::TimedOut { to }));
        assert_eq!(ended(Some(own), Some(to), 9), None);
        assert_eq!(ended(None, None, 9), None);
        assert_eq!(ended(Some(to), None, 9), Some(Ok(to)));
        assert_eq!(ended(Some(to), None, 10), Some(Ok(to)));
        assert_eq!(ended(Some(third), None, 9), timed_out);
        assert_eq!(ended(Some(own), None, 9), timed_out, "consensus has given up");
        assert_eq!(ended(Some(own), Some(to), 10), timed_out);
        assert_eq!(ended(None, None, 10), timed_out);
    }

    #[test]
    fn requests_for_the_same_transfer_share_its_outcome_and_others_are_refused() {
        let (answered, answer) = mpsc::channel();
        let waiter = || {
            let answered = answered.clone();
            TransferWaiter::Transfer(Responder::new(move |outcome| answered.send(outcome).unwrap()))
        };
        let mut leadership = Leadership::default();
        leadership.begin_transfer(node(2), 10);
        leadership.join_transfer(None, waiter());
        leadership.join_transfer(Some(node(2)), waiter());
        leadership.join_transfer(Some(node(3)), waiter());
        assert_eq!(answer.try_recv(), Ok(Err(TransferError::TransferPending { to: node(2) })));
        leadership.take_ended(node(1), Some(node(2)), None, 3).unwrap().answer();
        assert_eq!([answer.try_recv(), answer.try_recv()], [Ok(Ok(node(2))), Ok(Ok(node(2)))]);
        assert!(!leadership.is_transferring());
    }

    #[test]
    fn a_node_that_did_not_take_over_is_tried_again_after_all_others() {
        let mut leadership = Leadership::default();
        let peers = [peer(2, 9), peer(3, 7)];
        let best = |leadership: &Leadership| leadership.best_successor(&peers).unwrap();
        let others = || [node(2), node(3)].into_iter();
        assert_eq!(best(&leadership), node(2), "the most caught-up");
        leadership.note_failed(node(2), others(), 5);
        assert!(leadership.is_paused(4) && !leadership.is_paused(5));
        assert_eq!(best(&leadership), node(3));
        leadership.note_failed(node(3), others(), 9);
        assert_eq!(best(&leadership), node(2), "all have failed");
        leadership.note_failed(node(2), others(), 9);
        assert_eq!(best(&leadership), node(3), "the failures are counted anew");
    }

    #[test]
    fn what_a_leader_knows_of_failed_transfers_is_forgotten_with_its_leadership() {
        let mut leadership = Leadership::default();
        assert!(!leadership.observe(Some(Term(1))));
        leadership.note_failed(node(2), std::iter::once(node(2)), 100);
        assert!(!leadership.observe(Some(Term(1))) && leadership.is_paused(1));
        assert!(leadership.observe(Some(Term(3))), "it has led in another term");
        assert!(!leadership.is_paused(1));
        assert!(leadership.observe(None) && !leadership.observe(None));
    }
}
