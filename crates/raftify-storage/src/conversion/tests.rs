//! Conversions in both directions, and the state of the directory after an interruption at any step, also by
//! a power failure.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use bytes::Bytes;
use parking_lot::Mutex;
use raftify_core::{
    ClusterId, Entry, EntryKind, Identity, Incarnation, LogIndex, LogPosition, Member, Members, NodeId,
    SnapshotMeta, SnapshotStore, SnapshotWriter, Term,
};
use tempfile::TempDir;

use super::*;

const KINDS: [StorageKind; 2] = [StorageKind::Heed, StorageKind::Wal];

fn other(kind: StorageKind) -> StorageKind {
    match kind {
        StorageKind::Heed => StorageKind::Wal,
        StorageKind::Wal => StorageKind::Heed,
    }
}

fn settings() -> WalSettings {
    WalSettings { segment_bytes: 64 << 10 }
}

/// A small conversion.
fn convert_small(
    directory: &Path,
    to: StorageKind,
    operations: &dyn NameOperations,
) -> Result<Conversion, StorageError> {
    convert_with(directory, to, settings(), operations)
}

/// The whole content of a directory, without its path.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    state: StoredState,
    entries: Vec<Entry>,
    snapshot: Option<String>,
}

/// The content of a directory, as its node finds it, and its storage.
#[track_caller]
fn content(directory: &Path) -> (StorageKind, Content) {
    match WalStorage::open_with(directory, settings()) {
        Ok(storage) => (StorageKind::Wal, content_of(storage)),
        Err(StorageError::OtherKind { .. }) => {
            (StorageKind::Heed, content_of(HeedStorage::open(directory).unwrap()))
        }
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn content_of(mut storage: impl StableStorage) -> Content {
    let state = storage.load().unwrap();
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    let entries = storage.log_reader().read(from, until, u64::MAX).unwrap();
    let snapshot = state.snapshot.as_ref().map(|snapshot| {
        let mut text = String::new();
        storage.snapshots().open(snapshot.position).unwrap().2.read_to_string(&mut text).unwrap();
        text
    });
    Content { state, entries, snapshot }
}

fn entry(term: u64, index: u64) -> Entry {
    // Some thousand bytes each, so that there are several segments.
    let payload = Bytes::from(vec![index as u8; 5_000]);
    Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload }
}

/// Entries 8 to 40 of terms 1 and 2, a snapshot at 10, a vote in term 3.
fn fill(mut storage: impl StableStorage) {
    storage.load().unwrap();
    let identity = Identity { cluster_id: ClusterId(7), node_id: NodeId::FIRST, incarnation: Incarnation(9) };
    let members = Members::initial([Member::voter(NodeId::FIRST, "node.example:60061")]).unwrap();
    let position = LogPosition::new(1, 10);
    let snapshot = SnapshotMeta { cluster_id: identity.cluster_id, position, members: members.clone() };
    let mut writer = storage.snapshots().create(&snapshot).unwrap();
    writer.write_all(b"the state").unwrap();
    writer.finish().unwrap();
    let append = (1..=20).map(|index| entry(1, index)).chain((21..=40).map(|index| entry(2, index)));
    let writes = [
        Write {
            identity: Some(identity),
            append: append.collect(),
            hard_state: Some(HardState { term: Term(3), vote: NodeId::new(2), commit: LogIndex(30) }),
            members: Some(members),
            snapshot: Some(snapshot),
            ..Write::default()
        },
        Write { compact: Some(LogPosition::new(1, 7)), ..Write::default() },
    ];
    storage.write(&writes).unwrap();
}

/// A directory of `kind` with everything.
fn filled(kind: StorageKind) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    match kind {
        StorageKind::Heed => fill(HeedStorage::open(directory.path()).unwrap()),
        StorageKind::Wal => fill(WalStorage::open_with(directory.path(), settings()).unwrap()),
    }
    directory
}

/// The names in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Asserts that the directory has only the files that `kind` needs.
#[track_caller]
fn assert_tidy(directory: &Path, kind: StorageKind) {
    let mut expected = BTreeSet::from(["data.mdb", "lock", "lock.mdb", "snapshots"].map(str::to_owned));
    if kind == StorageKind::Wal {
        expected.insert("log".to_owned());
    }
    assert_eq!(names(directory), expected);
}

#[test]
fn everything_is_there_after_a_conversion_and_after_one_back() {
    for kind in KINDS {
        let directory = filled(kind);
        let (_, before) = content(directory.path());
        for (from, to) in [(kind, other(kind)), (other(kind), kind)] {
            let done = convert_storage(directory.path(), to).unwrap();
            assert_eq!(done, Conversion { from, to, state: before.state.clone() });
            assert_eq!(content(directory.path()), (to, content_like(&before)));
            assert_tidy(directory.path(), to);
        }
    }
}

fn content_like(content: &Content) -> Content {
    let Content { state, entries, snapshot } = content;
    Content { state: state.clone(), entries: entries.clone(), snapshot: snapshot.clone() }
}

