//! A world of each scenario, worlds with former violations, and the reproducibility of a seed. `make
//! sim-shell` runs more.

use raftify_shell_sim::{Report, Scenario, run};

fn passed(seed: u64, scenario: Scenario) -> Report {
    let report = run(seed, scenario);
    if let Some(violation) = report.violation {
        panic!("seed {seed} of {scenario:?}: {violation}\n{}", report.trace);
    }
    report
}

/// Runs a world of `scenario`, chosen because all of these events happen in it: it takes a second or two,
/// unoptimised.
fn check(scenario: Scenario, seed: u64, required: &[&str]) {
    let happened = passed(seed, scenario).happened;
    for required in required {
        assert!(happened.contains_key(required), "{required} never happened, use another seed");
    }
}

#[test]
fn nodes_join_and_leave_while_others_crash() {
    check(Scenario::Join, 60, &["ticket", "joined", "leave", "answered"]);
}

#[test]
fn leaders_crash_and_others_take_over() {
    check(Scenario::Failover, 5, &["process killed", "machine lost", "disk failed", "answered"]);
}

#[test]
fn snapshots_reach_followers_that_lag_over_links_that_break() {
    check(Scenario::Snapshots, 2, &["snapshot restored", "isolation", "answered"]);
}

#[test]
fn links_are_cut_in_one_direction_and_in_both_and_stall() {
    check(Scenario::Partitions, 15, &["one-way cut", "hold", "isolation", "answered"]);
}

#[test]
fn nodes_end_at_any_moment_and_every_call_is_answered() {
    check(Scenario::Quit, 16, &["quit", "quit dropped", "run dropped", "answered"]);
}

#[test]
fn all_faults_at_once() {
    check(Scenario::Everything, 11, &["quit", "process killed", "machine lost", "answered"]);
}

#[test]
fn nodes_that_expect_each_other_begin_one_cluster_although_each_restarts_while_it_waits() {
    for seed in 0..3 {
        let report = passed(seed, Scenario::Expect);
        assert_eq!(report.happened["ended while it expects"], 3);
        let started = |host: usize| {
            let started = format!(" host {host}: started as node ");
            report.trace.split_once(&started).and_then(|(_, id)| id.lines().next())
        };
        let ids = [0, 1, 2, 3].map(started);
        assert_eq!(ids, [Some("1"), Some("2"), Some("3"), Some("4")], "the one that came late has joined");
    }
    assert_eq!(run(0, Scenario::Expect).trace, run(0, Scenario::Expect).trace);
}

#[test]
fn nodes_that_expect_each_other_crash_while_they_wait_and_while_the_cluster_begins() {
    check(Scenario::Join, 120, &["ended while it expects", "expected", "answered"]);
}

#[test]
fn worlds_with_former_violations_satisfy_all_invariants() {
    let lines = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<u64> = lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        passed(seed, Scenario::of(seed));
    }
}

#[test]
fn the_same_seed_is_the_same_world_byte_for_byte() {
    let (first, second) = (run(11, Scenario::Everything), run(11, Scenario::Everything));
    assert_eq!(first.trace, second.trace);
    assert!(first.trace.lines().count() > 100, "too few events happened");
    assert_ne!(first.trace, run(1, Scenario::Failover).trace);
}
