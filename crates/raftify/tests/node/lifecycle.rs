//! One node from its bootstrap to its end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use raftify::error::{
    BootstrapError, CampaignError, DemoteError, MembershipError, ProposeError, ReadError, RunError,
    SnapshotError, StopReason, TransferError, UnknownOutcome, WaitError,
};
use raftify::membership::{MemberChange, MembershipChange};
use raftify::start::BootstrapOptions;
use raftify::status::Term;
use raftify::storage::MemoryStorage;
use raftify::{Config, Member, RaftClient};

use crate::harness::*;

on_both_storages! {
    a_single_node_finds_everything_again_after_a_restart
    a_killed_node_finds_everything_that_was_acknowledged
    a_write_that_fails_stops_the_node_and_loses_nothing
}

async fn a_single_node_finds_everything_again_after_a_restart(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    node.start();
    for number in 0..100 {
        put(node.raft(), number, number).await;
    }
    node.stop().await;
    node.start();
    for number in 0..100 {
        assert_eq!(node.get(&number.to_string()).await, Some(number.to_string()));
    }
    node.stop().await;
}

async fn a_killed_node_finds_everything_that_was_acknowledged(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    node.start();
    for round in 0..5 {
        put(node.raft(), round, round).await;
        node.kill().await;
        node.start();
    }
    for round in 0..5 {
        assert_eq!(node.get(&round.to_string()).await, Some(round.to_string()));
    }
    node.stop().await;
}

#[tokio::test]
async fn propose_returns_the_reply_of_the_state_machine() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    assert_eq!(raft.propose(set("key", "old")).await, Ok(None));
    assert_eq!(raft.propose(set("key", "new")).await, Ok(Some("old".to_owned())));
    node.stop().await;
}

#[tokio::test]
async fn a_second_run_is_an_error_and_does_not_disturb_the_first() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    assert!(matches!(raft.clone().run().await, Err(RunError::AlreadyRunning)));
    put(&raft, "key", "value").await;
    node.stop().await;
    assert!(matches!(raft.run().await, Err(RunError::AlreadyRunning)));
}

#[tokio::test]
async fn run_ends_when_any_clone_quits_and_quit_may_be_repeated() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    let (first, second) = (raft.clone(), raft.clone());
    within("both to quit", async { tokio::join!(first.quit(), second.quit()) }).await;
    assert!(node.ended().await.is_ok());
    within("quit after the end", raft.quit()).await;
}

#[tokio::test]
async fn quit_before_run_closes_storage_and_port() {
    let node = TestNode::new(1);
    let raft = node.bootstrap().unwrap();
    within("quit", raft.quit()).await;
    node.disk.released().await;
    assert!(std::net::TcpListener::bind(&node.address).is_ok());
    // A caller that spawned `run` and then quit does not know which came first.
    assert!(raft.clone().run().await.is_ok());
    assert!(matches!(raft.run().await, Err(RunError::AlreadyRunning)));
}

#[tokio::test]
async fn a_node_that_is_dropped_before_it_ran_leaves_nothing_open() {
    let node = TestNode::new(1);
    drop(node.bootstrap().unwrap());
    node.disk.released().await;
    assert!(std::net::TcpListener::bind(&node.address).is_ok());
}

/// Makes every call of the handle, and checks that each fails for the reason that the node does not serve.
async fn every_call_fails_with(raft: &TestRaft, reason: StopReason) {
    let stopped = reason.clone();
    assert_eq!(raft.propose(set("key", "value")).await, Err(ProposeError::Stopped(stopped.clone())));
    assert_eq!(raft.query(|store| store.map.len()).await, Err(ReadError::Stopped(stopped.clone())));
    assert_eq!(raft.read_index().await, Err(ReadError::Stopped(stopped.clone())));
    assert_eq!(raft.inspect().await, Err(stopped.clone()));
    assert_eq!(raft.transfer_leader(id(2)).await, Err(TransferError::Stopped(stopped.clone())));
    assert_eq!(raft.campaign().await, Err(CampaignError::Stopped(stopped.clone())));
    assert_eq!(raft.demote(Term(1), None).await, Err(DemoteError::Stopped(stopped.clone())));
    let change = MembershipChange::one(MemberChange::Remove(id(2)));
    assert_eq!(raft.change_config(change).await, Err(MembershipError::Stopped(stopped.clone())));
    assert_eq!(raft.leave_joint().await, Err(MembershipError::Stopped(stopped.clone())));
    assert_eq!(raft.leave().await, Err(MembershipError::Stopped(stopped.clone())));
    assert!(matches!(raft.wait_for_leader().await, Err(WaitError::Stopped(reason)) if reason == stopped));
}

