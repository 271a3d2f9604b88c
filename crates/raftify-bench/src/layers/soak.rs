//! A long time at a part of what the cluster can do: nobody must be elected, nothing must grow.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use raftify::BoxError;

use super::{cluster, disk};
use crate::Work;
use crate::cluster::{Cluster, NODES, Place};
use crate::line::Line;
use crate::node::{Load, NodeOptions, Operation, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Soak {
    /// How long
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Which part of what the cluster can do is asked of it
    #[arg(long, default_value_t = 0.8)]
    part: f64,
    /// How many clients find out what it can do
    #[arg(long, default_value_t = 256)]
    clients: u64,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// Where the log is kept
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// How often figures are told, in seconds
    #[arg(long, default_value_t = 60.0)]
    every: f64,
}

impl Soak {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        let slices = (self.minutes * 60.0 / self.every).ceil().max(1.0);
        work.reporter.steps(1 + slices as usize)?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, NodeOptions::of(self.storage))?;
        let leader = cluster.wait_until_whole()?;
        let load = Load {
            operation: Operation::Propose,
            clients: self.clients,
            seconds: 10.0,
            entry_bytes: self.entry_bytes,
            per_second: None,
        };
        work.reporter.step("what the cluster can do")?;
        let (_, best) = cluster::measure(work, &mut cluster, leader, load)?;
        let per_second = best.ops_per_second() * self.part;

        let mut elections = 0;
        let begin = Instant::now();
        let until = Duration::from_secs_f64(self.minutes * 60.0);
        while begin.elapsed() < until {
            let left = (until - begin.elapsed()).as_secs_f64();
            work.reporter
                .step(format!("{:.0} min, {elections} elections", begin.elapsed().as_secs_f64() / 60.0))?;
            let leader = cluster.wait_until_whole()?;
            let term = cluster.status(leader)?.term;
            let probe = disk::probe(&work.directory)?;
            let cpu = cluster.usage()?.cpu_seconds;
            let slice = Load { seconds: self.every.min(left), per_second: Some(per_second), ..load };
            let measured = cluster.load(leader, slice)?;
            let cpu = cluster.usage()?.cpu_seconds - cpu;
            let leader = cluster.wait_until_whole()?;
            elections += cluster.status(leader)?.term - term;
            let mut resident = Vec::new();
            for id in 1..=NODES {
                resident.push(cluster.usage_of(id)?.resident_bytes);
            }
            let line = Line {
                entry_bytes: Some(self.entry_bytes as u64),
                disk_fdatasync_p50_us: Some(probe),
                ..cluster.line("soak")
            };
            let line = line
                .measured(&measured)
                .cpu(cpu, measured.count)
                .with("loop", "open")
                .with("minutes", (begin.elapsed().as_secs_f64() / 6.0).round() / 10.0)
                .with("elections", elections)
                .with("busy", measured.busy)
                .with("directory_bytes", bytes_below(directory.path())?)
                .with("resident_bytes", resident);
            work.reporter.result(line)?;
        }
        cluster.stop()?;
        match elections {
            0 => Ok(()),
            elections => {
                Err(format!("{elections} elections, although every node was up all the time").into())
            }
        }
    }
}

/// Of all files below `directory`. One that is removed meanwhile counts nothing.
fn bytes_below(directory: &Path) -> Result<u64, BoxError> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        sum += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path())?,
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    Ok(sum)
}
