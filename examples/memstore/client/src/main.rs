//! A client outside of the cluster: it writes over gRPC, and prints the status of a node.

use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, LogEntry, Reply, report, say};
use raftify::membership::{MemberChange, MembershipChange, MembershipRequest};
use raftify::{BoxError, NodeId, RaftClient};
use raftify_cli::TlsArguments;

#[derive(Parser)]
#[command(version, about = "Writes a few keys into a running memstore cluster over gRPC")]
struct Arguments {
    /// Members of the cluster, host:port; any one of them will do, it leads to the leader
    #[arg(long, default_values = ["127.0.0.1:7061", "127.0.0.1:7062", "127.0.0.1:7063"])]
    raft_addr: Vec<String>,
    /// Instead of writing, remove this node from the cluster: one that is gone permanently and cannot leave
    /// by itself
    #[arg(long)]
    remove: Option<NodeId>,
    /// With --remove: even if the remaining live nodes are no majority; the cluster may stop permanently
    #[arg(long, requires = "remove")]
    force: bool,
    #[command(flatten)]
    tls: TlsArguments,
    /// Number of keys to write
    #[arg(long, default_value_t = 5)]
    keys: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    report(run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let client = RaftClient::<LogEntry, HashStore>::new(arguments.raft_addr)?;
    let client = match arguments.tls.tls() {
        Some(tls) => client.with_tls(&tls)?,
        None => client,
    };
    if let Some(id) = arguments.remove {
        let request = MembershipRequest::from(MembershipChange::one(MemberChange::Remove(id)));
        let request = if arguments.force { request.forced() } else { request };
        let members = client.change_config(request).await?;
        say(&format!("node {id} is removed, {} members remain", members.len()));
        return Ok(());
    }
    for number in 1..=arguments.keys {
        let (key, value) = (format!("key-{number}"), format!("written by the client as number {number}"));
        let reply = client.propose(&LogEntry::Insert { key: key.clone(), value }).await?;
        if let Reply::Inserted { position, replaced } = reply {
            say(&format!("{key} {}, as entry {position}", if replaced { "replaced" } else { "stored" }));
        }
    }

    say(&format!("everything up to entry {} is committed", client.read_index().await?));
    let status = client.inspect().await?.status;
    say(&format!("node {} answers: it is a {} in term {}", status.node_id, status.role, status.term));
    for member in status.members.iter() {
        let leads = if status.leader_id == Some(member.id) { ", leads" } else { "" };
        say(&format!("  node {} at {}: {}{leads}", member.id, member.address, member.role));
    }
    Ok(())
}
