//! When to take a snapshot, and how much of the log to keep behind it.

use std::collections::VecDeque;

use crate::config::CheckedConfig;
use crate::entry::Entry;
use crate::types::LogIndex;

/// Counts what the state machine was given since the last snapshot, and for how long, and knows the sizes of the last
/// entries given.
#[derive(Debug)]
pub(crate) struct SnapshotPolicy {
    entries_max: u64,
    bytes_max: u64,
    /// Zero for never.
    age_max_ticks: u64,
    entries_kept: u64,
    bytes_kept: u64,
    entries: u64,
    bytes: u64,
    /// When the last snapshot began, or the node started.
    since_ticks: u64,
    /// The sizes of the last entries, as many as may be kept.
    recent: VecDeque<u64>,
    recent_bytes: u64,
    /// The last entry that is not among the recent ones.
    beyond: LogIndex,
    /// What `beyond` was when the newest snapshot began.
    cut: LogIndex,
}

impl SnapshotPolicy {
    pub(crate) fn new(config: &CheckedConfig) -> SnapshotPolicy {
        SnapshotPolicy {
            entries_max: config.snapshot_entries,
            bytes_max: config.snapshot_log_bytes,
            age_max_ticks: config.ticks(config.snapshot_age_max),
            entries_kept: config.log_entries_kept,
            bytes_kept: config.log_bytes_kept,
            entries: 0,
            bytes: 0,
            since_ticks: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            beyond: LogIndex::ZERO,
            cut: LogIndex::ZERO,
        }
    }

    pub(crate) fn count(&mut self, entry: &Entry) {
        self.entries += 1;
        self.bytes += entry.size_bytes();
        self.recent.push_back(entry.size_bytes());
        self.recent_bytes += entry.size_bytes();
        while self.recent.len() as u64 > self.entries_kept || self.recent_bytes > self.bytes_kept {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest;
            self.beyond = LogIndex(entry.position.index.0 - self.recent.len() as u64);
        }
    }

    pub(crate) fn is_due(&self, now_ticks: u64) -> bool {
        let reached = |count: u64, limit: u64| limit > 0 && count >= limit;
        reached(self.entries, self.entries_max)
            || reached(self.bytes, self.bytes_max)
            || (self.entries > 0 && reached(now_ticks - self.since_ticks, self.age_max_ticks))
    }

    /// A snapshot begins here.
    pub(crate) fn begin(&mut self, now_ticks: u64) {
        self.entries = 0;
        self.bytes = 0;
        self.since_ticks = now_ticks;
        self.cut = self.beyond;
    }

    /// How far the log may be cut once a snapshot at `snapshot` is recorded. A member that is behind that far is sent
    /// the snapshot: the log never waits for it.
    pub(crate) fn compact_to(&self, snapshot: LogIndex) -> LogIndex {
        if mutated!(CompactsBeyondTheSnapshot) {
            return snapshot.next();
        }
        self.cut.max(LogIndex(snapshot.0.saturating_sub(self.entries_kept))).min(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::entry::EntryKind;
    use crate::types::LogPosition;

    fn policy(log_entries_kept: u64, log_bytes_kept: u64) -> SnapshotPolicy {
        let config = Config { log_entries_kept, log_bytes_kept, ..Config::default() };
        SnapshotPolicy::new(&config.check().unwrap())
    }

    fn count(policy: &mut SnapshotPolicy, indexes: std::ops::RangeInclusive<u64>, bytes: usize) {
        for index in indexes {
            let payload = vec![0; bytes].into();
            policy.count(&Entry { position: LogPosition::new(1, index), kind: EntryKind::User, payload });
        }
    }

    #[test]
    fn what_is_kept_of_the_log_is_bounded_by_entries_and_by_bytes() {
        let mut small = policy(10, 1_000_000);
        count(&mut small, 1..=100, 1);
        small.begin(0);
        assert_eq!(small.compact_to(LogIndex(100)), LogIndex(90));

        let mut large = policy(10, 1_000_000);
        count(&mut large, 1..=100, 300_000);
        large.begin(0);
        count(&mut large, 101..=200, 300_000);
        assert_eq!(large.compact_to(LogIndex(100)), LogIndex(97), "as it was when the snapshot began");

        let mut nothing = policy(10, 0);
        count(&mut nothing, 1..=100, 1);
        nothing.begin(0);
        assert_eq!(nothing.compact_to(LogIndex(100)), LogIndex(100));
    }

    #[test]
    fn a_snapshot_is_due_when_the_newest_is_old_and_something_was_applied_since() {
        let ticks = 3600 * 20;
        let snapshot_age_max = Duration::from_secs(3600);
        let config =
            Config { snapshot_age_max, tick_interval: Duration::from_millis(50), ..Config::default() };
        let mut policy = SnapshotPolicy::new(&config.check().unwrap());
        assert!(!policy.is_due(10 * ticks), "nothing was applied");
        count(&mut policy, 1..=1, 1);
        assert!(policy.is_due(ticks) && !policy.is_due(ticks - 1), "the first counts from the start");
        policy.begin(ticks);
        count(&mut policy, 2..=2, 1);
        assert!(policy.is_due(2 * ticks) && !policy.is_due(2 * ticks - 1));

        let mut never = self::policy(10, 10);
        count(&mut never, 1..=1, 1);
        assert!(!never.is_due(u64::MAX), "zero: never for this reason");
    }
}
