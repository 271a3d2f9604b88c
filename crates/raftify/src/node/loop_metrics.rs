//! The metrics that the raft loop records: the numbers of the core once for each tick, and the times from
//! append to commit.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use raftify_core::{LogIndex, ProposalReply, RaftNodeCore, Role, Status, Term};
use tokio::time::Instant;

use crate::channels::metrics::{Figures, NodeMetrics, Queue};
use crate::channels::node_events::{Event, NodeEvents};
use crate::channels::server_counters::ServerCounters;
use crate::runtime::disk_space::DiskSpace;
use crate::runtime::worker::Blocking;

/// How often the space of the disk is measured: a disk fills slowly.
const DISK_INTERVAL: Duration = Duration::from_secs(10);

/// Without a majority, nothing is committed, and later batches are not timed.
const TIMED_MAX: usize = 1024;

/// The disk is nearly full if less than this part of it is free.
const NEARLY_FULL: u64 = 10;

/// Owned by the raft loop. When it is dropped, the node counts as stopped.
pub(crate) struct LoopMetrics {
    metrics: Arc<NodeMetrics>,
    counters: Arc<ServerCounters>,
    /// Of the data.
    directory: Option<PathBuf>,
    disk_measured: Option<Instant>,
    /// A disk that hangs is not asked again before it has answered.
    is_measuring: Arc<AtomicBool>,
    node_events: Arc<NodeEvents>,
    /// As last measured.
    is_nearly_full: Arc<AtomicBool>,
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
    pub(crate) fn new(
        metrics: Arc<NodeMetrics>,
        counters: Arc<ServerCounters>,
        directory: Option<PathBuf>,
        node_events: Arc<NodeEvents>,
    ) -> LoopMetrics {
        LoopMetrics {
            metrics,
            counters,
            directory,
            disk_measured: None,
            is_measuring: Arc::default(),
            node_events,
            is_nearly_full: Arc::default(),
            appended: VecDeque::new(),
            appended_in: Term(0),
        }
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
    pub(crate) fn ticked<R: ProposalReply>(&mut self, core: &RaftNodeCore<R>, blocking: &Blocking) {
        self.metrics.ticked(&Figures {
            inspection: &core.inspect(),
            elections: core.elections(),
            log_bytes: core.log_bytes(),
            requests: self.counters.requests(),
            refusals: self.counters.refusals(),
            connections: self.counters.open_connections.load(Ordering::Relaxed),
        });
        self.measure_disk_if_due(blocking);
    }

    fn measure_disk_if_due(&mut self, blocking: &Blocking) {
        let Some(directory) = &self.directory else { return };
        let is_due = self.disk_measured.is_none_or(|last| last.elapsed() >= DISK_INTERVAL);
        if !is_due || self.is_measuring.swap(true, Ordering::Acquire) {
            return;
        }
        self.disk_measured = Some(Instant::now());
        let (metrics, directory) = (Arc::clone(&self.metrics), directory.clone());
        let is_measuring = Arc::clone(&self.is_measuring);
        let (node_events, was_nearly_full) =
            (Arc::clone(&self.node_events), Arc::clone(&self.is_nearly_full));
        drop(blocking.start(move || {
            if let Some(space) = DiskSpace::of(&directory) {
                let DiskSpace { free, size } = space;
                metrics.disk(free, size);
                let is_nearly_full = free < size / NEARLY_FULL;
                if is_nearly_full && !was_nearly_full.swap(is_nearly_full, Ordering::Relaxed) {
                    node_events.publish(Event::DiskNearlyFull { free_bytes: free, size_bytes: size });
                }
                was_nearly_full.store(is_nearly_full, Ordering::Relaxed);
            }
            is_measuring.store(false, Ordering::Release);
        }));
    }
}
