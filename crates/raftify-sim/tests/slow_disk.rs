//! A leader whose own disk is slow, or almost full: what is committed and answered without it, what waits for
//! it, and when another node is to lead.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use raftify_core::error::ProposeError;
use raftify_core::{
    Config, LeaderRequest, LocalRequestMsg, LogIndex, LogPosition, Member, MemberChange, MembershipChange,
    NodeId,
};
use raftify_sim::script::{Cluster, Outcome, id, outcome, responder, take, test_config};

fn cluster_of_three(config: Config) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(11, 3, config);
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    (cluster, leader)
}

fn others(cluster: &Cluster, node: NodeId) -> Vec<NodeId> {
    cluster.ids().into_iter().filter(|other| *other != node).collect()
}

/// Up to where the log of `node` is durable, as its core knows.
fn durable(cluster: &mut Cluster, node: NodeId) -> LogIndex {
    let inspection = outcome();
    cluster.local(node, LocalRequestMsg::Inspect { reply: responder(&inspection) });
    take(&inspection).unwrap().unwrap().durable
}

fn propose_many(
    cluster: &mut Cluster,
    node: NodeId,
    count: usize,
) -> Vec<Outcome<Result<LogPosition, ProposeError>>> {
    let proposals = (0..count)
        .map(|_| {
            let proposal = cluster.propose(node);
            cluster.settle();
            proposal
        })
        .collect();
    cluster.settle();
    proposals
}

fn is_done(proposal: &Outcome<Result<LogPosition, ProposeError>>) -> bool {
    matches!(take(proposal), Some(Ok(_)))
}

#[test]
fn a_proposal_is_answered_when_a_majority_has_it_although_the_leaders_own_disk_does_not() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let before = durable(&mut cluster, leader);
    cluster.hang_disk(leader);
    let proposal = cluster.propose(leader);
    cluster.settle();
    let position = take(&proposal).expect("it is answered").unwrap();
    assert_eq!(durable(&mut cluster, leader), before, "its own disk has nothing of it");
    assert_eq!(cluster.status(leader).unwrap().applied, position.index);
    let read = cluster.read(leader);
    cluster.settle();
    assert_eq!(take(&read), Some(Ok(position.index)), "nor do reads wait for it");
    cluster.check_recovery();
}

#[test]
fn a_proposal_that_no_majority_has_is_not_answered() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    cluster.hang_disk(leader);
    cluster.hang_disk(others(&cluster, leader)[0]);
    let proposal = cluster.propose(leader);
    cluster.settle();
    assert_eq!(take(&proposal), None, "one of three has it");
    cluster.repair_disk(leader);
    cluster.settle();
    assert!(is_done(&proposal));
    cluster.check_recovery();
}

#[test]
fn a_state_machine_on_disk_is_given_nothing_that_its_own_node_may_lose() {
    let mut cluster = Cluster::new(11, 3, test_config());
    cluster.keep_state_on_disk(cluster.ids());
    for node in cluster.ids() {
        cluster.crash(node);
        cluster.start(node);
    }
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    let applied = cluster.status(leader).unwrap().applied;
    cluster.hang_disk(leader);
    let proposals = propose_many(&mut cluster, leader, 5);
    assert!(cluster.status(leader).unwrap().commit > applied, "a majority has them");
    assert_eq!(cluster.status(leader).unwrap().applied, applied);
    assert!(proposals.iter().all(|proposal| take(proposal).is_none()));
    cluster.repair_disks();
    cluster.settle();
    assert!(proposals.iter().all(is_done));
    cluster.check_recovery();
}

#[test]
fn what_a_leader_answered_before_it_was_durable_there_outlives_its_crash() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    cluster.hang_disk(leader);
    let proposals = propose_many(&mut cluster, leader, 30);
    assert!(proposals.iter().all(is_done));
    let commit = cluster.status(leader).unwrap().commit;
    cluster.lose_unsynced(leader);
    cluster.repair_disks();
    cluster.start(leader);
    assert!(cluster.status(leader).unwrap().last.index < commit, "it forgot what it had answered");
    cluster.check_recovery();
    for node in cluster.ids() {
        assert!(cluster.status(node).unwrap().applied >= commit);
    }
}

#[test]
fn a_leader_that_forgot_what_it_answered_is_not_elected_by_one_that_has_it() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let [second, third] = others(&cluster, leader)[..] else { panic!("there are three") };
    cluster.hang_disk(leader);
    let proposal = cluster.propose(leader);
    cluster.settle();
    assert!(is_done(&proposal));
    cluster.lose_unsynced(leader);
    cluster.repair_disks();
    cluster.crash(third);
    cluster.start(leader);
    cluster.until("one of the two leads", |cluster| cluster.leader().is_some());
    assert_eq!(cluster.leader(), Some(second));
    cluster.start(third);
    cluster.check_recovery();
}

