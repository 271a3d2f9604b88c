//! A state machine that keeps its own state, in files, and whose snapshots are sets of files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raftify::error::{BootstrapError, RunError, SnapshotError};
use raftify::storage::{EntryKind, StableStorage};
use raftify::{BoxError, LogPosition, Member, NodeId, Raft, Snapshot, StateMachine};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::*;

/// The calls of a state machine, over all its restarts.
#[derive(Clone, Default)]
struct Calls {
    applied: Arc<AtomicU64>,
    restored: Arc<AtomicU64>,
}

impl Calls {
    fn counted(&self) -> (u64, u64) {
        (self.applied.load(Ordering::SeqCst), self.restored.load(Ordering::SeqCst))
    }
}

const RECORD_BYTES: usize = 24;

/// A list of numbers, each with its position, in `state-<generation>/<number of the file>`. Only the last
/// file grows.
struct Journal {
    root: PathBuf,
    generation: u64,
    last_file: u64,
    numbers: Vec<u64>,
    at: LogPosition,
    calls: Calls,
}

impl Journal {
    fn open(root: PathBuf, calls: Calls) -> Result<Journal, BoxError> {
        let names: Vec<String> = fs::read_dir(&root)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, BoxError>>()?;
        let generation = |name: &String| name.strip_prefix("state-")?.parse::<u64>().ok();
        let newest = names.iter().filter_map(generation).max();
        for name in names.iter().filter(|name| generation(name) != newest) {
            fs::remove_dir_all(root.join(name))?;
        }
        let mut journal = Journal {
            root,
            generation: newest.unwrap_or_default(),
            last_file: 0,
            numbers: Vec::new(),
            at: LogPosition::ZERO,
            calls,
        };
        fs::create_dir_all(journal.state())?;
        journal.load();
        Ok(journal)
    }

    fn state(&self) -> PathBuf {
        self.root.join(format!("state-{}", self.generation))
    }

    /// The content of the files. An incomplete last record is dropped.
    fn load(&mut self) {
        (self.last_file, self.at) = (0, LogPosition::ZERO);
        self.numbers.clear();
        while let Ok(bytes) = fs::read(self.state().join(self.last_file.to_string())) {
            for record in bytes.chunks_exact(RECORD_BYTES) {
                let number = |at: usize| u64::from_be_bytes(record[at..at + 8].try_into().unwrap());
                self.at = LogPosition::new(number(0), number(8));
                self.numbers.push(number(16));
            }
            self.last_file += 1;
        }
    }
}

impl StateMachine for Journal {
    type LogEntry = u64;
    type Reply = usize;

    fn apply(&mut self, position: LogPosition, number: u64) -> Result<usize, BoxError> {
        if self.numbers.contains(&number) {
            // Proposed again because its outcome was unknown.
            return Ok(self.numbers.len());
        }
        self.calls.applied.fetch_add(1, Ordering::SeqCst);
        let path = self.state().join(self.last_file.to_string());
        let record = [position.term.get(), position.index.get(), number].map(u64::to_be_bytes).concat();
        // Never synced: the file may lag behind.
        File::options().append(true).create(true).open(path)?.write_all(&record)?;
        self.at = position;
        self.numbers.push(number);
        Ok(self.numbers.len())
    }

    fn applied(&self) -> LogPosition {
        self.at
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        let checkpoint = self.root.join(format!("checkpoint-{}", self.at.index));
        fs::create_dir(&checkpoint)?;
        // From here on, the file that grew so far no longer changes either.
        self.last_file += 1;
        for file in 0..self.last_file {
            let file = file.to_string();
            if self.state().join(&file).exists() {
                fs::hard_link(self.state().join(&file), checkpoint.join(&file))?;
            } else {
                File::create(checkpoint.join(&file))?;
            }
        }
        // No file may be missing in the sequence.
        File::options().append(true).create(true).open(self.state().join(self.last_file.to_string()))?;
        Ok(Snapshot::from_directory(checkpoint))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.calls.restored.fetch_add(1, Ordering::SeqCst);
        let unpacked = self.root.join("unpacked");
        Snapshot::read_directory(reader, &unpacked)?;
        let old = self.state();
        self.generation += 1;
        fs::rename(unpacked, self.state())?;
        fs::remove_dir_all(old)?;
        self.load();
        Ok(())
    }
}

type JournalRaft = Raft<u64, Journal>;

struct JournalNode {
    id: NodeId,
    address: String,
    disk: Disk,
    root: TempDir,
    calls: Calls,
    running: Option<(JournalRaft, JoinHandle<Result<(), RunError>>)>,
}

impl JournalNode {
    fn new(number: u64) -> JournalNode {
        JournalNode {
            id: id(number),
            address: free_address(),
            disk: Disk::new(DiskKind::Memory),
            root: tempfile::tempdir().unwrap(),
            calls: Calls::default(),
            running: None,
        }
    }

