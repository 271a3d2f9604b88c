//! (Being written.)

use raftify_core::error::ReadError;
use raftify_core::members::SenderRefusal;
use raftify_core::{LogIndex, NodeId};

/// What the connections tell the raft loop.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The connection to a peer broke; messages may have been lost. Once per broken connection.
    Unreachable(NodeId),
    /// A snapshot was installed by its receiver, or not. Exactly once for each that was to be sent.
    SnapshotSent {
        /// The receiver.
        to: NodeId,
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
