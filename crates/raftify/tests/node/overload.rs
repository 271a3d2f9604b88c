//! What a node that is busy does with further requests, and what callers that wait hold.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raftify::error::{ProposeError, ReadError};
use raftify::storage::MemoryStorage;
use raftify::{BoxError, Config, LogEntry, LogPosition, NodeId, Raft, Snapshot, StateMachine};

use crate::harness::*;

/// How often an entry was encoded.
static ENCODED: AtomicUsize = AtomicUsize::new(0);

struct CountsItself;

impl LogEntry for CountsItself {
    fn encode(&self) -> Result<Bytes, BoxError> {
        ENCODED.fetch_add(1, Ordering::SeqCst);
        Ok(Bytes::from_static(&[7; 100]))
    }

    fn decode(_: &[u8]) -> Result<CountsItself, BoxError> {
        Ok(CountsItself)
    }
}

/// Counts the entries, each once the gate is open.
struct Counts(Gate, u64);

impl StateMachine for Counts {
    type LogEntry = CountsItself;
    type Reply = u64;

    fn apply(&mut self, _: LogPosition, _: CountsItself) -> Result<u64, BoxError> {
        self.0.pass();
        self.1 += 1;
        Ok(self.1)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(self.1))
    }

    fn restore(&mut self, _: &mut dyn std::io::Read) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Two proposals of 100 bytes fit, because each counts with what it takes beside its entry.
#[tokio::test]
async fn the_limit_counts_what_is_held_and_what_it_refuses_is_not_encoded_and_has_no_effect() {
    let limit = 3000;
    let config = Config {
        entry_bytes_max: limit,
        message_bytes_max: 1024,
        uncommitted_bytes_max: limit,
        ..Config::default()
    };
    let (address, gate) = (free_address(), Gate::default());
    let (storage, machine) = (MemoryStorage::default(), Counts(gate.clone(), 0));
    let raft = Raft::bootstrap(NodeId::FIRST, &address, storage, machine, config).unwrap();
    begins_alone(&raft, &address);
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await.unwrap();
    let propose = || {
        let raft = raft.clone();
        tokio::spawn(async move { raft.propose(CountsItself).await })
    };
    let first = propose();
    gate.reached().await;
    let last = raft.status().borrow().last;
    let second = propose();
    let mut status = raft.status();
    within("the second to be in the log", status.wait_for(|status| status.last > last)).await.unwrap();
    let last = raft.status().borrow().last;
    // The size of the third is not known before it is encoded.
    assert_eq!(raft.propose(CountsItself).await, Err(ProposeError::Busy { waiting: 3 }));
    let encoded = ENCODED.load(Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(raft.propose(CountsItself).await, Err(ProposeError::Busy { waiting: 2 }));
    }
    assert_eq!(ENCODED.load(Ordering::SeqCst), encoded);
    assert_eq!(raft.status().borrow().last, last, "a refused entry is in the log");
    gate.open();
    assert_eq!(within("the first", first).await.unwrap(), Ok(1));
    assert_eq!(within("the second", second).await.unwrap(), Ok(2));
    // There is room again.
    assert_eq!(raft.propose(CountsItself).await, Ok(3));
    raft.quit().await;
    within("the end", running).await.unwrap().unwrap();
}

/// What a waiting proposal counts for, beside its entry: `OVERHEAD_BYTES` in `channels/in_flight.rs`. Its
/// future may take most of it: reply channel and tables take less than the rest.
const OVERHEAD_BYTES: usize = 1024;

#[tokio::test]
async fn the_future_of_a_caller_that_waits_is_counted() {
    let raft = TestNode::new(1).bootstrap().unwrap();
    let (proposal, read) = (size_of_val(&raft.propose(set("key", 1))), size_of_val(&raft.read_index()));
    println!("the future of a proposal takes {proposal} bytes, that of a read {read}");
    assert!(proposal <= OVERHEAD_BYTES - 256, "{proposal}");
    assert!(read <= OVERHEAD_BYTES - 256, "{read}");
}

#[tokio::test]
async fn a_query_waits_once_for_its_index_and_for_a_busy_state_machine() {
    let mut node = TestNode::new(1);
    node.config = Config { read_timeout: Duration::from_millis(500), ..Config::default() };
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    let (entered, has_entered) = std::sync::mpsc::channel();
    let (open, opened) = std::sync::mpsc::channel::<()>();
    let slow = tokio::spawn({
        let raft = raft.clone();
        async move {
            let query = move |store: &Store| {
                entered.send(()).unwrap();
                opened.recv().unwrap();
                store.map.len()
            };
            raft.query(query).await
        }
    });
    within("the slow query", tokio::task::spawn_blocking(move || has_entered.recv())).await.unwrap().unwrap();
    let late = within("an answer", raft.query(|store| store.map.len())).await;
    assert_eq!(late, Err(ReadError::TimedOut(Duration::from_millis(500))));
    open.send(()).unwrap();
    // Its caller has not waited longer than the other.
    drop(within("the slow query", slow).await.unwrap());
    put(&raft, "key", "value").await;
    assert_eq!(raft.query(|store| store.map.len()).await, Ok(1));
    node.stop().await;
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("told to");
    }
}

/// The raft loop refuses a read without a leader: the query's closure, which is user code, is dropped there.
#[tokio::test]
async fn a_query_that_panics_when_it_is_dropped_unanswered_does_not_stop_the_raft_loop() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let survivor = (leader + 1) % 3;
    nodes[survivor].stop().await;
    nodes[survivor].config.read_timeout = Duration::from_millis(500);
    for place in [leader, (leader + 2) % 3] {
        nodes[place].kill().await;
    }
    let raft = nodes[survivor].start();
    let content = PanicsWhenDropped;
    let query = move |_: &Store| {
        let _held = &content;
    };
    assert_eq!(within("an answer", raft.query(query)).await, Err(ReadError::NoLeader));
    raft.inspect().await.unwrap();
    nodes[survivor].stop().await;
}
