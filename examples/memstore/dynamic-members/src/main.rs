//! A node of the replicated key-value store whose members come and go while it runs. The first one begins a cluster;
//! each other one is given the address of any member and joins. Started again, a node goes on with its data.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, Raft, report, serve, start_logging};
use raftify::{BoxError, Config, NodeId, StableStorage, WalStorage};
use tokio::sync::oneshot;
use tracing::info;

#[derive(Parser)]
#[command(
    version,
    about = "A node of the replicated key-value store that can join and leave a running cluster"
)]
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
    let default_dir =
        || PathBuf::from("target/memstore-dynamic").join(raft_addr.replace([':', '[', ']'], "_"));
    let mut storage = WalStorage::open(data_dir.unwrap_or_else(default_dir))?;
    let config = Config::default();
    let entry_bytes_max = config.entry_bytes_max;

    // What the directory knows goes before what the command line says: started again with the same words, a node goes
    // on. One that died while it joined has an id, but no members yet, and asks again to be let in under that id.
    let stored = storage.load()?;
    let mut ticket = match peer_addr {
        Some(peer_addr) if stored.members.is_none_or(|members| members.is_empty()) => {
            Some(Raft::request_id(&raft_addr, peer_addr).await?)
        }
        _ => None,
    };
    if let (Some(ticket), Some(identity)) = (&mut ticket, stored.identity) {
        ticket.reserved_id = identity.node_id;
    }
    let first_id = ticket.as_ref().map_or(NodeId::FIRST, |ticket| ticket.reserved_id);
    let node_id = stored.identity.map_or(first_id, |identity| identity.node_id);

    let raft = Raft::bootstrap(node_id, &raft_addr, storage, HashStore::default(), config)?;
    let running = tokio::spawn(raft.clone().run());
    if stop_with_stdin {
        quit_with_stdin(raft.clone());
    }
    if let Some(ticket) = ticket
        && let Err(error) = raft.join_cluster(vec![ticket]).await
    {
        raft.quit().await;
        running.await??;
        return Err(error.into());
    }
    info!("node {node_id} is up");
    serve(raft, running, web_server, entry_bytes_max).await
}

fn quit_with_stdin(raft: Raft) {
    let (end_seen, end) = oneshot::channel();
    // A thread of its own, which nobody waits for: it may read until the process ends.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink()); // An input that cannot be read has ended, too.
        let _ = end_seen.send(());
    });
    tokio::spawn(async move {
        let _ = end.await;
        raft.quit().await;
    });
}
