//! Answers that are owed for entries of the log, by position.
//!
//! A waiter is resolved by the entry that is applied at its index: the same term there means success, another one that
//! its entry lost its place for good. Nothing else decides; losing leadership alone decides nothing, because the next
//! leader may still commit the entry.

use std::collections::BTreeMap;

use crate::types::{LogIndex, LogPosition, Term};

/// Who waits, for which position, and until when.
#[derive(Debug)]
pub(crate) struct AnswersOwed<W> {
    /// By index first: one index may be waited for in several terms.
    waiting: BTreeMap<(LogIndex, Term), Waiter<W>>,
}

#[derive(Debug)]
struct Waiter<W> {
    who: W,
    deadline_ticks: u64,
}

/// Who is resolved by an applied entry.
#[derive(Debug)]
pub(crate) struct Resolved<W> {
    /// Waits for exactly this entry.
    pub(crate) applied: Option<W>,
    /// Waited for an entry whose place it took.
    pub(crate) superseded: Vec<W>,
}

impl<W> AnswersOwed<W> {
    pub(crate) fn new() -> Self {
        AnswersOwed { waiting: BTreeMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn insert(&mut self, position: LogPosition, who: W, deadline_ticks: u64) {
        let replaced = self.waiting.insert((position.index, position.term), Waiter { who, deadline_ticks });
        debug_assert!(replaced.is_none(), "two proposals at {position}");
    }

    /// The entry at `position` is being applied; entries are applied in order.
    pub(crate) fn resolve(&mut self, position: LogPosition) -> Resolved<W> {
        let mut resolved = Resolved { applied: None, superseded: Vec::new() };
        while let Some(first) = self.waiting.first_entry() {
            let (index, term) = *first.key();
            if index > position.index {
                break;
            }
            let who = first.remove().who;
            if (index, term) == (position.index, position.term) {
                resolved.applied = Some(who);
            } else {
                resolved.superseded.push(who);
            }
        }
        resolved
    }

    /// A snapshot covers everything up to `index`: whether these entries are part of it is not known.
    pub(crate) fn take_covered(&mut self, index: LogIndex) -> Vec<W> {
        let later = self.waiting.split_off(&(index.next(), Term::ZERO));
        let covered = std::mem::replace(&mut self.waiting, later);
        covered.into_values().map(|waiter| waiter.who).collect()
    }

    /// Whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now_ticks: u64) -> Vec<W> {
        let expired = self.waiting.extract_if(.., |_, waiter| waiter.deadline_ticks <= now_ticks);
        expired.map(|(_, waiter)| waiter.who).collect()
    }

    pub(crate) fn take_all(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiting).into_values().map(|waiter| waiter.who).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_term_at_the_index_is_no_success() {
        let mut owed = AnswersOwed::new();
        owed.insert(LogPosition::new(2, 7), "lost", 10);
        owed.insert(LogPosition::new(3, 7), "won", 10);
        owed.insert(LogPosition::new(3, 8), "later", 10);
        let resolved = owed.resolve(LogPosition::new(3, 7));
        assert_eq!(resolved.applied, Some("won"));
        assert_eq!(resolved.superseded, ["lost"]);
        assert_eq!(owed.len(), 1);
    }

    #[test]
    fn a_snapshot_covers_what_lies_at_or_before_it() {
        let mut owed = AnswersOwed::new();
        owed.insert(LogPosition::new(1, 4), "before", 10);
        owed.insert(LogPosition::new(9, 5), "at", 10);
        owed.insert(LogPosition::new(1, 6), "after", 10);
        assert_eq!(owed.take_covered(LogIndex(5)), ["before", "at"]);
        assert_eq!(owed.take_all(), ["after"]);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let mut owed = AnswersOwed::new();
        owed.insert(LogPosition::new(1, 1), "soon", 10);
        owed.insert(LogPosition::new(1, 2), "late", 11);
        assert_eq!(owed.take_expired(10), ["soon"]);
        assert_eq!(owed.len(), 1);
    }
}
