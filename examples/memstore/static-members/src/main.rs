//! A node of the replicated key-value store, with members from a file. Every node has the same file; the node
//! finds itself in it by its address.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, NodeOptions, Raft, load_peers, report, serve, start_logging, start_metrics};
use raftify::BoxError;
use raftify::start::Start;

#[derive(Parser)]
#[command(version, about = "A node of the replicated key-value store, with members from a file")]
struct Arguments {
    /// The address of this node for its peers, and its listen address: host:port, as in the file
    #[arg(long)]
    raft_addr: String,
    /// The file with all members, the same for every node
    #[arg(long, default_value = "examples/memstore/static-members/cluster_config.toml")]
    config: PathBuf,
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
    let Arguments { raft_addr, config: file, options } = arguments;
    let stop = options.listen_for_stop()?;
    start_metrics()?;
    let peers = load_peers(&file)?;
    let own = peers.iter().find(|peer| peer.address == raft_addr);
    let node_id = own.map(|own| own.id).ok_or_else(|| {
        let known: Vec<&str> = peers.iter().map(|peer| peer.address.as_str()).collect();
        format!("{}: no peer has address {raft_addr}, the addresses are {}", file.display(), known.join(", "))
    })?;

    options.check_web_address()?;
    let storage = options.open_storage(format!("memstore-static/node-{node_id}"))?;
    let (start, config, with) = (Start::BeginWith(peers), options.config(), options.bootstrap_options());
    let start = Raft::start(start, raft_addr, storage, HashStore::default(), config, with);
    let Some(raft) = stop.started(start).await? else { return Ok(()) };
    serve(raft, &options).await
}
