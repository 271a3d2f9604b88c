//! The verbs: what a node can be asked to do over the network, one file for each.
//!
//! A verb's file has its request, its answer and its error, its limits, its messages in `raft_service.proto`,
//! the message of the core that it becomes, and what is special about it. The generic code is written once:
//! `remote_node.rs` calls a verb on another node, over the stream of `call_stream.rs` if a stream carries the
//! verb, the server serves it (`network/server/service.rs`, `request_stream.rs`), the outbox forwards it to the
//! leader (`network/outbox/forwarding.rs`), the handle asks its own node (`api/raft_node/shared.rs`), and the
//! remote client asks a cluster (`client/cluster_connection.rs`). A verb that only the node of its caller
//! serves needs no file: it is a method of the handle.

pub(crate) mod asked_cluster;
pub(crate) mod backup;
pub(crate) mod call_stream;
pub(crate) mod change_membership;
pub(crate) mod events;
pub(crate) mod identify;
pub(crate) mod inspect;
pub(crate) mod leave;
pub(crate) mod make_snapshot;
pub(crate) mod propose;
pub(crate) mod read_index;
pub(crate) mod remote_node;
pub(crate) mod reserve_node_id;
#[cfg(test)]
mod tests;
pub(crate) mod transfer_leader;
pub(crate) mod verb;
