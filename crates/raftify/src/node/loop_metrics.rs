//! The metrics that the raft loop records: the numbers of the core once for each tick, and the times from
//! append to commit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use raftify_core::{LogIndex, ProposalReply, RaftNodeCore, Role, Status, Term};
use tokio::time::Instant;

use crate::channels::metrics::{Figures, NodeMetrics, Queue};
use crate::channels::server_counters::ServerCounters;

/// Without a majority, nothing is committed, and later batches are not timed.
const TIMED_MAX: usize = 1024;

/// Owned by the raft loop. When it is dropped, the node counts as stopped.
pub(crate) struct LoopMetrics {
    metrics: Arc<NodeMetrics>,
    counters: Arc<ServerCounters>,
    /// The last index of each appended batch of this leader that is not committed, and when it was appended.
    appended: VecDeque<(LogIndex, Instant)>,
    appended_in: Term,
}

impl Drop for LoopMetrics {
    fn drop(&mut self) {
        self.metrics.runs(false);
    }
}

impl LoopMetrics {
    pub(crate) fn new(metrics: Arc<NodeMetrics>, counters: Arc<ServerCounters>) -> LoopMetrics {
        LoopMetrics { metrics, counters, appended: VecDeque::new(), appended_in: Term(0) }
    }

    pub(crate) fn runs(&self) {
        self.metrics.runs(true);
    }

    /// Entries up to `last` are appended, while `status` is the newest.
    pub(crate) fn appended(&mut self, status: &Status, last: LogIndex) {
        if self.appended_in != status.term {
            self.appended.clear();
            self.appended_in = status.term;
        }
        if status.role == Role::Leader && self.appended.len() < TIMED_MAX {
            self.appended.push_back((last, Instant::now()));
        }
    }

    /// The newest status.
    pub(crate) fn committed(&mut self, status: &Status) {
        if self.appended.front().is_none_or(|(last, _)| *last > status.commit) {
            return;
        }
        let now = Instant::now();
        let counts = status.role == Role::Leader && status.term == self.appended_in;
        while let Some((_, appended)) =
            self.appended.front().copied().filter(|(last, _)| *last <= status.commit)
        {
            self.appended.pop_front();
            if counts {
                self.metrics.committed(now - appended);
            }
        }
    }

    pub(crate) fn leader_changed(&self) {
        self.metrics.leader_changed();
    }

    pub(crate) fn queue_length(&self, queue: Queue, length: usize) {
        self.metrics.queue_length(queue, length);
    }

    /// One tick has passed.
    pub(crate) fn ticked<R: ProposalReply>(&mut self, core: &RaftNodeCore<R>) {
        self.metrics.ticked(&Figures {
            inspection: &core.inspect(),
            elections: core.elections(),
            log_bytes: core.log_bytes(),
            requests: self.counters.requests(),
            connections: self.counters.open_connections.load(Ordering::Relaxed),
        });
    }
}
