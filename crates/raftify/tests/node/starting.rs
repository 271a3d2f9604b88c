//! Begin, join, restart: on empty directories, on matching ones, and on those of others.

use std::time::Duration;

use raftify::error::{
    BeginError, BootstrapError, JoinClusterError, MembershipRefusal, NodeStartError, RunError,
};
use raftify::membership::{MemberChange, MemberRole, MembershipChange};
use raftify::start::{JoinOptions, Start};
use raftify::{ClusterJoinTicket, Member};
use tokio::task::JoinHandle;

use crate::harness::*;

fn join_through(node: &TestNode) -> Start {
    Start::Join([node.address.clone()].into())
}

/// A cluster of one node that was begun with one call.
async fn begun() -> TestNode {
    let mut node = TestNode::new(1);
    node.start_as(Start::Begin).await.unwrap();
    put(node.raft(), "key", "value").await;
    node
}

fn cluster_id(node: &TestNode) -> raftify::status::ClusterId {
    node.raft().status().borrow().identity.unwrap().cluster_id
}

fn role(node: &TestNode, of: &TestNode) -> Option<MemberRole> {
    node.raft().members().get(of.id).map(|member| member.role)
}

/// A node that died after its identity was durable, and before it was admitted.
async fn died_while_joining(member: &TestNode) -> TestNode {
    let ticket = ticket(&free_address(), member).await;
    let nowhere = free_address();
    let to_nowhere =
        ClusterJoinTicket { peer_addr: nowhere.clone(), leader_addr: nowhere, peers: Vec::new(), ..ticket };
    let mut node = TestNode::of(&to_nowhere);
    let raft = node.start();
    let error = raft.join_cluster(vec![to_nowhere]).await.unwrap_err();
    assert!(matches!(error, JoinClusterError::Unreachable(_)), "{error}");
    node.kill().await;
    node
}

#[tokio::test]
async fn nothing_begins_by_itself() {
    let mut node = TestNode::new(1);
    let raft = node.bootstrap().unwrap();
    node.run(raft.clone());
    let inspection = within("an answer", raft.inspect()).await.unwrap();
    assert_eq!((inspection.status.identity, inspection.status.members.len()), (None, 0));
    node.stop().await;
}

#[tokio::test]
async fn begin_on_an_empty_directory_begins_a_cluster_and_says_so() {
    let (logged, _log) = Logged::from_now_on();
    let node = begun().await;
    assert_eq!((node.id, node.raft().cluster_size()), (id(1), 1));
    let lines = logged.text().lines().filter(|line| line.contains("begins a new cluster")).count();
    assert_eq!(lines, 1, "{}", logged.text());
    // No other node can begin the same cluster.
    assert_ne!(cluster_id(&node), cluster_id(&begun().await));
}

#[tokio::test]
async fn begin_and_restart_continue_the_directory_of_a_member_and_say_which_node_that_is() {
    let mut node = begun().await;
    let cluster_id = cluster_id(&node);
    for start in [Start::Begin, Start::Restart, Start::BeginWith(vec![Member::voter(id(1), &node.address)])] {
        node.kill().await;
        let (logged, _log) = Logged::from_now_on();
        node.start_as(start).await.unwrap();
        assert_eq!(node.get("key").await.as_deref(), Some("value"));
        assert_eq!(self::cluster_id(&node), cluster_id);
        let line = format!("continues as node 1 of cluster {cluster_id}, in term ");
        assert_eq!(logged.text().matches(&line).count(), 1, "{}", logged.text());
    }
}

#[tokio::test]
async fn restart_on_an_empty_directory_is_refused_and_the_other_words_are_named() {
    let error = TestNode::new(1).start_as(Start::Restart).await.unwrap_err();
    assert!(matches!(error, NodeStartError::NothingToRestart), "{error}");
    let text = error.to_string();
    assert!(text.contains("Raft::begin") && text.contains("Raft::join"), "{text}");
}

#[tokio::test]
async fn the_directory_of_a_joining_node_neither_begins_nor_restarts() {
    let member = begun().await;
    let mut node = died_while_joining(&member).await;
    let listed = vec![Member::voter(node.id, &node.address)];
    for start in [Start::Begin, Start::BeginWith(listed), Start::Restart] {
        let error = node.start_as(start).await.unwrap_err();
        assert!(matches!(error, NodeStartError::StillJoining { .. }), "{error}");
    }
}

