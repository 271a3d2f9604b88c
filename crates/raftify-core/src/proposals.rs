//! Answers that are owed for entries of the log, by position.
//!
//! A waiter is resolved by the entry that is applied at its index: the same term there means success, another one that
//! its entry lost its place for good. Nothing else decides; losing leadership alone decides nothing, because the next
//! leader may still commit the entry.

use std::collections::{BTreeMap, VecDeque};

use crate::types::{LogIndex, LogPosition, Term};

/// Who waits, for which position, and until when.
#[derive(Debug)]
pub(crate) struct AnswersOwed<W> {
    /// For each term in order of the index. Nearly always, only one term is waited for; one index may be waited for in
    /// several.
    waiting: BTreeMap<Term, VecDeque<Waiter<W>>>,
}

#[derive(Debug)]
struct Waiter<W> {
    index: LogIndex,
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
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Of one term, positions and deadlines must come in order.
    pub(crate) fn insert(&mut self, position: LogPosition, who: W, deadline_ticks: u64) {
        let of_the_term = self.waiting.entry(position.term).or_default();
        debug_assert!(of_the_term.back().is_none_or(|last| last.index < position.index), "{position} again");
        of_the_term.push_back(Waiter { index: position.index, who, deadline_ticks });
    }

    /// The entry at `position` is being applied; entries are applied in order.
    pub(crate) fn resolve(&mut self, position: LogPosition) -> Resolved<W> {
        let mut resolved = Resolved { applied: None, superseded: Vec::new() };
        for (&term, waiting) in &mut self.waiting {
            while let Some(waiter) = pop_front_if(waiting, |waiter| waiter.index <= position.index) {
                let by_index = mutated!(AnswersByIndexAlone) && waiter.index == position.index;
                if by_index || (term, waiter.index) == (position.term, position.index) {
                    resolved.applied = Some(waiter.who);
                } else {
                    resolved.superseded.push(waiter.who);
                }
            }
        }
        if self.waiting.len() > 1 {
            self.waiting.retain(|_, waiting| !waiting.is_empty());
        }
        resolved
    }

    /// A snapshot covers everything up to `index`: whether these entries are part of it is not known.
    pub(crate) fn take_covered(&mut self, index: LogIndex) -> Vec<W> {
        self.take_while(|waiter| waiter.index <= index)
    }

    /// Whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now_ticks: u64) -> Vec<W> {
        self.take_while(|waiter| waiter.deadline_ticks <= now_ticks)
    }

    /// The first of each term.
    fn take_while(&mut self, is_taken: impl Fn(&Waiter<W>) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        for waiting in self.waiting.values_mut() {
            while let Some(waiter) = pop_front_if(waiting, &is_taken) {
                taken.push(waiter.who);
            }
        }
        taken
    }

    pub(crate) fn take_all(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiting).into_values().flatten().map(|waiter| waiter.who).collect()
    }
}

fn pop_front_if<T>(queue: &mut VecDeque<T>, condition: impl Fn(&T) -> bool) -> Option<T> {
    if condition(queue.front()?) { queue.pop_front() } else { None }
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
