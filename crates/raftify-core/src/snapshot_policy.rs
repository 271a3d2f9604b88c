//! When to take a snapshot, and how much of the log to keep behind it.

use crate::config::CheckedConfig;
use crate::entry::Entry;
use crate::types::LogIndex;

/// Counts what the state machine was given since the last snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotPolicy {
    entries_max: u64,
    bytes_max: u64,
    entries_kept: u64,
    entries: u64,
    bytes: u64,
}

impl SnapshotPolicy {
    pub(crate) fn new(config: &CheckedConfig) -> SnapshotPolicy {
        SnapshotPolicy {
            entries_max: config.snapshot_entries,
            bytes_max: config.snapshot_log_bytes,
            entries_kept: config.log_entries_kept,
            entries: 0,
            bytes: 0,
        }
    }

    pub(crate) fn count(&mut self, entry: &Entry) {
        self.entries += 1;
        self.bytes += entry.size_bytes();
    }

    pub(crate) fn is_due(&self) -> bool {
        let reached = |count: u64, limit: u64| limit > 0 && count >= limit;
        reached(self.entries, self.entries_max) || reached(self.bytes, self.bytes_max)
    }

    /// A snapshot begins here.
    pub(crate) fn begin(&mut self) {
        self.entries = 0;
        self.bytes = 0;
    }

    /// How far the log may be cut once a snapshot at `snapshot` is recorded. A member that is behind that far is sent
    /// the snapshot: the log never waits for it.
    pub(crate) fn compact_to(&self, snapshot: LogIndex) -> LogIndex {
        LogIndex(snapshot.0.saturating_sub(self.entries_kept))
    }
}
