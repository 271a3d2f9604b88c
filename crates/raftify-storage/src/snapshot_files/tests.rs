//! Damage of snapshot files, and the failure of each file operation on the way to a finished one.

use std::sync::atomic::{AtomicUsize, Ordering};

use raftify_core::{Member, NodeId};
use tempfile::TempDir;

use super::*;
use crate::files::NameOperations;
use crate::files::OperatingSystem;

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
        self.operations.lock().unwrap().push(operation);
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

    /// Cleans up after a failure, and is not made to fail itself.
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
            // A disk that fills up takes a part of the data.
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
    assert_eq!(*faulty.operations.lock().unwrap(), expected);
}

#[test]
fn large_snapshot_is_synced_in_pieces_so_that_the_log_need_not_wait_for_all_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let faulty = Faulty::new(usize::MAX);
    take(&faulty.open(&directory), &meta(1), &data(9 << 20)).unwrap();
    let operations = faulty.operations.lock().unwrap();
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
