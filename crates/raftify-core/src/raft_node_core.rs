//! The deciding half of a node: owns consensus, the membership, and every answer that is owed.
//!
//! Called by the raft loop, and by the simulator in its place. It is told what happened (`handle_*`, `tick`, `written`,
//! `applied`, …) and is then asked what to do ([`ready`](RaftNodeCore::ready)). It does no I/O, reads no clock and draws
//! no random numbers. Requests for the leader are in `requests`, what follows from committed entries in `committed`,
//! snapshots in `snapshots`, an orderly end in `stopping`.

mod committed;
mod joiners;
mod membership;
mod own_disk;
mod requests;
mod snapshots;
mod standing;
mod stopping;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use self::membership::{MembershipWaiter, MembershipWork};
use self::own_disk::OwnDisk;
use self::requests::{Batch, HandOvers, Parking, Transfer};
use self::snapshots::Snapshots;
use self::standing::Standings;
use crate::config::CheckedConfig;
use crate::entry::{Entry, EntryKind};
use crate::error::{JoinError, ReadError, StartError, StopReason};
use crate::members::{Members, Sender, SenderRefusal};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::proposals::AnswersOwed;
use crate::raft_rs::{Consensus, ConsensusReady, LogStart};
use crate::reads::{Read, Reads, RoundKind, Serve};
use crate::request::{Forwarding, LocalRequestMsg, ProposalReply, Responder, ServerRequestMsg};
use crate::status::{Inspection, Status};
use crate::storage::{HardState, LogReader, StorageError, StoredState, Write};
use crate::turn::{
    Committed, Forward, LogFetch, ReadRound, SnapshotReason, SnapshotToSend, StateKept, Turn, TurnNumber,
};
use crate::types::{Identity, Incarnation, LogIndex, LogPosition, NodeId, RunId, Term};

/// How many bytes of entries are read at once when a node starts.
const START_READ_BYTES: u64 = 8 * 1024 * 1024;

/// For so many election timeouts, a node that is refused as removed, and does not know more than that, waits for others
/// that may need its vote. Those speak to it: they stand for election.
const REMOVAL_PATIENCE: u32 = 10;

/// The term and the place that every new cluster begins at: as if an entry had stood there that made the first members.
const CLUSTER_START: LogPosition = LogPosition::new(1, 1);

/// What a core starts with.
#[derive(Debug)]
pub struct CoreStart {
    /// This node.
    pub node_id: NodeId,
    /// Where the others reach it.
    pub address: String,
    /// Its settings.
    pub config: CheckedConfig,
    /// Decides about election timeouts, and about nothing else.
    pub seed: u64,
    /// Drawn at random for each start.
    pub run: RunId,
    /// What the storage holds.
    pub stored: StoredState,
    /// Where the state machine keeps its state.
    pub state_kept: StateKept,
}

/// The deciding half of a node. `R` is how a proposal is answered.
pub struct RaftNodeCore<R> {
    node_id: NodeId,
    address: String,
    config: CheckedConfig,
    identity: Option<Identity>,
    consensus: Consensus,
    members: Arc<Members>,
    now_ticks: u64,

    /// What the next turn will hold, as far as it is known.
    next: NextTurn<R>,
    issued: TurnNumber,
    written: TurnNumber,
    /// The newest term, and the turn that writes it.
    term_written_with: (Term, TurnNumber),
    /// Turns that are issued and not yet known to be written, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Bytes of entries in these turns.
    unwritten_bytes: u64,
    own_disk: OwnDisk,

    proposals: AnswersOwed<R>,
    batch: Batch<R>,
    membership: AnswersOwed<MembershipWaiter>,
    membership_work: MembershipWork,
    parked: Parking<R>,
    /// Of the change that is looked at again: since when its voters may say that they are alive.
    checks_voters_since: Option<u64>,
    transfer: Option<Transfer>,
    hand_overs: HandOvers,
    reads: Reads,
    /// The term in which this node led when it last looked.
    led: Option<Term>,

    /// When each peer was last heard of.
    last_heard: BTreeMap<NodeId, u64>,
    /// The first incarnation heard of each node, until it is replicated.
    first_incarnations: BTreeMap<NodeId, Incarnation>,

    /// Committed entries, each with the turn it came with, that are not yet handed to the state machine.
    held: VecDeque<(Entry, TurnNumber)>,
    /// The last entry that was handed to the state machine.
    handed_out: LogPosition,
    state_kept: StateKept,
    /// As consensus knows it: see [`in_state_machine`](Self::in_state_machine).
    applied: LogIndex,
    /// Bytes handed out and not yet applied, a sum for each turn.
    unapplied: VecDeque<(LogIndex, u64)>,
    unapplied_bytes: u64,

    snapshots: Snapshots,
    standings: Standings,
    /// Who waits for the identity to be durable.
    identity_replies: Vec<(TurnNumber, Responder<(), JoinError>)>,
    /// Whether this node has applied its own removal.
    is_retired: bool,
    /// Since members refuse this node because it was removed.
    removal: Option<Removal>,
    /// It takes nothing new: see [`prepare_to_stop`](Self::prepare_to_stop).
    is_stopping: bool,
    /// The last entry that was handed to the state machine with a reply to be answered.
    answers_until: LogIndex,
    stop_reason: Option<StopReason>,
}

