//! The programs of this package run and print the output that the README shows.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;

use raftify_free_address::free_address;

fn output(program: &str, addresses: &[String]) -> String {
    let output = Command::new(program).args(addresses).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} failed: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn one_node_prints_the_counter() {
    let said = output(env!("CARGO_BIN_EXE_counter"), &[free_address()]);
    assert_eq!(said, "the counter is 5\n");
}

#[test]
fn three_nodes_count_together_and_each_reads_the_sum() {
    let said = output(env!("CARGO_BIN_EXE_counter-three-nodes"), &[(); 3].map(|()| free_address()));
    let expected = "node 1: the counter is 5\nnode 2: the counter is 10\nnode 3: the counter is 15\n\
                    node 1 reads 15\nnode 2 reads 15\nnode 3 reads 15\n";
    assert_eq!(said, expected);
}

#[test]
fn the_quick_start_has_at_most_forty_lines() {
    let program = include_str!("../src/main.rs");
    let program = &program[program.find("\nuse ").unwrap()..];
    let (to_the_reply, _) = program.split_once("println!").unwrap();
    let lines = to_the_reply.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 40, "{lines} lines");
}

#[test]
fn the_quick_start_matches_the_readme() {
    let program = include_str!("../src/main.rs");
    let program = &program[program.find("use raftify").unwrap()..];
    let readme = include_str!("../../../README.md");
    assert!(readme.contains(&format!("```rust\n{program}```")), "README.md shows another program");
}
