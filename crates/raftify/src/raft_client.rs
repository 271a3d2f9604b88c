//! (Signatures only for now.)

use std::time::Duration;

use bytes::Bytes;
use raftify_core::error::{MembershipError, ProposeError, ReadError, StopReason, TransferError};
use raftify_core::members::AddressProblem;
use raftify_core::{ClusterId, Inspection, LogIndex, Members, MembershipChange, NodeId, Reservation};

use crate::wire::DoorRefusal;

/// Why a remote request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError<E> {
    /// Nothing was sent: no address was given.
    #[error("no address of a node was given")]
    NoAddress,
    /// Nothing was sent: an address is no address.
    #[error(transparent)]
    BadAddress(AddressProblem),
    /// Nothing was sent: no node could be reached at any address.
    #[error("no node of the cluster could be reached: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// Nothing happened: the node refused the request at its door.
    #[error(transparent)]
    Door(DoorRefusal),
    /// The cluster's answer, or what is known of it.
    #[error(transparent)]
    Answer(E),
}

/// A connection to a cluster, untyped: payloads and replies are bytes.
#[derive(Clone, Debug)]
pub(crate) struct ClusterConnection {}

impl ClusterConnection {
    /// Checks the form of the addresses; connects on first use.
    pub(crate) fn new<E>(
        _addresses: impl IntoIterator<Item = impl Into<String>>,
        _deadline: Duration,
    ) -> Result<ClusterConnection, ClientError<E>> {
        todo!()
    }

    /// Replicates an encoded entry; the reply is postcard of the state machine's reply type.
    pub(crate) async fn propose(&self, _payload: Bytes) -> Result<Bytes, ClientError<ProposeError>> {
        todo!()
    }

    /// Changes the membership.
    pub(crate) async fn change_config(
        &self,
        _change: &MembershipChange,
    ) -> Result<Members, ClientError<MembershipError>> {
        todo!()
    }

    /// A fresh node id.
    pub(crate) async fn reserve_node_id(
        &self,
    ) -> Result<(ClusterId, Reservation), ClientError<MembershipError>> {
        todo!()
    }

    /// Hands leadership over.
    pub(crate) async fn transfer_leader(
        &self,
        _to: Option<NodeId>,
    ) -> Result<NodeId, ClientError<TransferError>> {
        todo!()
    }

    /// The leader's confirmed commit index.
    pub(crate) async fn read_index(&self) -> Result<LogIndex, ClientError<ReadError>> {
        todo!()
    }

    /// The state of the first node that answers.
    pub(crate) async fn inspect(&self) -> Result<Inspection, ClientError<StopReason>> {
        todo!()
    }
}
