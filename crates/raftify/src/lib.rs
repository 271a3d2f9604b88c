//! raftify turns a program's state into a replicated state machine: it survives machines.
//!
//! Write a [log entry](AbstractLogEntry) type and a [state machine](AbstractStateMachine), [`begin`](Raft::begin) a cluster,
//! and let other nodes [`join`](Raft::join) it. What [`propose`] has acknowledged
//! was made durable by a majority of the nodes; a [`query`] on any node sees all of it.
//!
//! # Quick start
//!
//! A single node. Other nodes start with [`Raft::join`] and the address of any member, and the state machine does not
//! change by it.
//!
//! ```
//! use raftify::{AbstractStateMachine, BoxError, Config, LogPosition, Raft, SnapshotCapture, WalStorage};
//!
//! /// The state: a sum. Its log entries are what is added.
//! struct Sum(i64);
//!
//! impl AbstractStateMachine for Sum {
//!     type LogEntry = i64;
//!     type Reply = i64;
//!
//!     fn apply(&mut self, _position: LogPosition, add: i64) -> Result<i64, BoxError> {
//!         self.0 += add;
//!         Ok(self.0)
//!     }
//!
//!     fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError> {
//!         Ok(SnapshotCapture::of(self.0))
//!     }
//!
//!     fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
//!         self.0 = raftify::restore_value(reader)?;
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), BoxError> {
//!     let directory = tempfile::tempdir()?;
//!     let storage = WalStorage::open(directory.path())?;
//!     let raft = Raft::begin("127.0.0.1:60091", storage, Sum(0), Config::default()).await?;
//!     raft.wait_for_leader().await?;
//!
//!     assert_eq!(raft.propose(40).await?, 40);
//!     assert_eq!(raft.propose(2).await?, 42);
//!     assert_eq!(raft.query(|sum| sum.0).await?, 42);
//!
//!     raft.quit().await;
//!     Ok(())
//! }
//! ```
//!
//! # What is where
//! - [`Raft`] starts a node: it begins a cluster, joins one, or restarts; it dereferences to [`RaftNode`], the handle with all verbs.
//! - [`RaftClient`] talks to a cluster from outside.
//! - [`Config`] holds all settings; the defaults work unchanged on a LAN.
//! - [`error`] says for every verb why it can fail, and what that means for the data.
//! - [`WalStorage`] keeps a node's log and snapshots in a directory, and makes a write durable by one flush;
//!   [`HeedStorage`] does it all in LMDB, which is simplest; [`convert_storage`] goes from one to the other, and
//!   [`ReadOnlyStorage`] looks into both. [`storage`] is the contract for other ways.
//!
//! [`propose`]: RaftNode::propose
//! [`query`]: RaftNode::query

mod applier;
mod begin;
mod calls;
mod chance;
mod cluster_connection;
mod connections;
mod descriptors;
mod discovery;
mod encoding;
pub mod error;
mod expect;
mod formatter;
mod forwarding;
mod identification;
mod in_flight;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod inner;
mod join;
mod lifecycle;
mod log_entry;
mod log_writer;
mod membership;
#[cfg(test)]
mod network_tests;
mod outbox;
mod pace;
mod peer_connection;
mod peer_queue;
mod probe;
mod raft;
mod raft_client;
mod raft_loop;
mod raft_node;
mod raft_server;
mod remote_node;
mod reply;
mod request_queue;
mod running;
mod seldom;
mod severable;
#[cfg(feature = "simulation")]
pub mod simulation;
#[cfg(any(feature = "slog", test))]
mod slog_layer;
mod snapshot_directory;
mod snapshot_receiver;
mod snapshot_sender;
mod snapshot_taker;
mod snapshots;
mod stall_guard;
mod start;
mod state_machine;
mod timing;
mod transport;
mod wire;
mod worker;

pub use descriptors::server_connections_max;
pub use error::BoxError;
pub use expect::Expect;
pub use formatter::{CustomFormatter, DefaultFormatter, hex_and_text};
pub use log_entry::AbstractLogEntry;
pub use raft::{BootstrapOptions, ClusterJoinTicket, Raft};
pub use raft_client::{AddressesError, ClientError, RaftClient, UnreachableNode};
pub use raft_node::RaftNode;
pub use raftify_core::members::{
    LeaveJoint, MemberRecord, MembershipCommand, MembershipRequest, check_address, check_listen_address,
};
pub use raftify_core::storage::{self, MemoryStorage, StoredState};
pub use raftify_core::{
    ClusterId, Config, Entry, EntryKind, HardState, Identity, Incarnation, Inspection, LogIndex, LogPosition,
    LogReader, Member, MemberChange, MemberRole, Members, MembershipChange, NodeId, PeerProgress,
    PeerStanding, Remembered, ReplicationState, Role, RunId, SnapshotDigest, SnapshotMeta, SnapshotStore,
    SnapshotWriter, StableStorage, Standing, Started, Status, StorageError, Term,
};
pub use raftify_storage::{
    Conversion, HeedStorage, ReadOnlyStorage, StorageKind, WalSettings, WalStorage, convert_storage,
};
#[cfg(any(feature = "slog", test))]
pub use slog_layer::{SlogGuard, slog_layer};
pub use snapshot_directory::restore_directory;
pub use start::{Joining, Start};
pub use state_machine::{AbstractStateMachine, IN_MEMORY, SnapshotCapture, restore_value};
pub use wire::DoorRefusal;
