//! Several nodes: elections, forwarding, crashes.

use std::cell::Cell;
use std::time::Duration;

use raftify::Config;
use raftify::client::ClientError;
use raftify::error::{BeginError, DemoteError, ProposeError, ReadError, RunError, TransferError};
use raftify::membership::{MemberChange, MembershipChange};
use raftify::status::Term;

use crate::harness::*;

on_both_storages! {
    the_cluster_survives_its_leader_and_all_find_everything_after_a_restart
}

#[tokio::test]
async fn three_static_nodes_apply_what_any_of_them_proposes() {
    let mut nodes = static_cluster(3).await;
    for (place, node) in nodes.iter().enumerate() {
        put(node.raft(), place, "value").await;
    }
    for node in &nodes {
        for key in ["0", "1", "2"] {
            assert_eq!(node.get(key).await, Some("value".to_owned()));
        }
        assert_eq!(node.raft().cluster_size(), 3);
    }
    for node in &mut nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn the_server_tells_where_it_listens_and_what_it_has_received() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let server = nodes[leader].raft().raft_server().clone();
    assert_eq!(server.address(), nodes[leader].address);
    assert_eq!(server.listen_address().to_string(), nodes[leader].address);
    // A node's own proposals do not pass through its server.
    put(nodes[leader].raft(), "key", "own").await;
    assert_eq!(server.requests().proposals, 0);
    until("a proposal is forwarded", async || {
        for node in &nodes {
            put(node.raft(), "key", "forwarded").await;
        }
        nodes.iter().any(|node| node.raft().raft_server().requests().proposals > 0)
    })
    .await;
    let streams = nodes.iter().map(|node| node.raft().raft_server().requests().request_streams);
    assert!(streams.sum::<u64>() > 0, "a follower forwards over a stream");
    assert!(server.requests().message_batches > 0 && server.requests().identifications > 0);
    let max = raftify::RaftServer::connections_max();
    assert!((1..=max).contains(&server.open_connections()), "{}", server.open_connections());
    assert_eq!(nodes[leader].raft().raft_node().id(), nodes[leader].id);
    for node in &mut nodes {
        node.stop().await;
    }
    until("all connections are closed", async || server.open_connections() == 0).await;
}

