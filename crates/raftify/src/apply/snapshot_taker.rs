//! Writes captured states, in parallel with the applier, at a bounded rate.
//!
//! Owned by the applier. One snapshot is written at a time, on a separate thread. A failure is reported to
//! the raft loop, and the snapshot in use stays in use.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use raftify_core::{SnapshotMeta, SnapshotReason, SnapshotStore, SnapshotWriter};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::application::snapshot::Snapshot;
use crate::channels::events::Event;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::{NodeMetrics, SnapshotOperation};
use crate::error::BoxError;
use crate::runtime::rate_limiter::RateLimiter;
use crate::runtime::worker::{Worker, caught, may_block};

/// The buffer size for writes to the store.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// The factor of the rate for a snapshot that a follower waits for: the follower is late already, and sending
/// is also limited by the rate.
const AWAITED_FACTOR: u64 = 8;

/// See the module.
pub(crate) struct SnapshotTaker<S> {
    store: S,
    bytes_per_second_max: Option<u64>,
    /// The limiter of the snapshot that is being written.
    limiter: Arc<RateLimiter>,
    events: mpsc::UnboundedSender<Event>,
    lifecycle: Lifecycle,
    thread: Option<Worker>,
    /// Whether a snapshot is being written, or was written and not reported yet. Its thread may end a little
    /// later.
    busy: Arc<AtomicBool>,
    metrics: Arc<NodeMetrics>,
}

impl<S: SnapshotStore> SnapshotTaker<S> {
    pub(crate) fn new(
        store: S,
        bytes_per_second_max: Option<u64>,
        events: mpsc::UnboundedSender<Event>,
        lifecycle: Lifecycle,
        metrics: Arc<NodeMetrics>,
    ) -> SnapshotTaker<S> {
        let limiter = Arc::new(RateLimiter::new(bytes_per_second_max));
        let busy = Arc::default();
        SnapshotTaker { store, bytes_per_second_max, limiter, events, lifecycle, thread: None, busy, metrics }
    }

    /// A caller waits for the snapshot that is being written.
    pub(crate) fn hurry(&self) {
        self.limiter.set(self.bytes_per_second_max.map(|bytes| bytes.saturating_mul(AWAITED_FACTOR)));
    }

    /// Whether one is still being written.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Reports that a snapshot will not be taken, for this reason.
    pub(crate) fn refuse(&self, reason: String) {
        self.metrics.snapshot_ended(SnapshotOperation::Taken, false, Duration::ZERO);
        // If the loop has ended, the node has stopped: the snapshot is not needed then.
        let _ = self.events.send(Event::SnapshotTaken(Err(reason)));
    }

    /// Begins to write a capture. The outcome comes as an [`Event`].
    pub(crate) fn start(&mut self, capture: Snapshot, meta: SnapshotMeta, reason: SnapshotReason) {
        match reason {
            SnapshotReason::Due => self.limiter.set(self.bytes_per_second_max),
            SnapshotReason::Awaited => self.hurry(),
        }
        let (store, limiter) = (self.store.clone(), Arc::clone(&self.limiter));
        let (lifecycle, events) = (self.lifecycle.clone(), self.events.clone());
        let (busy, metrics) = (Arc::clone(&self.busy), Arc::clone(&self.metrics));
        busy.store(true, Ordering::Relaxed);
        let work = async move {
            // The error may be user-defined: it is displayed and dropped in there, too. So are the objects of
            // the storage.
            let begin = Instant::now();
            let counted = Arc::clone(&metrics);
            let write_out = move || match write_out(capture, &store, &meta, lifecycle, limiter) {
                Ok(bytes) => {
                    counted.snapshot_bytes(SnapshotOperation::Taken, bytes);
                    Ok(meta)
                }
                Err(error) => Err(error.to_string()),
            };
            let outcome = may_block(|| caught(write_out)).await;
            let outcome = outcome.unwrap_or_else(|panic| Err(format!("writing it out {panic}")));
            metrics.snapshot_ended(SnapshotOperation::Taken, outcome.is_ok(), begin.elapsed());
            // A caller that gets the outcome may request the next snapshot at once.
            busy.store(false, Ordering::Release);
            // As above.
            let _ = events.send(Event::SnapshotTaken(outcome));
        };
        match Worker::start("raftify-snapshot", work) {
            // The thread of the previous snapshot has only to end.
            Ok(thread) => self.thread = Some(thread),
            Err(reason) => {
                self.busy.store(false, Ordering::Relaxed);
                self.refuse(reason.to_string());
            }
        }
    }

