//! The contract, damage of every kind, and a random comparison with the storage in memory.

use std::fs::{self, File};
use std::io::Write as _;

use bytes::Bytes;
use proptest::prelude::*;
use raftify_core::storage::MemoryStorage;
use raftify_core::storage::conformance::{self, TestDisk};
use raftify_core::{
    ClusterId, EntryKind, HardState, Identity, Incarnation, Member, NodeId, SnapshotMeta, SnapshotStore,
    SnapshotWriter, Term,
};
use tempfile::TempDir;

use super::*;
use crate::{ReadOnlyStorage, WalStorage};

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

fn entries(term: u64, indexes: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    let entry = |index| {
        let payload = Bytes::from(format!("entry {index} of term {term}"));
        Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload }
    };
    indexes.into_iter().map(entry).collect()
}

fn members() -> Members {
    Members::initial([Member::voter(NodeId::FIRST, "node.example:60061")]).unwrap()
}

fn snapshot_meta(term: u64, index: u64) -> SnapshotMeta {
    SnapshotMeta { cluster_id: ClusterId(7), position: LogPosition::new(term, index), members: members() }
}

fn take_snapshot(storage: &HeedStorage, meta: &SnapshotMeta) {
    let mut writer = storage.snapshots().create(meta).unwrap();
    writer.write_all(b"state").unwrap();
    writer.finish().unwrap();
}

/// Every kind of value: identity, hard state, members, a snapshot, and entries 4 to 8 after a truncated prefix.
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
    let environment = &storage.log.environment;
    environment.read(|txn| Ok(environment.table(table).get(txn, &key)?.unwrap().to_vec())).unwrap()
}

fn put(storage: &HeedStorage, table: Table, key: u128, value: &[u8]) {
    let environment = &storage.log.environment;
    environment.write(|txn| Ok(environment.table(table).put(txn, &key, value)?)).unwrap();
}

fn delete(storage: &HeedStorage, table: Table, key: u128) {
    let environment = &storage.log.environment;
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

#[test]
fn flipped_bit_in_any_byte_of_an_entry_is_noticed() {
    let (directory, mut storage, state) = filled();
    let key = format::entry_key(LogIndex(6));
    let good = value(&storage, Table::Entries, key);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        put(&storage, Table::Entries, key, &bad);
        let read = storage.log_reader().read(LogIndex(4), LogIndex(9), u64::MAX);
        if at == 0 {
            assert!(matches!(read, Err(StorageError::Version { found: 0x11, known: 1, .. })), "{read:?}");
            assert!(matches!(storage.load(), Err(StorageError::Version { .. })));
        } else {
            assert_corrupt(read, "data.mdb: entry 6", "checksum");
            assert_corrupt(storage.load(), "data.mdb: entry 6", "checksum");
        }
        let before = storage.log_reader().read(LogIndex(4), LogIndex(6), u64::MAX).unwrap();
        assert_eq!(before, entries(1, 4..=5), "undamaged entries can still be read");
    }
    for length in 0..good.len() {
        put(&storage, Table::Entries, key, &good[..length]);
        assert_corrupt(storage.load(), "data.mdb: entry 6", "");
    }
    drop(storage);
    assert_corrupt(directory.load(), "data.mdb: entry 6", "");
    let storage = HeedStorage::open(directory.path()).unwrap();
    put(&storage, Table::Entries, key, &good);
    drop(storage);
    assert_eq!(directory.load().unwrap().1, state, "nothing else was changed meanwhile");
}

#[test]
fn flipped_bit_in_any_byte_of_the_metadata_is_noticed() {
    let (_directory, mut storage, _) = filled();
    for meta in
        [MetaKey::Identity, MetaKey::HardState, MetaKey::Members, MetaKey::Snapshot, MetaKey::Truncated]
    {
        let good = value(&storage, Table::Meta, meta.key());
        for at in 1..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            put(&storage, Table::Meta, meta.key(), &bad);
            assert_corrupt(storage.load(), &format!("data.mdb: metadata {meta:?}"), "checksum");
        }
        put(&storage, Table::Meta, meta.key(), &good);
        storage.load().unwrap();
    }
}

