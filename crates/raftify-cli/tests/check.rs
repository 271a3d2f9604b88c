//! `check` on directories of both storages: its exit codes, its output, and the commands of its page.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;

use common::{cli, commands_of, filled, text};
use raftify::WalStorage;
use raftify::storage::{HeedStorage, StorageKind, WalSettings};

const PAGE: &str = include_str!("../../../docs/operations/check.md");

#[test]
fn the_commands_of_the_page_find_a_sound_directory_sound() {
    for kind in [StorageKind::Wal, StorageKind::Heed] {
        let directory = filled(kind);
        let path = directory.path().to_str().unwrap();
        let commands = commands_of(PAGE, "check", &[("node-3", path)]);
        assert_eq!(commands.len(), 3);
        for command in commands {
            let output = cli(&command);
            assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output));
        }
        let said = text(&cli(&["check", path])).replace(path, "node-3");
        let first = said.lines().next().unwrap();
        assert_eq!(
            first.replace("HeedStorage", "WalStorage"),
            "node-3 is sound: WalStorage, node 1 of cluster 00000000000000c1 (incarnation \
             000000000000001c), entries 3 to 6 of term 2, the snapshot at 2 of term 1"
        );
        // The example of the page shows node 3.
        let shown = PAGE.lines().find(|line| line.starts_with("node-3 is sound")).unwrap();
        assert_eq!(first.replace("HeedStorage", "WalStorage"), shown.replace("node 3 of", "node 1 of"));
    }
}

#[test]
fn a_directory_with_problems_has_exit_code_1_and_each_problem_names_an_existing_section() {
    let directory = filled(StorageKind::Wal);
    let snapshot = directory.path().join("snapshots/0000000000000001-0000000000000002.snapshot");
    fs::write(&snapshot, b"nonsense that is long enough to be the header of a snapshot file").unwrap();
    fs::remove_file(directory.path().join("log/0000000000000001.segment")).unwrap();
    let path = directory.path().to_str().unwrap();
    let output = cli(&["check", path]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("has 2 problems: WalStorage, the log could not be read"), "{said}");
    assert!(
        said.contains("the segment is missing") && said.contains("no snapshot file of raftify"),
        "{said}"
    );
    let sections: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("see ")).collect();
    assert_eq!(sections, ["docs/operations.md#a-damaged-log", "docs/operations/check.md#snapshots"]);

    let output = cli(&["check", path, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((value["sound"].as_bool(), value["problems"][0]["kind"].as_str()), (Some(false), Some("Log")));
}

#[test]
fn the_sections_that_problems_name_exist() {
    let source = include_str!("../src/check.rs");
    let sections: Vec<&str> = source.split('"').filter(|text| text.starts_with("docs/")).collect();
    assert_eq!(sections.len(), 5);
    for section in sections {
        let (page, anchor) = section.split_once('#').unwrap();
        let path = format!("{}/../../{page}", env!("CARGO_MANIFEST_DIR"));
        let page = fs::read_to_string(&path).unwrap();
        let anchors = page.lines().filter(|line| line.starts_with('#'));
        let mut anchors =
            anchors.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"));
        assert!(anchors.any(|found| found == anchor), "{section}");
    }
}

#[test]
fn a_directory_that_cannot_be_checked_has_exit_code_2_and_one_line() {
    let empty = tempfile::tempdir().unwrap();
    let [wal, heed] = [StorageKind::Wal, StorageKind::Heed].map(filled);
    let _in_use = WalStorage::open_with(wal.path(), WalSettings { segment_bytes: 64 << 10 }).unwrap();
    let _in_use_as_well = HeedStorage::open(heed.path()).unwrap();
    for (path, reason) in [
        (empty.path(), "is not the data directory of a node"),
        (wal.path(), "is in use by another process"),
        (heed.path(), "is in use by another process"),
    ] {
        let output = cli(&["check", path.to_str().unwrap()]);
        let said = text(&output);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is created");
    assert_eq!(cli(&["check"]).status.code(), Some(2));
}
