//! Restored directories of both storages, refusals, and interruptions at any step.

use std::io::{Read as _, Write as _};

use raftify_core::{LogPosition, MemberRole, NodeId, Term};
use tempfile::TempDir;

use super::*;
use crate::backup::copy_newest_snapshot;
use crate::check_directory;
use crate::fails_from::FailsFrom;
use crate::layout::snapshots as names;
use crate::read_only::ReadOnlyStorage;

const KINDS: [StorageKind; 2] = [StorageKind::Heed, StorageKind::Wal];
const POSITION: LogPosition = LogPosition::new(3, 50);
const FORMER: ClusterId = ClusterId(7);

fn settings() -> WalSettings {
    WalSettings { segment_bytes: 64 << 10 }
}

fn id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn voter(number: u64) -> Member {
    Member::voter(id(number), format!("node-{number}.example:60061"))
}

/// A snapshot file with 100 000 bytes of data, and its directory.
fn backup() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let lock = DirectoryLock::take(directory.path()).unwrap();
    let snapshots = SnapshotFiles::open(directory.path(), lock).unwrap();
    let members = Members::initial([voter(1), voter(2), voter(3)]).unwrap();
    let meta = SnapshotMeta { cluster_id: FORMER, position: POSITION, members };
    let mut writer = snapshots.create(&meta).unwrap();
    writer.write_all(&[0x5a; 100_000]).unwrap();
    writer.finish().unwrap();
    let path = names::path_of(&names::directory_in(directory.path()), POSITION);
    (directory, path)
}

fn into(place: &TempDir, numbers: &[u64]) -> Vec<RestoreInto> {
    let node = |number: &u64| RestoreInto {
        directory: place.path().join(format!("node-{number}")),
        member: voter(*number),
    };
    numbers.iter().map(node).collect()
}

#[test]
fn a_restored_cluster_has_the_state_a_new_id_and_only_the_given_members() {
    let (_kept, file) = backup();
    for kind in KINDS {
        let place = tempfile::tempdir().unwrap();
        let nodes = into(&place, &[1, 2, 3]);
        let restored = restore_directories_with(&file, &nodes, kind, settings()).unwrap();
        assert_eq!((restored.from.cluster_id, restored.from.position), (FORMER, POSITION));
        assert_ne!(restored.cluster_id, FORMER);
        for node in &nodes {
            assert_eq!(check_directory(&node.directory).unwrap().problems, []);
            let storage = ReadOnlyStorage::open(&node.directory).unwrap();
            let state = storage.load().unwrap();
            let identity = state.identity.unwrap();
            assert_eq!((identity.cluster_id, identity.node_id), (restored.cluster_id, node.member.id));
            assert_eq!((state.truncated, state.last), (POSITION, POSITION));
            assert_eq!(state.hard_state, HardState { term: Term(3), vote: None, commit: POSITION.index });
            let members = state.members.unwrap();
            assert_eq!((members.len(), members.clone()), (3, restored.members.clone()));
            assert_eq!(members.get(identity.node_id).unwrap().incarnation, Some(identity.incarnation));
            let mut data = Vec::new();
            storage.open_snapshot(POSITION).unwrap().2.read_to_end(&mut data).unwrap();
            assert_eq!(data, [0x5a; 100_000]);
            assert!(!node.directory.join(RESTORE).exists());
        }
    }
}

#[test]
fn a_directory_that_is_not_empty_or_in_use_is_refused_before_anything_is_changed() {
    let (kept, file) = backup();
    let place = tempfile::tempdir().unwrap();
    let nodes = into(&place, &[1, 2]);
    let refused = |nodes: &[RestoreInto]| restore_directories(&file, nodes, StorageKind::Wal).unwrap_err();
    fs::create_dir(&nodes[1].directory).unwrap();
    fs::write(nodes[1].directory.join("a file"), "of someone").unwrap();
    assert!(matches!(refused(&nodes), RestoreError::NotEmpty { .. }));
    assert!(!nodes[0].directory.exists(), "all directories are looked at before the first is made");
    fs::remove_file(nodes[1].directory.join("a file")).unwrap();
    let lock = DirectoryLock::take(&nodes[1].directory).unwrap();
    assert!(matches!(refused(&nodes[1..]), RestoreError::Storage(StorageError::InUse { .. })));
    drop(lock);
    let itself = RestoreInto { directory: kept.path().to_owned(), member: voter(1) };
    assert!(matches!(refused(&[itself]), RestoreError::NotEmpty { .. }));
    assert!(verify_snapshot_file(&file).is_ok(), "the file was not touched");
    let same = [nodes[1].clone(), RestoreInto { member: voter(3), ..nodes[1].clone() }];
    assert!(matches!(refused(&same), RestoreError::SameDirectory { .. }));
    let twice = [nodes[1].clone(), RestoreInto { member: voter(2), directory: place.path().join("other") }];
    assert!(matches!(refused(&twice), RestoreError::Members(MembershipRefusal::NamedTwice { .. })));
    let role = MemberRole::Learner;
    let learner = RestoreInto { member: Member { role, ..voter(2) }, ..nodes[1].clone() };
    assert!(matches!(refused(&[learner]), RestoreError::Members(MembershipRefusal::LastVoter)));
    assert!(matches!(refused(&[]), RestoreError::Members(MembershipRefusal::LastVoter)));
}

