//! The seam to raft-rs: the only room that knows the crate `raft`.
//!
//! [`Consensus`] wraps raft-rs' `RawNode` and speaks our own types. It exists for two reasons. The first: another
//! implementation of Raft could take its place. The second: raft-rs panics where outside input contradicts what it
//! takes for granted, and so everything that comes in is checked here before raft-rs sees it. `log_view` is the log
//! as raft-rs reads it, `convert` turns messages and entries into ours and back, `logging` carries raft-rs' own logs.

mod convert;
mod log_view;
mod logging;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry as RaftEntry,
    EntryType, Message, MessageType, Snapshot,
};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use self::convert::{configuration, entry_from_raft, entry_to_raft, message_from_raft, message_to_raft};
pub(crate) use self::log_view::LogStart;
use self::log_view::LogView;
use crate::config::CheckedConfig;
use crate::entry::{Entry, EntryKind};
use crate::members::{Configuration, MemberChange, MemberRole, Members, MembershipChange};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::status::{PeerProgress, ReplicationState, Role};
use crate::storage::{HardState, SnapshotMeta, StorageError};
use crate::turn::LogFetch;
use crate::types::{LogIndex, LogPosition, NodeId, Term};

/// Terms and indexes above this are refused: raft-rs adds to them without a look at the end of the number range.
const NUMBER_MAX: u64 = u64::MAX / 4;

/// Raft, as the core sees it.
pub(crate) struct Consensus {
    raw: RawNode<LogView>,
    node_id: NodeId,
    seed: u64,
    /// How often this node has become a candidate; varies the election timeouts of one term.
    candidacies: u64,
    min_election_ticks: usize,
    max_election_ticks: usize,
    /// Whether raft-rs takes this node for a learner, which the membership does not have yet: see
    /// [`step_snapshot`](Self::step_snapshot).
    stands_in: bool,
}

/// What raft-rs wants done: its `Ready`, translated.
#[derive(Default)]
pub(crate) struct ConsensusReady {
    pub(crate) number: u64,
    /// Whether term, vote or log changed, so that there is something to write.
    pub(crate) must_sync: bool,
    pub(crate) append: Vec<Entry>,
    /// The snapshot that the log now begins after.
    pub(crate) installed: Option<LogPosition>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) send_now: Vec<RaftMessage>,
    pub(crate) send_after: Vec<RaftMessage>,
    pub(crate) send_snapshots: Vec<(NodeId, Term, LogPosition)>,
    /// Rounds of reads that a quorum confirmed, each with the index to wait for.
    pub(crate) confirmed_reads: Vec<(u64, LogIndex)>,
}

/// raft-rs would have dropped the proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProposalDropped;

/// A message contradicts itself or what this node knows, and was not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Implausible(&'static str);

impl Consensus {
    /// Starts raft-rs on `log`.
    ///
    /// # Errors
    /// If raft-rs does not accept the configuration.
    pub(crate) fn new(
        node_id: NodeId,
        config: &CheckedConfig,
        seed: u64,
        log: LogStart,
    ) -> Result<Consensus, String> {
        let to_ticks = |span| usize::try_from(config.ticks(span)).unwrap_or(usize::MAX / 4).max(1);
        let heartbeat_tick = to_ticks(config.heartbeat_interval);
        let election_tick = to_ticks(config.election_timeout).max(heartbeat_tick + 1);
        let raft_config = raft::Config {
            id: node_id.get(),
            election_tick,
            heartbeat_tick,
            applied: log.applied.0,
            max_size_per_msg: config.message_bytes_max,
            max_inflight_msgs: config.messages_in_flight_max,
            check_quorum: config.check_quorum,
            pre_vote: config.pre_vote,
            min_election_tick: election_tick,
            max_election_tick: election_tick * 2,
            // The lease of raft-rs lets an old leader answer below the new leader's commit index.
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            batch_append: true,
            priority: 0,
            max_uncommitted_size: config.uncommitted_bytes_max,
            max_committed_size_per_ready: config.message_bytes_max.saturating_mul(4),
        };
        let view = LogView::new(log, config.log_cache_bytes);
        let raw =
            RawNode::new(&raft_config, view, &logging::to_tracing()).map_err(|error| error.to_string())?;
        let mut consensus = Consensus {
            raw,
            node_id,
            seed,
            candidacies: 0,
            min_election_ticks: election_tick,
            max_election_ticks: election_tick * 2,
            stands_in: false,
        };
        consensus.pin_election_timeout();
        Ok(consensus)
    }

