//! The one task that owns the core: it waits, steps the core, and dispatches the results.
//!
//! [`select`](Inputs::select) only waits; [`apply`](RaftLoop::apply) passes the input to the core,
//! synchronously; [`run_turn`](RaftLoop::run_turn) passes the core's decisions to the components that carry
//! them out. This module makes no decisions.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use raftify_core::error::StopReason;
use raftify_core::{
    CheckedConfig, Committed, Identity, LocalRequestMsg, LogFetch, LogIndex, LogPosition, LogReader, Members,
    NodeId, RaftNodeCore, Remembered, ServerRequestMsg, StableStorage, Status, StorageError, Turn,
    TurnNumber,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep, sleep_until};
use tracing::{info, warn};

use crate::application::state_machine::StateMachine;
use crate::apply::applier_thread::ApplierHandle;
use crate::apply::snapshots::TrackedSnapshots;
use crate::channels::events::{Event, PeerEvent};
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::Queue;
use crate::channels::reply::Reply;
use crate::channels::request_queue::{RequestReceiver, Weight};
use crate::network::outbox::Outbox;
use crate::node::log_writer::{LogWriter, ToWrite};
use crate::node::loop_events::LoopEvents;
use crate::node::loop_metrics::LoopMetrics;
use crate::node::storage_gauge::StorageGauge;
use crate::runtime::timing::{Step, mark};
use crate::runtime::worker::{Blocking, caught};

/// The inputs of the loop.
pub(crate) struct Inputs<R> {
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) peers: mpsc::UnboundedReceiver<PeerEvent>,
    pub(crate) server: RequestReceiver<ServerRequestMsg<R>>,
    pub(crate) local: RequestReceiver<LocalRequestMsg<R>>,
    pub(crate) quit: watch::Receiver<bool>,
    pub(crate) quit_at_once: watch::Receiver<bool>,
}

impl<R: Send> Inputs<R> {
    /// The priority of ready inputs: a stop request; the clock, which must advance even under a constant
    /// load; then results of work that the core requested; then the rest. `None`: the stopping node no
    /// longer waits.
    async fn select(
        &mut self,
        ticks: &mut Interval,
        commit_timer: &mut CommitTimer,
        stops_by: Option<Instant>,
    ) -> Option<Input<R>> {
        let quit_at_once = &mut self.quit_at_once;
        let waited = async {
            match stops_by {
                Some(stops_by) => tokio::select! {
                    _ = quit_at_once.wait_for(|at_once| *at_once) => {}
                    () = sleep_until(stops_by) => {}
                },
                None => pending().await,
            }
        };
        Some(tokio::select! {
            biased;
            () = waited => return None,
            _ = self.quit.wait_for(|quit| *quit), if stops_by.is_none() => Input::Quit,
            _ = ticks.tick() => Input::Tick,
            () = commit_timer.elapsed(), if commit_timer.is_running => Input::AnnounceCommit,
            Some(event) = self.events.recv() => Input::Event(event),
            Some(event) = self.peers.recv() => Input::Peer(event),
            Some(request) = self.server.recv() => Input::Server(request),
            Some(request) = self.local.recv() => Input::Local(request),
        })
    }

    fn are_empty(&self) -> bool {
        self.events.is_empty() && self.peers.is_empty() && self.server.is_empty() && self.local.is_empty()
    }
}

/// Followers learn the commit index with the next entries, or after this time.
const COMMIT_UNANNOUNCED_MAX: Duration = Duration::from_millis(2);

/// Runs from the first commit that no message to the followers contains yet. It is not stopped when the next
/// entries carry the commit index: then there is nothing to announce when it elapses.
struct CommitTimer {
    sleep: Pin<Box<Sleep>>,
    is_running: bool,
}

impl CommitTimer {
    fn new() -> CommitTimer {
        CommitTimer { sleep: Box::pin(sleep(Duration::ZERO)), is_running: false }
    }

    fn start(&mut self) {
        if !self.is_running {
            self.sleep.as_mut().reset(Instant::now() + COMMIT_UNANNOUNCED_MAX);
            self.is_running = true;
        }
    }

