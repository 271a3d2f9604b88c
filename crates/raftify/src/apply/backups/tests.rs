//! Callers that take nothing, go away, come back, and are too many.

use std::io::Write;

use raftify_core::storage::MemorySnapshotStore;
use raftify_core::{ClusterId, Config, Member, Members, NodeId, SnapshotMeta, SnapshotWriter, Term};

use super::*;
use crate::channels::backups::{BackupWanted, backup_calls, request};
use crate::channels::reply::Reply;
use crate::channels::request_queue::{RequestReceiver, request_queue};

const BYTES: usize = 3 * CHUNK_BYTES + 17;

/// The backups of a node without a raft loop.
struct Node {
    store: TrackedSnapshots<MemorySnapshotStore>,
    status: watch::Sender<Status>,
    requests: RequestReceiver<LocalRequestMsg<Reply<()>>>,
    calls: mpsc::Sender<BackupCall>,
    lifecycle: Lifecycle,
    blocking: Blocking,
}

fn at(index: u64) -> LogPosition {
    LogPosition::new(1, index)
}

/// Different for each index.
fn data(index: u64) -> Vec<u8> {
    (0..BYTES as u64).map(|byte| (byte / 1000 + byte * index) as u8).collect()
}

fn begins(index: u64, bytes: usize) -> Option<BackupReceived> {
    let digest = SnapshotDigest::default().followed_by(&data(index)[..bytes]);
    Some(BackupReceived { position: at(index), digest })
}

impl Node {
    fn start() -> Node {
        let config = Config { snapshot_bytes_per_second_max: None, ..Config::default() }.check().unwrap();
        let status = Status { term: Term(1), ..Status::initial(NodeId::FIRST) };
        let (status, lifecycle) = (watch::Sender::new(status), Lifecycle::new());
        let store = TrackedSnapshots::new(MemorySnapshotStore::default(), lifecycle.clone());
        let (queue, requests) = request_queue(8, 1 << 20);
        let (blocking, metrics) = (Blocking::new(), Arc::new(NodeMetrics::unrecorded()));
        let (calls, called) = backup_calls();
        let backups = Backups::new(
            store.clone(),
            status.subscribe(),
            queue,
            config,
            blocking.clone(),
            lifecycle.clone(),
            metrics,
        );
        tokio::spawn(backups.run(called));
        Node { store, status, requests, calls, lifecycle, blocking }
    }

    /// The node has taken a snapshot, and uses no other.
    fn put(&self, index: u64) {
        let members = Members::initial([Member::voter(NodeId::FIRST, "127.0.0.1:1")]).unwrap();
        let meta = SnapshotMeta { cluster_id: ClusterId(1), position: at(index), members };
        let mut writer = self.store.create(&meta).unwrap();
        writer.write_all(&data(index)).unwrap();
        writer.finish().unwrap();
        self.status.send_modify(|status| status.snapshot = Some(at(index)));
        self.store.retain(&[at(index)]).unwrap();
    }

    fn ask(&self, received: Option<BackupReceived>) -> mpsc::Receiver<BackupPart> {
        let wanted = BackupWanted { newest: true, received, ..BackupWanted::default() };
        request(&self.calls, wanted).unwrap()
    }

    fn has(&self, index: u64) -> bool {
        self.store.open(at(index)).is_ok()
    }
}

async fn head(parts: &mut mpsc::Receiver<BackupPart>) -> BackupHead {
    loop {
        match parts.recv().await {
            Some(BackupPart::Waiting) => {}
            Some(BackupPart::Head(head)) => return head,
            other => panic!("{other:?}"),
        }
    }
}

/// The data up to the end.
async fn rest(parts: &mut mpsc::Receiver<BackupPart>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(part) = parts.recv().await {
        let BackupPart::Data { data, .. } = part else { panic!("{part:?}") };
        all.extend(data);
    }
    all
}

