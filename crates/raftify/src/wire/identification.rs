//! Which node answers at an address: the answer of a node to any other node, also before it belongs to a
//! cluster.
//!
//! With this answer a node checks whether an address leads to the expected node, which cluster a peer belongs
//! to, and whether nodes that are about to begin a cluster have the same list of first members.

use bytes::Bytes;
use raftify_core::members::check_address;
use raftify_core::{ClusterId, Identity, Incarnation, Members, NodeId};

use crate::wire::proto;
use crate::wire::values::{WireError, node_id};

/// The first members of a cluster that has not begun yet, as given to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) members: Members,
    /// How many nodes must have found each other before the cluster begins; zero for a complete list.
    pub(crate) expect: u32,
    /// Drawn by this process: with it a node recognises itself at another of its addresses.
    pub(crate) nonce: u64,
}

/// The answer of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identification {
    pub(crate) node_id: NodeId,
    /// The advertised address of the node, as configured.
    pub(crate) address: String,
    /// `None`: the node does not belong to a cluster yet.
    pub(crate) identity: Option<Identity>,
    /// The membership as far as it is applied there; empty if there is none.
    pub(crate) members: Members,
    pub(crate) leader_id: Option<NodeId>,
    /// The plan with which it waits to begin.
    pub(crate) plan: Option<Plan>,
    /// The node has no objection to the requesting node, if that node identified itself.
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
