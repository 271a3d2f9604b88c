//! Replies that wait for log entries, by position.
//!
//! A reply is resolved by the entry that is applied at its index: the same term means success, another term
//! means that its entry was superseded permanently. Nothing else resolves it: when leadership is lost, the
//! next leader may still commit the entry.

use std::collections::VecDeque;

use crate::types::{LogIndex, LogPosition, Term};

/// The waiting replies, each with its position and its deadline.
#[derive(Debug)]
pub(crate) struct PendingReplies<W> {
    /// The terms in order, and for each its replies in order of the index. Nearly always, replies wait for
    /// one term only; replies may wait for one index in several terms.
    waiting: Vec<(Term, VecDeque<Waiter<W>>)>,
}

#[derive(Debug)]
struct Waiter<W> {
    index: LogIndex,
    reply: W,
    deadline_ticks: u64,
}

/// Replies that an applied entry resolves.
#[derive(Debug)]
pub(crate) struct Resolved<W> {
    /// The reply that waits for exactly this entry.
    pub(crate) applied: Option<W>,
    /// The replies that wait for another entry at this index.
    pub(crate) superseded: Vec<W>,
}

impl<W> PendingReplies<W> {
    pub(crate) fn new() -> Self {
        PendingReplies { waiting: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.iter().map(|(_, waiting)| waiting.len()).sum()
    }

    /// Terms must come in order; within one term, also positions and deadlines.
    pub(crate) fn insert(&mut self, position: LogPosition, reply: W, deadline_ticks: u64) {
        let waiter = Waiter { index: position.index, reply, deadline_ticks };
        match self.waiting.last_mut() {
            Some((term, of_the_term)) if *term == position.term => {
                let is_next = of_the_term.back().is_none_or(|last| last.index < position.index);
                debug_assert!(is_next, "{position} again");
                of_the_term.push_back(waiter);
            }
            last => {
                debug_assert!(
                    last.is_none_or(|(term, _)| *term < position.term),
                    "{position} is of an earlier term"
                );
                self.waiting.push((position.term, VecDeque::from([waiter])));
            }
        }
    }

    /// The entry at `position` is being applied; entries are applied in order.
    pub(crate) fn resolve(&mut self, position: LogPosition) -> Resolved<W> {
        let mut resolved = Resolved { applied: None, superseded: Vec::new() };
        for &mut (term, ref mut waiting) in &mut self.waiting {
            while let Some(waiter) = pop_front_if(waiting, |waiter| waiter.index <= position.index) {
                let by_index = mutated!(AnswersByIndexAlone) && waiter.index == position.index;
                if by_index || (term, waiter.index) == (position.term, position.index) {
                    resolved.applied = Some(waiter.reply);
                } else {
                    resolved.superseded.push(waiter.reply);
                }
            }
        }
        if self.waiting.len() > 1 {
            self.waiting.retain(|(_, waiting)| !waiting.is_empty());
        }
        resolved
    }

    /// A snapshot covers everything up to `index`: it is unknown whether these entries are part of it.
    pub(crate) fn take_covered(&mut self, index: LogIndex) -> Vec<W> {
        self.take_while(|waiter| waiter.index <= index)
    }

    /// The replies whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now_ticks: u64) -> Vec<W> {
        self.take_while(|waiter| waiter.deadline_ticks <= now_ticks)
    }

    /// Takes the first replies of each term.
    fn take_while(&mut self, is_taken: impl Fn(&Waiter<W>) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        for (_, waiting) in &mut self.waiting {
            while let Some(waiter) = pop_front_if(waiting, &is_taken) {
                taken.push(waiter.reply);
            }
        }
        taken
    }

    pub(crate) fn take_all(&mut self) -> Vec<W> {
        let waiting = std::mem::take(&mut self.waiting).into_iter().flat_map(|(_, waiting)| waiting);
        waiting.map(|waiter| waiter.reply).collect()
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
        let mut pending = PendingReplies::new();
        pending.insert(LogPosition::new(2, 7), "lost", 10);
        pending.insert(LogPosition::new(3, 7), "won", 10);
        pending.insert(LogPosition::new(3, 8), "later", 10);
        let resolved = pending.resolve(LogPosition::new(3, 7));
        assert_eq!(resolved.applied, Some("won"));
        assert_eq!(resolved.superseded, ["lost"]);
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn a_snapshot_covers_what_lies_at_or_before_it() {
        let mut pending = PendingReplies::new();
        pending.insert(LogPosition::new(1, 4), "before", 10);
        pending.insert(LogPosition::new(1, 6), "after", 10);
        pending.insert(LogPosition::new(9, 5), "at", 10);
        assert_eq!(pending.take_covered(LogIndex(5)), ["before", "at"]);
        assert_eq!(pending.take_all(), ["after"]);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let mut pending = PendingReplies::new();
        pending.insert(LogPosition::new(1, 1), "soon", 10);
        pending.insert(LogPosition::new(1, 2), "late", 11);
        assert_eq!(pending.take_expired(10), ["soon"]);
        assert_eq!(pending.len(), 1);
    }
}
