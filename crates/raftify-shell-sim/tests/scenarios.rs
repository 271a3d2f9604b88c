//! A few worlds of each scenario, those that once found something, and that a seed is always the same world.
//! `make sim-shell` runs more.

use std::collections::BTreeSet;

use raftify_shell_sim::{Report, Scenario, run};

/// A world takes a second or two, unoptimised.
const SEEDS: u64 = 2;

fn passed(seed: u64, scenario: Scenario) -> Report {
    let report = run(seed, scenario);
    if let Some(violation) = report.violation {
        panic!("seed {seed} of {scenario:?}: {violation}\n{}", report.trace);
    }
    report
}

/// Runs worlds of `scenario`, and requires that each of these happened in one of them at least.
fn check(scenario: Scenario, required: &[&str]) {
    let happened: BTreeSet<_> =
        (0..SEEDS).flat_map(|seed| passed(seed, scenario).happened.into_keys()).collect();
    for required in required {
        assert!(happened.contains(required), "{required}: it never happened");
    }
}

#[test]
fn nodes_join_and_leave_while_others_crash() {
    check(Scenario::Join, &["ticket", "joined", "answered"]);
}

#[test]
fn leaders_crash_and_others_take_over() {
    check(Scenario::Failover, &["crash", "power loss", "disk failed", "answered"]);
}

#[test]
fn snapshots_reach_followers_that_lag_over_links_that_break() {
    check(Scenario::Snapshots, &["snapshot restored", "isolation", "answered"]);
}

#[test]
fn links_are_cut_in_one_way_and_in_both_and_stall() {
    check(Scenario::Partitions, &["one-way cut", "hold", "isolation", "answered"]);
}

#[test]
fn nodes_end_at_any_moment_and_everybody_is_answered() {
    check(Scenario::Quit, &["quit", "quit half", "run let go", "answered"]);
}

#[test]
fn all_of_it_at_once() {
    check(Scenario::Everything, &["bootstrapped", "answered"]);
}

#[test]
fn worlds_that_once_found_something_keep_all_promises() {
    let lines = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<u64> = lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        passed(seed, Scenario::of(seed));
    }
}

#[test]
fn the_same_seed_is_the_same_world_byte_for_byte() {
    let (first, second) = (run(7, Scenario::Everything), run(7, Scenario::Everything));
    assert_eq!(first.trace, second.trace);
    assert!(first.trace.lines().count() > 100, "hardly anything happened");
    assert_ne!(first.trace, run(8, Scenario::Everything).trace);
}
