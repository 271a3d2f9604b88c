//! The handle of a node: one method per verb, without decisions.
//!
//! Every method sends one request with its own reply channel into the raft loop's bounded queue and waits for
//! the answer, or reads the status that the loop publishes. No method hangs: the core answers every pending
//! request by its deadlines, and this module bounds each call once more, before the node runs, while it runs
//! and after it has ended.

mod backup;
mod observe;
mod reading;
mod shared;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use raftify_core::error::{
    CampaignError, DemoteError, MembershipError, ProposeError, SnapshotError, StopReason, TransferError,
};
use raftify_core::{
    CheckedConfig, LocalRequestMsg, LogPosition, Members, MembershipChange, MembershipRequest, NodeId,
    Responder, Status, Term, VerbError,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::application::log_entry::{LogEntry, check_entry};
use crate::application::state_machine::StateMachine;
use crate::apply::applier::Query;
use crate::channels::backups::BackupCall;
use crate::channels::in_flight::{InFlight, Permit};
use crate::channels::lifecycle::{Lifecycle, RunTask};
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::NodeEvents;
use crate::channels::reply::{Reply, channel, local_reply};
use crate::channels::request_queue::RequestSender;
use crate::error::WaitError;
use crate::security::dialer::Dialer;
use crate::verbs::change_membership::{
    ChangeMembership, demotion, is_voter_already, promotion, removal, replacement, while_catching_up,
};
use crate::verbs::propose::Propose;
use crate::verbs::transfer_leader::TransferLeader;
use shared::Shared;

/// One node of a cluster, for its user. Cheap to clone; all clones are the same node.
///
/// The verbs that only the leader can serve (`propose`, `change_config`, `transfer_leader`) may be called on
/// any node: they are forwarded.
///
/// # Before `run` and after the end
/// Before the node runs, each call waits for [`Raft::run`](crate::Raft::run) up to its deadline and then
/// fails with [`StopReason::NotRunning`]; nothing has happened then. Once the node has stopped, each call
/// fails with the reason. The getters always return the last known status.
pub struct RaftNode<Entry, FSM: StateMachine<LogEntry = Entry>> {
    shared: Arc<Shared<FSM>>,
    waits_for_leader: bool,
    log_entry: PhantomData<fn(Entry)>,
}

impl<Entry, FSM: StateMachine<LogEntry = Entry>> Clone for RaftNode<Entry, FSM> {
    fn clone(&self) -> Self {
        RaftNode {
            shared: Arc::clone(&self.shared),
            waits_for_leader: self.waits_for_leader,
            log_entry: PhantomData,
        }
    }
}

impl<Entry, FSM: StateMachine<LogEntry = Entry>> std::fmt::Debug for RaftNode<Entry, FSM> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("status", &*self.shared.status.borrow()).finish_non_exhaustive()
    }
}

