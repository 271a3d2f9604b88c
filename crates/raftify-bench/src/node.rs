//! The measured node and its commands: directly in this process, or as a child process through its standard
//! input.

use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftify::error::{ProposeError, ReadError, RunError};
use raftify::start::BootstrapOptions;
use raftify::status::LogIndex;
use raftify::storage::{HeedStorage, MemoryStorage, StableStorage};
use raftify::{
    BoxError, Config, LogEntry, LogPosition, Member, NodeId, Raft, Snapshot, StateMachine, WalStorage,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::measure::{Measured, Outcome, closed_loop, open_loop};
use crate::switches;

/// How long a joining node waits for its id.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// The storage of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Storage {
    /// Memory: measures everything but the disk
    Memory,
    /// The segment log, fsynced
    Wal,
    /// LMDB, fsynced
    Heed,
}

impl Storage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Storage::Memory => "memory",
            Storage::Wal => "wal",
            Storage::Heed => "heed",
        }
    }

    pub(crate) fn is_synced(self) -> bool {
        self != Storage::Memory
    }
}

/// An entry of arbitrary bytes. It has its own encoding, so that the whole cost is measured.
#[derive(Clone)]
pub(crate) struct Payload(pub(crate) Bytes);

impl LogEntry for Payload {
    fn encode(&self) -> Result<Bytes, BoxError> {
        Ok(self.0.clone())
    }

    fn decode(bytes: &[u8]) -> Result<Payload, BoxError> {
        Ok(Payload(Bytes::copy_from_slice(bytes)))
    }
}

/// A state machine with minimal work: only the replication is measured. Its reply is the entry's index.
pub(crate) struct Meter {
    applied_bytes: u64,
    /// The size of its snapshots; the content is not in memory.
    snapshot_bytes: u64,
}

impl StateMachine for Meter {
    type LogEntry = Payload;
    type Reply = u64;

    fn apply(&mut self, position: LogPosition, entry: Payload) -> Result<u64, BoxError> {
        self.applied_bytes += entry.0.len() as u64;
        Ok(position.index.0)
    }

    fn is_quick_to_apply(&self) -> bool {
        true
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        let (applied_bytes, bytes) = (self.applied_bytes, self.snapshot_bytes);
        Ok(Snapshot::new(move |writer: &mut dyn Write| {
            writer.write_all(&applied_bytes.to_be_bytes())?;
            io::copy(&mut io::repeat(0x5a).take(bytes), writer)?;
            Ok(())
        }))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        let mut applied_bytes = [0; 8];
        reader.read_exact(&mut applied_bytes)?;
        self.snapshot_bytes = io::copy(reader, &mut io::sink())?;
        self.applied_bytes = u64::from_be_bytes(applied_bytes);
        Ok(())
    }
}

pub(crate) type Node = Raft<Payload, Meter>;

/// The options of a node.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NodeOptions {
    #[arg(long)]
    pub(crate) storage: Storage,
    /// The size of the state machine's snapshots
    #[arg(long, default_value_t = 0)]
    pub(crate) snapshot_bytes: u64,
    /// Takes a snapshot after this many entries instead of the default; zero: only on command
    #[arg(long)]
    pub(crate) snapshot_entries: Option<u64>,
    /// Joins the cluster of the member at this address, instead of being one of its first members
    #[arg(long)]
    pub(crate) join: Option<String>,
    /// Mutual TLS with the certificates in this directory
    #[arg(long)]
    pub(crate) certificates: Option<PathBuf>,
    /// Records metrics
    #[arg(long)]
    pub(crate) metrics: bool,
}

impl NodeOptions {
    /// The default settings of a user.
    pub(crate) fn of(storage: Storage) -> NodeOptions {
        NodeOptions {
            storage,
            snapshot_bytes: 0,
            snapshot_entries: None,
            join: None,
            certificates: None,
            metrics: false,
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        if let Some(entries) = self.snapshot_entries {
            // Zero: never.
            config.snapshot_entries = Some(entries).filter(|entries| *entries > 0);
            config.snapshot_log_bytes = None;
        }
        config
    }
}

/// A running node on its own runtime.
pub(crate) struct Running {
    pub(crate) raft: Node,
    pub(crate) runtime: Runtime,
    end: JoinHandle<Result<(), RunError>>,
    /// When it became a voter, if it joined: seconds after its start.
    voter_after: Arc<OnceLock<f64>>,
}

impl Running {
    /// Starts node `id` of the cluster whose nodes listen at `addresses`, the first that of node 1.
    pub(crate) fn start(
        id: u64,
        directory: &Path,
        addresses: &[String],
        options: &NodeOptions,
    ) -> Result<Running, BoxError> {
        match options.storage {
            Storage::Memory => Running::start_on(MemoryStorage::default(), id, addresses, options),
            Storage::Wal => Running::start_on(WalStorage::open(directory)?, id, addresses, options),
            Storage::Heed => Running::start_on(HeedStorage::open(directory)?, id, addresses, options),
        }
    }