#[test]
fn value_under_another_key_is_noticed() {
    let (_directory, mut storage, _) = filled();
    let [five, six] = [5, 6].map(|index| format::entry_key(LogIndex(index)));
    put(&storage, Table::Entries, six, &value(&storage, Table::Entries, five));
    assert_corrupt(storage.load(), "entry 6", "checksum");

    let (_directory, mut storage, _) = filled();
    let hard_state = value(&storage, Table::Meta, MetaKey::HardState.key());
    put(&storage, Table::Meta, MetaKey::Identity.key(), &hard_state);
    assert_corrupt(storage.load(), "metadata Identity", "checksum");

    let (_directory, mut storage, _) = filled();
    let key = format::entry_key(LogIndex(4));
    assert_eq!(key, MetaKey::Snapshot.key(), "the same key in the other database");
    put(&storage, Table::Entries, key, &value(&storage, Table::Meta, key));
    assert_corrupt(storage.load(), "entry 4", "checksum");
}

#[test]
fn unknown_version_is_an_error_of_its_own() {
    let (directory, storage, _) = filled();
    let layout = MetaKey::Layout.key();
    let mut value = value(&storage, Table::Meta, layout);
    value[0] = 2;
    put(&storage, Table::Meta, layout, &value);
    drop(storage);
    let error = HeedStorage::open(directory.path()).unwrap_err().to_string();
    assert!(error.ends_with(
        "data.mdb: metadata Layout has format version 2, this program knows 1: open it with the version that wrote it"
    ), "{error}");
}

#[test]
fn missing_entry_in_the_middle_is_noticed_and_nothing_is_dropped() {
    let (directory, storage, _) = filled();
    delete(&storage, Table::Entries, format::entry_key(LogIndex(6)));
    assert_corrupt(storage.log_reader().read(LogIndex(4), LogIndex(9), u64::MAX), "entry 6", "it is missing");
    drop(storage);
    assert_corrupt(directory.load(), "data.mdb: entry 6", "it is missing");
    let storage = HeedStorage::open(directory.path()).unwrap();
    let after = storage.log_reader().read(LogIndex(7), LogIndex(9), u64::MAX).unwrap();
    assert_eq!(after, entries(1, 7..=8), "a refused directory is left as it was");
}

#[test]
fn missing_first_or_last_committed_entry_is_noticed() {
    let (_directory, mut storage, _) = filled();
    delete(&storage, Table::Entries, format::entry_key(LogIndex(4)));
    assert_corrupt(storage.load(), "entry 4", "it is missing");

    let (_directory, mut storage, _) = filled();
    for index in [8, 7, 6] {
        delete(&storage, Table::Entries, format::entry_key(LogIndex(index)));
    }
    assert_corrupt(storage.load(), "data.mdb", "the commit index is 6, but the log goes from 3 to 5");
}

#[test]
fn term_that_goes_down_is_noticed() {
    let (_directory, mut storage, _) = filled();
    let value = format::encode_entry(&entries(0, [6])[0]);
    put(&storage, Table::Entries, format::entry_key(LogIndex(6)), &value);
    assert_corrupt(storage.load(), "entry 6", "its term is 0, that of the entry before is 1");
}

