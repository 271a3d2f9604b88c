//! The traits that an application implements: log entries and a state machine, their encoding, and snapshots
//! of the state.
//!
//! This module depends only on [`runtime`](crate::runtime): the applier, the network and the client all use
//! it.

pub(crate) mod encoding;
pub(crate) mod formatter;
pub(crate) mod log_entry;
pub(crate) mod snapshot;
pub(crate) mod snapshot_directory;
pub(crate) mod state_machine;
