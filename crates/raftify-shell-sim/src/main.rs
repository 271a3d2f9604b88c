//! `sim-shell`: many seeds of simulated nodes, or one again.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use raftify_shell_sim::{Scenario, run};

/// Runs whole raftify nodes on simulated hosts, one world for each seed.
#[derive(Parser)]
struct Arguments {
    /// Of the first world.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many worlds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .init();
    let (mut passed, mut failed) = (0, 0);
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        let began = Instant::now();
        let report = run(seed, Scenario::of(seed));
        if arguments.trace {
            print!("{}", report.trace);
        }
        match report.violation {
            None => passed += 1,
            Some(violation) => {
                failed += 1;
                println!("seed {seed} ({:?}): {violation}", report.scenario);
            }
        }
        if arguments.seeds == 1 {
            println!("{:?} simulated in {:?}; {:?}", report.simulated, began.elapsed(), report.happened);
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
