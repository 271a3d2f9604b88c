//! From the parts of a node to a running one, and back: starts them in order, waits, and ends them in order.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use raftify_core::error::{JoinError, StopReason};
use raftify_core::{
    CheckedConfig, ClusterId, Identity, Incarnation, LocalRequestMsg, LogPosition, Member, Members, NodeId,
    RaftNodeCore, Responder, SnapshotMeta, StableStorage, Status,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError as TaskError, JoinSet};
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use crate::applier::{ApplierStart, Query};
use crate::chance::random;
use crate::error::RunError;
use crate::formatter::CustomFormatter;
use crate::identification::Plan;
use crate::lifecycle::Lifecycle;
use crate::log_entry::check_encoded;
use crate::log_writer::LogWriter;
use crate::outbox::Outbox;
use crate::raft_loop::{Inputs, Outputs, RaftLoop};
use crate::raft_server::{Door, serve};
use crate::reply::Reply;
use crate::request_queue::{RequestReceiver, request_queue};
use crate::snapshot_taker::SnapshotTaker;
use crate::snapshots::TrackedSnapshots;
use crate::state_machine::AbstractStateMachine;
use crate::transport::Listener;
use crate::worker::Blocking;

/// So long a node that stops waits for its parts without a word: longer than the server takes with connections that hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a node that stops says of its log writer when it waits for it.
const LOG_WRITER: &str = "the log writer, in a write of the log";

/// Everything that a node consists of, before it runs.
pub(crate) struct NodeParts<S, FSM: AbstractStateMachine> {
    pub(crate) core: RaftNodeCore<Reply<FSM::Reply>>,
    pub(crate) config: CheckedConfig,
    pub(crate) raft_addr: Arc<str>,
    pub(crate) storage: S,
    pub(crate) state_machine: FSM,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) recovered: LogPosition,
    pub(crate) listener: Listener,
    pub(crate) local_requests: RequestReceiver<LocalRequestMsg<Reply<FSM::Reply>>>,
    pub(crate) queries: mpsc::Receiver<Query<FSM>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) formatter: Arc<dyn CustomFormatter<FSM::LogEntry, FSM>>,
    pub(crate) first_members: Arc<Mutex<Option<Members>>>,
    /// What this node waits to begin a cluster with.
    pub(crate) plan: watch::Sender<Option<Plan>>,
}

/// One of the two tasks of a node came to its end.
enum Ended {
    Loop(StopReason),
    Server(io::Result<()>),
}

impl<S: StableStorage, FSM: AbstractStateMachine> NodeParts<S, FSM> {
    /// Runs the node to its end.
    pub(crate) async fn run(mut self, lifecycle: Lifecycle) -> Result<(), RunError> {
        let node_id = self.status.borrow().node_id;
        let not_begun = self.begin_cluster(&lifecycle);

        let (events, event_inputs) = mpsc::unbounded_channel();
        let (peer_events, peer_inputs) = mpsc::unbounded_channel();
        let (server_requests, server_inputs) =
            request_queue(self.config.request_queue_max, self.config.request_queue_bytes_max);
        let snapshots = TrackedSnapshots::new(self.storage.snapshots(), lifecycle.clone());
        let log_reader = self.storage.log_reader();
        let blocking = Blocking::new();
        let outbox = Outbox::start(
            self.raft_addr.to_string(),
            self.config.clone(),
            snapshots.clone(),
            blocking.clone(),
            peer_events,
        );
        let (log_writer, writer_thread) =
            LogWriter::start(node_id, self.storage, events.clone(), outbox.clone())
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
            ),
            snapshot: self.snapshot,
            recovered: self.recovered,
            queries: self.queries,
            events: events.clone(),
            formatter: self.formatter,
            lifecycle: lifecycle.clone(),
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
        let door = Door {
            requests: server_requests,
            status: self.status.subscribe(),
            address: Arc::clone(&self.raft_addr),
            plan: self.plan.subscribe(),
            snapshots: snapshots.clone(),
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
            lifecycle: lifecycle.clone(),
        };
        let raft_loop = RaftLoop::new(self.core, inputs, outputs, self.config.tick_interval);

        // Both are ended when this future is dropped half way.
        let mut tasks = JoinSet::new();
        let (serving, end_serving) = oneshot::channel::<()>();
        tasks.spawn(async move { Ended::Loop(raft_loop.run().await) });
        tasks.spawn(async move {
            Ended::Server(serve(self.listener, door, async { drop(end_serving.await) }).await)
        });
        info!(node = %node_id, address = %self.raft_addr, "the node runs");

