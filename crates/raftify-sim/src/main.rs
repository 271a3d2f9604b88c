//! Runs simulated worlds.
fn main() {
    let first: u64 = std::env::args().nth(1).map_or(0, |a| a.parse().unwrap_or(0));
    let n: u64 = std::env::args().nth(2).map_or(100, |a| a.parse().unwrap_or(0));
    let begun = std::time::Instant::now();
    let mut simulated = 0.0;
    let mut bad = 0;
    let mut coverage = raftify_sim::Coverage::default();
    let (mut calls, mut steps) = (0, 0);
    let mut recoveries = Vec::new();
    for seed in first..first + n {
        match raftify_sim::run(seed) {
            Ok(report) => {
                simulated += report.simulated.as_secs_f64();
                coverage.add(&report.coverage);
                calls += report.calls;
                steps += report.steps;
                recoveries.push(report.recovery.unwrap_or(-1.0));
            }
            Err(v) => {
                bad += 1;
                println!("{v}");
            }
        }
    }
    recoveries.sort_by(f64::total_cmp);
    println!("{coverage}");
    println!("hopeless {} recovery median {:?} max {:?}", recoveries.iter().filter(|r| **r < 0.0).count(), recoveries.get(recoveries.len()/2), recoveries.last());
    println!("{simulated} s in {:?}, {calls} calls, {steps} steps, {bad} failed", begun.elapsed());
}
