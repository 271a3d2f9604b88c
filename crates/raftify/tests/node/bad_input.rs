//! Invalid input is rejected when the node is set up, with the reason and the remedy.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use raftify::client::ClientError;
use raftify::error::{BootstrapError, ProposeError, RunError, StartError, StopReason};
use raftify::storage::{MemoryStorage, StorageError};
use raftify::{BoxError, Config, LogEntry, LogPosition, NodeId, Raft, RaftClient, Snapshot, StateMachine};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;

on_both_storages! {
    a_directory_of_another_node_is_refused_with_the_way_out
    a_directory_on_disk_is_held_by_one_node_at_a_time_and_found_again
    a_connection_whose_other_end_hangs_does_not_keep_the_directory
    a_damaged_snapshot_is_blamed_on_the_storage_and_not_on_the_state_machine
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    for bad in [
        "nowhere",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        ":60061",
        "::1:60061",
        "a b:1",
        "127.0.0.1:99999",
    ] {
        let node = TestNode::at(1, bad);
        let error = node.bootstrap().unwrap_err();
        assert!(matches!(error, BootstrapError::Address(_)), "{bad}: {error}");
        assert!(error.to_string().contains(bad), "{error}");
    }
}

#[tokio::test]
async fn a_host_that_does_not_resolve_is_refused() {
    let node = TestNode::at(1, "no-such-host.invalid:60061");
    let error = node.bootstrap().unwrap_err();
    assert!(matches!(error, BootstrapError::Unresolved { .. }), "{error}");
}