#[tokio::test]
async fn calls_before_run_fail_within_their_deadlines() {
    let mut node = TestNode::new(1);
    let short = Config::default().election_timeout;
    node.config = Config {
        propose_timeout: short,
        read_timeout: short,
        membership_timeout: short,
        ..Config::default()
    };
    let raft = node.bootstrap().unwrap();
    every_call_fails_with(&raft, StopReason::NotRunning).await;
    assert_eq!(raft.make_snapshot().await, Err(SnapshotError::Stopped(StopReason::NotRunning)));
    assert_eq!((raft.id(), raft.leader_id(), raft.is_leader()), (id(1), None, false));
    assert_eq!(raft.cluster_size(), 0);
}

#[tokio::test]
async fn a_call_before_run_is_served_once_the_node_runs() {
    let mut node = TestNode::new(1);
    let raft = node.bootstrap().unwrap();
    let early = tokio::spawn({
        let raft = raft.clone();
        async move { raft.inspect().await }
    });
    tokio::task::yield_now().await;
    node.run(raft);
    assert!(within("the answer", early).await.unwrap().is_ok());
    node.stop().await;
}

#[tokio::test]
async fn calls_after_the_end_fail_with_the_reason() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    node.stop().await;
    every_call_fails_with(&raft, StopReason::Stopped).await;
    assert_eq!(raft.make_snapshot().await, Err(SnapshotError::Stopped(StopReason::Stopped)));
    let peer = Member::voter(id(2), free_address());
    assert!(raft.add_peers([peer]).await.is_err());
}

#[tokio::test]
async fn calls_after_run_was_dropped_fail() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    node.kill().await;
    every_call_fails_with(&raft, StopReason::Stopped).await;
    within("quit", raft.quit()).await;
}

#[tokio::test]
async fn a_waiting_caller_is_answered_when_the_node_stops() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    let propose = |change: Change| {
        let raft = raft.clone();
        tokio::spawn(async move { raft.propose(change).await })
    };
    let held = propose(Change::Wait);
    node.gate.reached().await;
    let committed = raft.status().borrow().commit;
    let waiting = propose(set("key", "value"));
    let mut status = raft.status();
    within("the second to be committed", status.wait_for(|status| status.commit > committed)).await.unwrap();
    let query = tokio::spawn({
        let raft = raft.clone();
        async move { raft.query(|store| store.map.len()).await }
    });
    let quit = tokio::spawn({
        let raft = raft.clone();
        async move { raft.quit().await }
    });
    let read = within("the read's answer", query).await.unwrap();
    assert!(matches!(read, Err(ReadError::Stopped(_))), "{read:?}");
    // The state machine has begun to apply the first entry, and finishes it; it never gets the second one, or
    // gets it in the same batch.
    node.gate.open();
    assert_eq!(within("the first answer", held).await.unwrap(), Ok(None));
    let second = within("the second answer", waiting).await.unwrap();
    let unknown = ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped));
    assert!(second == Ok(None) || second == Err(unknown), "{second:?}");
    within("quit", quit).await.unwrap();
    assert!(node.ended().await.is_ok());
    // A third entry comes too late, and nothing happens.
    assert_eq!(raft.propose(set("late", "")).await, Err(ProposeError::Stopped(StopReason::Stopped)));
}

#[tokio::test]
async fn a_node_that_cannot_end_says_what_it_waits_for() {
    for (hung, named) in [("disk", "the log writer"), ("state machine", "the applier")] {
        let mut node = TestNode::new(1);
        let raft = node.start();
        raft.wait_for_leader().await.unwrap();
        let (gate, change) = (node.gate.clone(), if hung == "disk" { set("key", "") } else { Change::Wait });
        if hung == "disk" {
            let disk = gate.clone();
            node.disk.judge(move |_| {
                disk.pass();
                true
            });
        }
        let proposed = tokio::spawn(async move { raft.propose(change).await });
        gate.reached().await;

        let (logged, _log) = Logged::from_now_on();
        // The node waits some seconds of this paused clock, which pass at once.
        tokio::time::pause();
        let raft = node.raft().clone();
        let quit = tokio::spawn(async move { raft.quit().await });
        for seconds in [5, 15] {
            let warning = format!("shutdown has been blocked for {seconds} s on {named}");
            until(&warning, async || logged.text().contains(&warning)).await;
        }
        assert!(!quit.is_finished());
        tokio::time::resume();
        gate.open();
        within("quit", quit).await.unwrap();
        node.ended().await.unwrap();
        drop(proposed.await.unwrap());
    }
}

