//! Committed entries on their way to the state machine: not yet delivered, delivered, applied.

use std::collections::VecDeque;

use crate::entry::Entry;
use crate::turn::{StateKept, TurnNumber};
use crate::types::{LogIndex, LogPosition};

/// See the module.
pub(crate) struct Delivery {
    state_kept: StateKept,
    /// Committed and not yet delivered, each with the turn in which it was committed.
    undelivered: VecDeque<(Entry, TurnNumber)>,
    /// The last entry that was delivered to the state machine.
    delivered: LogPosition,
    /// The last entry that was delivered with a reply channel.
    replies_until: LogIndex,
    /// The last entry that consensus counts as applied: see [`in_state_machine`](Self::in_state_machine).
    applied: LogIndex,
    /// Bytes that are delivered and not yet applied, one sum for each turn.
    unapplied: VecDeque<(LogIndex, u64)>,
    unapplied_bytes: u64,
    /// Snapshots that the state machine may not have restored yet; the one of the start is the first.
    restoring: Vec<LogPosition>,
}

impl Delivery {
    /// The state machine is at `position`, or will be once it has restored `snapshot`.
    pub(crate) fn new(
        state_kept: StateKept,
        position: LogPosition,
        snapshot: Option<LogPosition>,
    ) -> Delivery {
        Delivery {
            state_kept,
            undelivered: VecDeque::new(),
            delivered: position,
            replies_until: LogIndex::ZERO,
            applied: position.index,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            restoring: Vec::from_iter(snapshot),
        }
    }

    /// A new cluster begins at `position`.
    pub(crate) fn begin_at(&mut self, position: LogPosition) {
        self.delivered = position;
        self.applied = position.index;
    }

    /// Adds entries that were committed in `turn`. Skips those that were delivered before.
    pub(crate) fn add(&mut self, committed: Vec<Entry>, turn: TurnNumber) {
        let delivered = self.delivered.index;
        let new =
            committed.into_iter().filter(|entry| entry.position.index > delivered || mutated!(DeliversTwice));
        self.undelivered.extend(new.map(|entry| (entry, turn)));
    }

    /// The next entry, if it may be delivered.
    pub(crate) fn take_next(&mut self, may: impl FnOnce(&Entry, TurnNumber) -> bool) -> Option<Entry> {
        let (entry, turn) = self.undelivered.front()?;
        if !may(entry, *turn) {
            return None;
        }
        self.undelivered.pop_front().map(|(entry, _)| entry)
    }

    /// Whether entries may be delivered before they are durable on this node: the state machine is in memory,
    /// and has received everything that is durable.
    pub(crate) fn may_go_beyond_durable(&self) -> bool {
        let waits = self.state_kept == StateKept::OnDisk && !mutated!(OnDiskMachineGetsUnsynced);
        !waits && self.undelivered.is_empty()
    }

    /// The entry at `position` is delivered, with or without a reply channel.
    pub(crate) fn deliver(&mut self, position: LogPosition, has_reply: bool) {
        self.delivered = position;
        if has_reply {
            self.replies_until = position.index;
        }
    }

    /// The last entry that was delivered.
    pub(crate) fn delivered(&self) -> LogPosition {
        self.delivered
    }

    /// This many bytes of the entries delivered after `before` are not yet applied.
    pub(crate) fn count_unapplied(&mut self, before: LogIndex, bytes: u64) {
        if self.delivered.index > before {
            self.unapplied.push_back((self.delivered.index, bytes));
            self.unapplied_bytes += bytes;
        }
    }

    pub(crate) fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// A snapshot of a leader replaces everything up to `position`.
    pub(crate) fn install(&mut self, position: LogPosition) {
        self.undelivered.retain(|(entry, _)| entry.position.index > position.index);
        self.delivered = position;
        self.restoring.push(position);
    }

    /// The state machine has applied everything up to `index`. Returns whether that is new to consensus.
    pub(crate) fn note_applied(&mut self, index: LogIndex) -> bool {
        self.restoring.retain(|position| position.index > index);
        if index <= self.applied {
            // The snapshot of the start is restored.
            return false;
        }
        self.applied = index;
        while let Some((last, bytes)) = self.unapplied.front()
            && *last <= index
        {
            self.unapplied_bytes -= bytes;
            self.unapplied.pop_front();
        }
        true
    }