    /// # Cancel safety
    /// If the future is dropped, the timer runs on.
    async fn elapsed(&mut self) {
        self.sleep.as_mut().await;
        self.is_running = false;
    }
}

/// When the proposals exceed this many bytes, the turn is carried out before more are taken.
const TAKEN_BYTES_MAX: u64 = 4 * 1024 * 1024;

type Snapshots<S> = TrackedSnapshots<<S as StableStorage>::Snapshots>;

/// The components that carry turns out.
pub(crate) struct Outputs<FSM: StateMachine, S: StableStorage> {
    pub(crate) log_writer: LogWriter<S>,
    pub(crate) applier: ApplierHandle<FSM, Snapshots<S>>,
    pub(crate) outbox: Outbox,
    pub(crate) log_reader: S::LogReader,
    pub(crate) snapshots: Snapshots<S>,
    /// For log reads and deletions of snapshots.
    pub(crate) blocking: Blocking,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) remembered: watch::Sender<Arc<Remembered>>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metrics: LoopMetrics,
    pub(crate) storage_gauge: StorageGauge,
    pub(crate) node_events: LoopEvents,
}

/// See the module.
pub(crate) struct RaftLoop<FSM: StateMachine, S: StableStorage> {
    node_id: NodeId,
    core: RaftNodeCore<Reply<FSM::Reply>>,
    inputs: Inputs<Reply<FSM::Reply>>,
    outputs: Outputs<FSM, S>,
    ticks: Interval,
    commit_timer: CommitTimer,
    failure: Option<StopReason>,
    stop_timeout: Duration,
    /// Set by a stop request: until then the node may answer accepted requests.
    stops_by: Option<Instant>,
    /// The values that the outbox got last.
    introduced: Option<(Identity, Arc<Members>)>,
    /// The newest snapshot when snapshots were last deleted.
    retained_for: Option<LogPosition>,
    /// Whether the work done inline since the loop last yielded has answered a caller or sent a message. The
    /// woken tasks may run next on this very thread, and on no other.
    has_woken: bool,
}

enum Input<R> {
    Quit,
    Tick,
    AnnounceCommit,
    Event(Event),
    Peer(PeerEvent),
    Server(ServerRequestMsg<R>),
    Local(LocalRequestMsg<R>),
}

