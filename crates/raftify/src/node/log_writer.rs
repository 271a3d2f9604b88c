//! The only writer of the log: makes turns durable, and only then releases their messages.
//!
//! Owns the [`StableStorage`]. The raft loop passes turns on in order; all turns that queue up during one
//! write become one durable write, on a separate thread. A small write without a queue is done inline, in the
//! raft loop: two thread switches would take longer than the write on many disks. This does not apply to a
//! single-threaded runtime: a disk that hangs must not delay any answer or deadline. A failed write is never
//! retried: the node stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::error::StopReason;
use raftify_core::storage::Write;
use raftify_core::{Config, Entry, LogIndex, NodeId, RaftMessage, StableStorage, TurnNumber};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use crate::channels::events::Event;
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::{Event as NodeEvent, NodeEvents};
use crate::network::outbox::Outbox;
use crate::runtime::log_throttle::LogThrottle;
use crate::runtime::timing::{Step, mark};
use crate::runtime::worker::{Worker, caught, may_block};

/// Turns are merged into one write up to this many bytes. More would only delay the first of them.
const MERGED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Larger writes go to the thread: meanwhile the loop takes the next requests.
const INLINE_BYTES_MAX: u64 = 32 * 1024;

/// After a write that took longer than this, writes go to the thread ...
const INLINE_TIME_MAX: Duration = Duration::from_millis(5);

/// ... until this many in a row were quicker.
const QUICK_WRITES: usize = 8;

/// The part of a turn that the disk needs.
pub(crate) struct ToWrite {
    pub(crate) number: TurnNumber,
    pub(crate) write: Option<Write>,
    /// These messages must not be sent before this turn and all before it are durable.
    pub(crate) send_after: Vec<RaftMessage>,
}

impl ToWrite {
    /// The size of the entries.
    fn bytes(&self) -> u64 {
        self.write.iter().flat_map(|write| &write.append).map(Entry::size_bytes).sum()
    }
}

/// The raft loop's end of the log writer. When it is dropped, the thread writes the queued turns, closes the
/// storage and ends.
pub(crate) struct LogWriter<S> {
    disk: Arc<Disk<S>>,
    /// Unbounded because the core bounds its output.
    queue: mpsc::UnboundedSender<ToWrite>,
    /// Turns that the thread has got and that are not durable yet.
    queued: Arc<AtomicUsize>,
    outbox: Outbox,
    /// Whether the other tasks of the runtime continue while the raft loop waits for the disk.
    others_go_on: bool,
}

impl<S: StableStorage> LogWriter<S> {
    /// Starts the thread, on a tokio runtime. It ends early when a write fails.
    pub(crate) fn start(
        node_id: NodeId,
        storage: S,
        config: &Config,
        events: mpsc::UnboundedSender<Event>,
        outbox: Outbox,
        metrics: Arc<NodeMetrics>,
        node_events: Arc<NodeEvents>,
    ) -> Result<(LogWriter<S>, Worker), StopReason> {
        let (sender, queue) = mpsc::unbounded_channel();
        let writing = Mutex::new(Writing { storage, slow_writes: SlowWrites::new(config.slow_write_time) });
        let disk = Arc::new(Disk {
            node_id,
            writing,
            quick_writes: AtomicUsize::new(QUICK_WRITES),
            metrics,
            node_events,
            election_timeout: config.election_timeout,
        });
        let queued = Arc::new(AtomicUsize::new(0));
        let thread = write_all(Arc::clone(&disk), queue, Arc::clone(&queued), events, outbox.clone());
        let worker = Worker::start("raftify-log", thread)?;
        let others_go_on = Handle::current().metrics().num_workers() > 1;
        let log_writer = LogWriter { disk, queue: sender, queued, outbox, others_go_on };
        Ok((log_writer, worker))
    }

