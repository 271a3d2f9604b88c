//! The start of this node, and its record of the other members: with it, the cluster detects a node whose
//! directory was restored from an older copy. After a start, this node first asks the members for their
//! record of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::config::CheckedConfig;
use crate::durable_state::{DurableState, PeerRecord, Started};
use crate::members::{Sender, SenderRefusal};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::remembered::Remembered;
use crate::storage::{HardState, StoredState};
use crate::turn::TurnNumber;
use crate::types::{LogIndex, NodeId, RunId, Term};

/// The indexes that members report while entries are replicated are made durable at this interval.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(3);

/// Before any turn makes something durable.
const NEVER: TurnNumber = TurnNumber(u64::MAX);

/// For how many refused runs the node remembers that it has reported them.
const REFUSED_MAX: usize = 1024;

/// The part of the record that is not durable yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unwritten {
    Nothing,
    /// The ends of logs.
    Indexes,
    /// A start, a term, or a vote, which change rarely.
    Seldom,
}

/// See the module.
pub(crate) struct RollbackGuard {
    own: Started,
    /// The turn that makes this start durable: before, this node sends no messages.
    counted_with: TurnNumber,
    remembered: Arc<Remembered>,
    unwritten: Unwritten,
    written_ticks: u64,
    /// The members that must still report their record of this node before it votes or acknowledges an
    /// entry.
    unheard: BTreeSet<NodeId>,
    /// Up to which index this node has acknowledged the log of the leader of a term.
    acknowledged: (Term, LogIndex),
    /// The term, vote and log index of the last report to the other members.
    told: (Term, Option<NodeId>, LogIndex),
    told_ticks: u64,
    /// Runs that were refused, so that each is logged once.
    refused: BTreeSet<RunId>,
}

impl RollbackGuard {
    pub(crate) fn new(stored: &StoredState, run: RunId) -> RollbackGuard {
        let found = DurableState {
            starts: stored.remembered.starts,
            term: stored.hard_state.term,
            vote: stored.hard_state.vote,
            index: stored.last.index,
        };
        RollbackGuard {
            own: Started { run, found },
            counted_with: NEVER,
            remembered: Arc::clone(&stored.remembered),
            unwritten: Unwritten::Nothing,
            written_ticks: 0,
            unheard: BTreeSet::new(),
            acknowledged: (Term::ZERO, LogIndex::ZERO),
            told: (Term::ZERO, None, LogIndex::ZERO),
            told_ticks: 0,
            refused: BTreeSet::new(),
        }
    }

    // --- This node's own start ---

    /// How this node was started.
    pub(crate) fn own(&self) -> Started {
        self.own
    }

    /// Counts this start, once, with `turn`: returns the record that the turn must write.
    pub(crate) fn count_start(&mut self, turn: TurnNumber) -> Arc<Remembered> {
        if self.counted_with == NEVER {
            let remembered = Arc::make_mut(&mut self.remembered);
            if !mutated!(StartsAreNotCounted) {
                remembered.starts += 1;
            }
            self.own.found.starts = remembered.starts;
            self.counted_with = turn;
        }
        Arc::clone(&self.remembered)
    }

    /// Whether this start is counted durably, if all turns up to `written` are durable.
    pub(crate) fn is_start_counted(&self, written: TurnNumber) -> bool {
        written >= self.counted_with
    }

    // --- Asking the other members ---

    /// This node must ask these members first.
    pub(crate) fn begin_to_hear(&mut self, others: impl Iterator<Item = NodeId>) {
        self.unheard = others.collect();
    }

    pub(crate) fn is_hearing(&self) -> bool {
        !self.unheard.is_empty()
    }

    /// The members that this node still waits for.
    pub(crate) fn unheard(&self) -> &BTreeSet<NodeId> {
        &self.unheard
    }

    /// The member has answered, or cannot be asked. Returns whether it was the last one.
    pub(crate) fn hear_from(&mut self, peer: NodeId) -> bool {
        self.unheard.remove(&peer) && !self.is_hearing()
    }

    pub(crate) fn stop_hearing(&mut self) {
        self.unheard.clear();
    }

    // --- Reports to the other members ---

    /// Records the entries that this node acknowledges.
    pub(crate) fn acknowledges(&mut self, messages: &[RaftMessage]) {
        for message in messages {
            if let RaftMessageBody::AppendResponse { index, rejection: None, .. } = message.body {
                self.acknowledged = match message.term == self.acknowledged.0 {
                    true => (message.term, self.acknowledged.1.max(index)),
                    false => (message.term, index),
                };
            }
        }
    }