    fn bootstrap(&self) -> Result<JournalRaft, BootstrapError> {
        let journal = Journal::open(self.root.path().to_owned(), self.calls.clone()).unwrap();
        let config = short_log();
        let storage = self.disk.held(self.disk.memory());
        let raft = Raft::bootstrap(self.id, &self.address, storage, journal, config)?;
        if self.id == id(1) {
            begins_alone(&raft, &self.address);
        }
        Ok(raft)
    }

    fn start(&mut self) {
        let raft = self.bootstrap().unwrap();
        self.running = Some((raft.clone(), tokio::spawn(raft.run())));
    }

    fn raft(&self) -> &JournalRaft {
        &self.running.as_ref().expect("the node was started").0
    }

    async fn kill(&mut self) {
        let (_, task) = self.running.take().expect("the node was started");
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        self.disk.released().await;
        not_listening(&self.address).await;
    }

    async fn put(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            until("a proposal is accepted", async || self.raft().propose(number).await.is_ok()).await;
        }
    }

    async fn numbers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        until("a read is served", async || {
            match self.raft().query(|journal| journal.numbers.clone()).await {
                Ok(found) => {
                    numbers = found;
                    true
                }
                Err(_) => false,
            }
        })
        .await;
        numbers
    }

    /// Removes the last `count` records from the state, as a power failure may.
    fn lose_records(&self, count: usize) {
        let mut journal = Journal::open(self.root.path().to_owned(), Calls::default()).unwrap();
        for _ in 0..count {
            let mut file = journal.last_file;
            let path = loop {
                file -= 1;
                let path = journal.state().join(file.to_string());
                if fs::metadata(&path).unwrap().len() > 0 {
                    break path;
                }
            };
            // Files of a checkpoint are hard links: the truncation is done in a copy.
            let bytes = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - RECORD_BYTES]).unwrap();
            journal.load();
        }
    }
}

/// A node that was killed after fifteen numbers, with a snapshot of the first ten.
async fn killed_after_15() -> JournalNode {
    let mut node = JournalNode::new(1);
    node.start();
    node.put(0..10).await;
    node.raft().make_snapshot().await.unwrap();
    node.put(10..15).await;
    node.kill().await;
    node
}

#[tokio::test]
async fn a_state_machine_on_disk_goes_on_where_it_was() {
    let mut node = killed_after_15().await;
    assert_eq!(node.calls.counted(), (15, 0));

    node.start();
    node.put(15..16).await;
    assert_eq!(node.numbers().await, (0..16).collect::<Vec<_>>());
    assert_eq!(node.calls.counted(), (16, 0), "nothing was restored, and nothing applied twice");
    node.kill().await;
}

#[tokio::test]
async fn a_state_machine_on_disk_that_lags_behind_gets_what_it_misses() {
    let mut node = killed_after_15().await;
    node.lose_records(3);
    node.start();
    assert_eq!(node.numbers().await, (0..15).collect::<Vec<_>>());
    assert_eq!(node.calls.counted(), (18, 0), "it is after the snapshot: the log has all of it");
    node.kill().await;

    node.lose_records(7);
    node.start();
    assert_eq!(node.numbers().await, (0..15).collect::<Vec<_>>());
    assert_eq!(node.calls.counted(), (23, 1), "it is before the snapshot");
    node.raft().make_snapshot().await.unwrap();
    node.kill().await;
}

