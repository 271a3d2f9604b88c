//! Damage of snapshot files, and the failure of each file operation until a file is finished.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use raftify_core::{
    ClusterId, LogPosition, Member, Members, NodeId, SnapshotDigest, SnapshotMeta, SnapshotStore,
    SnapshotWriter, StorageError,
};
use tempfile::TempDir;

use super::encoding::*;
use super::*;
use crate::files::{FileOperations, NameOperations, NewFile, OperatingSystem, io_error};
use crate::layout::DirectoryLock;
use crate::layout::snapshots::{DIRECTORY, Incoming, Name, files_in, name_of};

fn meta(index: u64) -> SnapshotMeta {
    let members = Members::initial([Member::voter(NodeId::FIRST, "node.example:60061")]).unwrap();
    SnapshotMeta { cluster_id: ClusterId(7), position: LogPosition::new(2, index), members }
}

/// Different in every block, so that swapped blocks are different blocks.
fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 1000 + at) as u8).collect()
}

fn open(directory: &TempDir) -> SnapshotFiles {
    SnapshotFiles::open(directory.path(), DirectoryLock::take(directory.path()).unwrap()).unwrap()
}

fn take(files: &SnapshotFiles, meta: &SnapshotMeta, data: &[u8]) -> Result<u64, StorageError> {
    let mut writer = files.create(meta)?;
    writer.write_all(data).map_err(io_error("write to", Path::new("the snapshot")))?;
    writer.finish()
}

fn read(files: &SnapshotFiles, position: LogPosition) -> Result<Vec<u8>, StorageError> {
    let (_, _, mut reader) = files.open(position)?;
    let mut data = Vec::new();
    match reader.read_to_end(&mut data) {
        Ok(_) => Ok(data),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(reader.read(&mut [0; 8]).is_err(), "nothing is handed out after damage");
            Err(io_error("read", &files.path(position))(error))
        }
    }
}

fn names(directory: &TempDir) -> Vec<String> {
    let files = files_in(&directory.path().join(DIRECTORY)).unwrap();
    let mut names: Vec<String> =
        files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn file_cut_off_anywhere_is_noticed_when_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    take(&files, &meta(1), &data(70_000)).unwrap();
    let path = files.path(meta(1).position);
    let whole = fs::read(&path).unwrap();
    for length in (0..200).chain((200..whole.len()).step_by(997)).chain(whole.len() - 30..whole.len()) {
        fs::write(&path, &whole[..length]).unwrap();
        match files.open(meta(1).position) {
            Err(StorageError::Corrupt { what, .. }) => assert_eq!(what, path.display().to_string()),
            other => panic!("cut to {length} of {} bytes: {other:?}", whole.len()),
        }
    }
}

#[test]
fn flipped_bit_anywhere_never_gives_wrong_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    take(&files, &meta(1), &data(140_000)).unwrap();
    let path = files.path(meta(1).position);
    let whole = fs::read(&path).unwrap();
    for at in (0..150).chain((150..whole.len()).step_by(499)).chain(whole.len() - 30..whole.len()) {
        let mut bad = whole.clone();
        bad[at] ^= 0x04;
        fs::write(&path, &bad).unwrap();
        assert!(read(&files, meta(1).position).is_err(), "bit flipped at {at} of {}", whole.len());
    }
}

#[test]
fn swapped_missing_repeated_or_foreign_blocks_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    take(&files, &meta(1), &data(3 * BLOCK_BYTES_MAX)).unwrap();
    take(&files, &meta(2), &data(3 * BLOCK_BYTES_MAX)).unwrap();
    let path = files.path(meta(1).position);
    let whole = fs::read(&path).unwrap();
    let header = whole.len() - END_BYTES - 3 * (FRAME_BYTES + BLOCK_BYTES_MAX);
    let (header, rest) = whole.split_at(header);
    let (blocks, end) = rest.split_at(rest.len() - END_BYTES);
    let blocks: Vec<&[u8]> = blocks.chunks(FRAME_BYTES + BLOCK_BYTES_MAX).collect();
    let foreign = fs::read(files.path(meta(2).position)).unwrap();
    let foreign = &foreign[header.len()..header.len() + blocks[0].len()];
    let arrangements = [
        vec![blocks[1], blocks[0], blocks[2]],
        vec![blocks[0], blocks[2], blocks[1]],
        vec![blocks[0], blocks[2]],
        vec![blocks[0], blocks[1]],
        vec![],
        vec![blocks[0], blocks[0], blocks[1], blocks[2]],
        vec![foreign, blocks[1], blocks[2]],
    ];
    for arrangement in arrangements {
        fs::write(&path, [header, &arrangement.concat(), end].concat()).unwrap();
        assert!(read(&files, meta(1).position).is_err());
    }
    fs::write(&path, [header, &blocks.concat(), end, end].concat()).unwrap();
    assert!(read(&files, meta(1).position).is_err(), "something follows the end mark");
    fs::write(&path, [header, &blocks.concat(), end].concat()).unwrap();
    assert_eq!(read(&files, meta(1).position).unwrap(), data(3 * BLOCK_BYTES_MAX));
}

