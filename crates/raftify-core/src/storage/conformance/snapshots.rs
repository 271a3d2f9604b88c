//! Snapshots: write, replace, delete, and receive in parts.

use std::io::Write as _;

use super::opened::{Opened, TestDisk, no_snapshot, read_snapshot, snapshot_meta, succeeds, take_snapshot};
use crate::members::Members;
use crate::storage::{SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage};
use crate::types::{ClusterId, LogPosition};

pub(super) fn snapshot_is_invisible_before_it_is_finished<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    no_snapshot(&snapshots, meta.position, "nothing was written yet");
    let mut writer = succeeds("beginning a snapshot", snapshots.create(&meta));
    no_snapshot(&snapshots, meta.position, "a snapshot that was begun");
    writer.write_all(&[1; 200_000]).expect("writing a snapshot");
    writer.flush().expect("flushing a snapshot");
    no_snapshot(&snapshots, meta.position, "a snapshot that is half written");
    succeeds("finishing a snapshot", writer.finish());
    assert_eq!(read_snapshot(&snapshots, meta.position), [1; 200_000]);
    drop(snapshots);
    let snapshots = Opened::new(disk).storage.snapshots();
    assert_eq!(read_snapshot(&snapshots, meta.position), [1; 200_000], "a finished snapshot survives");
    no_snapshot(&snapshots, LogPosition::new(3, 7), "another term is another position");
}

pub(super) fn dropped_snapshot_leaves_nothing_behind<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    let mut writer = succeeds("beginning a snapshot", snapshots.create(&meta));
    writer.write_all(&[1; 200_000]).expect("writing a snapshot");
    drop(writer);
    no_snapshot(&snapshots, meta.position, "a snapshot that was dropped");
    drop(snapshots);
    no_snapshot(
        &Opened::new(disk).storage.snapshots(),
        meta.position,
        "a snapshot that was dropped, reopened",
    );
}

pub(super) fn snapshot_carries_its_metadata_and_any_number_of_bytes<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    for (index, length) in (1..).zip([0_usize, 1, 65_535, 65_536, 65_537, 131_072, 1_000_003]) {
        let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let meta = snapshot_meta(3, index);
        take_snapshot(&snapshots, &meta, &data);
        let (found, digest, _) = succeeds("opening a snapshot", snapshots.open(meta.position));
        assert_eq!(found, meta, "cluster id, position and members are the snapshot's own");
        assert_eq!(digest, SnapshotDigest::default().followed_by(&data), "the digest is that of the data");
        assert!(read_snapshot(&snapshots, meta.position) == data, "{length} bytes come back as they were");
    }
}

pub(super) fn finished_snapshot_replaces_the_one_before_as_a_whole<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    take_snapshot(&snapshots, &meta, b"a longer first one");
    let mut one = succeeds("beginning a snapshot", snapshots.create(&meta));
    let mut other = succeeds("beginning a second one at the same place", snapshots.create(&meta));
    one.write_all(b"one").expect("writing a snapshot");
    other.write_all(b"other").expect("writing a snapshot");
    assert_eq!(read_snapshot(&snapshots, meta.position), b"a longer first one");
    succeeds("finishing a snapshot", one.finish());
    assert_eq!(read_snapshot(&snapshots, meta.position), b"one");
    succeeds("finishing a snapshot", other.finish());
    assert_eq!(read_snapshot(&snapshots, meta.position), b"other");
}

pub(super) fn retain_deletes_all_others_but_those_being_written<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    for index in 1..=4 {
        take_snapshot(&snapshots, &snapshot_meta(1, index), b"state");
    }
    let being_written = snapshot_meta(1, 5);
    let mut writer = succeeds("beginning a snapshot", snapshots.create(&being_written));
    writer.write_all(b"being ").expect("writing a snapshot");
    let keep = [LogPosition::new(1, 2), LogPosition::new(1, 4), LogPosition::new(8, 8)];
    succeeds("retaining", snapshots.retain(&keep));
    for index in [1, 3] {
        no_snapshot(&snapshots, LogPosition::new(1, index), "retain deletes what it is not told to keep");
    }
    for index in [2, 4] {
        assert_eq!(read_snapshot(&snapshots, LogPosition::new(1, index)), b"state");
    }
    writer.write_all(b"written").expect("writing a snapshot");
    succeeds("finishing a snapshot", writer.finish());
    assert_eq!(read_snapshot(&snapshots, being_written.position), b"being written");
    succeeds("retaining nothing", snapshots.retain(&[]));
    no_snapshot(&snapshots, being_written.position, "retain deletes what it is not told to keep");
}

