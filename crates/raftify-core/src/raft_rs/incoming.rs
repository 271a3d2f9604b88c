//! Messages of other nodes. raft-rs panics where a message violates its assumptions, so that each message is
//! checked here first.

use raft::eraftpb::{Message, MessageType, Snapshot};

use super::{Consensus, convert};
use crate::entry::Entry;
use crate::message::{RaftMessage, RaftMessageBody};
use crate::status::Role;
use crate::storage::SnapshotMeta;
use crate::types::{LogIndex, LogPosition, NodeId, Term};

/// Terms and indexes above this are refused: raft-rs adds to them without an overflow check.
const NUMBER_MAX: u64 = u64::MAX / 4;

/// A message contradicts itself or the state of this node, and was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Implausible(&'static str);

impl Consensus {
    /// Processes a message of another node.
    pub(crate) fn step(&mut self, mut message: RaftMessage) -> Result<(), Implausible> {
        if mutated!(StaleAcknowledgementCounts)
            && matches!(message.body, RaftMessageBody::AppendResponse { rejection: None, .. })
        {
            message.term = message.term.max(self.term());
        }
        if mutated!(RefusedPreVoteTeachesNothing)
            && matches!(message.body, RaftMessageBody::PreVoteResponse { granted: false, .. })
        {
            return Ok(());
        }
        self.check(&message)?;
        // Log and snapshot must be durable before a majority can elect this node; raft-rs asserts it.
        let is_vote = matches!(
            message.body,
            RaftMessageBody::VoteResponse { .. } | RaftMessageBody::PreVoteResponse { .. }
        );
        if is_vote && !self.is_log_durable() {
            return Err(Implausible("a vote for a candidacy whose log is not durable yet"));
        }
        if message.body == RaftMessageBody::TimeoutNow && !self.may_campaign() {
            return Err(Implausible("a leadership transfer to a node whose log is not durable yet"));
        }
        let (is_transfer, term) = (message.body == RaftMessageBody::TimeoutNow, self.term());
        if let Some(message) = convert::message_to_raft(message) {
            // A message that raft-rs refuses here (a response of a node that is no member) needs no answer.
            let _ = self.raw.step(message);
        }
        self.elections.transfer +=
            u64::from(is_transfer && self.term() > term && self.role() != Role::Follower);
        if mutated!(CommitsEarlierTermsByCounting) && self.is_leader() {
            let (copied, _) = self.raw.raft.mut_prs().maximal_committed_index();
            self.raw.raft.raft_log.commit_to(copied);
        }
        self.pin_election_timeout();
        Ok(())
    }

