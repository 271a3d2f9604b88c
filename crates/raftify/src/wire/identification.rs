//! Which node answers at an address: what a node tells any other that asks, also before it belongs to a cluster.
//!
//! By this a node finds out whether an address leads to the node that it expects there, which cluster a peer belongs to, and
//! whether nodes that are about to begin a cluster were given the same first members.

use bytes::Bytes;
use raftify_core::members::check_address;
use raftify_core::{ClusterId, Identity, Incarnation, Members, NodeId};

use crate::wire::proto;
use crate::wire::values::{WireError, node_id};

/// The first members of a cluster that has not begun yet, as this node was given them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) members: Members,
    /// How many nodes must have found each other before the cluster begins; zero for a list that is complete.
    pub(crate) expect: u32,
    /// Drawn by this process: by it a node recognises itself at another of its addresses.
    pub(crate) nonce: u64,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identification {
    pub(crate) node_id: NodeId,
    /// Where the others reach the node, as it was told.
    pub(crate) address: String,
    /// `None`: it does not belong to a cluster yet.
    pub(crate) identity: Option<Identity>,
    /// The membership as far as it is applied there; empty if there is none.
    pub(crate) members: Members,
    pub(crate) leader_id: Option<NodeId>,
    /// What it waits to begin with.
    pub(crate) plan: Option<Plan>,
    /// It knows nothing that speaks against who asked, if that said who it is.
    pub(crate) agrees: bool,
}

pub(crate) fn identification_to_wire(
    header: Option<proto::Header>,
    node: Identification,
) -> proto::IdentifyReply {
    let encoded = |members: &Members| if members.is_empty() { Bytes::new() } else { members.encode() };
    proto::IdentifyReply {
        header,
        node_id: node.node_id.get(),
        address: node.address,
        incarnation: node.identity.map(|identity| identity.incarnation.0),
        members: encoded(&node.members),
        leader_id: node.leader_id.map(NodeId::get),
        plan: node.plan.map(|plan| proto::Plan {
            members: encoded(&plan.members),
            expect: plan.expect,
            nonce: plan.nonce,
        }),
        agrees: node.agrees,
    }
}

/// The inverse of [`identification_to_wire`].
pub(crate) fn identification_from_wire(reply: proto::IdentifyReply) -> Result<Identification, WireError> {
    let header = reply.header.ok_or(WireError::Missing { what: "the header" })?;
    let node_id = node_id("the node's id", reply.node_id)?;
    check_address(&reply.address)?;
    let decoded = |bytes: &[u8]| match bytes {
        [] => Ok(Members::none()),
        bytes => Members::decode(bytes),
    };
    let identity = match (reply.incarnation, header.cluster_id) {
        (None, _) => None,
        (Some(_), None) => return Err(WireError::Missing { what: "the cluster id" }),
        (Some(incarnation), Some(cluster_id)) => Some(Identity {
            cluster_id: ClusterId(cluster_id),
            node_id,
            incarnation: Incarnation(incarnation),
        }),
    };
    let plan = match reply.plan {
        Some(plan) => Some(Plan { members: decoded(&plan.members)?, expect: plan.expect, nonce: plan.nonce }),
        None => None,
    };
    Ok(Identification {
        node_id,
        address: reply.address,
        identity,
        members: decoded(&reply.members)?,
        leader_id: reply.leader_id.and_then(NodeId::new),
        plan,
        agrees: reply.agrees,
    })
}
