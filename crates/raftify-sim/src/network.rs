//! Messages in flight: their delays, losses, duplicates and reordering, and the links that are cut. Answers
//! use the same links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raftify_core::error::ReadError;
use raftify_core::{
    Incarnation, LeaderRequest, LogIndex, NodeId, RaftMessage, Sender, SnapshotMeta, SnapshotToSend,
};

use crate::reply::Reply;
use crate::schedule::Time;

/// A packet from one node to another.
pub(crate) enum Packet {
    Raft {
        sender: Sender,
        receiver: Option<Incarnation>,
        /// The address that the sender reports.
        address: Arc<str>,
        messages: Vec<RaftMessage>,
    },
    Snapshot {
        sender: Sender,
        receiver: Option<Incarnation>,
        sent: SnapshotToSend,
        snapshot: SnapshotMeta,
        data: Vec<u8>,
        /// The run of the sender: its next run learns no outcome.
        life: u64,
    },
    Request(LeaderRequest<Reply>),
    ReadRound {
        round: u64,
        /// The run of the sender: its next run restarts the count of its rounds.
        life: u64,
    },
    /// For the run of the node that sent the request.
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
    /// A duplicate, where that can happen: a stream of messages may be sent again.
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

/// An answer that is sent back.
pub(crate) struct Deferred(Box<dyn FnOnce(bool) + Send>);

impl Deferred {
    /// `deliver` receives whether it arrived.
    pub(crate) fn new(deliver: impl FnOnce(bool) + Send + 'static) -> Deferred {
        Deferred(Box::new(deliver))
    }

    pub(crate) fn arrives(self) {
        (self.0)(true);
    }

    pub(crate) fn breaks(self) {
        (self.0)(false);
    }
}

/// The state of all links.
#[derive(Default)]
pub(crate) struct Network {
    /// Links that deliver nothing, from and to.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes that no message reaches, because no other node can connect to them.
    pub(crate) hidden: BTreeSet<NodeId>,
    /// Nodes that can be connected to, but do not say whether they believe a node.
    pub(crate) undecided: BTreeSet<NodeId>,
    /// The arrival time of the last message on each link.
    last_arrival: BTreeMap<(NodeId, NodeId), Time>,
    /// The time at which the sender learns that its connection broke.
    pub(crate) breaking: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    pub(crate) fn delivers(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to)) && !self.hidden.contains(&to)
    }

    /// The time at which a message arrives behind those in flight.
    pub(crate) fn in_order(&mut self, from: NodeId, to: NodeId, at: Time) -> Time {
        let last = self.last_arrival.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }

    /// Whether a message in flight arrives only after `at`.
    pub(crate) fn overtakes(&self, from: NodeId, to: NodeId, at: Time) -> bool {
        self.last_arrival.get(&(from, to)).is_some_and(|last| *last > at)
    }
}