    /// Makes the turn durable, and then sends its messages. `Some` is the outcome if the write is already
    /// done; otherwise it comes as an [`Event`]. `may_wait`: whether no other work needs the raft loop
    /// meanwhile.
    pub(crate) fn write(&mut self, mut turn: ToWrite, may_wait: bool) -> Option<Event> {
        if !may_wait || !self.is_quick(&turn) {
            self.queued.fetch_add(1, Ordering::Relaxed);
            // If the thread has failed, its failure event is under way and stops the node.
            let _ = self.queue.send(turn);
            return None;
        }
        if raftify_core::mutated!(MessagesLeaveBeforeTheWrite) {
            self.outbox.send(std::mem::take(&mut turn.send_after));
        }
        let outcome = self.disk.write(turn.number, turn.write.as_slice());
        if matches!(outcome, Event::Written(_)) {
            self.outbox.send(turn.send_after);
        }
        Some(outcome)
    }

    /// How many turns wait for the thread.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Whether an inline write of the turn is best.
    fn is_quick(&self, turn: &ToWrite) -> bool {
        (self.others_go_on || raftify_core::mutated!(OnlyThreadWaitsForTheDisk))
            && self.disk.is_quick()
            && self.queued.load(Ordering::Acquire) == 0
            && turn.bytes() <= INLINE_BYTES_MAX
            // These are stored in the database, which is slower than the log.
            && turn.write.as_ref().is_none_or(|write| write.remembered.is_none())
    }
}

async fn write_all<S: StableStorage>(
    disk: Arc<Disk<S>>,
    mut queue: mpsc::UnboundedReceiver<ToWrite>,
    queued: Arc<AtomicUsize>,
    events: mpsc::UnboundedSender<Event>,
    outbox: Outbox,
) {
    while let Some(first) = queue.recv().await {
        let mut newest = first.number;
        let mut bytes = first.bytes();
        let mut count = 1;
        let mut writes = Vec::from_iter(first.write);
        let mut messages = first.send_after;
        while bytes < MERGED_BYTES_MAX
            && let Ok(turn) = queue.try_recv()
        {
            newest = turn.number;
            bytes += turn.bytes();
            count += 1;
            writes.extend(turn.write);
            messages.extend(turn.send_after);
        }
        if raftify_core::mutated!(MessagesLeaveBeforeTheWrite) {
            outbox.send(std::mem::take(&mut messages));
        }
        let outcome = may_block(|| disk.write(newest, &writes)).await;
        let failed = matches!(outcome, Event::Failed(_));
        // The loop gets the event before any peer gets the messages, so that an answer never overtakes the
        // event. If the loop has ended, the node has stopped, and the messages are dropped.
        let _ = events.send(outcome);
        if failed {
            return;
        }
        outbox.send(messages);
        queued.fetch_sub(count, Ordering::Release);
    }
}

/// The storage, to which the loop and the thread write in turns.
struct Disk<S> {
    node_id: NodeId,
    writing: Mutex<Writing<S>>,
    /// How many of the last writes took no longer than [`INLINE_TIME_MAX`], since the last slow one.
    quick_writes: AtomicUsize,
    metrics: Arc<NodeMetrics>,
    node_events: Arc<NodeEvents>,
    /// A write that takes longer is an event.
    election_timeout: Duration,
}

struct Writing<S> {
    storage: S,
    slow_writes: SlowWrites,
}

impl<S> Disk<S> {
    fn is_quick(&self) -> bool {
        self.quick_writes.load(Ordering::Relaxed) >= QUICK_WRITES
    }

    fn took(&self, took: Duration) {
        // One thread at a time writes this: the one that holds the storage.
        let before = self.quick_writes.load(Ordering::Relaxed);
        let now = if took > INLINE_TIME_MAX { 0 } else { before.saturating_add(1) };
        self.quick_writes.store(now, Ordering::Relaxed);
    }
}