async fn refused(parts: &mut mpsc::Receiver<BackupPart>) -> BackupRefused {
    loop {
        match parts.recv().await {
            Some(BackupPart::Waiting) => {}
            Some(BackupPart::Refused(refused)) => return refused,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_taken_first_and_what_is_copied_is_the_newest() {
    let mut node = Node::start();
    node.put(5);
    let mut parts = request(&node.calls, BackupWanted::default()).unwrap();
    let Some(LocalRequestMsg::MakeSnapshot { reply }) = node.requests.recv().await else {
        panic!("no snapshot is asked for");
    };
    // Slower than any other wait: the caller gets signs of life.
    for _ in 0..10 {
        assert!(matches!(parts.recv().await, Some(BackupPart::Waiting)));
    }
    node.put(9);
    reply.answer(Ok(at(9)));
    let head = head(&mut parts).await;
    assert_eq!((head.meta.position, head.begin_at), (at(9), 0));
    assert!(rest(&mut parts).await == data(9));
    assert_eq!(head.digest, SnapshotDigest::default().followed_by(&data(9)));
}

#[tokio::test(start_paused = true)]
async fn without_a_snapshot_the_newest_is_refused_and_so_is_one_that_cannot_be_taken() {
    let mut node = Node::start();
    assert_eq!(refused(&mut node.ask(None)).await, BackupRefused::NoSnapshot);
    let mut parts = request(&node.calls, BackupWanted::default()).unwrap();
    let Some(LocalRequestMsg::MakeSnapshot { reply }) = node.requests.recv().await else {
        panic!("no snapshot is asked for");
    };
    reply.answer(Err(SnapshotError::NothingApplied));
    let expected = BackupRefused::Snapshot(SnapshotError::NothingApplied);
    assert_eq!(refused(&mut parts).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_nothing_loses_its_backup_and_holds_its_snapshot_only_for_a_while() {
    let node = Node::start();
    node.put(5);
    let mut idle = node.ask(None);
    assert_eq!(head(&mut idle).await.meta.position, at(5));
    node.put(6);
    assert!(node.has(5), "it is being read");
    // The clock advances when no task has anything to do.
    sleep(Config::default().snapshot_chunk_timeout + SIGN_OF_LIFE + Duration::from_secs(1)).await;
    assert!(matches!(idle.recv().await, Some(BackupPart::Data { offset: 0, .. })));
    assert!(idle.recv().await.is_none(), "the rest was given up");
    assert!(node.has(5), "the caller may come back");
    sleep(KEPT_FOR).await;
    node.blocking.ended().await;
    assert!(!node.has(5) && node.has(6));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_back_continues_and_with_other_data_begins_again() {
    let node = Node::start();
    node.put(5);
    let mut first = node.ask(None);
    head(&mut first).await;
    node.put(6);
    drop(first);
    let had = CHUNK_BYTES + 3;
    let mut again = node.ask(begins(5, had));
    let continued = head(&mut again).await;
    assert_eq!((continued.meta.position, continued.begin_at), (at(5), had as u64));
    assert!(rest(&mut again).await == data(5)[had..]);
    // Also if all has arrived.
    let mut again = node.ask(begins(6, BYTES));
    assert_eq!(head(&mut again).await.begin_at, BYTES as u64);
    assert!(rest(&mut again).await.is_empty());

    let other = BackupReceived { position: at(6), ..begins(5, had).unwrap() };
    let longer = BackupReceived {
        digest: SnapshotDigest { data_bytes: u64::MAX, crc32c: 0 },
        ..begins(6, had).unwrap()
    };
    let gone = begins(4, had).unwrap();
    for received in [other, longer, gone] {
        let mut parts = node.ask(Some(received));
        let begun = head(&mut parts).await;
        assert_eq!((begun.meta.position, begun.begin_at), (at(6), 0), "{received:?}");
        assert!(rest(&mut parts).await == data(6));
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_snapshot_of_the_last_interrupted_backup_is_kept() {
    let node = Node::start();
    for index in [5, 6, 7] {
        node.put(index);
        let mut parts = node.ask(None);
        head(&mut parts).await;
        drop(parts);
        // Until it is noticed: the next part is passed.
        sleep(Duration::from_millis(10)).await;
        node.blocking.ended().await;
    }
    node.put(8);
    assert_eq!([5, 6, 7, 8].map(|index| node.has(index)), [false, false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_backups_at_a_time_is_limited() {
    let node = Node::start();
    node.put(5);
    let (mut first, mut second) = (node.ask(None), node.ask(None));
    head(&mut first).await;
    head(&mut second).await;
    let busy = BackupRefused::Busy { under_way: BACKUPS_MAX as u64 };
    assert_eq!(refused(&mut node.ask(None)).await, busy);
    assert!(rest(&mut first).await == data(5));
    let mut third = node.ask(None);
    head(&mut third).await;
    assert!(rest(&mut third).await == data(5) && rest(&mut second).await == data(5));
}

#[tokio::test(start_paused = true)]
async fn a_backup_has_a_lowest_rate_and_ends() {
    let node = Node::start();
    node.put(5);
    let slowest = BackupWanted { newest: true, bytes_per_second_max: Some(1), ..BackupWanted::default() };
    let mut parts = request(&node.calls, slowest).unwrap();
    head(&mut parts).await;
    let begin = Instant::now();
    assert!(rest(&mut parts).await == data(5));
    // The clock is that of the test.
    let seconds = BYTES as f64 / RATE_MIN as f64;
    let took = begin.elapsed().as_secs_f64();
    assert!((seconds * 0.9..seconds * 1.1).contains(&took), "{took} s, {seconds} s were expected");
}

#[tokio::test(start_paused = true)]
async fn a_backup_ends_with_its_node_and_holds_nothing_then() {
    let node = Node::start();
    node.put(5);
    let mut parts = node.ask(None);
    head(&mut parts).await;
    node.lifecycle.stop(&raftify_core::error::StopReason::Stopped);
    while let Some(part) = parts.recv().await {
        assert!(matches!(part, BackupPart::Data { .. } | BackupPart::Refused(_)), "{part:?}");
    }
    node.calls.closed().await;
    assert!(request(&node.calls, BackupWanted::default()).is_err());
    node.blocking.ended().await;
}
