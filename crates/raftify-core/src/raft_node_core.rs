//! The deterministic core of a node: owns consensus, and the machines that hold all other state.
//!
//! The raft loop calls it, or the simulator instead. The caller reports events (`handle_*`, `tick`,
//! `written`, `applied`, …) and then asks for the resulting work ([`ready`](RaftNodeCore::ready)). The core
//! does no I/O, reads no clock and draws no random numbers. The submodules handle events that concern several
//! machines: requests for the leader in `requests`, messages of other nodes in `messages`, committed entries
//! in `committed`, …

mod cluster_start;
mod committed;
mod leadership;
mod log_start;
mod member_care;
mod membership;
mod messages;
mod reads;
mod removal;
mod requests;
mod rollback;
mod snapshots;
mod stopping;
mod storage_room;

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use self::log_start::log_start;
use crate::config::CheckedConfig;
use crate::entry::{Entry, EntryKind};
use crate::error::{StartError, StopReason};
use crate::machines::{
    Delivery, Leadership, Lifecycle, Liveness, LocalNode, Membership, Pipeline, Reads, Requests,
    RollbackGuard, Serve, Snapshots,
};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::raft_rs::{Consensus, ConsensusReady};
use crate::request::{Forwarding, LocalRequestMsg, ProposalReply, ServerRequestMsg};
use crate::status::{Elections, Inspection, PeerProgress, Status};
use crate::storage::{LogReader, StorageError, StoredState};
use crate::turn::{LogFetch, StateKept, Turn, TurnNumber};
use crate::types::{LogIndex, NodeId, RunId};

/// The initial state of a core.
#[derive(Debug)]
pub struct CoreStart {
    /// This node.
    pub node_id: NodeId,
    /// The address at which the other nodes reach it.
    pub address: String,
    /// Its settings.
    pub config: CheckedConfig,
    /// Determines the election timeouts, and nothing else.
    pub seed: u64,
    /// Drawn at random for each start.
    pub run: RunId,
    /// The contents of the storage.
    pub stored: StoredState,
    /// Where the state machine keeps its state.
    pub state_kept: StateKept,
}

