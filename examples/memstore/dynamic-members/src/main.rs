//! A node of the replicated key-value store whose members come and go while it runs. The first one begins a cluster;
//! each other one is given the address of any member and joins. Started again, a node goes on with its data.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, NodeOptions, Raft, report, serve, start_logging};
use raftify::{BoxError, NodeId, StableStorage, check_address};
use tracing::info;

#[derive(Parser)]
#[command(
    version,
    about = "A node of the replicated key-value store that can join and leave a running cluster"
)]
struct Arguments {
    /// Where the others reach this node, and where it listens for them: host:port
    #[arg(long)]
    raft_addr: String,
    /// Any member of the cluster to join; without it, a new cluster begins
    #[arg(long)]
    peer_addr: Option<String>,
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
    let Arguments { raft_addr, peer_addr, options } = arguments;
    // Before there is a directory of that name.
    check_address(&raft_addr)?;
    peer_addr.as_deref().map(check_address).transpose()?;
    options.check_web_address()?;
    let default_dir = PathBuf::from("memstore-dynamic").join(raft_addr.replace([':', '[', ']'], "_"));
    let mut storage = options.open_storage(default_dir)?;

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

    let (config, with) = (options.config(), options.bootstrap_options());
    let raft = Raft::bootstrap_with(node_id, &raft_addr, storage, HashStore::default(), config, with)?;
    let running = tokio::spawn(raft.clone().run());
    options.watch_stdin(&raft);
    if let Some(ticket) = ticket
        && let Err(error) = raft.join_cluster(vec![ticket]).await
    {
        raft.quit().await;
        running.await??;
        return Err(error.into());
    }
    info!("node {node_id} is up");
    serve(raft, running, &options).await
}
