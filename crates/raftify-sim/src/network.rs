//! Messages on their way: how long they take, which are lost, which arrive twice or overtake others, and which links
//! are cut. Answers travel back over the same links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raftify_core::error::{
    MembershipError, ProposeError, ReadError, StopReason, TransferError, UnknownOutcome,
};
use raftify_core::{
    Incarnation, LeaderRequest, LogIndex, LogPosition, NodeId, ProposalReply, RaftMessage, Responder, Sender,
    SnapshotMeta, SnapshotToSend,
};

use crate::invariants::deadlines::Waits;
use crate::schedule::Time;
use crate::simulation::{AnswerQueue, Answered};
use crate::store::Effect;

/// What travels from one node to another.
pub(crate) enum Packet {
    Raft {
        sender: Sender,
        receiver: Option<Incarnation>,
        /// Where the sender says that it is.
        address: Arc<str>,
        messages: Vec<RaftMessage>,
    },
    Snapshot {
        sender: Sender,
        receiver: Option<Incarnation>,
        sent: SnapshotToSend,
        snapshot: SnapshotMeta,
        data: Vec<u8>,
        /// Of the sender: its next one hears of no outcome.
        life: u64,
    },
    Request(LeaderRequest<Reply>),
    ReadRound {
        round: u64,
        /// Of the sender: its next one counts its rounds anew.
        life: u64,
    },
    /// To the life of a node that had asked.
    SnapshotSent {
        sent: SnapshotToSend,
        outcome: Result<(), String>,
        life: u64,
    },
    ReadRoundAnswered {
        round: u64,
        answer: Result<LogIndex, ReadError>,
        life: u64,
    },
    Answer(Deferred),
}

impl Packet {
    /// The same again, where that can happen: a stream of messages may be sent anew.
    pub(crate) fn duplicate(&self) -> Option<Packet> {
        match self {
            Packet::Raft { sender, receiver, address, messages } => Some(Packet::Raft {
                sender: *sender,
                receiver: *receiver,
                address: Arc::clone(address),
                messages: messages.clone(),
            }),
            _ => None,
        }
    }
}

/// An answer on its way back.
pub(crate) struct Deferred(Box<dyn FnOnce(bool) + Send>);

impl Deferred {
    pub(crate) fn arrives(self) {
        (self.0)(true);
    }

    pub(crate) fn breaks(self) {
        (self.0)(false);
    }
}

/// What a client learns of its proposal.
pub(crate) type Proposed = Result<(LogPosition, Effect), ProposeError>;

/// The way back to who proposed.
pub(crate) struct Reply {
    deliver: Option<Box<dyn FnOnce(Proposed) + Send>>,
    /// Somebody waits for the node that has it.
    pub(crate) waits: Option<Waits>,
    /// It came from another node.
    pub(crate) was_forwarded: bool,
}

impl Reply {
    pub(crate) fn new(deliver: impl FnOnce(Proposed) + Send + 'static) -> Reply {
        Reply { deliver: Some(Box::new(deliver)), waits: None, was_forwarded: false }
    }

    pub(crate) fn answer(mut self, answer: Proposed) {
        if let Some(deliver) = self.deliver.take() {
            deliver(answer);
        }
    }
}

impl ProposalReply for Reply {
    fn refuse(self, error: ProposeError) {
        self.answer(Err(error));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(deliver) = self.deliver.take() {
            deliver(Err(ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped))));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

pub(crate) const BROKEN: &str = "the connection broke";

fn unknown() -> UnknownOutcome {
    UnknownOutcome::ConnectionLost(BROKEN.to_owned())
}

/// `request`, forwarded from `origin` to `leader`: its answer travels back.
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
    answers.push(Answered::Travels { from, to, packet: Packet::Answer(Deferred(Box::new(deliver))) });
}

/// A request that never reached the leader, as far as its sender can tell.
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

/// The state of all links.
#[derive(Default)]
pub(crate) struct Network {
    /// Links that deliver nothing, from and to.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes that no message reaches, because none of the others can connect to them.
    pub(crate) hidden: BTreeSet<NodeId>,
    /// When the last message on each link arrives.
    last_arrival: BTreeMap<(NodeId, NodeId), Time>,
    /// Where the sender will hear that its connection broke.
    pub(crate) breaking: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    pub(crate) fn delivers(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to)) && !self.hidden.contains(&to)
    }

    /// The time at which a message arrives behind those that are on their way.
    pub(crate) fn in_order(&mut self, from: NodeId, to: NodeId, at: Time) -> Time {
        let last = self.last_arrival.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }

    /// Whether a message on its way arrives only after `at`.
    pub(crate) fn overtakes(&self, from: NodeId, to: NodeId, at: Time) -> bool {
        self.last_arrival.get(&(from, to)).is_some_and(|last| *last > at)
    }
}
