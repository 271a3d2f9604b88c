//! A cluster of three real nodes loses its majority, and `recover` makes a new cluster of the third: with the
//! commands of its page.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;
use std::process::Output;

use common::nodes::{Node, Sum, cli_beside, open, succeeds, until_served};
use common::{commands_of, filled, id, text};
use raftify::client::ClientError;
use raftify::error::NodeStartError;
use raftify::storage::StorageKind;
use raftify::{Config, Member, Raft, RaftClient};
use raftify_free_address::free_address;
use tempfile::TempDir;

const PAGE: &str = include_str!("../../../docs/operations/lost-quorum.md");

#[track_caller]
fn assert_refused(output: &Output, reason: &str) {
    let said = text(output);
    assert!(output.status.code() == Some(1) && said.contains(reason), "{reason}: {said}");
}

fn recover(directories: &[&Path], apply: bool) -> Vec<String> {
    let paths = directories.iter().map(|path| path.to_str().unwrap().to_owned());
    let words = ["recover".to_owned()].into_iter().chain(paths);
    words.chain(apply.then(|| "--apply".to_owned())).collect()
}

async fn begin(addresses: &[String; 3], directories: &[TempDir; 3]) -> Vec<Node> {
    let members =
        || (1..).zip(addresses).map(|(number, address)| Member::voter(id(number), address.as_str()));
    let members: Vec<Member> = members().collect();
    let mut starting = Vec::new();
    for (address, directory) in addresses.iter().zip(directories) {
        let (members, address, storage) = (members.clone(), address.clone(), open(directory.path()));
        let start =
            async move { Raft::begin_with(members, address, storage, Sum(0), Config::default()).await };
        starting.push(tokio::spawn(start));
    }
    let mut nodes = Vec::new();
    for start in starting {
        nodes.push(start.await.unwrap().unwrap());
    }
    nodes
}

#[tokio::test]
async fn the_last_of_three_nodes_is_recovered_with_all_that_it_had_and_the_former_members_are_refused() {
    let addresses = [(); 3].map(|()| free_address());
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [one, two, three] = directories.each_ref().map(TempDir::path);
    let nodes = begin(&addresses, &directories).await;
    for add in 1..=20 {
        until_served(async || nodes[2].propose(add).await).await;
    }
    nodes[2].make_snapshot().await.unwrap();
    until_served(async || nodes[2].propose(1000).await).await;
    assert_eq!(nodes[2].query(|sum| sum.0).await.unwrap(), 1210);
    let client = RaftClient::<u64, Sum>::new(addresses.clone()).unwrap();
    client.read_index().await.unwrap();

    // A directory in use, and one whose cluster has a majority.
    assert_refused(&cli_beside(recover(&[three], true)).await, "is in use by another process");
    nodes[2].quit().await;
    let refused = cli_beside(recover(&[three], true)).await;
    assert_refused(&refused, "the majority is not lost: nodes 1, 2, 3 answer, or their directories are here");
    nodes[0].quit().await;
    nodes[1].quit().await;
    let both = cli_beside(recover(&[two, three], true)).await;
    assert_refused(&both, "the majority is not lost: nodes 2, 3");
    let other = filled(StorageKind::Wal);
    assert_refused(
        &cli_beside(recover(&[other.path(), three], true)).await,
        "name directories of one cluster",
    );

    let names = [("node-3", three.to_str().unwrap()), ("HOST:PORT", addresses[2].as_str())];
    let commands = commands_of(PAGE, "recover", &names);
    assert_eq!(commands.len(), 2);
    let shown = succeeds(commands[0].clone()).await;
    for part in [
        "recover node 3",
        "the entries that only the lost nodes may have had cannot be known",
        "no answer within 3 s: node 1",
        "nothing was changed",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let applied = succeeds(commands[1].clone()).await;
    assert!(applied.contains("is recovered: node 3 of cluster"), "{applied}");
    for check in commands_of(PAGE, "check", &names) {
        succeeds(check).await;
    }
    assert_refused(&cli_beside(commands[1].clone()).await, "was recovered before");

    let node = Node::restart(&addresses[2], open(three), Sum(0), Config::default()).await.unwrap();
    assert_eq!(until_served(async || node.query(|sum| sum.0).await).await, 1210);
    assert_eq!(until_served(async || node.propose(1).await).await, 1211);
    let members = succeeds(commands_of(PAGE, "cluster", &names).remove(0)).await;
    assert!(members.contains(&addresses[2]) && !members.contains(&addresses[0]), "{members}");

    // The former members, and the clients of the former cluster.
    let joined =
        Node::join([addresses[2].as_str()], &addresses[0], open(one), Sum(0), Config::default()).await;
    let refused = joined.err().unwrap();
    assert!(matches!(refused, NodeStartError::AlreadyInCluster { .. }), "{refused}");
    let refused = client.propose(&1).await.unwrap_err();
    assert!(matches!(refused, ClientError::Rejected(_)), "{refused}");
    assert!(refused.to_string().contains("node 3 belongs to cluster"), "{refused}");
    assert_refused(&cli_beside(recover(&[one], true)).await, "node 3 was recovered already, and runs");

    // A new node, by ticket.
    let (address, directory) = (free_address(), tempfile::tempdir().unwrap());
    let ticket = Node::request_id(&address, &addresses[2]).await.unwrap();
    assert_eq!(ticket.reserved_id, id(4), "no id of the former cluster is used again");
    let storage = open(directory.path());
    let new = Node::bootstrap(ticket.reserved_id, &address, storage, Sum(0), Config::default()).unwrap();
    let running = tokio::spawn(new.clone().run());
    new.join_cluster(vec![ticket]).await.unwrap();
    assert_eq!(until_served(async || new.query(|sum| sum.0).await).await, 1211);
    assert_eq!(until_served(async || new.propose(9).await).await, 1220);
    new.quit().await;
    running.await.unwrap().unwrap();
    node.quit().await;
}
