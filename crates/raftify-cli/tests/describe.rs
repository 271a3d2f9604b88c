//! The program on the directory of a node.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use expect_test::{Expect, expect};
use raftify::membership::{MemberChange, MemberRecord, Members, MembershipChange};
use raftify::status::{ClusterId, Identity, Incarnation, LogIndex, Term};
use raftify::storage::{
    Entry, EntryKind, HardState, HeedStorage, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    WalSettings,
};
use raftify::{LogEntry, LogPosition, Member, NodeId, WalStorage};
use raftify_core::storage::Write;
use tempfile::TempDir;

fn id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

/// One directory of each storage, with the same content.
fn directories() -> [TempDir; 2] {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // Small files, because they are created quickly, and not too many for a small disk.
    fill(WalStorage::open_with(directories[0].path(), WalSettings { segment_bytes: 64 << 10 }).unwrap());
    fill(HeedStorage::open(directories[1].path()).unwrap());
    directories
}

/// Entries 3 to 6 of term 2, the snapshot at 2, and three kinds of entries.
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
    let user = "hello".to_owned().encode().unwrap();
    let payloads = [
        (EntryKind::Empty, bytes::Bytes::new()),
        (EntryKind::User, user),
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

fn cli(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_raftify-cli")).args(arguments).output().unwrap()
}

/// The output of the program for both directories: the same, but for the name of the storage. The names of
/// the directories are replaced.
fn check(directories: &[TempDir; 2], what: &str, options: &[&str], expect: Expect) {
    let [wal, heed] = directories.each_ref().map(|directory| {
        let path = directory.path();
        said(&[&["describe", what, path.to_str().unwrap()], options].concat(), path)
    });
    // In a table the names have the same width.
    let same = heed.replace("\"HeedStorage\"", "\"WalStorage\"").replace("HeedStorage", "WalStorage ");
    assert_eq!(wal, same);
    expect.assert_eq(&wal);
}

/// The output of the program, and its exit code; the name of the directory is replaced.
fn said(arguments: &[&str], directory: &Path) -> String {
    let output = cli(arguments);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let code = output.status.code().unwrap();
    format!("{}exit code {code}\n", said.replace(directory.to_str().unwrap(), "DIRECTORY"))
}

#[test]
fn logs_are_shown_as_a_table() {
    let directories = directories();
    check(
        &directories,
        "logs",
        &[],
        expect![[r#"
        ┌─────────────────────────────────────────────────────────────────────────────┐
        │ index   term   kind                bytes   entry                            │
        ╞═════════════════════════════════════════════════════════════════════════════╡
        │ 3       2      empty               0                                        │
        │ 4       2      user                6       05 68 65 6c 6c 6f  |.hello|      │
        │ 5       2      membership change   24      add learner 2 at 127.0.0.1:60062 │
        │ 6       2      member record       2       reserve the next node id         │
        └─────────────────────────────────────────────────────────────────────────────┘
        the log ends at 6 of term 2
        exit code 0
    "#]],
    );
}

#[test]
fn logs_are_shown_in_pages() {
    let directories = directories();
    check(
        &directories,
        "logs",
        &["--limit", "2"],
        expect![[r#"
        ┌────────────────────────────────────────────────────────────┐
        │ index   term   kind    bytes   entry                       │
        ╞════════════════════════════════════════════════════════════╡
        │ 3       2      empty   0                                   │
        │ 4       2      user    6       05 68 65 6c 6c 6f  |.hello| │
        └────────────────────────────────────────────────────────────┘
        2 more, show them with --from 5
        exit code 0
    "#]],
    );
    check(
        &directories,
        "logs",
        &["--from", "5", "--limit", "1", "--raw"],
        expect![[r#"
            5 2 2 02000100020f3132372e302e302e313a3630303632010000
            exit code 0
        "#]],
    );
    check(
        &directories,
        "logs",
        &["--from", "99"],
        expect![[r#"
        the log ends at 6 of term 2
        exit code 0
    "#]],
    );
    check(
        &directories,
        "logs",
        &["--from", "1"],
        expect![[r#"
        error: the log begins at 3: use --from 3
        exit code 1
    "#]],
    );
}

#[test]
fn logs_are_shown_as_lines_of_json_or_as_hex() {
    let directories = directories();
    check(
        &directories,
        "logs",
        &["--json"],
        expect![[r#"
            {"index":3,"kind":"empty","payload":"","term":2,"text":""}
            {"index":4,"kind":"user","payload":"0568656c6c6f","term":2,"text":"05 68 65 6c 6c 6f  |.hello|"}
            {"index":5,"kind":"membership change","payload":"02000100020f3132372e302e302e313a3630303632010000","term":2,"text":"add learner 2 at 127.0.0.1:60062"}
            {"index":6,"kind":"member record","payload":"0200","term":2,"text":"reserve the next node id"}
            exit code 0
        "#]],
    );
    check(
        &directories,
        "logs",
        &["--raw"],
        expect![[r#"
            3 2 0 
            4 2 1 0568656c6c6f
            5 2 2 02000100020f3132372e302e302e313a3630303632010000
            6 2 3 0200
            exit code 0
        "#]],
    );
}

#[test]
fn metadata_is_shown_in_three_forms() {
    let directories = directories();
    check(
        &directories,
        "metadata",
        &[],
        expect![[r#"
            ┌──────────────────────────────────────────────────────────────────────────────┐
            │ storage    WalStorage                                                        │
            │ identity   node 1 of cluster 00000000000000c1 (incarnation 000000000000001c) │
            │ term       2                                                                 │
            │ vote       node 1                                                            │
            │ commit     5                                                                 │
            │ log        from 3 to 6 of term 2                                             │
            │ snapshot   2 of term 1                                                       │
            └──────────────────────────────────────────────────────────────────────────────┘
            ┌──────────────────────────────────────────────────┐
            │ member   address           role    incarnation   │
            ╞══════════════════════════════════════════════════╡
            │ 1        127.0.0.1:60061   voter   not yet known │
            └──────────────────────────────────────────────────┘
            members as of index 1
            exit code 0
        "#]],
    );
    check(
        &directories,
        "metadata",
        &["--json"],
        expect![[r#"
            {
              "commit": 5,
              "identity": {
                "cluster_id": "00000000000000c1",
                "incarnation": "000000000000001c",
                "node_id": 1
              },
              "log": {
                "first": 3,
                "last": {
                  "index": 6,
                  "term": 2
                }
              },
              "members": {
                "as_of": 1,
                "joint": false,
                "list": [
                  {
                    "address": "127.0.0.1:60061",
                    "id": 1,
                    "incarnation": null,
                    "role": "voter"
                  }
                ]
              },
              "snapshot": {
                "index": 2,
                "term": 1
              },
              "storage": "WalStorage",
              "term": 2,
              "vote": 1
            }
            exit code 0
        "#]],
    );
    let raw = cli(&["describe", "metadata", directories[0].path().to_str().unwrap(), "--raw"]);
    assert!(String::from_utf8(raw.stdout).unwrap().starts_with("StoredState {"));
}

#[test]
fn a_snapshot_is_shown_in_three_forms() {
    let directories = directories();
    check(
        &directories,
        "snapshot",
        &[],
        expect![[r#"
        ┌────────────────────────────┐
        │ cluster   00000000000000c1 │
        │ up to     2 of term 1      │
        │ size      9 bytes          │
        └────────────────────────────┘
        ┌──────────────────────────────────────────────────┐
        │ member   address           role    incarnation   │
        ╞══════════════════════════════════════════════════╡
        │ 1        127.0.0.1:60061   voter   not yet known │
        └──────────────────────────────────────────────────┘
        members as of index 1
        9 bytes: 74 68 65 20 73 74 61 74 65  |the state|
        exit code 0
    "#]],
    );
    check(
        &directories,
        "snapshot",
        &["--json"],
        expect![[r#"
        {
          "bytes": 9,
          "cluster_id": "00000000000000c1",
          "members": {
            "as_of": 1,
            "joint": false,
            "list": [
              {
                "address": "127.0.0.1:60061",
                "id": 1,
                "incarnation": null,
                "role": "voter"
              }
            ]
          },
          "position": {
            "index": 2,
            "term": 1
          },
          "text": "9 bytes: 74 68 65 20 73 74 61 74 65  |the state|"
        }
        exit code 0
    "#]],
    );
    check(
        &directories,
        "snapshot",
        &["--raw"],
        expect![[r#"
        the stateexit code 0
    "#]],
    );
}

#[test]
fn a_directory_in_use_can_be_described() {
    let [wal, heed] = directories();
    let _in_use = WalStorage::open(wal.path()).unwrap();
    let _in_use_as_well = HeedStorage::open(heed.path()).unwrap();
    for directory in [wal.path(), heed.path()] {
        for what in ["metadata", "logs", "snapshot"] {
            let output = cli(&["describe", what, directory.to_str().unwrap()]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn a_directory_is_converted_in_both_directions() {
    let [directory, _] = directories();
    let path = directory.path().to_str().unwrap();
    let metadata = || said(&["describe", "metadata", path], directory.path());
    let before = metadata();
    let convert = |to| said(&["storage", "convert", path, "--to", to], directory.path());
    expect![[r#"
        DIRECTORY already uses WalStorage: nothing was changed
        exit code 0
    "#]]
    .assert_eq(&convert("wal"));
    expect![[r#"
        DIRECTORY was converted from WalStorage to HeedStorage, with 4 entries, the last at 6 of term 2, and the snapshot at 2 of term 1
        start its node with a program that opens HeedStorage
        exit code 0
    "#]]
    .assert_eq(&convert("heed"));
    let refused = WalStorage::open(directory.path()).unwrap_err().to_string();
    expect![[r#"
        DIRECTORY is kept by HeedStorage, not by WalStorage: open it with HeedStorage, or convert it with `raftify-cli storage convert DIRECTORY --to wal`"#]]
    .assert_eq(&refused.replace(path, "DIRECTORY"));
    let in_use = HeedStorage::open(directory.path()).unwrap();
    expect![[r#"
        error: DIRECTORY is in use by another process: stop that one first, or use another directory
        exit code 1
    "#]]
    .assert_eq(&convert("wal"));
    drop(in_use);
    convert("wal");
    assert_eq!(metadata(), before);
    WalStorage::open(directory.path()).unwrap();
}

#[test]
fn a_failed_description_has_one_line_and_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let path = missing.to_str().unwrap();
    for arguments in [
        &["describe", "logs", path][..],
        &["describe", "metadata", path],
        &["describe", "snapshot", path],
        &["storage", "convert", path, "--to", "wal"],
    ] {
        let output = cli(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        let expected =
            format!("error: {path} is not the data directory of a node: cannot open {path}/data.mdb: ");
        assert!(said.starts_with(&expected), "{said}");
        assert!(!missing.exists(), "describing must create nothing");
    }
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let web_address = web.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in web.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    for address in ["nonsense", "127.0.0.1:1", &web_address] {
        let output = cli(&["describe", "node", address]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(address), "{said}");
    }
}

#[test]
fn a_damaged_snapshot_is_an_error_and_not_a_panic() {
    let [directory, _] = directories();
    let snapshots = directory.path().join("snapshots");
    for file in std::fs::read_dir(snapshots).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 3);
        std::fs::write(path, bytes).unwrap();
    }
    let output = cli(&["describe", "snapshot", directory.path().to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
}

#[test]
fn an_invalid_command_line_has_exit_code_2() {
    for arguments in [
        &["describe"][..],
        &["storage", "convert", "."],
        &["storage", "convert", ".", "--to", "x"],
        &["describe", "logs"],
        &["describe", "logs", ".", "--json", "--raw"],
    ] {
        assert_eq!(cli(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_closed_standard_output_is_no_error() {
    let [directory, _] = directories();
    let (reader, to_reader) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_raftify-cli"))
        .args(["describe", "logs", directory.path().to_str().unwrap(), "--json"])
        .stdout(to_reader)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}
