//! Recovery: opening a long log; a follower that catches up entry by entry; one that receives a large
//! snapshot while clients continue.

use std::time::{Duration, Instant};

use bytes::Bytes;
use raftify::storage::{HeedStorage, StableStorage, StorageError};
use raftify::{BoxError, Config, NodeId, WalStorage};
use raftify_core::{CoreStart, RaftNodeCore, RunId, StateKept};

use super::core::NoReply;
use super::disk;
use super::log::NewLog;
use crate::Work;
use crate::cluster::{Cluster, NODES, PATIENCE, Place};
use crate::line::Line;
use crate::machine::Usage;
use crate::measure::{Measured, rounded};
use crate::node::{Command, Load, NodeOptions, Operation, Storage};

/// Entries of one write while a log is filled.
const BATCH: u64 = 1024;

/// More than the log keeps before a snapshot, so that a new follower needs the snapshot.
const ENTRIES_BEFORE_SNAPSHOT: u64 = 12_000;

/// Pending proposals while a log is filled.
const FILLING: u64 = 1024;

/// The load runs in slices of this length; after each slice it is checked whether the snapshot has arrived.
const SLICE_SECONDS: f64 = 0.25;

/// A snapshot takes longer than other operations.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Restart {
    /// Entries of the log that is opened, and that a follower catches up with
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// Bytes of the snapshot
    #[arg(long, default_value_t = 500 << 20)]
    snapshot_bytes: u64,
    /// The number of clients that continue while the snapshot is taken, sent and installed
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// Only these parts
    #[arg(long, value_delimiter = ',', default_values = ["open", "entries", "snapshot"])]
    part: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Opening a long log
    Open,
    /// A follower catches up entry by entry
    Entries,
    /// A follower gets a snapshot
    Snapshot,
}

