//! Recoveries of both storages, the choice of a survivor, and the state of the directory after an
//! interruption at any step.

use std::io::Write as _;

use bytes::Bytes;
use raftify_core::{Incarnation, Member};
use tempfile::TempDir;

use super::*;
use crate::check_directory;
use crate::fails_from::FailsFrom;

const KINDS: [StorageKind; 2] = [StorageKind::Heed, StorageKind::Wal];
const FORMER: ClusterId = ClusterId(7);
const NEW: ClusterId = ClusterId(8);

fn id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn settings() -> WalSettings {
    WalSettings { segment_bytes: 64 << 10 }
}

fn members() -> Members {
    Members::initial((1..=3).map(|number| Member::voter(id(number), format!("node-{number}.example:60061"))))
        .unwrap()
}

fn user(term: u64, index: u64) -> Entry {
    let payload = Bytes::from(vec![index as u8; 2_000]);
    Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload }
}

fn change(index: u64, change: MembershipChange) -> Entry {
    Entry {
        position: LogPosition::new(2, index),
        kind: EntryKind::MembershipChange,
        payload: change.encode(),
    }
}

/// Node 3 of a cluster of three: entries 5 to 40 and `tail`, a snapshot at 10, committed up to 30.
fn fill(mut storage: impl StableStorage, tail: &[Entry]) {
    storage.load().unwrap();
    let position = LogPosition::new(1, 10);
    let snapshot = SnapshotMeta { cluster_id: FORMER, position, members: members() };
    let mut writer = storage.snapshots().create(&snapshot).unwrap();
    writer.write_all(&[0x5a; 100_000]).unwrap();
    writer.finish().unwrap();
    let identity = Identity { cluster_id: FORMER, node_id: id(3), incarnation: Incarnation(9) };
    let append = (2..=20).map(|index| user(1, index)).chain((21..=40).map(|index| user(2, index)));
    let write = Write {
        identity: Some(identity),
        reset_log: Some(LogPosition::new(1, 1)),
        append: append.chain(tail.iter().cloned()).collect(),
        hard_state: Some(HardState { term: Term(3), vote: Some(id(2)), commit: LogIndex(30) }),
        members: Some(members()),
        remembered: Some(Arc::new(Remembered { starts: 4, ..Remembered::default() })),
        snapshot: Some(snapshot),
        compact: Some(LogPosition::new(1, 4)),
    };
    storage.write(&[write]).unwrap();
}

fn filled_with(kind: StorageKind, tail: &[Entry]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    match kind {
        StorageKind::Heed => fill(HeedStorage::open(directory.path()).unwrap(), tail),
        StorageKind::Wal => fill(WalStorage::open_with(directory.path(), settings()).unwrap(), tail),
    }
    directory
}

fn filled(kind: StorageKind) -> TempDir {
    filled_with(kind, &[])
}

/// State, entries and snapshot.
type Content = (StoredState, Vec<Entry>, Vec<u8>);

fn content(directory: &Path) -> Content {
    let storage = ReadOnlyStorage::open(directory).unwrap();
    let state = storage.load().unwrap();
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    let entries = storage.log_reader().read(from, until, u64::MAX).unwrap();
    let mut data = Vec::new();
    let position = state.snapshot.as_ref().unwrap().position;
    storage.open_snapshot(position).unwrap().2.read_to_end(&mut data).unwrap();
    (state, entries, data)
}

fn recover_small(directory: &Path, operations: &dyn NameOperations) -> Result<Recovery, RecoverError> {
    recover(directory, NEW, &settings(), operations)
}

/// Asserts that the directory is the new cluster, made of `before`, and that it keeps its former content.
#[track_caller]
fn assert_recovered(directory: &Path, before: &Content) {
    let (state, entries, data) = content(directory);
    let (old, old_entries, old_data) = before;
    let identity = old.identity.unwrap();
    assert_eq!(state.identity, Some(Identity { cluster_id: NEW, ..identity }));
    assert_eq!(entries[..old_entries.len()], old_entries[..], "no entry is lost");
    assert_eq!(&data, old_data);
    assert_eq!(state.snapshot.as_ref().unwrap().cluster_id, NEW);
    let own = identity.node_id;
    let hard_state = HardState { term: Term(4), vote: Some(own), commit: state.last.index };
    assert_eq!(state.hard_state, hard_state);
    assert_eq!(*state.remembered, Remembered { starts: 4, ..Remembered::default() });
    let members = state.members.unwrap();
    assert_eq!(
        members.iter().map(|member| (member.id, member.role)).collect::<Vec<_>>(),
        [(own, MemberRole::Voter)]
    );
    assert!(!members.is_joint() && members.as_of() == state.last.index);
    assert_eq!(&content(&directory.join(ORIGINAL)), before, "the former content is kept");
    for place in [directory, &directory.join(ORIGINAL)] {
        assert_eq!(check_directory(place).unwrap().problems, []);
    }
    assert!(!directory.join(RECOVERY).exists());
}

