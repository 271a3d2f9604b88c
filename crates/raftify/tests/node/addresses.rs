//! Nodes whose addresses change, or are unreachable.

use std::time::Duration;

use raftify::membership::MemberRole;
use raftify::start::BootstrapOptions;
use raftify::{Config, Raft};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::harness::*;

/// The address of each member, as `node` knows it.
fn recorded(node: &TestNode) -> Vec<String> {
    node.raft().status().borrow().members.iter().map(|member| member.address.clone()).collect()
}

/// Waits until every node is recorded at its address, on all nodes.
async fn all_recorded(nodes: &[TestNode]) {
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    until("all nodes have all addresses", async || nodes.iter().all(|node| recorded(node) == addresses))
        .await;
}

/// Waits until all members are known by their data directories, on all nodes.
async fn all_identified(nodes: &[TestNode]) {
    let knows_all = |node: &TestNode| {
        node.raft().status().borrow().members.iter().all(|member| member.incarnation.is_some())
    };
    until("all members are identified", async || nodes.iter().all(knows_all)).await;
}

/// Stops the node, and starts it at an address that the others do not know.
async fn move_node(node: &mut TestNode) {
    node.stop().await;
    node.address = free_address();
    node.start();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_is_started_at_another_address_is_recorded_there_and_serves() {
    let mut nodes = static_cluster(3).await;
    all_identified(&nodes).await;
    let leader = agreed_leader(&nodes).await;
    for place in [(leader + 1) % 3, leader] {
        move_node(&mut nodes[place]).await;
        all_recorded(&nodes).await;
        agreed_leader(&nodes).await;
        put(nodes[(place + 1) % 3].raft(), "key", place).await;
        assert_eq!(nodes[place].get("key").await, Some(place.to_string()));
    }
}

#[tokio::test]
async fn a_single_voter_that_is_started_at_another_address_records_that_itself_and_says_so() {
    let mut nodes = static_cluster(1).await;
    let before = nodes[0].address.clone();
    all_identified(&nodes).await;
    let (logged, _log) = Logged::from_now_on();
    move_node(&mut nodes[0]).await;
    all_recorded(&nodes).await;
    let line = format!("moved from {before} to {}", nodes[0].address);
    assert!(logged.text().contains(&line), "{}", logged.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_is_started_at_another_address_is_recorded_there_and_follows() {
    let (mut nodes, mut members) = static_nodes(3);
    members[2].role = MemberRole::Learner;
    for node in &mut nodes {
        start_static(node, &members).await;
    }
    agreed_leader(&nodes).await;
    all_identified(&nodes).await;
    move_node(&mut nodes[2]).await;
    all_recorded(&nodes).await;
    put(nodes[0].raft(), "key", "value").await;
    assert_eq!(nodes[2].get("key").await.as_deref(), Some("value"));
    let role = nodes[0].raft().status().borrow().members.get(nodes[2].id).map(|member| member.role);
    assert_eq!(role, Some(MemberRole::Learner));
}

/// All nodes restart at new addresses and look for each other at `places` of these.
async fn all_move(nodes: &mut [TestNode], places: impl Fn(&[String]) -> Vec<String>) {
    for node in nodes.iter_mut() {
        node.stop().await;
        node.address = free_address();
    }
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    for node in nodes.iter_mut() {
        node.discover = places(&addresses);
        node.start();
    }
    all_recorded(nodes).await;
    agreed_leader(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_all_come_back_at_new_addresses_find_each_other_and_record_them() {
    let mut nodes = static_cluster(3).await;
    all_identified(&nodes).await;
    put(nodes[0].raft(), "key", "value").await;
    // A node of another cluster, and an unresolvable name, cause no problem.
    let other = static_cluster(1).await;
    let by_name = |addresses: &[String]| {
        let named = addresses.iter().map(|address| address.replace("127.0.0.1", "localhost"));
        named.chain([other[0].address.clone(), "no-such-host.invalid:1".to_owned()]).collect()
    };
    all_move(&mut nodes, by_name).await;
    assert_eq!(nodes[1].get("key").await.as_deref(), Some("value"));
    // One known address is enough: the others learn the rest from that node.
    all_move(&mut nodes, |addresses| vec![addresses[0].clone()]).await;
    assert_eq!(nodes[2].get("key").await.as_deref(), Some("value"));
}

/// Lets nodes that connect to `address` reach `behind`.
async fn open_way(address: &str, behind: &str) -> JoinHandle<()> {
    let (listener, behind) = (TcpListener::bind(address).await.unwrap(), behind.to_owned());
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            let behind = behind.clone();
            tokio::spawn(async move {
                if let Ok(mut inside) = TcpStream::connect(&behind).await {
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_cannot_be_reached_costs_nothing_and_votes_once_it_is() {
    let nodes = joined_cluster(1).await;
    let (advertised, listening) = (free_address(), free_address());
    let ticket = ticket(&advertised, &nodes[0]).await;
    let mut joiner = TestNode::of(&ticket);
    let options = BootstrapOptions { listen_addr: Some(listening.clone()), ..BootstrapOptions::default() };
    let config = Config { joiner_timeout: Duration::from_secs(1), ..Config::default() };
    let storage = joiner.disk.held(joiner.disk.memory());
    let raft =
        Raft::bootstrap_with(joiner.id, &joiner.address, storage, joiner.store(), config, options).unwrap();
    let raft = joiner.run(raft);
    let role = || nodes[0].raft().status().borrow().members.get(joiner.id).map(|member| member.role);
    let entering = tokio::spawn(async move { raft.join_cluster(vec![ticket]).await });
    until("the joiner is added", async || role().is_some()).await;
    // Far more than an election timeout passes without an answer of the node.
    let _ = within("the joiner to give up waiting", entering).await.unwrap();
    for key in 0..20 {
        within("a write", nodes[0].raft().propose(set(key, "value"))).await.unwrap();
    }
    assert_eq!(role(), Some(MemberRole::Joining));
    let _way = open_way(&advertised, &listening).await;
    until("the joiner votes", async || role() == Some(MemberRole::Voter)).await;
    assert_eq!(joiner.get("7").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_node_that_cannot_resolve_where_to_look_stops_all_the_same() {
    let mut nodes = static_cluster(3).await;
    for node in &mut nodes {
        node.stop().await;
    }
    let (logged, _log) = Logged::from_now_on();
    nodes[0].discover = vec!["no-such-host.invalid:1".to_owned()];
    nodes[0].start();
    until("it has tried", async || logged.text().contains("cannot be resolved")).await;
    nodes[0].stop().await;
}

#[tokio::test]
async fn an_address_to_look_at_that_is_none_is_refused() {
    let mut node = TestNode::new(1);
    node.discover = vec!["no port".to_owned()];
    let error = node.bootstrap().err().unwrap();
    assert!(error.to_string().contains("no port"), "{error}");
}
