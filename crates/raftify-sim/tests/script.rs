//! The script itself: a step that violates an invariant fails the test with the name of that invariant, and
//! the same steps have the same result.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use raftify_core::{
    LocalRequestMsg, LogPosition, NodeId, RaftMessage, RaftMessageBody, Role, ServerRequestMsg,
};
use raftify_sim::script::{Cluster, outcome, responder, take, test_config};

fn cluster_of_three() -> (Cluster, NodeId, [NodeId; 2]) {
    let mut cluster = Cluster::new(7, 3, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    (cluster, leader, [others[0], others[1]])
}

fn isolate(cluster: &mut Cluster, node: NodeId) {
    for other in cluster.ids() {
        cluster.cut().extend([(node, other), (other, node)]);
    }
}

/// `node` hears from `from` what that has not said.
fn lie(cluster: &mut Cluster, node: NodeId, from: NodeId, body: RaftMessageBody) {
    let (sender, receiver) = cluster.introduction(from, node);
    let term = cluster.status(node).unwrap().term;
    let messages = vec![RaftMessage { from, to: node, term, body }];
    let request = ServerRequestMsg::RaftMessages { sender, receiver, messages };
    cluster.core(node).handle_server_request_msg(request);
    cluster.run_turns(node);
}

#[test]
#[should_panic(expected = "commit index: leader")]
fn a_commit_without_a_durable_quorum_fails_the_test_by_its_name() {
    let (mut cluster, leader, [follower, _]) = cluster_of_three();
    isolate(&mut cluster, leader);
    cluster.propose(leader);
    cluster.settle();
    let status = cluster.status(leader).unwrap();
    let (index, commit) = (status.last.index, status.commit);
    lie(&mut cluster, leader, follower, RaftMessageBody::AppendResponse { index, commit, rejection: None });
}

#[test]
#[should_panic(expected = "election safety: nodes")]
fn two_leaders_in_one_term_fail_the_test_by_its_name() {
    let (mut cluster, leader, candidates) = cluster_of_three();
    candidates.into_iter().for_each(|node| isolate(&mut cluster, node));
    cluster.settle();
    let commit = LogPosition::ZERO;
    for candidate in candidates {
        cluster.pass_ticks(20);
        cluster.local(candidate, LocalRequestMsg::Campaign { reply: responder(&outcome()) });
        cluster.settle();
        lie(&mut cluster, candidate, leader, RaftMessageBody::PreVoteResponse { granted: true, commit });
        cluster.settle();
        assert_eq!(cluster.status(candidate).unwrap().role, Role::Candidate);
        lie(&mut cluster, candidate, leader, RaftMessageBody::VoteResponse { granted: true, commit });
        assert_eq!(cluster.status(candidate).unwrap().role, Role::Leader);
    }
}

#[test]
fn the_same_steps_have_the_same_trace() {
    let play = || {
        let (mut cluster, leader, [one, two]) = cluster_of_three();
        cluster.crash(leader);
        let next = cluster.until_leader();
        let read = cluster.read(one);
        cluster.start(leader);
        cluster.hang_disk(two);
        cluster.until_proposed(next);
        cluster.until("the read is answered", |_| take(&read).is_some());
        cluster.check_recovery();
        cluster.trace().to_owned()
    };
    let (one, other) = (play(), play());
    assert!(one.lines().count() > 20, "something happens");
    assert_eq!(one, other);
}

#[test]
fn no_time_passes_and_nothing_arrives_by_itself() {
    let (mut cluster, leader, [one, _]) = cluster_of_three();
    let proposal = cluster.propose(leader);
    assert_eq!(take(&proposal), None);
    assert_eq!(cluster.packets(leader, one), 1);
    assert!(cluster.deliver(leader, one) && !cluster.deliver(leader, one));
    assert_eq!(cluster.packets(one, leader), 0, "its disk has not written it");
    assert!(cluster.complete_write(one));
    cluster.drop_packets(one, leader);
    assert!(!cluster.deliver(one, leader), "the acknowledgement is lost");
    cluster.settle();
    assert!(take(&proposal).is_some_and(|answer| answer.is_ok()), "the other follower has it");
}