#[test]
fn a_recovered_directory_is_a_cluster_of_its_node_alone_and_keeps_all_entries() {
    for kind in KINDS {
        let directory = filled(kind);
        let before = content(directory.path());
        let recovery = recover_small(directory.path(), &OperatingSystem).unwrap();
        assert_eq!((recovery.from.cluster_id, recovery.to.cluster_id), (FORMER, NEW));
        assert!(!recovery.resumed);
        assert_recovered(directory.path(), &before);
        // The next member gets an id that no member of the former cluster had.
        let (state, entries, _) = content(directory.path());
        let members = state.members.unwrap();
        assert_eq!(members.next_node_id(), id(4));
        assert!(members.is_removed(id(1)) && members.is_removed(id(2)));
        // A node that joins takes the same steps from the snapshot on.
        let from = state.snapshot.unwrap();
        let joined = ReadOnlyStorage::open(directory.path()).unwrap();
        let replayed = StoredState { last: entries.last().unwrap().position, ..joined.load().unwrap() };
        let replayed =
            members_at_end(directory.path(), from.members, &replayed, &joined.log_reader()).unwrap();
        assert_eq!(replayed, members);
    }
}

#[test]
fn changes_at_the_end_of_the_log_take_effect_before_all_others_are_removed() {
    use MemberChange::{Add, Remove};
    let joint = MembershipChange::Steps {
        steps: vec![Add(Member::learner(id(4), "node-4.example:60061")), Remove(id(1))],
        leave: LeaveJoint::OnRequest,
    };
    let reserved =
        Entry { kind: EntryKind::MemberRecord, payload: MemberRecord::ReserveNodeId.encode(), ..user(2, 42) };
    for kind in KINDS {
        let directory = filled_with(kind, &[change(41, joint.clone()), reserved.clone(), user(2, 43)]);
        let before = content(directory.path());
        recover_small(directory.path(), &OperatingSystem).unwrap();
        assert_recovered(directory.path(), &before);
        let members = content(directory.path()).0.members.unwrap();
        assert_eq!(members.next_node_id(), id(6), "an id that was reserved is not used again");
        assert!([1, 2, 4].into_iter().all(|removed| members.is_removed(id(removed))));
    }
}

#[test]
fn a_learner_becomes_a_voter_and_a_removed_node_is_refused() {
    let demoted = MembershipChange::one(MemberChange::SetRole { id: id(3), role: MemberRole::Learner });
    let directory = filled_with(StorageKind::Wal, &[change(41, demoted)]);
    let before = content(directory.path());
    recover_small(directory.path(), &OperatingSystem).unwrap();
    assert_recovered(directory.path(), &before);

    let removed = MembershipChange::one(MemberChange::Remove(id(3)));
    let directory = filled_with(StorageKind::Wal, &[change(41, removed)]);
    let before = content(directory.path());
    let refused = recover_small(directory.path(), &OperatingSystem);
    assert!(matches!(refused, Err(RecoverError::NoMember { .. })), "{refused:?}");
    assert_eq!(content(directory.path()), before);
}

fn opens(directory: &Path, kind: StorageKind) -> Result<StoredState, StorageError> {
    match kind {
        StorageKind::Heed => HeedStorage::open(directory)?.load(),
        StorageKind::Wal => WalStorage::open_with(directory, settings())?.load(),
    }
}

#[test]
fn a_recovery_that_is_interrupted_at_any_step_continues_and_no_node_starts_in_between() {
    for kind in KINDS {
        let (mut operation, mut resumed) = (0, 0);
        loop {
            let directory = filled(kind);
            let before = content(directory.path());
            let operations = FailsFrom::new(operation);
            if recover_small(directory.path(), &operations).is_ok() {
                break;
            }
            match opens(directory.path(), kind) {
                Ok(state) if state.identity.unwrap().cluster_id == FORMER => {
                    assert_eq!(content(directory.path()).1, before.1);
                }
                // Only the last step was not made durable.
                Ok(state) => assert_eq!(state.identity.unwrap().cluster_id, NEW),
                Err(StorageError::Interrupted { .. }) => {
                    for other in KINDS {
                        assert!(matches!(
                            opens(directory.path(), other),
                            Err(StorageError::Interrupted { .. })
                        ));
                    }
                    let checked = check_directory(directory.path());
                    assert!(matches!(checked, Err(StorageError::Interrupted { .. })), "{checked:?}");
                }
                Err(error) => panic!("{kind}, step {operation}: {error}"),
            }
            match recover_small(directory.path(), &OperatingSystem) {
                Ok(recovery) => resumed += usize::from(recovery.resumed),
                Err(RecoverError::AlreadyRecovered { .. }) => {}
                Err(error) => panic!("{kind}, step {operation}: {error}"),
            }
            assert_recovered(directory.path(), &before);
            operation += 1;
        }
        assert!(operation >= 10 && resumed >= 8, "{operation} steps, {resumed} resumed");
    }
}

