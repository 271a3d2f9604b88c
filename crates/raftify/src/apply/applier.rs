//! Owns the state machine: applies committed entries, replies to their proposers, captures and restores the
//! state.
//!
//! Never skips an entry: an entry that cannot be decoded or applied stops the node. `applier_thread.rs` calls
//! it.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use raftify_core::error::{ProposeError, ReadError, StopReason, UnknownOutcome};
use raftify_core::{
    ClusterId, Committed, LogIndex, LogPosition, Members, NodeId, ProposalReply, SnapshotMeta,
    SnapshotReason, SnapshotStore,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, trace};

use crate::application::formatter::CustomFormatter;
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::StateMachine;
use crate::apply::snapshot_taker::SnapshotTaker;
use crate::channels::events::Event;
use crate::channels::metrics::{NodeMetrics, SnapshotOperation};
use crate::channels::reply::Reply;
use crate::error::BoxError;
use crate::runtime::timing::{Step, mark};
use crate::runtime::worker::caught;

/// A user's query of the state machine. Called with an error, it answers its caller with that.
pub(crate) type Query<FSM> = Box<dyn FnOnce(Result<&FSM, ReadError>) + Send>;

/// The requests of the raft loop, in log order.
pub(crate) enum ToApply<R> {
    Committed(Vec<Committed<R>>),
    /// Take a snapshot of the state at this point of the queue.
    TakeSnapshot(ClusterId, SnapshotReason),
    /// A caller waits for the snapshot that is being written.
    HurrySnapshot,
}

pub(super) struct Applier<FSM: StateMachine, S> {
    pub(super) node_id: NodeId,
    pub(super) state_machine: FSM,
    pub(super) snapshots: S,
    /// As of `applied`.
    pub(super) members: Members,
    /// The last position that was accepted.
    pub(super) applied: LogPosition,
    /// The position that the state machine had by itself when the node started. Entries up to this position
    /// come from the log again, and are not passed to it.
    pub(super) recovered: LogPosition,
    /// Why the state machine is no longer used. The loop and the thread both use this, and either may arrive
    /// before it has learned of the failure of the other.
    pub(super) failure: Option<StopReason>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) formatter: Arc<dyn CustomFormatter<FSM::LogEntry, FSM>>,
    pub(super) snapshot_taker: SnapshotTaker<S>,
    pub(super) metrics: Arc<NodeMetrics>,
}

/// Entries are decoded and passed to the state machine in batches of about this size, so that a queue of
/// large ones is not in memory a second time.
const BATCH_BYTES: usize = 1024 * 1024;

type UserEntry<T> = (LogPosition, Bytes, Option<Reply<T>>);

