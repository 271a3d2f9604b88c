//! Runs simulated worlds: many seeds, or one again. The last line shows how many passed and how many failed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use parking_lot::Mutex;
use raftify_console::{WRONG_ARGUMENTS, say};
use raftify_sim::{Coverage, Report, Violation, trace};

/// The number of seeds from which on every event must have happened.
const SEEDS_FOR_COVERAGE: u64 = 1000;

/// Tests raftify in simulated worlds. Each seed is a different world, and always the same.
#[derive(Parser)]
#[command(name = "sim", version)]
struct Arguments {
    /// Run only this seed.
    #[arg(long, conflicts_with_all = ["seeds", "first", "seconds", "jobs"])]
    seed: Option<u64>,
    /// Write its trace to this file.
    #[arg(long, requires = "seed", value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Run the seed of this trace again, and report the first difference.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "first", "seconds", "jobs"], value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Number of seeds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them; by default a random one.
    #[arg(long)]
    first: Option<u64>,
    /// Start no further seed after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Number of concurrent seeds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
    /// Continue after a violation.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments: Arguments = raftify_console::arguments();
    let outcome = match (&arguments.compare, arguments.seed) {
        (Some(path), _) => compare(path),
        (None, Some(seed)) => run_one(seed, arguments.trace.as_deref()),
        (None, None) => Ok(run_many(&arguments)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(WRONG_ARGUMENTS)
        }
    }
}

fn run_one(seed: u64, trace: Option<&std::path::Path>) -> Result<bool, String> {
    let outcome = match trace {
        None => raftify_sim::run(seed),
        Some(path) => {
            let (outcome, text) = raftify_sim::run_traced(seed);
            std::fs::write(path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            outcome
        }
    };
    let mut sum = Sum::default();
    let passed = outcome.is_ok();
    sum.add(outcome);
    sum.print(&[]);
    Ok(passed)
}

fn compare(path: &std::path::Path) -> Result<bool, String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let before = String::from_utf8_lossy(&bytes);
    let seed = trace::seed_of(&before).map_err(|error| format!("{shown}: {error}"))?;
    let (_, now) = raftify_sim::run_traced(seed);
    match trace::difference(&before, &now) {
        None => {
            say!("seed {seed} gives the same trace: {} lines", now.lines().count());
            say!("1 passed, 0 failed");
            Ok(true)
        }
        Some((line, before, now)) => {
            say!("seed {seed} gives another trace from line {line} on\n  file: {before}\n  now:  {now}");
            say!("0 passed, 1 failed");
            Ok(false)
        }
    }
}

/// Whether all seeds passed.
fn run_many(arguments: &Arguments) -> bool {
    let first = arguments.first.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    say!("seeds from {first} on: `sim --first {first} --seeds {}` runs them again", arguments.seeds);
    let ended = raftify_console::interruption();
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    let sum = Mutex::new((Sum::default(), begun));
    let work = || {
        while !ended.load(Ordering::Relaxed)
            && arguments.seconds.is_none_or(|seconds| begun.elapsed().as_secs() < seconds)
        {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= arguments.seeds {
                return;
            }
            let outcome = raftify_sim::run(first.wrapping_add(number));
            if outcome.is_err() && !arguments.keep_going {
                ended.store(true, Ordering::Relaxed);
            }
            let mut guard = sum.lock();
            guard.0.add(outcome);
            if guard.1.elapsed() > Duration::from_secs(10) {
                guard.1 = Instant::now();
                eprintln!("{} seeds in {} s", guard.0.passed + guard.0.failed, begun.elapsed().as_secs());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(work);
        }
    });
    let (mut sum, _) = sum.into_inner();
    let elapsed = begun.elapsed().as_secs_f64() * arguments.jobs as f64;
    let rate = sum.simulated.as_secs_f64() / elapsed.max(0.001);
    let seeds = (sum.passed + sum.failed) as f64 / elapsed.max(0.001);
    let speed = format!("{rate:.0} simulated seconds and {seeds:.0} seeds for each second of a core");
    let missing = sum.coverage.missing();
    let is_rejected = sum.passed >= SEEDS_FOR_COVERAGE && !missing.is_empty();
    if is_rejected {
        sum.failed += 1;
    }
    let mut notes = vec![speed];
    if is_rejected {
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        notes.push(format!("rejected: never happened in any seed: {}", missing.join(", ")));
    }
    sum.print(&notes);
    sum.failed == 0
}

/// The sum of all seeds.
#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
    simulated: Duration,
    steps: u64,
    elections: u64,
    calls: u64,
    undecided: u64,
    hopeless: u64,
    recovery_max: f64,
    coverage: Coverage,
}

impl Sum {
    fn add(&mut self, outcome: Result<Report, Violation>) {
        match outcome {
            Ok(report) => {
                self.passed += 1;
                self.simulated += report.simulated;
                self.steps += report.steps;
                self.elections += report.elections;
                self.calls += report.calls;
                self.undecided += report.undecided;
                match report.recovery {
                    Some(recovery) => self.recovery_max = self.recovery_max.max(recovery),
                    None => self.hopeless += 1,
                }
                self.coverage.add(&report.coverage);
            }
            Err(violation) => {
                self.failed += 1;
                say!("{violation}\nrun it again with: make sim SEED={}", violation.seed);
            }
        }
    }

    fn print(&self, notes: &[String]) {
        say!("events and their numbers:\n{}", self.coverage);
        say!(
            "{:.0} simulated seconds, {} events, {} elections; {} calls of clients linearizable, {} histories undecided",
            self.simulated.as_secs_f64(),
            self.steps,
            self.elections,
            self.calls,
            self.undecided
        );
        say!(
            "a leader and a commit within {:.1} election timeouts of the repair at most; {} worlds lost too much to continue",
            self.recovery_max,
            self.hopeless
        );
        for note in notes {
            say!("{note}");
        }
        say!("{} passed, {} failed", self.passed, self.failed);
    }
}
