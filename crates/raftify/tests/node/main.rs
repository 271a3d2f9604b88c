//! Whole nodes over real connections: every guarantee of the public API, and every invalid input.

#![allow(clippy::unwrap_used)] // A test that unwraps fails at the place that tells most.

mod addresses;
mod backup;
mod bad_input;
mod cluster;
mod durability;
mod events;
mod expect;
mod harness;
mod lifecycle;
mod membership;
mod on_disk;
mod overload;
mod rolled_back;
mod snapshots;
mod starting;
mod state_machine;
mod stopping;
