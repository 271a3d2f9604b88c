//! Nodes that are stopped under load: the others take over at once, and every request has an answer.

use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use raftify::error::{ProposeError, StopReason, UnknownOutcome};
use raftify::status::Term;
use raftify::{Config, RaftClient};
use tokio::sync::watch;

use crate::harness::*;

/// Three nodes with an unlimited time to stop.
async fn patient_cluster() -> Vec<TestNode> {
    let (mut nodes, members) = static_nodes(3);
    for node in &mut nodes {
        node.config = Config { stop_timeout: Duration::from_secs(3600), ..Config::default() };
        start_static(node, &members).await;
    }
    agreed_leader(&nodes).await;
    nodes
}

fn term_of(node: &TestNode) -> Term {
    node.raft().status().borrow().term
}

#[tokio::test]
async fn while_each_node_stops_in_turn_every_proposal_through_the_others_succeeds() {
    let mut nodes = patient_cluster().await;
    for stopping in 0..3 {
        agreed_leader(&nodes).await;
        let others: Vec<TestRaft> =
            (0..3).filter(|place| *place != stopping).map(|place| nodes[place].raft().clone()).collect();
        let stopped = watch::Sender::new(false);
        let writers: Vec<_> = others
            .into_iter()
            .map(|raft| {
                let has_stopped = stopped.subscribe();
                tokio::spawn(async move {
                    let mut count = 0;
                    while !*has_stopped.borrow() {
                        raft.propose(set("key", count)).await.unwrap();
                        count += 1;
                    }
                })
            })
            .collect();
        let through_it = tokio::spawn({
            let raft = nodes[stopping].raft().clone();
            async move {
                // Until the first rejection, which must be definite.
                loop {
                    if let Err(error) = raft.propose(set("own", "value")).await {
                        break error;
                    }
                }
            }
        });
        nodes[stopping].stop().await;
        let error = within("its last answer", through_it).await.unwrap();
        assert!(error.nothing_happened(), "{error}");
        stopped.send_replace(true);
        for writer in writers {
            within("a writer", writer).await.unwrap();
        }
        nodes[stopping].start();
    }
}

#[tokio::test]
async fn a_leader_that_stops_is_followed_in_the_next_term() {
    let mut nodes = patient_cluster().await;
    let leader = agreed_leader(&nodes).await;
    put(nodes[leader].raft(), "key", "value").await;
    let term = term_of(&nodes[leader]);
    nodes[leader].stop().await;
    let next = agreed_leader(&nodes).await;
    assert_eq!(term_of(&nodes[next]), Term(term.0 + 1), "no election failed, and none was waited for");
}

#[tokio::test]
async fn what_is_under_way_through_a_follower_that_stops_is_answered_first() {
    let nodes = patient_cluster().await;
    let leader = agreed_leader(&nodes).await;
    let follower = nodes[(leader + 1) % 3].raft().clone();
    // The leader's state machine delays the reply.
    let forwarded = tokio::spawn({
        let follower = follower.clone();
        async move { follower.propose(Change::Wait).await }
    });
    nodes[leader].gate.reached().await;
    let mut quit = pin!(follower.quit());
    assert!(quit.as_mut().now_or_never().is_none());
    // The raft loop processes no other input before.
    let late = follower.propose(set("late", "")).await;
    assert_eq!(late, Err(ProposeError::Stopped(StopReason::Stopping)));
    assert!(quit.as_mut().now_or_never().is_none(), "it owes an answer");
    nodes.iter().for_each(|node| node.gate.open());
    assert_eq!(within("the answer", forwarded).await.unwrap(), Ok(None));
    within("the end", quit).await;
}

#[tokio::test]
async fn what_has_no_outcome_when_the_time_of_a_stopping_node_is_over_is_unknown() {
    let (mut nodes, members) = static_nodes(3);
    for node in &mut nodes {
        node.config = Config { stop_timeout: Duration::from_millis(100), ..Config::default() };
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    put(nodes[leader].raft(), "key", "value").await;
    let held = Gate::default();
    for follower in [(leader + 1) % 3, (leader + 2) % 3] {
        let disk = held.clone();
        nodes[follower].disk.judge(move |_| {
            disk.pass();
            true
        });
    }
    let proposed = tokio::spawn({
        let raft = nodes[leader].raft().clone();
        async move { raft.propose(set("key", "unknown")).await }
    });
    held.reached().await;
    nodes[leader].stop().await;
    let unknown = UnknownOutcome::NodeStopped(StopReason::Stopped);
    assert_eq!(within("the answer", proposed).await.unwrap(), Err(ProposeError::Unknown(unknown)));
    held.open();
    // A write with an unknown outcome may have happened.
    let next = agreed_leader(&nodes).await;
    put(nodes[next].raft(), "key", "again").await;
}

#[tokio::test]
async fn a_quit_that_nothing_waits_for_ends_the_node_as_well() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let quit = nodes[leader].raft().quit().now_or_never();
    assert!(quit.is_none(), "it has not ended yet");
    nodes[leader].ended().await.unwrap();
}

#[tokio::test]
async fn a_remote_client_is_served_without_an_error_while_each_node_stops_in_turn() {
    let mut nodes = patient_cluster().await;
    let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    let client = RaftClient::<Change, Store>::new(addresses).unwrap();
    let (done, is_done) = watch::channel(false);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (client, is_done) = (client.clone(), is_done.clone());
            tokio::spawn(async move {
                while !*is_done.borrow() {
                    client.propose(&set(writer, "value")).await.unwrap();
                }
            })
        })
        .collect();
    for stopping in 0..3 {
        agreed_leader(&nodes).await;
        nodes[stopping].stop().await;
        nodes[stopping].start();
    }
    agreed_leader(&nodes).await;
    done.send_replace(true);
    for writer in writers {
        within("a writer", writer).await.unwrap();
    }
}
