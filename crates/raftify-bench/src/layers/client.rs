//! The remote client: a program without a node proposes and reads over gRPC, on three nodes that are processes
//! of their own.

use std::time::Duration;

use bytes::Bytes;
use raftify::client::ClientError;
use raftify::error::{ProposeError, ReadError};
use raftify::{BoxError, RaftClient};
use tokio::runtime::{Builder, Runtime};

use super::disk;
use crate::Work;
use crate::cluster::{Cluster, Place};
use crate::line::Line;
use crate::machine::Usage;
use crate::measure::{Measured, Outcome, closed_loop};
use crate::node::{Meter, NodeOptions, Operation, Payload, Storage};
use crate::switches::{Switches, client_tls};

/// Before each run, so that connections and caches are in the measured state.
const WARM_UP: Duration = Duration::from_millis(400);

/// How many callers write while the memory of the leader is measured.
const WRITERS: u64 = 1024;

/// How the requests reach the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Path {
    /// One stream with many requests in each message
    Stream,
    /// A call for each request
    Unary,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Path::Stream => "stream",
            Path::Unary => "unary",
        }
    }
}

/// The node that gets the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Asked {
    Leader,
    /// Forwards proposals to the leader; a read is sent on to the leader by the client
    Follower,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Client {
    /// How many callers share the client
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1024])]
    callers: Vec<u64>,
    /// The operation: `propose` or `read-index`
    #[arg(long, value_delimiter = ',', default_values = ["propose", "read-index"])]
    operation: Vec<Operation>,
    /// Streams, unary calls, or both, alternating
    #[arg(long, value_delimiter = ',', default_values = ["stream"])]
    path: Vec<Path>,
    /// The node that gets the requests
    #[arg(long, default_value = "leader")]
    asked: Asked,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// How long each run takes
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Repetitions of all runs
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// First, a new cluster for each path takes this many writes of 1024 callers, and the leader's memory is
    /// measured
    #[arg(long, default_value_t = 0)]
    writes: u64,
    #[command(flatten)]
    pub(crate) switches: Switches,
}

type Remote = RaftClient<Payload, Meter>;

