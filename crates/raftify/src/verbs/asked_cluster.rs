//! The cluster of a caller's requests.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use raftify_core::{ClusterId, LogIndex};

use crate::wire::{self, proto};

/// The cluster of the requests: the known one, or else the cluster that gives the first result. Nodes of
/// another cluster then reject requests: an address may belong to another cluster by now, and writes
/// acknowledged there do not exist in this one.
#[derive(Debug, Default)]
pub(crate) struct AskedCluster {
    id: OnceLock<ClusterId>,
    /// The newest membership index in an answer of its nodes.
    members_as_of: AtomicU64,
}

impl AskedCluster {
    pub(crate) fn of(id: ClusterId) -> AskedCluster {
        AskedCluster { id: id.into(), members_as_of: AtomicU64::new(0) }
    }

    pub(crate) fn id(&self) -> Option<ClusterId> {
        self.id.get().copied()
    }

    pub(crate) fn members_as_of(&self) -> LogIndex {
        LogIndex(self.members_as_of.load(Ordering::Relaxed))
    }

    /// Processes the header of a result.
    pub(crate) fn learn(&self, header: Option<&proto::Header>) {
        let Ok(Some(cluster_id)) = wire::check_header(header) else { return };
        // The first cluster stays.
        if *self.id.get_or_init(|| cluster_id) == cluster_id
            && let Some(as_of) = header.and_then(|header| header.members_as_of)
        {
            self.members_as_of.fetch_max(as_of, Ordering::Relaxed);
        }
    }
}
