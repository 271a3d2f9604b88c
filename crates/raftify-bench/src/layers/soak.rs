//! A long run at a part of the cluster's capacity: no election may happen, neither memory nor disk usage may
//! grow.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use raftify::BoxError;

use super::{cluster, disk};
use crate::Work;
use crate::cluster::{Cluster, NODES, Place};
use crate::line::Line;
use crate::measure::rounded;
use crate::node::{Load, NodeOptions, Operation, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Soak {
    /// The duration
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
    /// The part of the capacity that is offered as load
    #[arg(long, default_value_t = 0.8)]
    part: f64,
    /// The number of clients that determine the capacity of the cluster
    #[arg(long, default_value_t = 256)]
    clients: u64,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// The interval of reports and of comparisons with the first values, in seconds
    #[arg(long, default_value_t = 60.0)]
    every: f64,
}

/// The number of first slices, in which caches fill and the log reaches its first compactions.
const WARM_UP_SLICES: usize = 5;

/// A value that must not grow after the first slices.
struct Flat {
    what: String,
    /// The slack: a value up to the highest of the first values, plus a tenth, plus this, is flat.
    slack_bytes: u64,
    slices: usize,
    highest: u64,
}

impl Flat {
    fn new(what: impl Into<String>, slack_bytes: u64) -> Flat {
        Flat { what: what.into(), slack_bytes, slices: 0, highest: 0 }
    }

    /// The error of the next value, if there is one.
    fn complaint(&mut self, bytes: u64) -> Option<String> {
        self.slices += 1;
        if self.slices <= WARM_UP_SLICES {
            self.highest = self.highest.max(bytes);
            return None;
        }
        let limit = self.highest + self.highest / 10 + self.slack_bytes;
        let Flat { what, highest, .. } = self;
        (bytes > limit).then(|| format!("{what} grew from {highest} to {bytes} bytes"))
    }
}

impl Soak {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        let seconds = self.hours * 3600.0;
        let slices = (seconds / self.every).ceil().max(1.0);
        work.reporter.steps(1 + slices as usize)?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, NodeOptions::of(self.storage))?;
        let leader = cluster.wait_until_agreed()?;
        let load = Load {
            operation: Operation::Propose,
            clients: self.clients,
            seconds: 10.0,
            entry_bytes: self.entry_bytes,
            per_second: None,
        };
        work.reporter.step("the capacity of the cluster")?;
        let (_, best) = cluster::measure(work, &mut cluster, leader, load)?;
        let per_second = best.ops_per_second() * self.part;

        let of_node = |id| Flat::new(format!("the memory of node {id}"), 32 << 20);
        let mut resident: Vec<Flat> = (1..=NODES).map(of_node).collect();
        // A segment more or less for each node, and a snapshot that is being written.
        let mut disk_used = Flat::new("the data on disk", 256 << 20);
        let begin = Instant::now();
        let until = Duration::from_secs_f64(seconds);
        while begin.elapsed() < until {
            let left = (until - begin.elapsed()).as_secs_f64();
            work.reporter.step(format!("{:.0} min", begin.elapsed().as_secs_f64() / 60.0))?;
            let leader = cluster.wait_until_agreed()?;
            let term = cluster.status(leader)?.term;
            let probe = disk::probe(&work.directory)?;
            let cpu = cluster.usage()?.cpu_seconds;
            let slice = Load { seconds: self.every.min(left), per_second: Some(per_second), ..load };
            let measured = cluster.load(leader, slice)?;
            let cpu = cluster.usage()?.cpu_seconds - cpu;
            let leader = cluster.wait_until_agreed()?;
            let elections = cluster.status(leader)?.term - term;

            let mut complaints = Vec::new();
            if elections > 0 {
                complaints.push(format!("{elections} elections, although every node was up all the time"));
            }
            let mut resident_bytes = Vec::new();
            for (id, flat) in (1..=NODES).zip(&mut resident) {
                let bytes = cluster.usage_of(id)?.resident_bytes;
                complaints.extend(flat.complaint(bytes));
                resident_bytes.push(bytes);
            }
            let directory_bytes = bytes_below(directory.path())?;
            complaints.extend(disk_used.complaint(directory_bytes));
            let line = Line {
                entry_bytes: Some(self.entry_bytes as u64),
                disk_fdatasync_p50_us: Some(probe),
                ..cluster.line("soak")
            };
            let line = line
                .measured(&measured)
                .cpu(cpu, measured.count)
                .with("loop", "open")
                .with("minutes", rounded(begin.elapsed().as_secs_f64() / 60.0, 1))
                .with("elections", elections)
                .with("busy", measured.busy)
                .with("directory_bytes", directory_bytes)
                .with("resident_bytes", resident_bytes)
                .with("passed", complaints.is_empty())
                .with("complaints", complaints);
            work.reporter.result(line)?;
        }
        cluster.stop()
    }
}

/// The size of all files below `directory`. A file that is removed meanwhile counts zero.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_within_a_tenth_of_the_first_values_is_flat() {
        let mut flat = Flat::new("it", 10);
        for bytes in [100, 1000, 500, 20, 300, 1110, 1, 1110] {
            assert_eq!(flat.complaint(bytes), None);
        }
    }

    #[test]
    fn a_value_that_grows_is_reported_with_both_values() {
        let mut flat = Flat::new("it", 10);
        (0..WARM_UP_SLICES).for_each(|_| assert_eq!(flat.complaint(1000), None));
        assert_eq!(flat.complaint(1111).as_deref(), Some("it grew from 1000 to 1111 bytes"));
    }
}
