//! The thread of the applier, and the raft loop's handle to it.
//!
//! The raft loop feeds it in log order; closures of [`RaftNode::query`](crate::RaftNode::query) run between
//! two batches. A few entries for a state machine that declares itself quick are applied inline, in the raft
//! loop, if the thread is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use raftify_core::error::StopReason;
use raftify_core::{
    ClusterId, Committed, LogPosition, Members, NodeId, SnapshotMeta, SnapshotReason, SnapshotStore,
};
use tokio::sync::mpsc;

use crate::application::formatter::CustomFormatter;
use crate::application::state_machine::StateMachine;
use crate::apply::applier::{Applier, Query, ToApply, forget};
use crate::apply::snapshot_taker::SnapshotTaker;
use crate::channels::events::Event;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::NodeMetrics;
use crate::channels::reply::Reply;
use crate::runtime::worker::{Worker, may_block};

/// More entries at once go to the thread.
const INLINE_ENTRIES_MAX: usize = 32;

/// The initial values of an applier.
pub(crate) struct ApplierStart<FSM: StateMachine, S> {
    pub(crate) node_id: NodeId,
    pub(crate) state_machine: FSM,
    pub(crate) snapshots: S,
    pub(crate) snapshot_taker: SnapshotTaker<S>,
    /// The newest snapshot, to be restored before anything else.
    pub(crate) snapshot: Option<SnapshotMeta>,
    /// The position that the state machine has by itself.
    pub(crate) recovered: LogPosition,
    pub(crate) queries: mpsc::Receiver<Query<FSM>>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    pub(crate) formatter: Arc<dyn CustomFormatter<FSM::LogEntry, FSM>>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metrics: Arc<NodeMetrics>,
}

/// The raft loop's end of the applier. When it is dropped, the thread ends; queued work is dropped then,
/// which answers its callers.
pub(crate) struct ApplierHandle<FSM: StateMachine, S> {
    applier: Arc<Mutex<Applier<FSM, S>>>,
    /// Unbounded because the core bounds its output.
    queue: mpsc::UnboundedSender<ToApply<Reply<FSM::Reply>>>,
    /// The work that the thread has got and not applied yet.
    queued: Arc<AtomicUsize>,
}

impl<FSM: StateMachine, S: SnapshotStore> ApplierStart<FSM, S> {
    /// Starts the thread.
    pub(crate) fn start(self) -> Result<(ApplierHandle<FSM, S>, Worker), StopReason> {
        let (sender, queue) = mpsc::unbounded_channel();
        let ApplierStart {
            node_id,
            state_machine,
            snapshots,
            snapshot_taker,
            snapshot,
            recovered,
            queries,
            events,
            formatter,
            lifecycle,
            metrics,
        } = self;
        let applier = Applier {
            node_id,
            state_machine,
            snapshots,
            snapshot_taker,
            members: Members::none(),
            applied: LogPosition::ZERO,
            recovered,
            failure: None,
            events,
            formatter,
            metrics,
        };
        let applier = Arc::new(Mutex::new(applier));
        // One for the first step: restoring the snapshot.
        let queued = Arc::new(AtomicUsize::new(1));
        let thread = run(Arc::clone(&applier), snapshot, queue, Arc::clone(&queued), queries, lifecycle);
        let worker = Worker::start("raftify-apply", thread)?;
        Ok((ApplierHandle { applier, queue: sender, queued }, worker))
    }
}

impl<FSM: StateMachine, S: SnapshotStore> ApplierHandle<FSM, S> {
    /// Applies committed entries. `Some` is the outcome if they are already applied; otherwise it comes as an
    /// [`Event`].
    pub(crate) fn apply(&self, committed: Vec<Committed<Reply<FSM::Reply>>>) -> Option<Event> {
        let quick = committed.len() <= INLINE_ENTRIES_MAX
            && committed.iter().all(|item| !matches!(item, Committed::Install { .. }))
            && self.queued.load(Ordering::Acquire) == 0;
        // A running query, or the capture of a snapshot, may be slow: this path never waits for it.
        if quick && let Some(mut applier) = self.applier.try_lock() {
            match applier.is_quick() {
                Ok(true) => {
                    let applied = applier.take_in([ToApply::Committed(committed)]);
                    return Some(applied.map_or_else(Event::Failed, Event::Applied));
                }
                Ok(false) => {}
                Err(reason) => return Some(Event::Failed(reason)),
            }
        }
        self.enqueue(ToApply::Committed(committed));
        None
    }

    /// How many items wait for the thread.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Takes a snapshot of the state once everything before has been applied.
    pub(crate) fn take_snapshot(&self, cluster_id: ClusterId, reason: SnapshotReason) {
        self.enqueue(ToApply::TakeSnapshot(cluster_id, reason));
    }

