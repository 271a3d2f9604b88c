//! Ten times as many proposals as the cluster can do, whether or not it answers: throughput must hold, memory must stay
//! flat, and what is too much must be refused at once.

use raftify::BoxError;

use super::{cluster, disk};
use crate::Work;
use crate::cluster::{Cluster, Place};
use crate::line::Line;
use crate::measure::rounded;
use crate::node::{Load, NodeOptions, Operation, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Overload {
    /// Where the log is kept
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// How many clients find out what the cluster can do
    #[arg(long, default_value_t = 256)]
    clients: u64,
    /// Bytes of one entry. Large, so that this machine can offer ten times as many as it can replicate
    #[arg(long, default_value_t = 16 << 10)]
    entry_bytes: usize,
    /// How many times what it can do is asked of it
    #[arg(long, default_value_t = 10.0)]
    times: f64,
    /// How long each of the two runs takes
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
}

impl Overload {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(2)?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, NodeOptions::of(self.storage))?;
        let leader = cluster.wait_until_whole()?;
        let load = Load {
            operation: Operation::ProposeNew,
            clients: self.clients,
            seconds: self.seconds,
            entry_bytes: self.entry_bytes,
            per_second: None,
        };
        work.reporter.step("what the cluster can do")?;
        let (_, best) = cluster::measure(work, &mut cluster, leader, load)?;
        let (best, before) = (best.ops_per_second(), cluster.usage_of(leader)?);

        work.reporter.step(format!("{} times as much", self.times))?;
        let probe = disk::probe(&work.directory)?;
        let cpu = cluster.usage()?.cpu_seconds;
        let offered = best * self.times;
        let measured = cluster.load(leader, Load { per_second: Some(offered), ..load })?;
        let cpu = cluster.usage()?.cpu_seconds - cpu;
        let after = cluster.usage_of(leader)?;
        let line = Line {
            entry_bytes: Some(self.entry_bytes as u64),
            disk_fdatasync_p50_us: Some(probe),
            ..cluster.line("overload")
        };
        let attempts = (measured.count + measured.busy) as f64 / measured.seconds;
        let line = line
            .measured(&measured)
            .cpu(cpu, measured.count)
            .with("best_ops_per_second", best.round())
            .with("part_of_best", rounded(measured.ops_per_second() / best, 3))
            .with("offered_per_second", attempts.round())
            .with("busy", measured.busy)
            .with("resident_bytes_before", before.resident_bytes)
            .with("resident_bytes_peak_before", before.resident_bytes_peak)
            .with("resident_bytes_peak", after.resident_bytes_peak);
        work.reporter.result(line)?;
        cluster.stop()
    }
}
