//! The deterministic core of raftify.
//!
//! [`RaftNodeCore`] owns consensus (raft-rs' `RawNode`), the membership, the pending replies and the waiting
//! reads. It is synchronous: its caller passes it messages, ticks and a seed, and it returns a [`Turn`] that
//! says what to write, send and apply, in which order. It does no I/O and reads no clock, so that a whole
//! cluster of cores runs deterministically in one test thread.
//!
//! Its users are the crate `raftify`, which carries out the turns, and the simulator.

/// Whether a bug was reintroduced, for `make mutants`: never, in a normal build.
#[cfg(not(raftify_mutants))]
#[doc(hidden)]
#[macro_export]
macro_rules! mutated {
    ($mutant:ident) => {
        false
    };
}

/// Whether this bug was reintroduced: see `mutants.rs`.
#[cfg(raftify_mutants)]
#[doc(hidden)]
#[macro_export]
macro_rules! mutated {
    ($mutant:ident) => {
        $crate::mutants::Mutant::$mutant.is_on()
    };
}

pub mod config;
mod durable_state;
mod entry;
pub mod error;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod inner;
mod machines;
pub mod members;
pub mod message;
#[cfg(raftify_mutants)]
#[doc(hidden)]
pub mod mutants;
mod raft_node_core;
mod raft_rs;
mod remembered;
mod request;
mod status;
pub mod storage;
mod turn;
mod types;
mod verb_error;

pub use config::{CheckedConfig, Config};
pub use durable_state::{DurableState, PeerRecord, Started};
pub use entry::{Entry, EntryKind};
pub use members::{
    Member, MemberChange, MemberRole, Members, MembershipChange, MembershipCommand, MembershipRequest, Sender,
};
pub use message::{RaftMessage, RaftMessageBody};
pub use raft_node_core::{CoreStart, RaftNodeCore};
pub use remembered::Remembered;
pub use request::{
    Forwarding, LeaderRequest, LocalRequestMsg, ProposalReply, Reservation, Responder, ServerRequestMsg,
};
pub use status::{DiskSpace, Elections, Inspection, PeerProgress, ReplicationState, Role, Status};
pub use storage::{
    HardState, LogReader, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError,
};
pub use turn::{
    Committed, Forward, LogFetch, ReadRound, SnapshotReason, SnapshotToSend, StateKept, Turn, TurnNumber,
};
pub use types::{ClusterId, Identity, Incarnation, LogIndex, LogPosition, NodeId, RunId, Term, ZeroNodeId};
pub use verb_error::{Again, Refusal, VerbError};