    /// Speeds up the writing of the snapshot that is being written, or that will be when everything before
    /// has been applied.
    pub(crate) fn hurry_snapshot(&self) {
        self.enqueue(ToApply::HurrySnapshot);
    }

    /// If the thread has failed, its failure event is under way and stops the node.
    fn enqueue(&self, work: ToApply<Reply<FSM::Reply>>) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        let _ = self.queue.send(work);
    }
}

/// The maximum number of queued items in one batch, so that queries and the end of the node get their turn.
const TAKEN_IN_MAX: usize = 256;

/// The maximum number of queries between two batches: entries and the end of the node wait for no more.
const QUERIES_MAX: usize = 16;

/// The thread.
async fn run<FSM: StateMachine, S: SnapshotStore>(
    applier: Arc<Mutex<Applier<FSM, S>>>,
    snapshot: Option<SnapshotMeta>,
    mut queue: mpsc::UnboundedReceiver<ToApply<Reply<FSM::Reply>>>,
    queued: Arc<AtomicUsize>,
    mut queries: mpsc::Receiver<Query<FSM>>,
    lifecycle: Lifecycle,
) {
    let events = applier.lock().events.clone();
    let mut outcome = match snapshot {
        Some(snapshot) => may_block(|| applier.lock().begin_at(snapshot)).await,
        None => Ok(()),
    };
    queued.fetch_sub(1, Ordering::Release);
    let (mut work, mut asked) = (Vec::new(), Vec::new());
    while outcome.is_ok() && !lifecycle.is_stopping() {
        outcome = tokio::select! {
            biased;
            count = queue.recv_many(&mut work, TAKEN_IN_MAX) => {
                if count == 0 {
                    break;
                }
                let applied = may_block(|| applier.lock().take_in(work.drain(..))).await;
                // If the loop has ended, the node has stopped already.
                let told = applied.map(|index| drop(events.send(Event::Applied(index))));
                queued.fetch_sub(count, Ordering::Release);
                // A queue that is filled as fast as it is emptied does not delay queries.
                while asked.len() < QUERIES_MAX && let Ok(query) = queries.try_recv() {
                    asked.push(query);
                }
                match told {
                    Ok(()) if asked.is_empty() => Ok(()),
                    Ok(()) => may_block(|| applier.lock().answer(asked.drain(..))).await,
                    failed => failed,
                }
            }
            1.. = queries.recv_many(&mut asked, QUERIES_MAX) => {
                may_block(|| applier.lock().answer(asked.drain(..))).await
            }
        };
    }
    // A node that stops reports its own reason: a failure that only results from the stop, such as that of a
    // restore, is not reported.
    if let Err(reason) = outcome
        && !lifecycle.is_stopping()
    {
        let _ = events.send(Event::Failed(reason));
    }
    asked.into_iter().for_each(forget);
    queries.close();
    // Also queries that are being queued at this moment: no sender waits with a reserved slot.
    while let Some(query) = queries.recv().await {
        forget(query);
    }
    let writing_out = applier.lock().snapshot_taker.take_thread();
    if let Some(thread) = writing_out {
        // It sees that the node stops; a panic in it is caught.
        thread.ended().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::time::Duration;

    use raftify_core::storage::MemorySnapshotStore;
    use raftify_core::{LogIndex, Member, SnapshotWriter, StableStorage};
    use tokio::sync::oneshot;

    use super::*;
    use crate::application::formatter::DefaultFormatter;
    use crate::application::log_entry::LogEntry;
    use crate::application::snapshot::Snapshot;
    use crate::apply::snapshots::TrackedSnapshots;
    use crate::error::BoxError;

    /// Adds up its input, and fails at zero, midway. It is quick below 13, and panics from 13 on.
    #[derive(Default)]
    struct Sum {
        sum: u64,
        /// Gets a stop request after the first byte of a snapshot.
        stops: Option<Lifecycle>,
    }

    impl StateMachine for Sum {
        type LogEntry = u64;
        type Reply = u64;

        fn apply(&mut self, _position: LogPosition, entry: u64) -> Result<u64, BoxError> {
            self.sum += entry;
            if entry == 0 { Err("told to fail".into()) } else { Ok(self.sum) }
        }

        fn is_quick_to_apply(&self) -> bool {
            assert!(self.sum < 13, "too much to say");
            true
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(self.sum))
        }

        fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
            reader.read_exact(&mut [0])?;
            if let Some(lifecycle) = &self.stops {
                lifecycle.stop(&StopReason::Stopped);
            }
            reader.read_exact(&mut [0])?;
            self.sum = 1;
            Ok(())
        }
    }

    struct Started<FSM: StateMachine, S = MemorySnapshotStore> {
        handle: ApplierHandle<FSM, TrackedSnapshots<S>>,
        worker: Worker,
        queries: mpsc::Sender<Query<FSM>>,
        events: mpsc::UnboundedReceiver<Event>,
    }

    async fn start() -> Started<Sum> {
        start_with(Sum::default()).await
    }

    async fn start_with<FSM: StateMachine>(state_machine: FSM) -> Started<FSM> {
        let started = start_at(None, MemorySnapshotStore::default(), state_machine, Lifecycle::new());
        while started.handle.queued.load(Ordering::Acquire) > 0 {
            tokio::task::yield_now().await;
        }
        started
    }

    fn start_at<FSM: StateMachine, S: SnapshotStore>(
        snapshot: Option<SnapshotMeta>,
        store: S,
        state_machine: FSM,
        lifecycle: Lifecycle,
    ) -> Started<FSM, S> {
        let (events, received) = mpsc::unbounded_channel();
        let (queries, asked) = mpsc::channel(1);
        let snapshots = TrackedSnapshots::new(store, lifecycle.clone());
        let start = ApplierStart {
            node_id: NodeId::FIRST,
            state_machine,
            snapshots: snapshots.clone(),
            snapshot_taker: SnapshotTaker::new(
                snapshots,
                None,
                events.clone(),
                lifecycle.clone(),
                Arc::new(NodeMetrics::unrecorded()),
            ),
            snapshot,
            recovered: LogPosition::ZERO,
            queries: asked,
            events,
            formatter: Arc::new(DefaultFormatter),
            lifecycle,
            metrics: Arc::new(NodeMetrics::unrecorded()),
        };
        let (handle, worker) = start.start().unwrap();
        Started { handle, worker, queries, events: received }
    }

    fn snapshot_meta() -> SnapshotMeta {
        let members = Members::initial([Member::voter(NodeId::FIRST, "127.0.0.1:1")]).unwrap();
        SnapshotMeta { cluster_id: ClusterId(1), position: LogPosition::new(1, 1), members }
    }

    fn committed(index: u64, number: u64) -> Vec<Committed<Reply<u64>>> {
        let payload = LogEntry::encode(&number).unwrap();
        vec![Committed::User { position: LogPosition::new(1, index), payload, reply: None }]
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes no time")
    }

    #[tokio::test]
    async fn after_a_failure_on_the_thread_nothing_is_applied_in_the_loop() {
        let Started { handle, worker, mut events, .. } = start().await;
        handle.enqueue(ToApply::Committed(committed(1, 0)));
        within(worker.ended()).await;
        assert!(matches!(events.recv().await, Some(Event::Failed(_))));
        let outcome = handle.apply(committed(2, 5));
        assert!(!matches!(outcome, Some(Event::Applied(_))), "the entry before it was skipped");
        assert_eq!(handle.applier.lock().state_machine.sum, 0);
    }

    #[tokio::test]
    async fn a_panic_in_is_quick_to_apply_is_a_failure_of_the_state_machine() {
        let Started { handle, .. } = start().await;
        assert!(matches!(handle.apply(committed(1, 13)), Some(Event::Applied(LogIndex(1)))));
        for _ in 0..2 {
            let Some(Event::Failed(StopReason::StateMachine(reason))) = handle.apply(committed(2, 1)) else {
                panic!("it must not be used any more");
            };
            assert_eq!(reason, "is_quick_to_apply panicked: too much to say");
        }
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("told to");
        }
    }

    struct Handing;

    impl StateMachine for Handing {
        type LogEntry = u64;
        type Reply = PanicsWhenDropped;

        fn apply(&mut self, _position: LogPosition, _entry: u64) -> Result<PanicsWhenDropped, BoxError> {
            Ok(PanicsWhenDropped)
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(()))
        }

        fn restore(&mut self, _reader: &mut dyn Read) -> Result<(), BoxError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_unwanted_reply_that_panics_is_a_failure_of_the_state_machine() {
        let Started { handle, mut events, .. } = start_with(Handing).await;
        let payload = LogEntry::encode(&1_u64).unwrap();
        let item = Committed::User { position: LogPosition::new(1, 1), payload, reply: None };
        handle.enqueue(ToApply::Committed(vec![item]));
        let event = within(events.recv()).await;
        assert!(matches!(event, Some(Event::Failed(StopReason::StateMachine(_)))), "{event:?}");
    }

    /// The drop of the first one panics on the thread, before it can report anything; two panics at once
    /// would end the process.
    #[tokio::test]
    async fn queries_that_panic_when_they_are_dropped_do_not_hide_why_the_node_cannot_go_on() {
        let (events, mut received) = mpsc::unbounded_channel();
        let (queries, asked) = mpsc::channel(3);
        let query = || -> Query<Sum> {
            let dropped = PanicsWhenDropped;
            Box::new(move |_| drop(dropped))
        };
        for _ in 0..3 {
            queries.try_send(query()).ok().unwrap();
        }
        let lifecycle = Lifecycle::new();
        let snapshots = TrackedSnapshots::new(MemorySnapshotStore::default(), lifecycle.clone());
        let applier = Applier {
            node_id: NodeId::FIRST,
            state_machine: Sum::default(),
            snapshots: snapshots.clone(),
            snapshot_taker: SnapshotTaker::new(
                snapshots,
                None,
                events.clone(),
                lifecycle.clone(),
                Arc::new(NodeMetrics::unrecorded()),
            ),
            members: Members::none(),
            applied: LogPosition::ZERO,
            recovered: LogPosition::ZERO,
            failure: Some(StopReason::StateMachine("of before".to_owned())),
            events,
            formatter: Arc::new(DefaultFormatter),
            metrics: Arc::new(NodeMetrics::unrecorded()),
        };
        let (work, queue) = mpsc::unbounded_channel();
        work.send(ToApply::Committed(committed(1, 1))).ok().unwrap();
        let queued = Arc::new(AtomicUsize::new(2));
        run(Arc::new(Mutex::new(applier)), None, queue, queued, asked, lifecycle).await;
        let event = received.recv().await;
        assert!(matches!(event, Some(Event::Failed(StopReason::StateMachine(_)))), "{event:?}");
    }

    /// Takes the part that it could read for the whole.
    #[derive(Default)]
    struct Careless(Vec<u8>);

    impl StateMachine for Careless {
        type LogEntry = u64;
        type Reply = ();

        fn apply(&mut self, _position: LogPosition, _entry: u64) -> Result<(), BoxError> {
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(()))
        }

        fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
            self.0 = io::BufReader::new(reader).bytes().map_while(Result::ok).collect();
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_snapshot_that_could_not_be_read_is_not_restored_whatever_the_state_machine_says() {
        let directory = tempfile::tempdir().unwrap();
        let storage = raftify_storage::HeedStorage::open(directory.path()).unwrap();
        let store = StableStorage::snapshots(&storage);
        let meta = snapshot_meta();
        let mut writer = store.create(&meta).unwrap();
        writer.write_all(&[7; 100_000]).unwrap();
        writer.finish().unwrap();
        let path = store.path(meta.position);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[90_000] ^= 1;
        std::fs::write(&path, bytes).unwrap();

        let lifecycle = Lifecycle::new();
        let Started { handle, worker, mut events, .. } =
            start_at(Some(meta), store, Careless::default(), lifecycle);
        within(worker.ended()).await;
        assert!(!handle.applier.lock().state_machine.0.is_empty(), "the first block is whole");
        let event = within(events.recv()).await;
        let Some(Event::Failed(StopReason::Storage(reason))) = event else {
            panic!("it goes on with half a state: {event:?}");
        };
        assert!(reason.contains("is damaged"), "{reason}");
    }

    #[tokio::test]
    async fn a_snapshot_that_is_being_restored_when_the_node_stops_is_read_no_further_and_is_no_failure() {
        let store = MemorySnapshotStore::default();
        let meta = snapshot_meta();
        let mut writer = store.create(&meta).unwrap();
        writer.write_all(&[1, 2]).unwrap();
        writer.finish().unwrap();
        let lifecycle = Lifecycle::new();
        let stopped_half_way = Sum { sum: 0, stops: Some(lifecycle.clone()) };
        let Started { handle, worker, mut events, .. } =
            start_at(Some(meta), store, stopped_half_way, lifecycle.clone());
        within(worker.ended()).await;
        assert!(lifecycle.is_stopping(), "it was not restored at all");
        assert_eq!(handle.applier.lock().state_machine.sum, 0, "it was read to its end");
        assert!(events.try_recv().is_err(), "the node stopped for another reason than this");
    }

    #[tokio::test]
    async fn after_a_failure_in_the_loop_no_query_is_answered() {
        let Started { handle, worker, queries, .. } = start().await;
        assert!(matches!(handle.apply(committed(1, 0)), Some(Event::Failed(_))));
        let (answered, answer) = oneshot::channel();
        let query: Query<Sum> = Box::new(move |sum| {
            let _ = answered.send(sum.map(|sum| sum.sum)); // The caller still waits.
        });
        within(queries.send(query)).await.unwrap();
        assert!(within(answer).await.is_err(), "of a state that is half way between two entries");
        within(worker.ended()).await;
    }
}
