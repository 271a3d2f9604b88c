//! Backups of a node, to a writer of its program and to a file of a client.

use std::io::{self, Write};
use std::path::Path;

use raftify::client::{BackupOptions, BackupProgress, ClientBackupError};
use raftify::error::{BackupError, BackupRefused, SnapshotError, StopReason};
use raftify::storage::{RestoreInto, StorageKind, restore_directories, verify_snapshot_file};
use raftify::{Config, Member, Raft, RaftClient, WalStorage};

use crate::harness::*;

on_both_storages! {
    a_backup_to_a_writer_is_restored_as_a_new_cluster
    a_snapshot_that_is_backed_up_is_not_deleted_before_its_end
    a_node_stops_although_the_writer_of_its_backup_hangs
}

/// A node with 3 MiB of state, which it reads without a limit.
async fn node_with_state(kind: DiskKind) -> (TestNode, TestRaft) {
    let mut node = TestNode::on(kind, 1);
    node.config = Config { snapshot_bytes_per_second_max: None, ..short_log() };
    let raft = node.start();
    for key in ["a", "b", "c"] {
        put(&raft, key, key.repeat(1 << 20)).await;
    }
    (node, raft)
}

/// Waits at its first write until the gate is open.
struct Gated {
    gate: Gate,
    written: Vec<u8>,
}

