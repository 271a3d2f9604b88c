//! Nodes that are told to stop, and requests that find no leader, tried on whole clusters of cores.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use raftify_core::error::{ProposeError, ReadError, StopReason, UnknownOutcome};
use raftify_core::{Forwarding, LeaderRequest, NodeId, ServerRequestMsg};
use raftify_sim::script::{Cluster, outcome, payload, reply_to, take, test_config};

fn cluster_of(voters: u64) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(13, voters, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    (cluster, leader)
}

fn others(cluster: &Cluster, node: NodeId) -> Vec<NodeId> {
    cluster.ids().into_iter().filter(|other| *other != node).collect()
}

fn prepare_to_stop(cluster: &mut Cluster, node: NodeId) {
    cluster.core(node).prepare_to_stop();
    cluster.run_turns(node);
}

fn is_ready_to_stop(cluster: &mut Cluster, node: NodeId) -> bool {
    cluster.core(node).is_ready_to_stop()
}

#[test]
fn a_leader_that_is_told_to_stop_transfers_leadership_at_once_and_what_it_had_taken_is_answered() {
    let (mut cluster, leader) = cluster_of(3);
    let term = cluster.status(leader).unwrap().term;
    let taken: Vec<_> = (0..10).map(|_| cluster.propose(leader)).collect();
    let read = cluster.read(leader);
    prepare_to_stop(&mut cluster, leader);
    assert!(!is_ready_to_stop(&mut cluster, leader), "its replies are pending");
    let late = cluster.propose(leader);
    assert_eq!(take(&late), Some(Err(StopReason::Stopping.into())), "nothing happened");
    let late = cluster.read(leader);
    assert_eq!(take(&late), Some(Err(StopReason::Stopping.into())));

    // No time passes.
    cluster.settle();
    assert!(taken.iter().all(|proposal| take(proposal).unwrap().is_ok()), "{taken:?}");
    assert!(take(&read).unwrap().is_ok());
    assert!(is_ready_to_stop(&mut cluster, leader));
    let successor = cluster.leader().unwrap();
    assert_ne!(successor, leader);
    assert!(cluster.status(successor).unwrap().term > term);

    cluster.crash(leader);
    let after = cluster.propose(successor);
    cluster.settle();
    assert!(take(&after).unwrap().is_ok(), "the others go on without a pause");
}

#[test]
fn requests_of_others_that_reach_a_stopping_leader_wait_and_are_told_the_next_one() {
    let (mut cluster, leader) = cluster_of(3);
    // As long as its writes are not durable, nothing is answered.
    cluster.propose(leader);
    prepare_to_stop(&mut cluster, leader);
    let forwarded = outcome();
    let request = LeaderRequest::Propose { payload: payload(), reply: reply_to(&forwarded) };
    let core = cluster.core(leader);
    core.handle_server_request_msg(ServerRequestMsg::ForLeader { request, forwarding: Forwarding::Never });
    cluster.run_turns(leader);
    assert_eq!(take(&forwarded), None, "it waits for the next leader");
    cluster.settle();
    let successor = cluster.leader().unwrap();
    let Some(Err(ProposeError::NotLeader(hint))) = take(&forwarded) else { panic!("{forwarded:?}") };
    assert_eq!(hint.id, successor);
}

#[test]
fn a_stopping_leader_whose_successor_does_not_take_over_tries_another() {
    let (mut cluster, leader) = cluster_of(3);
    cluster.settle();
    prepare_to_stop(&mut cluster, leader);
    let told: Vec<NodeId> =
        others(&cluster, leader).into_iter().filter(|other| cluster.packets(leader, *other) > 0).collect();
    let [to] = told[..] else { panic!("one is told to take over: {told:?}") };
    let other = others(&cluster, leader).into_iter().find(|other| *other != to).unwrap();
    for link in [(to, leader), (leader, to), (to, other)] {
        cluster.cut().insert(link);
    }
    cluster.until("another one leads", |cluster| {
        cluster.status(other).unwrap().is_leader() && is_ready_to_stop(cluster, leader)
    });
}

#[test]
fn a_node_without_a_successor_is_ready_when_it_has_answered_what_it_has_taken() {
    let (mut cluster, alone) = cluster_of(1);
    let taken = cluster.propose(alone);
    prepare_to_stop(&mut cluster, alone);
    assert!(!is_ready_to_stop(&mut cluster, alone));
    cluster.settle();
    assert!(take(&taken).unwrap().is_ok());
    assert!(is_ready_to_stop(&mut cluster, alone));
}

