//! Snapshots: taken, restored, sent.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use raftify::error::{ProposeError, RunError, SnapshotError, StopReason};
use raftify::storage::{
    MemoryLogReader, MemorySnapshotReader, MemorySnapshotStore, MemorySnapshotWriter, MemoryStorage, Write,
};
use raftify::storage::{
    SnapshotDigest, SnapshotMeta, SnapshotStore, StableStorage, StorageError, StoredState,
};
use raftify::{Config, LogPosition, Member, Raft};

use crate::harness::*;

on_both_storages! {
    a_restart_restores_the_snapshot_and_applies_what_came_after
    snapshots_are_taken_by_themselves_and_old_ones_are_deleted
    a_follower_that_was_away_for_too_long_catches_up_by_a_snapshot
}

async fn a_restart_restores_the_snapshot_and_applies_what_came_after(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    node.config = short_log();
    let raft = node.start();
    put(&raft, "before", "1").await;
    let position = raft.make_snapshot().await.unwrap();
    put(&raft, "after", "2").await;
    assert_eq!(raft.status().borrow().snapshot, Some(position));
    assert_eq!(raft.status().borrow().truncated, position);
    node.stop().await;
    let raft = node.start();
    assert_eq!(raft.status().borrow().truncated, position);
    assert_eq!(node.get("before").await, Some("1".to_owned()));
    assert_eq!(node.get("after").await, Some("2".to_owned()));
    node.stop().await;
}