impl<S: StableStorage> Disk<S> {
    /// Up to the turn `newest`, in one durable write.
    fn write(&self, newest: TurnNumber, writes: &[Write]) -> Event {
        let last = writes.iter().rev().find_map(|write| write.append.last());
        let last = last.map_or(LogIndex::ZERO, |entry| entry.position.index);
        // A panic of the storage is caught below, and ends the node before the next write.
        let mut writing = self.writing.lock();
        mark(self.node_id, Step::Write, last);
        let begin = Instant::now();
        let outcome = caught(|| writing.storage.write(writes));
        let took = begin.elapsed();
        self.took(took);
        if took > self.election_timeout {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let (millis, limit_millis) = (millis(took), millis(self.election_timeout));
            self.node_events.publish(NodeEvent::DiskSlow { millis, limit_millis });
        }
        match outcome {
            Ok(Ok(())) => {
                mark(self.node_id, Step::Durable, last);
                self.record(writes, took);
                if let Some(slow) = writing.slow_writes.took(took) {
                    warn!(node = %self.node_id, "{slow}");
                }
                Event::Written(newest)
            }
            Ok(Err(error)) => Event::Failed(StopReason::Storage(error.to_string())),
            Err(panic) => Event::Failed(StopReason::Storage(format!("it {panic}"))),
        }
    }

    fn record(&self, writes: &[Write], took: Duration) {
        if writes.is_empty() {
            return; // There was nothing to make durable.
        }
        let entries = writes.iter().flat_map(|write| &write.append);
        let (count, bytes) =
            entries.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.size_bytes()));
        self.metrics.written(count, bytes, took);
    }
}

/// Counts slow writes, and reports their duration at intervals.
struct SlowWrites {
    /// A longer write is slow.
    most: Duration,
    /// Since the last report: the number of writes, and how many of them were slow.
    writes: u64,
    slow: u64,
    told: LogThrottle,
}

impl SlowWrites {
    fn new(most: Duration) -> SlowWrites {
        SlowWrites { most, writes: 0, slow: 0, told: LogThrottle::default() }
    }

    /// Records the duration of one more write. Returns the report, if one is due.
    fn took(&mut self, took: Duration) -> Option<String> {
        self.writes += 1;
        if took <= self.most {
            return None;
        }
        self.slow += 1;
        if !self.told.is_due() {
            return None;
        }
        let (writes, slow) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.slow));
        let millis = took.as_millis();
        Some(format!(
            "the disk of the data directory is slow: a write to the log took {millis} ms, and {slow} of the last {writes} \
             more than slow_write_time ({:?})",
            self.most
        ))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[test]
    fn a_disk_that_was_slow_counts_as_quick_after_some_quick_writes() {
        let writing = Mutex::new(Writing { storage: (), slow_writes: SlowWrites::new(INLINE_TIME_MAX) });
        let metrics = Arc::new(NodeMetrics::unrecorded());
        let disk = Disk {
            node_id: NodeId::FIRST,
            writing,
            quick_writes: AtomicUsize::new(QUICK_WRITES),
            metrics,
            node_events: NodeEvents::new(),
            election_timeout: Duration::from_millis(500),
        };
        assert!(disk.is_quick());
        disk.took(INLINE_TIME_MAX * 2);
        for _ in 0..QUICK_WRITES {
            assert!(!disk.is_quick());
            disk.took(INLINE_TIME_MAX);
        }
        assert!(disk.is_quick());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_writes_are_told_with_their_time_and_not_each_of_them() {
        let millis = Duration::from_millis;
        let mut slow_writes = SlowWrites::new(millis(100));
        assert_eq!(slow_writes.took(millis(100)), None);
        let told = slow_writes.took(millis(312)).expect("it is too long");
        assert!(
            told.contains("took 312 ms, and 1 of the last 2 more than slow_write_time (100ms)"),
            "{told}"
        );
        for _ in 0..10 {
            assert_eq!(slow_writes.took(millis(400)), None, "it was just told");
        }
        advance(Duration::from_secs(60)).await;
        assert_eq!(slow_writes.took(millis(2)), None);
        let told = slow_writes.took(millis(500)).expect("it goes on");
        assert!(told.contains("took 500 ms, and 11 of the last 12"), "{told}");
    }
}
