//! The public handles: the node and its handle, and the ways to start, join and stop it.

pub(crate) mod join;
pub(crate) mod raft;
pub(crate) mod raft_node;
pub(crate) mod raft_server;
#[cfg(any(feature = "slog", test))]
pub(crate) mod slog_layer;
pub(crate) mod start;
pub(crate) mod ticket;