/// A leader with 100 answered entries and a snapshot of them, of which its disk has nothing yet.
fn ahead_of_its_disk() -> (Cluster, NodeId, LogIndex) {
    let config = Config { disk_stall_timeout: Duration::from_secs(60), ..test_config() };
    let (mut cluster, leader) = cluster_of_three(config);
    let before = durable(&mut cluster, leader);
    cluster.hang_disk(leader);
    let proposals = propose_many(&mut cluster, leader, 100);
    assert!(proposals.iter().all(is_done), "although log_cache_bytes are few");
    cluster.repair_disks();
    (cluster, leader, before)
}

#[test]
fn a_snapshot_and_a_commit_index_beyond_the_durable_log_reach_the_disk_after_it() {
    let (mut cluster, leader, before) = ahead_of_its_disk();
    let mut saw_snapshot = false;
    while cluster.complete_write(leader) {
        let stored = cluster.stored(leader);
        let last = stored.last.index;
        assert!(
            stored.hard_state.commit <= last,
            "{} is committed, {last} is last",
            stored.hard_state.commit
        );
        if let Some(snapshot) = stored.snapshot.filter(|snapshot| snapshot.position.index > before) {
            saw_snapshot = true;
            assert!(snapshot.position.index <= last);
            assert!(stored.truncated.index <= snapshot.position.index);
        }
    }
    assert!(saw_snapshot, "one was taken of what was not durable");
    cluster.check_recovery();
}

#[test]
fn a_crash_after_any_of_the_writes_that_were_answered_before_loses_nothing() {
    let writes = {
        let (mut cluster, leader, _) = ahead_of_its_disk();
        std::iter::from_fn(|| cluster.complete_write(leader).then_some(())).count()
    };
    for completed in (0..=writes).step_by(7).chain([writes]) {
        let (mut cluster, leader, _) = ahead_of_its_disk();
        for _ in 0..completed {
            cluster.complete_write(leader);
        }
        cluster.lose_unsynced(leader);
        cluster.start(leader);
        cluster.check_recovery();
    }
}

#[test]
fn a_leader_that_loses_office_while_it_is_ahead_of_its_disk_follows() {
    let (mut cluster, leader, _) = ahead_of_its_disk();
    cluster.hang_disk(leader);
    let term = cluster.status(leader).unwrap().term;
    let reply = responder(&outcome());
    cluster.local(leader, LocalRequestMsg::Demote { term, successor: None, reply });
    cluster.until("another node leads", |cluster| cluster.leader().is_some_and(|now| now != leader));
    let successor = cluster.leader().unwrap();
    for _ in 0..10 {
        cluster.until_proposed(successor);
    }
    cluster.repair_disks();
    cluster.settle();
    cluster.until("it may stand for election again", |cluster| {
        let campaign = outcome();
        cluster.local(leader, LocalRequestMsg::Campaign { reply: responder(&campaign) });
        take(&campaign) == Some(Ok(()))
    });
    cluster.check_recovery();
}

#[test]
fn a_change_of_members_and_what_follows_it_wait_for_the_leaders_own_disk() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let as_of = cluster.status(leader).unwrap().members.as_of();
    let learner = Member { role: raftify_core::MemberRole::Learner, ..Member::voter(id(9), "node-9:1") };
    cluster.hang_disk(leader);
    let before = cluster.propose(leader);
    cluster.settle();
    let change = cluster.change(leader, MembershipChange::one(MemberChange::Add(learner)));
    let after = cluster.propose(leader);
    cluster.settle();
    assert!(is_done(&before));
    assert!(take(&change).is_none() && take(&after).is_none());
    assert_eq!(cluster.status(leader).unwrap().members.as_of(), as_of);
    cluster.repair_disks();
    cluster.settle();
    assert!(take(&change).unwrap().is_ok() && is_done(&after));
    assert!(cluster.status(leader).unwrap().members.as_of() > as_of);
}

#[test]
fn what_a_slow_disk_has_yet_to_write_is_bounded() {
    let config = Config {
        entry_bytes_max: 1024,
        uncommitted_bytes_max: 2048,
        disk_stall_timeout: Duration::from_secs(60),
        ..test_config()
    };
    let (mut cluster, leader) = cluster_of_three(config);
    cluster.hang_disk(leader);
    let proposals = propose_many(&mut cluster, leader, 100);
    let refused = proposals
        .iter()
        .filter(|proposal| matches!(take(proposal), Some(Err(ProposeError::Busy { .. }))))
        .count();
    let done = proposals.iter().filter(|proposal| is_done(proposal)).count();
    assert!(done > 0 && refused > 0, "{done} were accepted, {refused} refused");
    assert_eq!(done + refused, proposals.len());
    cluster.repair_disks();
    cluster.settle();
    assert!(is_done(&propose_many(&mut cluster, leader, 1)[0]), "once it has written, there is room");
    cluster.check_recovery();
}