    /// Up to which index the log of this node agrees with that of the leader of `term`, if it has
    /// acknowledged that.
    pub(crate) fn acknowledged_in(&self, term: Term) -> LogIndex {
        if self.acknowledged.0 == term { self.acknowledged.1 } else { LogIndex::ZERO }
    }

    /// Whether the next report to the other members is due, `interval_ticks` after the last one.
    pub(crate) fn is_telling_due(&self, now_ticks: u64, interval_ticks: u64) -> bool {
        now_ticks - self.told_ticks >= interval_ticks && !self.is_hearing()
    }

    /// The report to send to the other members now, unless it is unchanged.
    pub(crate) fn tell(
        &mut self,
        state: &HardState,
        index: LogIndex,
        now_ticks: u64,
    ) -> Option<RaftMessageBody> {
        let durable_state = (state.term, state.vote, index);
        if durable_state == self.told || state.term == Term::ZERO {
            return None;
        }
        self.told = durable_state;
        self.told_ticks = now_ticks;
        Some(RaftMessageBody::DurableState { vote: state.vote, index })
    }

    // --- The record of starts ---

    /// The record of starts of this node.
    pub(crate) fn remembered(&self) -> &Arc<Remembered> {
        &self.remembered
    }

    /// Records the state that a member reports in accepted messages.
    pub(crate) fn hear(&mut self, sender: &Sender, messages: &[RaftMessage]) {
        let Sender { id, incarnation, started, .. } = *sender;
        let known = self.remembered.peers.get(&id).filter(|known| known.incarnation == incarnation);
        let before = known.copied();
        let mut now = before.unwrap_or(PeerRecord {
            incarnation,
            run: started.run,
            told: DurableState { starts: started.found.starts, ..DurableState::default() },
        });
        if now.run != started.run || now.told.starts != started.found.starts {
            now.run = started.run;
            now.told.starts = started.found.starts;
        }
        now.told.tells(started.found.term, started.found.vote, LogIndex::ZERO);
        for (term, vote, index) in messages.iter().filter(|message| message.from == id).filter_map(told_by) {
            now.told.tells(term, vote, index);
        }
        if before == Some(now) {
            return;
        }
        let only_index = before.is_some_and(|before| {
            let told = DurableState { index: now.told.index, ..before.told };
            PeerRecord { told, ..before } == now
        });
        let unwritten = if only_index { Unwritten::Indexes } else { Unwritten::Seldom };
        self.unwritten = self.unwritten.max(unwritten);
        Arc::make_mut(&mut self.remembered).peers.insert(id, now);
    }

    /// Whether the record must be written now: values that change rarely at once, the ends of logs
    /// periodically.
    pub(crate) fn is_writing_due(&self, now_ticks: u64, config: &CheckedConfig) -> bool {
        match self.unwritten {
            Unwritten::Nothing => false,
            Unwritten::Indexes => now_ticks - self.written_ticks >= config.ticks(REMEMBER_INTERVAL),
            Unwritten::Seldom => true,
        }
    }

    /// The whole record, to be written now. Drops nodes that are no longer members.
    pub(crate) fn take_to_write(
        &mut self,
        is_member: impl Fn(NodeId) -> bool,
        now_ticks: u64,
    ) -> Arc<Remembered> {
        if self.remembered.peers.keys().any(|id| !is_member(*id)) {
            Arc::make_mut(&mut self.remembered).peers.retain(|id, _| is_member(*id));
        }
        self.unwritten = Unwritten::Nothing;
        self.written_ticks = now_ticks;
        Arc::clone(&self.remembered)
    }

    /// The part of the record that must still be written when this node stops in order.
    pub(crate) fn take_last_write(&mut self) -> Option<Arc<Remembered>> {
        if self.unwritten == Unwritten::Nothing {
            return None;
        }
        self.unwritten = Unwritten::Nothing;
        Some(Arc::clone(&self.remembered))
    }

    // --- Checks of senders ---

    /// Whether the start that a member reports is consistent with its earlier reports.
    pub(crate) fn check(&self, sender: &Sender) -> Result<(), SenderRefusal> {
        self.remembered.check(sender)
    }

    /// A run of a member was refused. Returns whether to notify the other run of the member, which is alive:
    /// once, and not for the last messages of a finished run, which may arrive late.
    pub(crate) fn note_refused(&mut self, sender: &Sender, is_alive: bool) -> bool {
        let Started { run, found } = sender.started;
        let known = self.remembered.peers.get(&sender.id);
        let is_earlier = known.is_some_and(|known| found.starts < known.told.starts);
        self.refused.len() < REFUSED_MAX && self.refused.insert(run) && is_alive && !is_earlier
    }
}

