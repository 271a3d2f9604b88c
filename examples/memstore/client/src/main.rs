//! A program outside of the cluster: it writes over gRPC, and asks a node how it is doing.

use std::process::ExitCode;

use clap::Parser;
use memstore::{HashStore, LogEntry, Reply, report, say};
use raftify::membership::{MemberChange, MembershipChange, MembershipRequest};
use raftify::{BoxError, NodeId, RaftClient};

#[derive(Parser)]
#[command(version, about = "Writes a few keys into a running memstore cluster over gRPC")]
struct Arguments {
    /// Members of the cluster, host:port; any one of them will do, the leader is found from there
    #[arg(long, default_values = ["127.0.0.1:7061", "127.0.0.1:7062", "127.0.0.1:7063"])]
    raft_addr: Vec<String>,
    /// Instead of writing, take this node out of the cluster: one that is gone for good and cannot leave by itself
    #[arg(long)]
    remove: Option<NodeId>,
    /// With --remove: also if the remaining nodes that are alive are no majority; the cluster may stop for good
    #[arg(long, requires = "remove")]
    force: bool,
    /// How many keys to write
    #[arg(long, default_value_t = 5)]
    keys: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    report(run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let client = RaftClient::<LogEntry, HashStore>::new(arguments.raft_addr)?;
    if let Some(id) = arguments.remove {
        let request = MembershipRequest::from(MembershipChange::one(MemberChange::Remove(id)));
        let request = if arguments.force { request.forced() } else { request };
        let members = client.change_config(request).await?;
        say(&format!("node {id} is removed, {} members are left", members.len()));
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
