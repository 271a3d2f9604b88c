//! What the parts of a node report to its raft loop, and to the start of a cluster.
//!
//! PeerEvents have a file of their own so that the parts that report them do not depend on the loop.

use raftify_core::error::{ReadError, StopReason};
use raftify_core::members::SenderRefusal;
use raftify_core::{
    Entry, Incarnation, LogFetch, LogIndex, NodeId, SnapshotMeta, SnapshotToSend, StorageError, TurnNumber,
};
use tokio::sync::mpsc;
use tracing::debug;

/// What the loop's own helpers report. The queue is unbounded because each is the outcome of something that the core
/// handed out, which it bounds.
#[derive(Debug)]
pub(crate) enum Event {
    /// All writes up to this turn are durable.
    Written(TurnNumber),
    /// The state machine has applied everything up to here.
    Applied(LogIndex),
    /// A snapshot is durable, or was not taken.
    SnapshotTaken(Result<SnapshotMeta, String>),
    /// Entries that the core asked for.
    Fetched(LogFetch, Result<Vec<Entry>, StorageError>),
    /// The node cannot go on.
    Failed(StopReason),
}

/// What the connections tell the raft loop.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The connection to a peer broke; messages may have been lost. Once per broken connection.
    Unreachable(NodeId),
    /// The peer answers at its advertised address.
    Reached {
        /// The peer.
        peer: NodeId,
        /// As it says itself.
        incarnation: Incarnation,
        /// The address that the connection was made to.
        address: String,
    },
    /// The peer knows nothing that speaks against this node.
    Agrees(NodeId),
    /// The peer answers, and knows nothing of this node.
    Silent(NodeId),
    /// That is no longer so. Once after each [`Reached`](Self::Reached), unless another one follows.
    Unreached(NodeId),
    /// A snapshot was installed by its receiver, or not. Exactly once for each that was to be sent.
    SnapshotSent {
        /// As asked.
        sent: SnapshotToSend,
        /// Why not.
        outcome: Result<(), String>,
    },
    /// The leader confirmed its commit index, or could not.
    ReadRoundAnswered {
        /// As asked.
        round: u64,
        /// The answer.
        answer: Result<LogIndex, ReadError>,
    },
    /// A peer refuses this node's messages.
    RefusedBy {
        /// The peer.
        by: NodeId,
        /// Why.
        refusal: SenderRefusal,
    },
}

/// The events' channel is unbounded so that none is ever dropped; their number is bounded by what causes them: one
/// for each attempt to connect, each snapshot and each round of reads.
pub(crate) type PeerEvents = mpsc::UnboundedSender<PeerEvent>;

/// The loop that listens may have ended: then nobody needs the event any more.
pub(crate) fn send_event(events: &PeerEvents, event: PeerEvent) {
    if let Err(event) = events.send(event) {
        debug!(event = ?event.0, "nobody listens any more");
    }
}

/// What a member of the cluster says of this node when it sends it messages: it was here before.
#[derive(Clone, Debug)]
pub(crate) struct EarlierLife {
    pub(crate) incarnation: Incarnation,
    /// The address of that member.
    pub(crate) teller: String,
}
