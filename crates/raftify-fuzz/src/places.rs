//! Decoders of files: each call works in its own directory, in memory if the machine has such a file system.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use raftify::Snapshot;
use raftify_storage::{BackupFile, SnapshotFileReader};

/// Calls `act` with a path in an empty directory, which is removed afterwards.
fn in_directory<T>(name: &str, act: impl FnOnce(&Path) -> T) -> T {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let place = tempfile::Builder::new().prefix("raftify-fuzz-").tempdir_in(place);
    let place = place.expect("a directory can be created");
    act(&place.path().join(name))
}

/// Snapshot files: arbitrary bytes, and a file that is correct but for one byte.
pub fn snapshot_file(bytes: &[u8]) {
    let read = |content: &[u8]| {
        in_directory("file.snapshot", |path| {
            fs::write(path, content).expect("there is room");
            let (meta, data_bytes, mut reader) = SnapshotFileReader::open(path).ok()?;
            let mut data = Vec::new();
            reader.read_to_end(&mut data).ok()?;
            assert_eq!(data.len() as u64, data_bytes);
            Some((meta, data))
        })
    };
    read(bytes);
    in_directory("file.backup", |path| {
        fs::write(path.with_extension("backup.partial"), bytes).expect("there is room");
        let mut backup = BackupFile::open(path).expect("it is the only one");
        let Some((meta, digest)) = backup.resume().expect("it can be read") else { return };
        let finished = backup.finish(digest).expect("what is continued is valid");
        assert_eq!(finished, (meta, digest.data_bytes));
    });
    let Some((file, meta, data)) = raftify_storage::inner::snapshot_file(bytes) else { return };
    assert_eq!(read(&file), Some((meta, data)), "the file round-trips");
    if let [.., first, second, change] = bytes
        && *change != 0
    {
        let mut damaged = file;
        let at = usize::from(u16::from_be_bytes([*first, *second])) % damaged.len();
        damaged[at] ^= change;
        assert_eq!(read(&damaged), None, "a change of byte {at} is detected");
    }
}

/// Snapshots that are sets of files: nothing is written outside of the target directory, and a rejected
/// snapshot leaves no files.
pub fn snapshot_directory(bytes: &[u8]) {
    in_directory("unpacked", |path| {
        let unpacked = Snapshot::read_directory(&mut &*bytes, path);
        assert_eq!(unpacked.is_ok(), path.exists());
        if unpacked.is_ok() {
            fs::remove_dir_all(path).expect("it was just made");
        }
        let parent = path.parent().expect("it is in the directory");
        let stray = fs::read_dir(parent).expect("it is there").filter_map(Result::ok).next();
        assert!(stray.is_none(), "written outside of its directory: {stray:?}");
    });
}

/// The members of a static cluster, as the example reads them.
pub fn peers(bytes: &[u8]) {
    in_directory("peers.toml", |path| {
        fs::write(path, bytes).expect("there is room");
        if let Err(error) = memstore::load_peers(path) {
            assert!(!error.to_string().is_empty());
        }
    });
}
