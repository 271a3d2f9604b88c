//! The arguments of the commands that check, recover, back up and restore directories.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use raftify::storage::StorageKind;

use crate::tls_arguments::TlsArguments;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// WalStorage: the log in segments, one fsync for each write
    Wal,
    /// HeedStorage: everything in LMDB
    Heed,
}

impl From<Kind> for StorageKind {
    fn from(kind: Kind) -> StorageKind {
        match kind {
            Kind::Wal => StorageKind::Wal,
            Kind::Heed => StorageKind::Heed,
        }
    }
}

#[derive(Args)]
pub(crate) struct Check {
    /// The node's directory
    pub(crate) path: PathBuf,
    /// JSON output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Recover {
    /// The directories of the survivors, which are stopped: all that can be found
    #[arg(required = true)]
    pub(crate) directories: Vec<PathBuf>,
    /// Recover the best of them. Without this option the command only shows what it would do
    #[arg(long)]
    pub(crate) apply: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
}

#[derive(Subcommand)]
pub(crate) enum Backup {
    /// Copy the newest snapshot of a node, stopped or running, to a new file, and verify the copy
    Copy {
        /// The node's directory
        path: PathBuf,
        /// The new file
        file: PathBuf,
    },
    /// Read a backup completely, verify all its checksums, and show what it holds
    Verify {
        /// The file
        file: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Restore {
    /// The backup, or a file in `snapshots/` of a node
    pub(crate) file: PathBuf,
    /// The directories of the new nodes, missing or empty: that of node 1 first
    #[arg(required = true)]
    pub(crate) directories: Vec<PathBuf>,
    /// The addresses of the new nodes for each other, in the same order, with commas between them
    #[arg(long, required = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) members: Vec<String>,
    /// The storage of the directories
    #[arg(long, default_value = "wal")]
    pub(crate) to: Kind,
}
