//! Linearizable reads: the round of heartbeats that confirms the leader, shared by all pending reads.

use raftify::BoxError;

use super::cluster;
use crate::Work;
use crate::cluster::{Cluster, NODES, Place};
use crate::compare::Against;
use crate::line::Line;
use crate::node::{Load, NodeOptions, Operation, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Read {
    /// How many clients read at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1024])]
    clients: Vec<u64>,
    /// The operation
    #[arg(long, value_delimiter = ',', default_values = ["read-index", "query"])]
    operation: Vec<Operation>,
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// How long each run takes
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(flatten)]
    pub(crate) against: Against,
}

impl Read {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(2 * self.operation.len() * self.clients.len())?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::One, NodeOptions::of(self.storage))?;
        for operation in &self.operation {
            for asked in ["leader", "follower"] {
                for clients in &self.clients {
                    work.reporter.step(format!("{}, {clients} clients on a {asked}", operation.name()))?;
                    let leader = cluster.wait_until_agreed()?;
                    let node = if asked == "leader" { leader } else { leader % NODES + 1 };
                    let load = Load {
                        operation: *operation,
                        clients: *clients,
                        seconds: self.seconds,
                        entry_bytes: 0,
                        per_second: None,
                    };
                    let (line, _) = cluster::measure(work, &mut cluster, node, load)?;
                    let line = Line { bench: "read".to_owned(), entry_bytes: None, ..line };
                    work.reporter.result(line.with("operation", operation.name()).with("asked", asked))?;
                }
            }
        }
        cluster.stop()
    }
}
