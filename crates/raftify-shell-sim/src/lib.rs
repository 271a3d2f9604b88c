//! Whole raftify nodes in a simulation: raft loop, log writer, applier, outbox, gRPC server, snapshot
//! transfers and the remote client run as in production; network, disk, clock, threads and randomness are
//! simulated.
//!
//! One seed decides everything. [`run`] draws a world from it, injects faults, heals it, and requires that
//! every call was answered in time, that everything is closed when a node ends, that no acknowledged write is
//! missing, and that the clients' history is linearizable.

mod client;
mod command;
mod disk;
mod host;
mod machine;
mod panics;
mod record;
mod scenario;
mod world;

pub use record::HAPPENINGS;
pub use scenario::Scenario;
pub use world::{Report, run};
