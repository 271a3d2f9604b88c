//! Directories that are replaced by an older copy, or copied and started in parallel with their original.

use raftify::error::{RunError, SenderRefusal, StopReason};
use raftify::status::LogIndex;
use tokio::sync::watch;

use crate::harness::*;

/// Three nodes in their roles.
struct Three {
    nodes: Vec<TestNode>,
    leader: usize,
    keeper: usize,
    away: usize,
    /// The copy of the keeper's directory, made while it ran, before the following writes.
    copy: Disk,
}

/// Only the leader and the keeper acknowledge the last of these.
const WRITES: u32 = 60;

/// A day ago, the directory of one node was copied; since then, two of three nodes have acknowledged more
/// writes.
async fn since_the_copy() -> Three {
    let mut nodes = static_cluster_on(DiskKind::Wal, 3).await;
    let leader = agreed_leader(&nodes).await;
    let (keeper, away) = ((leader + 1) % 3, (leader + 2) % 3);
    put(nodes[leader].raft(), "old", 1).await;
    for node in &nodes {
        assert_eq!(node.get("old").await.as_deref(), Some("1"));
    }
    let copy = nodes[keeper].disk.copy();
    nodes[away].kill().await;
    for number in 1..=WRITES {
        put(nodes[leader].raft(), "key", number).await;
    }
    Three { nodes, leader, keeper, away, copy }
}

fn refusal(outcome: Result<(), RunError>) -> SenderRefusal {
    match outcome {
        Err(RunError::Stopped(StopReason::Refused(refusal))) => refusal,
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_earlier_day_is_refused_while_another_member_lags_and_no_write_is_lost() {
    let Three { mut nodes, leader, keeper, away, copy } = since_the_copy().await;
    nodes[keeper].kill().await;
    nodes[keeper].disk = copy;
    nodes[away].start();
    nodes[keeper].start();
    let refusal = refusal(nodes[keeper].ended().await);
    let SenderRefusal::RolledBack { id, found, told, .. } = &refusal else { panic!("{refusal}") };
    assert_eq!(*id, nodes[keeper].id);
    assert!(found.index < told.index, "{found} {told}");
    assert!(refusal.to_string().contains("let it join again"), "{refusal}");
    for node in [leader, away] {
        assert_eq!(nodes[node].get("key").await, Some(WRITES.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_comes_back_with_an_older_copy_is_refused_by_a_follower_and_no_write_is_lost() {
    let Three { mut nodes, leader, keeper, away, .. } = since_the_copy().await;
    let copy = nodes[leader].disk.copy();
    let (id, (told, mut written)) = (nodes[leader].id, watch::channel(LogIndex::ZERO));
    nodes[keeper].disk.judge(move |writes| {
        let remembered = writes.iter().filter_map(|write| write.remembered.as_ref()).next_back();
        if let Some(peer) = remembered.and_then(|remembered| remembered.peers.get(&id)) {
            told.send_replace(peer.told.index);
        }
        true
    });
    put(nodes[leader].raft(), "key", "newest").await;
    let last = nodes[leader].raft().status().borrow().last.index;
    // Its follower has recorded the leader's progress.
    within("what the leader tells", written.wait_for(|told| *told >= last)).await.unwrap();
    assert_eq!(nodes[keeper].get("key").await.as_deref(), Some("newest"));
    nodes[leader].stop().await;
    nodes[leader].disk = copy;
    nodes[away].start();
    nodes[leader].start();
    refusal(nodes[leader].ended().await);
    for node in [keeper, away] {
        assert_eq!(nodes[node].get("key").await.as_deref(), Some("newest"));
    }
}

#[tokio::test]
async fn a_copy_that_is_started_beside_its_running_original_stops_and_both_say_so() {
    let Three { nodes, leader, keeper, copy, .. } = since_the_copy().await;
    // At the same address, it cannot even listen.
    let mut same = nodes[keeper].duplicate(copy.copy());
    same.address = nodes[keeper].address.clone();
    assert!(same.bootstrap().is_err());

    let (logged, _log) = Logged::from_now_on();
    let mut duplicate = nodes[keeper].duplicate(copy);
    duplicate.start();
    let outcome = duplicate.ended().await;
    let Err(RunError::Stopped(StopReason::OriginalRuns { address })) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(address, nodes[keeper].address);
    until("the original says so", async || {
        logged.text().contains("another process was started as this node, on a copy of its directory")
    })
    .await;
    put(nodes[leader].raft(), "key", "newest").await;
    assert_eq!(nodes[keeper].get("key").await.as_deref(), Some("newest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_that_count_as_many_starts_are_told_apart_and_the_later_one_is_refused() {
    let mut nodes = static_cluster_on(DiskKind::Heed, 3).await;
    let leader = agreed_leader(&nodes).await;
    let node = (leader + 1) % 3;
    put(nodes[leader].raft(), "key", 1).await;
    nodes[node].stop().await;
    let copy = nodes[node].disk.copy();
    nodes[node].start();
    assert_eq!(nodes[node].get("key").await.as_deref(), Some("1"));
    // The original cannot be found.
    nodes[node].stop().await;
    let original = std::mem::replace(&mut nodes[node].disk, copy);
    nodes[node].start();
    let refusal = refusal(nodes[node].ended().await);
    assert!(matches!(refusal, SenderRefusal::StartedTwice { starts: 2, .. }), "{refusal}");
    put(nodes[leader].raft(), "key", 2).await;
    nodes[node].disk = original;
    nodes[node].start();
    assert_eq!(nodes[node].get("key").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_what_the_others_have_forgotten_stops_with_the_proof_and_serves_nothing() {
    let Three { mut nodes, leader, keeper, away, copy } = since_the_copy().await;
    for node in [leader, keeper] {
        nodes[node].kill().await;
    }
    nodes[keeper].disk = copy;
    nodes[keeper].start();
    nodes[away].start();
    put(nodes[away].raft(), "other", 1).await;
    assert_eq!(nodes[away].get("key").await, None, "no node that knew was there");

    let raft = nodes[leader].start();
    let outcome = nodes[leader].ended().await;
    let Err(RunError::Stopped(reason @ StopReason::WritesLost { node, .. })) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(node, nodes[leader].id);
    assert!(reason.to_string().contains("it still has all that was committed up to index"), "{reason}");
    assert!(raft.query(|store| store.map.len()).await.is_err());
}
