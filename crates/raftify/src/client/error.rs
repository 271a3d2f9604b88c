//! Why a remote client gets no answer.

use raftify_core::members::AddressProblem;

use crate::wire::RequestRejected;

/// Why a remote request failed. `E` is the error of the verb, as a node gives it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError<E> {
    /// Nothing was sent: the addresses cannot be used.
    #[error(transparent)]
    Addresses(#[from] InvalidAddress),
    /// Nothing was sent: no node could be reached.
    #[error("no node of the cluster could be reached: {}", list(.0))]
    Unreachable(Vec<UnreachableNode>),
    /// Nothing happened: the node rejected the request without looking at it.
    #[error(transparent)]
    Rejected(RequestRejected),
    /// What a node answered, or, if the connection broke or the deadline passed after the request was sent, what that
    /// means for the verb.
    #[error(transparent)]
    Answer(E),
}

/// Why the addresses that a client was given cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// There is none.
    #[error("no address of a node was given: name at least one, as host:port")]
    None,
    /// One is no address.
    #[error(transparent)]
    Bad(#[from] AddressProblem),
}

/// Why one node could not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreachableNode {
    /// The host's name is not known.
    #[error("{address} cannot be resolved: {reason}")]
    Unresolved {
        /// As given.
        address: String,
        /// As the system says.
        reason: String,
    },
    /// Nobody listens there, or the way is blocked.
    #[error("{address} cannot be connected to: {reason}")]
    NotConnected {
        /// As given.
        address: String,
        /// As the system says.
        reason: String,
    },
}

fn list(nodes: &[UnreachableNode]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join("; ")
}
