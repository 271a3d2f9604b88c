//! Waiting linearizable reads (ReadIndex, thesis section 6.4).
//!
//! One round is in progress at a time: on the leader a round of heartbeats, on other nodes a request to the
//! leader. All reads that arrive meanwhile join the next round, never one that began before them. A confirmed
//! read waits here until this node has applied its index.

use std::collections::BTreeMap;

use crate::error::ReadError;
use crate::request::Responder;
use crate::types::{LogIndex, NodeId};

/// A waiting read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) reply: Responder<LogIndex, ReadError>,
    pub(crate) serve: Serve,
    pub(crate) deadline_ticks: u64,
}

/// When a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serve {
    /// For the user of this node: once the index is applied on this node.
    WhenApplied,
    /// For another node, which waits itself until it has applied the index: once the index is confirmed.
    WhenConfirmed,
}

/// How a round is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundKind {
    /// By heartbeats of this leader.
    Heartbeats,
    /// By a request to this leader.
    AskLeader(NodeId),
}

#[derive(Debug)]
struct Round {
    number: u64,
    kind: RoundKind,
    /// The commit index that this node knew when the round began.
    commit: LogIndex,
    reads: Vec<Read>,
}

/// All waiting reads.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    for_next_round: Vec<Read>,
    under_way: Option<Round>,
    for_applied: BTreeMap<LogIndex, Vec<Read>>,
    last_round: u64,
    /// A round has failed since the last tick: the next round waits for the next tick, or for another
    /// leader.
    paused: bool,
    leader: Option<NodeId>,
}

impl Reads {
    pub(crate) fn len(&self) -> usize {
        let riding = self.under_way.as_ref().map_or(0, |round| round.reads.len());
        self.for_next_round.len() + riding + self.for_applied.values().map(Vec::len).sum::<usize>()
    }

    pub(crate) fn add(&mut self, read: Read) {
        self.for_next_round.push(read);
    }

    /// Whether reads wait for a round and none is in progress.
    pub(crate) fn wants_round(&self) -> bool {
        self.under_way.is_none() && !self.for_next_round.is_empty() && !self.paused
    }

    pub(crate) fn begin_round(&mut self, kind: RoundKind, commit: LogIndex) -> u64 {
        self.last_round += 1;
        let reads = std::mem::take(&mut self.for_next_round);
        self.under_way = Some(Round { number: self.last_round, kind, commit, reads });
        self.last_round
    }

    /// Whether a leader that confirms `index` has lost writes: every leader that has committed an entry of its
    /// own term knows all that was committed when the round began.
    pub(crate) fn shows_lost_writes(&self, number: u64, index: LogIndex) -> bool {
        let is_below = |round: &Round| round.number == number && index < round.commit;
        self.under_way.as_ref().is_some_and(is_below) && !mutated!(RolledBackLeaderConfirmsReads)
    }

    /// A quorum confirmed that every write acknowledged before the round began is at or before `index`.
    pub(crate) fn confirmed(&mut self, number: u64, index: LogIndex, applied: LogIndex) {
        let Some(round) = self.under_way.take_if(|round| round.number == number) else {
            return;
        };
        for read in round.reads {
            if read.serve == Serve::WhenConfirmed || index <= applied || mutated!(ReadsBeforeApplied) {
                read.reply.answer(Ok(index));
            } else {
                self.for_applied.entry(index).or_default().push(read);
            }
        }
    }

    /// The round failed: its reads join the next one, which begins after the next tick, so that the node does
    /// not send requests to a stopped leader without a pause.
    pub(crate) fn failed(&mut self, number: u64) {
        self.paused = true;
        if let Some(mut round) = self.under_way.take_if(|round| round.number == number) {
            self.for_next_round.append(&mut round.reads);
        }
    }

    /// Leadership changed: a round of heartbeats will get no response any more. A read of another node
    /// returns to that node, which will ask the new leader.
    pub(crate) fn leadership_lost(&mut self) {
        if let Some(round) = self.under_way.take_if(|round| round.kind == RoundKind::Heartbeats) {
            self.for_next_round.extend(round.reads);
        }
        for read in self.for_next_round.extract_if(.., |read| read.serve == Serve::WhenConfirmed) {
            read.reply.answer(Err(ReadError::NoLeader));
        }
    }

