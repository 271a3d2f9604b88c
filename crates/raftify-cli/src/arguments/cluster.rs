//! The commands for a live cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use raftify::NodeId;

use crate::tls_arguments::TlsArguments;

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Show whether the cluster works, and the state of each member
    ///
    /// Exit code: 0 if writes are accepted and all members are up, 5 if writes are accepted and a member is
    /// down, 6 if no writes are accepted.
    Status {
        #[command(flatten)]
        at: Addresses,
    },
    /// Show the members, and the index of the membership
    Members {
        #[command(flatten)]
        at: Addresses,
    },
    /// Admit a node before it is started: reserve an id for it, add it to the members, and print its ticket
    ///
    /// A node that is started with a member as its peer joins by itself and needs no ticket.
    Add {
        /// The address at which the other nodes will reach the node: host:port
        #[arg(value_name = "NEW_ADDRESS")]
        address: String,
        #[command(flatten)]
        at: Addresses,
        /// As a learner, which never votes until it is promoted
        #[arg(long)]
        learner: bool,
        /// Write the ticket to this file, as JSON
        #[arg(long, value_name = "FILE")]
        ticket: Option<PathBuf>,
        /// Wait until the node takes part: until it votes, or, as a learner, until it is caught up
        #[arg(long)]
        wait: bool,
    },
    /// Remove a node from the cluster permanently; if it still runs, it stops
    Remove {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Make a learner a voter. Waits while it is not caught up, or not reached by a majority of the voters
    Promote {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        confirmation: Confirmation,
        /// Fail at once if the node is not caught up or not reached
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a voter a learner, which stays a member
    Demote {
        /// The node
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        confirmation: Confirmation,
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
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Transfer leadership to another voter
    Transfer {
        #[command(flatten)]
        at: Addresses,
        /// The new leader [default: the most caught-up voter that is up]
        #[arg(long, value_name = "ID")]
        to: Option<NodeId>,
    },
    /// Take a snapshot of the state machine of one member
    Snapshot {
        /// The member
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        /// How many seconds to wait for it
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        timeout: u64,
    },
    /// Make a running member leave: it removes itself permanently, and its process ends in order
    Leave {
        /// The member
        id: NodeId,
        #[command(flatten)]
        at: Addresses,
        /// Even if the remaining live voters are no majority: the cluster may stop permanently
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Follow the events of all members, until interrupted
    Events {
        #[command(flatten)]
        at: Addresses,
        /// Of this member alone (repeatable)
        #[arg(long, value_name = "ID")]
        node: Vec<NodeId>,
        /// End after this many events
        #[arg(long)]
        count: Option<u64>,
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

#[derive(Args)]
pub(crate) struct Confirmation {
    /// Do it without asking
    #[arg(long)]
    pub(crate) yes: bool,
}