/// What others say of this node's removal.
struct Removal {
    told_by: BTreeSet<NodeId>,
    /// The newest membership in which this node is missing.
    as_of: LogIndex,
    since_ticks: u64,
}

struct InFlight {
    number: TurnNumber,
    issued_ticks: u64,
    ready_number: Option<u64>,
    has_write: bool,
    bytes: u64,
}

struct NextTurn<R> {
    write: Write,
    send_now: Vec<RaftMessage>,
    send_after: Vec<RaftMessage>,
    send_snapshots: Vec<SnapshotToSend>,
    committed: Vec<Committed<R>>,
    forward: Vec<Forward<R>>,
    read_round: Option<ReadRound>,
    take_snapshot: Option<SnapshotReason>,
    hurry_snapshot: bool,
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

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Starts on what the storage holds. Reads the entries after the newest snapshot, which stay in memory until they
    /// are applied.
    ///
    /// # Errors
    /// If the storage belongs to another node, contradicts itself, or cannot be read.
    pub fn new(start: CoreStart, log: &impl LogReader) -> Result<Self, StartError> {
        let CoreStart { node_id, address, config, seed, run, stored, state_kept } = start;
        if let Some(identity) = stored.identity
            && identity.node_id != node_id
        {
            return Err(StartError::OtherNode { stored: identity, asked: node_id });
        }
        let (log_start, members, handed_out) = log_start(&stored, log)?;
        let applied = log_start.applied;
        let consensus = Consensus::new(node_id, &config, seed, log_start)
            .map_err(|reason| StartError::Inconsistent { reason })?;
        let mut core = RaftNodeCore {
            node_id,
            address,
            identity: stored.identity,
            consensus,
            membership_work: MembershipWork::begin(&members),
            members: Arc::new(members),
            now_ticks: 0,
            next: NextTurn::default(),
            issued: TurnNumber(0),
            written: TurnNumber(0),
            term_written_with: (stored.hard_state.term, TurnNumber(0)),
            in_flight: VecDeque::new(),
            unwritten_bytes: 0,
            own_disk: OwnDisk::default(),
            proposals: AnswersOwed::new(),
            batch: Batch::default(),
            membership: AnswersOwed::new(),
            parked: Parking::default(),
            checks_voters_since: None,
            transfer: None,
            hand_overs: HandOvers::default(),
            reads: Reads::default(),
            led: None,
            last_heard: BTreeMap::new(),
            first_incarnations: BTreeMap::new(),
            held: VecDeque::new(),
            handed_out,
            state_kept,
            applied,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            standings: Standings::new(&stored, run),
            snapshots: Snapshots::new(stored.snapshot, &config),
            identity_replies: Vec::new(),
            is_retired: false,
            removal: None,
            is_stopping: false,
            answers_until: LogIndex::ZERO,
            stop_reason: None,
            config,
        };
        if core.identity.is_some() {
            core.count_start();
            core.begin_to_hear();
        }
        core.begin();
        Ok(core)
    }

    /// What follows from an identity and a membership, at the start and when a cluster is begun.
    fn begin(&mut self) {
        let Some(identity) = self.identity else { return };
        self.first_incarnations.insert(self.node_id, identity.incarnation);
        if self.members.is_empty() {
            return;
        }
        // That this is applied tells that the snapshot of the start is restored, also if nothing comes after it.
        self.next
            .committed
            .push(Committed::Members { position: self.handed_out, members: Arc::clone(&self.members) });
        if self.members.get(self.node_id).is_none()
            && (self.members.knows(self.node_id) || mutated!(NotYetMemberMeansRemoved))
        {
            return self.retire();
        }
        if !self.is_hearing() {
            self.campaign_if_alone();
        }
    }

    /// An election like any other; with a single voter there is no node to wait for.
    fn campaign_if_alone(&mut self) {
        let voters = self.members.configuration().voters;
        let is_alone = voters.len() == 1 && voters.contains(&self.node_id) && !self.members.is_joint();
        if is_alone || mutated!(LeadsByConfiguration) {
            self.consensus.campaign();
        }
    }

    // --- Events ---

    /// One [`tick_interval`](crate::Config::tick_interval) has passed.
    pub fn tick(&mut self) {
        self.now_ticks += 1;
        self.tick_standings();
        if self.is_hearing() {
            self.consensus.wait();
        } else if !self.disk_hangs() {
            self.consensus.tick();
        } else if self.consensus.is_leader() {
            // Its heartbeats would keep it in office, while nothing that it applies can make progress.
            warn!(node = %self.node_id, "stepped down: the disk has not finished a write for {:?}", self.config.disk_stall_timeout);
            self.flush_batch();
            self.consensus.step_down();
        }
        self.expire_requests();
        let late = match self.consensus.leader() {
            Some(_) => ReadError::TimedOut(self.config.read_timeout),
            None => ReadError::NoLeader,
        };
        self.reads.tick(self.now_ticks, &late);
        self.record_members();
        self.leave_joint_if_due();
        self.tend_joiners();
        self.look_at_own_disk();
        self.ask_whether_still_needed();
        // Without a successor now, there may be one with the next tick.
        let _ = self.hand_over_to_stop();
    }