#[tokio::test]
async fn an_address_of_another_machine_cannot_be_listened_on() {
    // An address range for documentation, which no machine has (RFC 5737).
    let node = TestNode::at(1, "192.0.2.1:60061");
    let error = node.bootstrap().unwrap_err();
    assert!(matches!(error, BootstrapError::Listen { .. }), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_refused_and_nothing_is_written() {
    let first = TestNode::new(1);
    let held = first.bootstrap().unwrap();
    let second = TestNode::at(1, &first.address);
    let error = second.bootstrap().unwrap_err();
    assert!(matches!(&error, BootstrapError::PortTaken { address } if *address == first.address), "{error}");
    second.disk.released().await;
    drop(held);
    second.bootstrap().unwrap();
}

#[tokio::test]
async fn all_problems_of_a_configuration_are_named_at_once() {
    let mut node = TestNode::new(1);
    node.config = Config { entry_bytes_max: 0, request_queue_max: 0, ..Config::default() };
    let error = node.bootstrap().unwrap_err();
    let BootstrapError::Config(error) = error else { panic!("{error}") };
    assert_eq!(error.problems.len(), 2, "{error}");
}

async fn a_directory_of_another_node_is_refused_with_the_way_out(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    node.stop().await;
    node.id = id(2);
    let error = node.bootstrap().unwrap_err();
    assert!(matches!(error, BootstrapError::Start(StartError::OtherNode { .. })), "{error}");
    assert!(error.to_string().contains("use the directory of node 2, or start it with id 1"), "{error}");
    node.id = id(1);
    node.start();
    assert_eq!(node.get("key").await, Some("value".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn an_entry_over_the_limit_is_refused_on_every_node_and_nothing_is_written() {
    let (mut nodes, members) = static_nodes(3);
    for node in &mut nodes {
        node.config = Config { entry_bytes_max: 100, ..Config::default() };
        start_static(node, &members).await;
    }
    agreed_leader(&nodes).await;
    for node in &nodes {
        put(node.raft(), "small", "").await;
        let error = node.raft().propose(set("large", "x".repeat(100))).await.unwrap_err();
        assert_eq!(error, ProposeError::TooLarge { bytes: 108, limit: 100 });
        assert_eq!(node.get("large").await, None);
    }
}

/// An entry that a newer program proposes.
#[derive(Serialize, Deserialize)]
enum NewerChange {
    Set { key: String, value: String },
    FailOn(u64),
    PanicOn(u64),
    Wait,
    Forget { key: String },
}

struct NewerStore;

impl StateMachine for NewerStore {
    type LogEntry = NewerChange;
    type Reply = Option<String>;

    fn apply(&mut self, _: LogPosition, _: NewerChange) -> Result<Option<String>, BoxError> {
        Err("only its types are used".into())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Err("only its types are used".into())
    }

    fn restore(&mut self, _: &mut dyn std::io::Read) -> Result<(), BoxError> {
        Err("only its types are used".into())
    }
}

/// In the log it would stop every node, at each start, permanently.
#[tokio::test]
async fn an_entry_that_this_program_cannot_decode_is_refused_before_it_is_in_the_log() {
    let nodes = static_cluster(3).await;
    agreed_leader(&nodes).await;
    for node in &nodes {
        let client = RaftClient::<NewerChange, NewerStore>::new([node.address.clone()]).unwrap();
        let error = client.propose(&NewerChange::Forget { key: "key".to_owned() }).await.unwrap_err();
        assert!(matches!(error, ClientError::Answer(ProposeError::Undecodable(_))), "{error:?}");
        let change = NewerChange::Set { key: node.id.to_string(), value: "value".to_owned() };
        until("what it can decode is accepted", async || client.propose(&change).await.is_ok()).await;
    }
    for node in &nodes {
        assert_eq!(node.get("3").await, Some("value".to_owned()));
    }
}

/// postcard writes the value, but its bytes do not identify the variant to read.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u64),
    Text(String),
}

struct UntaggedStore;

impl StateMachine for UntaggedStore {
    type LogEntry = Untagged;
    type Reply = ();

    fn apply(&mut self, _: LogPosition, _: Untagged) -> Result<(), BoxError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(()))
    }

    fn restore(&mut self, _: &mut dyn std::io::Read) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_entry_that_its_own_type_cannot_decode_is_refused_before_it_is_in_the_log() {
    let (address, storage) = (free_address(), MemoryStorage::default());
    let raft = Raft::bootstrap(NodeId::FIRST, &address, storage, UntaggedStore, Config::default()).unwrap();
    begins_alone(&raft, &address);
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await.unwrap();
    for entry in [Untagged::Number(1), Untagged::Text("one".to_owned())] {
        let error = raft.propose(entry).await.unwrap_err();
        assert!(matches!(error, ProposeError::Undecodable(_)), "{error:?}");
    }
    raft.read_index().await.unwrap();
    raft.quit().await;
    within("the end", running).await.unwrap().unwrap();
}

/// Serde attributes with which an entry cannot be decoded, or decodes to another one.
#[derive(Serialize, Deserialize)]
enum Treacherous {
    #[serde(skip)]
    #[allow(dead_code, reason = "it stands before the others")]
    Local,
    Insert(u64),
    Remove(u64),
    Document {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        title: Option<String>,
        body: String,
    },
}

/// A store that fails as soon as an entry is applied.
struct TreacherousStore;

impl StateMachine for TreacherousStore {
    type LogEntry = Treacherous;
    type Reply = ();

    fn apply(&mut self, _: LogPosition, _: Treacherous) -> Result<(), BoxError> {
        Err("it must not come to this".into())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(()))
    }

    fn restore(&mut self, _: &mut dyn std::io::Read) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_entry_that_is_decoded_as_another_or_not_at_all_is_refused_at_any_size_on_each_way() {
    let (address, storage) = (free_address(), MemoryStorage::default());
    let raft =
        Raft::bootstrap(NodeId::FIRST, &address, storage, TreacherousStore, Config::default()).unwrap();
    begins_alone(&raft, &address);
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await.unwrap();
    let client = RaftClient::<Treacherous, TreacherousStore>::new([address]).unwrap();
    let document = |bytes| Treacherous::Document { title: None, body: "x".repeat(bytes) };
    let entries =
        || [Treacherous::Insert(7), Treacherous::Remove(7), document(10), document(2000), document(4 << 20)];
    for (entry, same) in entries().into_iter().zip(entries()) {
        let error = client.propose(&same).await.unwrap_err();
        assert!(matches!(error, ClientError::Answer(ProposeError::Undecodable(_))), "{error:?}");
        let error = raft.propose(entry).await.unwrap_err();
        assert!(matches!(error, ProposeError::Undecodable(_)), "{error:?}");
    }
    raft.read_index().await.unwrap();
    raft.quit().await;
    within("the end", running).await.unwrap().unwrap();
}

/// How often the entry was encoded, and decoded.
static ENCODED: AtomicUsize = AtomicUsize::new(0);
static DECODED: AtomicUsize = AtomicUsize::new(0);

struct CountsItself;

impl LogEntry for CountsItself {
    fn encode(&self) -> Result<Bytes, BoxError> {
        ENCODED.fetch_add(1, Ordering::SeqCst);
        Ok(Bytes::from_static(b"an entry"))
    }

    fn decode(_: &[u8]) -> Result<CountsItself, BoxError> {
        DECODED.fetch_add(1, Ordering::SeqCst);
        Ok(CountsItself)
    }
}

/// Applies an entry once the gate is open.
struct Waits(Gate);

impl StateMachine for Waits {
    type LogEntry = CountsItself;
    type Reply = ();

    fn apply(&mut self, _: LogPosition, _: CountsItself) -> Result<(), BoxError> {
        self.0.pass();
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(()))
    }

    fn restore(&mut self, _: &mut dyn std::io::Read) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_busy_node_neither_encodes_nor_checks_what_it_refuses() {
    let (address, storage, gate) = (free_address(), MemoryStorage::default(), Gate::default());
    let config = Config { proposals_in_flight_max: 1, ..Config::default() };
    let raft = Raft::bootstrap(NodeId::FIRST, &address, storage, Waits(gate.clone()), config).unwrap();
    begins_alone(&raft, &address);
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await.unwrap();
    let first = tokio::spawn({
        let raft = raft.clone();
        async move { raft.propose(CountsItself).await }
    });
    gate.reached().await;
    let counted = || (ENCODED.load(Ordering::SeqCst), DECODED.load(Ordering::SeqCst));
    let before = counted();
    for _ in 0..100 {
        assert_eq!(raft.propose(CountsItself).await, Err(ProposeError::Busy { waiting: 1 }));
    }
    assert_eq!(counted(), before);
    gate.open();
    within("the first", first).await.unwrap().unwrap();
    raft.quit().await;
    within("the end", running).await.unwrap().unwrap();
}

async fn a_directory_on_disk_is_held_by_one_node_at_a_time_and_found_again(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    for round in 0..3 {
        let raft = node.start();
        put(&raft, round, "value").await;
        if round > 0 {
            assert_eq!(node.get(&(round - 1).to_string()).await, Some("value".to_owned()));
            raft.make_snapshot().await.unwrap();
        }
        let error = node.disk.open_again().unwrap_err();
        assert!(matches!(error, StorageError::InUse { .. }), "{error}");
        within("quit", raft.quit()).await;
        // The directory is closed when `quit` returns.
        node.disk.open_again().unwrap();
        node.ended().await.unwrap();
    }
}

async fn a_connection_whose_other_end_hangs_does_not_keep_the_directory(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    let mut hung = TcpStream::connect(&node.address).await.unwrap();
    // The start of HTTP/2, with empty settings; no bytes follow.
    hung.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    within("the server's settings", hung.read_exact(&mut [0; 9])).await.unwrap();
    within("quit", raft.quit()).await;
    node.disk.open_again().unwrap();
    node.ended().await.unwrap();
    drop(hung);
}

async fn a_damaged_snapshot_is_blamed_on_the_storage_and_not_on_the_state_machine(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    let raft = node.start();
    put(&raft, "key", "x".repeat(10_000)).await;
    raft.make_snapshot().await.unwrap();
    node.stop().await;

    let files = std::fs::read_dir(node.disk.path().join("snapshots")).unwrap();
    let paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(paths.len(), 1);
    let mut content = std::fs::read(&paths[0]).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&paths[0], content).unwrap();

    node.start();
    let error = node.ended().await.unwrap_err();
    assert!(matches!(&error, RunError::Stopped(StopReason::Storage(_))), "{error}");
    assert!(error.to_string().contains("is damaged"), "{error}");
}
