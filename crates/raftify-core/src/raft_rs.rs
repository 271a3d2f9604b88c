//! The boundary to raft-rs: the only module that uses the crate `raft`.
//!
//! [`Consensus`] wraps raft-rs' `RawNode` and uses our own types. It exists for two reasons. First, another
//! implementation of Raft can replace raft-rs. Second, raft-rs panics where external input violates its
//! assumptions, so that all input is checked before it reaches raft-rs (`incoming`). `log_view` is the log as
//! raft-rs reads it, `convert` translates messages and entries, `ready` is the translated `Ready` of raft-rs,
//! `logging` carries the logs of raft-rs.

mod convert;
mod election_timeout;
mod incoming;
mod log_view;
mod logging;
mod ready;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry as RaftEntry, Message, MessageType};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use self::convert::{conf_change, configuration, entry_from_raft, entry_of, entry_to_raft};
use self::election_timeout::ElectionTimeout;
pub(crate) use self::log_view::LogStart;
use self::log_view::LogView;
pub(crate) use self::ready::ConsensusReady;
use self::ready::Depends;
use crate::config::CheckedConfig;
use crate::entry::{Entry, EntryKind};
use crate::members::{Configuration, Members, MembershipChange};
use crate::status::{Elections, PeerProgress, ReplicationState, Role};
use crate::storage::{HardState, StorageError};
use crate::turn::LogFetch;
use crate::types::{LogIndex, LogPosition, NodeId, Term};

/// Raft, as the core sees it.
pub(crate) struct Consensus {
    raw: RawNode<LogView>,
    node_id: NodeId,
    election_timeout: ElectionTimeout,
    /// The last entry that raft-rs has returned as committed. It reads the entries after it from the log in
    /// memory, also if they were [returned before](Self::committed_beyond_durable).
    given_out: LogIndex,
    /// The highest commit index that this node, as a leader, has sent to a follower with an append.
    announced: LogIndex,
    /// The maximum size of the committed entries of one turn, in bytes.
    committed_bytes_max: u64,
    /// Whether raft-rs considers this node a learner that the membership does not contain yet: see
    /// [`step_snapshot`](Self::step_snapshot).
    stands_in: bool,
    elections: Elections,
}

