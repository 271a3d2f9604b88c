//! Which node answers at an address: what a node tells any other that asks, also before it belongs to a cluster.
//!
//! By this a node finds out whether an address leads to the node that it expects there, which cluster a peer belongs to, and
//! whether nodes that are about to begin a cluster were given the same first members.

use raftify_core::{Identity, Members, NodeId};

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
