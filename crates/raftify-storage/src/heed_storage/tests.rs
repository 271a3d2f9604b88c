//! The contract, and a random comparison with the storage in memory; `tests/damage.rs` has damage of every
//! kind.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use raftify_core::storage::conformance::{self, TestDisk};
use raftify_core::storage::{MemoryStorage, StoredState, Write};
use raftify_core::{
    ClusterId, Entry, HardState, Identity, Incarnation, LogIndex, LogPosition, LogReader, NodeId,
    SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage, StorageError, Term,
};
use tempfile::TempDir;

use super::HeedStorage;
use super::log::LEFT_ROWS_PER_WRITE;
use crate::lmdb::values::{self, MetaKey, Table};
use crate::random_writes::{Step, entries, members, snapshot_meta, step, write_of};
use crate::{ReadOnlyStorage, WalStorage};

mod damage;

struct Directory(TempDir);

impl Directory {
    fn new() -> Directory {
        Directory(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn load(&self) -> Result<(HeedStorage, StoredState), StorageError> {
        let mut storage = HeedStorage::open(self.path())?;
        let state = storage.load()?;
        Ok((storage, state))
    }
}

impl TestDisk for Directory {
    type Storage = HeedStorage;

    fn open(&self) -> Result<HeedStorage, StorageError> {
        HeedStorage::open(self.path())
    }
}

fn take_snapshot(storage: &HeedStorage, meta: &SnapshotMeta) {
    let mut writer = storage.snapshots().create(meta).unwrap();
    writer.write_all(b"state").unwrap();
    writer.finish().unwrap();
}

/// Every kind of value: identity, hard state, members, a snapshot, and entries 4 to 8 after a truncated
/// prefix.
fn filled() -> (Directory, HeedStorage, StoredState) {
    let directory = Directory::new();
    let (mut storage, _) = directory.load().unwrap();
    let meta = snapshot_meta(1, 5);
    take_snapshot(&storage, &meta);
    let identity = Identity { cluster_id: ClusterId(7), node_id: NodeId::FIRST, incarnation: Incarnation(9) };
    let write = Write {
        identity: Some(identity),
        append: entries(1, 1..=8),
        hard_state: Some(HardState { term: Term(2), vote: NodeId::new(3), commit: LogIndex(6) }),
        members: Some(members()),
        snapshot: Some(meta),
        compact: Some(LogPosition::new(1, 3)),
        ..Write::default()
    };
    storage.write(&[write]).unwrap();
    let state = storage.load().unwrap();
    (directory, storage, state)
}

fn value(storage: &HeedStorage, table: Table, key: u128) -> Vec<u8> {
    let environment = storage.log.tables.environment();
    environment.read(|txn| Ok(environment.table(table).get(txn, &key)?.unwrap().to_vec())).unwrap()
}

fn put(storage: &HeedStorage, table: Table, key: u128, value: &[u8]) {
    let environment = storage.log.tables.environment();
    environment.write(|txn| Ok(environment.table(table).put(txn, &key, value)?)).unwrap();
}

fn delete(storage: &HeedStorage, table: Table, key: u128) {
    let environment = storage.log.tables.environment();
    assert!(environment.write(|txn| Ok(environment.table(table).delete(txn, &key)?)).unwrap());
}

#[track_caller]
fn assert_corrupt<T>(result: Result<T, StorageError>, what: &str, reason: &str) {
    match result {
        Err(StorageError::Corrupt { what: w, reason: r }) => {
            assert!(w.contains(what) && r.contains(reason), "{what}, {reason}: it says {w:?}, {r:?}");
        }
        Err(error) => panic!("{what}, {reason}: {error}"),
        Ok(_) => panic!("{what}, {reason}: not noticed"),
    }
}

#[test]
fn heed_storage_keeps_the_contract() {
    conformance::check(Directory::new);
}

/// How many rows of entries there are, needed or not.
fn rows(storage: &HeedStorage) -> u64 {
    let environment = storage.log.tables.environment();
    environment.read(|txn| Ok(environment.table(Table::Entries).len(txn)?)).unwrap()
}

#[test]
fn compacted_entries_are_gone_at_once_and_their_rows_a_few_at_a_time() {
    let directory = Directory::new();
    let (mut storage, _) = directory.load().unwrap();
    let meta = snapshot_meta(1, 45);
    take_snapshot(&storage, &meta);
    let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(50) };
    let append = entries(1, 1..=50);
    storage
        .write(&[Write { append, hard_state: Some(hard_state), snapshot: Some(meta), ..Write::default() }])
        .unwrap();
    storage.write(&[Write { compact: Some(LogPosition::new(1, 40)), ..Write::default() }]).unwrap();
    assert_eq!(
        rows(&storage),
        50 - LEFT_ROWS_PER_WRITE,
        "the write that compacts takes no longer than others"
    );
    let mut last = 50;
    loop {
        // The remaining rows must not be visible.
        let reader = storage.log_reader();
        let read = reader.read(LogIndex(40), LogIndex(41), u64::MAX);
        assert!(matches!(read, Err(StorageError::Compacted { .. })), "{read:?}");
        let expected = entries(1, 41..=last);
        assert_eq!(reader.read(LogIndex(41), LogIndex(last + 1), u64::MAX).unwrap(), expected);
        let before = rows(&storage);
        if before == last - 40 {
            break;
        }
        last += 1;
        storage.write(&[Write { append: entries(1, [last]), ..Write::default() }]).unwrap();
        let deleted = before + 1 - rows(&storage);
        assert_eq!(deleted, (LEFT_ROWS_PER_WRITE + 2).min(before + 1 - (last - 40)), "of {before} rows");
    }
}

#[test]
fn rows_that_are_left_are_ignored_and_cleaned_at_the_next_start() {
    let directory = Directory::new();
    let (mut storage, _) = directory.load().unwrap();
    let meta = snapshot_meta(1, 30);
    take_snapshot(&storage, &meta);
    let hard_state = Some(HardState { term: Term(1), vote: None, commit: LogIndex(30) });
    let append = entries(1, 1..=30);
    let compact = Some(meta.position);
    storage.write(&[Write { append, hard_state, snapshot: Some(meta), ..Write::default() }]).unwrap();
    storage.write(&[Write { compact, ..Write::default() }]).unwrap();
    drop(storage);
    let read_only = ReadOnlyStorage::open(directory.path()).unwrap();
    let state = read_only.load().unwrap();
    assert_eq!((state.truncated, state.last), (LogPosition::new(1, 30), LogPosition::new(1, 30)));
    let beyond = read_only.log_reader().read(LogIndex(31), LogIndex(32), 1);
    assert!(matches!(beyond, Err(StorageError::BeyondEnd { .. })), "{beyond:?}");
    drop(read_only);

    let storage = HeedStorage::open(directory.path()).unwrap();
    assert!(rows(&storage) > 0, "the log is empty, and its rows are still there");
    drop(storage);
    let (storage, loaded) = directory.load().unwrap();
    assert_eq!((rows(&storage), loaded), (0, state));
}

#[test]
fn reset_over_a_gap_leaves_rows_that_are_never_taken_for_entries() {
    let directory = Directory::new();
    let (mut storage, _) = directory.load().unwrap();
    let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(48) };
    storage
        .write(&[Write { append: entries(1, 1..=60), hard_state: Some(hard_state), ..Write::default() }])
        .unwrap();
    for position in [LogPosition::new(1, 50), LogPosition::new(1, 100)] {
        let meta = SnapshotMeta { position, ..snapshot_meta(0, 0) };
        take_snapshot(&storage, &meta);
        let hard_state = HardState { commit: position.index, ..hard_state };
        let append = entries(1, position.index.0 + 1..=position.index.0 + 3);
        let write = Write {
            reset_log: Some(position),
            append: append.clone(),
            hard_state: Some(hard_state),
            snapshot: Some(meta),
            ..Write::default()
        };
        storage.write(&[write]).unwrap();
        assert!(rows(&storage) > 3);
        let reader = storage.log_reader();
        let (from, until) = (position.index.next(), LogIndex(position.index.0 + 4));
        assert_eq!(reader.read(from, until, u64::MAX).unwrap(), append);
        let beyond = reader.read(from, until.next(), u64::MAX);
        assert!(matches!(beyond, Err(StorageError::BeyondEnd { .. })), "{beyond:?}");
    }
    drop(storage);
    let (storage, state) = directory.load().unwrap();
    assert_eq!((rows(&storage), state.last), (3, LogPosition::new(1, 103)));
}