// --- Transfer of leadership ---

/// Ticks are 10 ms. An election timeout is longer than what is written slowly, or followers would seem to be
/// gone.
fn config_of_slow_disks() -> Config {
    Config {
        election_timeout: Duration::from_millis(300),
        slow_write_time: Duration::from_millis(30),
        slow_disk_patience: Some(Duration::from_millis(300)),
        disk_stall_timeout: Duration::from_secs(60),
        ..test_config()
    }
}

/// The disks of `slow` take 120 ms for what is written now.
fn write_slowly(cluster: &mut Cluster, slow: &[NodeId]) {
    let leader = cluster.until_leader();
    slow.iter().for_each(|node| cluster.hang_disk(*node));
    cluster.propose(leader);
    cluster.pass_ticks(12);
    cluster.repair_disks();
    cluster.settle();
}

#[test]
fn a_leader_whose_disk_is_slow_for_long_transfers_leadership_to_one_that_is_faster() {
    let (mut cluster, slow) = cluster_of_three(config_of_slow_disks());
    write_slowly(&mut cluster, &[slow]);
    write_slowly(&mut cluster, &[slow]);
    cluster.pass_ticks(50);
    assert_eq!(cluster.until_leader(), slow, "twice, and not for long");
    for _ in 0..6 {
        write_slowly(&mut cluster, &[slow]);
    }
    let faster = cluster.until_leader();
    assert_ne!(faster, slow);
    for _ in 0..20 {
        write_slowly(&mut cluster, &[slow]);
        assert_eq!(cluster.until_leader(), faster, "a slow follower costs nothing");
    }
    cluster.check_recovery();
}

#[test]
fn a_state_machine_on_disk_is_served_by_a_faster_leader_as_well() {
    let mut cluster = Cluster::new(11, 3, config_of_slow_disks());
    cluster.keep_state_on_disk(cluster.ids());
    for node in cluster.ids() {
        cluster.crash(node);
        cluster.start(node);
    }
    let slow = cluster.until_leader();
    cluster.until_proposed(slow);
    for _ in 0..6 {
        write_slowly(&mut cluster, &[slow]);
    }
    assert_ne!(cluster.until_leader(), slow);
    cluster.check_recovery();
}

#[test]
fn a_slow_disk_that_is_as_fast_as_a_majority_is_no_reason_to_transfer_leadership() {
    for slow_ones in [2, 3] {
        let (mut cluster, leader) = cluster_of_three(config_of_slow_disks());
        let mut slow = vec![leader];
        slow.extend(others(&cluster, leader));
        slow.truncate(slow_ones);
        for _ in 0..20 {
            write_slowly(&mut cluster, &slow);
        }
        assert_eq!(cluster.until_leader(), leader, "{slow_ones} of three are slow");
        cluster.check_recovery();
    }
}

#[test]
fn a_disk_that_is_slow_now_and_then_is_no_reason_to_transfer_leadership() {
    let (mut cluster, leader) = cluster_of_three(config_of_slow_disks());
    for _ in 0..10 {
        write_slowly(&mut cluster, &[leader]);
        cluster.until_proposed(leader);
    }
    assert_eq!(cluster.until_leader(), leader);
}

#[test]
fn leadership_does_not_go_back_and_forth_between_disks_that_become_slow() {
    let (mut cluster, first) = cluster_of_three(config_of_slow_disks());
    let mut leaders = vec![first];
    // Each leader is slow: 12 times 300 ms are 30 rounds of 120 ms.
    for _ in 0..60 {
        let leader = cluster.until_leader();
        write_slowly(&mut cluster, &[leader]);
        let now = cluster.until_leader();
        if leaders.last() != Some(&now) {
            leaders.push(now);
        }
    }
    // Each of the three transfers leadership once in that time, and not twice.
    assert!((2..=7).contains(&leaders.len()), "{leaders:?}");
    cluster.check_recovery();
}

#[test]
fn a_leader_that_shall_not_transfer_leadership_because_of_its_disk_does_not() {
    let config = Config { slow_disk_patience: None, ..config_of_slow_disks() };
    let (mut cluster, leader) = cluster_of_three(config);
    for _ in 0..12 {
        write_slowly(&mut cluster, &[leader]);
    }
    assert_eq!(cluster.until_leader(), leader);
}

