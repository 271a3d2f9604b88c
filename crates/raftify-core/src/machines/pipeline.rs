//! Turns on their way to the disk: the turn that is being built, the turns that are issued and not yet known
//! to be written, and the bytes of their entries.

use std::collections::VecDeque;

use crate::entry::Entry;
use crate::message::RaftMessage;
use crate::storage::Write;
use crate::turn::{
    Committed, Forward, LogFetch, ReadRound, SnapshotReason, SnapshotToSend, Turn, TurnNumber,
};
use crate::types::Term;

/// See the module.
pub(crate) struct Pipeline<R> {
    next: NextTurn<R>,
    issued: TurnNumber,
    written: TurnNumber,
    /// The newest term, and the turn that writes it.
    term_written_with: (Term, TurnNumber),
    /// Issued and not yet known to be written, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Bytes of entries in these turns.
    unwritten_bytes: u64,
}

/// The known content of the next turn.
pub(crate) struct NextTurn<R> {
    pub(crate) write: Write,
    pub(crate) send_now: Vec<RaftMessage>,
    pub(crate) send_after: Vec<RaftMessage>,
    pub(crate) send_snapshots: Vec<SnapshotToSend>,
    pub(crate) committed: Vec<Committed<R>>,
    pub(crate) forward: Vec<Forward<R>>,
    pub(crate) read_round: Option<ReadRound>,
    pub(crate) take_snapshot: Option<SnapshotReason>,
    pub(crate) hurry_snapshot: bool,
}

struct InFlight {
    number: TurnNumber,
    issued_ticks: u64,
    /// The ready of consensus that waits for the write.
    ready_number: Option<u64>,
    has_write: bool,
    bytes: u64,
}

/// Turns that have become durable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The last ready of consensus among them.
    pub(crate) ready_number: Option<u64>,
    /// The shortest time that a turn with entries took.
    pub(crate) took_ticks: Option<u64>,
}

impl<R> Default for NextTurn<R> {
    fn default() -> Self {
        NextTurn {
            write: Write::default(),
            send_now: Vec::new(),
            send_after: Vec::new(),
            send_snapshots: Vec::new(),
            committed: Vec::new(),
            forward: Vec::new(),
            read_round: None,
            take_snapshot: None,
            hurry_snapshot: false,
        }
    }
}

impl<R> NextTurn<R> {
    fn is_empty(&self) -> bool {
        self.write.is_empty()
            && self.send_now.is_empty()
            && self.send_after.is_empty()
            && self.send_snapshots.is_empty()
            && self.committed.is_empty()
            && self.forward.is_empty()
            && self.read_round.is_none()
            && self.take_snapshot.is_none()
            && !self.hurry_snapshot
    }
}

impl<R> Pipeline<R> {
    /// `term` is durable.
    pub(crate) fn new(term: Term) -> Pipeline<R> {
        Pipeline {
            next: NextTurn::default(),
            issued: TurnNumber(0),
            written: TurnNumber(0),
            term_written_with: (term, TurnNumber(0)),
            in_flight: VecDeque::new(),
            unwritten_bytes: 0,
        }
    }

    /// The turn that is being built.
    pub(crate) fn next(&mut self) -> &mut NextTurn<R> {
        &mut self.next
    }

    /// The number of the turn that is being built.
    pub(crate) fn next_number(&self) -> TurnNumber {
        TurnNumber(self.issued.0 + 1)
    }

    /// All turns up to this one are durable.
    pub(crate) fn written(&self) -> TurnNumber {
        self.written
    }

    pub(crate) fn is_written(&self, turn: TurnNumber) -> bool {
        turn <= self.written
    }

