//! Decoders of files: each call works in its own directory, in memory if the machine has such a file system.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use raftify::Snapshot;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, LogIndex, LogPosition, NodeId,
    StableStorage, Term,
};
use raftify_storage::{HeedStorage, SnapshotFileReader, check_directory};

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

/// LMDB's file as the check reads it. The first byte selects: all of the other bytes, or a sound file in
/// which each five bytes change one, at the position in the first four. It is refused, or has its sound
/// content.
pub fn database(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let (sound, state) = &*SOUND_DATABASE;
    let mut content = sound.clone();
    if mode.is_multiple_of(2) {
        content = rest.to_vec();
    }
    for change in rest.chunks_exact(5).filter(|_| !mode.is_multiple_of(2)) {
        let at = u32::from_be_bytes([change[0], change[1], change[2], change[3]]) as usize % content.len();
        content[at] ^= change[4];
    }
    let checked = in_directory("node", |path| {
        fs::create_dir(path).expect("there is room");
        fs::write(path.join("data.mdb"), &content).expect("there is room");
        check_directory(path).expect("it is not in use, and can be read")
    });
    // The two meta pages have no checksums.
    let has_same_beginning = content.get(..META_BYTES) == sound.get(..META_BYTES);
    if checked.is_sound() && has_same_beginning {
        assert_eq!(checked.state.as_ref(), Some(state), "a change is detected or has no effect");
    }
}

const META_BYTES: usize = 2 * 4096;

/// A file with some entries, one of which does not fit into a page, and its content.
static SOUND_DATABASE: LazyLock<(Vec<u8>, StoredState)> = LazyLock::new(|| {
    in_directory("node", |path| {
        let mut storage = HeedStorage::open(path).expect("there is room");
        storage.load().expect("it is new");
        let identity =
            Identity { cluster_id: ClusterId(7), node_id: NodeId::FIRST, incarnation: Incarnation(9) };
        let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(9) };
        let entry = |index| Entry {
            position: LogPosition::new(1, index),
            kind: EntryKind::User,
            payload: Bytes::from(vec![index as u8; if index == 5 { 10_000 } else { 300 }]),
        };
        let (identity, hard_state) = (Some(identity), Some(hard_state));
        let append = (1..=100).map(entry).collect();
        let write = Write { identity, hard_state, append, ..Write::default() };
        storage.write(&[write]).expect("there is room");
        let state = storage.load().expect("it is sound");
        drop(storage);
        (fs::read(path.join("data.mdb")).expect("it is there"), state)
    })
});
