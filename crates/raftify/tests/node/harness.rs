//! The shared test harness: a state machine that fails on command, a disk that outlives its node, and nodes
//! that are started, stopped and killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use raftify::error::{BootstrapError, NodeStartError, RunError};
use raftify::start::{BootstrapOptions, Start};
use raftify::storage::{
    HeedStorage, MemoryStorage, SnapshotStore, StableStorage, StorageError, StoredState, WalSettings, Write,
};
use raftify::{
    BoxError, ClusterJoinTicket, Config, LogEntry, LogPosition, Member, NodeId, Raft, Snapshot, StateMachine,
    WalStorage,
};
pub(crate) use raftify_free_address::free_address;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::subscriber::DefaultGuard;

/// No condition takes this long on any working machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the server of an ended node has released its port: the runtime drops the server's task a
/// little later.
pub(crate) async fn not_listening(address: &str) {
    until("the port is free", async || TcpListener::bind(address).is_ok()).await;
}

/// Waits for an event that must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// No entries before a snapshot stay in the log.
pub(crate) fn short_log() -> Config {
    Config { log_entries_kept: 0, log_bytes_kept_for_followers: 0, ..Config::default() }
}

pub(crate) fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

/// The log lines of this thread.
#[derive(Clone, Default)]
pub(crate) struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    /// Until the second value is dropped.
    pub(crate) fn from_now_on() -> (Logged, DefaultGuard) {
        let logged = Logged::default();
        let writer = logged.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        (logged, tracing::subscriber::set_default(log))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Change {
    Set {
        key: String,
        value: String,
    },
    /// Fails, fatally, on the node with this id.
    FailOn(NodeId),
    /// Panics on the node with this id.
    PanicOn(NodeId),
    /// Waits until the gate of the node is open.
    Wait,
}

pub(crate) fn set(key: impl ToString, value: impl ToString) -> Change {
    Change::Set { key: key.to_string(), value: value.to_string() }
}

/// Blocks each caller, until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<GateInner>);

#[derive(Default)]
struct GateInner {
    open: Mutex<bool>,
    opened: Condvar,
    reached: watch::Sender<bool>,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.open.lock().unwrap() = true;
        self.0.opened.notify_all();
    }

    /// Resolves when a caller is blocked.
    pub(crate) async fn reached(&self) {
        within("the gate", self.0.reached.subscribe().wait_for(|reached| *reached)).await.unwrap();
    }

    /// Blocks the caller until the gate is opened. After a failure of the test, the gate stays closed: the
    /// test still ends.
    pub(crate) fn pass(&self) {
        self.0.reached.send_replace(true);
        let open = self.0.open.lock().unwrap();
        drop(self.0.opened.wait_timeout_while(open, 2 * DEADLINE, |open| !*open).unwrap());
    }
}

/// A key-value store that fails on command.
pub(crate) struct Store {
    pub(crate) node_id: NodeId,
    pub(crate) map: BTreeMap<String, String>,
    pub(crate) gate: Gate,
    pub(crate) faults: Faults,
    pub(crate) is_quick: bool,
}

/// The faults of a store.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    pub(crate) snapshot: Arc<AtomicBool>,
    /// A captured state is written once the gate is open.
    pub(crate) slow_snapshot: Arc<AtomicBool>,
    pub(crate) restore: Arc<AtomicBool>,
}

impl StateMachine for Store {
    type LogEntry = Change;
    type Reply = Option<String>;

    fn apply(&mut self, _position: LogPosition, entry: Change) -> Result<Option<String>, BoxError> {
        match entry {
            Change::Set { key, value } => Ok(self.map.insert(key, value)),
            Change::FailOn(node) if node == self.node_id => Err("told to fail".into()),
            Change::PanicOn(node) if node == self.node_id => panic!("told to panic"),
            Change::FailOn(_) | Change::PanicOn(_) => Ok(None),
            Change::Wait => {
                self.gate.pass();
                Ok(None)
            }
        }
    }

