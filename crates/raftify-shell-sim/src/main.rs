//! `sim-shell`: many worlds of simulated nodes, or one again. Ctrl+C ends it after the world that is under way.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use raftify_shell_sim::{Scenario, run};
use tracing_subscriber::EnvFilter;

/// Runs whole raftify nodes on simulated hosts, one world for each seed.
#[derive(Parser)]
struct Arguments {
    /// Of the first world.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many worlds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Print what happens in them.
    #[arg(long)]
    trace: bool,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    thread::spawn(end_at_interrupt);
    let began = Instant::now();
    let (mut passed, mut failed, mut simulated) = (0_u64, 0_u64, Duration::ZERO);
    let mut happened = BTreeMap::<_, u64>::new();
    for seed in (arguments.seed..).take(usize::try_from(arguments.seeds).unwrap_or(usize::MAX)) {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        let report = run(seed, Scenario::of(seed));
        if arguments.trace {
            print!("{}", report.trace);
        }
        simulated += report.simulated;
        for (what, count) in report.happened {
            *happened.entry(what).or_default() += count;
        }
        match report.violation {
            None => passed += 1,
            Some(violation) => {
                failed += 1;
                println!("seed {seed} ({:?}): {violation}", report.scenario);
            }
        }
    }
    for (what, count) in happened {
        println!("{count:>9} {what}");
    }
    println!("{:.0} s simulated in {:.0} s", simulated.as_secs_f64(), began.elapsed().as_secs_f64());
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Without it, Ctrl+C ends the program as it always does.
fn end_at_interrupt() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else {
        return;
    };
    if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
}