/// How many rows of entries there are, needed or not.
fn rows(storage: &HeedStorage) -> u64 {
    let environment = &storage.log.environment;
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
        // What is left is not to be seen.
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
fn segments_without_their_database_are_not_a_new_directory() {
    let directory = Directory::new();
    WalStorage::open(directory.path()).unwrap().load().unwrap();
    fs::remove_file(directory.path().join("data.mdb")).unwrap();
    assert_corrupt(
        HeedStorage::open(directory.path()),
        directory.path().to_str().unwrap(),
        "but no data.mdb",
    );
}

#[test]
fn snapshots_without_their_database_are_not_a_new_directory() {
    let (directory, storage, state) = filled();
    let path = storage.snapshots().path(state.snapshot.unwrap().position);
    drop(storage);
    fs::remove_file(directory.path().join("data.mdb")).unwrap();
    let what = directory.path().to_str().unwrap();
    assert_corrupt(HeedStorage::open(directory.path()), what, "but no data.mdb");
    assert_corrupt(WalStorage::open(directory.path()), what, "but no data.mdb");
    assert!(path.exists() && !directory.path().join("data.mdb").exists());
}

#[test]
fn unknown_keys_are_noticed() {
    let (_directory, mut storage, _) = filled();
    put(&storage, Table::Meta, 77, b"from the future");
    assert_corrupt(storage.load(), "metadata with key 77", "knows no such key");

    let (_directory, mut storage, _) = filled();
    let other_group = (1 << 64) | 9;
    put(&storage, Table::Entries, other_group, b"of another group");
    assert_corrupt(storage.load(), "entry 9", "key 9 of group 1 in entries");
}

#[test]
fn members_that_cannot_be_decoded_are_damage() {
    let (_directory, mut storage, _) = filled();
    for content in [&[][..], &[2, 0xff], &[9, 0]] {
        let value = format::frame(Table::Meta, MetaKey::Members.key(), |out| out.extend_from_slice(content));
        put(&storage, Table::Meta, MetaKey::Members.key(), &value);
        let error = storage.load().unwrap_err();
        match content {
            [9, ..] => assert!(matches!(error, StorageError::Version { found: 9, .. }), "{error}"),
            _ => assert_corrupt(Err::<(), _>(error), "metadata Members", "membership"),
        }
    }
}

#[test]
fn recorded_snapshot_must_be_there_and_say_the_same() {
    let (directory, storage, state) = filled();
    let position = state.snapshot.unwrap().position;
    let path = storage.snapshots().path(position);
    let good = fs::read(&path).unwrap();
    drop(storage);

    fs::remove_file(&path).unwrap();
    assert_corrupt(directory.load(), "0000000000000001-0000000000000005.snapshot", "the file is missing");
    let error = directory.load().unwrap_err().to_string();
    assert!(error.contains("Remove the node from the cluster and let it join again"), "{error}");

    fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert_corrupt(directory.load(), ".snapshot", "end mark is missing");

    fs::remove_file(&path).unwrap();
    let storage = HeedStorage::open(directory.path()).unwrap();
    let other = SnapshotMeta { cluster_id: ClusterId(8), ..snapshot_meta(1, 5) };
    take_snapshot(&storage, &other);
    drop(storage);
    assert_corrupt(directory.load(), ".snapshot", "its header says otherwise");

    fs::write(&path, &good).unwrap();
    directory.load().unwrap();
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
fn cut_off_data_file_is_damage_and_no_bus_error() {
    let (directory, storage, _) = filled();
    drop(storage);
    let path = directory.path().join("data.mdb");
    File::options().write(true).open(&path).unwrap().set_len(4 * 4096).unwrap();
    assert_corrupt(HeedStorage::open(directory.path()), "data.mdb", "but its own record says");
    assert_corrupt(ReadOnlyStorage::open(directory.path()), "data.mdb", "but its own record says");
}

#[test]
fn pages_that_were_never_written_at_the_end_of_the_data_file_are_no_damage() {
    // LMDB gives numbers to pages that it gives up again in the same transaction, and never writes those.
    let directory = Directory::new();
    for round in 0..60 {
        let (mut storage, state) = directory.load().unwrap();
        let mut append = entries(1, 1..=1 + round % 4);
        for (at, entry) in append.iter_mut().enumerate() {
            entry.payload = vec![7; (round as usize * 1_013 + at * 4_099) % 20_000].into();
        }
        let hard_state = Some(HardState { term: Term(1), ..HardState::default() });
        let writes = [
            Write { append, hard_state, ..Write::default() },
            Write { append: entries(1, 1..=2), ..Write::default() },
        ];
        storage.write(&writes).unwrap();
        assert_eq!(storage.load().unwrap().last, LogPosition::new(1, 2), "after {}", state.last);
    }
}

#[test]
fn a_crash_while_the_data_file_is_made_leaves_a_directory_that_opens() {
    let directory = Directory::new();
    fs::create_dir(directory.path().join("new.partial")).unwrap();
    fs::write(directory.path().join("new.partial/data.mdb"), [0; 512]).unwrap();
    assert_eq!(directory.load().unwrap().1, StoredState::default());
    assert!(!directory.path().join("new.partial").exists());
}

#[test]
fn a_data_file_that_was_cut_to_nothing_is_damage_and_no_new_directory() {
    let (directory, storage, _) = filled();
    drop(storage);
    let path = directory.path().join("data.mdb");
    for zeros in [0, 20_000] {
        fs::write(&path, vec![0; zeros]).unwrap();
        assert_corrupt(HeedStorage::open(directory.path()), "data.mdb", "");
        assert_corrupt(WalStorage::open(directory.path()), "data.mdb", "");
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "nothing was written");
    }
}

#[cfg(unix)]
#[test]
fn a_data_file_that_cannot_be_looked_for_is_not_replaced_by_a_new_one() {
    let directory = Directory::new();
    let path = directory.path().join("data.mdb");
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(matches!(HeedStorage::open(directory.path()), Err(StorageError::Io { .. })));
    assert!(matches!(WalStorage::open(directory.path()), Err(StorageError::Io { .. })));
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink(), "it is what it was");
}

