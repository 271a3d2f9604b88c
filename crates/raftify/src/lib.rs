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

mod api;
mod application;
mod apply;
mod channels;
pub mod client;
pub mod error;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod inner;
mod network;
mod node;
mod runtime;
mod wire;

pub use api::raft::{BootstrapOptions, ClusterJoinTicket, Raft};
pub use api::raft_node::RaftNode;
#[cfg(any(feature = "slog", test))]
pub use api::slog_layer::{SlogGuard, slog_layer};
pub use api::start::{Joining, Start};
pub use application::formatter::{CustomFormatter, DefaultFormatter, hex_and_text};
pub use application::log_entry::AbstractLogEntry;
pub use application::snapshot::{SnapshotCapture, restore_value};
pub use application::snapshot_directory::restore_directory;
pub use application::state_machine::{AbstractStateMachine, IN_MEMORY};
pub use client::{ClientError, InvalidAddress, RaftClient, RequestRejected, UnreachableNode};
pub use error::BoxError;
pub use node::expect::Expect;
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
pub use runtime::descriptors::server_connections_max;
#[cfg(feature = "simulation")]
pub use runtime::simulation;