    fn is_quick_to_apply(&self) -> bool {
        self.is_quick
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        if self.faults.snapshot.load(Ordering::SeqCst) {
            return Err("told to take no snapshot".into());
        }
        let capture = Snapshot::from_value(self.map.clone());
        if !self.faults.slow_snapshot.load(Ordering::SeqCst) {
            return Ok(capture);
        }
        let gate = self.gate.clone();
        Ok(Snapshot::new(move |writer| {
            gate.pass();
            capture.write_to(writer)
        }))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        if self.faults.restore.load(Ordering::SeqCst) {
            return Err("told not to restore".into());
        }
        self.map = Snapshot::read_value(reader)?;
        Ok(())
    }
}

pub(crate) type TestRaft = Raft<Change, Store>;

/// Runs each test, a function of the kind of disk, on both kinds of storage, and on a runtime on which small
/// writes are done in the raft loop.
macro_rules! on_both_storages {
    ($($test:ident)*) => {
        mod wal {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() { super::$test(crate::harness::DiskKind::Wal).await }
            )*
        }
        mod heed {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() { super::$test(crate::harness::DiskKind::Heed).await }
            )*
        }
    };
}
pub(crate) use on_both_storages;

#[derive(Clone, Copy, Debug)]
pub(crate) enum DiskKind {
    /// The quickest kind, for tests of other features.
    Memory,
    Wal,
    Heed,
}

/// Decides on each write; `false` makes it fail.
pub(crate) type Judge = Box<dyn FnMut(&[Write]) -> bool + Send>;

/// Storage that outlives its node. One node uses it at a time, also if it is in memory.
#[derive(Clone)]
pub(crate) struct Disk {
    content: Content,
    holder: Arc<()>,
    /// Every write fails while this is set.
    pub(crate) full: Arc<AtomicBool>,
    judge: Arc<Mutex<Option<Judge>>>,
}

#[derive(Clone)]
enum Content {
    Memory(MemoryStorage),
    Wal(Arc<TempDir>),
    Heed(Arc<TempDir>),
}

impl Disk {
    pub(crate) fn new(kind: DiskKind) -> Disk {
        let directory = || Arc::new(tempfile::tempdir().unwrap());
        let content = match kind {
            DiskKind::Memory => Content::Memory(MemoryStorage::default()),
            DiskKind::Wal => Content::Wal(directory()),
            DiskKind::Heed => Content::Heed(directory()),
        };
        Disk { content, holder: Arc::default(), full: Arc::default(), judge: Arc::default() }
    }

    /// Waits until the previous node has released it, including all readers.
    pub(crate) async fn released(&self) {
        until("the storage is closed", async || {
            Arc::strong_count(&self.holder) == 1
                && !matches!(self.open_again(), Err(StorageError::InUse { .. }))
        })
        .await;
    }

    /// Deletes all content, like a new disk.
    pub(crate) fn wipe(&mut self) {
        *self = Disk::new(match self.content {
            Content::Memory(_) => DiskKind::Memory,
            Content::Wal(_) => DiskKind::Wal,
            Content::Heed(_) => DiskKind::Heed,
        });
    }

    /// A second disk with a copy of this one's current files.
    pub(crate) fn copy(&self) -> Disk {
        let copy = Disk::new(match self.content {
            Content::Memory(_) => panic!("it is in memory"),
            Content::Wal(_) => DiskKind::Wal,
            Content::Heed(_) => DiskKind::Heed,
        });
        copy_files(self.path(), copy.path()).unwrap();
        copy
    }

    /// Lets `judge` decide on each write from now on.
    pub(crate) fn judge(&self, judge: impl FnMut(&[Write]) -> bool + Send + 'static) {
        *self.judge.lock().unwrap() = Some(Box::new(judge));
    }

    /// Every write succeeds again.
    pub(crate) fn heal(&self) {
        *self.judge.lock().unwrap() = None;
    }

