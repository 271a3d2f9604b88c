//! A node of the replicated key-value store, with members from a file. Every node is given the same file; the node
//! finds itself in it by its address.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, Raft, load_peers, report, serve, start_logging};
use raftify::{BoxError, Config, HeedStorage, Member, NodeId};

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
    /// Which member this node is, if its --raft-addr does not stand in the file
    #[arg(long)]
    node_id: Option<NodeId>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging();
    report(run(arguments).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let peers = load_peers(&arguments.config)?;
    let node_id = own_id(&arguments, &peers)?;
    let data_dir =
        arguments.data_dir.unwrap_or_else(|| PathBuf::from(format!("target/memstore-static/node-{node_id}")));
    let storage = HeedStorage::open(data_dir)?;
    let config = Config::default();
    let entry_bytes_max = config.entry_bytes_max;
    let raft = Raft::bootstrap(node_id, arguments.raft_addr, storage, HashStore::default(), config)?;
    raft.add_peers(peers).await?;
    let running = tokio::spawn(raft.clone().run());
    serve(raft, running, arguments.web_server, entry_bytes_max).await
}

fn own_id(arguments: &Arguments, peers: &[Member]) -> Result<NodeId, String> {
    let file = arguments.config.display();
    let own = match arguments.node_id {
        Some(id) => peers.iter().find(|peer| peer.id == id),
        None => peers.iter().find(|peer| peer.address == arguments.raft_addr),
    };
    own.map(|own| own.id).ok_or_else(|| {
        let known: Vec<String> = peers.iter().map(|peer| format!("{} at {}", peer.id, peer.address)).collect();
        let missing = match arguments.node_id {
            Some(id) => format!("no peer has id {id}"),
            None => format!("no peer has address {}, name this node's with --node-id", arguments.raft_addr),
        };
        format!("{file}: {missing} (peers: {})", known.join(", "))
    })
}
