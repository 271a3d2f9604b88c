//! What only shows between processes: a second owner, a reader beside a writer, a kill, a full disk.
//!
//! Each test plays both parts: it starts its own executable once more, with itself as the only test and the
//! data directory in an environment variable, and then it is the child. Each runs on both storages.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Lines, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bytes::Bytes;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, LogIndex, LogPosition, LogReader, Member,
    Members, NodeId, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage, StorageError, Term,
};
use raftify_storage::{HeedStorage, ReadOnlyStorage, StorageKind, WalSettings, WalStorage, convert_storage};

const DIRECTORY: &str = "RAFTIFY_STORAGE_TEST_DIRECTORY";

/// The directory, if this process is the child.
fn child_directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// What the child says to its parent, among the lines of the test harness.
fn say(word: &str) {
    println!("\nchild: {word}");
    std::io::stdout().flush().unwrap();
}

/// Waits for a line of the parent.
fn wait() {
    std::io::stdin().lines().next().unwrap().unwrap();
}

struct Running {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// This executable as a child that runs only `test`; `shell` may prepare for it.
    fn start(test: &str, directory: &Path, shell: &str) -> Running {
        let mut child = Command::new("sh")
            .args(["-c", &format!("{shell} exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Running { child, to, from: BufReader::new(from).lines() }
    }

    /// The next word of the child; `None` when it is gone.
    fn hear(&mut self) -> Option<String> {
        self.from.by_ref().find_map(|line| Some(line.unwrap().strip_prefix("child: ")?.to_owned()))
    }

    fn go_on(&mut self) {
        self.to.write_all(b"\n").unwrap();
    }

    fn succeeds(mut self) {
        while self.hear().is_some() {}
        assert!(self.child.wait().unwrap().success(), "the child's part of the test failed");
    }
}

/// What the tests are run on.
trait Kept: StableStorage {
    /// The module with the tests of this storage.
    const MODULE: &str;

    fn open(directory: &Path) -> Result<Self, StorageError>
    where
        Self: Sized;
}

impl Kept for HeedStorage {
    const MODULE: &str = "heed";

    fn open(directory: &Path) -> Result<HeedStorage, StorageError> {
        HeedStorage::open(directory)
    }
}

impl Kept for WalStorage {
    const MODULE: &str = "wal";

    /// With small segments, so that there are many.
    fn open(directory: &Path) -> Result<WalStorage, StorageError> {
        WalStorage::open_with(directory, WalSettings { segment_bytes: 128 << 10 })
    }
}

macro_rules! on_both_storages {
    ($($test:ident)*) => {
        mod heed {
            $( #[test] fn $test() { super::$test::<super::HeedStorage>(concat!("heed::", stringify!($test))) } )*
        }
        mod wal {
            $( #[test] fn $test() { super::$test::<super::WalStorage>(concat!("wal::", stringify!($test))) } )*
        }
    };
}

on_both_storages! {
    directory_without_permission_is_a_clear_error
    second_process_gets_in_use
    read_only_process_follows_a_writer_whose_log_grows
    read_only_process_is_never_wrong_beside_a_writer_that_compacts
    killed_process_loses_nothing_that_was_written
    refused_write_is_an_error_and_the_log_opens_again
    full_disk_says_so_and_the_log_opens_again
    a_long_log_of_small_files_needs_few_descriptors
    descriptors_that_others_have_used_up_do_not_stop_the_log
    second_process_gets_in_use_although_the_locks_were_removed
    second_directory_of_hard_links_is_in_use
    a_database_that_was_removed_or_replaced_acknowledges_nothing_more
    nothing_is_made_in_a_directory_that_took_the_place_of_the_first
}

fn load<S: Kept>(directory: &Path) -> (S, StoredState) {
    let mut storage = S::open(directory).unwrap();
    let state = storage.load().unwrap();
    (storage, state)
}

fn entry(index: u64, length: usize) -> Entry {
    let payload = Bytes::from(vec![index as u8; length]);
    Entry { position: LogPosition::new(1, index), kind: EntryKind::User, payload }
}

fn first_write() -> Write {
    let identity = Identity { cluster_id: ClusterId(7), node_id: NodeId::FIRST, incarnation: Incarnation(9) };
    let hard_state = HardState { term: Term(1), ..HardState::default() };
    Write { identity: Some(identity), hard_state: Some(hard_state), ..Write::default() }
}

fn append(storage: &mut impl StableStorage, index: u64, length: usize) -> Result<(), StorageError> {
    storage.write(&[Write { append: vec![entry(index, length)], ..Write::default() }])
}

fn directory_without_permission_is_a_clear_error<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let error = S::open(&directory).err().unwrap();
        assert!(
            matches!(&error, StorageError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied)
        );
        assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("node");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o555)).unwrap();
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(&program);
    if fs::metadata(&directory).unwrap().uid() == 0 {
        // Everything is permitted to root: then the child is somebody else, and its program where it may be
        // read.
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: what this one writes, a child that another test starts just then has
        // open as well, and it could not be run before that.
        let copy = place.path().join("test");
        assert!(Command::new("cp").args([&program, &copy]).status().unwrap().success());
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        child = Command::new(copy);
        child.uid(65_534).gid(65_534).current_dir(place.path());
    }
    child.args(["--exact", test]).env(DIRECTORY, &directory);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn second_process_gets_in_use<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let error = S::open(&directory).err().unwrap();
        assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains("in use by another process: stop that one first"), "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load::<S>(directory.path());
    storage.write(&[first_write()]).unwrap();
    Running::start(test, directory.path(), "").succeeds();
    append(&mut storage, 1, 10).unwrap();
}

fn read_only_process_follows_a_writer_whose_log_grows<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let storage = ReadOnlyStorage::open(&directory).unwrap();
        for last in [1, 20, 200] {
            let state = storage.load().unwrap();
            assert_eq!((state.last, state.hard_state.term), (LogPosition::new(1, last), Term(1)));
            let entries = storage.log_reader().read(LogIndex(1), LogIndex(last + 1), u64::MAX).unwrap();
            assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 100_000)));
            assert!(storage.snapshots().unwrap().is_empty());
            say("read");
            wait();
        }
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load::<S>(directory.path());
    storage.write(&[first_write()]).unwrap();
    append(&mut storage, 1, 100_000).unwrap();
    let mut child = Running::start(test, directory.path(), "");
    for (first, last) in [(2, 20), (21, 200), (201, 201)] {
        assert_eq!(child.hear().as_deref(), Some("read"));
        for index in first..=last {
            append(&mut storage, index, 100_000).unwrap();
        }
        child.go_on();
    }
    child.succeeds();
}