#[test]
fn file_under_the_name_of_another_position_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    take(&files, &meta(1), b"state").unwrap();
    fs::rename(files.path(meta(1).position), files.path(meta(2).position)).unwrap();
    let error = files.open(meta(2).position).unwrap_err().to_string();
    assert!(error.contains("it is of 1 of term 2, but has the name of 2 of term 2"), "{error}");
}

#[test]
fn file_of_another_version_or_group_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    take(&files, &meta(1), b"state").unwrap();
    let path = files.path(meta(1).position);
    let whole = fs::read(&path).unwrap();
    let mut newer = whole.clone();
    newer[11] = 3;
    fs::write(&path, &newer).unwrap();
    let opened = SnapshotFileReader::open(&path);
    assert!(matches!(opened, Err(StorageError::Version { found: 3, known: 2, .. })), "{opened:?}");
    fs::write(&path, "something else entirely, and long enough to be a header of a snapshot").unwrap();
    let error = SnapshotFileReader::open(&path).unwrap_err().to_string();
    assert!(error.contains("it is no snapshot file of raftify"), "{error}");
}

#[test]
fn half_written_file_is_ignored_and_removed_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    take(&files, &meta(1), b"state").unwrap();
    drop(files);
    let left = directory.path().join(DIRECTORY).join("0000000000000002-0000000000000002.1.partial");
    fs::write(&left, "half").unwrap();
    let foreign = directory.path().join(DIRECTORY).join("notes.txt");
    fs::write(&foreign, "of the operator").unwrap();
    let files = open(&directory);
    assert!(matches!(files.open(meta(2).position), Err(StorageError::NoSnapshot { .. })));
    assert_eq!(names(&directory), ["0000000000000002-0000000000000001.snapshot", "notes.txt"]);
    files.retain(&[]).unwrap();
    assert_eq!(names(&directory), ["notes.txt"], "files of other names are left alone");
}

/// Records every operation, and lets one of them fail as a full disk does.
#[derive(Clone)]
struct Faulty {
    operations: Arc<Mutex<Vec<&'static str>>>,
    until_failure: Arc<AtomicUsize>,
}

impl Faulty {
    fn new(until_failure: usize) -> Faulty {
        Faulty { operations: Arc::default(), until_failure: Arc::new(AtomicUsize::new(until_failure)) }
    }

    fn enter(&self, operation: &'static str) -> io::Result<()> {
        self.operations.lock().push(operation);
        match self.until_failure.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn open(&self, directory: &TempDir) -> SnapshotFiles {
        let lock = DirectoryLock::take(directory.path()).unwrap();
        SnapshotFiles::with_operations(directory.path(), lock, Box::new(self.clone())).unwrap()
    }
}

impl FileOperations for Faulty {
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        self.enter("create")?;
        Ok(Box::new(FaultyFile { faulty: self.clone(), file: OperatingSystem.create(path)? }))
    }

    fn append(&self, path: &Path, length_bytes: u64) -> io::Result<Box<dyn NewFile>> {
        self.enter("append")?;
        let file = OperatingSystem.append(path, length_bytes)?;
        Ok(Box::new(FaultyFile { faulty: self.clone(), file }))
    }
}

impl NameOperations for Faulty {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.enter("rename")?;
        OperatingSystem.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.enter("sync directory")?;
        OperatingSystem.sync_directory(path)
    }

    /// Cleanup after a failure, which never fails itself.
    fn remove(&self, path: &Path) -> io::Result<()> {
        OperatingSystem.remove(path)
    }
}