    /// This node's user asks.
    pub fn handle_local_request_msg(&mut self, message: LocalRequestMsg<R>) {
        match message {
            LocalRequestMsg::ForLeader(request) => {
                self.take_request(request, Forwarding::Allowed, Duration::MAX)
            }
            LocalRequestMsg::ForLeaderWithin { request, within, waits } => {
                let forwarding = if waits { Forwarding::Allowed } else { Forwarding::IfLeaderIsKnown };
                self.take_request(request, forwarding, within);
            }
            LocalRequestMsg::ReadIndex { reply } => self.take_read(reply, Serve::WhenApplied),
            LocalRequestMsg::Campaign { reply } => self.campaign(reply),
            LocalRequestMsg::Demote { term, successor, reply } => self.demote(term, successor, reply),
            LocalRequestMsg::MakeSnapshot { reply } => self.make_snapshot(reply),
            LocalRequestMsg::StartCluster { identity, members, reply } => {
                self.start_cluster(identity, members, reply);
            }
            LocalRequestMsg::AwaitCluster { identity, reply } => self.await_cluster(identity, reply),
            LocalRequestMsg::Inspect { reply } => reply.answer(Ok(self.inspect())),
        }
    }

    /// Another node, or a remote client, asks.
    pub fn handle_server_request_msg(&mut self, message: ServerRequestMsg<R>) {
        match message {
            ServerRequestMsg::RaftMessages { sender, receiver, messages } => {
                if let Err(refusal) = self.check_sender(&sender, receiver) {
                    warn!(node = %self.node_id, from = %sender.id, "refused messages: {refusal}");
                    return;
                }
                self.hear_standing(&sender, &messages);
                self.heard_of(&sender);
                for message in messages {
                    self.step(&sender, message);
                }
            }
            ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply } => {
                self.install_snapshot(sender, receiver, term, snapshot, reply);
            }
            ServerRequestMsg::ForLeader { request, forwarding } => {
                self.take_request(request, forwarding, Duration::MAX);
            }
            ServerRequestMsg::Announced { sender, address } => self.announced(&sender, address),
            ServerRequestMsg::KnownElsewhere { incarnation } => self.known_elsewhere(incarnation),
            ServerRequestMsg::ConfirmReadIndex { reply } => self.take_read(reply, Serve::WhenConfirmed),
            ServerRequestMsg::Inspect { reply } => reply.answer(Ok(self.inspect())),
        }
    }

    /// All writes up to and including those of this turn are durable.
    pub fn written(&mut self, number: TurnNumber) {
        let mut ready_number = None;
        // A turn without a write is written as soon as those before it are.
        while let Some(turn) = self.in_flight.front()
            && (turn.number <= number || !turn.has_write)
        {
            self.written = turn.number;
            ready_number = turn.ready_number.or(ready_number);
            self.unwritten_bytes -= turn.bytes;
            if turn.bytes > 0 {
                self.own_disk.wrote(self.now_ticks - turn.issued_ticks);
            }
            self.in_flight.pop_front();
        }
        if let Some(ready_number) = ready_number {
            let commit = self.consensus.commit();
            self.consensus.persisted(ready_number);
            // What was handed out before it was durable.
            self.consensus.apply_to(self.applied);
            self.has_become_durable(commit);
        }
        self.snapshots_written();
        let written = self.written;
        for (_, reply) in self.identity_replies.extract_if(.., |(turn, _)| *turn <= written) {
            reply.answer(Ok(()));
        }
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        self.snapshots.applied(index);
        if index <= self.applied {
            // The snapshot of the start is restored.
            return self.reads.applied(self.in_state_machine());
        }
        self.applied = index;
        while let Some((last, bytes)) = self.unapplied.front()
            && *last <= index
        {
            self.unapplied_bytes -= bytes;
            self.unapplied.pop_front();
        }
        self.consensus.apply_to(index);
        self.reads.applied(index);
    }

    /// Up to where the state machine is. Consensus counts as applied what is in the snapshot of the start, long before that
    /// is restored.
    fn in_state_machine(&self) -> LogIndex {
        if self.snapshots.is_restored(self.applied) { self.applied } else { LogIndex::ZERO }
    }

    /// The connection to a peer broke: messages may have been lost. To be called once for each broken connection.
    pub fn report_unreachable(&mut self, peer: NodeId) {
        self.consensus.report_unreachable(peer);
    }

    /// The entries asked for with [`Turn::fetch`], or that they were compacted away. Any other error of the storage
    /// stops the node before this is called.
    pub fn fetched(&mut self, fetch: LogFetch, result: Result<Vec<Entry>, StorageError>) {
        self.consensus.fetched(fetch, result);
    }

    /// The answer to [`Turn::read_round`].
    pub fn read_round_answered(&mut self, round: u64, answer: Result<LogIndex, ReadError>) {
        match answer {
            Ok(index) => self.reads.confirmed(round, index, self.in_state_machine()),
            Err(_) => self.reads.failed(round),
        }
    }

    /// Another node refuses this one's messages. If that can only mean that this node is no longer part of the cluster,
    /// it must stop: see [`stop_reason`](Self::stop_reason).
    pub fn refused_by(&mut self, by: NodeId, refusal: SenderRefusal) {
        let own_incarnation = self.identity.map(|identity| identity.incarnation);
        let reason = match &refusal {
            SenderRefusal::Fenced { id, presented, .. }
                if *id == self.node_id && Some(*presented) == own_incarnation =>
            {
                StopReason::Refused(refusal)
            }
            SenderRefusal::RolledBack { id, run, .. } | SenderRefusal::StartedTwice { id, run, .. }
                if self.is_own_run(*id, *run) =>
            {
                StopReason::Refused(refusal)
            }
            // Of an earlier run, or of a copy.
            SenderRefusal::RolledBack { .. } | SenderRefusal::StartedTwice { .. } => return,
            SenderRefusal::NotAMember { id, as_of }
                if *id == self.node_id && *as_of >= self.members.as_of() =>
            {
                return self.told_of_removal(by, *as_of);
            }
            _ => {
                warn!(node = %self.node_id, by = %by, "messages are refused: {refusal}");
                return;
            }
        };
        self.must_stop(reason);
    }

    /// Why this node must stop by itself, once it must.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.stop_reason.as_ref()
    }

    /// Answers everyone who still waits. Nothing else may be called after it.
    pub fn stop(&mut self, reason: &StopReason) {
        self.refuse_all(reason);
        self.snapshots.stop(reason);
        for (_, reply) in self.identity_replies.drain(..) {
            reply.answer(Err(reason.clone().into()));
        }
        for read in self.reads.take_all() {
            read.reply.answer(Err(reason.clone().into()));
        }
    }

    /// The public picture.
    pub fn status(&self) -> Status {
        Status {
            node_id: self.node_id,
            identity: self.identity,
            role: self.consensus.role(),
            term: self.consensus.term(),
            leader_id: self.consensus.leader(),
            commit: self.consensus.commit(),
            applied: self.in_state_machine(),
            last: self.consensus.last(),
            truncated: self.consensus.truncated(),
            snapshot: self.snapshots.newest(),
            members: Arc::clone(&self.members),
        }
    }

    fn inspect(&self) -> Inspection {
        Inspection {
            status: self.status(),
            progress: self.consensus.progress(),
            proposals_waiting: (self.proposals.len() + self.batch.len() + self.parked.len()) as u64,
            reads_waiting: self.reads.len() as u64,
            log_cache_bytes: self.consensus.cache_bytes(),
            durable: self.consensus.durable(),
        }
    }

    /// Whether the oldest write that is under way has been so for too long.
    fn disk_hangs(&self) -> bool {
        if mutated!(HungDiskKeepsTheLeader) {
            return false;
        }
        let limit = self.config.ticks(self.config.disk_stall_timeout);
        let oldest = self.in_flight.iter().find(|turn| turn.has_write);
        oldest.is_some_and(|turn| self.now_ticks - turn.issued_ticks > limit)
    }

    // --- The next turn ---

    /// What must be done now, if anything. To be called until it returns `None` after every event.
    pub fn ready(&mut self) -> Option<Turn<R>> {
        self.look_at_leadership();
        self.leave_joint_if_due();
        self.unpark();
        self.flush_batch();
        self.begin_read_round();

        let number = self.next_turn();
        let mut ready_number = None;
        if let Some(ready) = self.consensus.ready() {
            ready_number = Some(ready.number);
            self.take_ready(ready, number);
        }
        self.hand_out_committed();
        self.decide_on_snapshot();
        self.issue(number, ready_number)
    }

    /// The number of the turn that is being put together.
    fn next_turn(&self) -> TurnNumber {
        TurnNumber(self.issued.0 + 1)
    }

    fn take_ready(&mut self, ready: ConsensusReady, number: TurnNumber) {
        let next = &mut self.next;
        if self.term_written_with.0 != self.consensus.term() {
            self.term_written_with = (self.consensus.term(), number);
        }
        if self.term_written_with.1 > self.written && !mutated!(SpeaksBeforeItsTermIsDurable) {
            // A single voter leads at once. If it forgot the term in a crash, it would lead in it again, and other
            // entries would follow those that its learners have.
            next.send_after.extend(ready.send_now);
        } else {
            next.send_now.extend(ready.send_now);
        }
        self.standings.says(&ready.send_after);
        next.send_after.extend(ready.send_after);
        if mutated!(AcknowledgesBeforeDurable) {
            let is_early =
                |message: &mut RaftMessage| matches!(message.body, RaftMessageBody::AppendResponse { .. });
            next.send_now.extend(next.send_after.extract_if(.., is_early));
        }
        if mutated!(VotesBeforeDurable) {
            let is_early =
                |message: &mut RaftMessage| matches!(message.body, RaftMessageBody::VoteResponse { .. });
            next.send_now.extend(next.send_after.extract_if(.., is_early));
        }
        let send_snapshots = ready.send_snapshots.into_iter();
        next.send_snapshots.extend(send_snapshots.map(|send| self.snapshots.send(send)));
        next.write.append = ready.append;
        if ready.must_sync && !(mutated!(TermAndVoteAreNotWritten) && next.write.append.is_empty()) {
            next.write.hard_state = Some(self.consensus.hard_state());
        }
        // A commit index that moved is no reason to write: it is found again by the next election, and until then goes
        // with the next write that has a reason.
        if let Some(position) = ready.installed {
            self.write_installed(position, number);
        }
        for (round, index) in ready.confirmed_reads {
            self.reads.confirmed(round, index, self.in_state_machine());
        }
        if ready.committed.iter().any(|entry| entry.kind == EntryKind::MembershipChange) {
            // A change is put into force only when the commit index that covers it is durable: a node that has acted on
            // a membership must not fall back to an older one when it restarts.
            self.next.write.hard_state = Some(self.consensus.hard_state());
        }
        let handed_out = self.handed_out.index;
        let news = ready
            .committed
            .into_iter()
            .filter(|entry| entry.position.index > handed_out || mutated!(HandsOutTwice));
        self.held.extend(news.map(|entry| (entry, number)));
    }

    fn issue(&mut self, number: TurnNumber, ready_number: Option<u64>) -> Option<Turn<R>> {
        let fetch = self.consensus.take_fetches();
        if self.next.is_empty() && fetch.is_empty() {
            if let Some(ready_number) = ready_number {
                self.settle_empty(ready_number);
            }
            return None;
        }
        let mut next = std::mem::take(&mut self.next);
        let has_write = !next.write.is_empty();
        if !has_write && self.in_flight.is_empty() {
            // Everything that these messages depend on is durable.
            next.send_now.append(&mut next.send_after);
        }
        self.issued = number;
        let bytes = next.write.append.iter().map(Entry::size_bytes).sum();
        self.unwritten_bytes += bytes;
        let issued_ticks = self.now_ticks;
        self.in_flight.push_back(InFlight { number, issued_ticks, ready_number, has_write, bytes });
        if !has_write && self.in_flight.len() == 1 {
            self.written(number);
        }
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

    /// raft-rs had only news for itself: no turn comes of it, but it counts as written with the turns before it.
    fn settle_empty(&mut self, ready_number: u64) {
        match self.in_flight.back_mut() {
            Some(last) => last.ready_number = Some(ready_number),
            None => self.consensus.persisted(ready_number),
        }
    }

    // --- Messages of the protocol ---

    /// May messages of this sender be believed, which takes this node for `receiver`, as far as it knows?
    ///
    /// # Errors
    /// Why not: sending again does not help. It is to be told with [`refused_by`](Self::refused_by).
    pub fn check_sender(
        &mut self,
        sender: &Sender,
        receiver: Option<Incarnation>,
    ) -> Result<(), SenderRefusal> {
        let Some(identity) = self.identity.filter(|_| !mutated!(IncarnationIsNotChecked)) else {
            return Ok(());
        };
        if let Err(refusal) = self.members.check_sender(sender, receiver, &identity) {
            if let (SenderRefusal::SameId { .. }, true) =
                (&refusal, sender.incarnation == identity.incarnation)
            {
                self.told_of_twin(sender.started.found.starts, sender.started.run);
            }
            if let SenderRefusal::OtherReceiver { id, expected: known, actual: presented } = refusal {
                // Those who would refuse this node's messages with these words may all be unknown to it.
                self.must_stop(StopReason::Refused(SenderRefusal::Fenced { id, known, presented }));
            }
            return Err(refusal);
        }
        self.check_started(sender)?;
        // Of who is not known as a member nothing is remembered, or whoever speaks to this node could fill its memory.
        if self.members.get(sender.id).is_none_or(|member| member.incarnation.is_some()) {
            return Ok(());
        }
        // Until a member's incarnation is replicated, the first one heard of counts.
        let known = *self.first_incarnations.entry(sender.id).or_insert(sender.incarnation);
        if known != sender.incarnation {
            return Err(SenderRefusal::Fenced { id: sender.id, known, presented: sender.incarnation });
        }
        Ok(())
    }

    /// The first node of a cluster that lost its disk has begun another cluster, in which it is alone. It must not answer
    /// for the one that it has forgotten.
    fn known_elsewhere(&mut self, known: Incarnation) {
        let is_alone = self.members.len() == 1 && self.members.get(self.node_id).is_some();
        if let Some(Identity { incarnation: presented, .. }) = self.identity
            && is_alone
        {
            let id = self.node_id;
            self.must_stop(StopReason::Refused(SenderRefusal::Fenced { id, known, presented }));
        }
    }

    fn step(&mut self, sender: &Sender, message: RaftMessage) {
        let from = sender.id;
        if self.identity.is_none() || message.from != from {
            return;
        }
        match message.body {
            // What it says is remembered already.
            RaftMessageBody::Standing { .. } => return,
            RaftMessageBody::Twin { starts, run } => return self.told_of_twin(starts, run),
            // What others know of this node comes first.
            _ if self.is_hearing() => return,
            _ => {}
        }
        if let RaftMessageBody::Append { entries, .. } = &message.body
            && !entries.is_empty()
            && (self.unapplied_bytes > self.config.unapplied_bytes_max
                || self.unwritten_bytes > self.config.uncommitted_bytes_max)
        {
            // State machine or disk is behind by as much as this node will hold. The leader sends it again.
            return;
        }
        if self.consensus.shows_a_loss(&message) {
            // Its votes may be lost as well: it must not go on as the node that it was.
            return self.must_stop(StopReason::Storage(
                "entries that this node had acknowledged are missing. An older copy of its directory was restored, or \
                 the disk lost what it had synced. Remove the node from the cluster and let it join again with an \
                 empty directory"
                    .to_owned(),
            ));
        }
        if let Some(missing) = self.consensus.shows_lost_writes(&message) {
            return self.writes_lost(from, message.term, missing);
        }
        if let RaftMessageBody::Reached { peers } = message.body {
            return self.told_of_reached(sender, peers);
        }
        self.teach_term(&message);
        let is_vote = matches!(
            message.body,
            RaftMessageBody::VoteResponse { .. } | RaftMessageBody::PreVoteResponse { .. }
        );
        match self.consensus.step(message) {
            Ok(()) => {}
            // The answer to a candidacy that is over, or whose log is still being written, comes with every election.
            Err(reason) if is_vote => debug!(node = %self.node_id, %from, "dropped a message: {reason}"),
            Err(reason) => warn!(node = %self.node_id, %from, "dropped a message: {reason}"),
        }
    }

    /// A leader lacks what was committed: what this node would serve from now on is not what the others serve.
    fn writes_lost(&mut self, leader: NodeId, term: Term, missing: LogIndex) {
        let (node, commit) = (self.node_id, self.consensus.commit());
        self.must_stop(StopReason::WritesLost { node, missing, commit, leader, term });
    }

    /// A candidate of an earlier term is told the term (figure 3.1 of the thesis). raft-rs says nothing to it, and who does not
    /// know of its membership never asks for its vote: without pre-vote, it could lose every election. As the answer to a
    /// pre-vote, it is no vote against a later candidacy.
    fn teach_term(&mut self, message: &RaftMessage) {
        let term = self.consensus.term();
        if matches!(message.body, RaftMessageBody::RequestVote { .. }) && message.term < term {
            let body = RaftMessageBody::PreVoteResponse { granted: false, commit: LogPosition::ZERO };
            self.next.send_after.push(RaftMessage { from: self.node_id, to: message.from, term, body });
        }
    }

    fn heard_of(&mut self, sender: &Sender) {
        if self.members.get(sender.id).is_some() {
            self.last_heard.insert(sender.id, self.now_ticks);
        }
        // Who had not let this node in yet, or had forgotten it in a crash, refused it as well. A removed node is spoken to by
        // nobody who knows the membership that it is missing in.
        self.removal.take_if(|removal| removal.as_of < sender.members_as_of);
    }

    fn is_alive(&self, peer: NodeId) -> bool {
        let election_ticks = self.config.ticks(self.config.election_timeout);
        self.last_heard.get(&peer).is_some_and(|heard| self.now_ticks - heard <= election_ticks)
    }

    // --- Reads ---

    fn take_read(&mut self, reply: Responder<LogIndex, ReadError>, serve: Serve) {
        let waiting = self.reads.len();
        if waiting >= self.config.reads_in_flight_max {
            return reply.answer(Err(ReadError::Busy { waiting: waiting as u64 }));
        }
        if self.is_stopping && serve == Serve::WhenApplied {
            return reply.answer(Err(StopReason::Stopping.into()));
        }
        if mutated!(NoLeaderIsAnAnswer) && self.consensus.leader().is_none() {
            return reply.answer(Err(ReadError::NoLeader));
        }
        if serve == Serve::WhenConfirmed && !self.consensus.is_leader() {
            let refusal = self.status().leader_hint().map_or(ReadError::NoLeader, ReadError::NotLeader);
            return reply.answer(Err(refusal));
        }
        let deadline_ticks = self.deadline(self.config.read_timeout);
        self.reads.add(Read { reply, serve, deadline_ticks });
    }

    fn begin_read_round(&mut self) {
        if let Some(leader) = self.consensus.leader() {
            self.reads.leader_is(leader);
        }
        if !self.reads.wants_round() {
            return;
        }
        match self.consensus.leader() {
            // Before it has committed an entry of its own term, a leader may not know what is committed.
            Some(leader) if leader == self.node_id && self.consensus.has_committed_in_term() => {
                let round = self.reads.begin_round(RoundKind::Heartbeats);
                self.consensus.read_index(round);
                if mutated!(ReadsWithoutQuorum) {
                    self.reads.confirmed(round, self.consensus.commit(), self.in_state_machine());
                }
            }
            Some(leader) if leader != self.node_id && self.members.get(leader).is_some() => {
                let round = self.reads.begin_round(RoundKind::AskLeader(leader));
                self.next.read_round = Some(ReadRound { leader, round });
            }
            _ => {}
        }
    }

    // --- After its own removal ---

    /// This node is no longer a member. It neither leads nor campaigns, but goes on to answer until a majority of the
    /// members has the removal in force, and so the commit index that covers it on disk. Before that, members that
    /// restart may have fallen back to the old membership, and need this node's vote to find out what is committed.
    fn retire(&mut self) {
        info!(node = %self.node_id, as_of = %self.members.as_of(), "removed from the cluster");
        if self.consensus.is_leader() {
            // raft-rs would go on as a leader that drops every proposal.
            self.consensus.step_down();
        }
        self.is_retired = true;
    }

    /// Whether the change that adds this node is yet to come, in the log after the snapshot that it has.
    fn is_not_yet_a_member(&self) -> bool {
        !self.is_retired && !self.members.knows(self.node_id)
    }

    /// A joining node that was cleared may have been let in again: it asks no longer whether it is needed.
    fn come_back_if_member(&mut self) {
        self.is_retired &= self.members.get(self.node_id).is_none();
    }

    /// A member refuses this node because it was removed. Others, that may not know yet, may still need it.
    fn told_of_removal(&mut self, by: NodeId, as_of: LogIndex) {
        let since_ticks = self.now_ticks;
        let removal =
            self.removal.get_or_insert_with(|| Removal { told_by: BTreeSet::new(), as_of, since_ticks });
        removal.told_by.insert(by);
        removal.as_of = removal.as_of.max(as_of);
        self.stop_if_not_needed();
    }

    /// Stops a removed node when a majority of the others knows of it. Which these are may have changed since it heard of
    /// a membership: if it does not know its own removal, it does not wait for who is silent.
    fn stop_if_not_needed(&mut self) {
        let Some(Removal { told_by, as_of, since_ticks }) = &self.removal else { return };
        let voters = self.other_voters();
        // A member that does not know of a node yet refuses it as well.
        let is_majority =
            !self.is_not_yet_a_member() && voters.intersection(told_by).count() > voters.len() / 2;
        let patience = self.config.ticks(self.config.election_timeout * REMOVAL_PATIENCE);
        let last_heard = voters.difference(told_by).filter_map(|voter| self.last_heard.get(voter)).max();
        let waits_since = *since_ticks.max(last_heard.unwrap_or(since_ticks));
        let is_alone = !self.is_retired && self.now_ticks - waits_since > patience;
        if is_majority || is_alone || mutated!(RemovedNodeStopsAtOnce) {
            self.must_stop(StopReason::Removed { as_of: *as_of });
        }
    }

    fn other_voters(&self) -> BTreeSet<NodeId> {
        let mut voters = self.members.configuration().voters;
        voters.remove(&self.node_id);
        voters
    }

    /// A removed node is not spoken to by those who know, and a learner that was removed while it was away stands for no
    /// election. It says something that changes nothing, to be refused; the term is one that nobody leaves another for.
    fn ask_whether_still_needed(&mut self) {
        let is_forgotten = !self.members.is_voter(self.node_id)
            && !self.members.is_empty()
            && !self.members.iter().any(|member| self.is_alive(member.id));
        if !self.is_retired && self.removal.is_none() && !is_forgotten {
            return;
        }
        self.stop_if_not_needed();
        let (from, term) = (self.node_id, CLUSTER_START.term);
        let mut voters = self.other_voters();
        if let Some(removal) = &self.removal {
            voters.retain(|voter| !removal.told_by.contains(voter));
        }
        self.next.send_now.extend(voters.into_iter().map(|to| RaftMessage {
            from,
            to,
            term,
            body: RaftMessageBody::HeartbeatResponse { commit: LogIndex::ZERO, read_round: None },
        }));
    }

    // --- Small things ---

    fn deadline(&self, timeout: Duration) -> u64 {
        self.now_ticks.saturating_add(self.config.ticks(timeout))
    }

    fn must_stop(&mut self, reason: StopReason) {
        if self.stop_reason.is_none() {
            match reason {
                StopReason::WritesLost { .. } => error!(node = %self.node_id, "must stop: {reason}"),
                _ => info!(node = %self.node_id, "must stop: {reason}"),
            }
            self.stop_reason = Some(reason);
        }
    }

    // --- Beginning and entering a cluster ---

    fn start_cluster(&mut self, identity: Identity, members: Members, reply: Responder<(), JoinError>) {
        match self.identity {
            // With a log, the membership that goes with it is on its way to the disk.
            Some(stored) if !self.members.is_empty() || self.consensus.last() != LogPosition::ZERO => {
                return reply.answer(Err(JoinError::AlreadyMember { cluster_id: stored.cluster_id }));
            }
            Some(stored) if stored != identity => {
                return reply.answer(Err(JoinError::OtherIdentity { stored, asked: identity }));
            }
            _ => {}
        }
        // A node that was pledged to the cluster may have voted for another one that began before it.
        let HardState { term, vote, .. } = self.consensus.hard_state();
        let start = LogStart {
            hard_state: HardState { term: term.max(CLUSTER_START.term), vote, commit: CLUSTER_START.index },
            configuration: members.configuration(),
            truncated: CLUSTER_START,
            last: CLUSTER_START,
            term_starts: Vec::new(),
            applied: CLUSTER_START.index,
            tail: Vec::new(),
            snapshot: None,
        };
        let hard_state = start.hard_state;
        if let Err(reason) = self.consensus.restart(&self.config, start) {
            return reply.answer(Err(StopReason::Internal(reason).into()));
        }
        for turn in &mut self.in_flight {
            // It is not this consensus that waits for it.
            turn.ready_number = None;
        }
        self.identity = Some(identity);
        self.membership_work.members_change(&self.members, &members);
        self.members = Arc::new(members);
        self.handed_out = CLUSTER_START;
        self.applied = CLUSTER_START.index;
        self.next.write = Write {
            identity: Some(identity),
            reset_log: Some(CLUSTER_START),
            hard_state: Some(hard_state),
            members: Some(Members::clone(&self.members)),
            ..Write::default()
        };
        self.count_start();
        let turn = self.next_turn();
        self.identity_replies.push((turn, reply));
        self.begin();
    }

    fn await_cluster(&mut self, identity: Identity, reply: Responder<(), JoinError>) {
        match self.identity {
            Some(stored) if stored == identity => match self.identity_replies.last() {
                // It is on its way to the disk: who asks again waits for that as well.
                Some(&(turn, _)) => self.identity_replies.push((turn, reply)),
                None => reply.answer(Ok(())),
            },
            Some(stored) => reply.answer(Err(JoinError::OtherIdentity { stored, asked: identity })),
            None => {
                self.identity = Some(identity);
                self.next.write.identity = Some(identity);
                self.count_start();
                let turn = self.next_turn();
                self.identity_replies.push((turn, reply));
                self.begin();
            }
        }
    }
}

