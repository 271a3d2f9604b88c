//! The effects of the state machine, and of its failures.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use raftify::error::{ProposeError, ReadError, RunError, StopReason, UnknownOutcome};
use raftify::storage::{Entry, EntryKind, HardState, MemoryStorage, StableStorage, StoredState, Write};
use raftify::{BoxError, Config, LogEntry, LogPosition, NodeId, Raft, Snapshot, StateMachine};

use crate::harness::*;

/// A node whose panic may take long: its backtrace is printed first.
fn panicking_node() -> TestNode {
    let mut node = TestNode::new(1);
    let long = Duration::from_secs(60);
    node.config = Config { propose_timeout: long, read_timeout: long, ..Config::default() };
    node
}

/// Proposes an entry that stops the node, and starts the node again: it must stop for the same reason, since
/// no entry is skipped.
async fn stops_the_node_again_and_again(poison: Change, reason: &str) {
    let mut node = panicking_node();
    let raft = node.start();
    put(&raft, "key", "value").await;
    let said = |error: &StopReason| matches!(error, StopReason::StateMachine(text) if text.contains(reason));
    let error = raft.propose(poison).await.unwrap_err();
    let ProposeError::Unknown(UnknownOutcome::NodeStopped(why)) = &error else { panic!("{error:?}") };
    assert!(said(why), "{error:?}");
    for _ in 0..2 {
        let error = node.ended().await.unwrap_err();
        assert!(matches!(&error, RunError::Stopped(error) if said(error)), "{error:?}");
        node.start();
    }
    let error = node.ended().await.unwrap_err();
    assert!(matches!(&error, RunError::Stopped(error) if said(error)), "{error:?}");
}

#[tokio::test]
async fn an_apply_that_fails_stops_the_node_and_is_not_skipped() {
    stops_the_node_again_and_again(Change::FailOn(id(1)), "told to fail").await;
}

#[tokio::test]
async fn an_apply_that_panics_stops_the_node_and_is_not_skipped() {
    stops_the_node_again_and_again(Change::PanicOn(id(1)), "told to panic").await;
}

#[tokio::test]
async fn a_query_that_panics_stops_the_node() {
    let mut node = panicking_node();
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    let error = raft.query(|_| panic!("a bad question")).await.map(|(): ()| ()).unwrap_err();
    assert!(matches!(error, ReadError::Stopped(_)), "{error:?}");
    let error = node.ended().await.unwrap_err();
    assert!(error.to_string().contains("a bad question"), "{error}");
}

#[tokio::test]
async fn a_node_whose_state_machine_fails_leaves_the_others_in_service() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let follower = (leader + 1) % 3;
    let reply = nodes[leader].raft().propose(Change::FailOn(nodes[follower].id)).await;
    assert_eq!(reply, Ok(None));
    assert!(matches!(
        nodes[follower].ended().await.unwrap_err(),
        RunError::Stopped(StopReason::StateMachine(_))
    ));
    put(nodes[leader].raft(), "key", "value").await;
    for node in nodes.iter_mut().filter(|node| node.is_up()) {
        node.stop().await;
    }
}

#[tokio::test]
async fn queries_between_batches_see_the_callers_own_writes() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    let write_and_read = async |key: &str| {
        for number in 0..100 {
            put(&raft, key, number).await;
            assert_eq!(get(&raft, key).await, Some(number.to_string()));
        }
    };
    tokio::join!(write_and_read("a"), write_and_read("b"), write_and_read("c"));
    node.stop().await;
}

/// An entry in a custom format, which not every byte string matches.
#[derive(Clone)]
struct Text(&'static [u8]);

impl LogEntry for Text {
    fn encode(&self) -> Result<Bytes, BoxError> {
        if self.0.is_empty() { Err("there is no text".into()) } else { Ok(Bytes::from_static(self.0)) }
    }

    fn decode(bytes: &[u8]) -> Result<Text, BoxError> {
        std::str::from_utf8(bytes)?;
        Ok(Text(b"decoded"))
    }
}

/// Replies wrongly to batches when `short` is set.
struct Texts {
    short: bool,
}

impl StateMachine for Texts {
    type LogEntry = Text;
    type Reply = u64;

    fn apply(&mut self, position: LogPosition, _entry: Text) -> Result<u64, BoxError> {
        Ok(position.index.get())
    }

    fn apply_batch(&mut self, entries: Vec<(LogPosition, Text)>) -> Result<Vec<u64>, BoxError> {
        let short = usize::from(self.short);
        entries.into_iter().skip(short).map(|(position, entry)| self.apply(position, entry)).collect()
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(BTreeMap::<u64, u64>::new()))
    }

    fn restore(&mut self, _reader: &mut dyn Read) -> Result<(), BoxError> {
        Ok(())
    }
}

fn texts(short: bool, storage: &MemoryStorage) -> Raft<Text, Texts> {
    let (address, state_machine, config) = (free_address(), Texts { short }, Config::default());
    let raft = Raft::bootstrap(NodeId::FIRST, &address, storage.clone(), state_machine, config).unwrap();
    begins_alone(&raft, &address);
    raft
}