    /// Bytes of entries that are issued and not yet durable.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes
    }

    /// Whether the present term of consensus is durable. A new term is written with the next turn.
    pub(crate) fn is_term_written(&mut self, term: Term) -> bool {
        if self.term_written_with.0 != term {
            self.term_written_with = (term, self.next_number());
        }
        self.is_written(self.term_written_with.1)
    }

    /// Closes the turn that is being built. `None` if there is no work.
    pub(crate) fn issue(
        &mut self,
        fetch: Vec<LogFetch>,
        ready_number: Option<u64>,
        now_ticks: u64,
    ) -> Option<Turn<R>> {
        if self.next.is_empty() && fetch.is_empty() {
            return None;
        }
        let mut next = std::mem::take(&mut self.next);
        let has_write = !next.write.is_empty();
        if !has_write && self.in_flight.is_empty() {
            // All writes that these messages depend on are durable.
            next.send_now.append(&mut next.send_after);
        }
        self.issued = self.next_number();
        let number = self.issued;
        let bytes = next.write.append.iter().map(Entry::size_bytes).sum();
        self.unwritten_bytes += bytes;
        self.in_flight.push_back(InFlight {
            number,
            issued_ticks: now_ticks,
            ready_number,
            has_write,
            bytes,
        });
        Some(Turn {
            number,
            send_now: next.send_now,
            write: has_write.then_some(next.write),
            send_after: next.send_after,
            send_snapshots: next.send_snapshots,
            committed: next.committed,
            forward: next.forward,
            read_round: next.read_round,
            fetch,
            take_snapshot: next.take_snapshot,
            hurry_snapshot: next.hurry_snapshot,
        })
    }

    /// Whether the oldest turn in flight has nothing to write, and thus counts as written.
    pub(crate) fn is_front_written(&self) -> bool {
        self.in_flight.front().is_some_and(|turn| !turn.has_write)
    }

    /// A ready of consensus that results in no turn. Returns whether a turn in flight counts for it:
    /// otherwise, it is written.
    pub(crate) fn joins_last(&mut self, ready_number: u64) -> bool {
        let Some(last) = self.in_flight.back_mut() else { return false };
        last.ready_number = Some(ready_number);
        true
    }

    /// All writes up to and including those of this turn are durable.
    pub(crate) fn note_written(&mut self, number: TurnNumber, now_ticks: u64) -> Written {
        let mut result = Written { ready_number: None, took_ticks: None };
        // A turn without a write is written as soon as the turns before it are.
        while let Some(turn) = self.in_flight.front()
            && (turn.number <= number || !turn.has_write)
        {
            self.written = turn.number;
            result.ready_number = turn.ready_number.or(result.ready_number);
            self.unwritten_bytes -= turn.bytes;
            if turn.bytes > 0 {
                let took_ticks = now_ticks - turn.issued_ticks;
                result.took_ticks = Some(result.took_ticks.map_or(took_ticks, |least| least.min(took_ticks)));
            }
            self.in_flight.pop_front();
        }
        result
    }

    /// Consensus starts again: it waits for none of the turns in flight.
    pub(crate) fn forget_readies(&mut self) {
        for turn in &mut self.in_flight {
            turn.ready_number = None;
        }
    }

    /// The tick since which the oldest write is in progress.
    pub(crate) fn oldest_write_ticks(&self) -> Option<u64> {
        self.in_flight.iter().find(|turn| turn.has_write).map(|turn| turn.issued_ticks)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::EntryKind;
    use crate::message::RaftMessageBody;
    use crate::types::{LogPosition, NodeId};

    fn pipeline() -> Pipeline<()> {
        Pipeline::new(Term(1))
    }

    fn message() -> RaftMessage {
        RaftMessage {
            from: NodeId::FIRST,
            to: NodeId::FIRST,
            term: Term(1),
            body: RaftMessageBody::TimeoutNow,
        }
    }

    fn append(pipeline: &mut Pipeline<()>, index: u64) {
        let position = LogPosition::new(1, index);
        pipeline.next().write.append.push(Entry { position, kind: EntryKind::User, payload: Bytes::new() });
    }

    #[test]
    fn a_turn_without_a_write_is_written_together_with_the_turns_before_it() {
        let mut pipeline = pipeline();
        append(&mut pipeline, 1);
        let first = pipeline.issue(Vec::new(), Some(7), 0).unwrap();
        pipeline.next().send_after.push(message());
        let second = pipeline.issue(Vec::new(), Some(8), 2).unwrap();
        assert_eq!((second.send_now.len(), second.send_after.len()), (0, 1), "it waits for the first");
        assert_eq!(pipeline.unwritten_bytes(), Entry::OVERHEAD_BYTES);
        let written = pipeline.note_written(first.number, 5);
        assert_eq!(written, Written { ready_number: Some(8), took_ticks: Some(5) });
        assert_eq!((pipeline.written(), pipeline.unwritten_bytes()), (second.number, 0));
    }

    #[test]
    fn messages_that_depend_on_no_write_leave_at_once() {
        let mut pipeline = pipeline();
        pipeline.next().send_after.push(message());
        let turn = pipeline.issue(Vec::new(), None, 0).unwrap();
        assert_eq!((turn.send_now.len(), turn.send_after.len()), (1, 0));
        assert!(pipeline.is_front_written());
    }

    #[test]
    fn a_new_term_is_written_when_the_turn_that_it_goes_with_is() {
        let mut pipeline = pipeline();
        assert!(pipeline.is_term_written(Term(1)));
        assert!(!pipeline.is_term_written(Term(2)));
        append(&mut pipeline, 1);
        let turn = pipeline.issue(Vec::new(), None, 0).unwrap();
        assert!(!pipeline.is_term_written(Term(2)));
        pipeline.note_written(turn.number, 1);
        assert!(pipeline.is_term_written(Term(2)));
    }

    #[test]
    fn a_ready_without_a_turn_waits_for_the_writes_before_it() {
        let mut pipeline = pipeline();
        assert!(pipeline.issue(Vec::new(), Some(1), 0).is_none());
        assert!(!pipeline.joins_last(1), "nothing is in flight");
        append(&mut pipeline, 1);
        let turn = pipeline.issue(Vec::new(), Some(2), 0).unwrap();
        assert!(pipeline.joins_last(3));
        assert_eq!(pipeline.oldest_write_ticks(), Some(0));
        assert_eq!(pipeline.note_written(turn.number, 0).ready_number, Some(3));
        assert_eq!(pipeline.oldest_write_ticks(), None);
    }
}
