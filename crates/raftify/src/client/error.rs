//! Why a remote request fails.

use raftify_core::NodeId;
use raftify_core::members::AddressProblem;

use crate::wire::RequestRejected;

/// Why a remote request failed. `E` is the error of the verb, as a node returns it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError<E> {
    /// Nothing was sent: the addresses cannot be used.
    #[error(transparent)]
    Addresses(#[from] InvalidAddress),
    /// Nothing was sent: no node could be reached.
    #[error("no node of the cluster could be reached: {}", list(.0))]
    Unreachable(Vec<UnreachableNode>),
    /// Nothing was sent: the cluster has no member with this id.
    #[error("node {id} is no member: the members are {}", ids(.members))]
    NotAMember {
        /// The id, as given.
        id: NodeId,
        /// The members, as one of them knows them.
        members: Vec<NodeId>,
    },
    /// Nothing happened: the node rejected the request without processing it.
    #[error(transparent)]
    Rejected(RequestRejected),
    /// The answer of a node, or, if the connection broke or the deadline passed after the request was sent,
    /// the consequence for the verb.
    #[error(transparent)]
    Answer(E),
}

impl<E> ClientError<E> {
    /// The same, with the node's answer as the error of another verb.
    pub(crate) fn map_answer<F>(self, of: impl FnOnce(E) -> F) -> ClientError<F> {
        match self {
            ClientError::Addresses(error) => ClientError::Addresses(error),
            ClientError::Unreachable(nodes) => ClientError::Unreachable(nodes),
            ClientError::NotAMember { id, members } => ClientError::NotAMember { id, members },
            ClientError::Rejected(rejection) => ClientError::Rejected(rejection),
            ClientError::Answer(error) => ClientError::Answer(of(error)),
        }
    }
}

/// Why the given addresses of a client cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// No address was given.
    #[error("no address of a node was given: name at least one, as host:port")]
    None,
    /// One of the addresses is malformed.
    #[error(transparent)]
    Bad(#[from] AddressProblem),
}

/// Why one node could not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreachableNode {
    /// The host name is unknown.
    #[error("{address} cannot be resolved: {reason}")]
    Unresolved {
        /// The address, as given.
        address: String,
        /// The error of the operating system.
        reason: String,
    },
    /// No process listens there, or the network blocks the connection.
    #[error("{address} cannot be connected to: {reason}")]
    NotConnected {
        /// The address, as given.
        address: String,
        /// The error of the operating system.
        reason: String,
    },
}

fn ids(members: &[NodeId]) -> String {
    let ids: Vec<String> = members.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

fn list(nodes: &[UnreachableNode]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join("; ")
}