impl Write for Gated {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.gate.pass();
        self.written.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn a_backup_to_a_writer_is_restored_as_a_new_cluster(kind: DiskKind) {
    let (mut node, raft) = node_with_state(kind).await;
    let (meta, written) = within("the backup", raft.backup(Vec::new())).await.unwrap();
    assert_eq!(Some(meta.position), raft.status().borrow().snapshot);
    assert_eq!(meta.members, *raft.members());
    put(&raft, "a", "later").await;
    node.stop().await;
    let place = tempfile::tempdir().unwrap();
    let (file, directory) = (place.path().join("a.backup"), place.path().join("new"));
    std::fs::write(&file, written).unwrap();
    assert_eq!(verify_snapshot_file(&file).unwrap().0, meta);
    let into = RestoreInto { directory: directory.clone(), member: Member::voter(id(1), &node.address) };
    restore_directories(&file, &[into], StorageKind::Wal).unwrap();
    let storage = WalStorage::open(&directory).unwrap();
    let restored = Raft::restart(&*node.address, storage, node.store(), Config::default()).await.unwrap();
    assert_eq!(get(&restored, "a").await, Some("a".repeat(1 << 20)));
    assert_eq!(get(&restored, "c").await, Some("c".repeat(1 << 20)));
    restored.quit().await;
}

async fn a_snapshot_that_is_backed_up_is_not_deleted_before_its_end(kind: DiskKind) {
    let (mut node, raft) = node_with_state(kind).await;
    let gate = Gate::default();
    let writer = Gated { gate: gate.clone(), written: Vec::new() };
    let backup = tokio::spawn({
        let raft = raft.clone();
        async move { raft.backup(writer).await }
    });
    gate.reached().await;
    let first = raft.status().borrow().snapshot.unwrap();
    for value in ["x", "y"] {
        put(&raft, "a", value).await;
        raft.make_snapshot().await.unwrap();
    }
    assert!(node.disk.has_snapshot(first));
    gate.open();
    let (meta, writer) = within("the backup", backup).await.unwrap().unwrap();
    assert_eq!(meta.position, first);
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("a.backup");
    std::fs::write(&file, writer.written).unwrap();
    assert_eq!(verify_snapshot_file(&file).unwrap().0, meta);
    until("the snapshot is deleted", async || !node.disk.has_snapshot(first)).await;
    node.stop().await;
}

async fn a_node_stops_although_the_writer_of_its_backup_hangs(kind: DiskKind) {
    let (mut node, raft) = node_with_state(kind).await;
    let gate = Gate::default();
    let writer = Gated { gate: gate.clone(), written: Vec::new() };
    let backup = tokio::spawn({
        let raft = raft.clone();
        async move { raft.backup(writer).await.map(drop) }
    });
    gate.reached().await;
    node.stop().await;
    gate.open();
    match within("the backup", backup).await.unwrap() {
        Err(BackupError::Refused(BackupRefused::Stopped(_))) => {}
        other => panic!("{other:?}"),
    }
    match raft.backup(Vec::new()).await.map(drop) {
        Err(BackupError::Refused(BackupRefused::Stopped(StopReason::Stopped))) => {}
        other => panic!("{other:?}"),
    }
}

struct Broken {
    panics: bool,
}

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        assert!(!self.panics, "told to panic");
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_writer_that_fails_or_panics_ends_its_backup_alone() {
    let (mut node, raft) = node_with_state(DiskKind::Memory).await;
    for panics in [false, true] {
        let error = within("the backup", raft.backup(Broken { panics })).await.err().unwrap();
        assert!(matches!(&error, BackupError::Write(_)), "{error}");
        assert_eq!(error.to_string().contains("told to panic"), panics, "{error}");
    }
    assert!(within("the backup", raft.backup(Vec::new())).await.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_run_or_has_applied_nothing_makes_no_backup() {
    let mut node = TestNode::new(2);
    node.config = Config { membership_timeout: std::time::Duration::from_millis(1200), ..Config::default() };
    let raft = node.bootstrap().unwrap();
    match raft.backup(Vec::new()).await.map(drop) {
        Err(BackupError::Refused(BackupRefused::Stopped(StopReason::NotRunning))) => {}
        other => panic!("{other:?}"),
    }
    let raft = node.run(raft);
    match within("the answer", raft.backup(Vec::new())).await.map(drop) {
        Err(BackupError::Refused(BackupRefused::Snapshot(SnapshotError::NothingApplied))) => {}
        other => panic!("{other:?}"),
    }
    node.stop().await;
}

async fn save(
    client: &TestClient,
    file: &Path,
    options: BackupOptions,
) -> (Result<u64, ClientBackupError>, Vec<BackupProgress>) {
    let mut steps = Vec::new();
    let saved = within("the backup", client.backup(file, &options, |step| steps.push(step))).await;
    (saved.map(|(_, bytes)| bytes), steps)
}

type TestClient = RaftClient<Change, Store>;

#[tokio::test]
async fn a_client_saves_the_state_of_any_member_and_resumes_only_what_that_member_has() {
    let mut nodes = joined_cluster(2).await;
    let raft = nodes[0].raft().clone();
    put(&raft, "key", "value".repeat(300_000)).await;
    until("the follower has it", async || nodes[1].get("key").await.is_some()).await;
    let place = tempfile::tempdir().unwrap();
    for node in &nodes {
        let client = TestClient::new([node.address.as_str()]).unwrap();
        let file = place.path().join(format!("{}.backup", node.id));
        let none = BackupOptions { newest: true, ..BackupOptions::default() };
        if node.raft().status().borrow().snapshot.is_none() {
            let (refused, _) = save(&client, &file, none).await;
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("has not taken a snapshot yet"), "{refused}");
        }
        let (saved, _) = save(&client, &file, BackupOptions::default()).await;
        let bytes = saved.unwrap();
        let (meta, verified) = verify_snapshot_file(&file).unwrap();
        assert_eq!((Some(meta.position), verified), (node.raft().status().borrow().snapshot, bytes));
        let (again, _) = save(&client, &file, BackupOptions::default()).await;
        assert!(again.unwrap_err().to_string().contains("exists"));

        // What an interrupted call would have left.
        let whole = std::fs::read(&file).unwrap();
        let (second, partial) = (place.path().join("second"), place.path().join("second.partial"));
        let resume = BackupOptions { resume: true, ..BackupOptions::default() };
        std::fs::write(&partial, &whole[..whole.len() / 2]).unwrap();
        let (saved, steps) = save(&client, &second, resume.clone()).await;
        assert_eq!(saved.unwrap(), bytes);
        assert!(std::fs::read(&second).unwrap() == whole);
        let resumed = |step: &BackupProgress| matches!(step, BackupProgress::Begins { bytes: 1.., .. });
        assert!(steps.iter().any(resumed), "{steps:?}");

        std::fs::remove_file(&second).unwrap();
        std::fs::write(&partial, &whole[..whole.len() / 2]).unwrap();
        put(&raft, format!("another {}", node.id), 1).await;
        node.raft().read_index().await.unwrap();
        node.raft().make_snapshot().await.unwrap();
        until("the former snapshot is deleted", async || !node.disk.has_snapshot(meta.position)).await;
        let (saved, steps) = save(&client, &second, resume).await;
        assert!(saved.unwrap() > bytes);
        let discarded = meta.position;
        let begins_again = |step: &BackupProgress| matches!(step, BackupProgress::BeginsAgain { discarded: found, .. } if *found == discarded);
        assert!(steps.iter().any(begins_again), "{steps:?}");
        std::fs::remove_file(&second).unwrap();
    }
    for node in nodes.iter_mut().rev() {
        node.kill().await;
    }
}

#[tokio::test]
async fn the_beginning_of_a_backup_of_another_cluster_is_neither_resumed_nor_changed() {
    let (mut node, raft) = node_with_state(DiskKind::Memory).await;
    let (mut other, _) = node_with_state(DiskKind::Memory).await;
    let (_, whole) = raft.backup(Vec::new()).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let (file, partial) = (place.path().join("a.backup"), place.path().join("a.backup.partial"));
    std::fs::write(&partial, &whole[..whole.len() - 100_000]).unwrap();
    let client = TestClient::new([other.address.as_str()]).unwrap();
    let resume = BackupOptions { resume: true, ..BackupOptions::default() };
    match save(&client, &file, resume).await.0 {
        Err(ClientBackupError::OtherCluster { partial: named, found, own }) => {
            assert_eq!(named, partial);
            assert_eq!(Some(found), raft.status().borrow().identity.map(|own| own.cluster_id));
            assert_ne!(found, own);
        }
        other => panic!("{other:?}"),
    }
    let kept = std::fs::read(&partial).unwrap();
    assert!(kept.len() > 1 << 20 && whole.starts_with(&kept) && !file.exists());
    node.stop().await;
    other.stop().await;
}
