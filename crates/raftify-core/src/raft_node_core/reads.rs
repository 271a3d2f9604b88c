//! Linearizable reads: which reads are accepted, and how their rounds are confirmed.

use super::RaftNodeCore;
use crate::error::{ReadError, StopReason};
use crate::machines::{Read, RoundKind, Serve};
use crate::request::{ProposalReply, Responder};
use crate::turn::ReadRound;
use crate::types::LogIndex;

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn take_read(&mut self, reply: Responder<LogIndex, ReadError>, serve: Serve) {
        let waiting = self.reads.len();
        if waiting >= self.node.config().reads_in_flight_max {
            return reply.answer(Err(ReadError::Busy { waiting: waiting as u64 }));
        }
        if self.lifecycle.is_stopping() && serve == Serve::WhenApplied {
            return reply.answer(Err(StopReason::Stopping.into()));
        }
        if mutated!(NoLeaderIsAnAnswer) && self.consensus.leader().is_none() {
            return reply.answer(Err(ReadError::NoLeader));
        }
        if serve == Serve::WhenConfirmed && !self.consensus.is_leader() {
            let refusal = self.status().leader_hint().map_or(ReadError::NoLeader, ReadError::NotLeader);
            return reply.answer(Err(refusal));
        }
        if serve == Serve::WhenConfirmed {
            // The reading node waits until it has applied what is committed now.
            self.announce_commit();
        }
        let deadline_ticks = self.node.deadline(self.node.config().read_timeout);
        self.reads.add(Read { reply, serve, deadline_ticks });
    }

    pub(super) fn begin_read_round(&mut self) {
        if let Some(leader) = self.consensus.leader() {
            self.reads.leader_is(leader);
        }
        if !self.reads.wants_round() {
            return;
        }
        match self.consensus.leader() {
            // Before it has committed an entry of its own term, a leader may not know which entries are
            // committed.
            Some(leader) if leader == self.node.id() && self.consensus.has_committed_in_term() => {
                let round = self.reads.begin_round(RoundKind::Heartbeats, self.consensus.commit());
                self.consensus.read_index(round);
                if mutated!(ReadsWithoutQuorum) {
                    self.reads.confirmed(round, self.consensus.commit(), self.delivery.in_state_machine());
                }
            }
            Some(leader) if leader != self.node.id() && self.membership.members().get(leader).is_some() => {
                let round = self.reads.begin_round(RoundKind::AskLeader(leader), self.consensus.commit());
                self.pipeline.next().read_round = Some(ReadRound { leader, round });
            }
            _ => {}
        }
    }

    /// The answer to [`Turn::read_round`](crate::Turn::read_round).
    pub fn read_round_answered(&mut self, round: u64, answer: Result<LogIndex, ReadError>) {
        match answer {
            // An old copy of its directory may have been put back. Its messages are refused; so is this answer.
            Ok(index) if self.reads.shows_lost_writes(round, index) => self.reads.failed(round),
            Ok(index) => self.reads.confirmed(round, index, self.delivery.in_state_machine()),
            Err(_) => self.reads.failed(round),
        }
    }

    /// Reads whose deadline has passed.
    pub(super) fn expire_reads(&mut self) {
        let late = match self.consensus.leader() {
            Some(_) => ReadError::TimedOut(self.node.config().read_timeout),
            None => ReadError::NoLeader,
        };
        self.reads.tick(self.node.now(), &late);
    }
}
