//! A running node: its start and end, the raft loop, and the writer of its log.

pub(crate) mod begin;
pub(crate) mod discovery;
pub(crate) mod expect;
pub(crate) mod log_writer;
pub(crate) mod loop_metrics;
pub(crate) mod raft_loop;
pub(crate) mod running;
pub(crate) mod storage_gauge;
