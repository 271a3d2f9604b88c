//! gRPC between nodes, and from clients: the server, and the connections to peers.

pub(crate) mod outbox;
pub(crate) mod server;
#[cfg(test)]
mod tests;