    // --- What it knows ---

    pub(crate) fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.role() == Role::Leader
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        NodeId::new(self.raw.raft.leader_id)
    }

    pub(crate) fn commit(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.committed)
    }

    pub(crate) fn durable(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.persisted)
    }

    pub(crate) fn hard_state(&self) -> HardState {
        convert::hard_state(&self.raw.raft.hard_state())
    }

    pub(crate) fn last(&self) -> LogPosition {
        let index = self.raw.raft.raft_log.last_index();
        LogPosition { term: self.term_at(LogIndex(index)).unwrap_or_default(), index: LogIndex(index) }
    }

    pub(crate) fn truncated(&self) -> LogPosition {
        self.raw.store().truncated()
    }

    /// The term of an entry of the log, or of the position before it.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        let log = &self.raw.raft.raft_log;
        if index < LogIndex(log.first_index()).previous() || index.0 > log.last_index() {
            return None;
        }
        log.term(index.0).ok().map(Term)
    }

    pub(crate) fn cache_bytes(&self) -> u64 {
        self.raw.store().cache_bytes()
    }

    /// Whether a membership change may stand in the log that is not applied yet. May say yes where there is none.
    pub(crate) fn has_pending_change(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// Whether this leader has committed an entry of its own term: before that it may not know what is committed.
    pub(crate) fn has_committed_in_term(&self) -> bool {
        self.raw.raft.commit_to_current_term()
    }

    pub(crate) fn uncommitted_bytes(&self) -> u64 {
        self.raw.raft.uncommitted_size() as u64
    }

    /// To whom leadership is being handed.
    pub(crate) fn transferee(&self) -> Option<NodeId> {
        self.raw.raft.lead_transferee.and_then(NodeId::new)
    }

    pub(crate) fn progress(&self) -> Vec<PeerProgress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let of = |(id, progress): (&u64, &raft::Progress)| {
            Some(PeerProgress {
                id: NodeId::new(*id)?,
                matched: LogIndex(progress.matched),
                next: LogIndex(progress.next_idx),
                state: match progress.state {
                    raft::ProgressState::Probe => ReplicationState::Probe,
                    raft::ProgressState::Replicate => ReplicationState::Replicate,
                    raft::ProgressState::Snapshot => ReplicationState::Snapshot,
                },
                recently_active: progress.recent_active || *id == self.node_id.get(),
            })
        };
        let mut all: Vec<PeerProgress> = self.raw.raft.prs().iter().filter_map(of).collect();
        all.sort_by_key(|progress| progress.id);
        all
    }

    // --- What it is told ---

    pub(crate) fn tick(&mut self) {
        if self.is_leader() || self.may_campaign() {
            self.raw.tick();
            self.pin_election_timeout();
        } else {
            // It cannot stand for election, but it can vote: for that, it must notice that it has not heard of a leader for long.
            self.raw.raft.election_elapsed += 1;
        }
    }

    /// Starts an election, unless this node must first write what it holds. Whether it did.
    pub(crate) fn campaign(&mut self) -> bool {
        if !self.may_campaign() {
            return false;
        }
        let before = (self.raw.raft.term, self.raw.raft.state);
        let outcome = self.raw.campaign();
        if mutated!(LeadsByConfiguration) && !self.is_leader() {
            self.raw.raft.become_candidate();
            self.raw.raft.become_leader();
        }
        self.pin_election_timeout();
        outcome.is_ok() && before != (self.raw.raft.term, self.raw.raft.state)
    }

    /// Two things that raft-rs asserts when an election starts. It reads the entries that are not applied, to look for
    /// membership changes: between the arrival of a snapshot and its being durable, there are none to read. And a new
    /// leader's log is durable: who has the only vote wins in the call that starts the election.
    fn may_campaign(&self) -> bool {
        self.raw.raft.raft_log.applied >= self.truncated().index.0 && self.is_log_durable()
    }

    fn is_log_durable(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        log.persisted == log.last_index()
    }

    pub(crate) fn step_down(&mut self) {
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.pin_election_timeout();
    }

    pub(crate) fn transfer_leader(&mut self, to: NodeId) {
        self.raw.transfer_leader(to.get());
    }

    /// Appends user entries to the leader's log. The position of the first; the others follow it.
    pub(crate) fn propose(&mut self, payloads: Vec<Bytes>) -> Result<LogPosition, ProposalDropped> {
        let entries = payloads.into_iter().map(|payload| entry_of(EntryKind::User, payload)).collect();
        self.propose_entries(entries)
    }

    pub(crate) fn propose_record(&mut self, payload: Bytes) -> Result<LogPosition, ProposalDropped> {
        self.propose_entries(vec![entry_of(EntryKind::MemberRecord, payload)])
    }

    fn propose_entries(&mut self, entries: Vec<RaftEntry>) -> Result<LogPosition, ProposalDropped> {
        let first = LogIndex(self.raw.raft.raft_log.last_index()).next();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.node_id.get();
        message.entries = entries.into();
        self.raw.step(message).map_err(|_| ProposalDropped)?;
        Ok(LogPosition { term: self.term(), index: first })
    }

    /// Appends a membership change to the leader's log. The caller has checked that none is pending.
    pub(crate) fn propose_change(
        &mut self,
        change: &MembershipChange,
    ) -> Result<LogPosition, ProposalDropped> {
        let index = LogIndex(self.raw.raft.raft_log.last_index()).next();
        let payload = change.encode().to_vec();
        self.raw.propose_conf_change(payload, conf_change(change)).map_err(|_| ProposalDropped)?;
        Ok(LogPosition { term: self.term(), index })
    }

    /// Puts a committed membership change into force.
    pub(crate) fn apply_change(&mut self, change: &MembershipChange) -> Result<Configuration, String> {
        if mutated!(SeveralVotersAtOnce)
            && let MembershipChange::Steps { steps, .. } = change
            && let Some((first, others)) = steps.split_first().filter(|(_, others)| !others.is_empty())
        {
            for step in others {
                self.apply_change(&MembershipChange::one(step.clone()))?;
            }
            return self.apply_change(&MembershipChange::one(first.clone()));
        }
        let state = self.raw.apply_conf_change(&conf_change(change)).map_err(|error| error.to_string())?;
        if let MembershipChange::Steps { steps, .. } = change {
            self.stands_in &= steps.iter().all(|step| step.node_id() != self.node_id);
        }
        Ok(self.actual(&state))
    }

    /// Without this node, if it only stands in for itself.
    fn actual(&self, state: &ConfState) -> Configuration {
        let mut configuration = configuration(state);
        if self.stands_in && !mutated!(StandInIsTakenForAMember) {
            configuration.learners.remove(&self.node_id);
        }
        configuration
    }

    /// Asks a quorum to confirm this leader. The answer comes with a later ready, unless leadership is lost.
    pub(crate) fn read_index(&mut self, round: u64) {
        self.raw.read_index(round.to_be_bytes().to_vec());
    }

    pub(crate) fn persisted(&mut self, ready_number: u64) {
        self.raw.on_persist_ready(ready_number);
        if mutated!(CommitsWithoutQuorum) && self.is_leader() {
            let log = &mut self.raw.raft.raft_log;
            log.commit_to(log.persisted);
        }
        self.pin_election_timeout();
    }

    pub(crate) fn apply_to(&mut self, index: LogIndex) {
        let log = &self.raw.raft.raft_log;
        let possible = log.committed.min(log.persisted);
        debug_assert!(index.0 <= possible, "applied {index}, but only {possible} is committed and durable");
        if index.0 > log.applied && index.0 <= possible {
            self.raw.advance_apply_to(index.0);
        }
        self.raw.mut_store().trim_cache(index);
    }

    pub(crate) fn report_unreachable(&mut self, peer: NodeId) {
        self.raw.report_unreachable(peer.get());
    }

    pub(crate) fn report_snapshot(&mut self, peer: NodeId, installed: bool) {
        let status = if installed { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(peer.get(), status);
    }

    /// From now on, this snapshot can be sent to followers.
    pub(crate) fn set_snapshot(&mut self, position: LogPosition, members: &Members) {
        self.raw.mut_store().set_snapshot(position, &members.configuration());
    }

    /// Whether a follower needs a snapshot and there is none to send. Asking clears it.
    pub(crate) fn take_wants_snapshot(&mut self) -> bool {
        self.raw.mut_store().take_wants_snapshot()
    }

    /// Forgets the entries up to `position`, which are gone from storage.
    pub(crate) fn compact(&mut self, position: LogPosition) {
        self.raw.mut_store().compact(position);
    }

    /// The reads of the log that raft-rs waits for.
    pub(crate) fn take_fetches(&mut self) -> Vec<LogFetch> {
        self.raw.mut_store().take_fetches()
    }

    pub(crate) fn fetched(&mut self, fetch: LogFetch, result: Result<Vec<Entry>, StorageError>) {
        let entries = result.unwrap_or_default().into_iter().map(entry_to_raft).collect();
        let contexts = self.raw.mut_store().put_fetched(fetch, entries);
        for context in contexts {
            self.raw.on_entries_fetched(context);
        }
        self.raw.mut_store().forget_fetched();
    }

    /// Takes in a message of another node.
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
        // Log and snapshot must be durable before a majority can make this node a leader; raft-rs asserts it.
        let is_vote = matches!(
            message.body,
            RaftMessageBody::VoteResponse { .. } | RaftMessageBody::PreVoteResponse { .. }
        );
        if is_vote && !self.is_log_durable() {
            return Err(Implausible("a vote for a candidacy whose log is not durable yet"));
        }
        if message.body == RaftMessageBody::TimeoutNow && !self.may_campaign() {
            return Err(Implausible("a hand-over to a node whose log is not durable yet"));
        }
        if let Some(message) = message_to_raft(message) {
            // What raft-rs refuses here (a response of a node that is no member) needs no answer.
            let _ = self.raw.step(message);
        }
        if mutated!(CommitsEarlierTermsByCounting) && self.is_leader() {
            let (copied, _) = self.raw.raft.mut_prs().maximal_committed_index();
            self.raw.raft.raft_log.commit_to(copied);
        }
        self.pin_election_timeout();
        Ok(())
    }

    /// Takes in a snapshot whose data is durable already. Whether it is now the beginning of this node's log;
    /// `false` if the log reaches that far by itself.
    ///
    /// The snapshot may be from before this node became a member: the change that adds it follows in the log. raft-rs takes
    /// no snapshot that does not name its node, and so this node stands in as a learner until that change.
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

    /// Whether this message can only come after this node lost entries that it had acknowledged: a leader tells each
    /// follower to commit no more than what that follower holds.
    pub(crate) fn shows_a_loss(&self, message: &RaftMessage) -> bool {
        if mutated!(LossIsNotNoticed) {
            return false;
        }
        let last = LogIndex(self.raw.raft.raft_log.last_index());
        matches!(message.body, RaftMessageBody::Heartbeat { commit, .. } if commit > last)
            && message.term >= self.term()
    }

    /// Everything that raft-rs asserts about a message.
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
                // A rejection names what this leader once sent; its log may have grown shorter since, in another term.
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

    // --- What it wants done ---

    pub(crate) fn ready(&mut self) -> Option<ConsensusReady> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut raft_ready = self.raw.ready();
        let mut ready = ConsensusReady {
            number: raft_ready.number(),
            must_sync: raft_ready.must_sync(),
            ..ConsensusReady::default()
        };
        if !raft_ready.snapshot().is_empty() {
            let position = convert::snapshot_position(raft_ready.snapshot());
            let configuration = self.actual(raft_ready.snapshot().get_metadata().get_conf_state());
            self.raw.mut_store().reset(position, &configuration);
            ready.installed = Some(position);
        }
        ready.append = raft_ready.take_entries().into_iter().map(entry_from_raft).collect();
        self.raw.mut_store().append(&ready.append);
        ready.committed = raft_ready.take_committed_entries().into_iter().map(entry_from_raft).collect();
        ready.confirmed_reads = raft_ready
            .take_read_states()
            .into_iter()
            .filter_map(|state| Some((convert::read_round(&state.request_ctx)?, LogIndex(state.index))))
            .collect();
        for message in raft_ready.take_messages() {
            ready.take_message(message, Depends::OnNothing);
        }
        for message in raft_ready.take_persisted_messages() {
            ready.take_message(message, Depends::OnTheWrite);
        }
        self.raw.advance_append_async(raft_ready);
        if mutated!(UnflushedLogCounts) && self.is_leader() {
            self.raw.on_persist_ready(ready.number);
        }
        Some(ready)
    }

    /// raft-rs draws election timeouts from the thread's random numbers. To let a seed decide alone, the timeout is
    /// set again after each step, to a value that depends on nothing but seed, node, term, role and candidacies.
    fn pin_election_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        if matches!(raft.state, StateRole::PreCandidate | StateRole::Candidate) && raft.election_elapsed == 0
        {
            self.candidacies = self.candidacies.wrapping_add(1);
        }
        let mut hash = self.seed;
        for word in [self.node_id.get(), raft.term, raft.state as u64, self.candidacies] {
            hash = scramble(hash ^ word);
        }
        let span = (self.max_election_ticks - self.min_election_ticks) as u64;
        let offset = usize::try_from(hash % span).unwrap_or(0);
        raft.set_randomized_election_timeout(self.min_election_ticks + offset);
    }
}

