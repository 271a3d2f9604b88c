//! raftify turns a program's state into a replicated state machine.
//!
//! # Quick start
#![allow(dead_code, unreachable_pub)] // While the parts are being put together.

mod applier;
pub mod error;
mod formatter;
mod lifecycle;
mod log_entry;
mod log_writer;
#[cfg(test)]
mod network_tests;
mod outbox;
mod raft;
mod raft_client;
mod raft_loop;
mod raft_node;
mod raft_server;
mod remote_node;
mod reply;
mod running;
mod snapshots;
mod state_machine;
mod wire;
mod worker;

pub use error::BoxError;
pub use formatter::{CustomFormatter, DefaultFormatter, hex_and_text};
pub use log_entry::AbstractLogEntry;
pub use raft::{BootstrapOptions, ClusterJoinTicket, Raft};
pub use raft_client::{AddressesError, ClientError, RaftClient, UnreachableNode};
pub use raft_node::RaftNode;
pub use raftify_core::members::{LeaveJoint, MemberRecord, check_address};
pub use raftify_core::storage::{self, MemoryStorage, StoredState};
pub use raftify_core::{
    ClusterId, Config, Entry, EntryKind, HardState, Identity, Incarnation, Inspection, LogIndex, LogPosition,
    LogReader, Member, MemberChange, MemberRole, Members, MembershipChange, NodeId, PeerProgress,
    ReplicationState, Role, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage, Status, StorageError,
    Term,
};
pub use raftify_storage::{HeedStorage, ReadOnlyStorage};
pub use state_machine::{AbstractStateMachine, SnapshotCapture, restore_value};
pub use wire::DoorRefusal;
