//! Whether the disk of this leader is slower than those of a majority: then another node should lead.
//!
//! The measure is how much later entries become durable on this node than on a majority. The leader sees it
//! when its commit index is ahead of its own durable log. Counted in ticks.

use std::time::Duration;

use crate::config::CheckedConfig;
use crate::types::LogIndex;

/// Fewer slow writes than this do not make a slow disk.
const SLOW_WRITES_MIN: u64 = 3;

/// For this many times [`slow_disk_patience`](crate::Config::slow_disk_patience), a node does not transfer
/// leadership again because of its disk.
const PAUSE: u32 = 12;

/// The observations of a leader about its own disk.
#[derive(Debug, Default)]
pub(crate) struct OwnDisk {
    /// An entry that is durable on a majority and not on this node, at least since this tick.
    awaited: Option<(LogIndex, u64)>,
    slow: Option<SlowWrites>,
    /// Fewer ticks than this are not slow; it is set at the first tick.
    slow_ticks: u64,
    /// No further transfer before this tick.
    pause_until_ticks: u64,
}

/// Consecutive writes that were durable later on this node than on a majority.
#[derive(Clone, Copy, Debug)]
struct SlowWrites {
    count: u64,
    since_ticks: u64,
    last_ticks: u64,
    /// By how much the last one was later.
    late_by_ticks: u64,
}

impl OwnDisk {
    /// Entries became durable on this node this many ticks after the write began.
    pub(crate) fn wrote(&mut self, took_ticks: u64) {
        if took_ticks <= self.slow_ticks {
            self.slow = None;
        }
    }

    /// Everything up to `durable` is durable on this node, and everything up to `commit` on a majority.
    pub(crate) fn is_durable(
        &mut self,
        durable: LogIndex,
        commit: LogIndex,
        now_ticks: u64,
        patience_ticks: u64,
    ) {
        if durable > commit {
            // The disks of the other nodes are no faster.
            self.slow = None;
        }
        let Some((_, since_ticks)) = self.awaited.take_if(|(index, _)| *index <= durable) else { return };
        let late_by_ticks = now_ticks - since_ticks;
        if late_by_ticks <= self.slow_ticks {
            self.slow = None;
            return;
        }
        let before = self.slow.filter(|slow| now_ticks - slow.last_ticks <= patience_ticks);
        self.slow = Some(SlowWrites {
            count: before.map_or(1, |slow| slow.count + 1),
            since_ticks: before.map_or(since_ticks, |slow| slow.since_ticks),
            last_ticks: now_ticks,
            late_by_ticks,
        });
    }

    /// Called at every tick of a node that does not lead, or ignores a slow disk.
    pub(crate) fn reset(&mut self) {
        self.awaited = None;
        self.slow = None;
    }

    /// Called at every tick of a leader. Returns how many ticks this disk is behind those of a majority, if
    /// it has been so for long enough: then the leader should try once to transfer its leadership.
    pub(crate) fn tick(
        &mut self,
        commit: LogIndex,
        durable: LogIndex,
        now_ticks: u64,
        patience: Duration,
        config: &CheckedConfig,
    ) -> Option<u64> {
        self.slow_ticks = config.ticks(config.slow_write_time);
        if commit > durable {
            self.awaited.get_or_insert((commit, now_ticks));
        }
        let slow = self.slow?;
        let is_sustained =
            slow.count >= SLOW_WRITES_MIN && now_ticks - slow.since_ticks >= config.ticks(patience);
        if !is_sustained || now_ticks < self.pause_until_ticks || mutated!(SlowDiskKeepsTheLeader) {
            return None;
        }
        self.pause_until_ticks = now_ticks + config.ticks(patience * PAUSE);
        self.slow = None;
        Some(slow.late_by_ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// Consecutive slow writes, each late by 4 ticks, from `from` on; returns the tick at which the disk is
    /// found to be slow.
    fn found_slow(disk: &mut OwnDisk, from: u64, until: u64, config: &CheckedConfig) -> Option<u64> {
        let patience_ticks = config.ticks(PATIENCE);
        let mut since = (from, LogIndex(from));
        (from..until).find(|&now| {
            let late_by = disk.tick(since.1.next(), since.1, now, PATIENCE, config);
            if now - since.0 == 4 {
                disk.is_durable(since.1.next(), since.1.next(), now, patience_ticks);
                since = (now, since.1.next());
            }
            late_by.is_some()
        })
    }

    #[test]
    fn a_disk_is_slow_when_it_was_late_for_long_and_is_tried_again_after_a_pause() {
        let config = Config {
            tick_interval: Duration::from_millis(10),
            slow_disk_patience: Some(PATIENCE),
            slow_write_time: Duration::from_millis(20),
            ..Config::default()
        };
        let config = config.check().unwrap();
        let mut disk = OwnDisk::default();
        let found = found_slow(&mut disk, 0, 1000, &config).unwrap();
        assert!((20..=30).contains(&found), "{found}: after 200 ms");
        assert_eq!(
            found_slow(&mut disk, found + 1, found + 240, &config),
            None,
            "not again for 12 times as long"
        );
        assert!(found_slow(&mut disk, found + 240, 1000, &config).is_some());
    }

    #[test]
    fn one_write_in_time_ends_the_doubt() {
        let config =
            Config { tick_interval: Duration::from_millis(10), ..Config::default() }.check().unwrap();
        let mut disk = OwnDisk::default();
        let patience_ticks = config.ticks(PATIENCE);
        disk.tick(LogIndex(2), LogIndex(1), 0, PATIENCE, &config);
        disk.is_durable(LogIndex(2), LogIndex(2), 500, patience_ticks);
        assert!(disk.slow.is_some());
        disk.wrote(0);
        assert!(disk.slow.is_none());
    }
}
