//! The life of a node from its parts to its end: starts them in order, waits, and ends them in order.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use raftify_core::error::{JoinError, StopReason};
use raftify_core::{
    CheckedConfig, Identity, Incarnation, LocalRequestMsg, LogPosition, Members, NodeId, RaftNodeCore,
    Responder, SnapshotMeta, StableStorage, Status,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError as TaskError, JoinSet};
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use crate::application::formatter::CustomFormatter;
use crate::application::log_entry::check_encoded;
use crate::application::state_machine::StateMachine;
use crate::apply::applier::Query;
use crate::apply::applier_thread::ApplierStart;
use crate::apply::backups::Backups;
use crate::apply::snapshot_taker::SnapshotTaker;
use crate::apply::snapshots::TrackedSnapshots;
use crate::channels::backups::BackupCall;
use crate::channels::events::EarlierIncarnation;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::{NodeMetrics, Queue};
use crate::channels::node_events::EventsEnd;
use crate::channels::reply::Reply;
use crate::channels::request_queue::{RequestReceiver, RequestSender, request_queue};
use crate::channels::server_counters::ServerCounters;
use crate::error::{BeginError, RunError};
use crate::network::outbox::Outbox;
use crate::network::server::access::Access;
use crate::network::server::{ServerContext, serve};
use crate::node::begin::{Confirmation, FirstStart, FirstStartRequest};
use crate::node::discovery::Discovery;
use crate::node::log_writer::LogWriter;
use crate::node::loop_events::LoopEvents;
use crate::node::loop_metrics::LoopMetrics;
use crate::node::raft_loop::{Inputs, Outputs, RaftLoop};
use crate::node::storage_gauge::StorageGauge;
use crate::runtime::random::random;
use crate::runtime::transport::Listener;
use crate::runtime::worker::Blocking;
use crate::security::dialer::Dialer;
use crate::verbs::identify::original_at;
use crate::wire::identification::Plan;

/// How long a stopping node waits for its parts before it logs a warning: longer than the server takes with
/// connections that hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of the log writer in the warning of a stopping node that waits for it.
const LOG_WRITER: &str = "the log writer, in a write of the log";

/// All parts of a node before it runs.
pub(crate) struct NodeParts<S, FSM: StateMachine> {
    pub(crate) core: RaftNodeCore<Reply<FSM::Reply>>,
    pub(crate) config: CheckedConfig,
    pub(crate) raft_addr: Arc<str>,
    pub(crate) dialer: Dialer,
    pub(crate) storage: S,
    pub(crate) state_machine: FSM,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) recovered: LogPosition,
    pub(crate) listener: Listener,
    pub(crate) server_counters: Arc<ServerCounters>,
    pub(crate) metrics: Arc<NodeMetrics>,
    /// Dropped when all parts have ended.
    pub(crate) events: EventsEnd,
    pub(crate) requests: RequestSender<LocalRequestMsg<Reply<FSM::Reply>>>,
    pub(crate) local_requests: RequestReceiver<LocalRequestMsg<Reply<FSM::Reply>>>,
    pub(crate) queries: mpsc::Receiver<Query<FSM>>,
    pub(crate) backup_calls: (mpsc::Sender<BackupCall>, mpsc::Receiver<BackupCall>),
    pub(crate) status: watch::Sender<Status>,
    pub(crate) formatter: Arc<dyn CustomFormatter<FSM::LogEntry, FSM>>,
    pub(crate) first_start: FirstStartRequest,
    /// The incarnation of a fresh directory.
    pub(crate) incarnation: Incarnation,
    /// The plan with which this node waits to begin a cluster.
    pub(crate) plan: watch::Sender<Option<Plan>>,
    /// Where to look for the other members while no leader is known.
    pub(crate) discover: Vec<String>,
}

/// One of the two tasks of a node ended.
enum Ended {
    Loop(StopReason),
    Server(io::Result<()>),
}