/// The log as consensus finds it, the newest membership, and the place of the state machine.
fn log_start(
    stored: &StoredState,
    log: &impl LogReader,
) -> Result<(LogStart, Members, LogPosition), StartError> {
    let inconsistent = |reason: String| Err(StartError::Inconsistent { reason });
    let state_machine_at = stored.snapshot.as_ref().map_or(stored.truncated, |snapshot| snapshot.position);
    let applied = state_machine_at.index;
    if applied < stored.truncated.index {
        let truncated = stored.truncated;
        return inconsistent(format!(
            "the log begins after {truncated}, the snapshot ends at {state_machine_at}"
        ));
    }
    if applied > stored.last.index {
        return inconsistent(format!(
            "the snapshot is at {state_machine_at}, the log ends at {}",
            stored.last
        ));
    }
    let mut members = stored.members.clone().unwrap_or_else(Members::none);
    if mutated!(MembersAreLostOverRestart) {
        members = Members::none();
    }
    if let Some(snapshot) = &stored.snapshot
        && snapshot.members.as_of() > members.as_of()
    {
        members = snapshot.members.clone();
    }
    if stored.identity.is_none() && (!members.is_empty() || stored.last != LogPosition::ZERO) {
        return inconsistent("there is a log or a membership, but no identity".to_owned());
    }
    let mut hard_state = stored.hard_state;
    // What is applied was committed, whether or not the commit index was written again since.
    hard_state.commit = hard_state.commit.max(members.as_of()).max(applied);
    if hard_state.commit > stored.last.index {
        return inconsistent(format!(
            "index {} is committed, the log ends at {}",
            hard_state.commit, stored.last
        ));
    }
    if hard_state.term < stored.last.term {
        return inconsistent(format!("the term is {}, the log ends at {}", hard_state.term, stored.last));
    }
    let mut tail = Vec::new();
    let mut from = applied.next();
    while from <= stored.last.index {
        let read = log.read(from, stored.last.index.next(), START_READ_BYTES)?;
        match read.last() {
            Some(last) => from = last.position.index.next(),
            None => return inconsistent(format!("entry {from} could not be read")),
        }
        tail.extend(read);
    }
    let start = LogStart {
        hard_state,
        configuration: members.configuration(),
        truncated: stored.truncated,
        last: stored.last,
        term_starts: stored.term_starts.clone(),
        applied,
        tail,
        snapshot: stored.snapshot.as_ref().map(|s| (s.position, s.members.configuration())),
    };
    Ok((start, members, state_machine_at))
}

impl<R> std::fmt::Debug for RaftNodeCore<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNodeCore")
            .field("node_id", &self.node_id)
            .field("term", &self.consensus.term())
            .field("role", &self.consensus.role())
            .finish_non_exhaustive()
    }
}
