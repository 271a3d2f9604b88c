//! What an application implements: log entries and a state machine, how they are encoded, and snapshots of the state.
//!
//! This wing depends on no other but [`runtime`](crate::runtime): the applier, the network and the client all use it.

pub(crate) mod encoding;
pub(crate) mod formatter;
pub(crate) mod log_entry;
pub(crate) mod snapshot;
pub(crate) mod snapshot_directory;
pub(crate) mod state_machine;