async fn snapshots_are_taken_by_themselves_and_old_ones_are_deleted(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    node.config = Config { snapshot_entries: Some(10), ..short_log() };
    let raft = node.start();
    let mut taken = Vec::new();
    let mut count = 0;
    // One slow snapshot may replace several others.
    while count < 100 || taken.len() < 4 {
        put(&raft, count, count).await;
        count += 1;
        taken.extend(raft.status().borrow().snapshot);
        taken.dedup();
    }
    until("the first is deleted", async || !node.disk.has_snapshot(taken[0])).await;
    assert!(raft.status().borrow().truncated.index.get() > 10);
    node.kill().await;
    node.start();
    for number in 0..count {
        assert_eq!(node.get(&number.to_string()).await, Some(number.to_string()));
    }
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_starts_with_a_snapshot_of_all_there_is_serves_reads() {
    let mut nodes = static_cluster(3).await;
    loop {
        put(nodes[0].raft(), "key", "value").await;
        let follower = (agreed_leader(&nodes).await + 1) % 3;
        let snapshot = nodes[follower].raft().make_snapshot().await.unwrap();
        nodes[follower].stop().await;
        nodes[follower].start();
        assert_eq!(nodes[follower].get("key").await.as_deref(), Some("value"));
        let read = nodes[follower].raft().read_index().await;
        if nodes[follower].raft().status().borrow().last == snapshot {
            // No entry was added meanwhile that could have shown that the snapshot is restored.
            assert!(read.is_ok(), "{read:?}");
            break;
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_was_begun_before_a_request_is_no_answer_to_it() {
    let mut node = TestNode::new(1);
    node.faults.slow_snapshot.store(true, Ordering::SeqCst);
    let raft = node.start();
    put(&raft, "before", "1").await;
    let first = tokio::spawn({
        let raft = raft.clone();
        async move { raft.make_snapshot().await }
    });
    node.gate.reached().await;
    put(&raft, "after", "2").await;
    let acknowledged = raft.status().borrow().commit;
    let mut second = pin!(raft.make_snapshot());
    assert!(second.as_mut().now_or_never().is_none());
    // The previous request has reached the node.
    raft.inspect().await.unwrap();
    node.gate.open();
    let second = within("a snapshot", second).await.unwrap();
    assert!(second.index >= acknowledged, "{second} was asked for after {acknowledged} was acknowledged");
    let first = within("a snapshot", first).await.unwrap().unwrap();
    assert!(first.index < acknowledged, "it was begun before");
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_taken_leaves_the_node_in_service() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    node.faults.snapshot.store(true, Ordering::SeqCst);
    let error = raft.make_snapshot().await.unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Failed(text) if text.contains("told to take no snapshot")),
        "{error}"
    );
    put(&raft, "key", "still in service").await;
    node.faults.snapshot.store(false, Ordering::SeqCst);
    raft.make_snapshot().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_before_any_cluster_is_refused() {
    let mut node = TestNode::new(5);
    let raft = node.start();
    assert_eq!(raft.make_snapshot().await, Err(SnapshotError::NothingApplied));
    node.stop().await;
}

#[tokio::test]
async fn a_restore_that_fails_stops_the_node_and_is_tried_again_at_the_next_start() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    raft.make_snapshot().await.unwrap();
    node.stop().await;
    node.faults.restore.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        node.start();
        let error = node.ended().await.unwrap_err();
        let RunError::Stopped(StopReason::StateMachine(text)) = &error else { panic!("{error:?}") };
        assert!(text.contains("restoring the snapshot") && text.contains("told not to restore"), "{text}");
    }
    node.faults.restore.store(false, Ordering::SeqCst);
    node.start();
    assert_eq!(node.get("key").await, Some("value".to_owned()));
    node.stop().await;
}

/// Writes `count` values of `bytes` each, and waits until the log before them is deleted on every node that
/// is up, regardless of the current leader.
async fn outrun(nodes: &[TestNode], count: u64, bytes: usize) {
    let up: Vec<&TestRaft> = nodes.iter().filter(|node| node.is_up()).map(TestNode::raft).collect();
    let value = "x".repeat(bytes);
    for number in 0..count {
        put(up[0], number, &value).await;
    }
    let mut last = None;
    until("what was written is committed", async || {
        last = up[0].read_index().await.ok();
        last.is_some()
    })
    .await;
    for raft in up {
        until("the log is cut", async || {
            raft.make_snapshot().await.unwrap();
            Some(raft.status().borrow().truncated.index) >= last
        })
        .await;
    }
}

/// Three nodes, one of which is down, while `count` values of `bytes` each were written and truncated from
/// the log. Returns the leader and the node that is down.
async fn one_was_outrun(kind: DiskKind, count: u64, bytes: usize) -> (Vec<TestNode>, usize, usize) {
    let (mut nodes, members) = static_nodes_on(kind, 3);
    for node in &mut nodes {
        node.config = short_log();
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    let away = (leader + 1) % 3;
    nodes[away].kill().await;
    outrun(&nodes, count, bytes).await;
    (nodes, leader, away)
}

async fn a_follower_that_was_away_for_too_long_catches_up_by_a_snapshot(kind: DiskKind) {
    // More than a gRPC message may contain.
    let (mut nodes, leader, away) = one_was_outrun(kind, 40, 200_000).await;
    let raft = nodes[away].start();
    let position = nodes[leader].raft().status().borrow().snapshot;
    assert!(position.is_some());
    until("it has the snapshot", async || raft.status().borrow().snapshot >= position).await;
    assert_eq!(nodes[away].get("39").await.map(|value| value.len()), Some(200_000));
    put(nodes[away].raft(), "key", "value").await;
    // The installed snapshot survives a restart.
    nodes[away].kill().await;
    nodes[away].start();
    assert_eq!(nodes[away].get("0").await.map(|value| value.len()), Some(200_000));
    assert_eq!(nodes[away].get("key").await, Some("value".to_owned()));
}

/// How many bytes have arrived of the snapshot that the node is receiving.
fn incoming_bytes(node: &TestNode) -> u64 {
    let files = std::fs::read_dir(node.disk.path().join("snapshots")).unwrap().map(|file| file.unwrap());
    let incoming = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "incoming"));
    // The file may be renamed meanwhile.
    incoming.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[tokio::test]
async fn a_new_member_that_was_killed_while_it_received_the_snapshot_goes_on_with_it() {
    let mut first = TestNode::on(DiskKind::Wal, 1);
    first.config = Config { snapshot_bytes_per_second_max: Some(8 << 20), ..short_log() };
    first.start();
    let nodes = [first];
    outrun(&nodes, 80, 200_000).await;
    let address = free_address();
    let ticket = ticket(&address, &nodes[0]).await;
    let mut joiner = TestNode::on(DiskKind::Wal, ticket.reserved_id.get());
    joiner.address = address;
    let joining = joiner.start();
    let joining = tokio::spawn(async move { joining.join_cluster(vec![ticket]).await });
    until("a part of the snapshot is there", async || incoming_bytes(&joiner) >= 4 << 20).await;
    joiner.kill().await;
    drop(joining.await.unwrap());
    assert!(incoming_bytes(&joiner) >= 4 << 20);

    let (logged, _log) = Logged::from_now_on();
    let raft = joiner.start();
    until("it has the snapshot", async || raft.status().borrow().snapshot.is_some()).await;
    let log = logged.text();
    let begun = log.lines().find(|line| line.contains("receiving a snapshot")).expect("it was received");
    let begin_at = begun.split("begin_at=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(begin_at.parse::<u64>().unwrap() >= 4_000_000, "{begun}");
    assert_eq!(joiner.get("79").await.map(|value| value.len()), Some(200_000));
    assert_eq!(incoming_bytes(&joiner), 0);
}

#[tokio::test]
async fn a_follower_whose_restore_fails_stops_and_catches_up_when_it_starts_again() {
    let (mut nodes, _, away) = one_was_outrun(DiskKind::Memory, 10, 100).await;
    nodes[away].faults.restore.store(true, Ordering::SeqCst);
    nodes[away].start();
    let error = nodes[away].ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stopped(StopReason::StateMachine(_))), "{error}");
    nodes[away].faults.restore.store(false, Ordering::SeqCst);
    nodes[away].start();
    assert_eq!(nodes[away].get("9").await.map(|value| value.len()), Some(100));
}

