//! `sim-shell`: many worlds of whole nodes, or one again. The last line shows how many passed and how many
//! failed; Ctrl+C ends a run after the current world.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use raftify_console::{WRONG_ARGUMENTS, say};
use raftify_shell_sim::{HAPPENINGS, Report, Scenario, run};
use tracing_subscriber::EnvFilter;

/// The number of seeds from which on every event must have happened.
const SEEDS_FOR_COVERAGE: u64 = 500;

/// Tests whole raftify nodes in simulated worlds. Each seed is a different world, and always the same.
#[derive(Parser)]
#[command(name = "sim-shell", version)]
struct Arguments {
    /// Run only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "first", "seconds"])]
    seed: Option<u64>,
    /// Write its trace to this file.
    #[arg(long, requires = "seed", value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Number of seeds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them; by default a random one.
    #[arg(long)]
    first: Option<u64>,
    /// Start no further seed after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    let arguments: Arguments = raftify_console::arguments();
    // With RUST_LOG, the log of the nodes.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let mut sum = Sum::default();
    let begun = Instant::now();
    match arguments.seed {
        Some(seed) => {
            let report = run(seed, Scenario::of(seed));
            if let Some(path) = &arguments.trace
                && let Err(error) = std::fs::write(path, &report.trace)
            {
                eprintln!("error: cannot write {}: {error}", path.display());
                return ExitCode::from(WRONG_ARGUMENTS);
            }
            sum.add(report);
        }
        None => run_many(&arguments, &mut sum),
    }
    sum.print(begun.elapsed());
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_many(arguments: &Arguments, sum: &mut Sum) {
    let first = arguments.first.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    say!("seeds from {first} on: `sim-shell --first {first} --seeds {}` runs them again", arguments.seeds);
    let interrupted = raftify_console::interruption();
    let begun = Instant::now();
    for number in 0..arguments.seeds {
        let is_over = arguments.seconds.is_some_and(|seconds| begun.elapsed().as_secs() >= seconds);
        if is_over || interrupted.load(Ordering::Relaxed) {
            break;
        }
        let seed = first.wrapping_add(number);
        sum.add(run(seed, Scenario::of(seed)));
    }
}

/// The sum of all seeds.
#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
    simulated: Duration,
    happened: BTreeMap<&'static str, u64>,
}

impl Sum {
    fn add(&mut self, report: Report) {
        self.simulated += report.simulated;
        for (what, count) in report.happened {
            *self.happened.entry(what).or_default() += count;
        }
        match report.violation {
            None => self.passed += 1,
            Some(violation) => {
                self.failed += 1;
                say!("seed {} ({:?}): {violation}", report.seed, report.scenario);
                say!("run it again with: make sim-shell SEED={}", report.seed);
            }
        }
    }

    fn print(&mut self, elapsed: Duration) {
        say!("events and their numbers:");
        for (what, count) in &self.happened {
            say!("{count:>9} {what}");
        }
        let seconds = elapsed.as_secs_f64().max(0.001);
        let simulated = self.simulated.as_secs_f64();
        say!("{simulated:.0} simulated seconds, {:.0} for each second", simulated / seconds);
        let missing: Vec<&str> =
            HAPPENINGS.iter().filter(|what| !self.happened.contains_key(*what)).copied().collect();
        if self.passed >= SEEDS_FOR_COVERAGE && !missing.is_empty() {
            self.failed += 1;
            say!("rejected: never happened in any seed: {}", missing.join(", "));
        }
        say!("{} passed, {} failed", self.passed, self.failed);
    }
}