struct FaultyFile {
    faulty: Faulty,
    file: Box<dyn NewFile>,
}

impl Write for FaultyFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.faulty.enter("write") {
            // A disk that fills up stores a part of the data.
            self.file.write_all(&data[..data.len() / 2])?;
            return Err(error);
        }
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        self.faulty.enter("sync")?;
        self.file.sync()
    }
}

#[test]
fn file_is_synced_before_it_gets_its_name_and_the_directory_after() {
    let directory = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(usize::MAX);
    take(&faulty.open(&directory), &meta(1), &data(70_000)).unwrap();
    let header_two_blocks_and_end = ["write"; 4];
    let expected =
        [&["create"][..], &header_two_blocks_and_end, &["sync", "rename", "sync directory"]].concat();
    assert_eq!(*faulty.operations.lock(), expected);
}

#[test]
fn large_snapshot_is_synced_in_pieces_so_that_the_log_need_not_wait_for_all_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(usize::MAX);
    take(&faulty.open(&directory), &meta(1), &data(9 << 20)).unwrap();
    let operations = faulty.operations.lock();
    let pieces: Vec<_> = operations.split(|operation| *operation == "sync").collect();
    assert_eq!(pieces.len(), 4, "two pieces, the rest, and what follows the last sync");
    assert!(pieces.iter().all(|piece| piece.len() <= 4 * 16 + 4), "{pieces:?}");
}

#[test]
fn failure_of_any_operation_leaves_the_old_snapshot_or_a_whole_new_one() {
    let (old, new) = (data(1_000), data(70_000));
    let steps = 8;
    for failing in 0..=steps {
        for with_old in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            if with_old {
                take(&open(&directory), &meta(1), &old).unwrap();
            }
            let faulty = Faulty::new(failing);
            let files = faulty.open(&directory);
            let taken = take(&files, &meta(1), &new);
            let renamed = failing >= steps - 1;
            match taken {
                Ok(length) => assert_eq!((length, failing), (new.len() as u64, steps)),
                Err(StorageError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
                Err(error) => panic!("{error}"),
            }
            match read(&files, meta(1).position) {
                Ok(found) if renamed => assert_eq!(found, new),
                Ok(found) => assert!(with_old && found == old),
                Err(StorageError::NoSnapshot { .. }) => assert!(!renamed && !with_old),
                Err(error) => panic!("operation {failing} failed: {error}"),
            }
            let left = names(&directory);
            assert!(left.iter().all(|name| name.ends_with(".snapshot")), "nothing half is left: {left:?}");
        }
    }
}

#[test]
fn writer_that_failed_once_fails_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let files = Faulty::new(2).open(&directory);
    let mut writer = files.create(&meta(1)).unwrap();
    assert!(writer.write_all(&data(70_000)).is_err(), "the third operation is the first block");
    assert!(writer.write_all(&data(70_000)).is_err());
    assert!(writer.finish().is_err());
    assert!(matches!(files.open(meta(1).position), Err(StorageError::NoSnapshot { .. })));
}

fn digest(data: &[u8]) -> SnapshotDigest {
    SnapshotDigest::default().followed_by(data)
}

/// Begins to receive `data`, or resumes; returns how many bytes of it are stored.
fn receive(files: &SnapshotFiles, meta: &SnapshotMeta, data: &[u8]) -> (SnapshotFileWriter, usize) {
    let (writer, received) = files.receive(meta, digest(data), &|| true).unwrap();
    let length = received.data_bytes as usize;
    assert_eq!(received, digest(&data[..length]));
    (writer, length)
}

/// Receives the rest of `data`, of which `begin_at` bytes are stored, and finishes it.
fn receive_rest(files: &SnapshotFiles, meta: &SnapshotMeta, data: &[u8], begin_at: usize) {
    let (mut writer, found) = receive(files, meta, data);
    assert_eq!(found, begin_at);
    writer.write_all(&data[begin_at..]).unwrap();
    assert_eq!(writer.finish().unwrap(), data.len() as u64);
    assert_eq!(read(files, meta.position).unwrap(), data);
}