    /// Like [`start`](Self::start), on any storage.
    pub(crate) fn start_on<S: StableStorage>(
        storage: S,
        id: u64,
        addresses: &[String],
        options: &NodeOptions,
    ) -> Result<Running, BoxError> {
        // As in a program with `#[tokio::main]`: one worker thread for each core.
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let address = addresses.get(usize::try_from(id - 1)?).ok_or("the node has no address")?;
        let meter = Meter { applied_bytes: 0, snapshot_bytes: options.snapshot_bytes };
        let (node_id, config) = (NodeId::try_from(id)?, options.config());
        if options.metrics {
            switches::record_metrics()?;
        }
        let tls = options.certificates.as_deref().map(switches::node_tls);
        let with = BootstrapOptions { tls: tls.clone(), ..BootstrapOptions::default() };
        let begin = Instant::now();
        let voter_after = Arc::<OnceLock<f64>>::default();
        let Some(peer) = &options.join else {
            let raft: Node = Raft::bootstrap_with(node_id, address, storage, meter, config, with)?;
            let members = (1..).zip(addresses);
            let members = members.map(|(id, address)| Ok(Member::voter(NodeId::try_from(id)?, address)));
            runtime.block_on(raft.add_peers(members.collect::<Result<Vec<_>, BoxError>>()?))?;
            let end = runtime.spawn(raft.clone().run());
            return Ok(Running { raft, runtime, end, voter_after });
        };
        let ticket = match &tls {
            None => runtime.block_on(Node::request_id(address, peer))?,
            Some(tls) => runtime.block_on(Node::request_id_with_tls(JOIN_TIMEOUT, address, peer, tls))?,
        };
        if ticket.reserved_id != node_id {
            return Err(format!("node {id} was given the id {}", ticket.reserved_id).into());
        }
        let raft: Node = Raft::bootstrap_with(node_id, address, storage, meter, config, with)?;
        let end = runtime.spawn(raft.clone().run());
        let (joining, voter_since) = (raft.clone(), Arc::clone(&voter_after));
        runtime.spawn(async move {
            let mut status = joining.status();
            if let Err(error) = joining.join_cluster(vec![ticket]).await {
                eprintln!("error: node {node_id} does not join: {error}");
            }
            let is_voter = status.wait_for(|status| status.members.is_voter(node_id)).await.is_ok();
            if is_voter {
                // There is no other writer.
                let _ = voter_since.set(begin.elapsed().as_secs_f64());
            }
        });
        Ok(Running { raft, runtime, end, voter_after })
    }

    pub(crate) fn stop(self) -> Result<(), BoxError> {
        self.runtime.block_on(self.raft.quit());
        Ok(self.runtime.block_on(self.end)??)
    }

    /// Executes a command.
    pub(crate) fn carry_out(&self, command: &Command) -> Result<Answer, BoxError> {
        Ok(match command {
            Command::Status => {
                let status = self.raft.status().borrow().clone();
                Answer::Status(NodeStatus {
                    term: status.term.get(),
                    leader: status.leader_id.map(NodeId::get),
                    applied: status.applied.0,
                    last: status.last.index.0,
                    snapshot: status.snapshot.map_or(0, |position| position.index.0),
                    voter_after: self.voter_after.get().copied(),
                })
            }
            Command::Load(load) => Answer::Measured(self.load(load)?),
            Command::Fill { entries, entry_bytes, clients } => {
                Answer::Measured(self.fill(*entries, *entry_bytes, *clients)?)
            }
            Command::BeginSnapshot => {
                let raft = self.raft.clone();
                self.runtime.spawn(async move {
                    if let Err(error) = raft.make_snapshot().await {
                        eprintln!("error: no snapshot was taken: {error}");
                    }
                });
                Answer::Took { seconds: 0.0 }
            }
            Command::WaitApplied { index } => {
                let begin = Instant::now();
                let mut status = self.raft.status();
                let reached = status.wait_for(|status| status.applied >= LogIndex(*index));
                self.runtime.block_on(reached)?;
                Answer::Took { seconds: begin.elapsed().as_secs_f64() }
            }
        })
    }

    fn load(&self, load: &Load) -> Result<Measured, BoxError> {
        let (bytes, raft) = (load.entry_bytes, self.raft.clone());
        let shared = Payload(Bytes::from(vec![7; bytes]));
        match load.operation {
            Operation::Propose => self.run(load, move || propose(raft.clone(), shared.clone())),
            Operation::ProposeOrCount => self.run(load, move || {
                let proposal = propose(raft.clone(), shared.clone());
                async move { Ok(proposal.await.unwrap_or(Outcome::Failed)) }
            }),
            // The entry is created when its turn comes, so that an operation that waits for its start takes
            // no memory.
            Operation::ProposeNew => self.run(load, move || {
                let raft = raft.clone();
                async move { propose(raft, Payload(Bytes::from(vec![7; bytes]))).await }
            }),
            Operation::ReadIndex => self.run(load, move || {
                let raft = raft.clone();
                async move { read(raft.read_index().await) }
            }),
            Operation::Query => self.run(load, move || {
                let raft = raft.clone();
                async move { read(raft.query(|meter| meter.applied_bytes).await) }
            }),
        }
    }