/// The deterministic core of a node. `R` is the reply channel of a proposal.
pub struct RaftNodeCore<R> {
    consensus: Consensus,
    pipeline: Pipeline<R>,
    requests: Requests<R>,
    membership: Membership,
    leadership: Leadership,
    reads: Reads,
    snapshots: Snapshots,
    delivery: Delivery,
    liveness: Liveness,
    rollback_guard: RollbackGuard,
    lifecycle: Lifecycle,
    node: LocalNode,
}

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Starts from the contents of the storage. Reads the entries after the newest snapshot, which stay in
    /// memory until they are applied.
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
        let (log_start, members, delivered) = log_start(&stored, log)?;
        let consensus = Consensus::new(node_id, &config, seed, log_start)
            .map_err(|reason| StartError::Inconsistent { reason })?;
        let snapshot = stored.snapshot.as_ref().map(|snapshot| snapshot.position);
        let mut core = RaftNodeCore {
            consensus,
            membership: Membership::new(members),
            pipeline: Pipeline::new(stored.hard_state.term),
            delivery: Delivery::new(state_kept, delivered, snapshot),
            requests: Requests::new(),
            leadership: Leadership::default(),
            liveness: Liveness::new(config.ticks(config.election_timeout)),
            rollback_guard: RollbackGuard::new(&stored, run),
            reads: Reads::default(),
            snapshots: Snapshots::new(stored.snapshot, &config),
            lifecycle: Lifecycle::default(),
            node: LocalNode::new(node_id, address, config, stored.identity),
        };
        if core.node.identity().is_some() {
            core.count_start();
            core.begin_to_hear();
        }
        core.begin();
        Ok(core)
    }

    // --- Events ---

    /// One [`tick_interval`](crate::Config::tick_interval) has passed.
    pub fn tick(&mut self) {
        self.node.tick();
        self.tick_rollback_guard();
        if self.is_hearing() {
            self.consensus.wait();
        } else if !self.disk_hangs() {
            self.consensus.tick();
        } else if self.consensus.is_leader() {
            self.step_down_from_hung_disk();
        }
        self.expire_requests();
        self.expire_reads();
        self.record_members();
        self.leave_joint_if_due();
        self.tend_joiners();
        self.look_at_own_disk();
        self.tick_storage_room();
        self.ask_whether_still_needed();
        // If there is no successor now, there may be one at the next tick.
        let _ = self.transfer_to_stop();
    }

    /// A request of the user of this node.
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

    /// A request of another node or a remote client.
    pub fn handle_server_request_msg(&mut self, message: ServerRequestMsg<R>) {
        match message {
            ServerRequestMsg::RaftMessages { sender, receiver, messages } => {
                self.take_messages(&sender, receiver, messages);
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
            ServerRequestMsg::MakeSnapshot { reply } => self.make_snapshot(reply),
            ServerRequestMsg::Inspect { reply } => reply.answer(Ok(self.inspect())),
        }
    }

    /// All writes up to and including those of this turn are durable.
    pub fn written(&mut self, number: TurnNumber) {
        let written = self.pipeline.note_written(number, self.node.now());
        if let Some(took_ticks) = written.took_ticks {
            self.leadership.own_disk.wrote(took_ticks);
        }
        if let Some(ready_number) = written.ready_number {
            let commit = self.consensus.commit();
            self.consensus.persisted(ready_number);
            // Entries that were delivered before they were durable.
            self.consensus.apply_to(self.delivery.applied());
            self.has_become_durable(commit);
        }
        self.snapshots_written();
        self.node.written(self.pipeline.written());
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        if self.delivery.note_applied(index) {
            self.consensus.apply_to(index);
            self.reads.applied(index);
        } else {
            self.reads.applied(self.delivery.in_state_machine());
        }
    }

    /// Whether this node leads, and its followers have not been sent its newest commit index yet. The next
    /// entries carry it. If there are none soon, the caller calls [`announce_commit`](Self::announce_commit);
    /// without that, followers learn it with the next heartbeat.
    pub fn has_unannounced_commit(&self) -> bool {
        self.consensus.has_unannounced_commit()
    }

    /// Sends the commit index to the followers, unless this is done already.
    pub fn announce_commit(&mut self) {
        self.consensus.announce_commit();
    }

    /// The connection to a peer broke: messages may have been lost. The shell calls it once for each broken
    /// connection.
    pub fn report_unreachable(&mut self, peer: NodeId) {
        self.consensus.report_unreachable(peer);
    }

    /// The entries requested with [`Turn::fetch`], or the error that they were compacted away. On any other
    /// storage error, the node stops before this is called.
    pub fn fetched(&mut self, fetch: LogFetch, result: Result<Vec<Entry>, StorageError>) {
        self.consensus.fetched(fetch, result);
    }

    /// Why this node must stop, once it must.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.lifecycle.stop_reason()
    }

    fn must_stop(&mut self, reason: StopReason) {
        if !self.lifecycle.must_stop() {
            match reason {
                StopReason::WritesLost { .. } => error!(node = %self.node.id(), "must stop: {reason}"),
                _ => info!(node = %self.node.id(), "must stop: {reason}"),
            }
            self.lifecycle.set_stop_reason(reason);
        }
    }

    /// Answers every request that still waits. No other method may be called after it.
    pub fn stop(&mut self, reason: &StopReason) {
        self.refuse_all(reason);
        self.snapshots.stop(reason);
        self.node.stop(reason);
        for read in self.reads.take_all() {
            read.reply.answer(Err(reason.clone().into()));
        }
    }

    /// The public status.
    pub fn status(&self) -> Status {
        Status {
            node_id: self.node.id(),
            identity: self.node.identity(),
            role: self.consensus.role(),
            term: self.consensus.term(),
            leader_id: self.consensus.leader(),
            commit: self.consensus.commit(),
            applied: self.delivery.in_state_machine(),
            last: self.consensus.last(),
            truncated: self.consensus.truncated(),
            snapshot: self.snapshots.newest(),
            members: Arc::clone(self.membership.members()),
        }
    }

    /// How many elections this node has started.
    pub fn elections(&self) -> Elections {
        self.consensus.elections()
    }

    /// The bytes of the entries since the newest snapshot began, as far as this node has applied them. A
    /// restart reads them again.
    pub fn log_bytes(&self) -> u64 {
        self.snapshots.log_bytes()
    }

    /// The full diagnostics.
    pub fn inspect(&self) -> Inspection {
        Inspection {
            status: self.status(),
            progress: self.progress(),
            proposals_waiting: self.requests.len() as u64,
            reads_waiting: self.reads.len() as u64,
            log_cache_bytes: self.consensus.cache_bytes(),
            durable: self.consensus.durable(),
            storage_full: self.full_storages(),
            disk: None, // Measured by the shell.
        }
    }

    fn progress(&self) -> Vec<PeerProgress> {
        let (now, tick) = (self.node.now(), self.node.config().tick_interval);
        let since =
            |heard: u64| u64::try_from(tick.as_millis()).unwrap_or(u64::MAX).saturating_mul(now - heard);
        let heard_millis = |id| self.liveness.last_heard(id).map(since);
        let progress = self.consensus.progress().into_iter();
        progress.map(|peer| PeerProgress { heard_millis: heard_millis(peer.id), ..peer }).collect()
    }

    /// Whether this node is a member, as far as it has applied.
    fn is_member(&self) -> bool {
        self.membership.members().get(self.node.id()).is_some()
    }

    // --- The next turn ---

    /// The work to do now, if any. The caller calls it after every event until it returns `None`.
    pub fn ready(&mut self) -> Option<Turn<R>> {
        self.look_at_leadership();
        self.leave_joint_if_due();
        self.retry_deferred();
        self.flush_batch();
        self.begin_read_round();

        let mut ready_number = None;
        if let Some(ready) = self.consensus.ready() {
            ready_number = Some(ready.number);
            self.take_ready(ready);
        }
        self.deliver_committed();
        self.decide_on_snapshot();
        self.issue(ready_number)
    }

    fn take_ready(&mut self, ready: ConsensusReady) {
        let number = self.pipeline.next_number();
        let is_term_written = self.pipeline.is_term_written(self.consensus.term());
        self.rollback_guard.acknowledges(&ready.send_after);
        let next = self.pipeline.next();
        if is_term_written || mutated!(SpeaksBeforeItsTermIsDurable) {
            next.send_now.extend(ready.send_now);
        } else {
            // A single voter leads at once. If it lost the term in a crash, it would lead in the same term
            // again, and other entries would follow those that its learners have.
            next.send_after.extend(ready.send_now);
        }
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
        // A new commit index alone is no reason to write: the next election finds it again. Until then it is
        // included in the next write that has another reason.
        if let Some(position) = ready.installed {
            self.write_installed(position);
        }
        for (round, index) in ready.confirmed_reads {
            self.reads.confirmed(round, index, self.delivery.in_state_machine());
        }
        if ready.committed.iter().any(|entry| entry.kind == EntryKind::MembershipChange) {
            // A change is put into force only when the commit index that covers it is durable: a node that
            // has acted on a membership must not return to an older one when it restarts.
            self.pipeline.next().write.hard_state = Some(self.consensus.hard_state());
        }
        self.delivery.add(ready.committed, number);
    }

    fn issue(&mut self, ready_number: Option<u64>) -> Option<Turn<R>> {
        let fetch = self.consensus.take_fetches();
        let turn = self.pipeline.issue(fetch, ready_number, self.node.now());
        match (&turn, ready_number) {
            // The turn has nothing to write, and all turns before it are written.
            (Some(turn), _) if self.pipeline.is_front_written() => self.written(turn.number),
            // The ready of raft-rs changed only its internal state: it results in no turn, but counts as
            // written with the turns before it.
            (None, Some(ready_number)) if !self.pipeline.joins_last(ready_number) => {
                self.consensus.persisted(ready_number);
            }
            _ => {}
        }
        turn
    }
}

impl<R> std::fmt::Debug for RaftNodeCore<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNodeCore")
            .field("node_id", &self.node.id())
            .field("term", &self.consensus.term())
            .field("role", &self.consensus.role())
            .finish_non_exhaustive()
    }
}