/// The state in which a killed node leaves the directory while a writer has it open.
fn killed(directory: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let snapshots = copy.path().join(DIRECTORY);
    fs::create_dir(&snapshots).unwrap();
    for path in files_in(&directory.path().join(DIRECTORY)).unwrap() {
        fs::copy(&path, snapshots.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// The one file that is being received.
fn incoming_path(directory: &TempDir) -> PathBuf {
    let files = files_in(&directory.path().join(DIRECTORY)).unwrap();
    let mut incoming = files.into_iter().filter(|path| matches!(name_of(path), Some(Name::Incoming(_))));
    let path = incoming.next().expect("nothing is being received");
    assert!(incoming.next().is_none());
    path
}

#[test]
fn node_that_is_killed_while_it_receives_goes_on_after_the_last_whole_block() {
    let data = data(5 * BLOCK_BYTES_MAX + 100);
    for (written, left) in [(0, 0), (10, 0), (2 * BLOCK_BYTES_MAX + 10, 2 * BLOCK_BYTES_MAX)] {
        let directory = tempfile::tempdir().unwrap();
        let files = open(&directory);
        let (mut writer, _) = receive(&files, &meta(1), &data);
        writer.write_all(&data[..written]).unwrap();
        let directory = killed(&directory);
        let files = open(&directory);
        assert!(matches!(files.open(meta(1).position), Err(StorageError::NoSnapshot { .. })));
        receive_rest(&files, &meta(1), &data, left);
        assert_eq!(names(&directory), ["0000000000000002-0000000000000001.snapshot"]);
    }
}

#[test]
fn file_that_was_received_in_full_and_not_renamed_is_only_finished() {
    let directory = tempfile::tempdir().unwrap();
    let data = data(2 * BLOCK_BYTES_MAX);
    let files = open(&directory);
    let (mut writer, _) = receive(&files, &meta(1), &data);
    writer.write_all(&data).unwrap();
    let end = writer.blocks.end();
    writer.file.write_all(&end).unwrap();
    let directory = killed(&directory);
    receive_rest(&open(&directory), &meta(1), &data, data.len());
}

#[test]
fn damaged_block_of_an_unfinished_file_and_what_follows_it_is_received_once_more() {
    let directory = tempfile::tempdir().unwrap();
    let data = data(5 * BLOCK_BYTES_MAX);
    let block = FRAME_BYTES + BLOCK_BYTES_MAX;
    let files = open(&directory);
    let (mut writer, _) = receive(&files, &meta(1), &data);
    writer.write_all(&data[..4 * BLOCK_BYTES_MAX]).unwrap();
    drop(writer);
    drop(files);
    let path = incoming_path(&directory);
    let whole = fs::read(&path).unwrap();
    let header = whole.len() - 4 * block;
    let mut zeroed = whole.clone();
    zeroed[header + 2 * block..].fill(0);
    let flipped = |at: usize| {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        bad
    };
    let cases = [
        (flipped(0), 0),
        (flipped(header - 1), 0),
        (flipped(header), 0),
        (flipped(header + block - 1), 0),
        (flipped(header + 2 * block + 5), 2),
        (flipped(whole.len() - 1), 3),
        (whole[..whole.len() - 1].to_vec(), 3),
        (whole[..header + block + 3].to_vec(), 1),
        (whole[..header - 1].to_vec(), 0),
        (Vec::new(), 0),
        (zeroed, 2),
        (whole.clone(), 4),
    ];
    for (content, blocks) in cases {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
        fs::write(directory.path().join(DIRECTORY).join(path.file_name().unwrap()), content).unwrap();
        receive_rest(&open(&directory), &meta(1), &data, blocks * BLOCK_BYTES_MAX);
        assert_eq!(names(&directory), ["0000000000000002-0000000000000001.snapshot"]);
    }
}

#[test]
fn data_under_the_name_of_other_data_is_not_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (data(2 * BLOCK_BYTES_MAX), vec![7; BLOCK_BYTES_MAX]);
    let files = open(&directory);
    let (mut writer, _) = receive(&files, &meta(1), &one);
    writer.write_all(&one).unwrap();
    drop(writer);
    let named = Incoming { position: meta(1).position, announced: digest(&other) };
    fs::rename(incoming_path(&directory), named.path_in(&directory.path().join(DIRECTORY))).unwrap();
    receive_rest(&files, &meta(1), &other, 0);
}

#[test]
fn newest_of_several_unfinished_files_is_kept_at_the_next_start() {
    let data = data(2 * BLOCK_BYTES_MAX);
    let directory = tempfile::tempdir().unwrap();
    let snapshots = directory.path().join(DIRECTORY);
    fs::create_dir(&snapshots).unwrap();
    let all: Vec<SnapshotMeta> = [3, 12, 5].map(meta).into();
    for meta in &all {
        let other = tempfile::tempdir().unwrap();
        let (mut writer, _) = receive(&open(&other), meta, &data);
        writer.write_all(&data[..BLOCK_BYTES_MAX]).unwrap();
        drop(writer);
        let path = incoming_path(&other);
        fs::copy(&path, snapshots.join(path.file_name().unwrap())).unwrap();
    }
    // A newer one, but its header is incomplete.
    let torn = Incoming { position: meta(20).position, announced: digest(&data) };
    fs::write(torn.path_in(&snapshots), &encode_header(&meta(20)).unwrap().0[..40]).unwrap();
    let foreign = "notes.incoming";
    fs::write(snapshots.join(foreign), "of the operator").unwrap();
    let files = open(&directory);
    let kept = incoming_path(&directory).file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(names(&directory), [kept.as_str(), foreign]);
    receive_rest(&files, &meta(12), &data, BLOCK_BYTES_MAX);
}

#[test]
fn snapshot_that_is_being_received_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    let data = data(100);
    let (mut writer, _) = receive(&files, &meta(1), &data);
    writer.write_all(&data[..60]).unwrap();
    assert!(files.receive(&meta(1), digest(&data), &|| true).is_err());
    drop(writer);
    receive_rest(&files, &meta(1), &data, 60);
}

#[test]
fn a_receiver_that_is_not_wanted_any_more_stops_reading_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let files = open(&directory);
    let data = data(4 * BLOCK_BYTES_MAX);
    let (mut writer, _) = receive(&files, &meta(1), &data);
    writer.write_all(&data[..3 * BLOCK_BYTES_MAX]).unwrap();
    drop(writer);
    let asked = AtomicUsize::new(0);
    let is_wanted = || asked.fetch_add(1, Ordering::Relaxed) < 2;
    assert!(files.receive(&meta(1), digest(&data), &is_wanted).is_err());
    assert_eq!(asked.into_inner(), 3);
    receive_rest(&files, &meta(1), &data, 3 * BLOCK_BYTES_MAX);
}

