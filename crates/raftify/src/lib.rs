//! raftify turns a program's state into a replicated state machine.
#![allow(dead_code, unreachable_pub)] // While the parts are being put together.

mod applier;
mod error;
mod formatter;
mod log_entry;
mod log_writer;
mod outbox;
mod raft;
mod raft_client;
mod raft_loop;
mod raft_node;
mod raft_server;
mod remote_node;
mod state_machine;
mod wire;