#[test]
fn converted_directory_goes_on_from_where_it_was() {
    fn append_one(mut storage: impl StableStorage) {
        storage.load().unwrap();
        storage.write(&[Write { append: vec![entry(3, 41)], ..Write::default() }]).unwrap();
    }
    for kind in KINDS {
        let directory = filled(kind);
        convert_small(directory.path(), other(kind), &OperatingSystem).unwrap();
        match kind {
            StorageKind::Heed => append_one(WalStorage::open(directory.path()).unwrap()),
            StorageKind::Wal => append_one(HeedStorage::open(directory.path()).unwrap()),
        }
        convert_small(directory.path(), kind, &OperatingSystem).unwrap();
        let (_, Content { state, entries, .. }) = content(directory.path());
        assert_eq!((state.last, entries.last()), (LogPosition::new(3, 41), Some(&entry(3, 41))));
    }
}

#[test]
fn directory_that_was_never_used_and_an_empty_log_are_converted() {
    let directory = tempfile::tempdir().unwrap();
    HeedStorage::open(directory.path()).unwrap().load().unwrap();
    for to in [StorageKind::Wal, StorageKind::Heed] {
        convert_small(directory.path(), to, &OperatingSystem).unwrap();
        let (kind, Content { state, .. }) = content(directory.path());
        assert_eq!((kind, state), (to, StoredState::default()));
    }
    let directory = filled(StorageKind::Heed);
    let mut storage = HeedStorage::open(directory.path()).unwrap();
    let state = storage.load().unwrap();
    let reset = Write {
        reset_log: Some(LogPosition::new(3, 50)),
        hard_state: Some(HardState { commit: LogIndex(50), ..state.hard_state }),
        ..Write::default()
    };
    // Snapshots are recorded with their data, which does not matter here.
    let position = LogPosition::new(3, 50);
    let snapshot = SnapshotMeta { position, ..state.snapshot.unwrap() };
    storage.snapshots().create(&snapshot).unwrap().finish().unwrap();
    storage.write(&[Write { snapshot: Some(snapshot), ..reset }]).unwrap();
    drop(storage);
    let (_, before) = content(directory.path());
    for to in [StorageKind::Wal, StorageKind::Heed] {
        convert_small(directory.path(), to, &OperatingSystem).unwrap();
        assert_eq!(content(directory.path()), (to, content_like(&before)));
    }
}

#[test]
fn there_is_nothing_to_do_for_a_directory_of_that_storage() {
    for kind in KINDS {
        let directory = filled(kind);
        let done = convert_small(directory.path(), kind, &OperatingSystem).unwrap();
        assert_eq!((done.from, done.to), (kind, kind));
        assert_tidy(directory.path(), kind);
    }
}

#[test]
fn directory_that_is_in_use_is_refused() {
    for kind in KINDS {
        let directory = filled(kind);
        let lock = DirectoryLock::take(directory.path()).unwrap();
        let error = convert_small(directory.path(), other(kind), &OperatingSystem).unwrap_err();
        assert!(matches!(error, StorageError::InUse { .. }), "{error}");
        drop(lock);
        assert_tidy(directory.path(), kind);
    }
}

