//! The requests to a core, from the user of this node and from other nodes. Each request carries its own
//! reply channel and gets exactly one answer, also when the node stops.

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
use crate::verb_error::Refusal;

/// The reply channel of a request. Dropped without an answer, it answers that the node has stopped.
pub struct Responder<T, E: From<StopReason>> {
    deliver: Option<Deliver<T, E>>,
}

type Deliver<T, E> = Box<dyn FnOnce(Result<T, E>) + Send>;

impl<T, E: From<StopReason>> Responder<T, E> {
    /// Calls `deliver` exactly once. It must not block.
    pub fn new(deliver: impl FnOnce(Result<T, E>) + Send + 'static) -> Self {
        Responder { deliver: Some(Box::new(deliver)) }
    }

    /// Sends the answer.
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

/// The reply channel of a proposal. The core only ever refuses; success comes from the owner of the state
/// machine, because only it knows the type of the reply. Dropped without an answer, it must answer that the
/// outcome is unknown ([`UnknownOutcome::NodeStopped`](crate::error::UnknownOutcome::NodeStopped)).
pub trait ProposalReply: Send + 'static {
    /// The proposal was refused, or its outcome is unknown.
    fn refuse(self, error: ProposeError);
}

/// A request that only the leader can serve. Any other node forwards it once, or refuses it with the id of
/// the leader.
#[derive(Debug)]
pub enum LeaderRequest<R> {
    /// Replicate an entry.
    Propose {
        /// In the user's encoding.
        payload: Bytes,
        /// For the reply of the state machine.
        reply: R,
    },
    /// Change voters or learners. Answered with the membership once it is in force: for several steps with
    /// [`LeaveJoint::Automatically`](crate::members::LeaveJoint::Automatically), once the joint configuration
    /// is left.
    ChangeMembership {
        /// The change.
        request: MembershipRequest,
        /// For the outcome.
        reply: Responder<Members, MembershipError>,
    },
    /// Reserve a node id that no other caller will get.
    ReserveNodeId {
        /// For the id.
        reply: Responder<Reservation, MembershipError>,
    },
    /// Transfer leadership to another voter.
    TransferLeader {
        /// The target; `None`: the most caught-up voter that is alive.
        to: Option<NodeId>,
        /// Answered with the new leader once one is known.
        reply: Responder<NodeId, TransferError>,
    },
}

impl<R> LeaderRequest<R> {
    /// How many bytes of an entry the request holds.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            LeaderRequest::Propose { payload, .. } => payload.len() as u64,
            _ => 0,
        }
    }
}

impl<R: ProposalReply> LeaderRequest<R> {
    /// Answers the request with the error of its verb.
    pub fn refuse(self, why: impl Refusal) {
        match self {
            LeaderRequest::Propose { reply, .. } => reply.refuse(why.error()),
            LeaderRequest::ChangeMembership { reply, .. } => reply.answer(Err(why.error())),
            LeaderRequest::ReserveNodeId { reply } => reply.answer(Err(why.error())),
            LeaderRequest::TransferLeader { reply, .. } => reply.answer(Err(why.error())),
        }
    }
}

/// A node id, reserved for exactly one caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The id.
    pub node_id: NodeId,
    /// The leader that reserved it.
    pub leader: NodeId,
    /// The members at that moment.
    pub members: Members,
}

/// A request of the user of this node.
#[derive(Debug)]
pub enum LocalRequestMsg<R> {
    /// For the leader, whether it is this node or another.
    ForLeader(LeaderRequest<R>),
    /// The same, to be answered within this time, if that is less than the timeout in the settings.
    ForLeaderWithin {
        /// With its reply channel.
        request: LeaderRequest<R>,
        /// If the time passes before the request was proposed, the request had no effect.
        within: Duration,
        /// Whether the request waits until a leader is known.
        waits: bool,
    },
    /// Get an index such that a state machine that has applied it includes every write that was acknowledged
    /// before this call. Answered when this node has applied it.
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
        /// The next leader; `None` leaves it to an election.
        successor: Option<NodeId>,
        /// Answered when this node no longer leads.
        reply: Responder<(), DemoteError>,
    },
    /// Take a snapshot now.
    MakeSnapshot {
        /// Answered when it is durable and recorded.
        reply: Responder<LogPosition, SnapshotError>,
    },
    /// Start a new cluster with these members.
    StartCluster {
        /// The identity of this node.
        identity: Identity,
        /// As from [`Members::initial`].
        members: Members,
        /// Answered when identity and members are durable.
        reply: Responder<(), JoinError>,
    },
    /// Take this identity and wait for the leader of the cluster.
    AwaitCluster {
        /// The identity of this node.
        identity: Identity,
        /// Answered when the identity is durable.
        reply: Responder<(), JoinError>,
    },
    /// Return full diagnostics of the node.
    Inspect {
        /// For the report.
        reply: Responder<Inspection, StopReason>,
    },
}

/// Whether the node may forward a request from the network to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Once. The request waits until a leader is known.
    Allowed,
    /// Once, if a leader is known now.
    IfLeaderIsKnown,
    /// The request was forwarded already. Two nodes that each consider the other the leader must not forward
    /// it to each other forever.
    Never,
}

/// A request of another node or a remote client over gRPC.
#[derive(Debug)]
pub enum ServerRequestMsg<R> {
    /// Messages of the protocol, in the order in which they were sent.
    RaftMessages {
        /// The sender of the messages.
        sender: Sender,
        /// The incarnation of this node that they are for, as far as the sender knows.
        receiver: Option<Incarnation>,
        /// The messages.
        messages: Vec<RaftMessage>,
    },
    /// A snapshot from the leader. Its data is durable in the snapshot store.
    InstallSnapshot {
        /// The sender of the snapshot.
        sender: Sender,
        /// The incarnation of this node that it is for, as far as the sender knows.
        receiver: Option<Incarnation>,
        /// The leader's term.
        term: Term,
        /// The metadata of the snapshot.
        snapshot: SnapshotMeta,
        /// Answered when the snapshot is recorded, or was not needed.
        reply: Responder<(), InstallError>,
    },
    /// A request for the leader.
    ForLeader {
        /// With its reply channel.
        request: LeaderRequest<R>,
        /// Whether this node may forward it.
        forwarding: Forwarding,
    },
    /// A member introduced itself with another address than the one in the membership.
    Announced {
        /// The member.
        sender: Sender,
        /// Its new address.
        address: String,
    },
    /// A member of another cluster has a message for this node, but for another incarnation of it.
    KnownElsewhere {
        /// The incarnation of this node that the other cluster knows.
        incarnation: Incarnation,
    },
    /// Confirm by a round of heartbeats that this node leads, and return its commit index.
    ConfirmReadIndex {
        /// For the index.
        reply: Responder<LogIndex, ReadError>,
    },
    /// Take a snapshot now.
    MakeSnapshot {
        /// Answered when it is durable and recorded.
        reply: Responder<LogPosition, SnapshotError>,
    },
    /// Return full diagnostics of the node.
    Inspect {
        /// For the report.
        reply: Responder<Inspection, StopReason>,
    },
}
