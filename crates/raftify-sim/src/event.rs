//! What will happen in a world.

use raftify_core::members::SenderRefusal;
use raftify_core::{Entry, LogFetch, LogPosition, NodeId, StorageError};

use crate::fault::Repair;
use crate::network::Packet;

/// What will happen.
pub(crate) enum Event {
    Tick {
        node: NodeId,
        life: u64,
    },
    Arrive {
        from: NodeId,
        to: NodeId,
        packet: Packet,
    },
    /// The write that is under way is on the disk.
    Durable {
        node: NodeId,
        life: u64,
    },
    /// The node hears of it.
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
    /// `read`: what was read when it was asked for; otherwise it is read now.
    Fetched {
        node: NodeId,
        life: u64,
        fetch: LogFetch,
        read: Option<Result<Vec<Entry>, StorageError>>,
    },
    /// A connection broke: its sender hears of it, or of what it carried.
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
    /// Something goes wrong.
    Fault,
    /// Something is repaired.
    Repair(Repair),
    Start(NodeId),
    /// The end of the trouble.
    Heal,
    /// A look at whether the cluster is well again.
    Look,
}

impl Event {
    /// The node in which it happens: if that is paused, it happens later.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self {
            Event::Tick { node, .. }
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
