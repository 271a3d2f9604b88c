//! The offsets of entries: kept in memory, 16 bytes for each.

use std::collections::VecDeque;

use raftify_core::LogIndex;

/// The offset of the frame of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryOffset {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) payload_bytes: u32,
}

/// The offsets of all entries, one for each index from `first` on.
#[derive(Debug, Default)]
pub(super) struct EntryOffsets {
    pub(super) first: LogIndex,
    pub(super) offsets: VecDeque<EntryOffset>,
}

impl EntryOffsets {
    /// The index after the last.
    pub(super) fn end(&self) -> LogIndex {
        LogIndex(self.first.0 + self.offsets.len() as u64)
    }

    /// Replaces everything from `first` on by `offsets`.
    pub(super) fn replace(&mut self, first: LogIndex, offsets: impl Iterator<Item = EntryOffset>) {
        let kept = first.0.saturating_sub(self.first.0);
        self.offsets.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        if self.offsets.is_empty() {
            self.first = first;
        }
        self.offsets.extend(offsets);
    }

    /// Drops everything up to `truncated`.
    pub(super) fn forget(&mut self, truncated: LogIndex) {
        let first = truncated.next();
        let gone = (first.0.saturating_sub(self.first.0)).min(self.offsets.len() as u64);
        self.offsets.drain(..gone as usize);
        self.first = first;
    }

    pub(super) fn at(&self, index: LogIndex) -> Option<EntryOffset> {
        let at = index.0.checked_sub(self.first.0)?;
        self.offsets.get(usize::try_from(at).ok()?).copied()
    }
}
