//! A replicated key-value store: the shared parts of its two programs.
//!
//! [`HashStore`] is the state machine, [`LogEntry`] the type of replicated entries, [`web`] the HTTP API and
//! the page in the browser. [`load_peers`] reads the members of a static cluster from a file. The programs
//! only decide how a node enters its cluster; [`NodeOptions`] has the options of both, and [`serve`] runs the
//! node from then on.

#![warn(missing_docs)]

mod access;
mod bodies;
mod node;
mod observability;
mod peers;
mod store;
pub mod web;
mod web_tls;

pub use access::{WebAccess, guard};
pub use bodies::{Bodies, BodyError, BodyLimits};
pub use node::{NodeOptions, StopRequest, report, say, serve, start_logging};
pub use observability::start_metrics;
pub use peers::{LoadPeersError, load_peers};
pub use store::{HashStore, LogEntry, Reply, StoreFormatter};

/// One node of the store.
pub type Raft = raftify::Raft<LogEntry, HashStore>;