    /// The directory of its files.
    pub(crate) fn path(&self) -> &Path {
        match &self.content {
            Content::Memory(_) => panic!("it is in memory"),
            Content::Wal(directory) | Content::Heed(directory) => directory.path(),
        }
    }

    /// Opens it a second time, as another program would.
    pub(crate) fn open_again(&self) -> Result<(), StorageError> {
        match &self.content {
            Content::Memory(_) => Ok(()),
            Content::Wal(directory) => WalStorage::open(directory.path()).map(drop),
            Content::Heed(directory) => HeedStorage::open(directory.path()).map(drop),
        }
    }

    /// Whether the snapshot at `position` is still kept.
    pub(crate) fn has_snapshot(&self, position: LogPosition) -> bool {
        let LogPosition { term, index } = position;
        match &self.content {
            Content::Memory(storage) => storage.snapshots().open(position).is_ok(),
            Content::Wal(directory) | Content::Heed(directory) => {
                let name = format!("snapshots/{:016x}-{:016x}.snapshot", term.get(), index.get());
                directory.path().join(name).exists()
            }
        }
    }

    /// The content of a disk in memory.
    pub(crate) fn memory(&self) -> MemoryStorage {
        match &self.content {
            Content::Memory(storage) => storage.clone(),
            Content::Wal(_) | Content::Heed(_) => panic!("it is in files"),
        }
    }

    /// `content`, held by the caller.
    pub(crate) fn held<S>(&self, content: S) -> OpenDisk<S> {
        OpenDisk {
            content,
            _held: Arc::clone(&self.holder),
            full: Arc::clone(&self.full),
            judge: Arc::clone(&self.judge),
        }
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        let copy = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            fs::create_dir_all(&copy)?;
            copy_files(&file.path(), &copy)?;
        } else {
            fs::copy(file.path(), copy)?;
        }
    }
    Ok(())
}

pub(crate) struct OpenDisk<S> {
    content: S,
    _held: Arc<()>,
    full: Arc<AtomicBool>,
    judge: Arc<Mutex<Option<Judge>>>,
}

impl<S: StableStorage> StableStorage for OpenDisk<S> {
    type LogReader = S::LogReader;
    type Snapshots = S::Snapshots;

    fn load(&mut self) -> Result<StoredState, StorageError> {
        self.content.load()
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let allowed = self.judge.lock().unwrap().as_mut().is_none_or(|judge| judge(writes));
        if !allowed || self.full.load(Ordering::SeqCst) {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(StorageError::Io { action: "write", path: "the test's disk".into(), source });
        }
        self.content.write(writes)
    }

    fn log_reader(&self) -> Self::LogReader {
        self.content.log_reader()
    }

    fn snapshots(&self) -> Self::Snapshots {
        self.content.snapshots()
    }

    fn directory(&self) -> Option<PathBuf> {
        self.content.directory()
    }
}

/// One node, with the parts that it keeps when it is down.
pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    pub(crate) address: String,
    pub(crate) disk: Disk,
    pub(crate) config: Config,
    pub(crate) gate: Gate,
    pub(crate) faults: Faults,
    /// Whether its state machine declares itself quick.
    pub(crate) is_quick: bool,
    /// The addresses at which it looks for the others while it knows no leader.
    pub(crate) discover: Vec<String>,
    running: Option<(TestRaft, JoinHandle<Result<(), RunError>>)>,
}

impl TestNode {
    pub(crate) fn new(number: u64) -> TestNode {
        TestNode::on(DiskKind::Memory, number)
    }

    pub(crate) fn on(kind: DiskKind, number: u64) -> TestNode {
        TestNode {
            id: id(number),
            address: free_address(),
            disk: Disk::new(kind),
            config: Config::default(),
            gate: Gate::default(),
            faults: Faults::default(),
            is_quick: false,
            discover: Vec::new(),
            running: None,
        }
    }

    /// The node on another disk, at another address.
    pub(crate) fn duplicate(&self, disk: Disk) -> TestNode {
        TestNode { id: self.id, disk, ..TestNode::new(self.id.get()) }
    }

