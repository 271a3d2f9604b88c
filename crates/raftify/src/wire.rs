//! (Signatures only for now.)

use raftify_core::error::StopReason;
use raftify_core::members::SenderRefusal;
use raftify_core::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

/// The messages of `raft_service.proto`.
#[allow(missing_docs, unused_qualifications, clippy::all)]
pub(crate) mod proto {
    tonic::include_proto!("raftify.v1");
}

/// Why a node did not even look at a request. Nothing happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DoorRefusal {
    /// Another version.
    #[error("wire version {found} is not known here, this node speaks version {known}: run one version on all nodes")]
    Version {
        /// Of the request.
        found: u32,
        /// Of this node.
        known: u32,
    },
    /// Another group.
    #[error("group {found} is not served here, only group 0 is")]
    Group {
        /// Of the request.
        found: u64,
    },
    /// Another cluster.
    #[error("this message is of cluster {found}, this node belongs to cluster {own}")]
    OtherCluster {
        /// Of the request.
        found: ClusterId,
        /// Of this node.
        own: ClusterId,
    },
    /// No cluster yet.
    #[error("node {id} belongs to no cluster yet")]
    NoCluster {
        /// The refusing node.
        id: NodeId,
    },
    /// For another node.
    #[error("this message is for node {meant}, this is node {own}")]
    OtherNode {
        /// The receiver as meant.
        meant: NodeId,
        /// The refusing node.
        own: NodeId,
    },
    /// The sender is not believed.
    #[error(transparent)]
    Sender(#[from] SenderRefusal),
    /// Not a possible message.
    #[error("the message makes no sense: {0}")]
    Malformed(String),
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}