impl<FSM: StateMachine, S: SnapshotStore> Applier<FSM, S> {
    /// Does `work`, unless there was a failure before: a partial result must not become visible, and no work
    /// may follow it. This also catches panics of user code outside the state machine: replies that are
    /// dropped, errors that are displayed.
    fn unless_failed<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StopReason>,
    ) -> Result<T, StopReason> {
        if let Some(reason) = &self.failure {
            let reason = reason.clone();
            forget(work);
            return Err(reason);
        }
        let outcome = caught(|| work(self)).unwrap_or_else(|panic| {
            Err(StopReason::StateMachine(format!("what it returned, or an entry, {panic}")))
        });
        outcome.inspect_err(|reason| self.failure = Some(reason.clone()))
    }

    pub(super) fn is_quick(&mut self) -> Result<bool, StopReason> {
        self.unless_failed(|this| {
            caught(|| this.state_machine.is_quick_to_apply())
                .map_err(|panic| StopReason::StateMachine(format!("is_quick_to_apply {panic}")))
        })
    }

    /// Collects `work`, so that many small turns become one batch. Returns the applied index.
    pub(super) fn take_in(
        &mut self,
        work: impl IntoIterator<Item = ToApply<Reply<FSM::Reply>>>,
    ) -> Result<LogIndex, StopReason> {
        self.unless_failed(|this| this.try_take_in(work))
    }

    fn try_take_in(
        &mut self,
        work: impl IntoIterator<Item = ToApply<Reply<FSM::Reply>>>,
    ) -> Result<LogIndex, StopReason> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for work in work {
            match work {
                ToApply::Committed(items) => {
                    for item in items {
                        match item {
                            Committed::User { position, payload, reply }
                                if position.index > self.recovered.index =>
                            {
                                bytes += payload.len();
                                batch.push((position, payload, reply));
                                if bytes >= BATCH_BYTES {
                                    self.apply(std::mem::take(&mut batch))?;
                                    bytes = 0;
                                }
                            }
                            other => {
                                self.apply(std::mem::take(&mut batch))?;
                                self.take_note(other)?;
                            }
                        }
                    }
                }
                ToApply::TakeSnapshot(cluster_id, reason) => {
                    self.apply(std::mem::take(&mut batch))?;
                    self.take_snapshot(cluster_id, reason)?;
                }
                ToApply::HurrySnapshot => self.snapshot_taker.hurry(),
            }
        }
        self.apply(batch)?;
        Ok(self.applied.index)
    }

    fn apply(&mut self, batch: Vec<UserEntry<FSM::Reply>>) -> Result<(), StopReason> {
        let Some((last, ..)) = batch.last() else {
            return Ok(());
        };
        let (first, last) = (batch[0].0, *last);
        let mut waiting = Vec::with_capacity(batch.len());
        let mut payloads = Vec::with_capacity(batch.len());
        for (position, payload, reply) in batch {
            waiting.push(reply);
            payloads.push((position, payload));
        }
        mark(self.node_id, Step::Apply, last.index);
        let (begin, count) = (Instant::now(), payloads.len());
        let replies = caught(|| self.decode_and_apply(payloads)).unwrap_or_else(|panic| Err(panic.into()));
        match replies {
            Ok(replies) => {
                self.applied = last;
                mark(self.node_id, Step::Applied, last.index);
                self.metrics.applied(count, begin.elapsed());
                for (waiting, reply) in waiting.into_iter().zip(replies) {
                    if let Some(waiting) = waiting {
                        waiting.applied(reply);
                    }
                }
                Ok(())
            }
            Err(_) if raftify_core::mutated!(FailedApplyIsSkipped) => {
                self.applied = last;
                Ok(())
            }
            Err(error) => {
                let reason =
                    StopReason::StateMachine(format!("applying the entries {first} to {last}: {error}"));
                // The loop gets the event first: a caller that quits because of the answer must not hide the
                // reason.
                let _ = self.events.send(Event::Failed(reason.clone()));
                for waiting in waiting.into_iter().flatten() {
                    waiting.refuse(ProposeError::Unknown(UnknownOutcome::NodeStopped(reason.clone())));
                }
                Err(reason)
            }
        }
    }

    fn decode_and_apply(&mut self, payloads: Vec<(LogPosition, Bytes)>) -> Result<Vec<FSM::Reply>, BoxError> {
        let count = payloads.len();
        let mut entries = Vec::with_capacity(count);
        for (position, payload) in payloads {
            let entry = FSM::LogEntry::decode(&payload).map_err(|error| {
                format!("the entry at {position} ({} bytes) cannot be decoded: {error}", payload.len())
            })?;
            trace!(node = %self.node_id, %position, "apply {}", self.in_words(&entry, &payload));
            entries.push((position, entry));
        }
        let replies = self.state_machine.apply_batch(entries)?;
        if replies.len() != count {
            return Err(format!("apply_batch returned {} replies to {count} entries", replies.len()).into());
        }
        Ok(replies)
    }

    /// For the log. An entry that cannot be displayed can still be applied.
    fn in_words(&self, entry: &FSM::LogEntry, payload: &[u8]) -> String {
        caught(|| self.formatter.format_entry(entry, payload))
            .unwrap_or_else(|panic| format!("what its formatter cannot show, which {panic}"))
    }

    /// Handles the entries that are not for the state machine.
    fn take_note(&mut self, committed: Committed<Reply<FSM::Reply>>) -> Result<(), StopReason> {
        let position = committed.position();
        match committed {
            Committed::Members { members, .. } => self.members = Members::clone(&members),
            Committed::Install { snapshot } => self.restore(*snapshot)?,
            Committed::User { .. } | Committed::Nothing { .. } => {}
        }
        self.applied = position;
        Ok(())
    }

    /// The newest snapshot, when the node starts.
    pub(super) fn begin_at(&mut self, snapshot: SnapshotMeta) -> Result<(), StopReason> {
        if self.recovered.index < snapshot.position.index {
            return self.unless_failed(|this| this.restore(snapshot));
        }
        info!(node = %self.node_id, at = %self.recovered, "the state machine has kept its state");
        self.members = snapshot.members;
        self.applied = snapshot.position;
        Ok(())
    }

    fn restore(&mut self, snapshot: SnapshotMeta) -> Result<(), StopReason> {
        let begin = Instant::now();
        let outcome = self.try_restore(snapshot);
        self.metrics.snapshot_ended(SnapshotOperation::Restored, outcome.is_ok(), begin.elapsed());
        outcome
    }

    fn try_restore(&mut self, snapshot: SnapshotMeta) -> Result<(), StopReason> {
        let position = snapshot.position;
        let (_, digest, data) = self.snapshots.open(position).map_err(|error| {
            StopReason::Storage(format!("the snapshot at {position} cannot be opened: {error}"))
        })?;
        let mut data = Watched { reader: data, failure: None };
        let restored =
            caught(|| self.state_machine.restore(&mut data)).unwrap_or_else(|panic| Err(panic.into()));
        let restored = match data.failure {
            // Also if the state machine ignored the error, and has a part of the state.
            Some(failure) => Err(StopReason::Storage(failure)),
            None => restored.map_err(|error| {
                StopReason::StateMachine(format!("restoring the snapshot at {position}: {error}"))
            }),
        };
        if !raftify_core::mutated!(FailedRestoreIsIgnored) {
            restored?;
        }
        info!(node = %self.node_id, %position, bytes = digest.data_bytes, "restored a snapshot");
        self.metrics.snapshot_bytes(SnapshotOperation::Restored, digest.data_bytes);
        self.members = snapshot.members;
        self.applied = position;
        self.recovered = LogPosition::ZERO;
        Ok(())
    }

    /// Runs the queries, up to the first that panics. The others are dropped, which answers them.
    pub(super) fn answer(&mut self, queries: impl IntoIterator<Item = Query<FSM>>) -> Result<(), StopReason> {
        let mut outcome = Ok(());
        for query in queries {
            match outcome {
                Ok(()) => outcome = self.answer_one(query),
                // One by one: each may panic when it is dropped.
                Err(_) => forget(query),
            }
        }
        outcome
    }

    fn answer_one(&mut self, query: Query<FSM>) -> Result<(), StopReason> {
        self.unless_failed(|this| {
            caught(|| query(Ok(&this.state_machine)))
                .map_err(|panic| StopReason::StateMachine(format!("a query {panic}")))
        })
    }

    /// Captures the state here and has it written on another thread. A failure is reported, and the node
    /// continues; only a panic in the state machine is fatal.
    fn take_snapshot(&mut self, cluster_id: ClusterId, reason: SnapshotReason) -> Result<(), StopReason> {
        if self.snapshot_taker.is_busy() {
            self.snapshot_taker.refuse("another one is still being written".to_owned());
            return Ok(());
        }
        if self.applied.index < self.recovered.index {
            // A snapshot of the state machine's state would have a later position than this.
            let refusal =
                format!("the state machine has kept {}, which is not known to be committed", self.recovered);
            self.snapshot_taker.refuse(refusal);
            return Ok(());
        }
        let capture = caught(|| self.state_machine.snapshot())
            .map_err(|panic| StopReason::StateMachine(format!("taking a snapshot {panic}")))?;
        let mut meta = SnapshotMeta { cluster_id, position: self.applied, members: self.members.clone() };
        if raftify_core::mutated!(SnapshotWithoutMembers) {
            meta.members = Members::none();
        }
        match capture {
            Ok(capture) => self.snapshot_taker.start(capture, meta, reason),
            Err(error) => self.snapshot_taker.refuse(error.to_string()),
        }
        Ok(())
    }
}

/// Drops work that will not be done. It is user code, and may panic: a panic no longer matters here.
pub(super) fn forget(work: impl Sized) {
    let _ = caught(|| drop(work));
}

/// Remembers why reading failed, so that a damaged file is not blamed on the state machine that reads it, nor
/// ignored by it.
struct Watched<R> {
    reader: R,
    failure: Option<String>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failure = Some(error.to_string());
        }
        read
    }
}