#[tokio::test]
async fn a_new_member_that_got_a_snapshot_only_votes_and_leads() {
    let mut nodes = vec![TestNode::new(1)];
    nodes[0].config = short_log();
    nodes[0].start();
    put(nodes[0].raft(), "key", "value").await;
    outrun(&nodes, 10, 100).await;
    let node = join(&nodes[0]).await;
    nodes.push(node);
    assert_eq!(nodes[1].get("key").await, Some("value".to_owned()));
    let new = nodes[1].id;
    until("it leads", async || nodes[0].raft().transfer_leader(new).await == Ok(new)).await;
    put(nodes[0].raft(), "key", "new").await;
    assert_eq!(nodes[1].get("key").await, Some("new".to_owned()));
    let peers = nodes[1].raft().members();
    let addresses: Vec<&Member> = peers.iter().collect();
    assert_eq!(addresses.len(), 2);
}

/// In memory; a reader of a snapshot blocks at the gate.
struct HeldReads {
    memory: MemoryStorage,
    snapshots: HeldSnapshots,
}

#[derive(Clone)]
struct HeldSnapshots {
    store: MemorySnapshotStore,
    gate: Gate,
    /// One additional reference for each reader.
    readers: Arc<()>,
}

struct HeldReader {
    reader: MemorySnapshotReader,
    gate: Gate,
    _reader: Arc<()>,
}

impl StableStorage for HeldReads {
    type LogReader = MemoryLogReader;
    type Snapshots = HeldSnapshots;

    fn load(&mut self) -> Result<StoredState, StorageError> {
        self.memory.load()
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        self.memory.write(writes)
    }

    fn log_reader(&self) -> MemoryLogReader {
        self.memory.log_reader()
    }

    fn snapshots(&self) -> HeldSnapshots {
        self.snapshots.clone()
    }
}

impl SnapshotStore for HeldSnapshots {
    type Writer = MemorySnapshotWriter;
    type Reader = HeldReader;

    fn create(&self, meta: &SnapshotMeta) -> Result<MemorySnapshotWriter, StorageError> {
        self.store.create(meta)
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(MemorySnapshotWriter, SnapshotDigest), StorageError> {
        self.store.receive(meta, announced, is_wanted)
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, HeldReader), StorageError> {
        let (meta, digest, reader) = self.store.open(position)?;
        let (gate, _reader) = (self.gate.clone(), Arc::clone(&self.readers));
        Ok((meta, digest, HeldReader { reader, gate, _reader }))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        self.store.retain(keep)
    }
}

impl Read for HeldReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.gate.pass();
        self.reader.read(buffer)
    }
}

#[tokio::test]
async fn work_on_a_snapshot_does_not_outlive_run() {
    let (gate, readers, memory) = (Gate::default(), Arc::new(()), MemoryStorage::default());
    let store = memory.snapshots();
    let snapshots = HeldSnapshots { store, gate: gate.clone(), readers: Arc::clone(&readers) };
    let node = TestNode::new(1);
    let config = short_log();
    let storage = HeldReads { memory, snapshots };
    let raft = Raft::bootstrap(node.id, &node.address, storage, node.store(), config).unwrap();
    begins_alone(&raft, &node.address);
    let running = tokio::spawn(raft.clone().run());
    put(&raft, "key", "value").await;
    raft.make_snapshot().await.unwrap();

    let ticket = ticket(&free_address(), &node).await;
    let mut follower = TestNode::of(&ticket);
    let joining = follower.start();
    let joining = tokio::spawn(async move { joining.join_cluster(vec![ticket]).await });
    gate.reached().await;
    let (logged, _log) = Logged::from_now_on();
    let quitting = raft.clone();
    let quitting = tokio::spawn(async move { quitting.quit().await });
    until("it stops", async || matches!(raft.propose(set("late", "")).await, Err(ProposeError::Stopped(_))))
        .await;
    // All other work has ended by then.
    let warning = "shutdown has been blocked for 5 s on reads of the log, or work on snapshots";
    until(warning, async || logged.text().contains(warning)).await;
    assert!(!running.is_finished());
    gate.open();
    within("the end", running).await.unwrap().unwrap();
    // The snapshots of this storage are gone with it, and so is the reader: the rest belongs to this test.
    assert_eq!(Arc::strong_count(&readers), 1, "the snapshot is still being read");
    within("quit", quitting).await.unwrap();
    follower.stop().await;
    drop(joining.await.unwrap());
}