#[test]
fn directory_of_something_else_is_refused_and_nothing_is_made_there() {
    let directory = tempfile::tempdir().unwrap();
    for place in [directory.path().to_owned(), directory.path().join("missing")] {
        let error = convert_storage(&place, StorageKind::Wal).unwrap_err();
        assert!(matches!(error, StorageError::Io { .. }), "{error}");
        assert!(error.to_string().contains("data.mdb"), "{error}");
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn damaged_directory_is_refused_and_left_as_it_was() {
    let directory = filled(StorageKind::Wal);
    let path = segments::list(directory.path()).unwrap().into_iter().min().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = convert_small(directory.path(), StorageKind::Heed, &OperatingSystem).unwrap_err();
    assert!(matches!(&error, StorageError::Corrupt { what, .. } if what.contains("at offset")), "{error}");
    assert_tidy(directory.path(), StorageKind::Wal);
}

#[test]
fn files_of_others_in_the_directory_of_the_log_are_left_alone() {
    let directory = filled(StorageKind::Wal);
    let file = directory.path().join("log/of somebody else");
    fs::write(&file, "text").unwrap();
    convert_small(directory.path(), StorageKind::Heed, &OperatingSystem).unwrap();
    assert_eq!(names(&directory.path().join("log")), BTreeSet::from(["of somebody else".to_owned()]));
    let (_, before) = content(directory.path());
    let error = convert_small(directory.path(), StorageKind::Wal, &OperatingSystem).unwrap_err();
    assert!(error.to_string().starts_with("cannot rename"), "{error}");
    assert_eq!(content(directory.path()), (StorageKind::Heed, content_like(&before)));
    fs::remove_file(&file).unwrap();
    convert_small(directory.path(), StorageKind::Wal, &OperatingSystem).unwrap();
    assert_eq!(content(directory.path()), (StorageKind::Wal, before));
}

#[cfg(unix)]
#[test]
fn log_that_a_symbolic_link_keeps_on_another_disk_is_converted() {
    let (directory, disk) = (filled(StorageKind::Wal), tempfile::tempdir().unwrap());
    let (log, elsewhere) = (directory.path().join("log"), disk.path().join("log"));
    fs::rename(&log, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &log).unwrap();
    let (_, before) = content(directory.path());
    for to in KINDS {
        convert_small(directory.path(), to, &OperatingSystem).unwrap();
        assert_eq!(content(directory.path()), (to, content_like(&before)));
        assert_tidy(directory.path(), to);
    }
    assert!(names(&elsewhere).is_empty(), "segments of the former log take room there");
}

#[derive(Clone, Debug)]
enum Operation {
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Sync,
}

/// Keeps a journal, and lets one operation fail; the process counts as dead then.
#[derive(Default)]
struct Watched {
    journal: Mutex<Vec<Operation>>,
    fail_at: Option<usize>,
}

impl Watched {
    fn next(&self, operation: Operation) -> io::Result<()> {
        let mut journal = self.journal.lock();
        if self.fail_at == Some(journal.len()) {
            return Err(io::Error::other("interrupted"));
        }
        journal.push(operation);
        Ok(())
    }
}

impl NameOperations for Watched {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.next(Operation::Rename(from.to_owned(), to.to_owned()))?;
        OperatingSystem.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.next(Operation::Sync)?;
        OperatingSystem.sync_directory(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.next(Operation::Remove(path.to_owned()))?;
        OperatingSystem.remove(path)
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Asserts that the directory is valid for its storage, and that both conversions succeed from here.
#[track_caller]
fn assert_valid(directory: &Path, before: &Content, case: &dyn std::fmt::Debug) -> StorageKind {
    let (kind, found) = content(directory);
    assert_eq!(&found, before, "{case:?}");
    for to in [other(kind), kind] {
        let copy = tempfile::tempdir().unwrap();
        copy_directory(directory, copy.path());
        convert_small(copy.path(), to, &OperatingSystem).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        assert_eq!(content(copy.path()), (to, content_like(before)), "{case:?}");
        assert_tidy(copy.path(), to);
    }
    kind
}

#[test]
fn conversion_that_is_interrupted_at_any_step_leaves_a_valid_directory() {
    for kind in KINDS {
        let (mut kinds, mut fail_at) = (BTreeSet::new(), 0);
        loop {
            let directory = filled(kind);
            let (_, before) = content(directory.path());
            let operations = Watched { fail_at: Some(fail_at), ..Watched::default() };
            let done = convert_small(directory.path(), other(kind), &operations);
            kinds.insert(assert_valid(directory.path(), &before, &(kind, fail_at)).name());
            if done.is_ok() {
                break;
            }
            fail_at += 1;
        }
        assert!(fail_at >= 4, "{fail_at} steps");
        assert_eq!(kinds.len(), 2, "it changed hands on the way");
    }
}

#[test]
fn power_cut_at_any_step_of_a_conversion_leaves_a_valid_directory() {
    for kind in KINDS {
        // The directory before the first step, and all steps.
        let ready = filled(kind);
        let (_, before) = content(ready.path());
        let stopped = Watched { fail_at: Some(0), ..Watched::default() };
        convert_small(ready.path(), other(kind), &stopped).unwrap_err();
        let whole = tempfile::tempdir().unwrap();
        copy_directory(filled(kind).path(), whole.path());
        let watched = Watched::default();
        convert_small(whole.path(), other(kind), &watched).unwrap();
        let journal = watched.journal.into_inner();
        assert!(journal.len() >= 4, "{journal:?}");

        for length in 0..=journal.len() {
            let synced = journal[..length].iter().rposition(|operation| matches!(operation, Operation::Sync));
            let open = synced.map_or(0, |at| at + 1)..length;
            // Any of the names that were not fsynced may exist.
            for choice in 0..1_u32 << open.len() {
                let cut = tempfile::tempdir().unwrap();
                copy_directory(ready.path(), cut.path());
                for (at, operation) in journal[..length].iter().enumerate() {
                    if open.contains(&at) && choice & 1 << (at - open.start) == 0 {
                        continue;
                    }
                    let here = |path: &Path| cut.path().join(path.strip_prefix(whole.path()).unwrap());
                    match operation {
                        Operation::Rename(from, to) => fs::rename(here(from), here(to)).unwrap(),
                        // The table of readers does not exist before a process has opened it.
                        Operation::Remove(path) => drop(fs::remove_file(here(path))),
                        Operation::Sync => {}
                    }
                }
                assert_valid(cut.path(), &before, &(kind, length, choice));
            }
        }
    }
}

#[test]
fn what_an_interrupted_copy_has_left_is_removed() {
    for kind in KINDS {
        let directory = filled(kind);
        let (_, before) = content(directory.path());
        let beside = directory.path().join(CONVERSION);
        fs::create_dir_all(beside.join("log")).unwrap();
        fs::write(beside.join("data.mdb"), "half").unwrap();
        fs::write(beside.join("log/0000000000000001.segment"), "half").unwrap();
        assert_eq!(assert_valid(directory.path(), &before, &kind), kind);
    }
}
