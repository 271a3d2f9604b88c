//! When to take a snapshot, and how much of the log before it to keep.

use std::collections::VecDeque;

use crate::config::CheckedConfig;
use crate::entry::Entry;
use crate::types::LogIndex;

/// Counts the entries delivered to the state machine since the last snapshot, and the time since, and records
/// the sizes of the last entries.
#[derive(Debug)]
pub(crate) struct SnapshotPolicy {
    entries_max: Option<u64>,
    bytes_max: Option<u64>,
    /// Zero for never.
    age_max_ticks: Option<u64>,
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
    /// How many bytes of the log may be kept for followers that need them.
    followers_bytes: u64,
    /// The last entry, and the bytes of all entries, counted since the start.
    counted: (LogIndex, u64),
    /// The values of `counted` when snapshots began, oldest first, as far back as `followers_bytes` reach.
    begun: VecDeque<(LogIndex, u64)>,
}

impl SnapshotPolicy {
    /// No entry after `snapshot` was counted yet.
    pub(crate) fn new(config: &CheckedConfig, snapshot: LogIndex) -> SnapshotPolicy {
        SnapshotPolicy {
            entries_max: config.snapshot_entries,
            bytes_max: config.snapshot_log_bytes,
            age_max_ticks: config.snapshot_age_max.map(|age| config.ticks(age)),
            entries_kept: config.log_entries_kept,
            bytes_kept: config.log_bytes_kept,
            entries: 0,
            bytes: 0,
            since_ticks: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            beyond: LogIndex::ZERO,
            cut: LogIndex::ZERO,
            followers_bytes: config.log_bytes_kept_for_followers,
            counted: (snapshot, 0),
            begun: VecDeque::from([(snapshot, 0)]),
        }
    }

    pub(crate) fn count(&mut self, entry: &Entry) {
        self.entries += 1;
        self.bytes += entry.size_bytes();
        self.counted = (entry.position.index, self.counted.1 + entry.size_bytes());
        self.recent.push_back(entry.size_bytes());
        self.recent_bytes += entry.size_bytes();
        while self.recent.len() as u64 > self.entries_kept || self.recent_bytes > self.bytes_kept {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest;
            self.beyond = LogIndex(entry.position.index.0 - self.recent.len() as u64);
        }
    }

    /// The bytes of the entries since the last snapshot began.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_due(&self, now_ticks: u64) -> bool {
        let reached = |count: u64, limit: Option<u64>| limit.is_some_and(|limit| count >= limit);
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
        self.begun.push_back(self.counted);
        let reaches_back = |(_, bytes): &(LogIndex, u64)| self.counted.1 - bytes <= self.followers_bytes;
        self.begun.drain(..self.begun.partition_point(|begun| !reaches_back(begun)));
    }

    /// After a snapshot of a leader, the log starts again.
    pub(crate) fn install(&mut self, snapshot: LogIndex, now_ticks: u64) {
        self.counted.0 = snapshot;
        self.begun.clear();
        self.begin(now_ticks);
    }

    /// How far the log may be compacted once a snapshot at `snapshot` is recorded. The entries after
    /// `needed`, which followers need, stay, as far as they are known to be within the limit: a member
    /// that is further behind is sent the snapshot.
    pub(crate) fn compact_to(&self, snapshot: LogIndex, needed: Option<LogIndex>) -> LogIndex {
        if mutated!(CompactsBeyondTheSnapshot) {
            return snapshot.next();
        }
        let cut = self.cut.max(LogIndex(snapshot.0.saturating_sub(self.entries_kept))).min(snapshot);
        match (needed, self.begun.front()) {
            (Some(needed), Some((reached, _))) => cut.min(needed.max(*reached)),
            _ => cut,
        }
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
        SnapshotPolicy::new(&config.check().unwrap(), LogIndex::ZERO)
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
        assert_eq!(small.compact_to(LogIndex(100), None), LogIndex(90));

        let mut large = policy(10, 1_000_000);
        count(&mut large, 1..=100, 300_000);
        large.begin(0);
        count(&mut large, 101..=200, 300_000);
        assert_eq!(large.compact_to(LogIndex(100), None), LogIndex(97), "as it was when the snapshot began");

        let mut nothing = policy(10, 0);
        count(&mut nothing, 1..=100, 1);
        nothing.begin(0);
        assert_eq!(nothing.compact_to(LogIndex(100), None), LogIndex(100));
    }

    #[test]
    fn the_log_waits_for_a_follower_that_needs_it_up_to_a_bound() {
        let entry_bytes = 100 + Entry::OVERHEAD_BYTES;
        let config = Config {
            log_entries_kept: 0,
            log_bytes_kept_for_followers: 250 * entry_bytes,
            ..Config::default()
        };
        let mut policy = SnapshotPolicy::new(&config.check().unwrap(), LogIndex(50));
        let mut cut_at = |index: u64, needed: u64| {
            count(&mut policy, index - 99..=index, 100);
            policy.begin(0);
            policy.compact_to(LogIndex(index), Some(LogIndex(needed))).0
        };
        assert_eq!(cut_at(150, 20), 50, "how large the log before the first snapshot is, was not counted");
        assert_eq!(cut_at(250, 60), 60);
        assert_eq!(cut_at(350, 60), 150, "300 entries, and whole snapshots are counted");
        assert_eq!(cut_at(450, 260), 260);
        assert_eq!(cut_at(550, 550), 550, "nobody needs more");

        policy.install(LogIndex(1000), 0);
        count(&mut policy, 1001..=1100, 100);
        policy.begin(0);
        assert_eq!(policy.compact_to(LogIndex(1100), Some(LogIndex(900))), LogIndex(1000));
    }

    #[test]
    fn a_snapshot_is_due_when_the_newest_is_old_and_something_was_applied_since() {
        let ticks = 3600 * 20;
        let snapshot_age_max = Some(Duration::from_secs(3600));
        let config =
            Config { snapshot_age_max, tick_interval: Duration::from_millis(50), ..Config::default() };
        let mut policy = SnapshotPolicy::new(&config.check().unwrap(), LogIndex::ZERO);
        assert!(!policy.is_due(10 * ticks), "nothing was applied");
        count(&mut policy, 1..=1, 1);
        assert!(policy.is_due(ticks) && !policy.is_due(ticks - 1), "the first counts from the start");
        policy.begin(ticks);
        count(&mut policy, 2..=2, 1);
        assert!(policy.is_due(2 * ticks) && !policy.is_due(2 * ticks - 1));

        let mut never = self::policy(10, 10);
        count(&mut never, 1..=1, 1);
        assert!(!never.is_due(u64::MAX), "none: never for this reason");
    }
}