    /// The snapshot that is still being written when the node stops. Its thread notices the stop by itself.
    pub(crate) fn take_thread(&mut self) -> Option<Worker> {
        self.thread.take()
    }
}

fn write_out<S: SnapshotStore>(
    capture: Snapshot,
    store: &S,
    meta: &SnapshotMeta,
    lifecycle: Lifecycle,
    limiter: Arc<RateLimiter>,
) -> Result<u64, BoxError> {
    let writer = RateLimited { writer: store.create(meta)?, lifecycle, limiter };
    let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
    capture.write_to(&mut writer)?;
    Ok(writer.into_inner().map_err(|error| error.into_error())?.writer.finish()?)
}

/// A writer that limits its rate, and fails once the node stops, so that a large snapshot does not delay
/// shutdown.
struct RateLimited<W> {
    writer: W,
    lifecycle: Lifecycle,
    limiter: Arc<RateLimiter>,
}

impl<W: Write> Write for RateLimited<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.lifecycle.is_stopping() {
            return Err(io::Error::other("the node stops"));
        }
        let piece = self.limiter.piece_bytes(data.len());
        let written = self.writer.write(&data[..piece])?;
        self.limiter.pass_blocking(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::storage::MemorySnapshotStore;
    use raftify_core::{ClusterId, LogPosition, Members};

    use super::*;
    use crate::runtime::worker::PanicsWhenShown;

    #[tokio::test]
    async fn an_error_of_the_user_that_panics_when_it_is_shown_is_reported() {
        let (events, mut received) = mpsc::unbounded_channel();
        let metrics = Arc::new(NodeMetrics::unrecorded());
        let mut taker =
            SnapshotTaker::new(MemorySnapshotStore::default(), None, events, Lifecycle::new(), metrics);
        let capture = Snapshot::new(|_| Err(PanicsWhenShown.into()));
        let position = LogPosition::new(1, 1);
        let meta = SnapshotMeta { cluster_id: ClusterId(1), position, members: Members::none() };
        taker.start(capture, meta, SnapshotReason::Due);
        drop(taker);
        let event = tokio::time::timeout(Duration::from_secs(30), received.recv()).await.unwrap();
        let Some(Event::SnapshotTaken(Err(reason))) = event else {
            panic!("the raft loop would wait for its outcome for ever: {event:?}");
        };
        assert_eq!(reason, "writing it out panicked: told to");
    }

    #[tokio::test]
    async fn a_follower_that_knows_the_outcome_of_a_snapshot_may_request_the_next_one() {
        let (events, mut received) = mpsc::unbounded_channel();
        let metrics = Arc::new(NodeMetrics::unrecorded());
        let mut taker =
            SnapshotTaker::new(MemorySnapshotStore::default(), None, events, Lifecycle::new(), metrics);
        for index in 1..2000 {
            let position = LogPosition::new(1, index);
            let meta = SnapshotMeta { cluster_id: ClusterId(1), position, members: Members::none() };
            let fails = Snapshot::new(|_| Err("told to fail".into()));
            taker.start(fails, meta, SnapshotReason::Due);
            while received.try_recv().is_err() {
                std::hint::spin_loop();
            }
            assert!(!taker.is_busy(), "the next one would be refused, at {index}");
        }
    }
}