/// Whether a message may leave before the write of its ready is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depends {
    OnNothing,
    OnTheWrite,
}

impl ConsensusReady {
    fn take_message(&mut self, message: Message, depends: Depends) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            if let Some(to) = NodeId::new(message.to) {
                let position = convert::snapshot_position(message.get_snapshot());
                self.send_snapshots.push((to, Term(message.term), position));
            }
            return;
        }
        // `None`: a message that raft-rs forwards to the leader. We forward in our own words, so there are none.
        let Some(message) = message_from_raft(message) else {
            return;
        };
        match depends {
            Depends::OnNothing => self.send_now.push(message),
            Depends::OnTheWrite => self.send_after.push(message),
        }
    }
}

fn check_append(term: Term, previous: LogPosition, entries: &[Entry]) -> Result<(), Implausible> {
    if previous.index.0 > NUMBER_MAX || previous.term > term {
        return Err(Implausible("the previous entry is out of range"));
    }
    // raft-rs takes term zero to match wherever its own log has no entry.
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
    // That the entries contradict none that is committed here need not be checked: raft-rs takes none at or below
    // its commit index.
    Ok(())
}

fn entry_of(kind: EntryKind, payload: Bytes) -> RaftEntry {
    entry_to_raft(Entry { position: LogPosition::ZERO, kind, payload })
}

