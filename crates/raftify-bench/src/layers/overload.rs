//! Ten times as many proposals as the capacity of the cluster, whether or not it answers: throughput must
//! hold, memory must stay flat, and excess proposals must be refused at once.

use raftify::BoxError;

use super::{cluster, disk};
use crate::Work;
use crate::cluster::{Cluster, Place};
use crate::compare::Against;
use crate::line::Line;
use crate::measure::rounded;
use crate::node::{Load, NodeOptions, Operation, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Overload {
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// The number of clients that determine the capacity of the cluster
    #[arg(long, default_value_t = 256)]
    clients: u64,
    /// Bytes of one entry. Large, so that this machine can offer ten times as many entries as it can
    /// replicate
    #[arg(long, default_value_t = 16 << 10)]
    entry_bytes: usize,
    /// The offered load as a multiple of the capacity
    #[arg(long, default_value_t = 10.0)]
    times: f64,
    /// The duration of each of the two runs
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[command(flatten)]
    pub(crate) against: Against,
}

impl Overload {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(2)?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, NodeOptions::of(self.storage))?;
        let leader = cluster.wait_until_agreed()?;
        let load = Load {
            operation: Operation::ProposeNew,
            clients: self.clients,
            seconds: self.seconds,
            entry_bytes: self.entry_bytes,
            per_second: None,
        };
        work.reporter.step("the capacity of the cluster")?;
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