    /// The last entry that consensus counts as applied.
    pub(crate) fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The last entry that the state machine has applied. Consensus counts the snapshot of the start as
    /// applied long before it is restored.
    pub(crate) fn in_state_machine(&self) -> LogIndex {
        let is_restored = self.restoring.iter().all(|position| position.index > self.applied);
        if is_restored { self.applied } else { LogIndex::ZERO }
    }

    /// Snapshots that the state machine may not have restored yet.
    pub(crate) fn restoring(&self) -> &[LogPosition] {
        &self.restoring
    }

    /// Whether the state machine has answered every reply channel that was delivered with an entry.
    pub(crate) fn is_answered(&self) -> bool {
        self.in_state_machine() >= self.replies_until
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::EntryKind;

    fn entries(indexes: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
        let entry = |index| Entry {
            position: LogPosition::new(1, index),
            kind: EntryKind::User,
            payload: Bytes::new(),
        };
        indexes.map(entry).collect()
    }

    fn deliver_all(delivery: &mut Delivery) -> Vec<u64> {
        let mut delivered = Vec::new();
        while let Some(entry) = delivery.take_next(|_, _| true) {
            delivery.deliver(entry.position, false);
            delivered.push(entry.position.index.0);
        }
        delivered
    }

    #[test]
    fn entries_that_were_delivered_before_they_were_durable_are_not_delivered_again() {
        let mut delivery = Delivery::new(StateKept::InMemory, LogPosition::ZERO, None);
        assert!(delivery.may_go_beyond_durable());
        delivery.deliver(LogPosition::new(1, 1), false);
        delivery.deliver(LogPosition::new(1, 2), false);
        delivery.add(entries(1..=4), TurnNumber(1));
        assert!(!delivery.may_go_beyond_durable(), "what is durable comes first");
        assert_eq!(deliver_all(&mut delivery), [3, 4]);
        assert!(!Delivery::new(StateKept::OnDisk, LogPosition::ZERO, None).may_go_beyond_durable());
    }

    #[test]
    fn the_snapshot_of_the_start_counts_once_it_is_restored() {
        let at = LogPosition::new(1, 7);
        let mut delivery = Delivery::new(StateKept::InMemory, at, Some(at));
        assert_eq!((delivery.applied(), delivery.in_state_machine()), (at.index, LogIndex::ZERO));
        assert!(!delivery.note_applied(at.index), "consensus counts it already");
        assert_eq!(delivery.in_state_machine(), at.index);
    }

    #[test]
    fn bytes_are_counted_until_their_turn_is_applied() {
        let mut delivery = Delivery::new(StateKept::InMemory, LogPosition::ZERO, None);
        delivery.add(entries(1..=2), TurnNumber(1));
        deliver_all(&mut delivery);
        delivery.count_unapplied(LogIndex::ZERO, 10);
        delivery.add(entries(3..=3), TurnNumber(2));
        deliver_all(&mut delivery);
        delivery.count_unapplied(LogIndex(2), 5);
        delivery.count_unapplied(LogIndex(3), 0);
        assert!(delivery.note_applied(LogIndex(1)));
        assert_eq!(delivery.unapplied_bytes(), 15);
        delivery.note_applied(LogIndex(2));
        assert_eq!(delivery.unapplied_bytes(), 5);
        delivery.note_applied(LogIndex(3));
        assert_eq!(delivery.unapplied_bytes(), 0);
    }

    #[test]
    fn an_installed_snapshot_takes_the_place_of_what_was_not_delivered() {
        let mut delivery = Delivery::new(StateKept::InMemory, LogPosition::ZERO, None);
        delivery.add(entries(1..=4), TurnNumber(1));
        delivery.install(LogPosition::new(2, 3));
        assert_eq!(delivery.restoring(), [LogPosition::new(2, 3)]);
        assert_eq!(deliver_all(&mut delivery), [4]);
    }
}
