//! The program `sim`: one seed, the comparison of traces, and errors for invalid input.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn seeds_are_run_and_the_last_line_counts_them() {
    let output = sim(&["--first", "7", "--seeds", "2"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout).lines().last(), Some("2 passed, 0 failed"));
}

#[test]
fn a_trace_is_written_and_compared() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("7.trace");
    let path = path.to_str().unwrap();
    assert!(sim(&["--seed", "7", "--trace", path]).status.success());
    let same = sim(&["--compare", path]);
    assert!(same.status.success(), "{}", text(&same.stdout));

    let written = std::fs::read_to_string(path).unwrap();
    let changed: Vec<&str> =
        written.lines().enumerate().map(|(at, line)| if at == 4 { "?" } else { line }).collect();
    std::fs::write(path, changed.join("\n")).unwrap();
    let other = sim(&["--compare", path]);
    assert!(!other.status.success());
    assert!(text(&other.stdout).contains("from line 5 on"), "{}", text(&other.stdout));
}

#[test]
fn invalid_input_is_reported_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let (other, old) = (directory.path().join("other"), directory.path().join("old"));
    std::fs::write(&other, "anything").unwrap();
    std::fs::write(&old, "raftify-sim trace 0 of seed 5\n").unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["--seed", "many"], "invalid digit"),
        (&["--seeds", "0"], "0 is not in"),
        (&["--compare", "/no/such/file"], "cannot read"),
        (&["--compare", other.to_str().unwrap()], "not a trace"),
        (&["--compare", old.to_str().unwrap()], "version 0"),
    ];
    for (arguments, expected) in cases {
        let output = sim(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(said.trim().lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn closed_standard_output_ends_the_run_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["--first", "7", "--seeds", "2"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(1));
}