#[test]
fn file_of_something_else_is_refused() {
    let directory = Directory::new();
    fs::write(directory.path().join("data.mdb"), [0x5a; 20_000]).unwrap();
    assert_corrupt(HeedStorage::open(directory.path()), "data.mdb", "not an LMDB file");
    assert_corrupt(ReadOnlyStorage::open(directory.path()), "data.mdb", "not an LMDB file");
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

/// What a test makes of the present state.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append { back: u64, count: u64, term: u64 },
    HardState { term: u64, vote: u64, commit: u64 },
    Members,
    Snapshot { back: u64 },
    Compact { back: u64 },
    Reset { forward: u64, term: u64 },
    Reopen,
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u64, 1..6_u64, 0..2_u64).prop_map(|(back, count, term)| Step::Append { back, count, term }),
        4 => (0..2_u64, 0..3_u64, 0..5_u64).prop_map(|(term, vote, commit)| Step::HardState { term, vote, commit }),
        1 => Just(Step::Members),
        2 => (0..3_u64).prop_map(|back| Step::Snapshot { back }),
        2 => (0..3_u64).prop_map(|back| Step::Compact { back }),
        1 => (0..9_u64, 0..2_u64).prop_map(|(forward, term)| Step::Reset { forward, term }),
        2 => Just(Step::Reopen),
    ]
}

pub(crate) fn write_of(step: &Step, state: &StoredState) -> Write {
    let position_at = |index: u64| {
        let index = LogIndex(index);
        LogPosition { term: state.term_at(index).unwrap_or(state.last.term), index }
    };
    let mut write = Write::default();
    let HardState { term: now, commit, .. } = state.hard_state;
    match *step {
        Step::Append { back, count, term } => {
            let first = (state.last.index.0 + 1).saturating_sub(back).max(1);
            write.append = entries(now.0 + term, first..first + count);
            write.hard_state = Some(HardState { term: Term(now.0 + term), ..state.hard_state });
        }
        Step::HardState { term, vote, commit: forward } => {
            let (term, commit) = (Term(now.0 + term), LogIndex(commit.0 + forward));
            write.hard_state = Some(HardState { term, vote: NodeId::new(vote), commit });
        }
        Step::Members => write.members = Some(members()),
        Step::Snapshot { back } => {
            let position = position_at(commit.0.saturating_sub(back));
            write.snapshot = Some(SnapshotMeta { position, ..snapshot_meta(0, 0) });
        }
        Step::Compact { back } => {
            let snapshot = state.snapshot.as_ref().map_or(0, |snapshot| snapshot.position.index.0);
            write.compact = Some(position_at(snapshot.saturating_sub(back)));
        }
        Step::Reset { forward, term } => {
            let position = LogPosition::new(now.0 + term, commit.0 + forward);
            write.reset_log = Some(position);
            write.snapshot = Some(SnapshotMeta { position, ..snapshot_meta(0, 0) });
            write.hard_state =
                Some(HardState { term: position.term, commit: position.index, ..state.hard_state });
        }
        Step::Reopen => {}
    }
    write
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