#[test]
fn a_directory_that_is_in_use_was_recovered_before_or_belongs_to_no_node_is_refused() {
    let directory = filled(StorageKind::Wal);
    let lock = DirectoryLock::take(directory.path()).unwrap();
    for refused in [recover_directory(directory.path()).map(drop), Survivor::read(directory.path()).map(drop)]
    {
        assert!(matches!(refused, Err(RecoverError::Storage(StorageError::InUse { .. }))), "{refused:?}");
    }
    drop(lock);
    recover_directory(directory.path()).unwrap();
    let recovered = content(directory.path());
    for refused in [recover_directory(directory.path()).map(drop), Survivor::read(directory.path()).map(drop)]
    {
        assert!(matches!(refused, Err(RecoverError::AlreadyRecovered { .. })), "{refused:?}");
    }
    assert_eq!(content(directory.path()), recovered);
    // The new cluster may lose its majority as well.
    fs::rename(directory.path().join(ORIGINAL), directory.path().join("elsewhere")).unwrap();
    let again = recover_directory(directory.path()).unwrap();
    assert_eq!(Some(again.from), recovered.0.identity);

    let empty = tempfile::tempdir().unwrap();
    let refused = recover_directory(empty.path());
    assert!(matches!(refused, Err(RecoverError::Storage(StorageError::Io { .. }))), "{refused:?}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is created");
    WalStorage::open(empty.path()).unwrap().load().unwrap();
    assert!(matches!(recover_directory(empty.path()), Err(RecoverError::NoMember { .. })));
}

#[test]
fn files_in_the_way_and_links_are_refused() {
    let directory = filled(StorageKind::Wal);
    fs::create_dir(directory.path().join(ORIGINAL)).unwrap();
    fs::write(directory.path().join(ORIGINAL).join("a file"), "of someone").unwrap();
    assert!(matches!(recover_directory(directory.path()), Err(RecoverError::InTheWay { .. })));
    fs::remove_dir_all(directory.path().join(ORIGINAL)).unwrap();
    #[cfg(unix)]
    {
        let (log, elsewhere) = (directory.path().join("log"), directory.path().join("elsewhere"));
        fs::rename(&log, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &log).unwrap();
        assert!(matches!(recover_directory(directory.path()), Err(RecoverError::Link { .. })));
    }
}

/// A survivor with a log up to `last`.
fn survivor(node: u64, cluster_id: ClusterId, last: LogPosition) -> Survivor {
    let identity = Identity { cluster_id, node_id: id(node), incarnation: Incarnation(node) };
    let state = StoredState { identity: Some(identity), last, ..StoredState::default() };
    let directory = PathBuf::from(format!("node-{node}"));
    Survivor { directory, storage: StorageKind::Wal, identity, members: members(), state }
}

#[test]
fn the_log_with_the_highest_last_term_is_chosen_before_a_longer_one() {
    let chosen = |lasts: &[(u64, u64)]| {
        let survivors: Vec<_> = (1..)
            .zip(lasts)
            .map(|(node, (term, index))| survivor(node, FORMER, LogPosition::new(*term, *index)))
            .collect();
        choose_survivor(&survivors).unwrap().identity.node_id.get()
    };
    assert_eq!(chosen(&[(4, 90), (5, 80), (3, 100)]), 2);
    assert_eq!(chosen(&[(5, 80), (5, 81)]), 2);
    assert_eq!(chosen(&[(5, 81), (5, 81)]), 1, "the first of equal ones");
}

#[test]
fn survivors_of_two_clusters_and_copies_of_one_node_are_refused() {
    let at = LogPosition::new(1, 1);
    let two = [survivor(1, FORMER, at), survivor(2, NEW, at)];
    assert!(matches!(choose_survivor(&two), Err(RecoverError::TwoClusters { .. })));
    let same = [survivor(1, FORMER, at), survivor(1, FORMER, at)];
    assert!(matches!(choose_survivor(&same), Err(RecoverError::SameNode { .. })));
    assert!(matches!(choose_survivor(&[]), Err(RecoverError::NoSurvivor)));
}
