//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use raftify::NodeId;
use raftify::status::ClusterId;
use raftify::storage::StorageKind;
use raftify::tls::CertificateRole;

use crate::backup::{Backup, Restore};
use crate::check::Check;
use crate::recover::Recover;
use crate::tls_arguments::TlsArguments;

#[derive(Parser)]
#[command(
    version,
    about = "Shows the data directory of a raftify node and the status of a live node; changes the members of a live \
             cluster; checks, converts and recovers directories; makes certificates"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Describe a directory or a node without changing it
    #[command(subcommand)]
    Describe(Describe),
    /// Show or change the members of a live cluster
    #[command(subcommand)]
    Cluster(Cluster),
    /// Convert the directory of a stopped node to the other storage
    #[command(subcommand)]
    Storage(Storage),
    /// Check everything in the directory of a stopped node, without changing a byte. Exit code 0: sound; 1:
    /// there are problems; 2: it could not be checked
    Check(Check),
    /// Make a new cluster from the directory of a survivor, after the majority of a cluster was lost for good
    Recover(Recover),
    /// Copy the newest snapshot of a node, stopped or running, to a file, or verify such a file
    #[command(subcommand)]
    Backup(Backup),
    /// Make the directories of a new cluster from a backup
    Restore(Restore),
    /// Make the certificates of a cluster with mutual TLS
    #[command(subcommand)]
    Ca(Ca),
}

#[derive(Subcommand)]
pub(crate) enum Ca {
    /// Make a certificate authority for a cluster: ca.pem and ca-key.pem
    Init {
        /// Its directory
        #[arg(long, default_value = "certificates")]
        dir: PathBuf,
        /// How long it is valid
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Issue a certificate for a node or a client, and print the options that use it. An earlier one of the
    /// same name is replaced, and taken by running nodes and clients without a restart
    #[command(group(clap::ArgGroup::new("holder").required(true).args(["node", "client"])))]
    Issue {
        /// A host of the node's address: a name or an IP address, without a port (repeatable)
        #[arg(long, value_name = "HOST")]
        node: Vec<String>,
        /// With --node: valid for the node with this id alone
        #[arg(long, conflicts_with = "client")]
        id: Option<NodeId>,
        /// With --node: valid for a node of this cluster alone
        #[arg(long, conflicts_with = "client")]
        cluster: Option<ClusterId>,
        /// The name of a client
        #[arg(long, value_name = "NAME", requires = "role")]
        client: Option<String>,
        /// With --client: what it may do (repeatable). client: propose and read; admin: also change the
        /// members, transfer leadership, take snapshots
        #[arg(long, conflicts_with = "node", value_parser = client_role)]
        role: Vec<CertificateRole>,
        /// The directory of the CA, which also gets the new files
        #[arg(long, default_value = "certificates")]
        dir: PathBuf,
        /// How long it is valid
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
}

fn client_role(text: &str) -> Result<CertificateRole, String> {
    match text.parse() {
        Ok(CertificateRole::Node) => Err("issue a certificate of a node with --node HOST".to_owned()),
        role => role,
    }
}

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Show the members, and the index of the membership
    Members {
        #[command(flatten)]
        at: Addresses,
    },
    /// Remove a node from the cluster permanently; if it still runs, it stops
    Remove {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Make a learner a voter. It must be caught up, and reachable for a majority of the voters
    Promote {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Make a voter a learner, which stays a member
    Demote {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Replace a voter by a learner in one step, as soon as the learner is caught up: the learner becomes a
    /// voter, and the other node is removed permanently
    Replace {
        /// The voter to remove
        old: NodeId,
        /// The learner that replaces it
        new: NodeId,
        #[command(flatten)]
        at: Addresses,
    },
}

#[derive(Args)]
pub(crate) struct Addresses {
    /// Members of the cluster, host:port; any of them will do, they lead to the leader
    #[arg(required = true)]
    pub(crate) addresses: Vec<String>,
    /// JSON output
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
}

#[derive(Args)]
pub(crate) struct Conditions {
    /// Only if this is still the index of the membership, as `cluster members` shows it
    #[arg(long, value_name = "INDEX")]
    pub(crate) expect: Option<u64>,
    /// Even if the remaining live voters are no majority, or the node is not caught up or not reachable: the
    /// cluster may stop permanently
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Subcommand)]
pub(crate) enum Storage {
    /// Convert a node's directory to the other storage. The node must be stopped, and started again with a
    /// program that opens that storage. After an interruption the directory is still valid; run the
    /// command again
    Convert {
        /// The node's directory
        path: PathBuf,
        /// The new storage
        #[arg(long)]
        to: Kind,
    },
}

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

#[derive(Subcommand)]
pub(crate) enum Describe {
    /// The entries in the log of a node, stopped or running
    Logs {
        /// The node's directory
        path: PathBuf,
        /// The first index to show [default: that of the first entry]
        #[arg(long)]
        from: Option<u64>,
        /// The maximum number of entries [default: 100 in a table, else all]
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
    /// A live node: role, leader, members, and on the leader the progress of the others
    Node {
        /// Its address for other nodes: host:port
        address: String,
        #[command(flatten)]
        form: FormArguments,
        #[command(flatten)]
        tls: TlsArguments,
    },
}

#[derive(Args)]
pub(crate) struct FormArguments {
    /// JSON output; for a log, one line for each entry
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The stored data, undecoded: entries as hex, the bytes of a snapshot, other data in debug format
    #[arg(long)]
    raw: bool,
}

/// The output format.
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
