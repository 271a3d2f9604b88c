//! The memory of a node after many proposals, with default snapshots and compaction.

use raftify::BoxError;

use super::disk;
use crate::Work;
use crate::cluster::{Cluster, NODES, Place};
use crate::line::Line;
use crate::node::{Command, NodeOptions, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Memory {
    /// The number of proposals
    #[arg(long, default_value_t = 5_000_000)]
    proposals: u64,
    /// The number of proposals between two measurements of memory
    #[arg(long, default_value_t = 500_000)]
    every: u64,
    /// How many clients propose at once
    #[arg(long, default_value_t = 1024)]
    clients: u64,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
}

impl Memory {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        let parts = self.proposals.div_ceil(self.every.max(1));
        work.reporter.steps(usize::try_from(parts)?)?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, NodeOptions::of(self.storage))?;
        let mut proposals = 0;
        while proposals < self.proposals {
            let entries = self.every.max(1).min(self.proposals - proposals);
            work.reporter.step(format!("{} of {} proposals", proposals + entries, self.proposals))?;
            let leader = cluster.wait_until_agreed()?;
            let probe = disk::probe(&work.directory)?;
            let fill = Command::Fill { entries, entry_bytes: self.entry_bytes, clients: self.clients };
            let cpu = cluster.usage()?.cpu_seconds;
            let measured = cluster.measured(leader, &fill)?;
            let cpu = cluster.usage()?.cpu_seconds - cpu;
            proposals += entries;
            let mut resident = Vec::new();
            for id in 1..=NODES {
                resident.push(cluster.usage_of(id)?.resident_bytes);
            }
            let line = Line {
                clients: Some(self.clients),
                entry_bytes: Some(self.entry_bytes as u64),
                ops_per_second: Some(measured.ops_per_second().round()),
                disk_fdatasync_p50_us: Some(probe),
                ..cluster.line("memory")
            };
            let line = line.cpu(cpu, entries).with("proposals", proposals);
            let most = resident.iter().max().copied();
            work.reporter.result(line.with("resident_bytes_max", most).with("resident_bytes", resident))?;
        }
        cluster.stop()
    }
}
