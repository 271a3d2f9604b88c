//! The counters of the server, for the handle [`RaftServer`](crate::RaftServer).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many requests a server has received since its node was set up, by kind. Forwarded and rejected ones
/// are included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestCounts {
    /// Batches of Raft messages from other members.
    pub message_batches: u64,
    /// Snapshots that a leader wanted to install.
    pub snapshots: u64,
    /// Calls that carry many proposals and reads, each of which is counted as well.
    pub request_streams: u64,
    /// Proposals.
    pub proposals: u64,
    /// Changes of the membership.
    pub membership_changes: u64,
    /// Requests for the id of a new node.
    pub id_reservations: u64,
    /// Leadership transfers.
    pub leadership_transfers: u64,
    /// Requests for a confirmed commit index.
    pub reads: u64,
    /// Requests for diagnostics.
    pub inspections: u64,
    /// Requests for the identity of this node: members send one when they connect.
    pub identifications: u64,
    /// Requests for a snapshot of this node.
    pub requested_snapshots: u64,
    /// Requests to this node to leave the cluster.
    pub leaves: u64,
    /// Requests for the events of this node.
    pub event_streams: u64,
    /// Requests for a backup; one that is resumed counts again.
    pub backups: u64,
}

/// How many connections and requests the certificates did not permit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RefusalCounts {
    pub(crate) handshakes: u64,
    pub(crate) requests: u64,
}

/// Written by the server, without ordering: each counter is correct by itself.
#[derive(Debug, Default)]
pub(crate) struct ServerCounters {
    pub(crate) open_connections: AtomicUsize,
    pub(crate) message_batches: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) request_streams: AtomicU64,
    pub(crate) proposals: AtomicU64,
    pub(crate) membership_changes: AtomicU64,
    pub(crate) id_reservations: AtomicU64,
    pub(crate) leadership_transfers: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) inspections: AtomicU64,
    pub(crate) identifications: AtomicU64,
    pub(crate) requested_snapshots: AtomicU64,
    pub(crate) leaves: AtomicU64,
    pub(crate) event_streams: AtomicU64,
    pub(crate) backups: AtomicU64,
    pub(crate) refused_handshakes: AtomicU64,
    pub(crate) refused_requests: AtomicU64,
}

impl ServerCounters {
    pub(crate) fn requests(&self) -> RequestCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestCounts {
            message_batches: count(&self.message_batches),
            snapshots: count(&self.snapshots),
            request_streams: count(&self.request_streams),
            proposals: count(&self.proposals),
            membership_changes: count(&self.membership_changes),
            id_reservations: count(&self.id_reservations),
            leadership_transfers: count(&self.leadership_transfers),
            reads: count(&self.reads),
            inspections: count(&self.inspections),
            identifications: count(&self.identifications),
            requested_snapshots: count(&self.requested_snapshots),
            leaves: count(&self.leaves),
            event_streams: count(&self.event_streams),
            backups: count(&self.backups),
        }
    }

    pub(crate) fn refusals(&self) -> RefusalCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RefusalCounts { handshakes: count(&self.refused_handshakes), requests: count(&self.refused_requests) }
    }

    /// Counts one connection as open until the guard is dropped.
    pub(crate) fn connection_opened(self: &Arc<Self>) -> OpenConnection {
        self.open_connections.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(self))
    }
}

/// Counts one more request.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// See [`ServerCounters::connection_opened`].
pub(crate) struct OpenConnection(Arc<ServerCounters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, Ordering::Relaxed);
    }
}
