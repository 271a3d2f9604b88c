//! A view of a log in memory whose writer continues during the read: at every operation, and at all
//! operations at once.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::super::crash_tests::{Content, Workload, open};
use super::super::log::SegmentLog;
use super::super::metadata::{LogStart, Metadata};
use super::super::simulated_disk::SimulatedDisk;
use super::*;
use crate::files::{NameOperations, SegmentFile, SegmentOperations, Work};

/// How much a read gets at once, before the writer may continue.
const PART_BYTES: usize = 400;

/// A writer with its workload. Shared by all operations of a view.
#[derive(Clone)]
struct Node(Arc<Mutex<Working>>);

struct Working {
    disk: SimulatedDisk,
    log: SegmentLog<SimulatedDisk>,
    workload: Workload,
    /// Batches that were written.
    written: usize,
    /// How many more to write at the next operations.
    plan: Vec<usize>,
    moments: usize,
}

impl Node {
    fn new(seed: u64, batches: usize) -> Node {
        let disk = SimulatedDisk::new(false);
        let mut log = open(&disk);
        log.load().unwrap();
        let workload = Workload::new(seed, batches);
        let working = Working { disk, log, workload, written: 0, plan: Vec::new(), moments: 0 };
        Node(Arc::new(Mutex::new(working)))
    }

    fn with<T>(&self, action: impl FnOnce(&mut Working) -> T) -> T {
        action(&mut self.0.lock())
    }

    fn write(&self, batches: usize) {
        self.with(|node| node.write(batches));
    }

    fn view(&self) -> SegmentView<Node> {
        let shared = Shared::new(PathBuf::from("log"), Arc::new(self.clone()), 0);
        SegmentView::of(shared, self.clone())
    }

    /// The view calls an operation: the writer does the work that is planned for this point.
    fn moment(&self) {
        self.with(|node| {
            let batches = node.plan.get(node.moments).copied().unwrap_or(0);
            node.moments += 1;
            node.write(batches);
        });
    }

    fn disk(&self) -> SimulatedDisk {
        self.with(|node| node.disk.clone())
    }
}

impl Working {
    fn write(&mut self, batches: usize) {
        let end = (self.written + batches).min(self.workload.batches.len());
        for batch in &self.workload.batches[self.written..end] {
            self.log.write(batch).unwrap();
        }
        self.written = end;
    }

    /// The possible contents while the batches `written` are being written.
    fn contents(&self, written: RangeInclusive<usize>) -> &[Content] {
        let (from, until) = (self.workload.writes(*written.start()), self.workload.writes(*written.end()));
        &self.workload.contents[from..=until]
    }
}

impl NameOperations for Node {
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        unreachable!("a view changes nothing")
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        unreachable!("a view changes nothing")
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        unreachable!("a view changes nothing")
    }
}

impl SegmentOperations for Node {
    fn create_segment(&self, _: &Path) -> io::Result<Box<dyn SegmentFile>> {
        unreachable!("a view changes nothing")
    }

    fn open_segment(&self, _: &Path) -> io::Result<Box<dyn SegmentFile>> {
        unreachable!("a view changes nothing")
    }

    fn read_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        self.moment();
        let file = self.disk().read_segment(path)?;
        Ok(Box::new(SlowFile(self.clone(), file)))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.moment();
        self.disk().list(directory)
    }

    fn spawn(&self, _: Work) -> io::Result<Work> {
        unreachable!("a view changes nothing")
    }
}

/// A file that is read in parts, with pauses between them in which the writer may write.
struct SlowFile(Node, Box<dyn SegmentFile>);

impl SegmentFile for SlowFile {
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("a view changes nothing")
    }

    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        for (part, at) in data.chunks_mut(PART_BYTES).zip((offset..).step_by(PART_BYTES)) {
            self.0.moment();
            self.1.read_exact_at(part, at)?;
        }
        Ok(())
    }

    fn length_bytes(&self) -> io::Result<u64> {
        self.1.length_bytes()
    }

    fn sync(&self) -> io::Result<()> {
        unreachable!("a view changes nothing")
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.1.is_at(path)
    }
}

impl MetadataStore for Node {
    fn load(&self) -> Result<(Metadata, Option<LogStart>), StorageError> {
        self.moment();
        self.disk().load()
    }

    fn store(&self, _: &Metadata, _: LogStart) -> Result<(), StorageError> {
        unreachable!("a view changes nothing")
    }
}

