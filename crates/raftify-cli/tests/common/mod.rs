//! Shared by the tests: the program, filled directories, and the commands of a page of the documentation.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod nodes;

use std::process::{Command, Output};

use raftify::membership::{MemberChange, MemberRecord, Members, MembershipChange};
use raftify::status::{ClusterId, Identity, Incarnation, LogIndex, Term};
use raftify::storage::{
    Entry, EntryKind, HardState, HeedStorage, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageKind, WalSettings,
};
use raftify::{LogEntry, LogPosition, Member, NodeId, WalStorage};
use raftify_core::storage::Write;
use tempfile::TempDir;

pub(crate) fn id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn cli<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_raftify-cli")).args(arguments).output().unwrap()
}

/// Everything that the program printed.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The arguments of each `$ raftify-cli SUBCOMMAND …` of a page, with names replaced.
pub(crate) fn commands_of(page: &str, subcommand: &str, replace: &[(&str, &str)]) -> Vec<Vec<String>> {
    let begin = format!("$ raftify-cli {subcommand} ");
    let lines = page.lines().map(str::trim).filter(|line| line.starts_with(&begin));
    let arguments = |line: &str| {
        let words = line.split_whitespace().skip(2).take_while(|word| *word != "&&");
        let replaced = |word: &str| {
            let found = replace.iter().find(|(name, _)| *name == word);
            found.map_or(word, |(_, with)| with).to_owned()
        };
        words.map(replaced).collect()
    };
    lines.map(arguments).collect()
}

/// A directory with entries 3 to 6 of term 2, the snapshot at 2, and three kinds of entries.
pub(crate) fn filled(kind: StorageKind) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    // Small files, because they are created quickly.
    let settings = WalSettings { segment_bytes: 64 << 10 };
    match kind {
        StorageKind::Wal => fill(WalStorage::open_with(directory.path(), settings).unwrap()),
        StorageKind::Heed => fill(HeedStorage::open(directory.path()).unwrap()),
    }
    directory
}

fn fill(mut storage: impl StableStorage) {
    storage.load().unwrap();
    let cluster_id = ClusterId(0xc1);
    let members = Members::initial([Member::voter(id(1), "127.0.0.1:60061")]).unwrap();
    let position = LogPosition::new(1, 2);
    let snapshot = SnapshotMeta { cluster_id, position, members: members.clone() };
    let mut writer = storage.snapshots().create(&snapshot).unwrap();
    std::io::Write::write_all(&mut writer, b"the state").unwrap();
    writer.finish().unwrap();

    let change = MembershipChange::one(MemberChange::Add(Member::learner(id(2), "127.0.0.1:60062")));
    let payloads = [
        (EntryKind::Empty, bytes::Bytes::new()),
        (EntryKind::User, "hello".to_owned().encode().unwrap()),
        (EntryKind::MembershipChange, change.encode()),
        (EntryKind::MemberRecord, MemberRecord::ReserveNodeId.encode()),
    ];
    let append = (3..).zip(payloads).map(|(index, (kind, payload))| Entry {
        position: LogPosition::new(2, index),
        kind,
        payload,
    });
    let identity = Identity { cluster_id, node_id: id(1), incarnation: Incarnation(0x1c) };
    let writes = [Write {
        identity: Some(identity),
        reset_log: Some(position),
        append: append.collect(),
        hard_state: Some(HardState { term: Term(2), vote: Some(id(1)), commit: LogIndex(5) }),
        members: Some(members),
        snapshot: Some(snapshot),
        ..Write::default()
    }];
    storage.write(&writes).unwrap();
}
