//! Three nodes in one process, each on a runtime of its own, talking gRPC over loopback.

use std::fs;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use raftify::{BoxError, NodeId};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Builder;

use crate::node::{self, Running, Storage};
use crate::{disk, print};

const NODES: usize = 3;

struct Cluster {
    nodes: Vec<Running>,
    directory: TempDir,
}

impl Cluster {
    fn start(storage: Storage) -> Result<Cluster, BoxError> {
        let directory = tempfile::tempdir_in(std::env::current_dir()?)?;
        let addresses = node::free_addresses(NODES)?;
        let nodes = (1..=NODES as u64)
            .map(|id| node::start(id, &directory.path().join(id.to_string()), &addresses, storage))
            .collect::<Result<_, BoxError>>()?;
        Ok(Cluster { nodes, directory })
    }

    fn leader(&self) -> Result<&Running, BoxError> {
        let first = self.nodes.first().ok_or("there are no nodes")?;
        let leader: NodeId = first.runtime.block_on(first.raft.wait_for_leader())?;
        self.nodes
            .iter()
            .find(|node| node.raft.get_id() == leader)
            .ok_or_else(|| "the leader is unknown".into())
    }

    fn stop(self) -> Result<(), BoxError> {
        for node in &self.nodes {
            node.runtime.block_on(node.raft.quit());
        }
        for node in self.nodes {
            node.runtime.block_on(node.end)??;
        }
        Ok(())
    }
}

/// What `clients` clients get done, each with one proposal under way, in `seconds`.
pub(crate) fn run(clients: u64, seconds: u64, entry_bytes: usize, storage: Storage) -> Result<(), BoxError> {
    eprintln!("cluster: {clients} clients, {entry_bytes} B, {} for {seconds} s", storage.name());
    let cluster = Cluster::start(storage)?;
    let disk_p50 = disk::fdatasync_p50_us(cluster.directory.path())?;
    let raft = cluster.leader()?.raft.clone();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (histogram, elapsed, cpu) = runtime.block_on(async {
        let warm_until = Instant::now() + Duration::from_secs(1);
        let until = warm_until + Duration::from_secs(seconds);
        let work = |until: Instant| {
            let clients = (0..clients).map(|_| {
                let raft = raft.clone();
                tokio::spawn(async move {
                    let mut histogram = Histogram::<u64>::new(3)?;
                    while Instant::now() < until {
                        let begin = Instant::now();
                        raft.propose(vec![7; entry_bytes]).await?;
                        histogram.record(u64::try_from(begin.elapsed().as_micros())?)?;
                    }
                    Ok::<_, BoxError>(histogram)
                })
            });
            clients.collect::<Vec<_>>()
        };
        for client in work(warm_until) {
            client.await??;
        }
        let (begin, cpu_before) = (Instant::now(), cpu_seconds()?);
        let mut histogram = Histogram::<u64>::new(3)?;
        for client in work(until) {
            histogram.add(client.await??)?;
        }
        Ok::<_, BoxError>((histogram, begin.elapsed(), cpu_seconds()? - cpu_before))
    })?;
    let count = histogram.len();
    print(&json!({
        "bench": "cluster",
        "storage": storage.name(),
        "fsync": storage != Storage::Memory,
        "nodes": NODES,
        "clients": clients,
        "entry_bytes": entry_bytes,
        "ops_per_second": (count as f64 / elapsed.as_secs_f64()).round(),
        "p50_us": histogram.value_at_quantile(0.5),
        "p99_us": histogram.value_at_quantile(0.99),
        "p999_us": histogram.value_at_quantile(0.999),
        "cpu_seconds_per_million": (cpu / count as f64 * 1e8).round() / 100.0,
        "disk_fdatasync_p50_us": disk_p50,
    }))?;
    cluster.stop()
}

/// Resident memory of all three nodes, before and after `proposals` proposals.
pub(crate) fn memory(proposals: u64) -> Result<(), BoxError> {
    const CLIENTS: u64 = 256;
    eprintln!("memory: {proposals} proposals");
    let cluster = Cluster::start(Storage::Heed)?;
    let raft = cluster.leader()?.raft.clone();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let before = resident_bytes()?;
    for tenth in 1..=10 {
        let each = proposals / 10 / CLIENTS;
        runtime.block_on(async {
            let clients = (0..CLIENTS).map(|_| {
                let raft = raft.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        raft.propose(vec![7; 64]).await?;
                    }
                    Ok::<_, BoxError>(())
                })
            });
            for client in clients.collect::<Vec<_>>() {
                client.await??;
            }
            Ok::<_, BoxError>(())
        })?;
        print(&json!({
            "bench": "memory",
            "nodes": NODES,
            "proposals": each * CLIENTS * tenth,
            "resident_bytes_of_all_nodes": resident_bytes()?,
            "resident_bytes_before": before,
        }))?;
    }
    cluster.stop()
}

fn resident_bytes() -> Result<u64, BoxError> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    let kib: u64 = line.split_whitespace().next().ok_or("no number after VmRSS")?.parse()?;
    Ok(kib * 1024)
}

/// Processor time of this process so far.
fn cpu_seconds() -> Result<f64, BoxError> {
    const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ, which Linux has fixed for what it shows here.
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().ok_or("no fields in /proc/self/stat")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let [user, system] =
        [fields.get(11), fields.get(12)].map(|field| field.and_then(|field| field.parse::<f64>().ok()));
    Ok((user.ok_or("no user time")? + system.ok_or("no system time")?) / TICKS_PER_SECOND)
}