impl Restart {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(self.part.len() + usize::from(self.part.contains(&Part::Open)))?;
        for part in &self.part {
            match part {
                Part::Open => {
                    self.open(work, Storage::Wal, |path| WalStorage::open(path))?;
                    self.open(work, Storage::Heed, |path| HeedStorage::open(path))?;
                }
                Part::Entries => self.catch_up_by_entries(work)?,
                Part::Snapshot => self.catch_up_by_snapshot(work)?,
            }
        }
        Ok(())
    }

    fn open<S: StableStorage>(
        &self,
        work: &Work,
        kind: Storage,
        open: impl Fn(&std::path::Path) -> Result<S, StorageError>,
    ) -> Result<(), BoxError> {
        work.reporter.step(format!("{}: opening {} entries", kind.name(), self.entries))?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut storage = open(directory.path())?;
        let mut log = NewLog::begin(&mut storage, directory.path())?;
        let payload = Bytes::from(vec![7; self.entry_bytes]);
        for begin in (0..self.entries).step_by(BATCH as usize) {
            storage.write(&[log.next(BATCH.min(self.entries - begin), &payload)])?;
        }
        drop(storage);
        let probe = disk::probe(&work.directory)?;
        let (begin, cpu) = (Instant::now(), Usage::of(None)?.cpu_seconds);
        let mut storage = open(directory.path())?;
        let state = storage.load()?;
        let loaded = begin.elapsed();
        let last = state.last;
        let config = Config::default().check()?;
        let start = CoreStart {
            node_id: NodeId::FIRST,
            address: "node-1:1".to_owned(),
            config,
            seed: 1,
            run: RunId(1),
            stored: state,
            state_kept: StateKept::InMemory,
        };
        // It reads all entries, because there is no snapshot.
        let core = RaftNodeCore::<NoReply>::new(start, &storage.log_reader())?;
        let (took, cpu) = (begin.elapsed(), Usage::of(None)?.cpu_seconds - cpu);
        // A node that is the only voter begins an election at once, and its core may be an entry ahead.
        if last != log.last || core.status().last.index < log.last.index {
            return Err(format!("the log ends at {last} instead of {}", log.last).into());
        }
        let line = Line {
            storage: Some(kind.name().to_owned()),
            entry_bytes: Some(self.entry_bytes as u64),
            fsync: Some(true),
            ops_per_second: Some((self.entries as f64 / took.as_secs_f64()).round()),
            disk_fdatasync_p50_us: Some(probe),
            ..Line::of("restart")
        };
        let line = line.cpu(cpu, self.entries).with("part", "open").with("entries", self.entries);
        let line = line.with("seconds", rounded(took.as_secs_f64(), 3));
        work.reporter.result(line.with("seconds_storage", rounded(loaded.as_secs_f64(), 3)))
    }

    fn catch_up_by_entries(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.step(format!("a follower catches up with {} entries", self.entries))?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let options = NodeOptions { snapshot_entries: Some(0), ..NodeOptions::of(Storage::Wal) };
        let mut cluster = Cluster::start_some(directory.path(), Place::Three, options, NODES - 1)?;
        let leader = cluster.wait_until_agreed()?;
        let fill = Command::Fill { entries: self.entries, entry_bytes: self.entry_bytes, clients: FILLING };
        cluster.measured(leader, &fill)?;
        let last = cluster.status(leader)?.last;
        let probe = disk::probe(&work.directory)?;
        let (begin, cpu) = (Instant::now(), cluster.usage()?.cpu_seconds);
        cluster.start_node(NODES)?;
        cluster.took(NODES, &Command::WaitApplied { index: last })?;
        let (took, cpu) = (begin.elapsed().as_secs_f64(), cluster.usage()?.cpu_seconds - cpu);
        let line = Line {
            entry_bytes: Some(self.entry_bytes as u64),
            ops_per_second: Some((self.entries as f64 / took).round()),
            disk_fdatasync_p50_us: Some(probe),
            ..cluster.line("restart")
        };
        let line = line.cpu(cpu, self.entries).with("part", "entries").with("entries", self.entries);
        work.reporter.result(line.with("seconds", rounded(took, 3)))?;
        cluster.stop()
    }

    fn catch_up_by_snapshot(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.step(format!("a follower gets a snapshot of {} MB", self.snapshot_bytes >> 20))?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let options = NodeOptions {
            snapshot_bytes: self.snapshot_bytes,
            snapshot_entries: Some(0),
            ..NodeOptions::of(Storage::Wal)
        };
        let mut cluster = Cluster::start_some(directory.path(), Place::Three, options, NODES - 1)?;
        let leader = cluster.wait_until_agreed()?;
        let fill = Command::Fill {
            entries: ENTRIES_BEFORE_SNAPSHOT,
            entry_bytes: self.entry_bytes,
            clients: FILLING,
        };
        cluster.measured(leader, &fill)?;
        let probe = disk::probe(&work.directory)?;
        let load = Load {
            operation: Operation::Propose,
            clients: self.clients,
            seconds: SLICE_SECONDS,
            entry_bytes: self.entry_bytes,
            per_second: None,
        };
        let mut undisturbed = Slices::default();
        for _ in 0..8 {
            undisturbed.add(&cluster.load(leader, load)?);
        }

        let mut meanwhile = Slices::default();
        let (mut leader_peak, mut follower_peak) = (0, 0);
        let leader_before = cluster.usage_of(leader)?.resident_bytes;
        let begin = Instant::now();
        cluster.tell(leader, &Command::BeginSnapshot)?;
        while cluster.status(leader)?.snapshot == 0 {
            meanwhile.add(&cluster.load(leader, load)?);
            leader_peak = leader_peak.max(cluster.usage_of(leader)?.resident_bytes);
            if begin.elapsed() > PATIENCE {
                return Err("the snapshot was not taken".into());
            }
        }
        let taken = begin.elapsed().as_secs_f64();
        cluster.start_node(NODES)?;
        cluster.status(NODES)?;
        let follower_before = cluster.usage_of(NODES)?.resident_bytes;
        while cluster.status(NODES)?.snapshot == 0 {
            meanwhile.add(&cluster.load(leader, load)?);
            leader_peak = leader_peak.max(cluster.usage_of(leader)?.resident_bytes);
            follower_peak = follower_peak.max(cluster.usage_of(NODES)?.resident_bytes);
            if begin.elapsed() > SNAPSHOT_PATIENCE {
                return Err("the snapshot was not installed".into());
            }
        }
        let installed = begin.elapsed().as_secs_f64();
        let line = Line {
            clients: Some(self.clients),
            entry_bytes: Some(self.entry_bytes as u64),
            ops_per_second: Some(meanwhile.ops_per_second().round()),
            p99_us: Some(meanwhile.p99_us),
            disk_fdatasync_p50_us: Some(probe),
            ..cluster.line("restart")
        };
        let line = line
            .with("part", "snapshot")
            .with("snapshot_bytes", self.snapshot_bytes)
            .with("seconds_taken", rounded(taken, 3))
            .with("seconds_sent_and_installed", rounded(installed - taken, 3))
            .with("undisturbed_ops_per_second", undisturbed.ops_per_second().round())
            .with(
                "part_of_undisturbed",
                rounded(meanwhile.ops_per_second() / undisturbed.ops_per_second(), 3),
            )
            .with("undisturbed_p99_us", undisturbed.p99_us)
            .with("leader_resident_growth_bytes", leader_peak.saturating_sub(leader_before))
            .with("follower_resident_growth_bytes", follower_peak.saturating_sub(follower_before));
        work.reporter.result(line)?;
        cluster.stop()
    }
}

/// The sum of several short loads.
#[derive(Default)]
struct Slices {
    count: u64,
    seconds: f64,
    /// Of the worst slice.
    p99_us: f64,
}

impl Slices {
    fn add(&mut self, slice: &Measured) {
        self.count += slice.count;
        self.seconds += slice.seconds;
        self.p99_us = self.p99_us.max(slice.p99_us);
    }

    fn ops_per_second(&self) -> f64 {
        self.count as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}