/// raft-rs would have dropped the proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProposalDropped;

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
            // With the lease reads of raft-rs, an old leader may answer below the commit index of the new
            // leader.
            read_only_option: ReadOnlyOption::Safe,
            // The next entries carry the commit index, or `announce_commit`. A separate message after each
            // round of entries, and its response, would double the number of messages.
            skip_bcast_commit: true,
            batch_append: true,
            priority: 0,
            max_uncommitted_size: config.uncommitted_bytes_max,
            max_committed_size_per_ready: config.message_bytes_max.saturating_mul(4),
        };
        let given_out = log.applied;
        let view = LogView::new(log, config.log_cache_bytes);
        let raw =
            RawNode::new(&raft_config, view, &logging::to_tracing()).map_err(|error| error.to_string())?;
        let mut consensus = Consensus {
            raw,
            node_id,
            election_timeout: ElectionTimeout::new(node_id, seed, election_tick, election_tick * 2),
            given_out,
            announced: LogIndex::ZERO,
            committed_bytes_max: raft_config.max_committed_size_per_ready,
            stands_in: false,
            elections: Elections::default(),
        };
        consensus.pin_election_timeout();
        Ok(consensus)
    }

    /// Starts again on another `log`: this node starts a cluster.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn restart(&mut self, config: &CheckedConfig, log: LogStart) -> Result<(), String> {
        let elections = self.elections;
        *self = Consensus::new(self.node_id, config, self.election_timeout.seed(), log)?;
        self.elections = elections;
        Ok(())
    }

    fn pin_election_timeout(&mut self) {
        self.election_timeout.pin(&mut self.raw.raft);
    }

    // --- State ---

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

    pub(crate) fn elections(&self) -> Elections {
        self.elections
    }

    pub(crate) fn cache_bytes(&self) -> u64 {
        self.raw.store().cache_bytes()
    }

    /// Whether the log may contain a membership change that is not applied yet. It may return true where
    /// there is none.
    pub(crate) fn has_pending_change(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// Whether this leader has committed an entry of its own term: before that it may not know which entries
    /// are committed.
    pub(crate) fn has_committed_in_term(&self) -> bool {
        self.raw.raft.commit_to_current_term()
    }

    pub(crate) fn uncommitted_bytes(&self) -> u64 {
        self.raw.raft.uncommitted_size() as u64
    }

    /// The target of the leadership transfer in progress.
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
                heard_millis: None,
            })
        };
        let mut all: Vec<PeerProgress> = self.raw.raft.prs().iter().filter_map(of).collect();
        all.sort_by_key(|progress| progress.id);
        all
    }

    // --- Events ---

    pub(crate) fn tick(&mut self) {
        if self.is_leader() || self.may_campaign() {
            let led = self.is_leader();
            // For a node that does not lead: whether it has started an election.
            let acted = self.raw.tick();
            self.elections.timeout += u64::from(acted && !led);
            self.pin_election_timeout();
        } else {
            self.wait();
        }
    }

    /// Advances the clock of a node that cannot stand for election. If it can vote, it must notice that it
    /// has received no message from a leader for a long time.
    pub(crate) fn wait(&mut self) {
        self.raw.raft.election_elapsed += 1;
    }

    /// Starts an election, unless this node must first write the entries that it holds. Returns whether it
    /// did.
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
        let begun = outcome.is_ok() && before != (self.raw.raft.term, self.raw.raft.state);
        self.elections.requested += u64::from(begun);
        begun
    }

    /// Two conditions that raft-rs asserts when an election starts. It reads the entries that are not
    /// applied, to look for membership changes: between the arrival of a snapshot and the moment when it
    /// is durable, there are none to read. And the log of a new leader is durable: a single voter wins
    /// the election within the call that starts it.
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

    /// Whether this node leads, and no append to a follower has carried its commit index yet.
    pub(crate) fn has_unannounced_commit(&self) -> bool {
        self.is_leader() && self.commit() > self.announced
    }

    /// A leader sends its commit index to each follower now, with an append that may be empty
    /// (`Raft::bcast_append`).
    pub(crate) fn announce_commit(&mut self) {
        if self.has_unannounced_commit() && !mutated!(CommitIsNotAnnounced) {
            self.raw.raft.bcast_append();
            self.announced = self.commit();
        }
    }

    /// A leader sends a heartbeat to each peer now (`RawNode::ping`).
    pub(crate) fn send_heartbeats(&mut self) {
        self.raw.ping();
    }

    pub(crate) fn transfer_leader(&mut self, to: NodeId) {
        self.raw.transfer_leader(to.get());
    }

    /// Appends user entries to the leader's log. Returns the position of the first; the others follow it.
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

    /// The configuration without this node, if raft-rs has it only as a stand-in.
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

    /// The state machine has applied everything up to `index`. raft-rs counts entries that are not durable on
    /// this node only once they are: this must be called again then.
    pub(crate) fn apply_to(&mut self, index: LogIndex) {
        let log = &self.raw.raft.raft_log;
        debug_assert!(index.0 <= log.committed, "applied {index}, but only {} is committed", log.committed);
        let possible = index.0.min(log.committed).min(log.persisted);
        if possible > log.applied {
            self.raw.advance_apply_to(possible);
        }
        self.raw.mut_store().trim_cache(index.min(self.given_out));
    }

    /// The committed entries after `after` that are not durable on this node, if raft-rs waits only for that
    /// before it returns them. Long lists are returned in parts.
    pub(crate) fn committed_beyond_durable(&self, after: LogIndex) -> Vec<Entry> {
        let log = &self.raw.raft.raft_log;
        let committed = match mutated!(DeliversBeforeMajority) {
            true => log.last_index(),
            false => log.committed,
        };
        if after.0 < log.persisted.min(log.committed) {
            return Vec::new();
        }
        self.raw.store().cached(after.next(), LogIndex(committed), self.committed_bytes_max)
    }

    pub(crate) fn report_unreachable(&mut self, peer: NodeId) {
        self.raw.report_unreachable(peer.get());
    }

    pub(crate) fn report_snapshot(&mut self, peer: NodeId, installed: bool) {
        let status = if installed { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(peer.get(), status);
    }

    /// From now on, raft-rs can send this snapshot to followers.
    pub(crate) fn set_snapshot(&mut self, position: LogPosition, members: &Members) {
        self.raw.mut_store().set_snapshot(position, &members.configuration());
    }

    /// Whether a follower needs a snapshot and there is none to send. The call clears the flag.
    pub(crate) fn take_wants_snapshot(&mut self) -> bool {
        self.raw.mut_store().take_wants_snapshot()
    }

    /// Drops the entries up to `position`, which were deleted from storage.
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

    // --- Output ---

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
            self.given_out = self.given_out.max(position.index);
        }
        ready.append = raft_ready.take_entries().into_iter().map(entry_from_raft).collect();
        self.raw.mut_store().append(&ready.append);
        ready.committed = raft_ready.take_committed_entries().into_iter().map(entry_from_raft).collect();
        if let Some(last) = ready.committed.last() {
            self.given_out = last.position.index;
        }
        ready.confirmed_reads = raft_ready
            .take_read_states()
            .into_iter()
            .filter_map(|state| Some((convert::read_round(&state.request_ctx)?, LogIndex(state.index))))
            .collect();
        for message in raft_ready.take_messages() {
            if message.get_msg_type() == MessageType::MsgAppend {
                self.announced = self.announced.max(LogIndex(message.commit));
            }
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
}
