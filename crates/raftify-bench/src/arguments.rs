//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use raftify::BoxError;

use crate::Work;
use crate::layers::{cluster, core, disk, log};
use crate::node::NodeArguments;

#[derive(Parser)]
#[command(
    version,
    about = "Measures raftify on this machine, layer by layer",
    long_about = "Measures raftify on this machine, layer by layer. Each result is one JSON line on standard output; \
                  a table for people and the progress go to standard error. Figures are worth something only on a \
                  machine that does nothing else."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Where the nodes keep their data meanwhile; it is the disk below it that is measured
    #[arg(long, global = true, default_value = "target/bench")]
    pub(crate) directory: PathBuf,
    /// Measures itself, instead of starting a process that does
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
    },
    #[command(flatten)]
    Layer(Layer),
    /// One node that does what its standard input says
    #[command(hide = true)]
    Node(NodeArguments),
}

/// One layer.
#[derive(Subcommand)]
pub(crate) enum Layer {
    /// The limit: syncing 4 KiB
    Disk(disk::Disk),
    /// Durable batches of entries, for each storage
    Log(log::Log),
    /// Three cores in one thread, without disk and network
    Core(core::Core),
    /// Proposals on three nodes
    Cluster(cluster::ClusterRuns),
}

impl Layer {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        match self {
            Layer::Disk(layer) => layer.run(work),
            Layer::Log(layer) => layer.run(work),
            Layer::Core(layer) => layer.run(work),
            Layer::Cluster(layer) => layer.run(work),
        }
    }
}
