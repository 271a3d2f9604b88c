//! The contract on a real disk, the two kinds of directories, and a random comparison with the storage in
//! memory.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;
use raftify_core::storage::conformance::{self, TestDisk};
use raftify_core::storage::{MemoryStorage, StoredState, Write};
use raftify_core::{
    HardState, LogIndex, LogPosition, LogReader, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError,
};
use tempfile::TempDir;

use super::{WalSettings, WalStorage};
use crate::HeedStorage;
use crate::layout::segments;
use crate::random_writes::{Step, step, write_of};

struct Directory {
    directory: TempDir,
    segment_bytes: u64,
}

impl Directory {
    /// With segments so small that every test uses several.
    fn new() -> Directory {
        Directory::with_segment_bytes(4096)
    }

    fn with_segment_bytes(segment_bytes: u64) -> Directory {
        Directory { directory: tempfile::tempdir().unwrap(), segment_bytes }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn load(&self) -> Result<(WalStorage, StoredState), StorageError> {
        let mut storage = self.open()?;
        let state = storage.load()?;
        Ok((storage, state))
    }
}

impl TestDisk for Directory {
    type Storage = WalStorage;

    fn open(&self) -> Result<WalStorage, StorageError> {
        WalStorage::with_segment_bytes(self.path(), self.segment_bytes)
    }
}

fn take_snapshot(storage: &WalStorage, meta: &SnapshotMeta) {
    let mut writer = storage.snapshots().create(meta).unwrap();
    writer.write_all(b"state").unwrap();
    writer.finish().unwrap();
}

fn append(state: &StoredState, count: u64) -> Write {
    let step = Step::Append { back: 0, count, term: 1 };
    write_of(&step, state)
}

/// With ten entries.
fn filled() -> (Directory, StoredState) {
    let directory = Directory::new();
    let (mut storage, state) = directory.load().unwrap();
    storage.write(&[append(&state, 10)]).unwrap();
    drop(storage);
    let (_, state) = directory.load().unwrap();
    (directory, state)
}

#[test]
fn wal_storage_keeps_the_contract() {
    conformance::check(Directory::new);
}

#[test]
fn directory_of_the_other_kind_is_refused_by_name() {
    let wal = Directory::new();
    drop(WalStorage::open(wal.path()).unwrap());
    let heed = Directory::new();
    drop(HeedStorage::open(heed.path()).unwrap());
    let path = wal.path().display();
    assert_eq!(
        HeedStorage::open(wal.path()).unwrap_err().to_string(),
        format!(
            "{path} is kept by WalStorage, not by HeedStorage: open it with WalStorage, or convert it with \
             `raftify-cli storage convert {path} --to heed`"
        )
    );
    let error = WalStorage::open(heed.path()).unwrap_err();
    assert!(
        matches!(&error, StorageError::OtherKind { found: "HeedStorage", asked: "WalStorage", path, .. } if path == heed.path()),
        "{error}"
    );
    assert!(!heed.path().join("log").exists(), "a refused directory is left as it was");
    HeedStorage::open(heed.path()).unwrap();
    WalStorage::open(wal.path()).unwrap();
}

#[test]
fn second_handle_gets_in_use_until_everything_of_the_first_is_dropped() {
    let directory = Directory::new();
    let in_use = || assert!(matches!(directory.open(), Err(StorageError::InUse { .. })));
    let storage = directory.open().unwrap();
    in_use();
    let (reader, snapshots) = (storage.log_reader(), storage.snapshots());
    drop(storage);
    in_use();
    drop(reader);
    in_use();
    drop(snapshots);
    directory.open().unwrap();
}

#[test]
fn nothing_is_written_or_read_before_the_log_is_loaded() {
    let (directory, state) = filled();
    let mut storage = directory.open().unwrap();
    let refused = [
        storage.write(&[append(&state, 1)]),
        storage.log_reader().read(LogIndex(1), LogIndex(2), 1).map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(StorageError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(storage.load().unwrap(), state);
}

#[test]
fn log_without_its_metadata_is_damage_and_not_a_new_directory() {
    let (directory, _) = filled();
    fs::remove_file(directory.path().join("data.mdb")).unwrap();
    let error = directory.load().unwrap_err().to_string();
    assert!(
        error.contains("0000000000000001.segment") && error.contains("the metadata know of no log"),
        "{error}"
    );

    let (directory, _) = filled();
    fs::remove_dir_all(directory.path().join("log")).unwrap();
    let error = directory.load().unwrap_err().to_string();
    assert!(
        error.contains("0000000000000001.segment") && error.contains("the segment is missing"),
        "{error}"
    );
}

#[test]
fn segment_that_cannot_be_read_is_kept_when_the_metadata_are_gone() {
    let (directory, _) = filled();
    fs::remove_file(directory.path().join("data.mdb")).unwrap();
    let path = directory.path().join("log/0000000000000001.segment");
    let mut content = fs::read(&path).unwrap();
    content[40] ^= 1;
    fs::write(&path, &content).unwrap();
    let error = directory.load().unwrap_err().to_string();
    assert!(error.contains("0000000000000001.segment"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn segment_of_another_version_says_so() {
    let (directory, _) = filled();
    let path = directory.path().join("log/0000000000000001.segment");
    let mut content = fs::read(&path).unwrap();
    content[11] = 2;
    fs::write(&path, content).unwrap();
    let error = directory.load().unwrap_err();
    assert!(matches!(error, StorageError::Version { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn damaged_entry_is_noticed_when_it_is_read_and_the_others_can_be_read() {
    let (directory, _) = filled();
    let (storage, _) = directory.load().unwrap();
    let path = directory.path().join("log/0000000000000001.segment");
    let mut content = fs::read(&path).unwrap();
    let text = b"entry 7 of";
    let at = content.windows(text.len()).position(|window| window == text).unwrap();
    content[at] ^= 1;
    fs::write(&path, content).unwrap();
    let reader = storage.log_reader();
    assert_eq!(reader.read(LogIndex(1), LogIndex(7), u64::MAX).unwrap().len(), 6);
    let error = reader.read(LogIndex(1), LogIndex(11), u64::MAX).unwrap_err().to_string();
    assert!(error.contains("0000000000000001.segment at offset ") && error.contains(": entry 7"), "{error}");
}

#[test]
fn record_of_almost_any_size_is_written_and_read() {
    let directory = Directory::new();
    let (mut storage, mut state) = directory.load().unwrap();
    let mut log = Vec::new();
    for length in [0, 1, 3000, 4000, 4032, 4096, 5000, 100_000, 1, 9000, 9000, 3, 4000] {
        let mut write = append(&state, 1);
        write.append[0].payload = vec![7; length].into();
        state = state.after(&write).unwrap();
        log.extend_from_slice(&write.append);
        storage.write(&[write]).unwrap();
        let read = storage.log_reader().read(LogIndex(1), state.last.index.next(), u64::MAX).unwrap();
        assert!(read == log, "after an entry of {length} bytes");
    }
    drop(storage);
    let (storage, loaded) = directory.load().unwrap();
    assert_eq!(loaded, state);
    let read = storage.log_reader().read(LogIndex(1), state.last.index.next(), u64::MAX).unwrap();
    assert!(read == log);
}

#[test]
fn size_of_segments_is_chosen_within_limits_each_time_a_directory_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let open = |segment_bytes| WalStorage::open_with(directory.path(), WalSettings { segment_bytes });
    for segment_bytes in [0, (64 << 10) - 1, (256 << 20) + 1] {
        let error = open(segment_bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("segment_bytes must be from 65536 to 268435456, it is {segment_bytes}")
        );
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
    let mut state = StoredState::default();
    for segment_bytes in [64 << 10, 128 << 10, 64 << 10] {
        let mut storage = open(segment_bytes).unwrap();
        assert_eq!(storage.load().unwrap(), state);
        for _ in 0..30 {
            let mut write = append(&state, 1);
            write.append[0].payload = vec![1; 10_000].into();
            state = state.after(&write).unwrap();
            storage.write(&[write]).unwrap();
        }
        // The next segment, which is created in the background, has its final name once the storage is
        // dropped.
        drop(storage);
        let newest = segments::list(directory.path()).unwrap().into_iter().max().unwrap();
        assert_eq!(fs::metadata(newest).unwrap().len(), segment_bytes);
    }
    assert_eq!(open(1 << 20).unwrap().load().unwrap(), state);
}

#[test]
fn compaction_hands_over_a_few_segments_at_a_time() {
    let directory = Directory::new();
    let (mut storage, mut state) = directory.load().unwrap();
    let mut carry_out = |storage: &mut WalStorage, mut write: Write| {
        for entry in &mut write.append {
            entry.payload = vec![1; 2_000].into();
        }
        if let Some(snapshot) = &write.snapshot {
            take_snapshot(storage, snapshot);
        }
        state = state.after(&write).unwrap();
        storage.write(std::slice::from_ref(&write)).unwrap();
        state.clone()
    };
    let mut now = StoredState::default();
    for _ in 0..100 {
        now = carry_out(&mut storage, append(&now, 1));
    }
    let segments = || segments::list(directory.path()).unwrap().len();
    assert!(segments() > 40, "{}", segments());
    let commit = Some(HardState { commit: now.last.index, ..now.hard_state });
    now = carry_out(&mut storage, Write { hard_state: commit, ..Write::default() });
    now = carry_out(&mut storage, write_of(&Step::Snapshot { back: 0 }, &now));
    now = carry_out(&mut storage, write_of(&Step::Compact { back: 0 }, &now));
    let at_once = segments();
    assert!(at_once > 20, "{at_once}: they are removed beside the writes that follow");
    while segments() > at_once / 2 {
        now = carry_out(&mut storage, append(&now, 1));
    }
    drop(storage);
    assert_eq!(directory.load().unwrap().1, now);
}

#[test]
fn snapshot_without_its_data_is_not_recorded() {
    let (directory, state) = filled();
    let (mut storage, _) = directory.load().unwrap();
    let write = write_of(&Step::Snapshot { back: 0 }, &state);
    let error = storage.write(&[write]).unwrap_err();
    assert!(matches!(error, StorageError::Refused { .. }), "{error}");
    drop(storage);
    assert_eq!(directory.load().unwrap().1, state);
}

#[test]
fn recorded_snapshot_must_be_there() {
    let (directory, state) = filled();
    let (mut storage, _) = directory.load().unwrap();
    let write = write_of(&Step::Snapshot { back: 0 }, &state);
    let meta = write.snapshot.clone().unwrap();
    take_snapshot(&storage, &meta);
    storage.write(&[write]).unwrap();
    fs::remove_file(storage.snapshots().path(meta.position)).unwrap();
    drop(storage);
    let error = directory.load().unwrap_err().to_string();
    assert!(error.contains("the metadata record it, but the file is missing"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_writes_leave_the_same_as_in_memory(
        steps in proptest::collection::vec((step(), any::<bool>(), 0..600_usize), 1..60),
    ) {
        let directory = Directory::with_segment_bytes(1024);
        let mut memory = MemoryStorage::default();
        let (mut storage, mut state) = directory.load().unwrap();
        let mut batch: Vec<Write> = Vec::new();
        for (step, flush, length) in steps {
            let mut write = write_of(&step, &state);
            if let Some(last) = write.append.last_mut() {
                last.payload = vec![length as u8; length].into();
            }
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
                let (LogPosition { index: from, .. }, until) = (state.truncated, state.last.index.next());
                prop_assert_eq!(
                    storage.log_reader().read(from.next(), until, u64::MAX).unwrap(),
                    memory.log_reader().read(from.next(), until, u64::MAX).unwrap()
                );
            }
            if !allowed {
                prop_assert!(storage.write(&[write]).is_err());
            }
            if reopen || !allowed {
                drop(storage);
                let loaded;
                (storage, loaded) = directory.load().unwrap();
                prop_assert_eq!(&loaded, &state);
                prop_assert_eq!(&loaded, &memory.load().unwrap());
            }
        }
    }
}