    pub(crate) fn at(number: u64, address: &str) -> TestNode {
        TestNode { address: address.to_owned(), ..TestNode::new(number) }
    }

    /// The node for which a ticket was issued.
    pub(crate) fn of(ticket: &ClusterJoinTicket) -> TestNode {
        TestNode::at(ticket.reserved_id.get(), &ticket.raft_addr)
    }

    /// Bootstraps without running.
    pub(crate) fn bootstrap(&self) -> Result<TestRaft, BootstrapError> {
        // Shown for failed tests; another test of this process may have been first.
        let log =
            tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        match &self.disk.content {
            Content::Memory(storage) => self.bootstrap_with(storage.clone()),
            // With small files, which are created quickly.
            Content::Wal(directory) => {
                let settings = WalSettings { segment_bytes: 64 << 10 };
                self.bootstrap_with(WalStorage::open_with(directory.path(), settings).unwrap())
            }
            Content::Heed(directory) => self.bootstrap_with(HeedStorage::open(directory.path()).unwrap()),
        }
    }

    fn bootstrap_with(&self, storage: impl StableStorage) -> Result<TestRaft, BootstrapError> {
        let storage = self.disk.held(storage);
        let options = BootstrapOptions { discover: self.discover.clone(), ..BootstrapOptions::default() };
        Raft::bootstrap_with(self.id, &self.address, storage, self.store(), self.config.clone(), options)
    }

    /// An empty state machine of this node.
    pub(crate) fn store(&self) -> Store {
        let (gate, faults) = (self.gate.clone(), self.faults.clone());
        Store { node_id: self.id, map: BTreeMap::new(), gate, faults, is_quick: self.is_quick }
    }

    /// Bootstraps and runs, on the content of the disk. With id 1, on a fresh disk, begins a cluster alone.
    pub(crate) fn start(&mut self) -> TestRaft {
        let raft = self.bootstrap().unwrap();
        if self.id == NodeId::FIRST {
            begins_alone(&raft, &self.address);
        }
        self.run(raft)
    }

    /// Starts with one call, on a disk in memory.
    pub(crate) async fn start_as(&mut self, start: impl Into<Start>) -> Result<TestRaft, NodeStartError> {
        let (storage, options) = (self.disk.held(self.disk.memory()), BootstrapOptions::default());
        let (start, address) = (start.into(), self.address.clone());
        let raft = Raft::start(start, address, storage, self.store(), self.config.clone(), options).await?;
        self.id = raft.id();
        Ok(self.run(raft))
    }

    pub(crate) fn run(&mut self, raft: TestRaft) -> TestRaft {
        self.running = Some((raft.clone(), tokio::spawn(raft.clone().run())));
        raft
    }

    /// The running node.
    pub(crate) fn raft(&self) -> &TestRaft {
        &self.running.as_ref().expect("the node was started").0
    }

    pub(crate) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    /// Stops the node in order.
    pub(crate) async fn stop(&mut self) {
        within("the node to quit", self.raft().quit()).await;
        self.ended().await.unwrap();
    }

    /// Waits until `run` has returned.
    pub(crate) async fn ended(&mut self) -> Result<(), RunError> {
        let (_, task) = self.running.take().expect("the node was started");
        let outcome = within("the node to end", task).await.unwrap();
        self.disk.released().await;
        not_listening(&self.address).await;
        outcome
    }

    /// Ends the node without a stop request.
    pub(crate) async fn kill(&mut self) {
        let (_, task) = self.running.take().expect("the node was started");
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        self.disk.released().await;
        not_listening(&self.address).await;
    }

    /// A node's value of a key, by a linearizable read.
    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        get(self.raft(), key).await
    }
}

/// Makes a bootstrapped node begin a cluster alone. On a used disk, this has no effect.
pub(crate) fn begins_alone<E, S>(raft: &Raft<E, S>, address: &str)
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let first = raft.add_peers([Member::voter(raft.id(), address)]);
    first.now_or_never().expect("nothing is waited for").unwrap();
}

