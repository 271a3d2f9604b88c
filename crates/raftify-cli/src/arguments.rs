//! The command line.

mod cluster;
mod directories;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use raftify::NodeId;
use raftify::status::ClusterId;
use raftify::tls::CertificateRole;

pub(crate) use self::cluster::{Addresses, Cluster, Conditions, Confirmation};
pub(crate) use self::directories::{Backup, BackupCommand, Check, Kind, Recover, Restore, Save};
use crate::tls_arguments::TlsArguments;

#[derive(Parser)]
#[command(
    version,
    about = "Shows the data directory of a raftify node, a live node and a live cluster; changes the members of a live \
             cluster; checks, converts and recovers directories; makes certificates",
    after_help = "Exit codes: 0 done, 1 failed and nothing was changed, 2 invalid command line, 3 the outcome is unknown, \
                  4 not confirmed; of `cluster status` also 5 a member is down, 6 no writes are accepted"
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
    /// Show a live cluster, change its members, and follow its events
    #[command(subcommand)]
    Cluster(Cluster),
    /// Print a script that completes this command line in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of this command line
    Man {
        /// Write a page for each command into this directory instead
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Convert the directory of a stopped node to the other storage
    #[command(subcommand)]
    Storage(Storage),
    /// Check everything in the directory of a stopped node, without changing a byte. Exit code 0: sound; 1:
    /// there are problems; 2: it could not be checked
    Check(Check),
    /// Make a new cluster from the directory of a survivor, after the majority of a cluster was lost for good
    Recover(Recover),
    /// Make a backup of a running member over the network, or copy or verify one on this machine
    ///
    /// With an address and a file: the member takes a snapshot, and sends it. The file is written as FILE.partial,
    /// synced, verified and renamed; an existing file is not replaced. A broken connection is made again, and the
    /// backup continues where it was interrupted.
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
        /// members, transfer leadership, take snapshots and backups
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
