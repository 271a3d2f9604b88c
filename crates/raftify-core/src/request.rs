//! What a core can be asked, by this node's user and by other nodes. Each request carries its own reply channel and
//! gets exactly one answer, also when the node stops.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{
    CampaignError, DemoteError, InstallError, JoinError, MembershipError, ProposeError, ReadError,
    SnapshotError, StopReason, TransferError,
};
use crate::members::{Members, MembershipRequest, Sender};
use crate::message::RaftMessage;
use crate::status::Inspection;
use crate::storage::SnapshotMeta;
use crate::types::{Identity, Incarnation, LogIndex, LogPosition, NodeId, Term};

/// The way back to who asked. Dropped without an answer, it answers that the node has stopped.
pub struct Responder<T, E: From<StopReason>> {
    deliver: Option<Deliver<T, E>>,
}

type Deliver<T, E> = Box<dyn FnOnce(Result<T, E>) + Send>;

impl<T, E: From<StopReason>> Responder<T, E> {
    /// `deliver` is called exactly once. It must not block.
    pub fn new(deliver: impl FnOnce(Result<T, E>) + Send + 'static) -> Self {
        Responder { deliver: Some(Box::new(deliver)) }
    }

    /// Gives the answer.
    pub fn answer(mut self, answer: Result<T, E>) {
        if let Some(deliver) = self.deliver.take() {
            deliver(answer);
        }
    }
}

impl<T, E: From<StopReason>> Drop for Responder<T, E> {
    fn drop(&mut self) {
        if mutated!(DroppedMeansSilence) {
            return std::mem::forget(self.deliver.take());
        }
        if let Some(deliver) = self.deliver.take() {
            deliver(Err(StopReason::Stopped.into()));
        }
    }
}

impl<T, E: From<StopReason>> fmt::Debug for Responder<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Responder")
    }
}

/// The way back to who proposed. The core only ever refuses; success comes from the state machine's owner, which
/// alone knows the type of the reply. Dropped without an answer, it must answer that the outcome is unknown
/// ([`UnknownOutcome::NodeStopped`](crate::error::UnknownOutcome::NodeStopped)).
pub trait ProposalReply: Send + 'static {
    /// The proposal was refused, or its outcome is unknown.
    fn refuse(self, error: ProposeError);
}

/// A request that only the leader can serve. On any other node it is forwarded once, or refused with the leader's id.
#[derive(Debug)]
pub enum LeaderRequest<R> {
    /// Replicate an entry.
    Propose {
        /// In the user's encoding.
        payload: Bytes,
        /// For the state machine's reply.
        reply: R,
    },
    /// Change voters or learners. Answered with the membership once it is in force: for several steps with
    /// [`LeaveJoint::Automatically`](crate::members::LeaveJoint::Automatically), once the joint configuration is left.
    ChangeMembership {
        /// What to change.
        request: MembershipRequest,
        /// For the outcome.
        reply: Responder<Members, MembershipError>,
    },
    /// Give out a node id that nobody else will get.
    ReserveNodeId {
        /// For the id.
        reply: Responder<Reservation, MembershipError>,
    },
    /// Hand leadership to another voter.
    TransferLeader {
        /// To whom; `None`: to the most caught-up voter that is alive.
        to: Option<NodeId>,
        /// Answered with the new leader once one is known.
        reply: Responder<NodeId, TransferError>,
    },
}

impl<R> LeaderRequest<R> {
    /// How many bytes of an entry it holds.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            LeaderRequest::Propose { payload, .. } => payload.len() as u64,
            _ => 0,
        }
    }
}

/// A node id, given to exactly one caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The id.
    pub node_id: NodeId,
    /// Who gave it out.
    pub leader: NodeId,
    /// The cluster at that moment.
    pub members: Members,
}

/// What this node's user asks.
#[derive(Debug)]
pub enum LocalRequestMsg<R> {
    /// For the leader, wherever it is.
    ForLeader(LeaderRequest<R>),
    /// The same, to be answered within this time, if that is less than what the settings say.
    ForLeaderWithin {
        /// With its reply channel.
        request: LeaderRequest<R>,
        /// As long as it was not proposed, nothing happened.
        within: Duration,
        /// Whether it waits until a leader is known.
        waits: bool,
    },
    /// An index such that a state machine that has applied it shows everything that was acknowledged before this
    /// call. Answered when this node has applied it.
    ReadIndex {
        /// For the index.
        reply: Responder<LogIndex, ReadError>,
    },
    /// Start an election.
    Campaign {
        /// Answered at once; watch the status for the outcome.
        reply: Responder<(), CampaignError>,
    },
    /// Step down as leader of `term`.
    Demote {
        /// The term in which this node leads; guards against a late command.
        term: Term,
        /// Who shall lead next; `None` leaves it to an election.
        successor: Option<NodeId>,
        /// Answered when this node no longer leads.
        reply: Responder<(), DemoteError>,
    },
    /// Take a snapshot now.
    MakeSnapshot {
        /// Answered when it is durable and recorded.
        reply: Responder<LogPosition, SnapshotError>,
    },
    /// Begin a new cluster with these members.
    StartCluster {
        /// Of this node.
        identity: Identity,
        /// As from [`Members::initial`].
        members: Members,
        /// Answered when identity and members are durable.
        reply: Responder<(), JoinError>,
    },
    /// Take on this identity and wait for the leader of the cluster.
    AwaitCluster {
        /// Of this node.
        identity: Identity,
        /// Answered when the identity is durable.
        reply: Responder<(), JoinError>,
    },
    /// Tell everything about the node's state.
    Inspect {
        /// For the report.
        reply: Responder<Inspection, StopReason>,
    },
}

/// Whether a request that came over the network may be passed on to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Once. Until a leader is known, it waits.
    Allowed,
    /// Once, if a leader is known now.
    IfLeaderIsKnown,
    /// It was forwarded already; two nodes that take each other for the leader must not play ball.
    Never,
}

/// What other nodes and remote clients ask over gRPC.
#[derive(Debug)]
pub enum ServerRequestMsg<R> {
    /// Messages of the protocol, in the order in which they were sent.
    RaftMessages {
        /// Who sent them.
        sender: Sender,
        /// Which life of this node they are for, as far as the sender knows.
        receiver: Option<Incarnation>,
        /// What was sent.
        messages: Vec<RaftMessage>,
    },
    /// A snapshot from the leader. Its data is durable in the snapshot store.
    InstallSnapshot {
        /// Who sent it.
        sender: Sender,
        /// Which life of this node it is for, as far as the sender knows.
        receiver: Option<Incarnation>,
        /// The leader's term.
        term: Term,
        /// Which snapshot.
        snapshot: SnapshotMeta,
        /// Answered when it is recorded, or was not needed.
        reply: Responder<(), InstallError>,
    },
    /// For the leader.
    ForLeader {
        /// With its reply channel.
        request: LeaderRequest<R>,
        /// Whether it may be passed on.
        forwarding: Forwarding,
    },
    /// A member introduced itself with another address than the membership has.
    Announced {
        /// Who it is.
        sender: Sender,
        /// Where it is reached now.
        address: String,
    },
    /// A member of another cluster has a message for this node, and means another life of it.
    KnownElsewhere {
        /// Of this node, as the other cluster knows it.
        incarnation: Incarnation,
    },
    /// Confirm by a round of heartbeats that this node leads, and give its commit index.
    ConfirmReadIndex {
        /// For the index.
        reply: Responder<LogIndex, ReadError>,
    },
    /// Tell everything about the node's state.
    Inspect {
        /// For the report.
        reply: Responder<Inspection, StopReason>,
    },
}
