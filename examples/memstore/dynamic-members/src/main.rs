//! A node of the replicated key-value store with dynamic membership. The first node begins a cluster; each
//! other node gets the addresses of members and joins. A node that restarts with the same arguments continues
//! with its data.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use memstore::{HashStore, NodeOptions, Raft, report, serve, start_logging, start_metrics};
use raftify::BoxError;
use raftify::membership::check_address;
use raftify::start::{Expect, JoinOptions, Start};
use tracing::info;

#[derive(Parser)]
#[command(
    version,
    about = "A node of the replicated key-value store that can join and leave a running cluster"
)]
struct Arguments {
    /// The address of this node for its peers, and its listen address: host:port
    #[arg(long)]
    raft_addr: String,
    /// A member of the cluster to join (repeatable); without it, an empty directory begins a new cluster. A
    /// directory that already belongs to a cluster continues, and needs no peer
    #[arg(long)]
    peer_addr: Vec<String>,
    /// Join as a learner: it receives all data and does not vote until it is promoted
    #[arg(long, requires = "peer_addr")]
    learner: bool,
    /// Begin a new cluster as soon as this many nodes, all started with these arguments, have found each
    /// other at the peers' addresses; a node that finds a cluster joins it. Must be more than half of
    /// all nodes that are started
    #[arg(long, value_name = "NODES", requires = "peer_addr", conflicts_with = "learner")]
    bootstrap_expect: Option<usize>,
    /// Wait this many seconds for a peer that is up and belongs to a cluster [default: forever]
    #[arg(long, value_name = "SECONDS", requires = "peer_addr")]
    wait_for_peers: Option<u64>,
    #[command(flatten)]
    options: NodeOptions,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging();
    report(run(arguments).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let Arguments { raft_addr, peer_addr, learner, bootstrap_expect, wait_for_peers, options } = arguments;
    let stop = options.listen_for_stop()?;
    start_metrics()?;
    // Before a directory of that name is created.
    check_address(&raft_addr)?;
    peer_addr.iter().try_for_each(|peer| check_address(peer))?;
    options.check_web_address()?;
    let default_dir = PathBuf::from("memstore-dynamic").join(raft_addr.replace([':', '[', ']'], "_"));
    let storage = options.open_storage(default_dir)?;

    let wait_for_peers = wait_for_peers.map(Duration::from_secs);
    let joining = JoinOptions { wait_for_peers, ..JoinOptions::new(peer_addr) };
    let start = match bootstrap_expect {
        Some(count) => Start::Expect(Expect { count, peers: joining.peers, wait_for_peers }),
        None if joining.peers.is_empty() => Start::Begin,
        None if learner => Start::Join(joining.as_learner()),
        None => Start::Join(joining),
    };
    let (config, with) = (options.config(), options.bootstrap_options());
    let start = Raft::start(start, raft_addr, storage, HashStore::default(), config, with);
    let Some(raft) = stop.started(start).await? else { return Ok(()) };
    info!("node {} is up", raft.id());
    serve(raft, &options).await
}