#[test]
fn snapshot_without_its_data_is_not_recorded() {
    let (directory, mut storage, state) = filled();
    let write = Write { snapshot: Some(snapshot_meta(1, 6)), ..Write::default() };
    let error = storage.write(&[write]).unwrap_err();
    assert!(matches!(error, StorageError::Refused { .. }), "{error}");
    drop(storage);
    assert_eq!(directory.load().unwrap().1, state);
}

#[test]
fn write_before_load_or_after_a_failed_write_is_refused() {
    let directory = Directory::new();
    let mut storage = HeedStorage::open(directory.path()).unwrap();
    let good = Write { append: entries(0, [1]), ..Write::default() };
    assert!(matches!(storage.write(std::slice::from_ref(&good)), Err(StorageError::Refused { .. })));
    storage.load().unwrap();
    let bad = Write { append: entries(0, [2]), ..Write::default() };
    assert!(matches!(storage.write(&[bad]), Err(StorageError::Refused { .. })));
    assert!(matches!(storage.write(&[good]), Err(StorageError::Refused { .. })));
}

#[test]
fn second_handle_gets_in_use_until_everything_of_the_first_is_dropped() {
    let directory = Directory::new();
    let in_use = || match HeedStorage::open(directory.path()) {
        Err(StorageError::InUse { path }) => assert_eq!(path, directory.path()),
        other => panic!("{other:?}"),
    };
    let storage = directory.open().unwrap();
    in_use();
    assert!(matches!(ReadOnlyStorage::open(directory.path()), Err(StorageError::InUse { .. })));
    let (reader, snapshots) = (storage.log_reader(), storage.snapshots());
    let writer = snapshots.create(&snapshot_meta(1, 1)).unwrap();
    drop(storage);
    in_use();
    drop(reader);
    in_use();
    drop(snapshots);
    in_use();
    drop(writer);
    directory.open().unwrap();
}