#[tokio::test]
async fn a_full_request_queue_answers_busy() {
    let mut node = TestNode::new(1);
    node.config = Config { request_queue_max: 1, ..Config::default() };
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    // On this test's single thread, the raft loop cannot take the first before the second is sent.
    let (first, second) = tokio::join!(raft.propose(set("a", 1)), raft.propose(set("b", 2)));
    assert_eq!(first, Ok(None));
    assert_eq!(second, Err(ProposeError::Busy { waiting: 1 }));
    let (first, second) = tokio::join!(raft.read_index(), raft.read_index());
    assert!(first.is_ok());
    assert_eq!(second, Err(ReadError::Busy { waiting: 1 }));
    // A verb without such an answer waits for a slot.
    let (first, second) = tokio::join!(raft.inspect(), raft.inspect());
    assert!(first.is_ok() && second.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn as_many_proposals_as_may_wait_answer_busy() {
    let mut node = TestNode::new(1);
    node.config = Config { proposals_in_flight_max: 1, ..Config::default() };
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    let (first, second) = tokio::join!(raft.propose(set("a", 1)), raft.propose(set("b", 2)));
    assert_eq!((first, second), (Ok(None), Err(ProposeError::Busy { waiting: 1 })));
    assert_eq!(raft.propose(set("b", 2)).await, Ok(None));
    node.stop().await;
}

async fn a_write_that_fails_stops_the_node_and_loses_nothing(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    node.disk.full.store(true, Ordering::SeqCst);
    let error = raft.propose(set("key", "lost")).await.unwrap_err();
    let ProposeError::Unknown(UnknownOutcome::NodeStopped(why)) = error else { panic!("{error:?}") };
    assert!(matches!(why, StopReason::Storage(_)), "{why}");
    let error = node.ended().await.unwrap_err();
    assert!(
        matches!(error, RunError::Stopped(StopReason::Storage(ref text)) if text.contains("disk")),
        "{error}"
    );
    node.disk.full.store(false, Ordering::SeqCst);
    node.start();
    assert_eq!(node.get("key").await, Some("value".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn a_caller_may_give_up_without_harm() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    raft.wait_for_leader().await.unwrap();
    for _ in 0..100 {
        let _ = tokio::time::timeout(Duration::ZERO, raft.propose(set("key", "value"))).await;
        let _ = tokio::time::timeout(Duration::ZERO, raft.read_index()).await;
        let _ = tokio::time::timeout(Duration::ZERO, raft.query(|store| store.map.len())).await;
    }
    put(&raft, "key", "last").await;
    assert_eq!(node.get("key").await, Some("last".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn a_node_may_listen_elsewhere_than_where_the_others_reach_it() {
    // No machine has the first address, which is in a range for documentation (RFC 5737): the node cannot
    // listen there.
    let (reached, listening) = ("192.0.2.1:60061", TestNode::new(1).address.clone());
    let node = TestNode::at(1, reached);
    let listen_at = |address: &str| {
        let options =
            BootstrapOptions { listen_addr: Some(address.to_owned()), ..BootstrapOptions::default() };
        let storage = MemoryStorage::default();
        TestRaft::bootstrap_with(node.id, reached, storage, node.store(), Config::default(), options)
    };
    let error = listen_at("no port").expect_err("it is no address");
    assert!(matches!(error, BootstrapError::Address(_)), "{error}");

    let raft = listen_at(&listening).unwrap();
    begins_alone(&raft, reached);
    let running = tokio::spawn(raft.clone().run());
    let client = RaftClient::<Change, Store>::new([listening]).unwrap();
    let members = within("an answer", client.inspect()).await.unwrap().status.members;
    assert_eq!(members.iter().map(|member| member.address.as_str()).collect::<Vec<_>>(), [reached]);
    within("quit", raft.quit()).await;
    running.await.unwrap().unwrap();
}
