//! A node sends nothing before the write on which it depends is durable: tested with writes that are slow and
//! fail in the end. An answer sent too early would have arrived by then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use raftify::Config;
use raftify::error::{ProposeError, RunError, StopReason, UnknownOutcome};
use raftify::status::Role;
use raftify::storage::{EntryKind, StableStorage, Write};
use tokio::runtime::Builder;

use crate::harness::*;

on_both_storages! {
    a_slow_disk_loses_nothing_and_keeps_the_order
    a_failed_write_is_never_retried_and_every_waiting_caller_is_answered
}

fn has_user_entries(writes: &[Write]) -> bool {
    writes.iter().flat_map(|write| &write.append).any(|entry| entry.kind == EntryKind::User)
}

fn has_vote(writes: &[Write]) -> bool {
    writes.iter().any(|write| write.hard_state.is_some_and(|state| state.vote.is_some()))
}

/// As long as a flush may take. A message sent meanwhile has time to arrive.
fn take_long() {
    std::thread::sleep(Duration::from_millis(20));
}

async fn a_slow_disk_loses_nothing_and_keeps_the_order(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    let raft = node.start();
    put(&raft, "key", "before").await;
    let mut count = 0;
    node.disk.judge(move |_| {
        count += 1;
        // At intervals, so that writes are merged in between.
        if count % 3 == 0 {
            take_long();
        }
        true
    });
    let proposals: Vec<_> = (0..60)
        .map(|number| {
            let raft = raft.clone();
            tokio::spawn(async move { raft.propose(set(number, number)).await })
        })
        .collect();
    for proposal in proposals {
        within("an answer", proposal).await.unwrap().unwrap();
    }
    node.kill().await;
    node.start();
    for number in 0..60 {
        assert_eq!(node.get(&number.to_string()).await, Some(number.to_string()));
    }
    node.stop().await;
}

async fn a_failed_write_is_never_retried_and_every_waiting_caller_is_answered(kind: DiskKind) {
    let mut node = TestNode::on(kind, 1);
    let raft = node.start();
    put(&raft, "key", "before").await;
    let failed = Arc::new(AtomicBool::new(false));
    let tried_again = Arc::new(AtomicUsize::new(0));
    let (has_failed, counts) = (Arc::clone(&failed), Arc::clone(&tried_again));
    node.disk.judge(move |writes| {
        if has_failed.load(Ordering::SeqCst) {
            counts.fetch_add(1, Ordering::SeqCst);
        } else if has_user_entries(writes) {
            take_long();
            has_failed.store(true, Ordering::SeqCst);
            return false;
        }
        true
    });
    let proposals: Vec<_> = (0..20)
        .map(|number| {
            let raft = raft.clone();
            tokio::spawn(async move { raft.propose(set("key", number)).await })
        })
        .collect();
    for proposal in proposals {
        let error = within("an answer", proposal).await.unwrap().unwrap_err();
        // Writes that were still queued have not begun.
        let is_told = match &error {
            ProposeError::Unknown(UnknownOutcome::NodeStopped(why)) => matches!(why, StopReason::Storage(_)),
            error => error.nothing_happened(),
        };
        assert!(is_told, "{error:?}");
    }
    let error = node.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stopped(StopReason::Storage(_))), "{error}");
    assert!(failed.load(Ordering::SeqCst));
    assert_eq!(tried_again.load(Ordering::SeqCst), 0, "writes after the one that failed");
    node.disk.heal();
    node.start();
    assert_eq!(node.get("key").await, Some("before".to_owned()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_write_fails_has_acknowledged_nothing() {
    let (mut nodes, members) = static_nodes(2);
    for node in &mut nodes {
        node.config = Config { propose_timeout: Duration::from_secs(1), ..Config::default() };
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    put(nodes[leader].raft(), "key", "before").await;
    let follower = 1 - leader;
    nodes[follower].disk.judge(|writes| {
        let fails = has_user_entries(writes);
        if fails {
            take_long();
        }
        !fails
    });
    let outcome = nodes[leader].raft().propose(set("key", "after")).await;
    assert!(outcome.is_err(), "two voters are needed, and one has not written: {outcome:?}");
    let error = nodes[follower].ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stopped(StopReason::Storage(_))), "{error}");
    let status = nodes[leader].raft().status().borrow().clone();
    assert!(status.commit < status.last.index, "{} of {} is committed", status.commit, status.last);
    nodes[follower].disk.heal();
    nodes[follower].start();
    put(nodes[follower].raft(), "key", "at last").await;
    for node in &mut nodes {
        assert_eq!(node.get("key").await, Some("at last".to_owned()));
    }
}

/// A state machine in memory need not wait for the disk of its own node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_hangs_answers_what_a_majority_has_written() {
    let (mut nodes, members) = static_nodes(3);
    for node in &mut nodes {
        let disk_stall_timeout = Duration::from_secs(3600);
        node.config = Config { disk_stall_timeout, slow_disk_patience: None, ..Config::default() };
        start_static(node, &members).await;
    }
    let leader = agreed_leader(&nodes).await;
    let raft = nodes[leader].raft().clone();
    put(&raft, "key", "before").await;
    // Records about members wait for the leader's own disk, and so do the entries after them.
    let is_recorded = || raft.status().borrow().members.iter().all(|member| member.incarnation.is_some());
    until("all members are known", async || is_recorded()).await;
    let hung = Gate::default();
    let disk = hung.clone();
    nodes[leader].disk.judge(move |writes| {
        if has_user_entries(writes) {
            disk.pass();
        }
        true
    });
    let mut answers = Vec::new();
    for number in 0..20 {
        answers.push(raft.propose(set("key", number)).await);
    }
    let read = raft.query(|store| store.map.get("key").cloned()).await;
    let written = nodes[leader].disk.memory().load().unwrap().last.index;
    let applied = raft.status().borrow().applied;
    hung.open();
    assert!(answers.iter().all(Result::is_ok), "the leader's disk hangs: {answers:?}");
    assert_eq!(read.unwrap(), Some("19".to_owned()));
    assert!(applied > written, "{applied} is applied, {written} is written");
    nodes[leader].disk.heal();
    for node in &mut nodes {
        assert_eq!(node.get("key").await, Some("19".to_owned()));
    }
    for node in &mut nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_write_fails_has_not_voted() {
    let mut nodes = static_cluster(2).await;
    for node in &mut nodes {
        node.kill().await;
    }
    nodes[1].disk.judge(|writes| {
        let fails = has_vote(writes);
        if fails {
            take_long();
        }
        !fails
    });
    let raft = nodes[0].start();
    let mut status = raft.status();
    let watching =
        tokio::spawn(async move { status.wait_for(|status| status.role == Role::Leader).await.is_ok() });
    nodes[1].start();
    let error = nodes[1].ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stopped(StopReason::Storage(_))), "{error}");
    // It continues to request votes.
    until("it asks again", async || raft.status().borrow().role == Role::PreCandidate).await;
    assert!(!watching.is_finished(), "one of two votes was enough");
    nodes[1].disk.heal();
    nodes[1].start();
    agreed_leader(&nodes).await;
    watching.abort();
}

