//! A summary of a log: for every index the term, and a digest of everything up to there.
//!
//! Two logs with the same digest at an index are the same up to it. That makes it cheap to compare whole logs
//! after every step.

use std::collections::VecDeque;

use raftify_core::storage::Write;
use raftify_core::{Entry, EntryKind, LogIndex, LogPosition, Term};

/// The digest of a log up to an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest(pub(crate) u64);

impl Digest {
    /// The digest of the empty log of every cluster.
    pub(crate) const BEGIN: Digest = Digest(0);

    /// The digest of this log with `entry` after it.
    #[must_use]
    pub(crate) fn followed_by(self, entry: &Entry) -> Digest {
        let LogPosition { term, index } = entry.position;
        let head = [term.0, index.0, u64::from(entry.kind.number()), entry.payload.len() as u64];
        let payload = entry.payload.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        head.into_iter().chain(payload).fold(self, Digest::mixed_with)
    }

    /// splitmix64.
    #[must_use]
    pub(crate) fn mixed_with(self, word: u64) -> Digest {
        let mut z = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Digest(z ^ (z >> 31))
    }
}

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) term: Term,
    pub(crate) digest: Digest,
    pub(crate) is_change: bool,
}

/// The summary of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogPicture {
    /// The position before the first entry.
    pub(crate) truncated: LogPosition,
    truncated_digest: Digest,
    places: VecDeque<Place>,
}

impl Default for LogPicture {
    fn default() -> Self {
        LogPicture::beginning_after(LogPosition::ZERO, Digest::BEGIN)
    }
}

impl LogPicture {
    pub(crate) fn beginning_after(truncated: LogPosition, truncated_digest: Digest) -> LogPicture {
        LogPicture { truncated, truncated_digest, places: VecDeque::new() }
    }

    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.truncated.index.0 + self.places.len() as u64)
    }

    pub(crate) fn last_position(&self) -> LogPosition {
        let term = self.places.back().map_or(self.truncated.term, |place| place.term);
        LogPosition { term, index: self.last() }
    }

    /// The entry at `index`; `None` outside of the log.
    pub(crate) fn at(&self, index: LogIndex) -> Option<&Place> {
        let offset = index.0.checked_sub(self.truncated.index.0 + 1)?;
        self.places.get(usize::try_from(offset).ok()?)
    }

    /// The digest of everything up to `index`; `None` outside of the log.
    pub(crate) fn digest(&self, index: LogIndex) -> Option<Digest> {
        if index == self.truncated.index {
            return Some(self.truncated_digest);
        }
        self.at(index).map(|place| place.digest)
    }

    pub(crate) fn last_digest(&self) -> Digest {
        self.places.back().map_or(self.truncated_digest, |place| place.digest)
    }

    /// Whether everything up to `index` is here, with this digest, or covered by a snapshot.
    pub(crate) fn holds(&self, index: LogIndex, digest: Digest) -> bool {
        index < self.truncated.index || self.digest(index) == Some(digest)
    }

    /// The number of membership changes after `index`.
    pub(crate) fn changes_after(&self, index: LogIndex) -> usize {
        let skipped = index.0.saturating_sub(self.truncated.index.0) as usize;
        self.places.iter().skip(skipped).filter(|place| place.is_change).count()
    }

    /// Applies a write as a storage does. `digest_of` returns the digest of a snapshot, with which a log
    /// begins.
    pub(crate) fn take(&mut self, write: &Write, digest_of: impl FnOnce(LogPosition) -> Digest) {
        if let Some(position) = write.reset_log {
            *self = LogPicture::beginning_after(position, digest_of(position));
        }
        if let Some(first) = write.append.first() {
            let kept = first.position.index.0.saturating_sub(self.truncated.index.0 + 1);
            self.places.truncate(kept as usize);
        }
        for entry in &write.append {
            self.places.push_back(Place {
                term: entry.position.term,
                digest: self.last_digest().followed_by(entry),
                is_change: entry.kind == EntryKind::MembershipChange,
            });
        }
        if let Some(position) = write.compact
            && position.index > self.truncated.index
            && let Some(digest) = self.digest(position.index)
        {
            self.places.drain(..(position.index.0 - self.truncated.index.0) as usize);
            (self.truncated, self.truncated_digest) = (position, digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64, payload: &'static [u8]) -> Entry {
        Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload: payload.into() }
    }

    fn append(picture: &mut LogPicture, entries: Vec<Entry>) {
        let write = Write { append: entries, ..Write::default() };
        picture.take(&write, |_| Digest::BEGIN);
    }

    #[test]
    fn logs_are_equal_up_to_the_last_equal_digest() {
        let (mut one, mut other) = (LogPicture::default(), LogPicture::default());
        append(&mut one, vec![entry(1, 1, b"a"), entry(1, 2, b"b"), entry(1, 3, b"c")]);
        append(&mut other, vec![entry(1, 1, b"a"), entry(1, 2, b"x"), entry(2, 3, b"c")]);
        assert_eq!(one.digest(LogIndex(1)), other.digest(LogIndex(1)));
        assert_ne!(one.digest(LogIndex(2)), other.digest(LogIndex(2)));
        assert_ne!(one.digest(LogIndex(3)), other.digest(LogIndex(3)), "earlier entries differ");
        append(&mut other, vec![entry(1, 2, b"b"), entry(1, 3, b"c")]);
        assert_eq!(one, other);
    }

    #[test]
    fn compaction_keeps_the_digest_of_the_removed_entries() {
        let mut whole = LogPicture::default();
        append(&mut whole, vec![entry(1, 1, b"a"), entry(1, 2, b"b"), entry(2, 3, b"c")]);
        let mut cut = whole.clone();
        let compact = Some(LogPosition::new(1, 2));
        cut.take(&Write { compact, ..Write::default() }, |_| Digest::BEGIN);
        assert_eq!((cut.last(), cut.last_digest()), (whole.last(), whole.last_digest()));
        assert_eq!(cut.digest(LogIndex(2)), whole.digest(LogIndex(2)));
        assert_eq!(cut.digest(LogIndex(1)), None);
        assert!(cut.holds(LogIndex(1), Digest(7)) && !cut.holds(LogIndex(2), Digest(7)));
    }
}
