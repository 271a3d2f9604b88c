//! The communication between the parts of a node: the queue of requests, replies, events, and the lifecycle.

pub(crate) mod backups;
pub(crate) mod events;
pub(crate) mod in_flight;
pub(crate) mod lifecycle;
pub(crate) mod metrics;
pub(crate) mod node_events;
pub(crate) mod reply;
pub(crate) mod request_queue;
pub(crate) mod server_counters;
