//! A few worlds of each scenario; more with `SHELL_SEEDS=n`.

use raftify_shell_sim::{Scenario, run};

/// A world takes a second or two, unoptimised.
const SEEDS: u64 = 4;

/// Runs worlds of `scenario`, and requires that each of these happened in one of them at least.
fn check(scenario: Scenario, required: &[&str]) {
    let seeds = std::env::var("SHELL_SEEDS").ok().map_or(SEEDS, |seeds| {
        seeds.parse().unwrap_or_else(|_| panic!("SHELL_SEEDS is {seeds:?}, it should be a number of worlds"))
    });
    let mut happened = std::collections::BTreeSet::new();
    for seed in 0..seeds {
        let report = run(seed, scenario);
        if let Some(violation) = report.violation {
            panic!("seed {seed} of {scenario:?}: {violation}\n{}", report.trace);
        }
        happened.extend(report.happened.into_keys());
    }
    for required in required {
        assert!(seeds < SEEDS || happened.contains(required), "{required}: it never happened");
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
fn the_same_seed_is_the_same_world_byte_for_byte() {
    for (seed, scenario) in [(7, Scenario::Quit), (11, Scenario::Everything)] {
        let (first, second) = (run(seed, scenario), run(seed, scenario));
        assert_eq!(first.trace, second.trace, "seed {seed} of {scenario:?}");
        assert!(first.trace.lines().count() > 100, "hardly anything happened");
    }
}