impl<FSM: StateMachine, S: StableStorage> RaftLoop<FSM, S> {
    pub(crate) fn new(
        core: RaftNodeCore<Reply<FSM::Reply>>,
        inputs: Inputs<Reply<FSM::Reply>>,
        outputs: Outputs<FSM, S>,
        config: &CheckedConfig,
    ) -> RaftLoop<FSM, S> {
        let mut ticks = interval(config.tick_interval);
        // After a pause of the process, missed ticks stay missed: with all of them at once, a node would
        // consider its leader dead before it could receive a message from it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        RaftLoop {
            node_id: core.status().node_id,
            core,
            inputs,
            outputs,
            ticks,
            commit_timer: CommitTimer::new(),
            failure: None,
            stop_timeout: config.stop_timeout,
            stops_by: None,
            introduced: None,
            retained_for: None,
            has_woken: false,
        }
    }

    /// Runs until a stop request is complete and all accepted requests are answered, or until the node cannot
    /// continue. All requests that still wait are answered then.
    pub(crate) async fn run(mut self) -> StopReason {
        self.outputs.metrics.runs();
        let reason = loop {
            // Before any answer leaves: the server must refuse a copy of a directory by the newest record.
            self.publish_remembered();
            self.take_turns();
            if let Some(reason) = self.stop_reason() {
                break reason;
            }
            if self.has_nothing_left_to_do() {
                break StopReason::Stopped;
            }
            if self.core.has_unannounced_commit() {
                self.commit_timer.start();
            }
            if std::mem::take(&mut self.has_woken) && !self.inputs.are_empty() {
                tokio::task::yield_now().await;
            }
            let RaftLoop { inputs, ticks, commit_timer, stops_by, .. } = &mut self;
            let Some(input) = inputs.select(ticks, commit_timer, *stops_by).await else {
                warn!(
                    node = %self.node_id,
                    "stops before it has transferred leadership, or answered all accepted requests: the outcome of some \
                     requests is not known"
                );
                self.apply_events();
                break self.stop_reason().unwrap_or(StopReason::Stopped);
            };
            mark(self.node_id, Step::Woken, LogIndex::ZERO);
            self.apply(input);
            self.apply_queued();
        };
        self.outputs.lifecycle.stop(&reason);
        self.outputs.node_events.stopped(&reason);
        if reason == StopReason::Stopped
            && let Some(write) = self.core.last_write()
        {
            let last = ToWrite { number: TurnNumber(u64::MAX), write: Some(write), send_after: Vec::new() };
            // The write is queued, and no task waits for its outcome.
            let _ = self.outputs.log_writer.write(last, false);
        }
        // Queued requests have not begun, and their answers say so.
        let core = &mut self.core;
        core.take_nothing_new();
        self.inputs.local.close(|request| core.handle_local_request_msg(request));
        self.inputs.server.close(|request| match request {
            ServerRequestMsg::RaftMessages { .. } => {}
            request => core.handle_server_request_msg(request),
        });
        core.stop(&reason);
        drop(self.inputs);
        // This may drop the state machine, which is user code and may panic: a panic no longer matters here.
        let _ = caught(|| drop(self.outputs));
        reason
    }

    fn apply(&mut self, input: Input<Reply<FSM::Reply>>) {
        if matches!(input, Input::Tick | Input::Quit) {
            // The core must see all known events before it decides by the clock; and a known failure takes
            // precedence as the stop reason over a later stop request.
            self.apply_events();
        }
        let core = &mut self.core;
        let node_events = &mut self.outputs.node_events;
        match input {
            Input::Quit => {
                self.stops_by = Some(Instant::now() + self.stop_timeout);
                if !self.stop_timeout.is_zero() {
                    core.prepare_to_stop();
                }
            }
            Input::Tick => {
                core.tick();
                self.record();
                self.outputs.storage_gauge.ticked(&self.outputs.blocking);
            }
            Input::AnnounceCommit => core.announce_commit(),
            Input::Event(Event::Written(turn)) => core.written(turn),
            Input::Event(Event::Applied(index)) => core.applied(index),
            Input::Event(Event::SnapshotTaken(outcome)) => {
                node_events.snapshot_taken(&outcome);
                core.snapshot_taken(outcome);
            }
            Input::Event(Event::Fetched(fetch, entries)) => core.fetched(fetch, entries),
            Input::Event(Event::DiskMeasured(space)) => {
                let is_full = self.outputs.storage_gauge.is_full(&space);
                node_events.disk_measured(&space, is_full);
                core.set_storage_full(is_full);
            }
            Input::Event(Event::Failed(reason)) => {
                node_events.failed(&reason);
                self.failure = Some(reason);
            }
            Input::Peer(PeerEvent::Unreachable(peer)) => {
                node_events.reached(peer, false);
                core.report_unreachable(peer);
                core.peer_is_silent(peer);
            }
            Input::Peer(PeerEvent::Agrees(peer)) => core.peer_agrees(peer),
            Input::Peer(PeerEvent::Silent(peer)) => core.peer_is_silent(peer),
            Input::Peer(PeerEvent::Reached { peer, incarnation, address }) => {
                node_events.reached(peer, true);
                core.peer_reached(peer, incarnation, address);
            }
            Input::Peer(PeerEvent::Unreached(peer)) => {
                node_events.reached(peer, false);
                core.peer_unreached(peer);
            }
            Input::Peer(PeerEvent::SnapshotSent { sent, outcome }) => {
                node_events.snapshot_sent(sent, &outcome);
                core.snapshot_sent(sent, outcome);
            }
            Input::Peer(PeerEvent::ReadRoundAnswered { round, answer }) => {
                core.read_round_answered(round, answer)
            }
            Input::Peer(PeerEvent::RefusedBy { by, refusal }) => core.refused_by(by, refusal),
            Input::Server(request) => core.handle_server_request_msg(request),
            Input::Local(request) => core.handle_local_request_msg(request),
        }
    }

    /// Records the numbers of the core, and the lengths of the queues.
    fn record(&mut self) {
        let Outputs { metrics, log_writer, applier, .. } = &mut self.outputs;
        metrics.queue_length(Queue::LocalRequests, self.inputs.local.len());
        metrics.queue_length(Queue::ServerRequests, self.inputs.server.len());
        metrics.queue_length(Queue::LogWriter, log_writer.queued());
        metrics.queue_length(Queue::Applier, applier.queued());
        metrics.ticked(&self.core);
    }

    /// Takes the queued requests, so that many proposals become one turn. The number is bounded: a queue that
    /// is filled as fast as it is emptied must not delay the turn, and one turn must not exceed a size
    /// that disk and network handle well.
    fn apply_queued(&mut self) {
        self.apply_events();
        for _ in 0..self.inputs.peers.len() {
            let Ok(event) = self.inputs.peers.try_recv() else {
                break;
            };
            self.apply(Input::Peer(event));
        }
        for _ in 0..self.inputs.server.len() {
            let Ok(request) = self.inputs.server.try_recv() else {
                break;
            };
            self.apply(Input::Server(request));
        }
        let mut bytes = 0;
        for _ in 0..self.inputs.local.len() {
            let Ok(request) = self.inputs.local.try_recv() else {
                break;
            };
            bytes += request.weight();
            self.apply(Input::Local(request));
            if bytes > TAKEN_BYTES_MAX {
                break;
            }
        }
    }

    /// Whether the node got a stop request and has no pending replies.
    fn has_nothing_left_to_do(&self) -> bool {
        self.stops_by.is_some()
            && (self.stop_timeout.is_zero()
                || (self.core.is_ready_to_stop() && !self.outputs.outbox.is_forwarding()))
    }

    fn apply_events(&mut self) {
        while let Ok(event) = self.inputs.events.try_recv() {
            self.apply(Input::Event(event));
        }
    }

    fn take_turns(&mut self) {
        while self.stop_reason().is_none()
            && let Some(turn) = self.core.ready()
        {
            // First, so that the outbox knows new members before it gets messages for them.
            self.publish();
            self.run_turn(turn);
        }
        self.publish();
    }

    /// Dispatches the work for other threads first; then does the inline work, if any.
    fn run_turn(&mut self, turn: Turn<Reply<FSM::Reply>>) {
        let sends = !turn.send_now.is_empty()
            || !turn.send_snapshots.is_empty()
            || !turn.forward.is_empty()
            || turn.read_round.is_some();
        if let Some(last) = turn.write.as_ref().and_then(|write| write.append.last()) {
            mark(self.node_id, Step::Append, last.position.index);
            self.outputs.metrics.appended(&self.outputs.status.borrow(), last.position.index);
        }
        let outputs = &mut self.outputs;
        outputs.outbox.send(turn.send_now);
        for snapshot in turn.send_snapshots {
            outputs.node_events.snapshot_is_sent(snapshot);
            outputs.outbox.send_snapshot(snapshot);
        }
        for forward in turn.forward {
            outputs.outbox.forward(forward);
        }
        if let Some(round) = turn.read_round {
            outputs.outbox.read_round(round);
        }
        let mut done = Vec::new();
        if let Some(last) = turn.committed.last() {
            mark(self.node_id, Step::Commit, last.position().index);
            let answers =
                turn.committed.iter().any(|item| matches!(item, Committed::User { reply: Some(_), .. }));
            done.extend(outputs.applier.apply(turn.committed));
            self.has_woken |= answers && !done.is_empty();
        }
        if let Some(reason) = turn.take_snapshot
            && let Some(identity) = self.core.status().identity
        {
            outputs.node_events.snapshot_begins(outputs.status.borrow().applied);
            outputs.applier.take_snapshot(identity.cluster_id, reason);
        }
        if turn.hurry_snapshot {
            outputs.applier.hurry_snapshot();
        }
        if turn.write.is_some() || !turn.send_after.is_empty() {
            let Turn { number, write, send_after, .. } = turn;
            // Messages are sent by tasks that may run on this very thread. The callers that were just
            // answered may run on it as well.
            let may_wait = !sends && !self.has_woken && self.inputs.are_empty();
            let sends_after = !send_after.is_empty();
            let written = outputs.log_writer.write(ToWrite { number, write, send_after }, may_wait);
            self.has_woken |= sends_after && written.is_some();
            done.extend(written);
        }
        for fetch in turn.fetch {
            self.fetch(fetch);
        }
        for event in done {
            self.apply(Input::Event(event));
        }
    }

    /// Publishes changes to the handles and to the connections.
    fn publish(&mut self) {
        let status = self.core.status();
        if let Some(identity) = status.identity
            && self.introduced.as_ref() != Some(&(identity, Arc::clone(&status.members)))
            && let Some(sender) = self.core.sender()
        {
            self.outputs.outbox.set_members(identity, &status.members, sender.started);
            self.introduced = Some((identity, Arc::clone(&status.members)));
        }
        if status.snapshot != self.retained_for {
            self.retained_for = status.snapshot;
            self.retain_snapshots();
        }
        let (metrics, node_events) = (&mut self.outputs.metrics, &mut self.outputs.node_events);
        metrics.committed(&status);
        self.outputs.status.send_if_modified(|shown| {
            if *shown == status {
                return false;
            }
            if (status.leader_id, status.term) != (shown.leader_id, shown.term)
                && let Some(leader) = status.leader_id
            {
                info!(node = %status.node_id, "node {leader} leads in term {}", status.term);
                metrics.leader_changed();
            }
            node_events.changed(shown, &status);
            *shown = status;
            true
        });
    }

    /// Publishes to the server the data that the core remembers of other nodes.
    fn publish_remembered(&self) {
        let remembered = self.core.remembered();
        if !Arc::ptr_eq(&self.outputs.remembered.borrow(), remembered) {
            self.outputs.remembered.send_replace(Arc::clone(remembered));
        }
    }

    /// Reads entries for a follower that lags behind. A storage error stops the node: it must never result in
    /// missing or wrong entries.
    fn fetch(&mut self, fetch: LogFetch) {
        let (reader, events) = (self.outputs.log_reader.clone(), self.outputs.events.clone());
        drop(self.outputs.blocking.start(move || {
            let event = match caught(|| reader.read(fetch.from, fetch.until, fetch.bytes_max)) {
                Ok(Ok(entries)) => Event::Fetched(fetch, Ok(entries)),
                // The entries were compacted or truncated after the core's request: the core repeats the
                // request for the current log.
                Ok(Err(error @ (StorageError::Compacted { .. } | StorageError::BeyondEnd { .. }))) => {
                    Event::Fetched(fetch, Err(error))
                }
                Ok(Err(error)) => Event::Failed(StopReason::Storage(error.to_string())),
                Err(panic) => Event::Failed(StopReason::Storage(format!("reading the log {panic}"))),
            };
            // If the loop has ended, the result is not needed.
            let _ = events.send(event);
        }));
    }

    /// Deletes the unneeded snapshots. A failure only costs space, and the next deletion corrects it.
    fn retain_snapshots(&mut self) {
        let in_use = self.outputs.snapshots.in_use(self.core.snapshots_in_use());
        drop(self.outputs.blocking.start(move || {
            if let Err(error) = in_use.delete_others() {
                warn!("old snapshots could not be deleted: {error}");
            }
        }));
    }

    fn stop_reason(&self) -> Option<StopReason> {
        self.failure.clone().or_else(|| self.core.stop_reason().cloned())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;
    use crate::channels::request_queue::request_queue;

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_a_node_that_always_has_news_does_not_stand_still() {
        let (news, events) = mpsc::unbounded_channel();
        let (_peers, peers) = mpsc::unbounded_channel();
        let (_server, server) = request_queue(1, 1);
        let (_local, local) = request_queue(1, 1);
        let (_quit, quit) = watch::channel(false);
        let quit_at_once = quit.clone();
        let mut inputs = Inputs::<Reply<()>> { events, peers, server, local, quit, quit_at_once };
        news.send(Event::Applied(LogIndex(1))).unwrap();
        let mut ticks = interval(Duration::from_millis(1));
        // Until the next tick is in the future.
        while ticks.tick().now_or_never().is_some() {}
        advance(Duration::from_millis(1)).await;
        let first = inputs.select(&mut ticks, &mut CommitTimer::new(), None).await;
        assert!(matches!(first, Some(Input::Tick)), "it is due, and so is news");
    }
}