#[test]
fn directory_that_cannot_be_made_is_a_clear_error() {
    let directory = Directory::new();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = HeedStorage::open(&path).unwrap_err();
        assert!(matches!(error, StorageError::Io { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("cannot create the directory") && text.contains("file"), "{text}");
    }
    let error = ReadOnlyStorage::open(directory.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("cannot open") && error.contains("nowhere/data.mdb"), "{error}");
    assert!(!directory.path().join("nowhere").exists());
}

#[test]
fn deep_directory_is_made() {
    let directory = Directory::new();
    let deep = directory.path().join("a/b/c");
    drop(HeedStorage::open(&deep).unwrap());
    HeedStorage::open(&deep).unwrap();
}

#[test]
fn read_only_sees_everything_and_changes_nothing() {
    let (directory, storage, state) = filled();
    take_snapshot(&storage, &snapshot_meta(1, 6));
    drop(storage);
    fs::write(directory.path().join("snapshots/left.1.partial"), "half").unwrap();
    let content = || {
        let mut files = Vec::new();
        for folder in [directory.path().to_owned(), directory.path().join("snapshots")] {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() && !path.ends_with("lock.mdb") {
                    files.push((path.clone(), fs::read(&path).unwrap()));
                }
            }
        }
        files.sort();
        files
    };
    let before = content();
    let storage = ReadOnlyStorage::open(directory.path()).unwrap();
    assert_eq!(storage.load().unwrap(), state);
    let read = storage.log_reader().read(LogIndex(4), LogIndex(9), u64::MAX).unwrap();
    assert_eq!(read, entries(1, 4..=8));
    let positions: Vec<_> = storage.snapshots().unwrap().iter().map(|file| file.position).collect();
    assert_eq!(positions, [LogPosition::new(1, 5), LogPosition::new(1, 6)]);
    let (meta, length, mut reader) = storage.open_snapshot(positions[0]).unwrap();
    assert_eq!((Some(meta), length), (state.snapshot, 5));
    assert_eq!(std::io::read_to_string(&mut reader).unwrap(), "state");
    drop(storage);
    assert_eq!(content(), before);
}

