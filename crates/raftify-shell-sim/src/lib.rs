//! Whole raftify nodes in a simulation: raft loop, log writer, applier, outbox, gRPC server, snapshots on their way and
//! the remote client run as in production, but for network, disk, clock, threads and chance, which are simulated.
//!
//! One seed decides everything. [`run`] draws a world from it, lets faults happen, heals it, and requires that every call
//! was answered in time, that all is closed when a node ends, that nothing acknowledged is missing, and that the clients'
//! history is linearizable.

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