/// The answer to a proposal whose write never ends.
async fn answer_while_the_disk_hangs(hung: Gate) -> Result<Option<String>, ProposeError> {
    let mut node = TestNode::new(1);
    node.config = Config { propose_timeout: Duration::from_secs(1), ..Config::default() };
    let raft = node.start();
    put(&raft, "key", "before").await;
    let disk = hung.clone();
    node.disk.judge(move |writes| {
        if has_user_entries(writes) {
            disk.pass();
        }
        true
    });
    let answer = raft.propose(set("key", "after")).await;
    hung.open();
    node.stop().await;
    answer
}

/// The runtime's only thread must not be the one that waits for the disk.
#[test]
fn a_hanging_disk_blocks_no_caller_on_a_runtime_of_one_thread() {
    let mut one_worker = Builder::new_multi_thread();
    one_worker.worker_threads(1);
    for mut runtime in [Builder::new_current_thread(), one_worker] {
        let hung = Gate::default();
        let (answered, answer) = mpsc::channel();
        let at_work = std::thread::spawn({
            let hung = hung.clone();
            move || {
                let runtime = runtime.enable_all().build().unwrap();
                let answer = runtime.block_on(answer_while_the_disk_hangs(hung));
                answered.send(answer).unwrap();
            }
        });
        let answer = answer.recv_timeout(Duration::from_secs(60));
        hung.open();
        at_work.join().unwrap();
        let answer = answer.expect("an answer, although the disk hangs");
        assert!(matches!(answer, Err(ProposeError::Unknown(_))), "{answer:?}");
    }
}

/// A caller with an answer possibly runs on the thread of the raft loop, and before the loop waits for the
/// next write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answered_caller_does_not_wait_for_the_next_write() {
    let mut node = TestNode::new(1);
    node.is_quick = true;
    let raft = node.start();
    put(&raft, "key", "before").await;
    let (begun, queued) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let hung = Gate::default();
    let (begins, is_queued, disk) = (Arc::clone(&begun), Arc::clone(&queued), hung.clone());
    node.disk.judge(move |writes| {
        if has_user_entries(writes) {
            if begins.swap(true, Ordering::SeqCst) {
                disk.pass();
            } else {
                wait_for(&is_queued);
            }
        }
        true
    });
    let first = tokio::spawn({
        let raft = raft.clone();
        async move { raft.propose(set("key", "first")).await }
    });
    // This is not a thread of the runtime.
    wait_for(&begun);
    let mut second = std::pin::pin!(raft.propose(set("key", "second")));
    let is_pending = std::future::poll_fn(|context| Poll::Ready(second.as_mut().poll(context).is_pending()));
    assert!(is_pending.await);
    queued.store(true, Ordering::SeqCst);
    let first = tokio::time::timeout(Duration::from_secs(60), first).await;
    hung.open();
    first.expect("an answer, although the next write hangs").unwrap().unwrap();
    within("an answer", second).await.unwrap();
    node.stop().await;
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_has_less_space_than_the_reserve_refuses_writes_and_serves_reads() {
    let mut node = TestNode::on(DiskKind::Wal, 1);
    // No disk has this much.
    node.config.storage_reserve_bytes = Some(u64::MAX);
    let raft = node.start();
    let mut answer = Ok(());
    until("the disk is measured", async || {
        answer = raft.propose(set("key", "value")).await.map(drop);
        answer.is_err()
    })
    .await;
    assert_eq!(answer, Err(ProposeError::StorageFull { full: vec![id(1)] }));
    assert_eq!(raft.inspect().await.unwrap().storage_full, [id(1)]);
    raft.read_index().await.unwrap();
    raft.make_snapshot().await.unwrap();
    node.stop().await;
    // With room for it, the node takes writes again.
    node.config.storage_reserve_bytes = None;
    let raft = node.start();
    put(&raft, "key", "value").await;
}