        let mut ended = Vec::new();
        tokio::select! {
            // A failure that is known already is the reason, not the wish that came after it.
            biased;
            first = tasks.join_next() => ended.extend(first),
            () = termination() => info!(node = %node_id, "asked to stop by a signal"),
            () = lifecycle.quit_asked() => {}
        }
        let unasked = ended.len();
        lifecycle.ask_to_quit();
        drop(serving);
        let what = "the raft loop, in a write of the log or in the state machine";
        while let Some(next) = patiently(node_id, what, tasks.join_next()).await {
            ended.push(next);
        }
        let outcome = outcome(ended, unasked, not_begun.get(), &lifecycle);
        outbox.shutdown().await;
        patiently(node_id, LOG_WRITER, writer_thread.ended()).await;
        let what = "the applier, in the state machine or in a snapshot that is written out";
        patiently(node_id, what, applier_thread.ended()).await;
        patiently(node_id, "reads of the log, or work on snapshots", blocking.ended()).await;
        match &outcome {
            Ok(()) => info!(node = %node_id, "the node has stopped"),
            Err(error) => error!(node = %node_id, "{error}"),
        }
        outcome
    }

    /// Begins a cluster on a fresh directory, if this node is to begin one. What goes wrong is found in the result
    /// later, and asks the node to stop.
    fn begin_cluster(&mut self, lifecycle: &Lifecycle) -> Arc<OnceLock<JoinError>> {
        let not_begun = Arc::new(OnceLock::new());
        let Status { node_id, identity, members, .. } = self.core.status();
        let given = self.first_members.lock().unwrap_or_else(PoisonError::into_inner).take();
        if identity.is_some() {
            if let Some(given) = given
                && !given.iter().map(|m| (m.id, &m.address)).eq(members.iter().map(|m| (m.id, &m.address)))
            {
                info!(node = %node_id, "the stored membership counts, which is not that of add_peers any more");
            }
            if let Some(own) = members.get(node_id)
                && *own.address != *self.raft_addr
            {
                warn!(
                    node = %node_id,
                    "the stored membership says that this node is at {recorded}, but it was bootstrapped with {own}: \
                     unless that was changed meanwhile, the others look for it at {recorded}. Start it with that \
                     address, or have a member change it, by change_config with Add of node {node_id}, a {role}, at {own}",
                    recorded = own.address, own = self.raft_addr, role = own.role
                );
            }
            return not_begun;
        }
        let incarnation = Incarnation(random());
        let (cluster_id, members) = match given {
            Some(members) => (members.derive_cluster_id(), members),
            None if node_id == NodeId::FIRST => {
                let this =
                    Member { incarnation: Some(incarnation), ..Member::voter(node_id, &*self.raft_addr) };
                let members =
                    Members::initial([this]).expect("one voter whose address was checked at bootstrap");
                (ClusterId(random()), members)
            }
            None => return not_begun,
        };
        let (failure, lifecycle) = (Arc::clone(&not_begun), lifecycle.clone());
        let reply = Responder::new(move |answer: Result<(), JoinError>| {
            // A node that stops meanwhile says why by itself.
            if let Err(error) = answer
                && !matches!(error, JoinError::Stopped(_))
            {
                let _ = failure.set(error); // The first and only answer.
                lifecycle.ask_to_quit();
            }
        });
        let identity = Identity { cluster_id, node_id, incarnation };
        self.core.handle_local_request_msg(LocalRequestMsg::StartCluster { identity, members, reply });
        not_begun
    }
}

/// Waits for what a disk or a state machine may hold up for ever, and says so: first after [`PATIENCE`], then after twice
/// as long each time.
async fn patiently<T>(node_id: NodeId, what: &str, end: impl Future<Output = T>) -> T {
    let mut end = pin!(end);
    let begin = Instant::now();
    let mut patience = PATIENCE;
    loop {
        match timeout(patience, &mut end).await {
            Ok(outcome) => return outcome,
            Err(_) => {
                let seconds = begin.elapsed().as_secs();
                warn!(node = %node_id, "the node stops, and has been waiting for {seconds} s for {what}");
            }
        }
        patience *= 2;
    }
}

/// What `run` returns after its tasks have ended, the first `unasked` of them without being asked to.
fn outcome(
    ended: Vec<Result<Ended, TaskError>>,
    unasked: usize,
    not_begun: Option<&JoinError>,
    lifecycle: &Lifecycle,
) -> Result<(), RunError> {
    if let Some(error) = not_begun {
        return Err(RunError::Start(error.clone()));
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

/// Resolves when the process is asked to end.
async fn termination() {
    #[cfg(feature = "simulation")]
    if crate::simulation::is_on() {
        return std::future::pending().await; // Nobody sends signals there.
    }
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            warn!("Ctrl+C cannot be listened for: {error}");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                warn!("SIGTERM cannot be listened for: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use raftify_core::Config;
    use raftify_free_address::free_address;
    use raftify_storage::HeedStorage;

    use super::*;
    use crate::Raft;
    use crate::error::BoxError;
    use crate::state_machine::SnapshotCapture;
    use crate::worker::NOT_STARTED;

    struct Nothing;

    impl AbstractStateMachine for Nothing {
        type LogEntry = u64;
        type Reply = ();

        fn apply(&mut self, _: LogPosition, _: u64) -> Result<(), BoxError> {
            Ok(())
        }

        fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError> {
            Ok(SnapshotCapture::of(()))
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
            // It is in use as long as anything of the node is left.
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
}
