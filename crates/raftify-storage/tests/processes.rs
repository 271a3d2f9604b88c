//! What only shows between processes: a second owner, a reader beside a writer, a kill, a full disk.
//!
//! Each test plays both parts: it starts its own executable once more, with itself as the only test and the data
//! directory in an environment variable, and then it is the child.

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
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, LogIndex, LogPosition, LogReader, NodeId,
    StableStorage, StorageError, Term,
};
use raftify_storage::{HeedStorage, ReadOnlyStorage};

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

fn load(directory: &Path) -> (HeedStorage, StoredState) {
    let mut storage = HeedStorage::open(directory).unwrap();
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

fn append(storage: &mut HeedStorage, index: u64, length: usize) -> Result<(), StorageError> {
    storage.write(&[Write { append: vec![entry(index, length)], ..Write::default() }])
}

#[test]
fn directory_without_permission_is_a_clear_error() {
    if let Some(directory) = child_directory() {
        let error = HeedStorage::open(&directory).unwrap_err();
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
        // Everything is permitted to root: then the child is somebody else, and its program where it may be read.
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        let copy = place.path().join("test");
        fs::copy(program, &copy).unwrap();
        child = Command::new(copy);
        child.uid(65_534).gid(65_534).current_dir(place.path());
    }
    child.args(["--exact", "directory_without_permission_is_a_clear_error"]).env(DIRECTORY, &directory);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn second_process_gets_in_use() {
    if let Some(directory) = child_directory() {
        let error = HeedStorage::open(&directory).unwrap_err();
        assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains("in use by another process: stop that one first"), "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut storage, _) = load(directory.path());
    storage.write(&[first_write()]).unwrap();
    Running::start("second_process_gets_in_use", directory.path(), "").succeeds();
    append(&mut storage, 1, 10).unwrap();
}

#[test]
fn read_only_process_follows_a_writer_whose_database_grows() {
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
    let (mut storage, _) = load(directory.path());
    storage.write(&[first_write()]).unwrap();
    append(&mut storage, 1, 100_000).unwrap();
    let name = "read_only_process_follows_a_writer_whose_database_grows";
    let mut child = Running::start(name, directory.path(), "");
    for (first, last) in [(2, 20), (21, 200), (201, 201)] {
        assert_eq!(child.hear().as_deref(), Some("read"));
        for index in first..=last {
            append(&mut storage, index, 100_000).unwrap();
        }
        child.go_on();
    }
    child.succeeds();
}

#[test]
fn killed_process_loses_nothing_that_was_written() {
    if let Some(directory) = child_directory() {
        let (mut storage, state) = load(&directory);
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
        let name = "killed_process_loses_nothing_that_was_written";
        let mut child = Running::start(name, directory.path(), "");
        while written < round * 40 {
            written = child.hear().unwrap().parse().unwrap();
        }
        child.child.kill().unwrap();
        while let Some(index) = child.hear() {
            written = index.parse().unwrap();
        }
        child.child.wait().unwrap();
        let (storage, state) = load(directory.path());
        assert!(state.last.index.0 >= written, "{written} was written, the log ends at {}", state.last);
        let entries = storage.log_reader().read(LogIndex(1), state.last.index.next(), u64::MAX).unwrap();
        assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 3_000)));
    }
}

#[test]
fn full_disk_is_an_error_and_the_log_opens_again() {
    if let Some(directory) = child_directory() {
        let (mut storage, _) = load(&directory);
        storage.write(&[first_write()]).unwrap();
        for index in 1.. {
            match append(&mut storage, index, 10_000) {
                Ok(()) => say(&index.to_string()),
                Err(StorageError::Io { action: "write to", path, .. }) => return assert_eq!(path, directory),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    // A limit on the size of files stands for the full disk; without the trap, the system kills who passes it.
    let shell = "trap '' XFSZ; ulimit -f 2000;";
    let mut child = Running::start("full_disk_is_an_error_and_the_log_opens_again", directory.path(), shell);
    let mut written = 0;
    while let Some(index) = child.hear() {
        written = index.parse().unwrap();
    }
    assert!(written > 10, "only {written} entries fitted");
    child.succeeds();
    let (mut storage, state) = load(directory.path());
    assert_eq!(state.last, LogPosition::new(1, written));
    append(&mut storage, written + 1, 10_000).unwrap();
    let entries = storage.log_reader().read(LogIndex(1), LogIndex(written + 2), u64::MAX).unwrap();
    assert!((1..).zip(entries).all(|(index, found)| found == entry(index, 10_000)));
}