#[tokio::test]
async fn run_of_a_started_node_waits_for_its_end_and_a_second_one_is_refused() {
    let mut node = begun().await;
    let raft = node.raft().clone();
    assert!(matches!(raft.run().await, Err(RunError::AlreadyRunning)));
    node.stop().await;
}

#[tokio::test]
async fn a_started_node_ends_with_its_last_handle() {
    let mut node = TestNode::new(1);
    let storage = node.disk.held(node.disk.memory());
    let raft = TestRaft::begin(&node.address, storage, node.store(), node.config.clone()).await.unwrap();
    raft.wait_for_leader().await.unwrap();
    drop(raft);
    node.disk.released().await;
    node.start_as(Start::Restart).await.unwrap();
}

#[tokio::test]
async fn join_on_an_empty_directory_votes_when_it_returns_and_continues_with_the_same_words() {
    let member = begun().await;
    let mut node = TestNode::new(1);
    within("the node to join", node.start_as(join_through(&member))).await.unwrap();
    assert_eq!((node.id, role(&node, &node)), (id(2), Some(MemberRole::Voter)));
    assert_eq!(node.get("key").await.as_deref(), Some("value"));
    node.kill().await;
    within("the node to continue", node.start_as(join_through(&member))).await.unwrap();
    assert_eq!((node.id, node.raft().cluster_size()), (id(2), 2));
}

#[tokio::test]
async fn a_joiner_that_died_continues_under_its_identity() {
    let member = begun().await;
    let mut node = died_while_joining(&member).await;
    let own = node.id;
    within("the node to join", node.start_as(join_through(&member))).await.unwrap();
    assert_eq!((node.id, role(&node, &node)), (own, Some(MemberRole::Voter)));
    assert_eq!(node.raft().members().next_node_id(), id(own.get() + 1), "it has asked for another id");
}

#[tokio::test]
async fn a_joiner_whose_id_was_removed_meanwhile_is_told_to_use_an_empty_directory() {
    let member = begun().await;
    let mut node = died_while_joining(&member).await;
    let added = Member::learner(node.id, &node.address);
    for change in [MemberChange::Add(added), MemberChange::Remove(node.id)] {
        member.raft().change_config(MembershipChange::one(change)).await.unwrap();
    }
    let error = within("an answer", node.start_as(join_through(&member))).await.unwrap_err();
    let refusal = MembershipRefusal::IdWasRemoved { id: node.id };
    assert!(matches!(&error, NodeStartError::DirectoryUnusable(found) if *found == refusal), "{error}");
}

