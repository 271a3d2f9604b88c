//! Whether the disk of this leader is slower than those of a majority, and what follows from it: another one should lead.
//!
//! Judged by what it costs: how much later entries become durable here than on a majority, which the leader sees in its
//! commit index going ahead of its own log. Counted in ticks.

use tracing::warn;

use super::RaftNodeCore;
use crate::request::ProposalReply;
use crate::types::LogIndex;

/// Fewer slow writes than this are no slow disk.
const SLOW_WRITES_MIN: u64 = 3;

/// For so many times [`slow_disk_patience`](crate::Config::slow_disk_patience), a node does not hand over once more
/// because of its disk.
const PAUSE: u32 = 12;

/// What a leader has seen of its own disk.
#[derive(Debug, Default)]
pub(super) struct OwnDisk {
    /// An entry that a majority has and this node's disk does not, and since which tick at least.
    awaited: Option<(LogIndex, u64)>,
    slow: Option<SlowWrites>,
    /// Fewer ticks than this are not slow; it is known after the first tick.
    slow_ticks: u64,
    /// No further hand-over before.
    pause_until_ticks: u64,
}

/// Writes that were later here than on a majority, one after the other.
#[derive(Clone, Copy, Debug)]
struct SlowWrites {
    count: u64,
    since_ticks: u64,
    last_ticks: u64,
    /// By how much the last one was later.
    late_by_ticks: u64,
}

impl OwnDisk {
    /// Entries are durable here so many ticks after they were handed to the disk.
    pub(super) fn wrote(&mut self, took_ticks: u64) {
        if took_ticks <= self.slow_ticks {
            self.slow = None;
        }
    }

    /// Everything up to `durable` is durable here, and up to `commit` on a majority.
    fn is_durable(&mut self, durable: LogIndex, commit: LogIndex, now_ticks: u64, patience_ticks: u64) {
        if durable > commit {
            // The others are no faster.
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
}

impl<R: ProposalReply> RaftNodeCore<R> {
    /// With every tick.
    pub(super) fn look_at_own_disk(&mut self) {
        let patience = self.config.slow_disk_patience;
        if !self.consensus.is_leader() || patience.is_zero() {
            self.own_disk.awaited = None;
            self.own_disk.slow = None;
            return;
        }
        let (commit, durable, now) = (self.consensus.commit(), self.consensus.durable(), self.now_ticks);
        let disk = &mut self.own_disk;
        disk.slow_ticks = self.config.ticks(self.config.slow_write_time);
        if commit > durable {
            disk.awaited.get_or_insert((commit, now));
        }
        let Some(slow) = disk.slow else { return };
        let is_sustained =
            slow.count >= SLOW_WRITES_MIN && now - slow.since_ticks >= self.config.ticks(patience);
        if !is_sustained || now < disk.pause_until_ticks || mutated!(SlowDiskKeepsTheLeader) {
            return;
        }
        disk.pause_until_ticks = now + self.config.ticks(patience * PAUSE);
        disk.slow = None;
        let late_by =
            self.config.tick_interval.saturating_mul(u32::try_from(slow.late_by_ticks).unwrap_or(u32::MAX));
        match self.hand_over(&std::sync::Arc::clone(&self.members)) {
            Ok(()) => warn!(
                node = %self.node_id,
                "hands over leadership: for {patience:?}, this node's disk has been later than those of a majority, by \
                 about {late_by:?}"
            ),
            Err(error) => warn!(
                node = %self.node_id,
                "this node leads, and its disk is later than those of a majority by about {late_by:?}; it cannot hand \
                 over: {error}"
            ),
        }
    }

    /// Some of the log has become durable; before that counted, everything up to `commit` was so on a majority.
    pub(super) fn has_become_durable(&mut self, commit: LogIndex) {
        if self.consensus.is_leader() {
            let patience_ticks = self.config.ticks(self.config.slow_disk_patience);
            self.own_disk.is_durable(self.consensus.durable(), commit, self.now_ticks, patience_ticks);
        }
    }
}