impl<Entry, FSM> RaftNode<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    pub(crate) fn new(
        config: CheckedConfig,
        dialer: Dialer,
        requests: RequestSender<LocalRequestMsg<Reply<FSM::Reply>>>,
        (queries, backups): (mpsc::Sender<Query<FSM>>, mpsc::Sender<BackupCall>),
        status: watch::Receiver<Status>,
        lifecycle: Lifecycle,
        (metrics, events): (Arc<NodeMetrics>, Arc<NodeEvents>),
    ) -> Self {
        let node_id = status.borrow().node_id;
        let (proposals, task) = (InFlight::new(&config), Mutex::new(None));
        let shared = Shared {
            node_id,
            config,
            dialer,
            requests,
            queries,
            backups,
            status,
            lifecycle,
            proposals,
            task,
            metrics,
            events,
        };
        RaftNode { shared: Arc::new(shared), waits_for_leader: true, log_entry: PhantomData }
    }

    /// A handle of the same node whose requests do not wait for a leader: while no leader is known, they fail
    /// at once with `NoLeader`, and nothing happened. Requests of other handles wait for the next leader
    /// until their deadline.
    #[must_use]
    pub fn without_waiting(&self) -> Self {
        RaftNode { waits_for_leader: false, ..self.clone() }
    }

    /// Replicates `entry` and returns the state machine's reply.
    ///
    /// Resolves once the entry is committed by a majority *and* applied on the leader, or on this node if it
    /// leads. A reply therefore means that the entry survives the loss of any minority; it does not mean
    /// that other nodes have applied it yet.
    ///
    /// The encoded entry may be at most [`entry_bytes_max`](crate::Config::entry_bytes_max) long; up to
    /// [`proposals_in_flight_max`](crate::Config::proposals_in_flight_max) proposals may wait at once. Waits
    /// at most [`propose_timeout`](crate::Config::propose_timeout).
    ///
    /// # Errors
    /// - [`NoLeader`](ProposeError::NoLeader): nothing was written; no leader was known until the deadline,
    ///   or, with [`without_waiting`](Self::without_waiting), when the call was made.
    /// - [`Busy`](ProposeError::Busy), [`TooLarge`](ProposeError::TooLarge),
    ///   [`Encode`](ProposeError::Encode): nothing was written. Send it again later, or smaller.
    /// - [`StorageFull`](ProposeError::StorageFull): nothing was written; the disks have no room.
    /// - [`Undecodable`](ProposeError::Undecodable): nothing was written. The entry's own type cannot decode
    ///   its encoding, or decodes it to another entry (see [`LogEntry`]), or the leader's program has another
    ///   version.
    /// - [`NotLeader`](ProposeError::NotLeader): nothing was written; leadership kept moving until the
    ///   deadline.
    /// - [`NotApplied`](ProposeError::NotApplied): another leader's entry took this log position. Safe to
    ///   send again.
    /// - [`Unknown`](ProposeError::Unknown): the deadline passed, this node stopped, or a snapshot covered
    ///   the entry, before the outcome was seen. It may have been applied.
    /// - [`Stopped`](ProposeError::Stopped): nothing was written; this node has stopped, or is stopping, and
    ///   did not take the entry. Send it to another node.
    ///
    /// [`nothing_happened`](ProposeError::nothing_happened) tells which of them are safe to repeat.
    ///
    /// # Cancel safety
    /// Dropping the future does not withdraw the proposal; treat the outcome as unknown.
    ///
    /// # Examples
    /// See the [quick start](crate#quick-start).
    pub async fn propose(&self, entry: Entry) -> Result<FSM::Reply, ProposeError> {
        let begin = Instant::now();
        let outcome = match self.admit(entry) {
            Ok((_place, verb)) => self.shared.ask_leader(self.waits_for_leader, verb, local_reply).await,
            Err(refusal) => Err(refusal),
        };
        self.shared.metrics.proposed(&outcome, begin.elapsed());
        outcome
    }

    /// The first part of [`propose`](Self::propose), which waits for nothing. The future of a caller that
    /// waits holds only the encoded entry.
    fn admit(&self, entry: Entry) -> Result<(Permit, Propose), ProposeError> {
        let busy = |waiting| ProposeError::Busy { waiting };
        let mut place = self.shared.proposals.enter().map_err(busy)?;
        let payload = entry.encode().map_err(|error| ProposeError::Encode(error.to_string()))?;
        let (bytes, limit) = (payload.len() as u64, self.shared.config.entry_bytes_max);
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        place.holds(bytes).map_err(busy)?;
        check_entry(&entry, &payload).map_err(ProposeError::Undecodable)?;
        Ok((place, Propose { payload }))
    }

    /// Whether this node leads, as far as it knows: a newer leader, still unknown here, may exist. For reads
    /// that must not be stale, use [`query`](Self::query).
    pub fn is_leader(&self) -> bool {
        self.shared.status.borrow().is_leader()
    }

    /// The id of this node.
    pub fn id(&self) -> NodeId {
        self.shared.node_id
    }

    /// The id of the leader, as far as this node knows.
    pub fn leader_id(&self) -> Option<NodeId> {
        self.shared.status.borrow().leader_id
    }

    /// The members of the cluster, this node included, as far as applied here.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.shared.status.borrow().members)
    }

    /// How many nodes belong to the cluster, learners included, as far as applied here.
    pub fn cluster_size(&self) -> usize {
        self.shared.status.borrow().members.len()
    }

    /// The same as [`id`](Self::id).
    pub fn get_id(&self) -> NodeId {
        self.id()
    }

    /// The same as [`leader_id`](Self::leader_id).
    pub fn get_leader_id(&self) -> Option<NodeId> {
        self.leader_id()
    }

    /// The same as [`members`](Self::members).
    pub fn get_peers(&self) -> Arc<Members> {
        self.members()
    }

    /// The same as [`cluster_size`](Self::cluster_size).
    pub fn get_cluster_size(&self) -> usize {
        self.cluster_size()
    }

    /// Waits until a leader is known, and returns its id. Waits at most
    /// [`propose_timeout`](crate::Config::propose_timeout).
    ///
    /// # Errors
    /// - [`NoLeader`](WaitError::NoLeader): no leader was known in time.
    /// - [`Stopped`](WaitError::Stopped): this node has stopped, or was not run in time.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn wait_for_leader(&self) -> Result<NodeId, WaitError> {
        let deadline = self.shared.config.propose_timeout;
        let mut status = self.shared.status.clone();
        let known = async {
            self.shared.lifecycle.running().await?;
            tokio::select! {
                biased;
                status = status.wait_for(|status| status.leader_id.is_some()) => {
                    // The sender is gone only when the node has stopped.
                    let leader = status.ok().and_then(|status| status.leader_id);
                    leader.ok_or_else(|| self.shared.lifecycle.stop_reason())
                }
                reason = self.shared.lifecycle.stopping() => Err(reason),
            }
        };
        match timeout(deadline, known).await {
            Ok(leader) => Ok(leader?),
            Err(_) if self.shared.lifecycle.is_waiting() => Err(StopReason::NotRunning.into()),
            Err(_) => Err(WaitError::NoLeader(deadline)),
        }
    }

    /// Transfers leadership to another voter, and returns the new leader once one is known. May be called on
    /// any node. Proposals during the transfer are delayed and then served by the new leader. Waits at
    /// most [`membership_timeout`](crate::Config::membership_timeout).
    ///
    /// # Errors
    /// See [`TransferError`]. The cluster is unharmed in every case.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the transfer.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<NodeId, TransferError> {
        let verb = TransferLeader { to: Some(to) };
        self.shared.ask_leader(self.waits_for_leader, verb, channel).await
    }

    /// Starts an election with this node as candidate. Returns at once; watch the [`status`](Self::status)
    /// for the outcome. If the node is blocked, the call waits at most
    /// [`propose_timeout`](crate::Config::propose_timeout).
    ///
    /// # Errors
    /// See [`CampaignError`]. Nothing happened, except for [`StopReason::NoAnswer`]: then an election may
    /// still begin.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the election.
    pub async fn campaign(&self) -> Result<(), CampaignError> {
        self.shared
            .request(self.shared.config.propose_timeout, |reply| LocalRequestMsg::Campaign { reply })
            .await
    }

    /// Steps down as leader of `term`, in favour of `successor`, or of the winner of the next election.
    /// Resolves when this node no longer leads. The term guards against a command that arrives too late.
    /// Waits at most [`membership_timeout`](crate::Config::membership_timeout).
    ///
    /// # Errors
    /// See [`DemoteError`]. The cluster is unharmed in every case.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the demotion.
    pub async fn demote(&self, term: Term, successor: Option<NodeId>) -> Result<(), DemoteError> {
        let request = |reply| LocalRequestMsg::Demote { term, successor, reply };
        self.shared.request(self.shared.config.membership_timeout, request).await
    }

    /// Changes the members of the cluster, and returns them once the change is in force. May be called on any
    /// node.
    ///
    /// A new voter is first added as a [joining](raftify_core::MemberRole::Joining) node, and still has this
    /// role when the call returns: the leader promotes it when it is caught up and reachable. A change of
    /// one step takes effect at once; a change of several steps goes through a joint configuration, in
    /// which both the old and the new majority must agree. To remove the leader, leadership is
    /// transferred first. A change waits while another one is under way. Waits at most
    /// [`membership_timeout`](crate::Config::membership_timeout).
    ///
    /// Before a node is added, its address is probed once, for at most a second: if another member answers
    /// there, the change is rejected with
    /// [`AnsweredByOther`](raftify_core::members::MembershipRefusal::AnsweredByOther).
    ///
    /// A [`MembershipRequest`] may be given in place of the change: it can require that the current
    /// membership is still the one from which the change was made, or force a change that would be
    /// rejected to protect the cluster.
    ///
    /// # Errors
    /// - [`WouldLoseMajority`](MembershipError::WouldLoseMajority): too few of the voters are alive for this
    ///   change.
    /// - [`Unknown`](MembershipError::Unknown), [`Stopped`](MembershipError::Stopped): look at the members
    ///   before trying again.
    /// - All others: nothing was changed; see [`MembershipError`].
    ///
    /// # Cancel safety
    /// Dropping the future does not withdraw the change; treat the outcome as unknown.
    pub async fn change_config(
        &self,
        change: impl Into<MembershipRequest>,
    ) -> Result<Members, MembershipError> {
        let verb = ChangeMembership { request: change.into() };
        let status = self.shared.status.borrow().clone();
        if !self.shared.lifecycle.is_stopping() {
            verb.check_added_addresses(&self.shared.dialer, &status).await?;
        }
        self.shared.ask_leader(self.waits_for_leader, verb, channel).await
    }

    /// Makes a learner or a joining node a voter, at once. May be called on any node. A joining node needs no
    /// call: the leader promotes it when it is ready.
    ///
    /// # Errors
    /// The errors of [`change_config`](Self::change_config); among them
    /// [`NotCaughtUp`](MembershipError::NotCaughtUp) and [`NotReached`](MembershipError::NotReached),
    /// which are temporary, and [`HasRole`](raftify_core::members::MembershipRefusal::HasRole) for a
    /// voter.
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn promote(&self, id: NodeId) -> Result<Members, MembershipError> {
        self.change_config(promotion(id)).await
    }

    /// Turns a voter into a learner: it stays a member without a vote until it is promoted again. A leader
    /// transfers leadership first. May be called on any node.
    ///
    /// # Errors
    /// The errors of [`change_config`](Self::change_config): nothing was changed if the remaining voters
    /// would not be a live majority.
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn demote_to_learner(&self, id: NodeId) -> Result<Members, MembershipError> {
        self.change_config(demotion(id)).await
    }

    /// Replaces the voter `old` by the member `new`, a learner or a joining node: in one step, `new` becomes
    /// a voter and `old` is permanently removed, so that the number of votes never changes. Before that,
    /// the call waits until `new` is caught up and reachable: as long as it makes progress, and for
    /// [`joiner_timeout`](crate::Config::joiner_timeout) without any. If `new` is already a voter, `old` is
    /// removed.
    ///
    /// # Errors
    /// The errors of [`change_config`](Self::change_config). With
    /// [`NotCaughtUp`](MembershipError::NotCaughtUp) or [`NotReached`](MembershipError::NotReached),
    /// `new` was not ready in time; nothing was changed.
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn replace(&self, old: NodeId, new: NodeId) -> Result<Members, MembershipError> {
        let attempt = || self.change_config(replacement(old, new));
        let patience = self.shared.config.joiner_timeout;
        match while_catching_up(patience, attempt, |error| Some(error.clone())).await {
            Err(error) if is_voter_already(&error, new) => self.change_config(removal(old)).await,
            answer => answer,
        }
    }

    /// Leaves the joint configuration that a change with
    /// [`LeaveJoint::OnRequest`](raftify_core::members::LeaveJoint::OnRequest) has entered, and returns the
    /// members.
    ///
    /// # Errors
    /// The errors of [`change_config`](Self::change_config).
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn leave_joint(&self) -> Result<Members, MembershipError> {
        self.change_config(MembershipChange::LeaveJoint).await
    }

    /// Permanently removes this node from the cluster and stops it; [`Raft::run`](crate::Raft::run) returns
    /// `Ok`. Its id is never used again, its data directory is no longer usable. A leader transfers
    /// leadership first.
    ///
    /// After its removal, the node continues until a majority of the others knows of it, because they may
    /// need its vote until then; at most another
    /// [`membership_timeout`](crate::Config::membership_timeout).
    ///
    /// # Errors
    /// The errors of [`change_config`](Self::change_config); the node continues to run. The last voter cannot
    /// leave: stop it with [`quit`](Self::quit).
    ///
    /// # Cancel safety
    /// As for `change_config`; a removed node stops by itself as soon as it learns of its removal. If the
    /// removal was not known when the future was dropped, [`Raft::run`](crate::Raft::run) then returns
    /// [`StopReason::Removed`], as after a removal by another node.
    pub async fn leave(&self) -> Result<(), MembershipError> {
        self.leave_by(removal(self.id()).into()).await
    }

    /// As [`leave`](Self::leave), also if the remaining live voters would not be a majority: the cluster then
    /// stops permanently, unless enough voters return.
    ///
    /// # Errors
    /// As for `leave`, except for [`WouldLoseMajority`](MembershipError::WouldLoseMajority).
    ///
    /// # Cancel safety
    /// As for `leave`.
    pub async fn leave_forced(&self) -> Result<(), MembershipError> {
        self.leave_by(MembershipRequest::from(removal(self.id())).forced()).await
    }

    async fn leave_by(&self, request: MembershipRequest) -> Result<(), MembershipError> {
        let leaving = self.shared.lifecycle.begin_to_leave();
        match self.change_config(request).await {
            // This node may learn of its removal before it gets the answer.
            Ok(_) | Err(MembershipError::Stopped(StopReason::Removed { .. })) => {
                leaving.succeeded();
                // It stops by itself. If too few of the others can be reached, the wait is bounded.
                let _ =
                    timeout(self.shared.config.membership_timeout, self.shared.lifecycle.stopping()).await;
                self.quit().await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a snapshot of the state machine now, and returns its position once it is durable. If a snapshot
    /// is already being written, the call waits for it and then takes another one. The log before the
    /// snapshot (except for [`log_entries_kept`](crate::Config::log_entries_kept) of at most
    /// [`log_bytes_kept`](crate::Config::log_bytes_kept), and the entries that followers still need, see
    /// [`log_bytes_kept_for_followers`](crate::Config::log_bytes_kept_for_followers)) is then deleted.
    /// Snapshots are also taken automatically: see [`snapshot_entries`](crate::Config::snapshot_entries).
    /// Waits at most [`snapshot_timeout`](crate::Config::snapshot_timeout).
    ///
    /// # Errors
    /// See [`SnapshotError`]; the old snapshot stays in use. After a timeout, the snapshot may still be
    /// written.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the snapshot.
    pub async fn make_snapshot(&self) -> Result<LogPosition, SnapshotError> {
        let timeout = self.shared.config.snapshot_timeout;
        self.shared.request(timeout, |reply| LocalRequestMsg::MakeSnapshot { reply }).await
    }

    /// Stops this node; the cluster continues without it, and the node returns when it is bootstrapped again.
    /// Resolves when [`Raft::run`](crate::Raft::run) has ended: everything is flushed and closed, and
    /// every request has an answer. A node that never ran is closed at once. May be called from anywhere,
    /// any number of times.
    ///
    /// From the call on, the node accepts no new requests: they fail with [`StopReason::Stopping`], and
    /// nothing happened. A leader transfers leadership to the most caught-up voter that is alive;
    /// requests that were accepted before are answered. That takes at most
    /// [`stop_timeout`](crate::Config::stop_timeout); the outcome of the remaining requests is unknown.
    ///
    /// The node waits for a disk operation, or a call of the state machine, that has begun, however long it
    /// takes: nothing uses the data directory afterwards. After 5 s, the node logs a warning that names
    /// the operation, and again after twice as long each time.
    ///
    /// If the future of `run` is dropped, this resolves as well; the storage is then closed a little later.
    ///
    /// # Cancel safety
    /// Dropping the future does not prevent the node from stopping.
    pub async fn quit(&self) {
        self.shared.lifecycle.quit().await;
    }

    /// A request that the crate itself makes.
    pub(crate) async fn request<T: Send + 'static, E: VerbError>(
        &self,
        within: Duration,
        request: impl FnOnce(Responder<T, E>) -> LocalRequestMsg<Reply<FSM::Reply>>,
    ) -> Result<T, E> {
        self.shared.request(within, request).await
    }

    pub(crate) fn config(&self) -> &CheckedConfig {
        &self.shared.config
    }

    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.shared.lifecycle
    }

    /// Runs the node in a task of the current runtime, until the last handle is dropped.
    pub(crate) fn spawn(&self) {
        *self.task() = Some(RunTask::spawn(&self.shared.lifecycle));
    }

    /// The task in which the node runs, for the first caller.
    pub(crate) fn take_task(&self) -> Option<RunTask> {
        self.task().take()
    }

    fn task(&self) -> MutexGuard<'_, Option<RunTask>> {
        self.shared.task.lock()
    }
}
