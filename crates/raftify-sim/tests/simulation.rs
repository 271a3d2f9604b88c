//! Worlds that once violated an invariant, fresh ones, and the reproducibility of a seed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::{SystemTime, UNIX_EPOCH};

use raftify_sim::{run, run_traced, trace};

/// As many as the unoptimised build runs in some ten seconds: `make sim` runs more.
const FRESH_SEEDS: u64 = 200;

#[test]
fn worlds_with_former_violations_satisfy_all_invariants() {
    let lines = include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<u64> = lines.filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        run(seed).unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[test]
fn fresh_worlds_satisfy_all_invariants() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = u64::from(now.subsec_nanos()) << 20 | now.as_secs() & 0xfffff;
    for seed in first..first + FRESH_SEEDS {
        run(seed).unwrap_or_else(|violation| panic!("{violation}\nrun it again with: make sim SEED={seed}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in 0..12 {
        let (one, other) = (run_traced(seed).1, run_traced(seed).1);
        assert!(one.lines().count() > 10, "something happens in it");
        assert_eq!(trace::difference(&one, &other), None);
    }
    assert_ne!(run_traced(0).1, run_traced(1).1);
}
