//! A deterministic simulator for raftify: whole clusters of real cores in one thread, in a world that one seed decides
//! about. Network, disks, clocks, restarts, clients and the user's state machine are simulated; the core is the real
//! one. After every step, all of `invariants` are checked; at the end, that the clients' histories are linearizable and
//! that the cluster became live again.
//!
//! The binary `sim` runs many seeds, or one again. `docs/testing.md` says what is simulated and what is not.

mod answers;
mod clients;
mod coverage;
mod disk;
mod draw;
mod event;
mod fault;
mod invariants;
mod log_picture;
mod nemesis;
mod network;
mod node;
mod panics;
mod reply;
mod schedule;
mod simulation;
mod store;
pub mod trace;
mod world;

use std::fmt;
use std::time::Duration;

pub use coverage::{Coverage, Happened};

use simulation::Simulation;
use trace::Trace;

/// A world that kept all promises.
#[derive(Clone, Debug)]
pub struct Report {
    /// How long it lasted, in its own time.
    pub simulated: Duration,
    /// How many events there were.
    pub steps: u64,
    /// How many terms had a leader.
    pub elections: u64,
    /// How many calls of clients were checked.
    pub calls: u64,
    /// The histories of how many keys were too large to be decided.
    pub undecided: u64,
    /// After how many election timeouts there was a leader and a commit again, once enough was healed; `None` if too
    /// much was lost for that.
    pub recovery: Option<f64>,
    /// What really happened.
    pub coverage: Coverage,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// In which world.
    pub seed: u64,
    /// When, in its own time.
    pub at: Duration,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} after {:?}: {}", self.seed, self.at, self.what)
    }
}

impl std::error::Error for Violation {}

/// Runs the world of `seed` to its end. A panic in it is a violation as well.
pub fn run(seed: u64) -> Result<Report, Violation> {
    carry_out(seed, Trace::Off).0
}

/// Runs the world of `seed` to its end, and tells what happened there.
pub fn run_traced(seed: u64) -> (Result<Report, Violation>, String) {
    carry_out(seed, Trace::on(seed))
}

fn carry_out(seed: u64, trace: Trace) -> (Result<Report, Violation>, String) {
    let mut simulation = Simulation::new(seed, trace);
    let outcome = panics::caught(|| simulation.run()).unwrap_or_else(Err);
    let at = Duration::from_micros(simulation.schedule.now());
    let election = simulation.world.election_timeout() as f64;
    let outcome = match outcome {
        Ok(()) => Ok(Report {
            simulated: at,
            steps: simulation.steps,
            elections: simulation.invariants.elections.elections() as u64,
            calls: simulation.clients.calls() as u64,
            undecided: simulation.undecided,
            recovery: simulation.recovery.map(|time| time as f64 / election),
            coverage: simulation.coverage.clone(),
        }),
        Err(what) => Err(Violation { seed, at, what }),
    };
    let trace = std::mem::replace(&mut simulation.trace, Trace::Off).text();
    // Nothing of it may be dropped in the middle of a panic that was caught: closures answer when they are dropped.
    let _ = panics::caught(|| drop(simulation));
    (outcome, trace)
}