impl Client {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        let writes = if self.writes > 0 { self.path.len() } else { 0 };
        let loads = self.runs as usize * self.operation.len() * self.callers.len() * self.path.len();
        work.reporter.steps(writes + loads)?;
        for path in self.path.iter().take(writes) {
            work.reporter.step(format!("{} writes over {}", self.writes, path.name()))?;
            self.fill(work, *path)?;
        }
        let directory = tempfile::tempdir_in(&work.directory)?;
        let options = self.switches.applied(NodeOptions::of(self.storage), directory.path())?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, options)?;
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        for run in 1..=self.runs {
            for operation in &self.operation {
                for callers in &self.callers {
                    for path in &self.path {
                        let what = format!("{}, {callers} callers, {}", operation.name(), path.name());
                        work.reporter.step(what)?;
                        let line = self.measure(work, &mut cluster, &runtime, *operation, *callers, *path)?;
                        work.reporter.result(line.with("run", run))?;
                    }
                }
            }
        }
        cluster.stop()
    }

    fn measure(
        &self,
        work: &Work,
        cluster: &mut Cluster,
        runtime: &Runtime,
        operation: Operation,
        callers: u64,
        path: Path,
    ) -> Result<Line, BoxError> {
        let leader = cluster.wait_until_agreed()?;
        let client = self.connect(cluster, leader, path)?;
        let load = |duration| self.load(runtime, &client, operation, callers, duration);
        let before = disk::probe(&work.directory)?;
        load(WARM_UP.min(Duration::from_secs_f64(self.seconds)))?;
        let cpu = cpu_seconds(cluster)?;
        let measured = load(Duration::from_secs_f64(self.seconds))?;
        let now = cpu_seconds(cluster)?;
        let (nodes, own) = (now[0] - cpu[0], now[1] - cpu[1]);
        let after = disk::probe(&work.directory)?;
        let line = Line {
            clients: Some(callers),
            entry_bytes: (operation == Operation::Propose).then_some(self.entry_bytes as u64),
            disk_fdatasync_p50_us: Some(before),
            ..cluster.line("client")
        };
        let per_million = |seconds: f64| (seconds * 1e8 / measured.count.max(1) as f64).round() / 100.0;
        Ok(line
            .measured(&measured)
            .cpu(nodes + own, measured.count)
            .with("operation", operation.name())
            .with("path", path.name())
            .with("asked", if self.asked == Asked::Leader { "leader" } else { "follower" })
            .with("client_cpu_seconds_per_million", per_million(own))
            .with("leader_resident_mib", cluster.usage_of(leader)?.resident_bytes >> 20)
            .with("busy", measured.busy)
            .with("max_us", measured.max_us)
            .with("disk_fdatasync_p50_us_after", after))
    }

    /// The leader's memory after many writes.
    fn fill(&self, work: &Work, path: Path) -> Result<(), BoxError> {
        let directory = tempfile::tempdir_in(&work.directory)?;
        let options = self.switches.applied(NodeOptions::of(self.storage), directory.path())?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, options)?;
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let leader = cluster.wait_until_agreed()?;
        let client = self.connect(&cluster, leader, path)?;
        let cpu = cpu_seconds(&cluster)?;
        let begin = std::time::Instant::now();
        runtime.block_on(async {
            let work: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (client, payload) = (client.clone(), self.payload());
                    let share = self.writes / WRITERS + u64::from(writer < self.writes % WRITERS);
                    tokio::spawn(async move {
                        for _ in 0..share {
                            client.propose(&payload).await?;
                        }
                        Ok::<_, BoxError>(())
                    })
                })
                .collect();
            for writer in work {
                writer.await??;
            }
            Ok::<_, BoxError>(())
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        let now = cpu_seconds(&cluster)?;
        let usage = cluster.usage_of(leader)?;
        let measured = Measured { count: self.writes, seconds, ..Measured::default() };
        let line = Line {
            clients: Some(WRITERS),
            entry_bytes: Some(self.entry_bytes as u64),
            ops_per_second: Some(measured.ops_per_second().round()),
            ..cluster.line("client")
        };
        let line = line
            .cpu(now[0] - cpu[0] + now[1] - cpu[1], self.writes)
            .with("operation", "writes")
            .with("path", path.name())
            .with("writes", self.writes)
            .with("leader_resident_mib", usage.resident_bytes >> 20)
            .with("leader_resident_peak_mib", usage.resident_bytes_peak >> 20);
        work.reporter.result(line)?;
        cluster.stop()
    }

    fn payload(&self) -> Payload {
        Payload(Bytes::from(vec![7; self.entry_bytes]))
    }

    /// A client that asks the wanted node first.
    fn connect(&self, cluster: &Cluster, leader: u64, path: Path) -> Result<Remote, BoxError> {
        let mut addresses = cluster.addresses().to_vec();
        addresses.rotate_left(usize::try_from(leader - 1)?);
        if self.asked == Asked::Follower {
            addresses.rotate_left(1);
        }
        let client = Remote::new(addresses)?;
        let client = match cluster.certificates() {
            None => client,
            Some(certificates) => client.with_tls(&client_tls(certificates))?,
        };
        Ok(match path {
            Path::Stream => client,
            Path::Unary => client.with_unary_calls(),
        })
    }

    fn load(
        &self,
        runtime: &Runtime,
        client: &Remote,
        operation: Operation,
        callers: u64,
        duration: Duration,
    ) -> Result<Measured, BoxError> {
        match operation {
            Operation::Propose => {
                let (client, payload) = (client.clone(), self.payload());
                let propose = move || {
                    let (client, payload) = (client.clone(), payload.clone());
                    async move {
                        match client.propose(&payload).await {
                            Ok(_) => Ok(Outcome::Done),
                            Err(ClientError::Answer(ProposeError::Busy { .. })) => Ok(Outcome::Busy),
                            Err(error) => Err(BoxError::from(error)),
                        }
                    }
                };
                runtime.block_on(runtime.spawn(closed_loop(callers, duration, propose)))?
            }
            Operation::ReadIndex => {
                let client = client.clone();
                let read = move || {
                    let client = client.clone();
                    async move {
                        match client.read_index().await {
                            Ok(_) => Ok(Outcome::Done),
                            Err(ClientError::Answer(ReadError::Busy { .. })) => Ok(Outcome::Busy),
                            Err(error) => Err(BoxError::from(error)),
                        }
                    }
                };
                runtime.block_on(runtime.spawn(closed_loop(callers, duration, read)))?
            }
            other => {
                Err(format!("the client layer measures propose and read-index, not {}", other.name()).into())
            }
        }
    }
}

/// Of the nodes, and of the client, which is this process.
fn cpu_seconds(cluster: &Cluster) -> Result<[f64; 2], BoxError> {
    Ok([cluster.usage()?.cpu_seconds, Usage::of(None)?.cpu_seconds])
}
