//! The cost of a join: a node joins a cluster with a large state while clients write at half of the cluster's
//! capacity.

use std::time::{Duration, Instant};

use raftify::{BoxError, Config};

use super::disk;
use crate::Work;
use crate::cluster::{Cluster, PATIENCE, PAUSE, Place};
use crate::line::Line;
use crate::measure::{Measured, rounded};
use crate::node::{Command, Load, NodeOptions, Operation, Storage};

/// More than the log keeps before a snapshot, so that the joiner needs the snapshot.
const ENTRIES_BEFORE_SNAPSHOT: u64 = 12_000;

/// Pending proposals while the log is filled.
const FILLING: u64 = 1024;

/// The part of the maximum rate that the clients write.
const PART: f64 = 0.5;

/// Commits are counted for each second.
const SLICE_SECONDS: f64 = 1.0;

/// The lowest accepted part of the commits while a node joins.
const PART_LEFT_MIN: f64 = 0.8;

/// The longest accepted time until the joiner is a voter, as a multiple of the time that copying the snapshot
/// takes.
const TIMES_MAX: f64 = 1.3;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Join {
    /// The size of the state, in MiB
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    megabytes: u64,
    /// The number of clients that determine the capacity of the cluster
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// The number of members before the join
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3], value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: Vec<u64>,
    /// Seconds of measurement before the node joins
    #[arg(long, default_value_t = 8)]
    seconds_before: u64,
    /// Takes a snapshot after this many entries; zero: only before the node joins
    #[arg(long, default_value_t = 0)]
    snapshot_entries: u64,
}

impl Join {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(self.nodes.len() * 3)?;
        for nodes in &self.nodes {
            self.join(work, *nodes)?;
        }
        Ok(())
    }

    fn join(&self, work: &Work, nodes: u64) -> Result<(), BoxError> {
        work.reporter.step(format!("{nodes} nodes take a snapshot of {} MB", self.megabytes))?;
        let state_bytes = self.megabytes << 20;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let options = NodeOptions {
            snapshot_bytes: state_bytes,
            snapshot_entries: Some(self.snapshot_entries),
            ..NodeOptions::of(Storage::Wal)
        };
        let mut cluster = Cluster::start_sized(directory.path(), Place::Three, options, nodes, nodes)?;
        let leader = cluster.wait_until_agreed()?;
        let fill = Command::Fill {
            entries: ENTRIES_BEFORE_SNAPSHOT,
            entry_bytes: self.entry_bytes,
            clients: FILLING,
        };
        cluster.measured(leader, &fill)?;
        // The time of copying the state at the configured rate: this is the rate of writing and of sending
        // it.
        let copying =
            state_bytes as f64 / Config::default().snapshot_bytes_per_second_max.unwrap_or(u64::MAX) as f64;
        let patience = PATIENCE + Duration::from_secs_f64(5.0 * copying);
        take_snapshots(&mut cluster, nodes, patience)?;

        work.reporter.step("the capacity, and half of it without a join")?;
        let probe = disk::probe(&work.directory)?;
        let most = Load {
            operation: Operation::ProposeOrCount,
            clients: self.clients,
            seconds: 5.0,
            entry_bytes: self.entry_bytes,
            per_second: None,
        };
        let most_per_second = cluster.load(leader, most)?.ops_per_second();
        let half = Load { seconds: SLICE_SECONDS, per_second: Some(PART * most_per_second), ..most };
        let mut before = Seconds::default();
        for _ in 0..self.seconds_before.max(1) {
            before.add(&cluster.load(leader, half)?);
        }

        work.reporter.step(format!("a node joins {nodes}"))?;
        let begin = Instant::now();
        let joiner = cluster.join_node(leader)?;
        let mut during = Seconds::default();
        let voter_after = loop {
            during.add(&cluster.load(leader, half)?);
            if let Some(voter_after) = cluster.status(joiner)?.voter_after {
                break voter_after;
            }
            if begin.elapsed() > patience {
                return Err("the node that joins is not a voter".into());
            }
        };
        let part_of_before = during.median() / before.median();
        let times_copying = voter_after / copying;
        let failed = before.failed + during.failed;
        let refused = before.refused + during.refused;
        let passed = part_of_before >= PART_LEFT_MIN && times_copying <= TIMES_MAX && failed + refused == 0;
        let line = Line {
            nodes: Some(nodes),
            clients: Some(self.clients),
            entry_bytes: Some(self.entry_bytes as u64),
            ops_per_second: Some(during.median().round()),
            p99_us: Some(during.p99_us),
            disk_fdatasync_p50_us: Some(probe),
            ..cluster.line("join")
        };
        let line = line
            .with("state_bytes", state_bytes)
            .with("most_ops_per_second", most_per_second.round())
            .with("before_ops_per_second", before.median().round())
            .with("before_p99_us", before.p99_us)
            .with("part_of_before", rounded(part_of_before, 3))
            .with("refused", refused)
            .with("failed", failed)
            .with("seconds_until_voter", rounded(voter_after, 2))
            .with("times_copying", rounded(times_copying, 3))
            .with("passed", passed);
        work.reporter.result(line)?;
        cluster.stop()
    }
}

/// Has all members take a snapshot, and waits until they have it.
fn take_snapshots(cluster: &mut Cluster, nodes: u64, patience: Duration) -> Result<(), BoxError> {
    let begin = Instant::now();
    for id in 1..=nodes {
        cluster.tell(id, &Command::BeginSnapshot)?;
    }
    for id in 1..=nodes {
        while cluster.status(id)?.snapshot == 0 {
            if begin.elapsed() > patience {
                return Err(format!("node {id} has not taken its snapshot").into());
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// The commits of each second.
#[derive(Default)]
struct Seconds {
    per_second: Vec<f64>,
    refused: u64,
    failed: u64,
    /// The latencies of the worst second.
    p99_us: f64,
}

impl Seconds {
    fn add(&mut self, slice: &Measured) {
        self.per_second.push(slice.ops_per_second());
        self.refused += slice.busy;
        self.failed += slice.failed;
        self.p99_us = self.p99_us.max(slice.p99_us);
    }

    fn median(&self) -> f64 {
        let mut per_second = self.per_second.clone();
        per_second.sort_by(f64::total_cmp);
        per_second.get(per_second.len() / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_show_the_median_the_refusals_and_the_worst_second() {
        let mut seconds = Seconds::default();
        for (count, busy, p99_us) in [(10, 0, 5.0), (30, 2, 9.0), (20, 1, 7.0)] {
            seconds.add(&Measured { count, busy, p99_us, seconds: 1.0, failed: 1, ..Measured::default() });
        }
        let Seconds { refused, failed, p99_us, .. } = seconds;
        assert_eq!((seconds.median(), refused, failed, p99_us), (20.0, 3, 3, 9.0));
    }
}