impl<S: StableStorage, FSM: StateMachine> NodeParts<S, FSM> {
    /// Runs the node to its end.
    pub(crate) async fn run(mut self, lifecycle: Lifecycle) -> Result<(), RunError> {
        let node_id = self.status.borrow().node_id;
        let (status, started) = (self.status.borrow().clone(), self.core.started());
        let original = original_at(&self.dialer, &status, started, &self.raft_addr, &self.config);
        tokio::select! {
            biased;
            () = lifecycle.quit_asked() => {}
            original = original => if let Some(address) = original {
                let reason = StopReason::OriginalRuns { address };
                lifecycle.stop(&reason);
                return Err(reason.into());
            }
        }
        let earlier_incarnation = watch::Sender::new(None);
        let confirmation = self.begin_cluster(&earlier_incarnation, &lifecycle);

        let (events, event_inputs) = mpsc::unbounded_channel();
        let (peer_events, peer_inputs) = mpsc::unbounded_channel();
        let (server_requests, server_inputs) =
            request_queue(self.config.request_queue_max, self.config.request_queue_bytes_max);
        let snapshots = TrackedSnapshots::new(self.storage.snapshots(), lifecycle.clone());
        let log_reader = self.storage.log_reader();
        let blocking = Blocking::new();
        let outbox = Outbox::start(
            self.raft_addr.to_string(),
            self.dialer.clone(),
            self.config.clone(),
            snapshots.clone(),
            blocking.clone(),
            peer_events,
            Arc::clone(&self.metrics),
        );
        let directory = self.storage.directory();
        let (log_writer, writer_thread) = LogWriter::start(
            node_id,
            self.storage,
            &self.config,
            events.clone(),
            outbox.clone(),
            Arc::clone(&self.metrics),
            Arc::clone(&self.events.0),
        )
        .inspect_err(|reason| lifecycle.stop(reason))?;
        let applier = ApplierStart {
            node_id,
            state_machine: self.state_machine,
            snapshots: snapshots.clone(),
            snapshot_taker: SnapshotTaker::new(
                snapshots.clone(),
                self.config.snapshot_bytes_per_second_max,
                events.clone(),
                lifecycle.clone(),
                Arc::clone(&self.metrics),
            ),
            snapshot: self.snapshot,
            recovered: self.recovered,
            queries: self.queries,
            events: events.clone(),
            formatter: self.formatter,
            lifecycle: lifecycle.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let (applier, applier_thread) = match applier.start() {
            Ok(started) => started,
            Err(reason) => {
                lifecycle.stop(&reason);
                drop(log_writer);
                outbox.shutdown().await;
                patiently(node_id, LOG_WRITER, writer_thread.ended()).await;
                return Err(reason.into());
            }
        };
        let (metrics, config) = (Arc::clone(&self.metrics), &self.config);
        metrics.queue_limit(Queue::LocalRequests, config.request_queue_max);
        metrics.queue_limit(Queue::ServerRequests, config.request_queue_max);
        metrics.queue_limit(Queue::Proposals, config.proposals_in_flight_max);
        metrics.queue_limit(Queue::Reads, config.reads_in_flight_max);
        let reserve_bytes = config.storage_reserve_bytes;
        let storage_gauge = StorageGauge::new(directory, reserve_bytes, events.clone(), Arc::clone(&metrics));
        let node_events = Arc::clone(&self.events.0);
        let loop_metrics = LoopMetrics::new(metrics, Arc::clone(&self.server_counters));
        let remembered = watch::Sender::new(Arc::clone(self.core.remembered()));
        let (backup_requests, backup_calls) = self.backup_calls;
        let backups = Backups::new(
            snapshots.clone(),
            self.status.subscribe(),
            self.requests.clone(),
            self.config.clone(),
            blocking.clone(),
            lifecycle.clone(),
            Arc::clone(&self.metrics),
        );
        let context = ServerContext {
            access: Arc::new(Access::new(
                Arc::clone(&self.raft_addr),
                self.status.subscribe(),
                Arc::clone(&self.server_counters),
            )),
            dialer: self.dialer.clone(),
            counters: self.server_counters,
            metrics: self.metrics,
            events: Arc::clone(&node_events),
            backups: backup_requests,
            lifecycle: lifecycle.clone(),
            stops: lifecycle.quit_wish(),
            requests: server_requests,
            status: self.status.subscribe(),
            remembered: remembered.subscribe(),
            address: Arc::clone(&self.raft_addr),
            plan: self.plan.subscribe(),
            earlier_incarnation,
            snapshots: snapshots.clone(),
            snapshot_bytes_received: lifecycle.snapshot_bytes_received(),
            config: self.config.clone(),
            outbox: outbox.clone(),
            blocking: blocking.clone(),
            remote_reply: Reply::Remote,
            check_entry: check_encoded::<FSM::LogEntry>,
        };
        let inputs = Inputs {
            events: event_inputs,
            peers: peer_inputs,
            server: server_inputs,
            local: self.local_requests,
            quit: lifecycle.quit_wish(),
            quit_at_once: lifecycle.quit_at_once_wish(),
        };
        let outputs = Outputs {
            log_writer,
            applier,
            outbox: outbox.clone(),
            log_reader,
            snapshots,
            blocking: blocking.clone(),
            events,
            status: self.status,
            remembered,
            lifecycle: lifecycle.clone(),
            metrics: loop_metrics,
            storage_gauge,
            node_events: LoopEvents::new(node_events, status.members),
        };
        let discovery = Discovery::new(
            self.discover,
            self.dialer.clone(),
            outputs.status.subscribe(),
            outbox.clone(),
            self.config.clone(),
        );
        let members_seen = outputs.status.subscribe();
        let raft_loop = RaftLoop::new(self.core, inputs, outputs, &self.config);

        // Both tasks are ended when this future is dropped midway.
        let mut tasks = JoinSet::new();
        let (serving, end_serving) = oneshot::channel::<()>();
        tasks.spawn(async move { Ended::Loop(raft_loop.run().await) });
        tasks.spawn(async move {
            Ended::Server(serve(self.listener, context, async { drop(end_serving.await) }).await)
        });
        let mut backing_up = JoinSet::new();
        backing_up.spawn(backups.run(backup_calls));
        let mut helpers = JoinSet::new();
        if let Some(confirmation) = confirmation {
            let (requests, first_start) = (self.requests, self.first_start.clone());
            let begins =
                begin_when_confirmed(confirmation, requests, first_start, members_seen, lifecycle.clone());
            helpers.spawn(begins);
        }
        helpers.spawn(discovery.run());
        info!(node = %node_id, address = %self.raft_addr, "the node runs");

        let mut ended = Vec::new();
        tokio::select! {
            // A known failure takes precedence as the reason over a later stop request.
            biased;
            first = tasks.join_next() => ended.extend(first),
            () = lifecycle.quit_asked() => {}
        }
        let unasked = ended.len();
        lifecycle.ask_to_quit();
        helpers.shutdown().await;
        // While the loop transfers leadership and answers accepted requests, the server continues: other
        // nodes need this node.
        let mut serving = Some(serving).filter(|_| ended.is_empty());
        let what = "the raft loop, in a write of the log or in the state machine";
        while let Some(next) = patiently(node_id, what, tasks.join_next()).await {
            ended.push(next);
            serving.take();
        }
        let outcome = outcome(ended, unasked, self.first_start.failure(), &lifecycle);
        outbox.shutdown().await;
        patiently(node_id, LOG_WRITER, writer_thread.ended()).await;
        let what = "the applier, in the state machine or in a snapshot that is written out";
        patiently(node_id, what, applier_thread.ended()).await;
        // Also after a panic of the loop. An earlier reason stays.
        lifecycle.stop(&StopReason::Stopped);
        while backing_up.join_next().await.is_some() {}
        patiently(node_id, "reads of the log, or work on snapshots", blocking.ended()).await;
        match &outcome {
            Ok(()) => info!(node = %node_id, "the node has stopped"),
            Err(error) => error!(node = %node_id, "{error}"),
        }
        outcome
    }

    /// Logs the content of the directory, or begins a cluster on a fresh one if the handle requested it. With
    /// a list of several first members, the others must confirm the list first.
    fn begin_cluster(
        &mut self,
        earlier_incarnation: &watch::Sender<Option<EarlierIncarnation>>,
        lifecycle: &Lifecycle,
    ) -> Option<Confirmation> {
        let Status { node_id, identity, members, term, last, .. } = self.core.status();
        let first = self.first_start.take();
        if let Some(identity) = identity
            && !(members.is_empty() && matches!(first, Some(FirstStart::Expected(_))))
        {
            self.first_start.end(Ok(()));
            if !members.knows(node_id) {
                info!(
                    node = %node_id,
                    "continues as node {node_id}, which has not been admitted to cluster {} yet", identity.cluster_id
                );
                return None;
            }
            info!(
                node = %node_id,
                "continues as node {node_id} of cluster {}, in term {term}, with its log up to index {}",
                identity.cluster_id, last.index
            );
            if let Some(FirstStart::Listed(listed)) = first
                && let differences = listed.differences(&members)
                && !differences.is_empty()
            {
                info!(node = %node_id, "the stored membership counts, not the given list: {differences}");
            }
            if let Some(own) = members.get(node_id)
                && *own.address != *self.raft_addr
            {
                info!(
                    node = %node_id,
                    "moved from {} to {}, which is announced to the other members", own.address, self.raft_addr
                );
            }
            return None;
        }
        let first = first?;
        let is_expected = matches!(first, FirstStart::Expected(_));
        let incarnation = identity.map_or(self.incarnation, |pledged| pledged.incarnation);
        let (own, members) = match first.cluster(node_id, &self.raft_addr, incarnation) {
            Ok(cluster) => cluster,
            Err(refusal) => {
                self.first_start.end(Err(BeginError::Members(refusal)));
                lifecycle.ask_to_quit();
                return None;
            }
        };
        if members.len() == 1 {
            self.core.handle_local_request_msg(start_cluster(own, members, &self.first_start, lifecycle));
            return None;
        }
        if is_expected {
            // Other nodes may count on this node as soon as they learn of it, also after a crash.
            self.core.handle_local_request_msg(pledge(own, &self.first_start, lifecycle));
        }
        let expect = if is_expected { u32::try_from(members.len()).unwrap_or(u32::MAX) } else { 0 };
        let plan = Plan { members, expect, nonce: random() };
        self.plan.send_replace(Some(plan.clone()));
        let (address, earlier_incarnation) = (Arc::clone(&self.raft_addr), earlier_incarnation.subscribe());
        let dialer = self.dialer.clone();
        Some(Confirmation { own, address, dialer, plan, earlier_incarnation })
    }
}

/// The request that pledges this node to a cluster, durably. If the pledge fails, the node stops.
fn pledge<R>(
    identity: Identity,
    first_start: &FirstStartRequest,
    lifecycle: &Lifecycle,
) -> LocalRequestMsg<R> {
    let (first_start, lifecycle) = (first_start.clone(), lifecycle.clone());
    let reply = Responder::new(move |answer: Result<(), JoinError>| match answer {
        // A node that stops meanwhile reports its own reason.
        Ok(()) | Err(JoinError::Stopped(_)) => {}
        Err(error) => {
            first_start.end(Err(BeginError::Start(error)));
            lifecycle.ask_to_quit();
        }
    });
    LocalRequestMsg::AwaitCluster { identity, reply }
}

/// The request that begins the cluster. Its outcome is recorded; if it fails, the node stops.
fn start_cluster<R>(
    identity: Identity,
    members: Members,
    first_start: &FirstStartRequest,
    lifecycle: &Lifecycle,
) -> LocalRequestMsg<R> {
    let listed: Vec<String> = members
        .iter()
        .map(|member| format!("node {} at {}, a {}", member.id, member.address, member.role))
        .collect();
    info!(
        node = %identity.node_id,
        "begins a new cluster, {}, with {}", identity.cluster_id, listed.join("; ")
    );
    let (first_start, lifecycle) = (first_start.clone(), lifecycle.clone());
    let reply = Responder::new(move |answer: Result<(), JoinError>| match answer {
        // A node that stops meanwhile reports its own reason.
        Err(JoinError::Stopped(_)) => {}
        // Another first member began the cluster before, and already leads this node.
        Err(JoinError::AlreadyMember { cluster_id }) if cluster_id == identity.cluster_id => {
            first_start.end(Ok(()));
        }
        answer => {
            let has_failed = answer.is_err();
            first_start.end(answer.map_err(BeginError::Start));
            if has_failed {
                lifecycle.ask_to_quit();
            }
        }
    });
    LocalRequestMsg::StartCluster { identity, members, reply }
}

/// Begins the cluster as soon as enough of the other first members agree, unless one of them has begun it and
/// admits this node before.
async fn begin_when_confirmed<R>(
    confirmation: Confirmation,
    requests: RequestSender<LocalRequestMsg<R>>,
    first_start: FirstStartRequest,
    mut status: watch::Receiver<Status>,
    lifecycle: Lifecycle,
) {
    let confirmed = tokio::select! {
        biased;
        // An error means that the node has ended.
        _ = status.wait_for(|status| !status.members.is_empty()) => return first_start.end(Ok(())),
        confirmed = confirmation.confirmed() => confirmed,
    };
    if let Err(error) = confirmed {
        first_start.end(Err(error));
        return lifecycle.ask_to_quit();
    }
    let Confirmation { own, plan, .. } = confirmation;
    let request = start_cluster(own, plan.members, &first_start, &lifecycle);
    // A node that stops reports its own reason.
    let _ = requests.send(request).await;
}

/// Waits for an operation that a disk or a state machine may block forever, and logs a warning: first after
/// [`PATIENCE`], then after twice as long each time.
async fn patiently<T>(node_id: NodeId, what: &str, end: impl Future<Output = T>) -> T {
    let mut end = pin!(end);
    let begin = Instant::now();
    let mut patience = PATIENCE;
    loop {
        match timeout(patience, &mut end).await {
            Ok(outcome) => return outcome,
            Err(_) => {
                let seconds = begin.elapsed().as_secs();
                warn!(node = %node_id, "shutdown has been blocked for {seconds} s on {what}");
            }
        }
        patience *= 2;
    }
}

/// The return value of `run` after its tasks have ended; the first `unasked` of them ended without a stop
/// request.
fn outcome(
    ended: Vec<Result<Ended, TaskError>>,
    unasked: usize,
    not_begun: Option<BeginError>,
    lifecycle: &Lifecycle,
) -> Result<(), RunError> {
    if let Some(error) = not_begun {
        return Err(RunError::Begin(error));
    }
    let mut outcome = Ok(());
    for (place, ended) in ended.into_iter().enumerate() {
        let failure = match ended {
            Ok(Ended::Loop(StopReason::Stopped)) => None,
            Ok(Ended::Loop(StopReason::Removed { .. })) if lifecycle.is_leaving() => None,
            Ok(Ended::Loop(reason)) => Some(RunError::Stopped(reason)),
            Ok(Ended::Server(Ok(()))) if place >= unasked => None,
            Ok(Ended::Server(Ok(()))) => Some(RunError::Server("it stopped listening".to_owned())),
            Ok(Ended::Server(Err(error))) => Some(RunError::Server(error.to_string())),
            Err(error) => {
                let reason = StopReason::Internal(error.to_string());
                lifecycle.stop(&reason);
                Some(RunError::Stopped(reason))
            }
        };
        outcome = failure.map_or(outcome, Err);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use futures_util::FutureExt;
    use raftify_core::{ClusterId, Config};
    use raftify_free_address::free_address;
    use raftify_storage::HeedStorage;

    use super::*;
    use crate::Raft;
    use crate::application::snapshot::Snapshot;
    use crate::error::BoxError;
    use crate::runtime::worker::NOT_STARTED;

    struct Nothing;

    impl StateMachine for Nothing {
        type LogEntry = u64;
        type Reply = ();

        fn apply(&mut self, _: LogPosition, _: u64) -> Result<(), BoxError> {
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(()))
        }

        fn restore(&mut self, _: &mut dyn Read) -> Result<(), BoxError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_node_of_which_one_thread_cannot_be_started_has_ended_the_others_when_run_returns() {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        for name in ["raftify-apply", "raftify-log"] {
            // The storage is in use as long as any part of the node exists.
            let storage = HeedStorage::open(directory.path()).unwrap();
            let raft = Raft::bootstrap(NodeId::FIRST, &address, storage, Nothing, Config::default()).unwrap();
            NOT_STARTED.set(Some(name));
            let Err(RunError::Stopped(reason)) = raft.clone().run().await else {
                panic!("it ran without a thread");
            };
            NOT_STARTED.set(None);
            assert!(reason.to_string().contains(name), "{reason}");
            drop(HeedStorage::open(directory.path()).unwrap());
            assert_eq!(raft.inspect().await, Err(reason));
        }
    }

    #[test]
    fn a_first_member_that_another_one_lets_in_before_it_begins_itself_has_begun() {
        let (first_start, lifecycle) = (FirstStartRequest::new(), Lifecycle::new());
        let (cluster_id, incarnation) = (ClusterId(7), Incarnation(1));
        let identity = Identity { cluster_id, node_id: NodeId::FIRST, incarnation };
        let begins = start_cluster::<Reply<()>>(identity, Members::none(), &first_start, &lifecycle);
        let LocalRequestMsg::StartCluster { reply, .. } = begins else { panic!("another request") };
        reply.answer(Err(JoinError::AlreadyMember { cluster_id }));
        assert_eq!(first_start.ended().now_or_never(), Some(Ok(())));
        assert!(!*lifecycle.quit_wish().borrow());
    }
}
