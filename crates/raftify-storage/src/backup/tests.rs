//! Backups that are interrupted, resumed, altered, or written twice at once.

use raftify_core::{ClusterId, Member, Members, NodeId};
use tempfile::TempDir;

use super::*;

const BYTES: usize = 300_000;

fn meta(index: u64) -> SnapshotMeta {
    let members = Members::initial([Member::voter(NodeId::FIRST, "node.example:60061")]).unwrap();
    SnapshotMeta { cluster_id: ClusterId(7), position: LogPosition::new(2, index), members }
}

fn data() -> Vec<u8> {
    (0..BYTES).map(|at| (at / 1000 + at) as u8).collect()
}

fn digest(data: &[u8]) -> SnapshotDigest {
    SnapshotDigest::default().followed_by(data)
}

fn place() -> (TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (file, partial) = (directory.path().join("a.backup"), directory.path().join("a.backup.partial"));
    (directory, file, partial)
}

/// A backup that was interrupted after so many bytes.
fn interrupted(file: &Path, bytes: usize) {
    let mut backup = BackupFile::open(file).unwrap();
    backup.begin(&meta(5)).unwrap();
    backup.write(&data()[..bytes]).unwrap();
    assert_eq!(backup.digest(), digest(&data()[..bytes]));
}

#[track_caller]
fn exists_already<T: std::fmt::Debug>(outcome: Result<T, StorageError>) {
    match outcome {
        Err(StorageError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::AlreadyExists),
        other => panic!("{other:?}"),
    }
}

#[test]
fn interrupted_backup_is_resumed_after_its_last_whole_block_and_is_the_same_file_in_the_end() {
    let (_directory, whole, _) = place();
    let mut backup = BackupFile::open(&whole).unwrap();
    backup.begin(&meta(5)).unwrap();
    backup.write(&data()).unwrap();
    assert_eq!(backup.finish(digest(&data())).unwrap(), (meta(5), BYTES as u64));
    for (bytes, valid) in [(0, 0), (1000, 0), (65_536, 65_536), (200_000, 3 * 65_536), (BYTES, 4 * 65_536)] {
        let (_directory, file, partial) = place();
        interrupted(&file, bytes);
        assert!(partial.exists() && !file.exists());
        let mut backup = BackupFile::open(&file).unwrap();
        assert_eq!(backup.resume().unwrap(), Some((meta(5), digest(&data()[..valid]))));
        for piece in data()[valid..].chunks(7_777) {
            backup.write(piece).unwrap();
        }
        assert_eq!(backup.finish(digest(&data())).unwrap(), (meta(5), BYTES as u64));
        assert_eq!(fs::read(&file).unwrap(), fs::read(&whole).unwrap());
        assert!(!partial.exists());
    }
}

#[test]
fn damaged_part_of_an_interrupted_backup_and_what_follows_it_is_cut_off() {
    let (_directory, file, partial) = place();
    interrupted(&file, 200_000);
    let content = fs::read(&partial).unwrap();
    let header = content.len() - 3 * (8 + 65_536);
    for (at, valid) in [(header + 20, 0), (header + 8 + 65_536 + 3, 65_536), (content.len() - 1, 2 * 65_536)]
    {
        let mut altered = content.clone();
        altered[at] ^= 4;
        fs::write(&partial, &altered).unwrap();
        let mut backup = BackupFile::open(&file).unwrap();
        assert_eq!(backup.resume().unwrap(), Some((meta(5), digest(&data()[..valid]))));
    }
    fs::write(&partial, &content[..header - 1]).unwrap();
    assert_eq!(BackupFile::open(&file).unwrap().resume().unwrap(), None, "the header is incomplete");
    fs::write(&partial, "something else").unwrap();
    let mut backup = BackupFile::open(&file).unwrap();
    assert_eq!(backup.resume().unwrap(), None);
    assert!(backup.write(b"data").is_err(), "nothing was begun");
    backup.begin(&meta(6)).unwrap();
    backup.write(b"data").unwrap();
    assert_eq!(backup.finish(digest(b"data")).unwrap(), (meta(6), 4));
}

#[test]
fn file_of_that_name_is_never_replaced_also_if_it_is_made_meanwhile() {
    let (_directory, file, partial) = place();
    let mut backup = BackupFile::open(&file).unwrap();
    backup.begin(&meta(5)).unwrap();
    fs::write(&file, "of another program").unwrap();
    exists_already(backup.finish(SnapshotDigest::default()));
    exists_already(BackupFile::open(&file).map(drop));
    assert_eq!(fs::read(&file).unwrap(), b"of another program");
    assert!(partial.exists(), "the backup is complete, and can be given another name");
    assert_eq!(verify_snapshot_file(&partial).unwrap(), (meta(5), 0));
}

#[test]
fn two_commands_do_not_write_one_file_at_once() {
    let (_directory, file, partial) = place();
    let first = BackupFile::open(&file).unwrap();
    match BackupFile::open(&file).map(drop) {
        Err(StorageError::InUse { path }) => assert_eq!(path, partial),
        other => panic!("{other:?}"),
    }
    drop(first);
    assert!(!partial.exists(), "nothing was written");
    BackupFile::open(&file).unwrap();
}

#[test]
fn data_with_another_digest_than_announced_is_discarded() {
    let (_directory, file, partial) = place();
    interrupted(&file, 200_000);
    let mut backup = BackupFile::open(&file).unwrap();
    backup.resume().unwrap();
    backup.write(&data()[3 * 65_536 + 1..]).unwrap();
    let error = backup.finish(digest(&data())).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    assert!(!file.exists() && !partial.exists());
}
