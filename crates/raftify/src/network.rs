//! gRPC between nodes, and from clients: the server, the connections to peers, and single calls.

pub(crate) mod calls;
pub(crate) mod endpoint;
pub(crate) mod outbox;
pub(crate) mod probe;
pub(crate) mod remote_node;
pub(crate) mod server;
#[cfg(test)]
mod tests;
