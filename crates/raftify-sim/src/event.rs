//! The scheduled events of a world.

use raftify_core::members::SenderRefusal;
use raftify_core::{Entry, LogFetch, LogPosition, NodeId, StorageError};

use crate::fault::Repair;
use crate::network::Packet;

/// A scheduled event.
pub(crate) enum Event {
    Tick {
        node: NodeId,
        life: u64,
    },
    /// A leader sends its commit index to its followers, unless entries have carried it meanwhile.
    AnnounceCommit {
        node: NodeId,
        life: u64,
    },
    Arrive {
        from: NodeId,
        to: NodeId,
        packet: Packet,
    },
    /// The pending write is durable.
    Durable {
        node: NodeId,
        life: u64,
    },
    /// The completion of the write is reported to the node.
    Written {
        node: NodeId,
        life: u64,
    },
    Apply {
        node: NodeId,
        life: u64,
    },
    SnapshotWritten {
        node: NodeId,
        life: u64,
        position: LogPosition,
    },
    /// `read`: the entries as of the request; otherwise they are read now.
    Fetched {
        node: NodeId,
        life: u64,
        fetch: LogFetch,
        read: Option<Result<Vec<Entry>, StorageError>>,
    },
    /// A connection broke: reports the loss of it, or of its content, to the sender.
    Broke {
        from: NodeId,
        to: NodeId,
    },
    Lost(Packet, NodeId),
    Refused {
        node: NodeId,
        by: NodeId,
        refusal: SenderRefusal,
    },
    Client(usize),
    /// A fault is injected.
    Fault,
    /// A fault ends.
    Repair(Repair),
    Start(NodeId),
    /// The end of the faults.
    Heal,
    /// A check whether the cluster has recovered.
    Look,
}

impl Event {
    /// The node of the event: if that is paused, the event is delayed.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self {
            Event::Tick { node, .. }
            | Event::AnnounceCommit { node, .. }
            | Event::Durable { node, .. }
            | Event::Written { node, .. }
            | Event::Apply { node, .. }
            | Event::SnapshotWritten { node, .. }
            | Event::Fetched { node, .. }
            | Event::Refused { node, .. }
            | Event::Arrive { to: node, .. }
            | Event::Broke { from: node, .. }
            | Event::Lost(_, node) => Some(*node),
            _ => None,
        }
    }
}
