//! Why a remote request fails.

use std::path::PathBuf;
use std::time::Duration;

use raftify_core::members::AddressProblem;
use raftify_core::{ClusterId, NodeId, StorageError};

use crate::error::BackupRefused;
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

/// Why [`RaftClient::backup`](crate::RaftClient::backup) made no backup. The cluster is unchanged, and no file has
/// the name of the backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientBackupError {
    /// No node provided it.
    #[error(transparent)]
    Node(#[from] ClientError<BackupRefused>),
    /// The file cannot be written: it exists, another program writes it, the disk is full; or the data that
    /// arrived is not that of the snapshot.
    #[error(transparent)]
    File(#[from] StorageError),
    /// The part that was to be resumed is of another cluster. It was not changed.
    #[error(
        "{} is the beginning of a backup of cluster {found}, this cluster is {own}: remove it, or name another file",
        partial.display()
    )]
    OtherCluster {
        /// The unfinished file.
        partial: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The cluster of the nodes.
        own: ClusterId,
    },
    /// What arrived is not what the node sent: the connection, or the memory of a machine, alters data. The part
    /// that arrived before is kept, and can be resumed.
    #[error("the backup was refused, since what {address} sends is not sound: {reason}")]
    Unsound {
        /// The address of the node.
        address: String,
        /// The reason.
        reason: String,
    },
    /// The connection broke, and could not be made again in time. The part that arrived is kept, and can be
    /// resumed.
    #[error(
        "the connection to {address} broke after {bytes} of {of} bytes, and there was no progress for {} s: {reason}",
        patience.as_secs()
    )]
    Interrupted {
        /// The address of the node.
        address: String,
        /// How many bytes of data have arrived.
        bytes: u64,
        /// How many there are.
        of: u64,
        /// How long the client has tried again.
        patience: Duration,
        /// The last error.
        reason: String,
    },
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
