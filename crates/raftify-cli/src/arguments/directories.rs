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

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Backup {
    #[command(subcommand)]
    pub(crate) command: Option<BackupCommand>,
    #[command(flatten)]
    pub(crate) save: Save,
}

/// A backup of a running member.
#[derive(Args)]
pub(crate) struct Save {
    /// The address of a member, host:port
    #[arg(required = true, value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// The new file
    #[arg(required = true)]
    pub(crate) file: Option<PathBuf>,
    /// Copy the newest snapshot of the member. By default, it takes one first
    #[arg(long)]
    pub(crate) newest: bool,
    /// Continue FILE.partial, which an interrupted command has left, at its position
    #[arg(long)]
    pub(crate) resume: bool,
    /// How many bytes are sent in a second at most [default: the setting
    /// `snapshot_bytes_per_second_max` of the member, 16 MiB unless it was changed]
    #[arg(long, value_name = "BYTES_PER_SECOND", value_parser = clap::value_parser!(u64).range(65_536..))]
    pub(crate) rate: Option<u64>,
    /// JSON output
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
}

#[derive(Subcommand)]
pub(crate) enum BackupCommand {
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
