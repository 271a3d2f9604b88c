//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use raftify::NodeId;
use raftify::storage::StorageKind;

#[derive(Parser)]
#[command(
    version,
    about = "Shows what is in the directory of a raftify node, and how a live one is doing; changes the members of a live \
             cluster; converts directories"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Describe a directory or a node; nothing is changed
    #[command(subcommand)]
    Describe(Describe),
    /// Show or change the members of a live cluster
    #[command(subcommand)]
    Cluster(Cluster),
    /// Change how the directory of a stopped node is kept
    #[command(subcommand)]
    Storage(Storage),
}

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// The members, and the index that the list is as of
    Members {
        #[command(flatten)]
        at: Addresses,
    },
    /// Take a node out of the cluster for good: one that is gone, or one that still runs, which then stops
    Remove {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Make a learner a voter. It must be caught up, and reached by a majority of the voters
    Promote {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Take the vote from a voter, which stays a member as a learner
    Demote {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Put a learner in the place of a voter, in one step, as soon as the learner is caught up: it becomes a voter, and the
    /// other node is removed for good
    Replace {
        /// The voter that goes
        old: NodeId,
        /// The learner that takes its place
        new: NodeId,
        #[command(flatten)]
        at: Addresses,
    },
}

#[derive(Args)]
pub(crate) struct Addresses {
    /// Members of the cluster, host:port; any of them will do, the leader is found from there
    #[arg(required = true)]
    pub(crate) addresses: Vec<String>,
    /// For programs: JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Conditions {
    /// Only if the members are still as of this index, as `cluster members` shows it
    #[arg(long, value_name = "INDEX")]
    pub(crate) expect: Option<u64>,
    /// Also if the remaining voters that are alive are no majority, or the node is not caught up or not reached: the cluster
    /// may stop for good
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Subcommand)]
pub(crate) enum Storage {
    /// Make a node's directory one of the other storage. The node must be stopped, and started again with a program
    /// that opens that storage. Whatever interrupts it, the directory stays valid; just run it again
    Convert {
        /// The node's directory
        path: PathBuf,
        /// The storage that is to keep it
        #[arg(long)]
        to: Kind,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// WalStorage: the log in segments, one flush for each write
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

#[derive(Subcommand)]
pub(crate) enum Describe {
    /// The entries in the log of a node, stopped or running
    Logs {
        /// The node's directory
        path: PathBuf,
        /// The first index to show [default: that of the first entry]
        #[arg(long)]
        from: Option<u64>,
        /// How many entries to show at most [default: 100 in a table, else all]
        #[arg(long)]
        limit: Option<u64>,
        #[command(flatten)]
        form: FormArguments,
    },
    /// Identity, term, vote, members and the extent of the log of a node, stopped or running
    Metadata {
        /// The node's directory
        path: PathBuf,
        #[command(flatten)]
        form: FormArguments,
    },
    /// The newest snapshot of a node, stopped or running
    Snapshot {
        /// The node's directory
        path: PathBuf,
        #[command(flatten)]
        form: FormArguments,
    },
    /// A live node: role, leader, members, and on the leader how far the others are
    Node {
        /// Where it listens for the other nodes: host:port
        address: String,
        #[command(flatten)]
        form: FormArguments,
    },
}

#[derive(Args)]
pub(crate) struct FormArguments {
    /// For programs: JSON, for a log one line for each entry
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// What is stored, undecoded: entries as hex, the bytes of a snapshot, other things as the program holds them
    #[arg(long)]
    raw: bool,
}

/// How something is shown.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Table,
    Json,
    Raw,
}

impl FormArguments {
    pub(crate) fn form(&self) -> Form {
        match (self.json, self.raw) {
            (true, _) => Form::Json,
            (_, true) => Form::Raw,
            _ => Form::Table,
        }
    }
}