#[tokio::test]
async fn a_node_that_began_a_cluster_does_not_join_another_one() {
    let member = begun().await;
    let mut node = begun().await;
    let own = cluster_id(&node);
    node.kill().await;
    let error = node.start_as(join_through(&member)).await.unwrap_err();
    let other = cluster_id(&member);
    let is_it = |error: &NodeStartError| {
        matches!(error, NodeStartError::AlreadyInCluster { own: found, other: peers, .. }
            if (*found, *peers) == (own, other))
    };
    assert!(is_it(&error), "{error}");
    assert!(error.to_string().contains("empty data directory"), "{error}");
    // Nothing was changed.
    node.start_as(Start::Restart).await.unwrap();
    assert_eq!(node.get("key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_member_that_is_told_to_join_its_own_cluster_continues_also_if_no_peer_answers() {
    let member = begun().await;
    let mut node = TestNode::new(1);
    within("the node to join", node.start_as(join_through(&member))).await.unwrap();
    node.stop().await;
    let nobody = Start::Join([free_address()].into());
    node.start_as(nobody).await.unwrap();
    assert_eq!(node.get("key").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn peers_of_two_clusters_are_refused() {
    let (first, second) = (begun().await, begun().await);
    let peers = [first.address.clone(), second.address.clone()];
    let error = TestNode::new(1).start_as(Start::Join(peers.into())).await.unwrap_err();
    assert!(matches!(error, NodeStartError::TwoClusters { .. }), "{error}");
    for text in [&first.address, &second.address, &cluster_id(&first).to_string()] {
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_node_that_is_to_join_itself_is_told_to_name_a_peer() {
    let mut node = TestNode::new(1);
    let own = node.address.clone();
    let error = node.start_as(Start::Join([own].into())).await.unwrap_err();
    assert!(matches!(error, NodeStartError::NoPeers { .. }), "{error}");
}

#[tokio::test]
async fn a_joiner_that_starts_before_its_seed_waits_with_one_line() {
    let mut seed = TestNode::new(1);
    let (logged, _log) = Logged::from_now_on();
    let start = join_through(&seed);
    let joining: JoinHandle<TestNode> = tokio::spawn(async move {
        let mut node = TestNode::new(1);
        node.start_as(start).await.unwrap();
        node
    });
    let line = format!("waiting for {} to be up", seed.address);
    until("it says that it waits", async || logged.text().contains(&line)).await;
    seed.start_as(Start::Begin).await.unwrap();
    let node = within("the node to join", joining).await.unwrap();
    assert_eq!(node.raft().cluster_size(), 2);
    assert_eq!(logged.text().matches(&line).count(), 1);
}

#[tokio::test]
async fn a_joiner_whose_seed_does_not_come_gives_up_when_it_was_told_to() {
    let nowhere = free_address();
    let wait_for_peers = Some(Duration::from_millis(300));
    let joining = JoinOptions { wait_for_peers, ..JoinOptions::new([&nowhere]) };
    let error = TestNode::new(1).start_as(Start::Join(joining)).await.unwrap_err();
    let names_it = |error: &NodeStartError| matches!(error, NodeStartError::NoCluster { reason, .. } if reason.contains(&nowhere));
    assert!(names_it(&error), "{error}");
}

#[tokio::test]
async fn a_learner_stays_one_over_its_own_join_cluster_and_restarts() {
    let member = begun().await;
    let ticket = ticket(&free_address(), &member).await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    let as_learner = ticket.clone().as_learner();
    within("the learner to join", raft.join_cluster(vec![as_learner])).await.unwrap();
    // A ticket for a voter does not make it a voter.
    within("the answer", raft.join_cluster(vec![ticket])).await.unwrap();
    assert_eq!(role(&node, &node), Some(MemberRole::Learner));
    node.kill().await;
    within("the learner to continue", node.start_as(join_through(&member))).await.unwrap();
    assert_eq!(node.get("key").await.as_deref(), Some("value"));
    assert_eq!(role(&node, &node), Some(MemberRole::Learner));
}

#[tokio::test]
async fn a_learner_joins_with_one_call() {
    let member = begun().await;
    let mut node = TestNode::new(1);
    let joining = JoinOptions::new([&member.address]).as_learner();
    within("the learner to join", node.start_as(Start::Join(joining))).await.unwrap();
    assert_eq!(role(&node, &node), Some(MemberRole::Learner));
}

/// All are started at once, as each waits for the others.
async fn begin_together(lists: Vec<(TestNode, Vec<Member>)>) -> Vec<(TestNode, Option<NodeStartError>)> {
    let starting = lists.into_iter().map(|(mut node, list)| {
        tokio::spawn(async move {
            let error = node.start_as(Start::BeginWith(list)).await.err();
            (node, error)
        })
    });
    let mut started = Vec::new();
    for node in starting.collect::<Vec<_>>() {
        started.push(within("the node to start", node).await.unwrap());
    }
    started
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_the_same_list_begin_one_cluster() {
    let (nodes, members) = static_nodes(3);
    let lists = nodes.into_iter().map(|node| (node, members.clone())).collect();
    let mut nodes = Vec::new();
    for (node, error) in begin_together(lists).await {
        assert!(error.is_none(), "{error:?}");
        nodes.push(node);
    }
    agreed_leader(&nodes).await;
    put(nodes[0].raft(), "key", "value").await;
    assert_eq!(nodes[2].get("key").await.as_deref(), Some("value"));
}

/// The list of one node says that it alone votes, the lists of the others that all do: without the check,
/// there would be two leaders.
#[tokio::test(flavor = "multi_thread")]
async fn static_lists_that_differ_in_a_role_only_are_refused_with_the_difference_and_none_leads() {
    let (nodes, members) = static_nodes(3);
    let mut only_one_votes = members.clone();
    only_one_votes[1].role = MemberRole::Learner;
    only_one_votes[2].role = MemberRole::Learner;
    let mut lists: Vec<_> = nodes.into_iter().map(|node| (node, members.clone())).collect();
    lists[0].1 = only_one_votes;
    for (node, error) in begin_together(lists).await {
        let Some(NodeStartError::Begin(BeginError::ConflictingMembers { differences, .. })) = error else {
            // The others ended first, and no majority remains with which to begin.
            panic!("node {}: {error:?}", node.id)
        };
        assert!(differences.contains("a learner at"), "{differences}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_corrected_in_time_begins_after_all() {
    let (mut nodes, members) = static_nodes(3);
    let mut wrong = members.clone();
    wrong[2].role = MemberRole::Learner;
    start_static(&mut nodes[0], &members).await;
    start_static(&mut nodes[1], &members).await;
    start_static(&mut nodes[2], &wrong).await;
    nodes[2].stop().await;
    start_static(&mut nodes[2], &members).await;
    agreed_leader(&nodes).await;
}

#[tokio::test]
async fn a_list_without_this_node_is_refused() {
    let mut node = TestNode::new(1);
    let listed = free_address();
    let list = vec![Member::voter(id(1), &listed)];
    let error = node.start_as(Start::BeginWith(list)).await.unwrap_err();
    assert!(matches!(error, NodeStartError::NotListed { .. }), "{error}");
    assert!(error.to_string().contains(&listed) && error.to_string().contains(&node.address), "{error}");
}

#[tokio::test]
async fn a_list_that_has_one_address_under_two_names_is_refused() {
    let mut node = TestNode::new(1);
    let again = node.address.replace("127.0.0.1", "localhost");
    let list = vec![Member::voter(id(1), &node.address), Member::voter(id(2), again)];
    let error = within("an answer", node.start_as(Start::BeginWith(list))).await.unwrap_err();
    assert!(matches!(error, NodeStartError::Begin(BeginError::SameAddress { .. })), "{error}");
}

#[tokio::test]
async fn the_directory_of_another_cluster_does_not_begin_with_a_list() {
    let mut node = begun().await;
    node.kill().await;
    let list = vec![Member::voter(id(1), &node.address), Member::voter(id(2), free_address())];
    let error = node.start_as(Start::BeginWith(list)).await.unwrap_err();
    assert!(matches!(error, NodeStartError::OtherList { .. }), "{error}");
    node.start_as(Start::Begin).await.unwrap();
}

#[tokio::test]
async fn an_address_of_all_interfaces_is_refused_and_the_way_out_is_named() {
    for address in ["0.0.0.0:60061", "[::]:60061"] {
        for start in [Start::Begin, Start::Restart, Start::Join([free_address()].into())] {
            let error = TestNode::at(1, address).start_as(start).await.unwrap_err();
            assert!(matches!(error, NodeStartError::Bootstrap(BootstrapError::Address(_))), "{error}");
            assert!(error.to_string().contains("listen_addr"), "{error}");
        }
    }
}

/// No voter can connect to the node, so it cannot be promoted; meanwhile the cluster continues to work.
#[tokio::test]
async fn a_joiner_that_makes_no_progress_gives_up_after_its_time_and_says_what_is_missing() {
    let member = begun().await;
    let mut node = TestNode::new(1);
    node.config.joiner_timeout = Duration::from_secs(1);
    // The node listens on another address than it advertises.
    let listening = free_address();
    let options = raftify::start::BootstrapOptions { listen_addr: Some(listening), ..Default::default() };
    let storage = node.disk.held(node.disk.memory());
    let (address, config) = (node.address.clone(), node.config.clone());
    let start = TestRaft::start(join_through(&member), address, storage, node.store(), config, options);
    let error = within("an answer", start).await.unwrap_err();
    assert!(matches!(error, NodeStartError::Join(JoinClusterError::NoProgress { .. })), "{error}");
    put(member.raft(), "key", "still in service").await;
    node.disk.released().await;
}

#[tokio::test]
async fn a_start_that_is_dropped_half_way_stops_the_node() {
    let member = begun().await;
    let mut node = died_while_joining(&member).await;
    let (logged, _log) = Logged::from_now_on();
    let waits = until("it waits for its peer", async || logged.text().contains("waiting to be admitted to"));
    tokio::select! {
        started = node.start_as(Start::Join([free_address()].into())) => panic!("{:?}", started.err()),
        () = waits => {}
    }
    node.disk.released().await;
}