#[test]
fn database_grows_by_itself_while_it_is_read() {
    let directory = Directory::new();
    let (mut storage, _) = directory.load().unwrap();
    let reader = storage.log_reader();
    let payload = Bytes::from(vec![0x77; 100_000]);
    let log: Vec<Entry> =
        entries(1, 1..=240).into_iter().map(|entry| Entry { payload: payload.clone(), ..entry }).collect();
    let hard_state = Some(HardState { term: Term(1), ..HardState::default() });
    storage.write(&[Write { append: log[..1].to_vec(), hard_state, ..Write::default() }]).unwrap();
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reading = scope.spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                assert_eq!(
                    reader.read(LogIndex(1), LogIndex(2), u64::MAX).unwrap()[0].payload.len(),
                    100_000
                );
            }
        });
        for part in log[1..].chunks(40) {
            storage.write(&[Write { append: part.to_vec(), ..Write::default() }]).unwrap();
        }
        drop(stop);
        reading.join().unwrap();
    });
    let huge = Entry { payload: vec![0x11; 30_000_000].into(), ..entries(1, [241])[0].clone() };
    storage.write(&[Write { append: vec![huge.clone()], ..Write::default() }]).unwrap();
    drop(storage);
    let (storage, state) = directory.load().unwrap();
    assert_eq!(state.last, LogPosition::new(1, 241));
    let read = storage.log_reader().read(LogIndex(1), LogIndex(242), u64::MAX).unwrap();
    assert!(read[..240] == log && read[240] == huge);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_writes_leave_the_same_as_in_memory(
        steps in proptest::collection::vec((step(), any::<bool>()), 1..40),
    ) {
        let directory = Directory::new();
        let mut memory = MemoryStorage::default();
        let (mut storage, mut state) = directory.load().unwrap();
        let mut batch: Vec<Write> = Vec::new();
        for (step, flush) in steps {
            let write = write_of(&step, &state);
            if let Some(snapshot) = &write.snapshot {
                take_snapshot(&storage, snapshot);
            }
            let next = state.after(&write);
            let allowed = next.is_ok();
            if let Ok(next) = next {
                batch.push(write.clone());
                state = next;
            }
            let reopen = matches!(step, Step::Reopen);
            if flush || reopen || !allowed {
                memory.write(&batch).unwrap();
                storage.write(&batch).unwrap();
                batch.clear();
            }
            if !allowed {
                prop_assert!(memory.write(std::slice::from_ref(&write)).is_err());
                prop_assert!(storage.write(&[write]).is_err());
            }
            if reopen || !allowed {
                drop(storage);
                let loaded;
                (storage, loaded) = directory.load().unwrap();
                prop_assert_eq!(&loaded, &state);
                prop_assert_eq!(&loaded, &memory.load().unwrap());
                let (from, until) = (state.truncated.index.next(), state.last.index.next());
                prop_assert_eq!(
                    storage.log_reader().read(from, until, u64::MAX).unwrap(),
                    memory.log_reader().read(from, until, u64::MAX).unwrap()
                );
            }
        }
    }
}
