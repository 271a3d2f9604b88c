//! A node of the replicated key-value store whose members come and go while it runs. The first one begins a cluster;
//! each other one is given the address of any member and joins. Started again, a node goes on with its data.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, Raft, report, serve, start_logging};
use raftify::{BoxError, Config, HeedStorage, NodeId};
use tokio::io::AsyncReadExt;
use tracing::info;

#[derive(Parser)]
#[command(version, about = "A node of the replicated key-value store that can join and leave a running cluster")]
struct Arguments {
    /// Where this node listens for the others, and where they reach it: host:port
    #[arg(long)]
    raft_addr: String,
    /// Any member of the cluster to join; without it, a new cluster begins
    #[arg(long)]
    peer_addr: Option<String>,
    /// Where to serve the web API: host:port
    #[arg(long)]
    web_server: Option<String>,
    /// Where to keep this node's data [default: ./target/memstore-dynamic/RAFT_ADDR]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Stop when standard input ends, that is, when the program that started this one is gone
    #[arg(long)]
    stop_with_stdin: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging();
    report(run(arguments).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let Arguments { raft_addr, peer_addr, web_server, data_dir, stop_with_stdin } = arguments;
    let default_dir = || PathBuf::from("target/memstore-dynamic").join(raft_addr.replace([':', '[', ']'], "_"));
    let storage = HeedStorage::open(data_dir.unwrap_or_else(default_dir))?;
    let config = Config::default();
    let entry_bytes_max = config.entry_bytes_max;

    let known = storage.identity()?;
    let ticket = match (&peer_addr, known) {
        (Some(peer_addr), None) => Some(Raft::request_id(&raft_addr, peer_addr).await?),
        _ => None,
    };
    let node_id = match (known, &ticket) {
        (Some(identity), _) => identity.node_id,
        (None, Some(ticket)) => ticket.reserved_id,
        (None, None) => NodeId::FIRST,
    };
    let raft = Raft::bootstrap(node_id, &raft_addr, storage, HashStore::default(), config)?;
    let running = tokio::spawn(raft.clone().run());
    if let Some(ticket) = ticket {
        raft.join_cluster(vec![ticket]).await?;
    }
    info!("node {node_id} is up");
    serve(raft, running, web_server, entry_bytes_max).await
}
