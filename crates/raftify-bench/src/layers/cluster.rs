//! Proposals on three nodes with gRPC over loopback: the whole system, as a program that embeds it uses it.

use std::path::PathBuf;

use raftify::BoxError;

use super::disk;
use crate::Work;
use crate::cluster::{Cluster, NODES, Place};
use crate::line::Line;
use crate::measure::Measured;
use crate::node::{Command, Load, NodeOptions, Operation, Storage};
use crate::switches::Switches;

/// Before each run, so that connections, caches and the adaptive parts of the system are in the measured
/// state.
const WARM_UP_SECONDS: f64 = 0.4;

/// Proposals on a new cluster before the measurements: until its log has been compacted and reuses files,
/// which is the usual state of a node.
const FILL: u64 = 250_000;
const FILLING: u64 = 1024;

/// A run counts as disturbed if the latency of the disk before and after it differs by this factor.
const DISTURBED: f64 = 2.0;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterRuns {
    /// How many clients propose at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1024])]
    clients: Vec<u64>,
    /// Bytes of one entry
    #[arg(long, value_delimiter = ',', default_values_t = [64])]
    entry_bytes: Vec<usize>,
    /// The storage of the log
    #[arg(long, value_delimiter = ',', default_values = ["memory", "wal"])]
    storage: Vec<Storage>,
    /// The number of processes of the nodes
    #[arg(long, value_delimiter = ',', default_values = ["one"])]
    processes: Vec<Place>,
    /// How long each run takes
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Repetitions of all runs, on new clusters
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Proposals on each new cluster before the measurements, so that its log has been compacted
    #[arg(long, default_value_t = FILL)]
    fill: u64,
    /// After each run, another one at this part of its rate, timed from when each proposal was due
    #[arg(long)]
    open_loop: Option<f64>,
    /// Runs this other build of `raftify-bench` and this one in turn, and shows the ratios of the medians
    #[arg(long, value_name = "PATH")]
    pub(crate) against: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) switches: Switches,
}

impl ClusterRuns {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        let loads: Vec<(usize, u64)> = (self.entry_bytes.iter())
            .flat_map(|bytes| self.clients.iter().map(move |clients| (*bytes, *clients)))
            .collect();
        let clusters = self.processes.len() * self.storage.len() * self.runs as usize;
        work.reporter.steps(clusters * loads.len())?;
        for run in 1..=self.runs {
            for place in &self.processes {
                for storage in &self.storage {
                    let directory = tempfile::tempdir_in(&work.directory)?;
                    let options = self.switches.applied(NodeOptions::of(*storage), directory.path())?;
                    let mut cluster = Cluster::start(directory.path(), *place, options)?;
                    let leader = cluster.wait_until_agreed()?;
                    let fill = Command::Fill { entries: self.fill, entry_bytes: 64, clients: FILLING };
                    cluster.measured(leader, &fill)?;
                    for (bytes, clients) in &loads {
                        let (name, processes) = (storage.name(), place.processes(NODES));
                        work.reporter
                            .step(format!("{name}, {clients} clients, {bytes} B, {processes} process(es)"))?;
                        self.measure(work, &mut cluster, run, *bytes, *clients)?;
                    }
                    cluster.stop()?;
                }
            }
        }
        Ok(())
    }

    fn measure(
        &self,
        work: &Work,
        cluster: &mut Cluster,
        run: u32,
        entry_bytes: usize,
        clients: u64,
    ) -> Result<(), BoxError> {
        let load = Load {
            operation: Operation::Propose,
            clients,
            seconds: self.seconds,
            entry_bytes,
            per_second: None,
        };
        let leader = cluster.wait_until_agreed()?;
        let (line, measured) = measure(work, cluster, leader, load)?;
        work.reporter.result(line.with("run", run).with("loop", "closed"))?;
        if let Some(part) = self.open_loop {
            let per_second = Some(measured.ops_per_second() * part);
            let (line, _) = measure(work, cluster, leader, Load { per_second, ..load })?;
            let line = line.with("run", run).with("loop", "open").with("part_of_capacity", part);
            work.reporter.result(line)?;
        }
        Ok(())
    }
}

/// Loads a node of `cluster`. Repeated once if the disk was disturbed meanwhile.
pub(crate) fn measure(
    work: &Work,
    cluster: &mut Cluster,
    node: u64,
    load: Load,
) -> Result<(Line, Measured), BoxError> {
    let (line, measured, quiet) = measure_once(work, cluster, node, load)?;
    let (line, measured, quiet) =
        if quiet { (line, measured, quiet) } else { measure_once(work, cluster, node, load)? };
    Ok((line.with("quiet", quiet), measured))
}

fn measure_once(
    work: &Work,
    cluster: &mut Cluster,
    node: u64,
    load: Load,
) -> Result<(Line, Measured, bool), BoxError> {
    let before = disk::probe(&work.directory)?;
    cluster.load(node, Load { seconds: WARM_UP_SECONDS.min(load.seconds), ..load })?;
    let cpu = cluster.usage()?.cpu_seconds;
    let measured = cluster.load(node, load)?;
    let cpu = cluster.usage()?.cpu_seconds - cpu;
    let after = disk::probe(&work.directory)?;
    let line = Line {
        clients: Some(load.clients),
        entry_bytes: Some(load.entry_bytes as u64),
        disk_fdatasync_p50_us: Some(before),
        ..cluster.line("cluster")
    };
    let line = line
        .measured(&measured)
        .cpu(cpu, measured.count)
        .with("max_us", measured.max_us)
        .with("busy", measured.busy)
        .with("disk_fdatasync_p50_us_after", after);
    let quiet = before.max(after) <= DISTURBED * before.min(after);
    Ok((line, measured, quiet))
}
