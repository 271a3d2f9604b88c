//! The limits cover the memory in use: no data from the network keeps its receive buffer alive.
//!
//! The tests measure all live allocations of the process, so they run one after the other.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raftify::client::ClientError;
use raftify::error::{ProposeError, RunError};
use raftify::storage::WalSettings;
use raftify::{
    BoxError, Config, LogPosition, Member, NodeId, Raft, RaftClient, Snapshot, StateMachine, WalStorage,
};
use raftify_free_address::free_address;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Counts allocations with the overhead of an allocator: 8 bytes more, in steps of 16.
struct Counting;

static LIVE_BYTES: AtomicU64 = AtomicU64::new(0);
/// The peak of live bytes.
static PEAK_BYTES: AtomicU64 = AtomicU64::new(0);

fn taken(bytes: usize) -> u64 {
    (bytes as u64 + 8).next_multiple_of(16)
}

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; this one passes everything on")]
// SAFETY: all calls go to the system's allocator with unchanged arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = LIVE_BYTES.fetch_add(taken(layout.size()), Ordering::Relaxed);
        PEAK_BYTES.fetch_max(before + taken(layout.size()), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time.
static MEASURING: Mutex<()> = Mutex::const_new(());

const CLIENTS: u64 = 100;
/// For the buffers of connections, whose size depends on the load of the machine, and does not grow with the
/// entries. A receive buffer that is kept for each entry takes 8 KiB: for 2000 entries eight times as much.
const BUFFERS_BYTES: u64 = 2 << 20;
const SNAPSHOT_BYTES: usize = 64 << 20;

/// Keeps no state, and has large snapshots.
struct Nothing;

impl StateMachine for Nothing {
    type LogEntry = String;
    type Reply = String;

    fn apply(&mut self, _: LogPosition, entry: String) -> Result<String, BoxError> {
        Ok(entry)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::new(|writer| {
            let part = [7; 1 << 12];
            for _ in 0..SNAPSHOT_BYTES / part.len() {
                writer.write_all(&part)?;
            }
            Ok(())
        }))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        let mut part = [0; 1 << 12];
        while reader.read(&mut part)? > 0 {}
        Ok(())
    }
}

/// No snapshot is taken automatically: all entries stay in the log, and in its cache.
fn config() -> Config {
    Config {
        snapshot_entries: None,
        snapshot_log_bytes: None,
        log_cache_bytes: 1 << 30,
        log_entries_kept: 0,
        log_bytes_kept_for_followers: 0,
        snapshot_bytes_per_second_max: None,
        ..Config::default()
    }
}

struct Node {
    raft: Raft<String, Nothing>,
    running: JoinHandle<Result<(), RunError>>,
    /// The log is on disk, or else it would be in memory twice.
    _directory: TempDir,
}

impl Node {
    async fn start(id: NodeId, members: &[Member]) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let storage =
            WalStorage::open_with(directory.path(), WalSettings { segment_bytes: 4 << 20 }).unwrap();
        let address = members.iter().find(|member| member.id == id).unwrap().address.clone();
        let raft = Raft::bootstrap(id, address, storage, Nothing, config()).unwrap();
        raft.add_peers(members.to_vec()).await.unwrap();
        let run = raft.clone().run();
        let running = tokio::spawn(async move {
            let outcome = run.await;
            if let Err(error) = &outcome {
                println!("node {id} has ended: {error}");
            }
            outcome
        });
        Node { raft, running, _directory: directory }
    }

    async fn stop(self) {
        self.raft.quit().await;
        self.running.await.unwrap().unwrap();
    }
}

