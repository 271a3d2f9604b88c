//! The schedule: a queue of events in the order of simulated time. Events of one moment come in the order in
//! which they were scheduled, so that their order is always determined.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Microseconds since the beginning of the world.
pub(crate) type Time = u64;

/// One second.
pub(crate) const SECOND: Time = 1_000_000;
/// One millisecond.
pub(crate) const MILLISECOND: Time = 1_000;

/// Future events.
pub(crate) struct Schedule<E> {
    now: Time,
    scheduled: u64,
    events: BinaryHeap<Reverse<Scheduled<E>>>,
}

struct Scheduled<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Scheduled<E> {
    fn key(&self) -> (Time, u64) {
        (self.at, self.number)
    }
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Scheduled<E> {}

impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Scheduled<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<E> Schedule<E> {
    pub(crate) fn new() -> Schedule<E> {
        Schedule { now: 0, scheduled: 0, events: BinaryHeap::new() }
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// Not before now.
    pub(crate) fn at(&mut self, at: Time, event: E) {
        self.scheduled += 1;
        self.events.push(Reverse(Scheduled { at: at.max(self.now), number: self.scheduled, event }));
    }

    pub(crate) fn after(&mut self, delay: Time, event: E) {
        self.at(self.now + delay, event);
    }

    /// Takes all events, in the order in which they were scheduled. No time passes.
    pub(crate) fn take_all(&mut self) -> Vec<E> {
        let mut events: Vec<_> = self.events.drain().map(|Reverse(scheduled)| scheduled).collect();
        events.sort_unstable_by_key(|scheduled| scheduled.number);
        events.into_iter().map(|scheduled| scheduled.event).collect()
    }

    /// The next event; advances the time.
    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse(Scheduled { at, event, .. }) = self.events.pop()?;
        self.now = at;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_ordered_by_time_and_then_by_their_scheduling() {
        let mut schedule = Schedule::new();
        for (at, event) in [(7, 'c'), (3, 'a'), (7, 'd'), (5, 'b')] {
            schedule.at(at, event);
        }
        let order: Vec<(Time, char)> =
            std::iter::from_fn(|| schedule.next().map(|event| (schedule.now, event))).collect();
        assert_eq!(order, [(3, 'a'), (5, 'b'), (7, 'c'), (7, 'd')]);
        schedule.at(1, 'e');
        schedule.next();
        assert_eq!(schedule.now(), 7, "time never goes back");
        schedule.at(9, 'f');
        schedule.at(8, 'g');
        assert_eq!((schedule.take_all(), schedule.now()), (vec!['f', 'g'], 7));
    }
}