#[tokio::test]
async fn a_state_machine_that_is_ahead_of_the_log_or_of_another_is_refused() {
    let mut node = JournalNode::new(1);
    node.start();
    node.put(0..5).await;
    node.kill().await;

    let log_ends_at = node.disk.memory().load().unwrap().last;
    let record = |term: u64, index: u64| [term, index, 7].map(u64::to_be_bytes).concat();
    let state = node.root.path().join("state-0");
    let cases = [
        (log_ends_at.term.get(), log_ends_at.index.get() + 1, "this node's log ends at"),
        (log_ends_at.term.get() + 7, log_ends_at.index.get(), "that entry is of term"),
    ];
    for (term, index, why) in cases {
        let kept = fs::read(state.join("0")).unwrap();
        fs::write(state.join("0"), [kept.clone(), record(term, index)].concat()).unwrap();
        let error = node.bootstrap().unwrap_err();
        assert!(matches!(error, BootstrapError::StateMachine { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
        fs::write(state.join("0"), kept).unwrap();
    }
    node.start();
    assert_eq!(node.numbers().await.len(), 5);
    node.kill().await;

    node.disk.wipe();
    let error = node.bootstrap().unwrap_err().to_string();
    assert!(error.contains("the state machine has applied") && error.contains("the log has lost"), "{error}");
}

async fn cluster() -> Vec<JournalNode> {
    let mut nodes: Vec<JournalNode> = (1..=3).map(JournalNode::new).collect();
    let members: Vec<Member> = nodes.iter().map(|node| Member::voter(node.id, &node.address)).collect();
    for node in &mut nodes {
        let raft = node.bootstrap().unwrap();
        raft.add_peers(members.clone()).await.unwrap();
        node.running = Some((raft.clone(), tokio::spawn(raft.run())));
    }
    for node in &nodes {
        within("a leader", node.raft().wait_for_leader()).await.unwrap();
    }
    nodes
}

#[tokio::test]
async fn a_set_of_files_is_installed_on_a_follower_that_was_away_and_kept_over_its_restart() {
    let mut nodes = cluster().await;
    nodes[0].put(0..3).await;
    assert_eq!(nodes[2].numbers().await, [0, 1, 2]);
    nodes[2].kill().await;
    nodes[0].put(3..8).await;
    for node in &nodes[..2] {
        // The leader, whichever node it is, has truncated its log.
        assert_eq!(node.numbers().await.len(), 8);
        node.raft().make_snapshot().await.unwrap();
    }
    nodes[2].start();
    assert_eq!(nodes[2].numbers().await, (0..8).collect::<Vec<_>>());
    let (applied, restored) = nodes[2].calls.counted();
    // More than one if another node became leader meanwhile, whose snapshot was taken later.
    assert!(applied == 3 && restored > 0, "{applied} applied, {restored} restored");
    nodes[0].put(8..10).await;
    assert_eq!(nodes[2].numbers().await, (0..10).collect::<Vec<_>>());

    nodes[2].kill().await;
    nodes[2].start();
    assert_eq!(nodes[2].numbers().await, (0..10).collect::<Vec<_>>());
    assert_eq!(nodes[2].calls.counted(), (5, restored), "what was installed is its own now");
    for node in &mut nodes {
        let left: Vec<_> = fs::read_dir(node.root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 1, "checkpoints are removed: {left:?}");
        node.kill().await;
    }
}

// On one thread: the raft loop never waits for the disk itself.
#[tokio::test]
async fn a_state_machine_on_disk_that_has_nothing_yet_gets_nothing_that_its_own_log_may_lose() {
    let mut nodes = cluster().await;
    let mut leader = 0;
    until("one leads", async || {
        let found = nodes.iter().position(|node| node.raft().is_leader());
        leader = found.unwrap_or(leader);
        found.is_some()
    })
    .await;
    let hung = Gate::default();
    let disk = hung.clone();
    nodes[leader].disk.judge(move |writes| {
        if writes.iter().flat_map(|write| &write.append).any(|entry| entry.kind == EntryKind::User) {
            disk.pass();
        }
        true
    });
    let raft = nodes[leader].raft().clone();
    let before = raft.status().borrow().last.index;
    let proposing = tokio::spawn({
        let raft = raft.clone();
        async move { raft.propose(7).await }
    });
    until("a majority has it", async || raft.status().borrow().commit > before).await;
    let written = nodes[leader].disk.memory().load().unwrap().last.index;
    let applied = raft.status().borrow().applied;
    assert!(applied <= written, "{applied} is applied, {written} is written");
    assert!(!proposing.is_finished(), "it is answered, and not applied");
    hung.open();
    within("an answer", proposing).await.unwrap().unwrap();
    for node in &mut nodes {
        node.kill().await;
    }
}

#[tokio::test]
async fn no_snapshot_is_taken_while_the_state_machine_is_ahead_of_what_is_known_to_be_committed() {
    let mut nodes = cluster().await;
    let mut count = 0;
    loop {
        nodes[1].put(count..count + 1).await;
        count += 1;
        assert_eq!(nodes[1].numbers().await.len() as u64, count);
        for node in &mut nodes {
            node.kill().await;
        }
        // The commit of the last entry is not written, unless there was another reason to write. Members that
        // have taken effect were committed as well.
        let kept = Journal::open(nodes[1].root.path().to_owned(), Calls::default()).unwrap().at;
        let stored = nodes[1].disk.memory().load().unwrap();
        if stored.hard_state.commit.max(stored.members.unwrap().as_of()) < kept.index {
            break;
        }
        nodes.iter_mut().for_each(JournalNode::start);
    }
    // Alone, it cannot learn this.
    nodes[1].start();
    let refused = within("an answer", nodes[1].raft().make_snapshot()).await;
    assert!(
        matches!(&refused, Err(SnapshotError::Failed(reason)) if reason.contains("not known to be committed")),
        "{refused:?}"
    );
    nodes[0].start();
    assert_eq!(nodes[1].numbers().await.len() as u64, count);
    until("a snapshot is taken", async || nodes[1].raft().make_snapshot().await.is_ok()).await;
    for node in &mut nodes[..2] {
        node.kill().await;
    }
}