/// The term, vote and log that are durable on the sender when it sends this message. Some messages say
/// nothing about that: a pre-vote has a term that no node has entered yet, and the report of reached nodes
/// may have a term that is not durable.
fn told_by(message: &RaftMessage) -> Option<(Term, Option<NodeId>, LogIndex)> {
    let (from, to, term) = (message.from, message.to, message.term);
    Some(match message.body {
        RaftMessageBody::DurableState { vote, index } => (term, vote, index),
        // A leader or candidate has its own vote.
        RaftMessageBody::Append { .. }
        | RaftMessageBody::Heartbeat { .. }
        | RaftMessageBody::RequestVote { .. } => (term, Some(from), LogIndex::ZERO),
        RaftMessageBody::VoteResponse { granted: true, .. } => (term, Some(to), LogIndex::ZERO),
        RaftMessageBody::AppendResponse { index, rejection: None, .. } => (term, None, index),
        RaftMessageBody::AppendResponse { .. } | RaftMessageBody::HeartbeatResponse { .. } => {
            (term, None, LogIndex::ZERO)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::types::Incarnation;

    fn node(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn guard() -> RollbackGuard {
        RollbackGuard::new(&StoredState::default(), RunId(1))
    }

    fn sender(run: u64, starts: u64) -> Sender {
        let found = DurableState { starts, term: Term(3), ..DurableState::default() };
        let started = Started { run: RunId(run), found };
        Sender { id: node(2), incarnation: Incarnation(1), members_as_of: LogIndex(1), started }
    }

    fn message(body: RaftMessageBody) -> RaftMessage {
        RaftMessage { from: node(2), to: node(1), term: Term(3), body }
    }

    #[test]
    fn a_start_is_counted_once_and_durable_with_its_turn() {
        let mut guard = guard();
        assert!(!guard.is_start_counted(TurnNumber(99)));
        assert_eq!(guard.count_start(TurnNumber(2)).starts, 1);
        assert_eq!(guard.count_start(TurnNumber(5)).starts, 1);
        assert!(!guard.is_start_counted(TurnNumber(1)) && guard.is_start_counted(TurnNumber(2)));
    }

    #[test]
    fn a_start_is_written_at_once_and_how_far_a_log_reaches_now_and_then() {
        let config = Config::default().check().unwrap();
        let interval = config.ticks(REMEMBER_INTERVAL);
        let mut guard = guard();
        assert!(!guard.is_writing_due(interval, &config));
        guard.hear(&sender(9, 1), &[]);
        assert!(guard.is_writing_due(0, &config));
        guard.take_to_write(|_| true, 1);

        let index = LogIndex(7);
        let response = RaftMessageBody::AppendResponse { index, commit: LogIndex::ZERO, rejection: None };
        guard.hear(&sender(9, 1), &[message(response)]);
        assert!(!guard.is_writing_due(interval, &config) && guard.is_writing_due(interval + 1, &config));
        assert_eq!(guard.take_last_write().unwrap().peers[&node(2)].told.index, index);
        assert!(guard.take_last_write().is_none());
        assert!(guard.take_to_write(|_| false, 1).peers.is_empty(), "it is no member any more");
    }

    #[test]
    fn a_refused_run_is_told_of_once_unless_it_is_over_already() {
        let mut guard = guard();
        guard.hear(&sender(9, 5), &[]);
        assert!(guard.check(&sender(9, 5)).is_ok() && guard.check(&sender(8, 5)).is_err());
        assert!(guard.note_refused(&sender(8, 5), true));
        assert!(!guard.note_refused(&sender(8, 5), true), "once");
        assert!(!guard.note_refused(&sender(7, 4), true), "an earlier run");
        assert!(!guard.note_refused(&sender(6, 5), false), "the other run is not there");
    }

    #[test]
    fn the_others_are_told_only_what_is_new() {
        let mut guard = guard();
        let state = HardState { term: Term(3), vote: Some(node(2)), commit: LogIndex::ZERO };
        let body = RaftMessageBody::DurableState { vote: Some(node(2)), index: LogIndex(4) };
        assert_eq!(guard.tell(&HardState::default(), LogIndex(4), 1), None, "there was no term yet");
        assert_eq!(guard.tell(&state, LogIndex(4), 1), Some(body));
        assert_eq!(guard.tell(&state, LogIndex(4), 2), None);
        assert!(guard.is_telling_due(11, 10) && !guard.is_telling_due(10, 10));
        guard.begin_to_hear(std::iter::once(node(2)));
        assert!(!guard.is_telling_due(11, 10) && guard.hear_from(node(2)));
    }
}