fn killed_process_loses_nothing_that_was_written<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let (mut storage, state) = load::<S>(&directory);
        if state.identity.is_none() {
            storage.write(&[first_write()]).unwrap();
        }
        for index in state.last.index.0 + 1.. {
            append(&mut storage, index, 3_000).unwrap();
            say(&index.to_string());
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let mut written = 0;
    for round in 1..=3 {
        let mut child = Running::start(test, directory.path(), "");
        while written < round * 40 {
            written = child.hear().unwrap().parse().unwrap();
        }
        child.child.kill().unwrap();
        while let Some(index) = child.hear() {
            written = index.parse().unwrap();
        }
        child.child.wait().unwrap();
        let (storage, state) = load::<S>(directory.path());
        assert!(state.last.index.0 >= written, "{written} was written, the log ends at {}", state.last);
        let entries = storage.log_reader().read(LogIndex(1), state.last.index.next(), u64::MAX).unwrap();
        assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 3_000)));
    }
}

fn read_only_process_is_never_wrong_beside_a_writer_that_compacts<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let storage = ReadOnlyStorage::open(&directory).unwrap();
        let mut first = LogIndex::ZERO;
        for round in 0..60 {
            let state = match storage.load() {
                Ok(state) => state,
                Err(StorageError::Changing { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            assert!(state.truncated.index >= first, "{} after {first}", state.truncated);
            first = state.truncated.index;
            match storage.log_reader().read(first.next(), state.last.index.next(), u64::MAX) {
                Ok(entries) => {
                    assert_eq!(entries.len() as u64, state.last.index.0 - first.0);
                    assert!((first.0 + 1..).zip(entries).all(|(index, found)| found == entry(index, 3_000)));
                }
                Err(StorageError::Compacted { .. } | StorageError::Changing { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if round == 0 {
                say("read");
            }
        }
        say("done");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load::<S>(directory.path());
    storage.write(&[first_write()]).unwrap();
    append(&mut storage, 1, 3_000).unwrap();
    let mut child = Running::start(test, directory.path(), "");
    assert_eq!(child.hear().as_deref(), Some("read"));
    let reader = std::thread::spawn(move || {
        assert_eq!(child.hear().as_deref(), Some("done"));
        child.succeeds();
    });
    let mut index = 1;
    while !reader.is_finished() {
        index += 1;
        append(&mut storage, index, 3_000).unwrap();
        if index.is_multiple_of(50) {
            compact(&mut storage, index - 10);
        }
    }
    reader.join().unwrap();
}

/// Takes a snapshot at `index`, and forgets all entries up to it.
fn compact(storage: &mut impl StableStorage, index: u64) {
    let position = LogPosition::new(1, index);
    let members = Members::initial([Member::voter(NodeId::FIRST, "node.example:60061")]).unwrap();
    let snapshot = SnapshotMeta { cluster_id: ClusterId(7), position, members };
    storage.snapshots().create(&snapshot).unwrap().finish().unwrap();
    let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(index) };
    let compact = Some(position);
    let write = Write { hard_state: Some(hard_state), snapshot: Some(snapshot), compact, ..Write::default() };
    storage.write(&[write]).unwrap();
    storage.snapshots().retain(&[position]).unwrap();
}

/// Appends until an error comes, which is what the parent wants to know.
fn append_until_it_fails(directory: &Path, mut storage: impl StableStorage) -> std::io::Error {
    let state = storage.load().unwrap();
    for index in state.last.index.0 + 1.. {
        match append(&mut storage, index, 10_000) {
            Ok(()) => say(&index.to_string()),
            Err(StorageError::Io { path, source, .. }) => {
                assert!(path.starts_with(directory), "{}", path.display());
                let again = append(&mut storage, index, 10);
                assert!(matches!(again, Err(StorageError::Refused { .. })), "{again:?}");
                return source;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    unreachable!("there are not so many numbers");
}

fn refused_write_is_an_error_and_the_log_opens_again<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let error = match S::MODULE {
            // What it would like to make is larger than it may be.
            "wal" => {
                let settings = WalSettings { segment_bytes: 8 << 20 };
                append_until_it_fails(&directory, WalStorage::open_with(&directory, settings).unwrap())
            }
            _ => append_until_it_fails(&directory, S::open(&directory).unwrap()),
        };
        // Either the limit is named, or LMDB says that it has written a part only.
        assert!(!matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::NotFound), "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load::<S>(directory.path());
    storage.write(&[first_write()]).unwrap();
    drop(storage);
    // A limit on the size of files. The system kills who passes it, unless that is ignored.
    let mut child = Running::start(test, directory.path(), "ulimit -f 2000;");
    let mut written = 0;
    while let Some(index) = child.hear() {
        written = index.parse().unwrap();
    }
    assert!(written > 5, "only {written} entries fitted");
    child.succeeds();
    let (mut storage, state) = load::<S>(directory.path());
    assert_eq!(state.last, LogPosition::new(1, written));
    append(&mut storage, written + 1, 10_000).unwrap();
    let entries = storage.log_reader().read(LogIndex(1), LogIndex(written + 2), u64::MAX).unwrap();
    assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 10_000)));
}

fn full_disk_says_so_and_the_log_opens_again<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let ballast = directory.join("ballast");
        fs::write(&ballast, vec![0; 500_000]).unwrap();
        let node = directory.join("node");
        let (mut storage, _) = load::<S>(&node);
        storage.write(&[first_write()]).unwrap();
        drop(storage);
        let error = append_until_it_fails(&node, S::open(&node).unwrap());
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error:?}");
        // It opens again, and goes on when there is room.
        fs::remove_file(ballast).unwrap();
        let (mut storage, state) = load::<S>(&node);
        let last = state.last.index;
        assert!(last > LogIndex(10), "{last}");
        append(&mut storage, last.0 + 1, 10_000).unwrap();
        let entries = storage.log_reader().read(LogIndex(1), LogIndex(last.0 + 2), u64::MAX).unwrap();
        assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 10_000)));
        say("it went on");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // A small file system of the child's own. Where the system gives none, the limit above has to do.
    let mount = format!("mount -t tmpfs -o size=3m none \"${DIRECTORY}\"");
    let enter = |then: &str| {
        format!("exec unshare --user --map-root-user --mount sh -c '{mount}{then}' \"$0\" \"$@\";")
    };
    let attempt = Command::new("sh").args(["-c", &enter("")]).env(DIRECTORY, directory.path()).output();
    if !attempt.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system gives no file system to a child");
        return;
    }
    let mut child = Running::start(test, directory.path(), &enter(r#" && exec "$0" "$@""#));
    let mut words = Vec::new();
    while let Some(word) = child.hear() {
        words.push(word);
    }
    child.succeeds();
    assert_eq!(words.last().map(String::as_str), Some("it went on"));
}

/// Both storages at once: a conversion that is killed at any moment leaves a directory of the one or of the
/// other.
#[test]
fn killed_conversion_leaves_a_valid_directory() {
    const KINDS: [StorageKind; 2] = [StorageKind::Wal, StorageKind::Heed];
    if let Some(directory) = child_directory() {
        loop {
            for kind in KINDS {
                convert_storage(&directory, kind).unwrap();
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load::<HeedStorage>(directory.path());
    storage.write(&[first_write()]).unwrap();
    for index in 1..=50 {
        append(&mut storage, index, 10_000).unwrap();
    }
    compact(&mut storage, 20);
    drop(storage);
    let here = |name: &str| directory.path().join(name).exists();
    let beside = |name: &str| here(&format!("conversion.partial/{name}"));
    type Moment<'a> = &'a dyn Fn() -> bool;
    let moments: [Moment<'_>; 8] = [
        &|| beside("data.mdb"),
        &|| beside("log"),
        &|| beside("log/0000000000000002.segment"),
        &|| here("log") && beside("data.mdb") && !beside("log"),
        &|| !here("lock.mdb"),
        &|| here("conversion.partial") && !beside("data.mdb"),
        &|| !here("log"),
        &|| here("log") && !here("conversion.partial"),
    ];
    for (at, moment) in moments.iter().enumerate() {
        let mut child = Running::start("killed_conversion_leaves_a_valid_directory", directory.path(), "");
        // The child goes to and fro, so that each of them comes again and again.
        while !moment() {
            assert!(child.child.try_wait().unwrap().is_none(), "the child has ended before moment {at}");
            std::thread::yield_now();
        }
        child.child.kill().unwrap();
        child.child.wait().unwrap();
        let storage = ReadOnlyStorage::open(directory.path()).unwrap();
        let state = storage.load().unwrap();
        assert_eq!((state.truncated.index, state.last.index), (LogIndex(20), LogIndex(50)), "moment {at}");
        let entries = storage.log_reader().read(LogIndex(21), LogIndex(51), u64::MAX).unwrap();
        assert!((21..).zip(entries).all(|(index, found)| found == entry(index, 10_000)));
    }
}

/// That the log holds the entries from `from` to 200.
fn read_all(reader: &impl LogReader, from: u64) {
    let entries = reader.read(LogIndex(from), LogIndex(201), u64::MAX).unwrap();
    assert!((from..).zip(entries).all(|(index, found)| found == entry(index, 100_000)));
}

fn a_long_log_of_small_files_needs_few_descriptors<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let (mut storage, _) = load::<S>(&directory);
        storage.write(&[first_write()]).unwrap();
        for index in 1..=200 {
            append(&mut storage, index, 100_000).unwrap();
        }
        read_all(&storage.log_reader(), 1);
        drop(storage);
        let (mut storage, state) = load::<S>(&directory);
        assert_eq!(state.last, LogPosition::new(1, 200));
        read_all(&storage.log_reader(), 1);
        compact(&mut storage, 100);
        read_all(&storage.log_reader(), 101);
        drop(storage);
        let storage = ReadOnlyStorage::open(&directory).unwrap();
        storage.load().unwrap();
        read_all(&storage.log_reader(), 101);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    Running::start(test, directory.path(), "ulimit -n 48;").succeeds();
}

fn descriptors_that_others_have_used_up_do_not_stop_the_log<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let (mut storage, _) = load::<S>(&directory);
        storage.write(&[first_write()]).unwrap();
        let mut others = Vec::new();
        while let Ok(other) = fs::File::open("/dev/null") {
            others.push(other);
        }
        for index in 1..=100 {
            append(&mut storage, index, 100_000).unwrap();
        }
        let entries = storage.log_reader().read(LogIndex(1), LogIndex(101), u64::MAX).unwrap();
        assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 100_000)));
        compact(&mut storage, 90);
        for index in 101..=200 {
            append(&mut storage, index, 100_000).unwrap();
        }
        drop((storage, others));
        assert_eq!(load::<S>(&directory).1.last, LogPosition::new(1, 200));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    Running::start(test, directory.path(), "ulimit -n 64;").succeeds();
}