/// Begins to receive `data`, or resumes; returns how many bytes are stored.
fn receive<S: SnapshotStore>(snapshots: &S, meta: &SnapshotMeta, data: &[u8]) -> (S::Writer, usize) {
    let announced = SnapshotDigest::default().followed_by(data);
    let (writer, received) = succeeds("receiving", snapshots.receive(meta, announced, &|| true));
    let length = received.data_bytes as usize;
    assert_eq!(
        received,
        SnapshotDigest::default().followed_by(&data[..length]),
        "what is there of a snapshot is a beginning of it"
    );
    (writer, length)
}

/// Receives a further part of `data`, and stops.
fn receive_part<S: SnapshotStore>(snapshots: &S, meta: &SnapshotMeta, data: &[u8], until: usize) -> usize {
    let (mut writer, begin_at) = receive(snapshots, meta, data);
    writer.write_all(&data[begin_at..until]).expect("receiving a snapshot");
    begin_at
}

fn numbered_data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at) as u8).collect()
}

pub(super) fn what_was_received_survives_and_is_gone_on_with<D: TestDisk>(disk: &D) {
    let meta = snapshot_meta(2, 7);
    let data = numbered_data(400_000);
    let mut there = 0;
    for until in [0, 1, 65_536, 65_537, 200_000, 400_000] {
        let snapshots = Opened::new(disk).storage.snapshots();
        assert_eq!(receive_part(&snapshots, &meta, &data, until), there, "what was received stays");
        no_snapshot(&snapshots, meta.position, "a snapshot that is not received in full");
        drop(snapshots);
        let snapshots = Opened::new(disk).storage.snapshots();
        no_snapshot(&snapshots, meta.position, "a snapshot that is not received in full, reopened");
        let (_, left) = receive(&snapshots, &meta, &data);
        assert_eq!(left, until, "a writer that is dropped keeps all that it took in");
        there = left;
    }
    let snapshots = Opened::new(disk).storage.snapshots();
    let (writer, _) = receive(&snapshots, &meta, &data);
    assert_eq!(succeeds("finishing a snapshot", writer.finish()), data.len() as u64);
    assert!(read_snapshot(&snapshots, meta.position) == data, "the parts make up the whole");
    assert_eq!(receive(&snapshots, &meta, &data).1, 0, "nothing is left of one that was finished");
}

pub(super) fn what_was_received_is_gone_on_with_only_by_the_same_snapshot<D: TestDisk>(disk: &D) {
    let meta = snapshot_meta(2, 7);
    let data = numbered_data(200_000);
    let mut other_data = data.clone();
    other_data[0] ^= 1;
    let other_members = SnapshotMeta { members: Members::none(), ..meta.clone() };
    let other_cluster = SnapshotMeta { cluster_id: ClusterId(99), ..meta.clone() };
    let others = [
        (&snapshot_meta(2, 8), &data[..]),
        (&snapshot_meta(3, 7), &data[..]),
        (&other_members, &data[..]),
        (&other_cluster, &data[..]),
        (&meta, &other_data[..]),
        (&meta, &data[..199_999]),
    ];
    for (other, other_data) in others {
        let snapshots = Opened::new(disk).storage.snapshots();
        assert_eq!(receive_part(&snapshots, &meta, &data, 150_000), 0);
        assert_eq!(receive_part(&snapshots, other, other_data, 100), 0, "{other:?} is another snapshot");
        assert_eq!(receive_part(&snapshots, &meta, &data, 100), 0, "one unfinished snapshot is kept at most");
        receive(&snapshots, &meta, &data).0.discard();
    }
}

pub(super) fn what_was_received_is_deleted_when_it_is_discarded_or_outdated<D: TestDisk>(disk: &D) {
    let snapshots = Opened::new(disk).storage.snapshots();
    let meta = snapshot_meta(2, 7);
    let data = numbered_data(100_000);
    receive_part(&snapshots, &meta, &data, 70_000);
    let (writer, begin_at) = receive(&snapshots, &meta, &data);
    assert_eq!(begin_at, 70_000);
    writer.discard();
    assert_eq!(receive_part(&snapshots, &meta, &data, 70_000), 0, "nothing is left of what was discarded");
    let at = |index| LogPosition::new(2, index);
    succeeds("retaining nothing", snapshots.retain(&[]));
    succeeds("retaining an older one", snapshots.retain(&[at(6)]));
    let (mut writer, begin_at) = receive(&snapshots, &meta, &data);
    assert_eq!(begin_at, 70_000, "it is newer than all that is to be kept");
    succeeds("retaining a newer one", snapshots.retain(&[at(6), at(8)]));
    writer.write_all(&data[begin_at..80_000]).expect("receiving a snapshot");
    drop(writer);
    assert_eq!(receive(&snapshots, &meta, &data).1, 80_000, "it was being received");
    succeeds("retaining a newer one", snapshots.retain(&[at(6), at(8)]));
    assert_eq!(receive(&snapshots, &meta, &data).1, 0, "it is older than one that is to be kept");
}
