//! Why a membership change is refused.

use serde::{Deserialize, Serialize};

use super::address::AddressProblem;
use super::member::{MEMBERS_MAX, MemberRole};
use crate::types::{Incarnation, NodeId};

/// Why a membership change is refused. The request had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MembershipRefusal {
    /// A cluster needs a voter.
    #[error("no voter would be left: add another voter first, or stop the node if the cluster is to end")]
    LastVoter,
    /// The node is no member.
    #[error("node {id} is not a member")]
    UnknownMember {
        /// The node.
        id: NodeId,
    },
    /// Two steps concern the same node.
    #[error("node {id} is named twice")]
    NamedTwice {
        /// The node.
        id: NodeId,
    },
    /// The change is empty.
    #[error("the change names no member")]
    NoSteps,
    /// Another member has this address.
    #[error(
        "node {id} cannot have address {address}: it belongs to node {holder}. Remove that node first if it is gone"
    )]
    AddressTaken {
        /// The node to be added.
        id: NodeId,
        /// Its address.
        address: String,
        /// The member that has it.
        holder: NodeId,
    },
    /// The address is invalid.
    #[error("node {id}: {problem}")]
    BadAddress {
        /// The node to be added.
        id: NodeId,
        /// Why it is invalid.
        problem: AddressProblem,
    },
    /// The id was used before.
    #[error("node {id} was removed before, and ids are never used again: ask for a new ticket")]
    IdWasRemoved {
        /// The node to be added.
        id: NodeId,
    },
    /// The cluster knows the member with another data directory.
    #[error(
        "node {id} is a member with incarnation {known}, not {new}: its data directory was replaced. Remove it first"
    )]
    OtherIncarnation {
        /// The node.
        id: NodeId,
        /// The incarnation that the cluster knows.
        known: Incarnation,
        /// The incarnation in the request.
        new: Incarnation,
    },
    /// The cluster knows the member at another address, and does not know its incarnation yet: another node
    /// may have used the ticket.
    #[error(
        "node {id} is a member at {known}, not at {new}: another node may use its ticket. Ask for a new ticket, or remove \
         node {id} first if it is gone"
    )]
    OtherAddress {
        /// The node.
        id: NodeId,
        /// The address that the cluster knows.
        known: String,
        /// The address in the request.
        new: String,
    },
    /// Another node answers at the address of the node to be added.
    #[error(
        "node {id} cannot have address {address}: node {answers} answers there. Two names of one address count as one \
         address: give the address at which node {id} itself is reached"
    )]
    AnsweredByOther {
        /// The node to be added.
        id: NodeId,
        /// Its address.
        address: String,
        /// The node that answers there.
        answers: NodeId,
    },
    /// The member has this role already.
    #[error("node {id} is a {role} already")]
    HasRole {
        /// The node.
        id: NodeId,
        /// Its role.
        role: MemberRole,
    },
    /// A voter cannot become a joining node again: demote it to a learner instead.
    #[error("node {id} is a voter: it cannot be made a joining node, demote it to a learner instead")]
    CannotJoinAgain {
        /// The node.
        id: NodeId,
    },
    /// Only a node that is joining can be cleared.
    #[error("node {id} is not joining: remove it instead")]
    NotJoining {
        /// The node.
        id: NodeId,
    },
    /// `Leaving` is a state, not a role that a member can be added with.
    #[error("node {id} cannot be added as leaving: remove it instead")]
    CannotAddLeaving {
        /// The node.
        id: NodeId,
    },
    /// A joint configuration must be left first.
    #[error("a joint configuration is in force: leave it first")]
    AlreadyJoint,
    /// There is no joint configuration to leave.
    #[error("no joint configuration is in force")]
    NotJoint,
    /// More than [`MEMBERS_MAX`].
    #[error("{count} members are more than the {MEMBERS_MAX} that a cluster may have")]
    TooManyMembers {
        /// The requested number.
        count: usize,
    },
    /// All 2⁶⁴ − 1 ids are used.
    #[error("no node id is left")]
    IdsExhausted,
}
