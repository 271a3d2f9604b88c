//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use raftify::BoxError;

use crate::Work;
use crate::layers::{
    client, cluster, core, disk, failover, http, join, log, memory, overload, path, read, restart, soak,
};
use crate::node::NodeArguments;
use crate::switches::Switches;

#[derive(Parser)]
#[command(
    version,
    about = "Measures raftify on this machine, layer by layer",
    long_about = "Measures raftify on this machine, layer by layer. Each result is one JSON line on standard output; \
                  a readable table and the progress go to standard error. Figures are meaningful only on an idle \
                  machine."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The directory of the nodes' data; the disk below it is measured
    #[arg(long, global = true, default_value = "target/bench", overrides_with = "directory")]
    pub(crate) directory: PathBuf,
    /// Measures in this process, instead of a child process
    #[arg(long, global = true, hide = true)]
    pub(crate) worker: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// All layers
    Bench {
        /// The most important figures only, in less than a minute
        #[arg(long)]
        quick: bool,
        /// Also writes the JSON lines to this file
        #[arg(long)]
        also_to: Option<PathBuf>,
    },
    #[command(flatten)]
    Layer(Layer),
    /// Checks the goals against the results on standard input
    Goals,
    /// Plots of the results on standard input, as SVG
    Plot {
        /// The directory of the plots
        #[arg(long, default_value = "target/bench/plots")]
        into: PathBuf,
    },
    /// The results on standard input as Markdown
    Report {
        /// The document to put them into, with the plots beside it, instead of standard output
        document: Option<PathBuf>,
    },
    /// One node, controlled through its standard input
    #[command(hide = true)]
    Node(NodeArguments),
}

/// One layer.
#[derive(Subcommand)]
pub(crate) enum Layer {
    /// The limit: fsync of 4 KiB
    Disk(disk::Disk),
    /// Durable batches of entries, for each storage
    Log(log::Log),
    /// Three cores in one thread, without disk and network
    Core(core::Core),
    /// Proposals on three nodes
    Cluster(cluster::ClusterRuns),
    /// A remote client over gRPC, on three processes
    Client(client::Client),
    /// The key-value store of the examples, over its web API
    Http(http::Http),
    /// Linearizable reads on three nodes
    Read(read::Read),
    /// From SIGKILL of the leader to the next accepted proposal
    Failover(failover::Failover),
    /// Opening a long log; a follower that catches up, by entries and by a snapshot
    Restart(restart::Restart),
    /// Resident memory after many proposals
    Memory(memory::Memory),
    /// Ten times as many proposals as the capacity of the cluster
    Overload(overload::Overload),
    /// The steps of one proposal and their times
    Path(path::Path),
    /// A node joins while clients write, and the state is large; not part of `bench`
    Join(join::Join),
    /// A long run at a part of the cluster's capacity; not part of `bench`
    Soak(soak::Soak),
}

impl Layer {
    /// The other build and the rounds, if two builds are compared.
    pub(crate) fn against(&self) -> Option<(&Path, u32)> {
        let (against, rounds) = match self {
            Layer::Cluster(layer) => (layer.against.as_deref(), layer.switches.rounds),
            Layer::Read(layer) => (layer.against.against.as_deref(), layer.against.rounds),
            Layer::Overload(layer) => (layer.against.against.as_deref(), layer.against.rounds),
            _ => return None,
        };
        against.map(|other| (other, rounds))
    }

    /// What can be switched on and off, if the layer has that.
    pub(crate) fn switches(&self) -> Option<&Switches> {
        match self {
            Layer::Cluster(layer) => Some(&layer.switches),
            Layer::Client(layer) => Some(&layer.switches),
            _ => None,
        }
    }

    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        match self {
            Layer::Disk(layer) => layer.run(work),
            Layer::Log(layer) => layer.run(work),
            Layer::Core(layer) => layer.run(work),
            Layer::Cluster(layer) => layer.run(work),
            Layer::Client(layer) => layer.run(work),
            Layer::Http(layer) => layer.run(work),
            Layer::Read(layer) => layer.run(work),
            Layer::Failover(layer) => layer.run(work),
            Layer::Restart(layer) => layer.run(work),
            Layer::Memory(layer) => layer.run(work),
            Layer::Overload(layer) => layer.run(work),
            Layer::Path(layer) => layer.run(work),
            Layer::Join(layer) => layer.run(work),
            Layer::Soak(layer) => layer.run(work),
        }
    }
}