/// Asserts that the result of a pass was the content at some point during it. Returns whether there was a
/// result.
#[track_caller]
fn assert_was_there(
    node: &Node,
    before: usize,
    found: &Result<StoredState, StorageError>,
    case: impl std::fmt::Debug,
) -> bool {
    node.with(|node| match found {
        Ok(state) => {
            let contents = node.contents(before..=node.written);
            assert!(contents.iter().any(|(known, _)| known == state), "{case:?}: {state:?} never was");
            true
        }
        Err(StorageError::Changing { .. }) => false,
        Err(error) => panic!("{case:?}: {error}"),
    })
}

/// Reads the whole log that `state` describes.
#[track_caller]
fn assert_read_was_there(
    node: &Node,
    view: &SegmentView<Node>,
    state: &StoredState,
    before: usize,
    case: impl std::fmt::Debug,
) {
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    match view.read(from, until, u64::MAX) {
        Ok(read) => node.with(|node| {
            let same = |entries: &[Entry]| {
                let within = entries.iter().filter(|entry| (from..until).contains(&entry.position.index));
                within.eq(&read)
            };
            let contents = node.contents(before..=node.written);
            assert!(contents.iter().any(|(_, entries)| same(entries)), "{case:?}: {read:?} never was");
        }),
        Err(
            StorageError::Compacted { .. } | StorageError::BeyondEnd { .. } | StorageError::Changing { .. },
        ) => {}
        Err(error) => panic!("{case:?}: {error}"),
    }
}

#[test]
fn look_while_the_writer_goes_on_at_any_moment_shows_what_was_there() {
    for (seed, batches) in [(3, 1), (4, 4), (5, 12), (6, 40)] {
        for begin in [0, 10, 45] {
            let mut moment = 0;
            loop {
                let node = Node::new(seed, 90);
                node.write(begin);
                node.with(|node| node.plan = [vec![0; moment], vec![batches]].concat());
                let case = (seed, begin, moment);
                let view = node.view();
                let found = view.load();
                assert!(assert_was_there(&node, begin, &found, case), "{case:?}: one change, and it gave up");
                assert_read_was_there(&node, &view, &found.unwrap(), begin, case);
                if node.with(|node| node.moments) <= moment {
                    break;
                }
                moment += 1;
            }
            assert!(moment > 5, "{moment}");
        }
    }
}

#[test]
fn look_while_the_writer_goes_on_at_all_moments_is_never_wrong() {
    let mut seen = 0;
    for seed in 0..12 {
        let node = Node::new(seed, 400);
        node.write(20);
        node.with(|node| node.plan = (0..4000).map(|at| usize::from(at % 5 == 0)).collect());
        let view = node.view();
        while node.with(|node| node.written < node.workload.batches.len()) {
            let before = node.with(|node| node.written);
            let found = view.load();
            seen += u64::from(assert_was_there(&node, before, &found, seed));
            if let Ok(state) = found {
                assert_read_was_there(&node, &view, &state, before, seed);
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn what_was_seen_can_be_read_until_it_is_given_up_and_then_what_is_there() {
    for seed in 0..6 {
        let node = Node::new(seed, 120);
        let view = node.view();
        for round in 0..12 {
            let before = node.with(|node| node.written);
            let state = view.load().unwrap();
            node.write(10);
            assert_read_was_there(&node, &view, &state, before, (seed, round));
        }
    }
}

#[test]
fn damage_that_stays_is_told_as_the_node_itself_would() {
    let node = Node::new(7, 60);
    node.write(60);
    let disk = node.disk();
    let mut told = 0;
    for path in disk.names() {
        let damaged = disk.copy();
        damaged.damage(&path, |content| content[70] ^= 1);
        let shared = Shared::new(PathBuf::from("log"), Arc::new(damaged.clone()), 0);
        let seen = SegmentView::of(shared, damaged.clone()).load().map_err(|error| error.to_string());
        if let Err(error) = &seen {
            assert!(error.contains(".segment at offset ") && error.contains("about entry "), "{error}");
            told += 1;
        }
        assert_eq!(seen, open(&damaged).load().map_err(|error| error.to_string()));
    }
    assert!(told > 0);
}

#[test]
fn log_that_was_not_begun_is_empty() {
    let disk = SimulatedDisk::new(false);
    let shared = Shared::new(PathBuf::from("log"), Arc::new(disk.clone()), 0);
    let view = SegmentView::of(shared, disk.clone());
    assert_eq!(view.load().unwrap(), StoredState::default());
    assert!(matches!(view.read(LogIndex(1), LogIndex(2), 1), Err(StorageError::BeyondEnd { .. })));
    assert!(disk.names().is_empty());
}
