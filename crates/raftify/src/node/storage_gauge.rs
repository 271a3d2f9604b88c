//! Measures the free space on the disk of the data, and compares it with the reserve.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::channels::events::Event;
use crate::channels::metrics::NodeMetrics;
use crate::runtime::disk_space::DiskSpace;
use crate::runtime::worker::Blocking;

/// How often the space is measured, unless little is left: then at every tick.
const INTERVAL: Duration = Duration::from_secs(1);

/// Owned by the raft loop.
pub(crate) struct StorageGauge {
    /// Of the data. `None`: nothing is measured.
    directory: Option<PathBuf>,
    reserve: Reserve,
    events: mpsc::UnboundedSender<Event>,
    metrics: Arc<NodeMetrics>,
    measured: Option<Instant>,
    /// A disk that hangs is not asked again before it has answered.
    is_measuring: Arc<AtomicBool>,
}

impl StorageGauge {
    pub(crate) fn new(
        directory: Option<PathBuf>,
        reserve_bytes: Option<u64>,
        events: mpsc::UnboundedSender<Event>,
        metrics: Arc<NodeMetrics>,
    ) -> StorageGauge {
        let reserve = Reserve { bytes: reserve_bytes.unwrap_or(0), free: u64::MAX, is_full: false };
        StorageGauge { directory, reserve, events, metrics, measured: None, is_measuring: Arc::default() }
    }

    /// One tick has passed. The result of a measurement comes as an event.
    pub(crate) fn ticked(&mut self, blocking: &Blocking) {
        let Some(directory) = &self.directory else { return };
        let is_due = self.reserve.is_close() || self.measured.is_none_or(|last| last.elapsed() >= INTERVAL);
        if !is_due || self.is_measuring.swap(true, Ordering::Acquire) {
            return;
        }
        self.measured = Some(Instant::now());
        let (directory, events) = (directory.clone(), self.events.clone());
        let is_measuring = Arc::clone(&self.is_measuring);
        drop(blocking.start(move || {
            if let Some(space) = DiskSpace::of(&directory) {
                // The loop may have ended.
                let _ = events.send(Event::DiskMeasured(space));
            }
            is_measuring.store(false, Ordering::Release);
        }));
    }

    /// Whether the disk is full, by a new measurement.
    pub(crate) fn is_full(&mut self, space: &DiskSpace) -> bool {
        self.metrics.disk(space.free, space.size);
        self.reserve.is_full(space.free)
    }
}

/// Whether the disk has less free space than the reserve.
struct Reserve {
    /// Zero: no reserve.
    bytes: u64,
    /// The last measurement.
    free: u64,
    is_full: bool,
}

impl Reserve {
    /// A disk that was full has room again when a quarter more than the reserve is free: a node at the limit
    /// does not change its mind with every snapshot that it deletes.
    fn is_full(&mut self, free: u64) -> bool {
        let limit = if self.is_full { self.bytes.saturating_add(self.bytes / 4) } else { self.bytes };
        self.free = free;
        self.is_full = free < limit;
        self.is_full
    }

    /// Whether the reserve may be reached soon.
    fn is_close(&self) -> bool {
        self.free < self.bytes.saturating_mul(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_below_the_reserve_and_has_room_a_quarter_above_it() {
        let mut reserve = Reserve { bytes: 100, free: u64::MAX, is_full: false };
        assert!(!reserve.is_close());
        assert!(!reserve.is_full(100) && reserve.is_close());
        assert!(reserve.is_full(99) && reserve.is_full(124));
        assert!(!reserve.is_full(125) && !reserve.is_full(100));
        let mut none = Reserve { bytes: 0, free: u64::MAX, is_full: false };
        assert!(!none.is_full(0) && !none.is_close());
    }

    #[tokio::test]
    async fn the_space_of_the_directory_is_measured_at_a_tick() {
        let (events, mut measured) = mpsc::unbounded_channel();
        let directory = tempfile::tempdir().unwrap();
        let metrics = Arc::new(NodeMetrics::new(raftify_core::NodeId::FIRST));
        let path = Some(directory.path().to_owned());
        let mut gauge = StorageGauge::new(path, Some(u64::MAX), events, metrics);
        let blocking = Blocking::new();
        gauge.ticked(&blocking);
        blocking.ended().await;
        let Some(Event::DiskMeasured(space)) = measured.recv().await else { panic!("nothing was measured") };
        assert!(gauge.is_full(&space), "no disk is as large as this reserve");
    }
}