    /// The present known leader. A round that asked another leader, which may hang and never answer, is
    /// dropped: its reads join the next round.
    pub(crate) fn leader_is(&mut self, leader: NodeId) {
        if self.leader.replace(leader) != Some(leader) {
            self.paused = false;
        }
        let asks_another =
            |round: &mut Round| matches!(round.kind, RoundKind::AskLeader(asked) if asked != leader);
        if let Some(round) = self.under_way.take_if(asks_another) {
            self.for_next_round.extend(round.reads);
        }
    }

    pub(crate) fn applied(&mut self, applied: LogIndex) {
        while let Some(first) = self.for_applied.first_entry()
            && *first.key() <= applied
        {
            let index = *first.key();
            for read in first.remove() {
                read.reply.answer(Ok(index));
            }
        }
    }

    /// Called at every tick: ends a pause, and answers the reads whose deadline has passed.
    pub(crate) fn tick(&mut self, now_ticks: u64, late: &ReadError) {
        self.paused = false;
        let mut expired = Vec::new();
        let is_expired = |read: &mut Read| read.deadline_ticks <= now_ticks && !mutated!(ReadsHaveNoDeadline);
        expired.extend(self.for_next_round.extract_if(.., is_expired));
        if let Some(round) = &mut self.under_way {
            expired.extend(round.reads.extract_if(.., is_expired));
        }
        for reads in self.for_applied.values_mut() {
            expired.extend(reads.extract_if(.., is_expired));
        }
        self.for_applied.retain(|_, reads| !reads.is_empty());
        // A round of heartbeats without remaining reads is dropped: its answer may never come.
        self.under_way.take_if(|round| round.reads.is_empty() && round.kind == RoundKind::Heartbeats);
        for read in expired {
            read.reply.answer(Err(late.clone()));
        }
    }

    pub(crate) fn take_all(&mut self) -> Vec<Read> {
        let mut all = std::mem::take(&mut self.for_next_round);
        all.extend(self.under_way.take().into_iter().flat_map(|round| round.reads));
        all.extend(std::mem::take(&mut self.for_applied).into_values().flatten());
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_leader_that_hangs_keeps_no_read_from_asking_its_successor() {
        let [old, new] = [2, 3].map(|id| NodeId::new(id).unwrap());
        let (answered, answer) = mpsc::channel();
        let reply = Responder::new(move |answer| answered.send(answer).unwrap());
        let mut reads = Reads::default();
        reads.add(Read { reply, serve: Serve::WhenApplied, deadline_ticks: 100 });
        let asked_old = reads.begin_round(RoundKind::AskLeader(old), LogIndex::ZERO);
        reads.leader_is(old);
        assert!(!reads.wants_round(), "the answer is still awaited");

        reads.leader_is(new);
        assert!(reads.wants_round());
        let asked_new = reads.begin_round(RoundKind::AskLeader(new), LogIndex::ZERO);
        reads.confirmed(asked_old, LogIndex(1), LogIndex(9));
        assert!(answer.try_recv().is_err(), "the old leader's answer comes too late to count");
        reads.confirmed(asked_new, LogIndex(7), LogIndex(9));
        assert!(matches!(answer.try_recv(), Ok(Ok(LogIndex(7)))));
    }

    #[test]
    fn an_answer_below_what_was_known_to_be_committed_shows_lost_writes() {
        let leader = NodeId::FIRST;
        let mut reads = Reads::default();
        let round = reads.begin_round(RoundKind::AskLeader(leader), LogIndex(38));
        assert!(reads.shows_lost_writes(round, LogIndex(37)));
        assert!(!reads.shows_lost_writes(round, LogIndex(38)));
        assert!(!reads.shows_lost_writes(round + 1, LogIndex(37)), "it is for another round");
    }
}
