//! `bootstrap_expect`: fresh nodes find each other, and begin exactly one cluster.

use std::time::Duration;

use futures_util::future::join_all;
use raftify::Member;
use raftify::error::NodeStartError;
use raftify::membership::{MemberRole, Members};
use raftify::start::{Expect, JoinOptions, Start};
use raftify::status::{ClusterId, Identity, Incarnation};
use raftify::storage::{StableStorage, Write};

use crate::harness::*;

fn expecting(count: usize, nodes: &[&TestNode]) -> Start {
    let peers = nodes.iter().map(|node| node.address.clone()).collect();
    Start::Expect(Expect { count, peers, wait_for_peers: None })
}

fn fresh_nodes(count: u64) -> Vec<TestNode> {
    (1..=count).map(TestNode::new).collect()
}

fn cluster_id(node: &TestNode) -> ClusterId {
    node.raft().status().borrow().identity.unwrap().cluster_id
}

fn voters(node: &TestNode) -> usize {
    node.raft().members().iter().filter(|member| member.role == MemberRole::Voter).count()
}

/// Starts all of them at once, each with the same arguments.
async fn start_all(nodes: &mut [TestNode], start: &Start) {
    join_all(nodes.iter_mut().map(async |node| drop(node.start_as(start.clone()).await.unwrap()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_nodes_that_expect_each_other_begin_one_cluster() {
    let mut nodes = fresh_nodes(3);
    let start = expecting(3, &nodes.iter().collect::<Vec<_>>());
    within("a cluster", start_all(&mut nodes, &start)).await;
    let ids: Vec<ClusterId> = nodes.iter().map(cluster_id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    until("all are voters", async || nodes.iter().all(|node| voters(node) == 3)).await;
    put(nodes[0].raft(), "key", "value").await;
    assert_eq!(nodes[2].get("key").await.as_deref(), Some("value"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_ended_while_it_waits_for_the_others_begins_with_them_later() {
    let mut nodes = fresh_nodes(3);
    let start = expecting(3, &nodes.iter().collect::<Vec<_>>());
    let (logged, _log) = Logged::from_now_on();
    // Two wait for the third without success, and are ended.
    for node in &mut nodes[..2] {
        let waits = node.start_as(start.clone());
        let said = until("it says that it waits", async || logged.text().contains("waiting for 3 nodes"));
        tokio::select! {
            _ = waits => panic!("it began without the others"),
            () = said => {}
        }
    }
    within("a cluster", start_all(&mut nodes, &start)).await;
    until("all are voters", async || nodes.iter().all(|node| voters(node) == 3)).await;
    let first = cluster_id(&nodes[0]);
    assert!(nodes.iter().all(|node| cluster_id(node) == first));

    // Restarted with the same arguments, each continues.
    for node in &mut nodes {
        node.kill().await;
    }
    within("the cluster again", start_all(&mut nodes, &start)).await;
    assert!(nodes.iter().all(|node| cluster_id(node) == first));
    put(nodes[1].raft(), "key", "value").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_ended_after_it_pledged_itself_begins_the_cluster_that_it_pledged_itself_to() {
    let mut nodes = fresh_nodes(2);
    let first =
        [Member::voter(id(1), nodes[0].address.clone()), Member::voter(id(2), nodes[1].address.clone())];
    let mut sorted = first.to_vec();
    sorted.sort_by(|a, b| a.address.cmp(&b.address));
    let members = Members::initial(
        sorted.iter().zip(1..).map(|(member, number)| Member { id: id(number), ..member.clone() }),
    );
    let pledged = members.unwrap().derive_cluster_id();
    let own = sorted.iter().position(|member| member.address == nodes[0].address).unwrap() as u64 + 1;
    let identity = Identity { cluster_id: pledged, node_id: id(own), incarnation: Incarnation(7) };
    let pledge = Write { identity: Some(identity), ..Write::default() };
    nodes[0].disk.memory().write(&[pledge]).unwrap();
    let start = expecting(2, &nodes.iter().collect::<Vec<_>>());
    within("a cluster", start_all(&mut nodes, &start)).await;
    assert!(nodes.iter().all(|node| cluster_id(node) == pledged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_node_that_meets_a_cluster_joins_it() {
    let mut nodes = fresh_nodes(4);
    nodes.sort_by(|a, b| a.address.cmp(&b.address));
    let start = expecting(3, &nodes.iter().collect::<Vec<_>>());
    within("a cluster", start_all(&mut nodes[..3], &start)).await;
    within("the fourth", nodes[3].start_as(start)).await.unwrap();
    assert_eq!(cluster_id(&nodes[3]), cluster_id(&nodes[0]));
    until("all four vote", async || nodes.iter().all(|node| voters(node) == 4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_longer_list_the_same_nodes_begin_whichever_come_first() {
    let mut nodes = fresh_nodes(3);
    nodes.sort_by(|a, b| a.address.cmp(&b.address));
    let start = expecting(2, &nodes.iter().collect::<Vec<_>>());
    let (first, last) = nodes.split_at_mut(2);
    let [a, b] = first else { unreachable!("two of three") };
    // The third one is running first, and begins with neither of them.
    within("a cluster", async {
        let (a, b, c) = tokio::join!(
            last[0].start_as(start.clone()),
            a.start_as(start.clone()),
            b.start_as(start.clone())
        );
        [a, b, c].into_iter().for_each(|started| drop(started.unwrap()));
    })
    .await;
    let cluster = cluster_id(&nodes[0]);
    assert!(nodes.iter().all(|node| cluster_id(node) == cluster));
    until("all three vote", async || nodes.iter().all(|node| voters(node) == 3)).await;
}

#[tokio::test]
async fn a_number_that_does_not_fit_the_list_is_refused() {
    for count in [0, 1, 3] {
        let mut nodes = fresh_nodes(2);
        let start = expecting(count, &nodes.iter().collect::<Vec<_>>());
        let refused = nodes[0].start_as(start).await.unwrap_err();
        assert!(matches!(refused, NodeStartError::BadExpect { listed: 2, .. }), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_expect_different_numbers_do_not_begin() {
    let mut nodes = fresh_nodes(3);
    let all: Vec<&TestNode> = nodes.iter().collect();
    let (two, three) = (expecting(2, &all), expecting(3, &all));
    let (first, rest) = nodes.split_at_mut(1);
    let (a, b) =
        within("both give up", async { tokio::join!(first[0].start_as(two), rest[0].start_as(three)) }).await;
    for refused in [a.unwrap_err(), b.unwrap_err()] {
        assert!(matches!(refused, NodeStartError::ExpectDiffers { .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_node_that_finds_too_few_others_gives_up_when_it_was_told_to() {
    let mut nodes = fresh_nodes(3);
    let peers = nodes.iter().map(|node| node.address.clone()).collect();
    let wait_for_peers = Some(Duration::from_millis(200));
    let start = Start::Expect(Expect { count: 3, peers, wait_for_peers });
    let refused = within("an answer", nodes[0].start_as(start)).await.unwrap_err();
    assert!(matches!(refused, NodeStartError::NoCluster { .. }), "{refused}");
    // The port is free again.
    let joining = JoinOptions { wait_for_peers, ..[nodes[1].address.clone()].into() };
    let refused = within("an answer", nodes[0].start_as(Start::Join(joining))).await.unwrap_err();
    assert!(matches!(refused, NodeStartError::NoCluster { .. }), "{refused}");
}