fn conf_change(change: &MembershipChange) -> ConfChangeV2 {
    let mut result = ConfChangeV2::default();
    let MembershipChange::Steps { steps, .. } = change else {
        // An empty change leaves the joint configuration.
        return result;
    };
    if change.enters_joint() {
        // Explicit: when to leave is decided by the core, the same way whoever leads by then.
        result.set_transition(ConfChangeTransition::Explicit);
    }
    for step in steps {
        let mut single = ConfChangeSingle::default();
        let (id, kind) = match step {
            MemberChange::Add(member) if member.role == MemberRole::Voter => {
                (member.id, ConfChangeType::AddNode)
            }
            MemberChange::Add(member) => (member.id, ConfChangeType::AddLearnerNode),
            MemberChange::SetRole { id, role: MemberRole::Voter } => (*id, ConfChangeType::AddNode),
            MemberChange::SetRole { id, .. } => (*id, ConfChangeType::AddLearnerNode),
            MemberChange::Remove(id) | MemberChange::ClearJoiner(id) => (*id, ConfChangeType::RemoveNode),
        };
        single.node_id = id.get();
        single.set_change_type(kind);
        result.changes.push(single);
    }
    result
}

/// splitmix64: scatters neighbouring numbers.
fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which raft-rs type an entry has.
fn entry_type(kind: EntryKind) -> EntryType {
    match kind {
        EntryKind::MembershipChange => EntryType::EntryConfChangeV2,
        EntryKind::Empty | EntryKind::User | EntryKind::MemberRecord => EntryType::EntryNormal,
    }
}
