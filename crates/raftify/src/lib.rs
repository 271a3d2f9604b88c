//! raftify turns a program's state into a replicated state machine that survives machine failures.
//!
//! Write a [log entry](LogEntry) type and a [state machine](StateMachine), [`begin`](Raft::begin) a cluster,
//! and let other nodes [`join`](Raft::join) it. A write acknowledged by [`propose`] is durable on a majority
//! of the nodes; a [`query`] on any node sees every acknowledged write.
//!
//! # Quick start
//!
//! A single node. Other nodes start with [`Raft::join`] and the address of any member; the state machine
//! stays the same.
//!
//! ```
//! use raftify::{BoxError, Config, LogPosition, Raft, Snapshot, StateMachine, WalStorage};
//!
//! /// The state: a sum. Its log entries are what is added.
//! struct Sum(i64);
//!
//! impl StateMachine for Sum {
//!     type LogEntry = i64;
//!     type Reply = i64;
//!
//!     fn apply(&mut self, _position: LogPosition, add: i64) -> Result<i64, BoxError> {
//!         self.0 += add;
//!         Ok(self.0)
//!     }
//!
//!     fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
//!         Ok(Snapshot::from_value(self.0))
//!     }
//!
//!     fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
//!         self.0 = Snapshot::read_value(reader)?;
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
//! # Overview
//! - [`Raft`] starts a node: it begins a cluster, joins one, or restarts. It bundles the two parts of a node:
//!   [`RaftNode`], the handle with all verbs, to which it dereferences, and [`RaftServer`], its gRPC server.
//! - [`StateMachine`] and [`LogEntry`] are the traits that an application implements; [`Snapshot`] is a
//!   captured state.
//! - [`Config`] holds all settings; the defaults work unchanged on a LAN. [`start`] has the options of a
//!   start.
//! - [`WalStorage`] keeps a node's log and snapshots in a directory, and makes a write durable by one flush.
//!   [`storage`] has the other storages, the conversion between them, and the contract for custom storages.
//! - [`RaftClient`] is the remote client of a cluster: see [`client`].
//! - [`events`] has the events that a node reports.
//! - [`membership`] has the members and their changes, [`status`] the status that a node reports.
//! - [`error`] lists for every verb the reasons of failure, and their consequences for the data.
//!
//! [`propose`]: RaftNode::propose
//! [`query`]: RaftNode::query

mod api;
mod application;
mod apply;
mod channels;
pub mod client;
pub mod error;
mod network;
mod node;
mod runtime;
mod security;
#[cfg(feature = "testing")]
pub mod testing;
mod verbs;
mod wire;

#[doc(no_inline)]
pub use LogEntry as AbstractLogEntry;
#[doc(no_inline)]
pub use StateMachine as AbstractStateMachine;
pub use api::raft::Raft;
pub use api::raft_node::RaftNode;
pub use api::raft_server::RaftServer;
#[cfg(any(feature = "slog", test))]
pub use api::slog_layer::{SlogGuard, slog_layer};
pub use api::ticket::ClusterJoinTicket;
pub use application::log_entry::LogEntry;
pub use application::snapshot::Snapshot;
pub use application::state_machine::{IN_MEMORY, StateMachine};
#[doc(no_inline)]
pub use client::RaftClient;
#[doc(no_inline)]
pub use error::BoxError;
#[doc(no_inline)]
pub use membership::Member;
pub use raftify_core::{Config, LogPosition, NodeId};
pub use raftify_storage::WalStorage;
#[cfg(feature = "simulation")]
pub use runtime::simulation;

/// The events of a node: changes of its leader, members, snapshots, connections and disk.
///
/// [`RaftNode::events`] subscribes to those of a node in this process,
/// [`RaftClient::events`] to those of a node over the network.
pub mod events {
    pub use crate::channels::node_events::{Event, EventRecord, Events};
    pub use crate::client::events::RemoteEvents;
}

/// How the entries and snapshots of an application are printed in logs and by the command line tool.
pub mod formatter {
    pub use crate::application::formatter::{CustomFormatter, DefaultFormatter, hex_and_text};
}

/// The members of a cluster, and how they change.
pub mod membership {
    pub use raftify_core::members::{LeaveJoint, MemberRecord, check_address, check_listen_address};
    pub use raftify_core::{
        Member, MemberChange, MemberRole, Members, MembershipChange, MembershipCommand, MembershipRequest,
        Reservation,
    };
}

/// Bucket limits for the histograms among the metrics of a node.
///
/// A node records its metrics with the crate [`metrics`](https://docs.rs/metrics). Install a recorder before the node is
/// set up, such as that of `metrics-exporter-prometheus`; without one, recording does nothing.
/// `docs/metrics.md` in the repository lists all metrics.
pub mod metrics {
    pub use crate::channels::metrics::{SECONDS_BUCKETS, SIZE_BUCKETS};
}

/// Mutual TLS between nodes, and with clients: the configuration, and the names in certificates.
///
/// A certificate carries its roles, and optionally the ids of its node and cluster, as subject alternative
/// names (URIs); `raftify-cli ca` issues such certificates. See [`Tls`](tls::Tls).
pub mod tls {
    pub use crate::security::config::{Pem, Tls, TlsError};
    pub use crate::security::credentials::TlsWatch;
    pub use crate::security::identity::{CertificateRole, client_uri, cluster_uri, node_uri};
}

/// The ways to start a node, and their options.
pub mod start {
    pub use crate::api::raft::BootstrapOptions;
    pub use crate::api::start::{JoinOptions, Start};
    pub use crate::node::expect::Expect;
}

/// The status that a node reports, and the numbers and ids in it.
pub mod status {
    pub use crate::channels::server_counters::RequestCounts;
    pub use raftify_core::{
        ClusterId, DiskSpace, Identity, Incarnation, Inspection, LogIndex, PeerProgress, ReplicationState,
        Role, Status, Term,
    };
}

/// Storages: those that come with this crate, the conversion between them, and the contract for others.
///
/// [`WalStorage`] is the default: a segment log, one write and one flush for each durable write.
/// [`HeedStorage`](storage::HeedStorage) is the simplest: it stores everything in LMDB.
/// [`convert_storage`](storage::convert_storage) converts from one to the other, and
/// [`ReadOnlyStorage`](storage::ReadOnlyStorage) reads both, [`check_directory`](storage::check_directory)
/// checks all of a directory, and [`recover_directory`](storage::recover_directory) makes a new cluster of it
/// after the majority was lost. [`MemoryStorage`](storage::MemoryStorage) is for
/// tests. [`StableStorage`](storage::StableStorage) and its companion traits are the contract; the
/// conformance suite in `testing` (feature `testing`) checks an implementation of it.
pub mod storage {
    pub use raftify_core::storage::{
        HardState, LogReader, MemoryLogReader, MemorySnapshotReader, MemorySnapshotStore,
        MemorySnapshotWriter, MemoryStorage, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter,
        StableStorage, StorageError, StoredState, Write,
    };
    pub use raftify_core::{DurableState, Entry, EntryKind, PeerRecord, Remembered, RunId, Started};
    pub use raftify_storage::{
        Checked, Conversion, HeedStorage, Problem, ProblemKind, ReadOnlyStorage, RecoverError, Recovery,
        RestoreError, RestoreInto, Restored, StorageKind, Survivor, WalSettings, WalStorage, check_directory,
        choose_survivor, convert_storage, convert_storage_with, copy_newest_snapshot, recover_directory,
        recover_directory_with, restore_directories, restore_directories_with, verify_snapshot_file,
    };
}
