//! How the sender of a message identifies itself, and why it may be refused.

use serde::{Deserialize, Serialize};

use crate::durable_state::{DurableState, Started};
use crate::types::{Incarnation, LogIndex, NodeId, RunId};

/// The sender of a message, as it identifies itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its id.
    pub id: NodeId,
    /// The incarnation of its data directory.
    pub incarnation: Incarnation,
    /// The log index of the membership that the sender knows, and in which it considers itself a member.
    pub members_as_of: LogIndex,
    /// How the sender was started.
    pub started: Started,
}

/// Why a message was refused before it reached consensus. All of these reasons are final: sending again does
/// not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SenderRefusal {
    /// The sender has this node's own id.
    #[error(
        "two nodes have id {id}: the sender and the receiver. Stop the one that was started by mistake; let it join \
         with a ticket of its own"
    )]
    SameId {
        /// The id of both.
        id: NodeId,
    },
    /// The sender lost or replaced its data directory.
    #[error(
        "node {id} is known with incarnation {known}, the sender has {presented}: its data directory was wiped or \
         replaced, and what it once acknowledged is gone. Remove node {id} from the cluster and let it join again \
         with a new ticket and an empty directory"
    )]
    Fenced {
        /// The sender.
        id: NodeId,
        /// The incarnation that the cluster knows.
        known: Incarnation,
        /// The incarnation that the sender presented.
        presented: Incarnation,
    },
    /// The sender was removed, or never was a member.
    #[error(
        "node {id} is not a member of the cluster as of index {as_of}: it was removed, or never joined. To take part \
         again it must join with a new ticket and an empty directory"
    )]
    NotAMember {
        /// The sender.
        id: NodeId,
        /// The membership that was checked.
        as_of: LogIndex,
    },
    /// The sender has started with less than it reported before: its directory was restored from an older
    /// copy, or its disk has lost fsynced data.
    #[error(
        "node {id} has started with an older copy of its data directory: it has {found}, and had told others of {told}. What \
         it acknowledged in between is gone, and acknowledged writes may be lost if it goes on. Remove node {id} from the \
         cluster and let it join again with a new ticket and an empty directory; if the directory that it ran on before is \
         still there, start it on that one instead"
    )]
    RolledBack {
        /// The sender.
        id: NodeId,
        /// The refused run of the sender.
        run: RunId,
        /// The state of its directory at the start.
        found: DurableState,
        /// The state that it reported before.
        told: DurableState,
    },
    /// Two runs count the same number of starts: a directory was copied, and a node was started on each copy.
    #[error(
        "two directories of node {id} have been started for the {starts}. time, and one is a copy of the other: this one was \
         started later, or is the older one of the two. Stop it, and do not start a copy beside or after its original; if \
         the original is gone, remove node {id} from the cluster and let it join again with an empty directory"
    )]
    StartedTwice {
        /// The sender.
        id: NodeId,
        /// The refused run of the sender.
        run: RunId,
        /// How many starts both count.
        starts: u64,
    },
    /// The sender expects another incarnation of this node.
    #[error(
        "this message is for incarnation {expected} of node {id}, and this is incarnation {actual}: the data directory \
         was wiped or replaced. Remove node {id} from the cluster and let it join again with a new ticket"
    )]
    OtherReceiver {
        /// The receiver.
        id: NodeId,
        /// The incarnation that the sender expects.
        expected: Incarnation,
        /// The actual incarnation.
        actual: Incarnation,
    },
}
