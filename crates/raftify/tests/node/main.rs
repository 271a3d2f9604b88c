//! Whole nodes over real connections: every promise of the public API, and every bad input.

mod bad_input;
mod cluster;
mod harness;
mod lifecycle;
mod membership;
mod snapshots;
mod state_machine;
