//! Requests that are rejected by validation, and the encoding of rejections.

use std::fmt::Display;

use bytes::Bytes;
use raftify_core::error::StopReason;
use raftify_core::members::SenderRefusal;
use raftify_core::{ClusterId, NodeId, Term};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use crate::wire::proto;
use crate::wire::values::WireError;

/// The only group for now.
pub(crate) const GROUP_ID: u64 = 0;

/// The version of the typed details of a rejection. It comes first, because even a sender of another wire
/// version must understand a rejection.
const DETAIL_VERSION: u8 = 1;

/// Why a node rejected a request without processing it: nothing happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RequestRejected {
    /// The two programs have incompatible versions.
    #[error(
        "wire version {found} is not spoken here, only version {known}: run versions of raftify that fit together"
    )]
    Version {
        /// The version of the request.
        found: u32,
        /// The version of the rejecting node.
        known: u32,
    },
    /// The request is for a group that does not exist.
    #[error("group {found} is not served here, only group {GROUP_ID} is")]
    Group {
        /// The group of the request.
        found: u64,
    },
    /// The request is for another cluster: an address is wrong on one of the two sides.
    #[error(
        "this message is of cluster {found}, node {node} belongs to cluster {own}: one of the two was given an \
         address of the wrong cluster"
    )]
    OtherCluster {
        /// The rejecting node.
        node: NodeId,
        /// The cluster of the request.
        found: ClusterId,
        /// The cluster of the rejecting node.
        own: ClusterId,
    },
    /// The node waits to learn its cluster.
    #[error("node {node} belongs to no cluster yet: it must begin one or join one first")]
    NoCluster {
        /// The rejecting node.
        node: NodeId,
    },
    /// Another node listens at the address that the sender has for the intended one.
    #[error(
        "this message is for node {meant}, but at this address listens node {own}: check the addresses of both"
    )]
    OtherNode {
        /// The node that the sender meant.
        meant: NodeId,
        /// The rejecting node.
        own: NodeId,
    },
    /// The sender is not accepted.
    #[error(transparent)]
    Sender(#[from] SenderRefusal),
    /// The request is malformed.
    #[error("the message makes no sense: {0}")]
    Malformed(String),
    /// A snapshot of a newer leader is being received.
    #[error("a snapshot of term {newer} is being received, this one is of term {term}")]
    StaleSnapshot {
        /// The term of the rejected snapshot.
        term: Term,
        /// The term of the snapshot that is being received.
        newer: Term,
    },
    /// The node has stopped, or is stopping.
    #[error(transparent)]
    Stopped(#[from] StopReason),
    /// The node requires TLS, and the request came without it. Give this side a certificate of the cluster's
    /// CA.
    #[error(
        "node {node} at {address} accepts requests over TLS only, and this one came without: configure this side with \
         a certificate of the cluster's CA"
    )]
    TlsRequired {
        /// The rejecting node.
        node: NodeId,
        /// Its address.
        address: String,
    },
    /// The certificate of the sender has no role that permits the request.
    #[error(
        "node {node} at {address} refuses {method} of {sender}: its certificate has the roles: {roles}, and one of \
         these is needed: {needed}. Issue a certificate with such a role"
    )]
    RoleMissing {
        /// The rejecting node.
        node: NodeId,
        /// Its address.
        address: Box<str>,
        /// The requested method.
        method: Box<str>,
        /// The names in the certificate of the sender.
        sender: Box<str>,
        /// The roles of the sender.
        roles: Box<str>,
        /// The roles of which one is needed.
        needed: Box<str>,
    },
    /// The certificate of the sender is not that of the node that sends, forwards or joins.
    #[error(
        "node {node} at {address} refuses the certificate of {sender}: {reason}. Issue a certificate for the host of \
         the node's address"
    )]
    OtherCertificate {
        /// The rejecting node.
        node: NodeId,
        /// Its address.
        address: String,
        /// The names in the certificate of the sender.
        sender: String,
        /// The difference.
        reason: String,
    },
}

impl From<WireError> for RequestRejected {
    fn from(error: WireError) -> RequestRejected {
        RequestRejected::Malformed(error.to_string())
    }
}

impl From<RequestRejected> for Status {
    fn from(refusal: RequestRejected) -> Status {
        let code = match refusal {
            RequestRejected::Malformed(_) => Code::InvalidArgument,
            RequestRejected::TlsRequired { .. } => Code::Unauthenticated,
            RequestRejected::Sender(_)
            | RequestRejected::RoleMissing { .. }
            | RequestRejected::OtherCertificate { .. } => Code::PermissionDenied,
            RequestRejected::NoCluster { .. } | RequestRejected::Stopped(_) => Code::Unavailable,
            _ => Code::FailedPrecondition,
        };
        Status::with_details(code, refusal.to_string(), encode_detail(&refusal))
    }
}

impl RequestRejected {
    /// The typed reason in a status, if it is the reason of a rejected request.
    pub(crate) fn from_status(status: &Status) -> Option<RequestRejected> {
        decode_detail(status.details())
    }
}

/// Encodes a rejection for the reply of its verb.
pub(crate) fn refusal_to_wire<E: Display + Serialize>(error: &E) -> proto::Refusal {
    proto::Refusal { message: error.to_string(), detail: encode_detail(error) }
}

/// The inverse of [`refusal_to_wire`]; `None` for a reason that this version does not know.
pub(crate) fn refusal_from_wire<E: DeserializeOwned>(refusal: &proto::Refusal) -> Option<E> {
    decode_detail(&refusal.detail)
}

pub(crate) fn encode_detail<T: Serialize>(value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![DETAIL_VERSION]);
    bytes.expect("plain data with known lengths, written to memory, always encodes").into()
}

pub(crate) fn decode_detail<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, rest) = bytes.split_first()?;
    if *version != DETAIL_VERSION {
        return None;
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}
