//! A client of a cluster, without a node: [`RaftClient`], and the errors of its requests.

pub(crate) mod backup;
pub(crate) mod cluster_connection;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod member;
pub(crate) mod raft_client;

pub use crate::wire::RequestRejected;
pub use backup::{BackupOptions, BackupProgress};
pub use error::{ClientBackupError, ClientError, InvalidAddress, UnreachableNode};
pub use raft_client::RaftClient;