/// A linearizable read, repeated while there is no leader.
pub(crate) async fn get(raft: &TestRaft, key: &str) -> Option<String> {
    let mut result = None;
    until("a read is served", async || {
        let key = key.to_owned();
        match raft.query(move |store| store.map.get(&key).cloned()).await {
            Ok(value) => {
                result = value;
                true
            }
            Err(_) => false,
        }
    })
    .await;
    result
}

/// Proposes until it is accepted. Only for entries that may be applied twice.
pub(crate) async fn put(raft: &TestRaft, key: impl ToString, value: impl ToString) {
    let change = set(key, value);
    until("a proposal is accepted", async || raft.propose(change.clone()).await.is_ok()).await;
}

/// Nodes 1 to `count` with the list of members with which each is started.
pub(crate) fn static_nodes(count: u64) -> (Vec<TestNode>, Vec<Member>) {
    static_nodes_on(DiskKind::Memory, count)
}

pub(crate) fn static_nodes_on(kind: DiskKind, count: u64) -> (Vec<TestNode>, Vec<Member>) {
    let nodes: Vec<TestNode> = (1..=count).map(|number| TestNode::on(kind, number)).collect();
    let members = nodes.iter().map(|node| Member::voter(node.id, &node.address)).collect();
    (nodes, members)
}

pub(crate) async fn start_static(node: &mut TestNode, members: &[Member]) -> TestRaft {
    let raft = node.bootstrap().unwrap();
    raft.add_peers(members.to_vec()).await.unwrap();
    node.run(raft)
}

/// A cluster of `count` nodes that know their leader.
pub(crate) async fn static_cluster(count: u64) -> Vec<TestNode> {
    static_cluster_on(DiskKind::Memory, count).await
}

pub(crate) async fn static_cluster_on(kind: DiskKind, count: u64) -> Vec<TestNode> {
    let (mut nodes, members) = static_nodes_on(kind, count);
    for node in &mut nodes {
        start_static(node, &members).await;
    }
    agreed_leader(&nodes).await;
    nodes
}

/// Waits until all nodes that are up follow one leader that is up, and returns its index among them.
pub(crate) async fn agreed_leader(nodes: &[TestNode]) -> usize {
    let mut place = None;
    until("there is a leader", async || {
        let up = || nodes.iter().filter(|node| node.is_up());
        place = nodes.iter().position(|node| node.is_up() && node.raft().is_leader());
        place.is_some_and(|place| up().all(|node| node.raft().leader_id() == Some(nodes[place].id)))
    })
    .await;
    place.unwrap()
}

pub(crate) async fn ticket(address: &str, member: &TestNode) -> ClusterJoinTicket {
    let mut ticket = None;
    until("a ticket is given", async || {
        ticket = TestRaft::request_id(address, &member.address).await.ok();
        ticket.is_some()
    })
    .await;
    ticket.unwrap()
}

/// Starts a new node and admits it through `member`.
pub(crate) async fn join(member: &TestNode) -> TestNode {
    let address = free_address();
    let ticket = ticket(&address, member).await;
    let mut node = TestNode { address, ..TestNode::new(ticket.reserved_id.get()) };
    let raft = node.start();
    join_with(&raft, ticket).await;
    node
}

/// Changes are made one at a time; a concurrent change is retried.
pub(crate) async fn join_with(raft: &TestRaft, ticket: ClusterJoinTicket) {
    until("the node is let in", async || raft.join_cluster(vec![ticket.clone()]).await.is_ok()).await;
}

/// A cluster of `count` nodes that have joined one after the other.
pub(crate) async fn joined_cluster(count: u64) -> Vec<TestNode> {
    let mut nodes = vec![TestNode::new(1)];
    nodes[0].start();
    within("the first leader", nodes[0].raft().wait_for_leader()).await.unwrap();
    for _ in 1..count {
        let node = join(&nodes[0]).await;
        nodes.push(node);
    }
    nodes
}