fn members(count: u64) -> Vec<Member> {
    (1..=count).map(|id| Member::voter(NodeId::new(id).unwrap(), free_address())).collect()
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Proposes this many entries of 20 bytes; every reply is the proposed entry.
async fn propose(client: &RaftClient<String, Nothing>, count: u64) {
    let proposing: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                for entry in 0..count / CLIENTS {
                    let entry = format!("{number:09} {entry:09}");
                    // A very busy machine occasionally drops a connection. A repeated entry is harmless.
                    let mut answer = client.propose(&entry).await;
                    while matches!(answer, Err(ClientError::Answer(ProposeError::Unknown(_)))) {
                        answer = client.propose(&entry).await;
                    }
                    assert_eq!(answer.unwrap(), entry);
                }
            })
        })
        .collect();
    for proposing in proposing {
        proposing.await.unwrap();
    }
}

/// How many entries are proposed: `MEMORY_ENTRIES`, or enough for a result in a few seconds.
fn entries() -> u64 {
    std::env::var("MEMORY_ENTRIES").map_or(2_000, |count| count.parse().unwrap())
}

/// Proposes this many entries through a remote client to a cluster of this many nodes.
async fn small_entries_cost_at_most_half_more_than_is_counted(nodes: u64, entries: u64) {
    let _alone = MEASURING.lock().await;
    let members = members(nodes);
    let mut nodes = Vec::new();
    for member in &members {
        nodes.push(Node::start(member.id, &members).await);
    }
    let client = RaftClient::new(members.iter().map(|member| member.address.clone())).unwrap();
    let counted = async || {
        let mut sum = 0;
        for node in &nodes {
            sum += node.raft.inspect().await.unwrap().log_cache_bytes;
        }
        sum
    };
    let all_applied = async || {
        let applied: Vec<_> = nodes.iter().map(|node| node.raft.status().borrow().applied).collect();
        applied.iter().all(|index| *index == applied[0])
    };
    // All one-time allocations are made then.
    propose(&client, 5 * CLIENTS).await;
    until("all have applied all", all_applied).await;
    let (live_before, counted_before) = (LIVE_BYTES.load(Ordering::Relaxed), counted().await);
    propose(&client, entries).await;
    until("all have applied all", all_applied).await;
    let counted = counted().await - counted_before;
    assert!(counted > nodes.len() as u64 * entries * 20, "only {counted} bytes are in the cache");
    let live = || LIVE_BYTES.load(Ordering::Relaxed).saturating_sub(live_before);
    println!("{entries} entries on {} nodes: {} bytes are alive, {counted} are counted", nodes.len(), live());
    let may_be_alive = counted * 3 / 2 + BUFFERS_BYTES;
    until("at most half more is alive than is counted", async || live() <= may_be_alive).await;
    drop(client);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_remote_proposals_in_the_log_cache_cost_at_most_half_more_than_is_counted() {
    small_entries_cost_at_most_half_more_than_is_counted(1, entries()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_appended_entries_in_the_log_cache_cost_at_most_half_more_than_is_counted() {
    small_entries_cost_at_most_half_more_than_is_counted(3, entries()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_on_its_way_takes_the_memory_of_a_few_chunks() {
    let _alone = MEASURING.lock().await;
    let members = members(3);
    let (first, second) =
        (Node::start(members[0].id, &members).await, Node::start(members[1].id, &members).await);
    first.raft.wait_for_leader().await.unwrap();
    first.raft.propose("an entry".to_owned()).await.unwrap();
    for node in [&first, &second] {
        node.raft.wait_for_leader().await.unwrap();
        until("it has applied the entry", async || node.raft.status().borrow().applied.0 > 0).await;
        node.raft.make_snapshot().await.unwrap();
    }
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    let third = Node::start(members[2].id, &members).await;
    until("the third has a snapshot", async || third.raft.status().borrow().snapshot.is_some()).await;
    let taken = PEAK_BYTES.load(Ordering::Relaxed) - before;
    println!("a snapshot of {SNAPSHOT_BYTES} bytes took {taken} bytes");
    assert!(taken < SNAPSHOT_BYTES as u64 / 4, "it took {taken} bytes");
    for node in [first, second, third] {
        node.stop().await;
    }
}