async fn run_texts(short: bool, text: &'static [u8]) -> (Result<u64, ProposeError>, Result<(), RunError>) {
    let raft = texts(short, &MemoryStorage::default());
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await.unwrap();
    let reply = within("the reply", raft.propose(Text(text))).await;
    within("quit", raft.quit()).await;
    (reply, running.await.unwrap())
}

#[tokio::test]
async fn a_committed_entry_that_cannot_be_decoded_stops_the_node_with_its_place_and_length() {
    let mut storage = MemoryStorage::default();
    let raft = texts(false, &storage);
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await.unwrap();
    within("quit", raft.quit()).await;
    running.await.unwrap().unwrap();

    // Another version of the program wrote this one.
    let StoredState { hard_state, last, .. } = storage.load().unwrap();
    let position = LogPosition { term: hard_state.term, index: last.index.next() };
    let entry = Entry { position, kind: EntryKind::User, payload: Bytes::from_static(b"\xff\xfe\xfd") };
    let hard_state = Some(HardState { commit: position.index, ..hard_state });
    storage.write(&[Write { append: vec![entry], hard_state, ..Write::default() }]).unwrap();
    let error = within("the end", texts(false, &storage).run()).await.unwrap_err().to_string();
    assert!(error.contains("of term") && error.contains("(3 bytes) cannot be decoded"), "{error}");
}

#[tokio::test]
async fn an_entry_that_cannot_be_encoded_is_refused_and_nothing_happens() {
    let (reply, outcome) = run_texts(false, b"").await;
    assert_eq!(reply, Err(ProposeError::Encode("there is no text".to_owned())));
    assert!(outcome.is_ok());
}

#[tokio::test]
async fn a_batch_with_too_few_replies_stops_the_node() {
    let (reply, outcome) = run_texts(true, b"text").await;
    let Err(ProposeError::Unknown(UnknownOutcome::NodeStopped(why))) = reply else { panic!("{reply:?}") };
    assert!(matches!(why, StopReason::StateMachine(_)), "{why}");
    assert!(outcome.unwrap_err().to_string().contains("0 replies to 1 entries"));
}

/// Fails, and panics on drop.
struct Fragile;

impl Drop for Fragile {
    fn drop(&mut self) {
        panic!("told to, when dropped");
    }
}

impl StateMachine for Fragile {
    type LogEntry = u8;
    type Reply = ();

    fn apply(&mut self, _position: LogPosition, _entry: u8) -> Result<(), BoxError> {
        Err("told to fail".into())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(()))
    }

    fn restore(&mut self, _reader: &mut dyn Read) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_state_machine_that_panics_when_it_is_dropped_does_not_hide_why_the_node_has_ended() {
    // The thread or the loop may be the last owner.
    for _ in 0..20 {
        let address = free_address();
        let (storage, config) = (MemoryStorage::default(), Config::default());
        let raft = Raft::<u8, Fragile>::bootstrap(id(1), &address, storage, Fragile, config).unwrap();
        begins_alone(&raft, &address);
        let running = tokio::spawn(raft.clone().run());
        within("a leader", raft.wait_for_leader()).await.unwrap();
        raft.propose(7).await.unwrap_err();
        let error = within("the end", running).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("told to fail"), "{error}");
    }
}

/// A program written with the earlier names of the traits.
mod earlier_names {
    use std::io::Read;

    use raftify::{AbstractLogEntry, AbstractStateMachine, BoxError, LogPosition, Snapshot};

    pub(super) struct Word(pub(super) String);

    impl AbstractLogEntry for Word {
        fn encode(&self) -> Result<bytes::Bytes, BoxError> {
            Ok(self.0.clone().into())
        }

        fn decode(bytes: &[u8]) -> Result<Word, BoxError> {
            Ok(Word(String::from_utf8(bytes.to_vec())?))
        }
    }

    #[derive(Default)]
    pub(super) struct Words(String);

    impl AbstractStateMachine for Words {
        type LogEntry = Word;
        type Reply = String;

        fn apply(&mut self, _: LogPosition, Word(word): Word) -> Result<String, BoxError> {
            self.0.push_str(&word);
            Ok(self.0.clone())
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(self.0.clone()))
        }

        fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
            self.0 = Snapshot::read_value(reader)?;
            Ok(())
        }
    }
}

#[tokio::test]
async fn earlier_names_of_the_traits_and_getters_compile_and_mean_the_same() {
    use earlier_names::{Word, Words};

    let storage = MemoryStorage::default();
    let raft = Raft::begin(free_address(), storage, Words::default(), Config::default()).await.unwrap();
    assert_eq!(raft.propose(Word("one ".to_owned())).await.unwrap(), "one ");
    assert_eq!(raft.propose(Word("two".to_owned())).await.unwrap(), "one two");
    assert_eq!((raft.get_id(), raft.get_leader_id()), (raft.id(), raft.leader_id()));
    assert_eq!((raft.get_peers(), raft.get_cluster_size()), (raft.members(), raft.cluster_size()));
    raft.quit().await;
}
