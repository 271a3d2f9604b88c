//! A deterministic simulator for raftify: whole clusters of real cores in one thread, in a world that is
//! determined by one seed. Network, disks, clocks, restarts, clients and the user's state machine are
//! simulated; the core is the real one. After every step, all of `invariants` are checked; at the end, that
//! the clients' histories are linearizable and that the cluster became live again.
//!
//! The binary `sim` runs many seeds, or repeats one. `docs/testing.md` lists what is simulated and what is
//! not.

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
pub mod script;
mod simulation;
mod store;
pub mod trace;
mod world;

use std::fmt;
use std::time::Duration;

pub use coverage::{Coverage, Happened};

use simulation::Simulation;
use trace::Trace;

/// A world without a violation.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its duration, in simulated time.
    pub simulated: Duration,
    /// The number of events.
    pub steps: u64,
    /// The number of terms with a leader.
    pub elections: u64,
    /// The number of checked client calls.
    pub calls: u64,
    /// The number of histories that were too large for the checker's budget.
    pub undecided: u64,
    /// The election timeouts until there was a leader and a commit again, after the repair; `None` if too
    /// much was lost for that.
    pub recovery: Option<f64>,
    /// The events that happened.
    pub coverage: Coverage,
}

/// A violated invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The seed of the world.
    pub seed: u64,
    /// The simulated time.
    pub at: Duration,
    /// The violation.
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

/// Runs the world of `seed` to its end, and returns its trace as well.
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
    // A caught panic must not drop parts of it in the middle: closures answer when they are dropped.
    let _ = panics::caught(|| drop(simulation));
    (outcome, trace)
}
