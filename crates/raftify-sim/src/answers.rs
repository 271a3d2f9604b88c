//! Answers of cores: stored until a step is over; answers to requests of other nodes are sent back over the
//! network.

use std::sync::Arc;

use parking_lot::Mutex;
use raftify_core::error::{
    MembershipError, ProposeError, ReadError, StopReason, TransferError, UnknownOutcome,
};
use raftify_core::{LeaderRequest, LogIndex, Members, MembershipRequest, NodeId, Reservation, Responder};

use crate::coverage::Happened;
use crate::network::{Deferred, Packet};
use crate::reply::{Proposed, Reply};

/// An answer of a core, or of a node that stopped.
pub(crate) enum Answered {
    Proposed {
        number: u64,
        answer: Proposed,
    },
    Read {
        number: u64,
        node: NodeId,
        answer: Result<LogIndex, ReadError>,
    },
    Changed {
        number: u64,
        request: MembershipRequest,
        answer: Result<Members, MembershipError>,
    },
    Reserved {
        number: u64,
        answer: Result<Reservation, MembershipError>,
    },
    /// An answer of which only success or failure matters.
    Done {
        number: u64,
        what: Option<Happened>,
        succeeded: bool,
    },
    /// It is for another node.
    Travels {
        from: NodeId,
        to: NodeId,
        packet: Packet,
    },
}

/// The answers of a step, until the step is over.
#[derive(Clone, Default)]
pub(crate) struct AnswerQueue(Arc<Mutex<Vec<Answered>>>);

impl AnswerQueue {
    pub(crate) fn push(&self, answered: Answered) {
        self.0.lock().push(answered);
    }

    /// Whether request `number` was answered in this step.
    pub(crate) fn has(&self, number: u64) -> bool {
        let answers = self.0.lock();
        answers
            .iter()
            .any(|answered| matches!(answered, Answered::Done { number: done, .. } if *done == number))
    }

    pub(crate) fn take(&self) -> Vec<Answered> {
        std::mem::take(&mut *self.0.lock())
    }
}

pub(crate) const BROKEN: &str = "the connection broke";

fn unknown() -> UnknownOutcome {
    UnknownOutcome::ConnectionLost(BROKEN.to_owned())
}

/// `request`, forwarded from `origin` to `leader`: its answer is sent back.
pub(crate) fn forwarded(
    request: LeaderRequest<Reply>,
    origin: NodeId,
    leader: NodeId,
    answers: &AnswerQueue,
) -> LeaderRequest<Reply> {
    let back = (leader, origin);
    match request {
        LeaderRequest::Propose { payload, reply } => {
            let answers = answers.clone();
            let mut reply = Reply::new(move |answer| {
                travel(&answers, back, move |arrived| {
                    let lost = Err(ProposeError::Unknown(unknown()));
                    reply.answer(if arrived { answer } else { lost });
                });
            });
            reply.was_forwarded = true;
            LeaderRequest::Propose { payload, reply }
        }
        LeaderRequest::ChangeMembership { request, reply } => {
            let reply = carried(reply, back, answers, || MembershipError::Unknown(unknown()));
            LeaderRequest::ChangeMembership { request, reply }
        }
        LeaderRequest::ReserveNodeId { reply } => {
            let reply = carried(reply, back, answers, || MembershipError::Unknown(unknown()));
            LeaderRequest::ReserveNodeId { reply }
        }
        LeaderRequest::TransferLeader { to, reply } => {
            let reply = carried(reply, back, answers, || TransferError::ConnectionLost(BROKEN.to_owned()));
            LeaderRequest::TransferLeader { to, reply }
        }
    }
}

fn carried<T: Send + 'static, E: From<StopReason> + Send + 'static>(
    reply: Responder<T, E>,
    back: (NodeId, NodeId),
    answers: &AnswerQueue,
    lost: fn() -> E,
) -> Responder<T, E> {
    let answers = answers.clone();
    Responder::new(move |answer| {
        travel(&answers, back, move |arrived| reply.answer(if arrived { answer } else { Err(lost()) }));
    })
}

fn travel(answers: &AnswerQueue, (from, to): (NodeId, NodeId), deliver: impl FnOnce(bool) + Send + 'static) {
    answers.push(Answered::Travels { from, to, packet: Packet::Answer(Deferred::new(deliver)) });
}

/// A request that never reached the leader, as far as its sender knows.
pub(crate) fn break_off(request: LeaderRequest<Reply>) {
    match request {
        LeaderRequest::Propose { reply, .. } => reply.answer(Err(ProposeError::Unknown(unknown()))),
        LeaderRequest::ChangeMembership { reply, .. } => {
            reply.answer(Err(MembershipError::Unknown(unknown())));
        }
        LeaderRequest::ReserveNodeId { reply } => reply.answer(Err(MembershipError::Unknown(unknown()))),
        LeaderRequest::TransferLeader { reply, .. } => {
            reply.answer(Err(TransferError::ConnectionLost(BROKEN.to_owned())));
        }
    }
}
