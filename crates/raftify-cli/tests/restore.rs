//! A backup of a running node, verified, and restored as a new cluster of three real nodes: with the commands
//! of its page.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use common::nodes::{Node, Sum, cli_beside, open, succeeds, until_served};
use common::{commands_of, id, text};
use raftify::Config;
use raftify::error::NodeStartError;
use raftify::storage::verify_snapshot_file;
use raftify_free_address::free_address;

const PAGE: &str = include_str!("../../../docs/operations/backup.md");

#[tokio::test]
async fn a_backup_of_a_running_node_is_restored_as_a_new_cluster_that_refuses_the_former_one() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let former = Node::begin(free_address(), open(&place.path().join("node-3")), Sum(0), Config::default());
    let former = former.await.unwrap();
    for add in 1..=20 {
        until_served(async || former.propose(add).await).await;
    }

    let addresses = [(); 3].map(|()| free_address());
    let members = addresses.join(",");
    let (backup, node) = (path("cluster.backup"), path("node-3"));
    let (copied, nightly) = (path("node-3.backup"), path("nightly.backup"));
    let member = former.members().get(id(1)).unwrap().address.clone();
    let new = [path("new-1"), path("new-2"), path("new-3")];
    let names = [
        ("node-3", node.as_str()),
        ("cluster.backup", backup.as_str()),
        ("node-3.backup", copied.as_str()),
        ("nightly.backup", nightly.as_str()),
        ("MEMBER:PORT", member.as_str()),
        ("new-1", new[0].as_str()),
        ("new-2", new[1].as_str()),
        ("new-3", new[2].as_str()),
        ("HOST-1:PORT,HOST-2:PORT,HOST-3:PORT", members.as_str()),
        ("HOST-1:PORT", addresses[0].as_str()),
    ];
    let commands = commands_of(PAGE, "backup", &names);
    assert_eq!(commands.len(), 4, "save, save the newest, copy, and verify");
    // Under load: the writes go on, and the backup has those that were acknowledged before the command.
    let (mut acknowledged, stop) = (210, AtomicBool::new(false));
    let saved = async {
        let saved = succeeds(commands[0].clone()).await;
        stop.store(true, Ordering::SeqCst);
        saved
    };
    let load = async {
        while !stop.load(Ordering::SeqCst) {
            acknowledged = former.propose(1).await.unwrap();
        }
    };
    let (said, ()) = tokio::join!(saved, load);
    assert!(said.contains("is a backup of cluster"), "{said}");
    assert!(acknowledged > 210, "no write was made during the backup");
    let (meta, _) = verify_snapshot_file(&backup).unwrap();
    assert_eq!(Some(meta.position), former.status().borrow().snapshot);
    assert_eq!(former.propose(5).await.unwrap(), acknowledged + 5, "it is not in the backup");
    for command in &commands[1..] {
        let said = succeeds(command.clone()).await;
        assert!(said.contains(&former.status().borrow().identity.unwrap().cluster_id.to_string()), "{said}");
    }
    let restore = commands_of(PAGE, "restore", &names).remove(0);
    let said = succeeds(restore.clone()).await;
    assert!(said.contains("is restored as the new cluster"), "{said}");
    let again = text(&cli_beside(restore).await);
    assert!(again.contains("is not empty"), "{again}");
    let altered = path("altered.backup");
    let mut bytes = fs::read(&backup).unwrap();
    let last = bytes.len() - 30;
    bytes[last] ^= 1;
    fs::write(&altered, bytes).unwrap();
    let refused = cli_beside(vec!["backup".to_owned(), "verify".to_owned(), altered]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));

    let mut nodes = Vec::new();
    for (address, directory) in addresses.iter().zip(&new) {
        let node = Node::restart(address, open(directory.as_ref()), Sum(0), Config::default());
        nodes.push(node.await.unwrap());
    }
    let restored = until_served(async || nodes[0].query(|sum| sum.0).await).await;
    assert!((210..=acknowledged).contains(&restored), "{restored}");
    assert_eq!(until_served(async || nodes[1].propose(7).await).await, restored + 7);
    assert_eq!(until_served(async || nodes[2].query(|sum| sum.0).await).await, restored + 7);
    let shown = succeeds(commands_of(PAGE, "cluster", &names).remove(0)).await;
    assert!(addresses.iter().all(|address| shown.contains(address)), "{shown}");

    // A node of the former cluster that is given an address of the new one.
    let former_address = member;
    former.quit().await;
    let storage = open(&place.path().join("node-3"));
    let joined =
        Node::join([addresses[0].as_str()], former_address, storage, Sum(0), Config::default()).await;
    let refused = joined.err().unwrap();
    assert!(matches!(refused, NodeStartError::AlreadyInCluster { .. }), "{refused}");
    for node in nodes {
        node.quit().await;
    }
}