#[test]
fn cut_altered_and_newer_files_are_refused_with_their_kind_and_leave_nothing() {
    let (_kept, file) = backup();
    let whole = fs::read(&file).unwrap();
    let place = tempfile::tempdir().unwrap();
    let nodes = into(&place, &[1]);
    let mut newer = whole.clone();
    newer[11] = 3;
    let mut altered = whole.clone();
    altered[50_000] ^= 1;
    for (content, is_version) in [(&whole[..60_000], false), (&altered, false), (&newer, true), (&[], false)]
    {
        fs::write(&file, content).unwrap();
        let refused = restore_directories(&file, &nodes, StorageKind::Wal);
        match refused.unwrap_err() {
            RestoreError::Storage(StorageError::Version { found: 3, .. }) if is_version => {}
            RestoreError::Storage(StorageError::Corrupt { .. }) if !is_version => {}
            error => panic!("{error}"),
        }
        assert!(!nodes[0].directory.exists());
    }
}

#[test]
fn a_restore_that_is_interrupted_at_any_step_can_be_run_again_and_no_node_uses_the_remains() {
    let (_kept, file) = backup();
    for kind in KINDS {
        let mut operation = 0;
        loop {
            let place = tempfile::tempdir().unwrap();
            let nodes = into(&place, &[1]);
            let operations = FailsFrom::new(operation);
            if restore(&file, &nodes, kind, &settings(), &operations).is_ok() {
                break;
            }
            let directory = &nodes[0].directory;
            let opened = match kind {
                StorageKind::Heed => HeedStorage::open(directory).map(drop),
                StorageKind::Wal => WalStorage::open_with(directory, settings()).map(drop),
            };
            match opened {
                Err(StorageError::Interrupted { command: "restore", .. }) => {
                    restore_directories_with(&file, &nodes, kind, settings()).unwrap();
                }
                Err(error) => panic!("{kind}, step {operation}: {error}"),
                // Only the last name was not made durable.
                Ok(()) => {}
            }
            assert_eq!(check_directory(directory).unwrap().problems, []);
            operation += 1;
        }
        assert!(operation >= 6, "{operation} steps");
    }
}

#[test]
fn the_newest_snapshot_is_copied_also_while_the_directory_is_in_use_and_no_file_is_replaced() {
    let (_kept, file) = backup();
    let place = tempfile::tempdir().unwrap();
    let nodes = into(&place, &[1]);
    for kind in KINDS {
        let directory = &nodes[0].directory;
        restore_directories_with(&file, &nodes, kind, settings()).unwrap();
        let _in_use = DirectoryLock::take(directory).unwrap();
        let copied = place.path().join(kind.short_name());
        let (meta, bytes) = copy_newest_snapshot(directory, &copied).unwrap();
        assert_eq!((meta.position, bytes), (POSITION, 100_000));
        assert_eq!(verify_snapshot_file(&copied).unwrap(), (meta, bytes));
        match copy_newest_snapshot(directory, &copied) {
            Err(StorageError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::AlreadyExists),
            other => panic!("{other:?}"),
        }
        fs::remove_dir_all(directory).unwrap();
    }
    let empty = tempfile::tempdir().unwrap();
    HeedStorage::open(empty.path()).unwrap().load().unwrap();
    let copied = copy_newest_snapshot(empty.path(), place.path().join("none"));
    assert!(matches!(copied, Err(StorageError::NoSnapshot { .. })), "{copied:?}");
    assert!(!place.path().join("none.partial").exists());
}