fn second_process_gets_in_use_although_the_locks_were_removed<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let error = S::open(&directory).err().unwrap();
        assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load::<S>(directory.path());
    storage.write(&[first_write()]).unwrap();
    for lock in ["lock", "lock.mdb"] {
        fs::remove_file(directory.path().join(lock)).unwrap();
    }
    Running::start(test, directory.path(), "").succeeds();
    append(&mut storage, 1, 10).unwrap();
    compact(&mut storage, 1);
    drop(storage);
    assert_eq!(load::<S>(directory.path()).1.last, LogPosition::new(1, 1));
}

fn second_directory_of_hard_links_is_in_use<S: Kept>(test: &str) {
    if let Some(directory) = child_directory() {
        let error = S::open(&directory).err().unwrap();
        assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (directory, links) = (place.path().join("node"), place.path().join("links"));
    let (mut storage, _) = load::<S>(&directory);
    storage.write(&[first_write()]).unwrap();
    // One with all files of the first, and one without its locks.
    for left_out in [&[][..], &["lock", "lock.mdb"]] {
        assert!(Command::new("cp").args(["-al"]).args([&directory, &links]).status().unwrap().success());
        for name in left_out {
            fs::remove_file(links.join(name)).unwrap();
        }
        Running::start(test, &links, "").succeeds();
        append(&mut storage, 1 + left_out.len() as u64 / 2, 10).unwrap();
        fs::remove_dir_all(&links).unwrap();
    }
}

fn replaced(result: Result<(), StorageError>, expected: &Path) {
    match result {
        Err(StorageError::Replaced { path }) => assert_eq!(path, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_segment_that_was_removed_or_replaced_acknowledges_nothing_more() {
    for is_replaced in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (mut storage, _) = load::<WalStorage>(directory.path());
        storage.write(&[first_write()]).unwrap();
        let segment = directory.path().join("log/0000000000000001.segment");
        let aside = directory.path().join("log/aside");
        fs::rename(&segment, &aside).unwrap();
        if is_replaced {
            fs::copy(&aside, &segment).unwrap();
        }
        replaced(append(&mut storage, 1, 10), &segment);
        assert!(matches!(append(&mut storage, 1, 10), Err(StorageError::Refused { .. })));
        drop(storage);
        fs::rename(&aside, &segment).unwrap();
        let (mut storage, state) = load::<WalStorage>(directory.path());
        assert_eq!(state.hard_state.term, Term(1));
        append(&mut storage, state.last.index.0 + 1, 10).unwrap();
    }
}

fn a_database_that_was_removed_or_replaced_acknowledges_nothing_more<S: Kept>(_: &str) {
    for is_replaced in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (mut storage, _) = load::<S>(directory.path());
        storage.write(&[first_write()]).unwrap();
        append(&mut storage, 1, 10).unwrap();
        let (data_file, aside) = (directory.path().join("data.mdb"), directory.path().join("aside"));
        fs::rename(&data_file, &aside).unwrap();
        if is_replaced {
            fs::copy(&aside, &data_file).unwrap();
        }
        let refused = (2..20).find_map(|index| append(&mut storage, index, 100_000).err());
        replaced(Err(refused.unwrap()), &data_file);
        drop(storage);
        fs::rename(&aside, &data_file).unwrap();
        let (storage, state) = load::<S>(directory.path());
        assert!(storage.log_reader().read(LogIndex(1), state.last.index.next(), u64::MAX).is_ok());
    }
}

fn nothing_is_made_in_a_directory_that_took_the_place_of_the_first<S: Kept>(_: &str) {
    let place = tempfile::tempdir().unwrap();
    let (directory, aside) = (place.path().join("node"), place.path().join("aside"));
    let (mut storage, _) = load::<S>(&directory);
    storage.write(&[first_write()]).unwrap();
    append(&mut storage, 1, 10).unwrap();
    fs::rename(&directory, &aside).unwrap();
    for name in ["log", "snapshots"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    let position = LogPosition::new(1, 1);
    let meta = SnapshotMeta { cluster_id: ClusterId(7), position, members: Members::none() };
    replaced(storage.snapshots().create(&meta).map(drop), &directory);
    let refused = (2..20).find_map(|index| append(&mut storage, index, 100_000).err());
    assert!(matches!(refused, Some(StorageError::Replaced { .. })), "{refused:?}");
    drop(storage);
    for name in ["log", "snapshots"] {
        assert_eq!(fs::read_dir(directory.join(name)).unwrap().count(), 0, "in {name}");
    }
    // Another node may begin there, and the first one goes on where its directory is now.
    S::open(&directory).unwrap();
    assert!(load::<S>(&aside).1.last.index >= LogIndex(1));
}