#[tokio::test]
async fn a_follower_returns_the_reply_of_the_leaders_state_machine() {
    let nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let follower = nodes[(leader + 1) % 3].raft();
    put(follower, "key", "old").await;
    let mut reply = None;
    until("it is accepted", async || {
        reply = follower.propose(set("key", "new")).await.ok();
        reply.is_some()
    })
    .await;
    assert_eq!(reply, Some(Some("old".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_entries_are_replicated_from_a_follower_and_from_a_client() {
    let (mut nodes, members) = static_nodes_on(DiskKind::Wal, 3);
    let mut addresses = Vec::new();
    for node in &mut nodes {
        // So much data is copied and checked here, unoptimised, that other threads may be delayed.
        let (election_timeout, propose_timeout) = (Duration::from_secs(5), Duration::from_secs(50));
        let config = Config { election_timeout, propose_timeout, ..Config::default() };
        node.config = Config { entry_bytes_max: 64 << 20, disk_stall_timeout: propose_timeout, ..config };
        addresses.push(node.address.clone());
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    let follower = nodes[(leader + 1) % 3].raft();
    let proposed = follower.propose(set("key", "x".repeat((60 << 20) + 1)));
    assert_eq!(within("a large entry", proposed).await.unwrap(), None);
    let client = raftify::RaftClient::<Change, Store>::new(addresses).unwrap();
    let client = client.with_deadline(Duration::from_secs(50));
    let replied = within("a large entry", client.propose(&set("key", "x".repeat(60 << 20)))).await;
    assert_eq!(replied.unwrap().map(|value| value.len()), Some((60 << 20) + 1));
    for node in &nodes {
        assert_eq!(node.get("key").await.map(|value| value.len()), Some(60 << 20));
    }
}

#[tokio::test]
async fn a_query_on_any_node_sees_what_was_acknowledged_to_another() {
    let nodes = static_cluster(3).await;
    for round in 0..20 {
        let (writer, reader) = (round % 3, (round + 1) % 3);
        put(nodes[writer].raft(), "key", round).await;
        assert_eq!(nodes[reader].get("key").await, Some(round.to_string()));
    }
}

async fn the_cluster_survives_its_leader_and_all_find_everything_after_a_restart(kind: DiskKind) {
    let mut nodes = static_cluster_on(kind, 3).await;
    let mut acknowledged = 0;
    for _ in 0..3 {
        let leader = agreed_leader(&nodes).await;
        put(nodes[leader].raft(), acknowledged, acknowledged).await;
        acknowledged += 1;
        nodes[leader].kill().await;
        let leader_now = agreed_leader(&nodes).await;
        put(nodes[leader_now].raft(), acknowledged, acknowledged).await;
        acknowledged += 1;
        nodes[leader].start();
    }
    for node in &mut nodes {
        node.kill().await;
    }
    for node in &mut nodes {
        node.start();
    }
    for node in &nodes {
        for key in 0..acknowledged {
            assert_eq!(node.get(&key.to_string()).await, Some(key.to_string()));
        }
    }
}

#[tokio::test]
async fn without_a_majority_proposals_are_refused_and_nothing_is_written() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    put(nodes[leader].raft(), "key", "value").await;
    let survivor = (leader + 1) % 3;
    for place in [leader, (leader + 2) % 3] {
        nodes[place].kill().await;
    }
    let mut status = nodes[survivor].raft().status();
    within("the leader to be missed", status.wait_for(|status| status.leader_id.is_none())).await.unwrap();
    let raft = nodes[survivor].raft().without_waiting();
    assert_eq!(raft.propose(set("key", "lost")).await, Err(ProposeError::NoLeader));
    assert_eq!(raft.query(|store| store.map.len()).await, Err(ReadError::NoLeader));
    nodes[leader].start();
    assert_eq!(nodes[leader].get("key").await, Some("value".to_owned()));
}

#[tokio::test]
async fn leadership_is_handed_over_under_load_and_no_proposal_is_lost() {
    let nodes = static_cluster(3).await;
    let written = Cell::new(0);
    let all_handed_over = Cell::new(false);
    let write = async {
        while !all_handed_over.get() {
            put(nodes[0].raft(), written.get(), "value").await;
            written.set(written.get() + 1);
        }
    };
    let hand_over = async {
        for _ in 0..20 {
            let leader = agreed_leader(&nodes).await;
            let to = nodes[(leader + 1) % 3].id;
            match nodes[leader].raft().transfer_leader(to).await {
                Ok(new_leader) => assert_eq!(new_leader, to),
                Err(TransferError::Stopped(reason)) => panic!("{reason}"),
                Err(_) => {}
            }
            let before = written.get();
            until("more is written", async || written.get() > before + 5).await;
        }
        all_handed_over.set(true);
    };
    tokio::join!(write, hand_over);
    let mut found = None;
    until("a read is served", async || {
        found = nodes[1].raft().query(|store| store.map.len()).await.ok();
        found.is_some()
    })
    .await;
    assert_eq!(found, Some(written.get()));
}

#[tokio::test]
async fn leadership_is_only_handed_to_voters_that_are_there() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let raft = nodes[leader].raft().clone();
    assert_eq!(raft.transfer_leader(id(9)).await, Err(TransferError::NotAVoter { id: id(9) }));
    let down = (leader + 1) % 3;
    nodes[down].kill().await;
    let error = within("the transfer's outcome", raft.transfer_leader(nodes[down].id)).await.unwrap_err();
    let gone = nodes[down].id;
    assert!(
        matches!(error, TransferError::Unreachable { id } | TransferError::TimedOut { to: id } if id == gone),
        "{error:?}"
    );
    put(nodes[(leader + 2) % 3].raft(), "key", "value").await;
}

#[tokio::test]
async fn a_leader_steps_down_in_its_own_term_only() {
    let nodes = static_cluster(3).await;
    // On a busy machine, the successor may not take over in time, or another node may have.
    until("a leader steps down in favour of its successor", async || {
        let leader = agreed_leader(&nodes).await;
        let raft = nodes[leader].raft();
        let term = raft.status().borrow().term;
        let later = raft.demote(Term(term.get() + 1000), None).await;
        assert!(matches!(later, Err(DemoteError::NotLeaderInTerm { .. })), "{later:?}");
        let to = nodes[(leader + 1) % 3].id;
        raft.demote(term, Some(to)).await.is_ok() && raft.leader_id() == Some(to)
    })
    .await;
}

#[tokio::test]
async fn a_follower_that_campaigns_can_lead() {
    let mut nodes = static_cluster(1).await;
    assert!(nodes[0].raft().campaign().await.is_err(), "it leads already");
    nodes[0].stop().await;
}

#[tokio::test]
async fn a_node_whose_directory_was_wiped_is_refused_and_told_the_way_out() {
    let (mut nodes, members) = static_nodes(3);
    for node in &mut nodes {
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    put(nodes[leader].raft(), "key", "value").await;
    let known =
        |status: &raftify::status::Status| status.members.iter().all(|member| member.incarnation.is_some());
    for node in &nodes {
        within("all to be known", node.raft().status().wait_for(known)).await.unwrap();
    }
    let wiped = (leader + 1) % 3;
    nodes[wiped].kill().await;
    nodes[wiped].disk.wipe();
    start_static(&mut nodes[wiped], &members).await;
    let error = nodes[wiped].ended().await.unwrap_err();
    let RunError::Begin(BeginError::Wiped { id, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*id, nodes[wiped].id);
    assert!(error.to_string().contains("let it join (Raft::join) with an empty directory"), "{error}");
    put(nodes[leader].raft(), "key", "still in service").await;
}

#[tokio::test]
async fn of_two_nodes_with_one_id_the_second_is_refused() {
    let (mut nodes, members) = static_nodes(3);
    for node in &mut nodes {
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    let known =
        |status: &raftify::status::Status| status.members.iter().all(|member| member.incarnation.is_some());
    within("all to be known", nodes[leader].raft().status().wait_for(known)).await.unwrap();
    // The same id, at another address.
    let mut impostor = TestNode::new(nodes[(leader + 1) % 3].id.get());
    let mut elsewhere = members.clone();
    elsewhere[(leader + 1) % 3].address.clone_from(&impostor.address);
    // Its list differs, and so does its cluster's id: the others reject its messages unread.
    start_static(&mut impostor, &elsewhere).await;
    put(nodes[leader].raft(), "key", "value").await;
    let refused = impostor.raft().without_waiting().propose(set("key", "bad")).await.unwrap_err();
    assert!(refused.nothing_happened(), "{refused}");
    impostor.stop().await;
    for node in &nodes {
        assert_eq!(node.get("key").await, Some("value".to_owned()));
    }
}

#[tokio::test]
async fn a_remote_client_is_served_through_any_member() {
    let nodes = static_cluster(3).await;
    for node in &nodes {
        let client = raftify::RaftClient::<Change, Store>::new([node.address.clone()]).unwrap();
        let mut reply = None;
        until("the client is served", async || {
            reply = client.propose(&set(node.id, "value")).await.ok();
            reply.is_some()
        })
        .await;
        assert_eq!(reply, Some(None));
        assert_eq!(client.inspect().await.unwrap().status.node_id, node.id);
    }
    assert_eq!(nodes[0].get("3").await, Some("value".to_owned()));
    let addresses = nodes.iter().map(|node| node.address.clone());
    let client = raftify::RaftClient::<Change, Store>::new(addresses).unwrap();
    client.read_index().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_callers_of_one_client_are_answered_once_while_leadership_changes() {
    let nodes = static_cluster(3).await;
    agreed_leader(&nodes).await;
    let addresses = nodes.iter().map(|node| node.address.clone());
    let client = raftify::RaftClient::<Change, Store>::new(addresses).unwrap();
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    match client.propose(&set(format!("{caller} {round}"), round)).await {
                        Ok(before) => assert_eq!(before, None, "it is applied once"),
                        Err(ClientError::Answer(ProposeError::Unknown(_))) => {}
                        Err(error) => panic!("{error}"),
                    }
                    client.read_index().await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..3 {
        until("leadership is transferred", async || client.transfer_leader(None).await.is_ok()).await;
    }
    for caller in callers {
        within("all answers", caller).await.unwrap();
    }
    let streams = nodes.iter().map(|node| node.raft().raft_server().requests().request_streams);
    assert!(streams.sum::<u64>() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_streams_is_served_as_well() {
    let nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let client = raftify::RaftClient::<Change, Store>::new([nodes[leader].address.clone()]).unwrap();
    let client = client.with_unary_calls();
    until("it is served", async || client.propose(&set("key", "value")).await.is_ok()).await;
    client.read_index().await.unwrap();
    let requests = nodes[leader].raft().raft_server().requests();
    assert!(requests.proposals > 0 && requests.reads > 0);
    assert_eq!(nodes[leader].get("key").await, Some("value".to_owned()));
}

#[tokio::test]
async fn a_client_that_was_given_one_address_goes_on_after_every_member_was_replaced() {
    let mut nodes = static_cluster(3).await;
    let client = raftify::RaftClient::<Change, Store>::new([nodes[0].address.clone()]).unwrap();
    until("the client is served", async || client.propose(&set("key", 0)).await.is_ok()).await;
    for _ in 0..3 {
        let newcomer = join(&nodes[1]).await;
        let (raft, new, old) = (newcomer.raft().clone(), newcomer.id, nodes[0].id);
        nodes.push(newcomer);
        until("the new node is a voter", async || raft.status().borrow().members.is_voter(new)).await;
        until("the old node is removed", async || {
            // Its outcome shows in the membership.
            let _ = raft.change_config(MembershipChange::one(MemberChange::Remove(old))).await;
            raft.status().borrow().members.get(old).is_none()
        })
        .await;
        let _removed = nodes.remove(0).ended().await;
        until("the client is served", async || client.propose(&set("key", new)).await.is_ok()).await;
    }
    let members = client.members().await.unwrap();
    assert!(nodes.iter().all(|node| members.get(node.id).is_some()), "{members:?}");
    assert_eq!(nodes[0].get("key").await, Some(nodes[2].id.to_string()));
}

#[tokio::test]
async fn a_node_that_hangs_is_asked_once_and_then_last() {
    let nodes = static_cluster(3).await;
    // Accepts connections, and never answers.
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [hangs.local_addr().unwrap().to_string(), nodes[0].address.clone()];
    let client = raftify::RaftClient::<Change, Store>::new(addresses).unwrap();
    let brief = client.clone().with_deadline(Duration::from_millis(500));
    let error = brief.propose(&set("key", "value")).await.unwrap_err();
    assert!(matches!(error, ClientError::Answer(ProposeError::Unknown(_))), "{error:?}");
    let patient = client.with_deadline(Duration::MAX);
    within("the other one to be asked", patient.propose(&set("key", "value"))).await.unwrap();
}

#[tokio::test]
async fn large_entries_replicate() {
    let mut nodes = static_cluster(3).await;
    let large = "x".repeat(usize::try_from(Config::default().entry_bytes_max).unwrap() - 100);
    put(nodes[0].raft(), "large", &large).await;
    for node in &nodes {
        assert!(node.get("large").await.is_some_and(|value| value == large));
    }
    for node in &mut nodes {
        node.stop().await;
    }
}