#[test]
fn name_of_what_is_received_is_durable_with_its_first_piece() {
    let directory = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(usize::MAX);
    let files = faulty.open(&directory);
    let data = data(9 << 20);
    let (mut writer, _) = receive(&files, &meta(1), &data);
    writer.write_all(&data).unwrap();
    let mut operations = faulty.operations.lock().clone();
    operations.retain(|operation| *operation != "write");
    assert_eq!(operations, ["create", "sync", "sync directory", "sync"]);
}

#[test]
fn failure_while_receiving_leaves_nothing_or_what_can_be_gone_on_with() {
    let data = data(2 * BLOCK_BYTES_MAX + 100);
    for failing in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, _) = receive(&open(&directory), &meta(1), &data);
        writer.write_all(&data[..BLOCK_BYTES_MAX]).unwrap();
        drop(writer);
        let faulty = Faulty::new(failing);
        let files = faulty.open(&directory);
        let received = files.receive(&meta(1), digest(&data), &|| true).and_then(|(mut writer, there)| {
            let rest = &data[there.data_bytes as usize..];
            writer.write_all(rest).map_err(io_error("write to", Path::new("the snapshot")))?;
            writer.finish()
        });
        drop(files);
        if received.is_ok() {
            assert_eq!(failing, 7, "append, two blocks, the end mark, sync, rename, sync directory");
            assert_eq!(names(&directory), ["0000000000000002-0000000000000001.snapshot"]);
            return;
        }
        let files = open(&directory);
        if failing >= 6 {
            assert_eq!(read(&files, meta(1).position).unwrap(), data);
            continue;
        }
        assert!(matches!(files.open(meta(1).position), Err(StorageError::NoSnapshot { .. })));
        receive_rest(&files, &meta(1), &data, if failing == 0 { BLOCK_BYTES_MAX } else { 0 });
    }
    panic!("it never succeeded");
}