#[test]
fn a_leader_with_a_full_disk_makes_room_for_one_with_space() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    cluster.fill_disk(leader);
    // It is accepted before leadership is transferred, and answered by the next leader.
    let proposal = cluster.propose(leader);
    cluster.until("another node leads", |cluster| cluster.leader().is_some_and(|other| other != leader));
    cluster.until("the write is acknowledged", |_| is_done(&proposal));
    let next = cluster.leader().unwrap();
    cluster.until_proposed(next);
    cluster.repair_disk(leader);
    cluster.check_recovery();
}

#[test]
fn a_leader_without_another_voter_with_room_refuses_writes_and_serves_reads() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let full = cluster.ids();
    full.iter().for_each(|node| cluster.fill_disk(*node));
    cluster.until("all disks are known to be full", |cluster| {
        full.iter().all(|node| storage_full(cluster, *node) == full)
    });
    let leader = cluster.leader().unwrap_or(leader);
    let proposal = cluster.propose(leader);
    cluster.settle();
    assert!(matches!(take(&proposal), Some(Err(ProposeError::StorageFull { .. }))));
    let read = cluster.read(leader);
    cluster.settle();
    assert!(matches!(take(&read), Some(Ok(_))), "it is readable");
    // Room on two of three disks is enough.
    full.iter().take(2).for_each(|node| cluster.repair_disk(*node));
    cluster.until("a node with room leads", |cluster| {
        cluster
            .leader()
            .is_some_and(|leader| full[..2].contains(&leader) && storage_full(cluster, leader) == full[2..])
    });
    let leader = cluster.leader().unwrap();
    cluster.until_proposed(leader);
    cluster.repair_disks();
    cluster.check_recovery();
}

/// The nodes whose disks are full, as `node` knows.
fn storage_full(cluster: &mut Cluster, node: NodeId) -> Vec<NodeId> {
    let inspection = outcome();
    cluster.local(node, LocalRequestMsg::Inspect { reply: responder(&inspection) });
    take(&inspection).unwrap().unwrap().storage_full
}

#[test]
fn followers_learn_of_a_commit_before_the_next_heartbeat() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let proposal = cluster.propose(leader);
    // No clock ticks.
    cluster.settle();
    let position = take(&proposal).expect("it is answered").unwrap();
    for node in cluster.ids() {
        assert_eq!(cluster.status(node).unwrap().applied, position.index, "{node}");
    }
}

#[test]
fn proposals_wait_for_a_batch_no_longer_than_a_tick() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let before = cluster.status(leader).unwrap().last.index;
    cluster.hang_disk(leader);
    for other in others(&cluster, leader) {
        cluster.cut().extend([(leader, other), (other, leader)]);
    }
    let under_way = propose_many(&mut cluster, leader, 64);
    assert_eq!(cluster.status(leader).unwrap().last.index, LogIndex(before.0 + 64));
    let waiting = propose_many(&mut cluster, leader, 3);
    assert_eq!(cluster.status(leader).unwrap().last.index, LogIndex(before.0 + 64), "they wait for more");
    cluster.tick(leader);
    assert_eq!(cluster.status(leader).unwrap().last.index, LogIndex(before.0 + 67));
    assert!(!under_way.iter().chain(&waiting).any(is_done), "no majority has them");
}

#[test]
fn a_batch_leaves_as_soon_as_the_followers_have_the_one_before_although_the_leaders_disk_hangs() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    cluster.hang_disk(leader);
    let first: Vec<_> = (0..64).map(|_| cluster.propose(leader)).collect();
    let second = cluster.propose(leader);
    assert!(take(&second).is_none());
    cluster.settle();
    assert!(first.iter().chain([&second]).all(is_done));
}

#[test]
fn proposals_that_wait_for_a_batch_when_leadership_is_transferred_are_served_by_the_next_leader() {
    let (mut cluster, leader) = cluster_of_three(test_config());
    let [next, ..] = others(&cluster, leader)[..] else { panic!("there are three") };
    cluster.hang_disk(leader);
    let under_way: Vec<_> = (0..64).map(|_| cluster.propose(leader)).collect();
    let waiting = cluster.propose(leader);
    let transferred = outcome();
    let request = LeaderRequest::TransferLeader { to: Some(next), reply: responder(&transferred) };
    cluster.local(leader, LocalRequestMsg::ForLeader(request));
    cluster.settle();
    assert_eq!(take(&transferred), Some(Ok(next)));
    cluster.pass_ticks(2);
    assert!(under_way.iter().chain([&waiting]).all(is_done));
}