    /// The clients run on the node's runtime, like the tasks of a program that embeds it.
    fn run<F: Future<Output = Result<Outcome, BoxError>> + Send + 'static>(
        &self,
        load: &Load,
        operation: impl Fn() -> F + Clone + Send + 'static,
    ) -> Result<Measured, BoxError> {
        let duration = Duration::from_secs_f64(load.seconds);
        match load.per_second {
            Some(per_second) => open_loop(self.runtime.handle(), per_second, duration, operation),
            None => {
                self.runtime.block_on(self.runtime.spawn(closed_loop(load.clients, duration, operation)))?
            }
        }
    }

    fn fill(&self, entries: u64, entry_bytes: usize, clients: u64) -> Result<Measured, BoxError> {
        let payload = Payload(Bytes::from(vec![7; entry_bytes]));
        let begin = Instant::now();
        self.runtime.block_on(async {
            let work = (0..clients).map(|client| {
                let (raft, payload) = (self.raft.clone(), payload.clone());
                let share = entries / clients + u64::from(client < entries % clients);
                self.runtime.spawn(async move {
                    for _ in 0..share {
                        raft.propose(payload.clone()).await?;
                    }
                    Ok::<_, ProposeError>(())
                })
            });
            for client in work.collect::<Vec<_>>() {
                client.await??;
            }
            Ok::<_, BoxError>(())
        })?;
        Ok(Measured { count: entries, seconds: begin.elapsed().as_secs_f64(), ..Measured::default() })
    }
}

async fn propose(raft: Node, payload: Payload) -> Result<Outcome, BoxError> {
    match raft.propose(payload).await {
        Ok(_) => Ok(Outcome::Done),
        Err(ProposeError::Busy { .. }) => Ok(Outcome::Busy),
        Err(error) => Err(error.into()),
    }
}

fn read<T>(answer: Result<T, ReadError>) -> Result<Outcome, BoxError> {
    match answer {
        Ok(_) => Ok(Outcome::Done),
        Err(ReadError::Busy { .. }) => Ok(Outcome::Busy),
        Err(error) => Err(error.into()),
    }
}

/// A command to a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Return the status.
    Status,
    /// Apply load.
    Load(Load),
    /// Propose this many entries.
    Fill { entries: u64, entry_bytes: usize, clients: u64 },
    /// Take a snapshot in the background; the status shows when it is complete.
    BeginSnapshot,
    /// Answer when the state machine has applied this index.
    WaitApplied { index: u64 },
}

/// The load of the clients of a node, and its duration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) operation: Operation,
    pub(crate) clients: u64,
    pub(crate) seconds: f64,
    pub(crate) entry_bytes: usize,
    /// An open loop at this rate instead of `clients`.
    pub(crate) per_second: Option<f64>,
}

/// The operation of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// A proposal; all entries share their memory
    Propose,
    /// A proposal of an entry with its own memory
    ProposeNew,
    /// A proposal; a failure is only counted
    ProposeOrCount,
    /// A confirmed index to read at
    ReadIndex,
    /// A linearizable read of the state machine
    Query,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Propose | Operation::ProposeNew | Operation::ProposeOrCount => "propose",
            Operation::ReadIndex => "read_index",
            Operation::Query => "query",
        }
    }
}

/// The answer to a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(NodeStatus),
    Measured(Measured),
    Took { seconds: f64 },
    Failed(String),
}

/// The status of a node.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) applied: u64,
    pub(crate) last: u64,
    pub(crate) snapshot: u64,
    /// The seconds after its start at which a joining node became a voter.
    pub(crate) voter_after: Option<f64>,
}

/// The arguments of a node as a process.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NodeArguments {
    #[arg(long)]
    pub(crate) id: u64,
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// The addresses of all nodes, the first that of node 1
    #[arg(long)]
    pub(crate) address: Vec<String>,
    #[command(flatten)]
    pub(crate) options: NodeOptions,
}

/// Runs a node that executes the commands on standard input, one on each line, and ends with it: its parent
/// may die in any way.
pub(crate) fn serve(arguments: &NodeArguments) -> Result<(), BoxError> {
    let NodeArguments { id, data, address, options } = arguments;
    let node = Running::start(*id, data, address, options)?;
    for command in io::stdin().lock().lines() {
        let command = serde_json::from_str(&command?)?;
        let answer = node.carry_out(&command).unwrap_or_else(|error| Answer::Failed(error.to_string()));
        let mut output = io::stdout().lock();
        serde_json::to_writer(&mut output, &answer)?;
        writeln!(output)?;
        output.flush()?;
    }
    node.stop()
}