    /// Processes a snapshot whose data is durable already. Returns whether the log of this node now starts
    /// after it; `false` if the log already contains that position.
    ///
    /// The snapshot may be from before this node became a member: the change that adds it follows in the log.
    /// raft-rs accepts no snapshot whose configuration does not contain its node, so that this node is
    /// added to it as a learner until that change.
    pub(crate) fn step_snapshot(
        &mut self,
        from: NodeId,
        term: Term,
        snapshot: &SnapshotMeta,
    ) -> Result<bool, Implausible> {
        let position = snapshot.position;
        if position.index.0 == 0 || position.index.0 > NUMBER_MAX || term.0 > NUMBER_MAX {
            return Err(Implausible("its index or term is out of range"));
        }
        if position.term > term || position.term.0 == 0 {
            return Err(Implausible("its term is zero or above the leader's"));
        }
        let members = &snapshot.members;
        if members.is_empty() || members.is_removed(self.node_id) {
            return Err(Implausible("it names no members, or this node was removed from them"));
        }
        let is_member = members.get(self.node_id).is_some();
        if !is_member && mutated!(EarlierSnapshotIsRefused) {
            return Err(Implausible("this node is not among its members"));
        }
        let mut configuration = members.configuration();
        if !is_member {
            configuration.learners.insert(self.node_id);
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.from = from.get();
        message.to = self.node_id.get();
        message.term = term.0;
        let mut data = Snapshot::default();
        let metadata = data.mut_metadata();
        metadata.index = position.index.0;
        metadata.term = position.term.0;
        metadata.set_conf_state(convert::conf_state(&configuration));
        message.set_snapshot(data);
        let _ = self.raw.step(message);
        self.pin_election_timeout();
        let is_taken =
            self.raw.snap().is_some_and(|pending| pending.get_metadata().index == position.index.0);
        if is_taken {
            self.stands_in = !is_member;
        }
        Ok(is_taken)
    }

    /// Whether this message can only arrive after this node lost entries that it had acknowledged: a leader
    /// tells each follower to commit no more than the entries that the follower holds.
    pub(crate) fn shows_a_loss(&self, message: &RaftMessage) -> bool {
        if mutated!(LossIsNotNoticed) {
            return false;
        }
        let last = LogIndex(self.raw.raft.raft_log.last_index());
        matches!(message.body, RaftMessageBody::Heartbeat { commit, .. } if commit > last)
            && message.term >= self.term()
    }

    /// The first index at which the leader that sent this message provably has another entry than the one
    /// that this node knows to be committed there. Every leader of this term or a later one has all
    /// entries that were committed before, unless a majority has lost them. Messages of a leader of an
    /// earlier term prove nothing.
    pub(crate) fn shows_lost_writes(&self, message: &RaftMessage) -> Option<LogIndex> {
        let RaftMessageBody::Append { previous, entries, .. } = &message.body else {
            return None;
        };
        let beyond_commit = self.commit().next();
        let told = entries.iter().map(|entry| entry.position);
        let told = told.take_while(|position| position.index <= beyond_commit);
        let missing =
            std::iter::once(*previous).chain(told).find_map(|position| self.contradicted_by(position))?;
        (message.term >= self.term() && self.check(message).is_ok()).then_some(missing)
    }

    /// As [`shows_lost_writes`](Self::shows_lost_writes), for the snapshot of a leader.
    pub(crate) fn snapshot_shows_lost_writes(&self, term: Term, position: LogPosition) -> Option<LogIndex> {
        self.contradicted_by(position).filter(|_| term >= self.term() && position.term <= term)
    }

    /// The index of a committed entry that is not in any log with an entry at `position`.
    fn contradicted_by(&self, position: LogPosition) -> Option<LogIndex> {
        if mutated!(ProofOfLossIsIgnored) {
            return None;
        }
        let (commit, truncated) = (self.commit(), self.truncated());
        let contradicts = match self.term_at(position.index) {
            Some(term) if position.index <= commit => term != position.term,
            // Terms never decrease along a log: an entry after it has at least this term, a compacted one at
            // most that term.
            _ if position.index > commit => self.term_at(commit).is_some_and(|term| position.term < term),
            _ => position.term > truncated.term,
        };
        contradicts.then(|| position.index.min(commit))
    }

    /// All conditions that raft-rs asserts about a message.
    fn check(&self, message: &RaftMessage) -> Result<(), Implausible> {
        let last = LogIndex(self.raw.raft.raft_log.last_index());
        if message.to != self.node_id {
            return Err(Implausible("it is for another node"));
        }
        if message.from == self.node_id {
            return Err(Implausible("it claims to come from this node"));
        }
        if message.term.0 == 0 || message.term.0 > NUMBER_MAX {
            return Err(Implausible("its term is out of range"));
        }
        match &message.body {
            RaftMessageBody::Append { previous, entries, .. } => {
                check_append(message.term, *previous, entries)
            }
            RaftMessageBody::Heartbeat { .. } if self.shows_a_loss(message) => {
                Err(Implausible("its commit index is beyond the end of this node's log"))
            }
            RaftMessageBody::AppendResponse { index, rejection, .. } => {
                // A rejection names an entry that this leader once sent; its log may have become shorter
                // since, in another term.
                let hinted = rejection.map_or(LogIndex::ZERO, |hint| hint.index);
                if (self.is_leader() && message.term == self.term() && *index > last) || hinted.0 > NUMBER_MAX
                {
                    return Err(Implausible("it acknowledges entries that this leader does not have"));
                }
                Ok(())
            }
            RaftMessageBody::RequestVote { last, .. } | RaftMessageBody::RequestPreVote { last, .. }
                if last.index.0 > NUMBER_MAX || last.term > message.term =>
            {
                Err(Implausible("the candidate's log is out of range"))
            }
            _ => Ok(()),
        }
    }
}

fn check_append(term: Term, previous: LogPosition, entries: &[Entry]) -> Result<(), Implausible> {
    if previous.index.0 > NUMBER_MAX || previous.term > term {
        return Err(Implausible("the previous entry is out of range"));
    }
    // raft-rs considers term zero to match wherever its own log has no entry.
    if (previous.term.0 == 0) != (previous.index.0 == 0) {
        return Err(Implausible("the previous entry has an index and no term, or a term and no index"));
    }
    let mut before = previous;
    for entry in entries {
        if entry.position.index != before.index.next() {
            return Err(Implausible("its entries are not in order"));
        }
        if entry.position.term < before.term || entry.position.term > term || entry.position.term.0 == 0 {
            return Err(Implausible("the terms of its entries are not in order"));
        }
        before = entry.position;
    }
    // Whether the entries contradict committed ones is not checked here: see `shows_lost_writes`. raft-rs
    // accepts none at or below its commit index.
    Ok(())
}
