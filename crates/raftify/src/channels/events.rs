//! The events that the parts of a node report to its raft loop, and to the start of a cluster.
//!
//! PeerEvents have their own file so that the parts that report them do not depend on the loop.

use raftify_core::error::{ReadError, StopReason};
use raftify_core::members::SenderRefusal;
use raftify_core::{
    Entry, Incarnation, LogFetch, LogIndex, NodeId, SnapshotMeta, SnapshotToSend, StorageError, TurnNumber,
};
use tokio::sync::mpsc;
use tracing::debug;

use crate::runtime::disk_space::DiskSpace;

/// The reports of the loop's helpers. The queue is unbounded because each is the outcome of work that the
/// core issued, and the core bounds that work.
#[derive(Debug)]
pub(crate) enum Event {
    /// All writes up to this turn are durable.
    Written(TurnNumber),
    /// The state machine has applied all entries up to this index.
    Applied(LogIndex),
    /// A snapshot is durable, or was not taken.
    SnapshotTaken(Result<SnapshotMeta, String>),
    /// Entries that the core requested.
    Fetched(LogFetch, Result<Vec<Entry>, StorageError>),
    /// The space of the disk of the data.
    DiskMeasured(DiskSpace),
    /// The node cannot continue.
    Failed(StopReason),
}

/// The reports of the connections to the raft loop.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The connection to a peer broke; messages may have been lost. Once per broken connection.
    Unreachable(NodeId),
    /// The peer answers at its advertised address.
    Reached {
        /// The peer.
        peer: NodeId,
        /// As the peer reports it.
        incarnation: Incarnation,
        /// The address of the connection.
        address: String,
    },
    /// The peer has no objection to this node.
    Agrees(NodeId),
    /// The peer answers, and has no record of this node.
    Silent(NodeId),
    /// The peer is no longer reached or no longer answers. Once after each [`Reached`](Self::Reached), unless
    /// another one follows.
    Unreached(NodeId),
    /// A snapshot was installed by its receiver, or not. Exactly once for each requested snapshot.
    SnapshotSent {
        /// As requested.
        sent: SnapshotToSend,
        /// The reason of a failure.
        outcome: Result<(), String>,
    },
    /// The leader confirmed its commit index, or could not.
    ReadRoundAnswered {
        /// As requested.
        round: u64,
        /// The answer.
        answer: Result<LogIndex, ReadError>,
    },
    /// A peer rejects this node's messages.
    RefusedBy {
        /// The peer.
        by: NodeId,
        /// The reason.
        refusal: SenderRefusal,
    },
}

/// The events' channel is unbounded so that no event is ever dropped; their number is bounded by their
/// causes: one for each attempt to connect, each snapshot and each round of reads.
pub(crate) type PeerEvents = mpsc::UnboundedSender<PeerEvent>;

/// The receiving loop may have ended: then the event is not needed.
pub(crate) fn send_event(events: &PeerEvents, event: PeerEvent) {
    if let Err(event) = events.send(event) {
        debug!(event = ?event.0, "nobody listens any more");
    }
}

/// The report of a cluster member to which this node sends messages: this node was here before.
#[derive(Clone, Debug)]
pub(crate) struct EarlierIncarnation {
    pub(crate) incarnation: Incarnation,
    /// The address of that member.
    pub(crate) teller: String,
}