#[test]
fn a_node_that_stops_before_it_is_ready_says_what_is_unknown_and_what_did_not_happen() {
    let (mut cluster, leader) = cluster_of(3);
    let [first, second] = others(&cluster, leader)[..] else { panic!("two others") };
    for other in [first, second] {
        cluster.cut().insert((leader, other));
        cluster.cut().insert((other, leader));
    }
    let taken = cluster.propose(leader);
    prepare_to_stop(&mut cluster, leader);
    let waits = outcome();
    let request = LeaderRequest::Propose { payload: payload(), reply: reply_to(&waits) };
    let core = cluster.core(leader);
    core.handle_server_request_msg(ServerRequestMsg::ForLeader { request, forwarding: Forwarding::Never });
    assert!(!core.is_ready_to_stop());
    core.stop(&StopReason::Stopped);
    let unknown = UnknownOutcome::NodeStopped(StopReason::Stopped);
    assert_eq!(take(&taken), Some(Err(ProposeError::Unknown(unknown))));
    let waits = take(&waits).unwrap().unwrap_err();
    assert!(waits.nothing_happened(), "it never came to be proposed: {waits}");
}

#[test]
fn requests_that_come_while_no_leader_is_known_are_served_by_the_next_one() {
    let (mut cluster, leader) = cluster_of(3);
    let [node, third] = others(&cluster, leader)[..] else { panic!("two others") };
    cluster.crash(leader);
    cluster.crash(third);
    cluster.until("it knows no leader", |cluster| cluster.status(node).unwrap().leader_id.is_none());
    let (proposal, read) = (cluster.propose(node), cluster.read(node));
    assert_eq!((take(&proposal), take(&read)), (None, None), "they wait");
    cluster.start(third);
    cluster.until("they are served", |_| take(&proposal).is_some() && take(&read).is_some());
    assert!(take(&proposal).unwrap().is_ok(), "{proposal:?}");
    assert!(take(&read).unwrap().is_ok(), "{read:?}");
}

#[test]
fn a_node_that_is_told_to_stop_while_it_knows_no_leader_sends_what_waits_elsewhere() {
    let (mut cluster, leader) = cluster_of(3);
    let [node, third] = others(&cluster, leader)[..] else { panic!("two others") };
    cluster.crash(leader);
    cluster.crash(third);
    cluster.until("it knows no leader", |cluster| cluster.status(node).unwrap().leader_id.is_none());
    let (proposal, read) = (cluster.propose(node), cluster.read(node));
    prepare_to_stop(&mut cluster, node);
    assert_eq!(take(&proposal), Some(Err(StopReason::Stopping.into())));
    assert_eq!(take(&read), Some(Err(StopReason::Stopping.into())));
    assert!(is_ready_to_stop(&mut cluster, node));
}

#[test]
fn requests_that_wait_for_a_leader_until_their_deadline_had_no_effect() {
    let mut cluster = Cluster::new(13, 3, test_config());
    let leader = cluster.until_leader();
    let [node, third] = others(&cluster, leader)[..] else { panic!("two others") };
    cluster.crash(leader);
    cluster.crash(third);
    cluster.until("it knows no leader", |cluster| cluster.status(node).unwrap().leader_id.is_none());
    let (proposal, read) = (cluster.propose(node), cluster.read(node));
    cluster.until("they are answered", |_| take(&proposal).is_some() && take(&read).is_some());
    assert_eq!(take(&proposal), Some(Err(ProposeError::NoLeader)));
    assert_eq!(take(&read), Some(Err(ReadError::NoLeader)));
}

#[test]
fn a_node_that_was_started_again_is_told_of_the_leader_as_soon_as_that_reaches_it() {
    let (mut cluster, leader) = cluster_of(3);
    let follower = others(&cluster, leader)[0];
    // Not only when a regular heartbeat is due: that is with every second tick.
    for ticks in [1, 1, 2, 2, 1] {
        cluster.crash(follower);
        for _ in 0..ticks {
            cluster.tick(leader);
        }
        cluster.settle();
        cluster.start(follower);
        cluster.tick(follower);
        cluster.settle();
        assert_eq!(cluster.status(follower).unwrap().leader_id, None, "it was not told yet");
        cluster.tick(leader);
        cluster.settle();
        assert_eq!(cluster.status(follower).unwrap().leader_id, Some(leader));
    }
}
