//! Damage of every kind, to the values and to the files.

use super::*;

#[test]
fn flipped_bit_in_any_byte_of_an_entry_is_noticed() {
    let (directory, mut storage, state) = filled();
    let key = values::entry_key(LogIndex(6));
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
    let [five, six] = [5, 6].map(|index| values::entry_key(LogIndex(index)));
    put(&storage, Table::Entries, six, &value(&storage, Table::Entries, five));
    assert_corrupt(storage.load(), "entry 6", "checksum");

    let (_directory, mut storage, _) = filled();
    let hard_state = value(&storage, Table::Meta, MetaKey::HardState.key());
    put(&storage, Table::Meta, MetaKey::Identity.key(), &hard_state);
    assert_corrupt(storage.load(), "metadata Identity", "checksum");

    let (_directory, mut storage, _) = filled();
    let key = values::entry_key(LogIndex(4));
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
    delete(&storage, Table::Entries, values::entry_key(LogIndex(6)));
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
    delete(&storage, Table::Entries, values::entry_key(LogIndex(4)));
    assert_corrupt(storage.load(), "entry 4", "it is missing");

    let (_directory, mut storage, _) = filled();
    for index in [8, 7, 6] {
        delete(&storage, Table::Entries, values::entry_key(LogIndex(index)));
    }
    assert_corrupt(storage.load(), "data.mdb", "the commit index is 6, but the log goes from 3 to 5");
}

#[test]
fn term_that_goes_down_is_noticed() {
    let (_directory, mut storage, _) = filled();
    let value = values::encode_entry(&entries(0, [6])[0]);
    put(&storage, Table::Entries, values::entry_key(LogIndex(6)), &value);
    assert_corrupt(storage.load(), "entry 6", "its term is 0, that of the entry before is 1");
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
        let value = values::frame(Table::Meta, MetaKey::Members.key(), |out| out.extend_from_slice(content));
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
    // LMDB allocates page numbers that it releases in the same transaction, and never writes those pages.
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
