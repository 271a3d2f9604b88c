//! A node of the replicated key-value store, with members from a file. Every node is given the same file; the node
//! finds itself in it by its address.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, Raft, load_peers, report, serve, start_logging};
use raftify::{BoxError, Config, WalStorage};

#[derive(Parser)]
#[command(version, about = "A node of the replicated key-value store, with members from a file")]
struct Arguments {
    /// Where this node listens for the others: host:port, as it stands in the file
    #[arg(long)]
    raft_addr: String,
    /// Where to serve the web API: host:port
    #[arg(long)]
    web_server: Option<String>,
    /// The file with all members, the same for every node
    #[arg(long, default_value = "examples/memstore/static-members/cluster_config.toml")]
    config: PathBuf,
    /// Where to keep this node's data [default: ./target/memstore-static/node-ID]
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging();
    report(run(arguments).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let Arguments { raft_addr, web_server, config: file, data_dir } = arguments;
    let peers = load_peers(&file)?;
    let own = peers.iter().find(|peer| peer.address == raft_addr);
    let node_id = own.map(|own| own.id).ok_or_else(|| {
        let known: Vec<&str> = peers.iter().map(|peer| peer.address.as_str()).collect();
        format!("{}: no peer has address {raft_addr}, they have {}", file.display(), known.join(", "))
    })?;

    let data_dir =
        data_dir.unwrap_or_else(|| PathBuf::from(format!("target/memstore-static/node-{node_id}")));
    let storage = WalStorage::open(data_dir)?;
    let config = Config::default();
    let entry_bytes_max = config.entry_bytes_max;
    let raft = Raft::bootstrap(node_id, raft_addr, storage, HashStore::default(), config)?;
    raft.add_peers(peers).await?;
    let running = tokio::spawn(raft.clone().run());
    serve(raft, running, web_server, entry_bytes_max).await
}
