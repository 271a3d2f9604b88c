//! Joining, leaving and changing roles, tried on whole clusters of cores: no change that is accepted costs a
//! cluster its majority, and a node that joins costs the others nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use raftify_core::error::MembershipError;
use raftify_core::members::{LeaveJoint, MembershipRefusal};
use raftify_core::{
    Config, LogIndex, LogPosition, Member, MemberChange, MemberRole, MembershipChange, MembershipRequest,
    NodeId, Sender, ServerRequestMsg, Started,
};
use raftify_sim::script::{Cluster, id, take, test_config};

fn cluster_of(voters: u64) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(11, voters, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    (cluster, leader)
}

fn remove(node: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::Remove(node))
}

fn set_role(node: NodeId, role: MemberRole) -> MembershipChange {
    MembershipChange::one(MemberChange::SetRole { id: node, role })
}

/// A node that waits for the cluster, with its identity on disk.
fn joiner(cluster: &mut Cluster, number: u64, role: MemberRole) -> Member {
    cluster.add_node(id(number));
    cluster.await_cluster(id(number));
    cluster.settle();
    let incarnation = Some(cluster.incarnation(id(number)));
    Member { role, incarnation, ..Member::voter(id(number), format!("node-{number}:1")) }
}

fn join(cluster: &mut Cluster, leader: NodeId, joiners: Vec<Member>) {
    let asked = cluster.request(leader, MembershipRequest::join(joiners));
    cluster.until("the nodes are let in", |_| take(&asked).is_some());
    take(&asked).unwrap().unwrap();
}

fn role(cluster: &Cluster, on: NodeId, of: NodeId) -> Option<MemberRole> {
    cluster.status(on)?.members.get(of).map(|member| member.role)
}

fn until_role(cluster: &mut Cluster, on: NodeId, of: NodeId, expected: MemberRole) {
    cluster.until("the node has its role", |cluster| role(cluster, on, of) == Some(expected));
}

fn crash(cluster: &mut Cluster, node: NodeId) {
    cluster.lose_unsynced(node);
    // The others notice its silence.
    cluster.pass_ticks(12);
}

fn refusal(cluster: &mut Cluster, leader: NodeId, request: impl Into<MembershipRequest>) -> MembershipError {
    let before = cluster.status(leader).unwrap().last;
    let asked = cluster.request(leader, request.into());
    cluster.until("it is refused", |_| take(&asked).is_some());
    let error = take(&asked).unwrap().unwrap_err();
    assert_eq!(cluster.status(leader).unwrap().last, before, "something was written");
    error
}

#[test]
fn a_node_that_is_added_as_a_voter_joins_first_and_is_promoted_when_it_has_the_log() {
    let (mut cluster, leader) = cluster_of(1);
    for _ in 0..30 {
        cluster.until_proposed(leader);
    }
    let new = joiner(&mut cluster, 2, MemberRole::Voter);
    cluster.cut().insert((leader, id(2)));
    let added = cluster.request(leader, MembershipChange::one(MemberChange::Add(new)).into());
    cluster.settle();
    let members = take(&added).unwrap().unwrap();
    assert_eq!(members.get(id(2)).unwrap().role, MemberRole::Joining);
    // It has received nothing yet, and costs nothing: neither a write nor a vote.
    cluster.pass_ticks(50);
    assert_eq!(role(&cluster, leader, id(2)), Some(MemberRole::Joining));
    cluster.until_proposed(leader);

    cluster.cut().clear();
    until_role(&mut cluster, leader, id(2), MemberRole::Voter);
    until_role(&mut cluster, id(2), id(2), MemberRole::Voter);
    cluster.check_recovery();
}

#[test]
fn bug_25_a_joining_node_that_received_only_a_snapshot_is_promoted() {
    let config = Config { snapshot_entries: Some(5), log_entries_kept: 0, ..test_config() };
    let mut cluster = Cluster::new(5, 1, config);
    let leader = cluster.until_leader();
    for _ in 0..20 {
        cluster.until_proposed(leader);
    }
    let new = joiner(&mut cluster, 2, MemberRole::Voter);
    let snapshots = cluster.snapshots_installed();
    join(&mut cluster, leader, vec![new]);
    until_role(&mut cluster, leader, id(2), MemberRole::Voter);
    assert!(cluster.snapshots_installed() > snapshots, "it came by a snapshot");
    cluster.check_recovery();
}

/// A leader whose log begins after a snapshot that it has taken a while ago.
fn cluster_with_a_snapshot(voters: u64) -> (Cluster, NodeId, LogPosition) {
    let config = Config { snapshot_entries: Some(20), log_entries_kept: 0, ..test_config() };
    let config = Config { log_bytes_kept_for_followers: 1 << 20, ..config };
    let mut cluster = Cluster::new(5, voters, config);
    let leader = cluster.until_leader();
    while cluster.status(leader).unwrap().snapshot.is_none() {
        cluster.until_proposed(leader);
    }
    let snapshot = cluster.status(leader).unwrap().snapshot.unwrap();
    (cluster, leader, snapshot)
}

#[test]
fn a_joining_node_is_sent_the_snapshot_from_before_it_became_a_member() {
    let (mut cluster, leader, snapshot) = cluster_with_a_snapshot(1);
    let new = joiner(&mut cluster, 2, MemberRole::Voter);
    join(&mut cluster, leader, vec![new]);
    until_role(&mut cluster, id(2), id(2), MemberRole::Voter);
    for node in [leader, id(2)] {
        assert_eq!(cluster.status(node).unwrap().snapshot, Some(snapshot), "another one was taken for it");
    }
    cluster.check_recovery();
}

#[test]
fn a_snapshot_that_is_being_taken_at_leisure_is_hurried_when_a_joining_node_waits_for_it() {
    let (mut cluster, leader) = cluster_of(1);
    cluster.leisurely_snapshots = true;
    let taken = cluster.make_snapshot(leader);
    cluster.pass_ticks(100);
    assert!(take(&taken).is_none());
    let new = joiner(&mut cluster, 2, MemberRole::Voter);
    join(&mut cluster, leader, vec![new]);
    until_role(&mut cluster, id(2), id(2), MemberRole::Voter);
    let snapshot = take(&taken).unwrap().unwrap();
    assert_eq!(cluster.status(id(2)).unwrap().snapshot, Some(snapshot), "one was enough");
}

#[test]
fn another_change_may_come_before_the_one_that_adds_the_receiver_of_an_earlier_snapshot() {
    let (mut cluster, leader, snapshot) = cluster_with_a_snapshot(1);
    let others = [3, 4].map(|number| joiner(&mut cluster, number, MemberRole::Learner));
    join(&mut cluster, leader, others.to_vec());
    let new = joiner(&mut cluster, 2, MemberRole::Voter);
    join(&mut cluster, leader, vec![new]);
    until_role(&mut cluster, id(2), id(2), MemberRole::Voter);
    assert_eq!(cluster.status(id(2)).unwrap().snapshot, Some(snapshot));
    cluster.check_recovery();
}

#[test]
fn a_snapshot_of_a_joint_configuration_may_be_sent_to_a_node_that_joins_after_it() {
    let (mut cluster, leader, _) = cluster_with_a_snapshot(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    let steps = others.iter().map(|id| MemberChange::SetRole { id: *id, role: MemberRole::Learner });
    let enter = MembershipChange::Steps { steps: steps.collect(), leave: LeaveJoint::OnRequest };
    let asked = cluster.request(leader, enter.into());
    cluster.until("the joint configuration is entered", |_| take(&asked).is_some());
    let taken = cluster.make_snapshot(leader);
    cluster.until("a snapshot is taken", |_| take(&taken).is_some());
    let snapshot = take(&taken).unwrap().unwrap();
    let asked = cluster.request(leader, MembershipChange::LeaveJoint.into());
    cluster.until("the joint configuration is left", |_| take(&asked).is_some());
    let new = joiner(&mut cluster, 4, MemberRole::Voter);
    join(&mut cluster, leader, vec![new]);
    until_role(&mut cluster, id(4), id(4), MemberRole::Voter);
    assert_eq!(cluster.status(id(4)).unwrap().snapshot, Some(snapshot));
    cluster.check_recovery();
}

#[test]
fn a_joining_node_that_has_an_earlier_snapshot_and_restarts_is_not_taken_for_removed() {
    let (mut cluster, leader, snapshot) = cluster_with_a_snapshot(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    let cut = |cluster: &mut Cluster, one, other| cluster.cut().extend([(one, other), (other, one)]);
    let deliver_all = |cluster: &mut Cluster, from, to| while cluster.deliver(from, to) {};
    let new = joiner(&mut cluster, 4, MemberRole::Voter);
    cluster.slow_snapshots = true;
    // One of the others has the change that adds it, and neither has been told that this is committed.
    cut(&mut cluster, others[0], others[1]);
    cut(&mut cluster, leader, others[1]);
    cluster.request(leader, MembershipRequest::join(vec![new]));
    deliver_all(&mut cluster, leader, others[0]);
    cluster.complete_writes(others[0], 10);
    cluster.complete_writes(leader, 10);
    deliver_all(&mut cluster, others[0], leader);
    cut(&mut cluster, leader, others[0]);
    cluster.until("a snapshot is on its way", |cluster| cluster.is_sending_snapshots());
    cluster.deliver_snapshots();
    deliver_all(&mut cluster, leader, id(4));
    cut(&mut cluster, leader, id(4));
    cluster.settle();
    assert_eq!(cluster.status(id(4)).unwrap().snapshot, Some(snapshot));
    assert_eq!(role(&cluster, id(4), id(4)), None, "the change is still to come");
    assert_eq!(role(&cluster, leader, id(4)), Some(MemberRole::Joining));

    cluster.lose_unsynced(id(4));
    cluster.start(id(4));
    cluster.pass_ticks(50);
    assert!(cluster.status(id(4)).is_some(), "those who do not know of it yet refuse it");
    cluster.slow_snapshots = false;
    cluster.cut().clear();
    until_role(&mut cluster, id(4), id(4), MemberRole::Voter);
    cluster.check_recovery();
}

#[test]
fn a_joining_node_that_no_majority_reaches_at_its_address_is_not_promoted() {
    let (mut cluster, leader) = cluster_of(3);
    let new = joiner(&mut cluster, 4, MemberRole::Voter);
    cluster.hide_address(id(4));
    join(&mut cluster, leader, vec![new]);
    cluster.until_proposed(leader);
    cluster.pass_ticks(200);
    assert_eq!(role(&cluster, leader, id(4)), Some(MemberRole::Joining));
    let error = refusal(&mut cluster, leader, set_role(id(4), MemberRole::Voter));
    assert_eq!(error, MembershipError::NotReached { id: id(4), by: vec![], voters: 3 });

    cluster.show_address(id(4));
    until_role(&mut cluster, leader, id(4), MemberRole::Voter);
}

#[test]
fn a_node_that_is_behind_is_not_promoted_on_request() {
    let (mut cluster, leader) = cluster_of(3);
    let new = joiner(&mut cluster, 4, MemberRole::Learner);
    cluster.cut().insert((leader, id(4)));
    join(&mut cluster, leader, vec![new]);
    cluster.pass_ticks(30);
    match refusal(&mut cluster, leader, set_role(id(4), MemberRole::Voter)) {
        MembershipError::NotCaughtUp { id: behind, matched, .. } => {
            assert_eq!((behind, matched), (id(4), LogIndex::ZERO));
        }
        other => panic!("{other:?}"),
    }
    cluster.cut().clear();
    cluster.pass_ticks(50);
    assert_eq!(
        role(&cluster, leader, id(4)),
        Some(MemberRole::Learner),
        "it was not asked to become a voter"
    );
    let promoted = cluster.request(leader, set_role(id(4), MemberRole::Voter).into());
    cluster.until("it is promoted", |_| take(&promoted).is_some());
    assert_eq!(take(&promoted).unwrap().unwrap().get(id(4)).unwrap().role, MemberRole::Voter);
    let again = refusal(&mut cluster, leader, set_role(id(4), MemberRole::Voter));
    let has_role = MembershipRefusal::HasRole { id: id(4), role: MemberRole::Voter };
    assert_eq!(again, MembershipError::Refused(has_role));
}

#[test]
fn a_change_that_leaves_no_live_majority_is_refused_and_removing_the_dead_is_not() {
    for change in [remove, |node| set_role(node, MemberRole::Learner)] {
        let (mut cluster, leader) = cluster_of(3);
        let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
        crash(&mut cluster, others[0]);
        let error = refusal(&mut cluster, leader, change(others[1]));
        assert_eq!(error, MembershipError::WouldLoseMajority { voters: 2, missing: vec![others[0]] });
        let text = error.to_string();
        assert!(text.contains(&format!("node {}", others[0])) && text.contains("force"), "{text}");

        let removed = cluster.request(leader, remove(others[0]).into());
        cluster.until("the dead one is removed", |_| take(&removed).is_some());
        take(&removed).unwrap().unwrap();
        let left = cluster.request(leader, change(others[1]).into());
        cluster.until("the live one goes", |_| take(&left).is_some());
        take(&left).unwrap().unwrap();
        cluster.until_proposed(leader);
    }
}

#[test]
fn a_voter_that_died_a_moment_ago_does_not_count_as_alive() {
    let (mut cluster, leader) = cluster_of(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    cluster.lose_unsynced(others[0]);
    let error = refusal(&mut cluster, leader, remove(others[1]));
    assert_eq!(error, MembershipError::WouldLoseMajority { voters: 2, missing: vec![others[0]] });
    cluster.until_proposed(leader);
}

#[test]
fn the_leader_itself_does_not_leave_when_the_rest_would_be_no_live_majority() {
    let (mut cluster, leader) = cluster_of(3);
    let dead = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
    crash(&mut cluster, dead);
    let error = refusal(&mut cluster, leader, remove(leader));
    assert_eq!(error, MembershipError::WouldLoseMajority { voters: 2, missing: vec![dead] });
    cluster.until_proposed(leader);
}

#[test]
fn a_change_that_leaves_no_live_majority_is_made_when_it_is_forced() {
    let (mut cluster, leader) = cluster_of(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    crash(&mut cluster, others[0]);
    let request = MembershipRequest::from(remove(others[1])).forced();
    let removed = cluster.request(leader, request);
    cluster.until("it is removed", |_| take(&removed).is_some());
    assert_eq!(take(&removed).unwrap().unwrap().len(), 2);
}

#[test]
fn a_change_made_from_another_membership_than_the_present_one_is_refused() {
    let (mut cluster, leader) = cluster_of(3);
    cluster.pass_ticks(50);
    let as_of = cluster.status(leader).unwrap().members.as_of();
    let gone = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
    let first = cluster.request(leader, MembershipRequest::from(remove(gone)).expecting(as_of));
    cluster.until("the first is made", |_| take(&first).is_some());
    let actual = take(&first).unwrap().unwrap().as_of();
    let again = MembershipRequest::from(remove(gone)).expecting(as_of);
    let error = refusal(&mut cluster, leader, again);
    assert_eq!(error, MembershipError::MembershipMoved { expected: as_of, actual });
}

#[test]
fn two_nodes_that_leave_at_once_are_both_served() {
    let (mut cluster, leader) = cluster_of(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    let left: Vec<_> = others.iter().map(|node| cluster.request(*node, remove(*node).into())).collect();
    cluster.until("both have left", |_| left.iter().all(|left| take(left).is_some()));
    for left in left {
        take(&left).unwrap().unwrap();
    }
    assert_eq!(cluster.status(leader).unwrap().members.len(), 1);
    cluster.until_proposed(leader);
}

#[test]
fn a_change_waits_for_one_that_is_under_way_and_is_refused_at_its_deadline() {
    let (mut cluster, leader) = cluster_of(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    // What they remember of the election is durable.
    cluster.pass_ticks(5);
    // Nothing is committed any more.
    for follower in &others {
        cluster.hang_disk(*follower);
    }
    let first = cluster.request(leader, remove(others[0]).into());
    let second = cluster.request(leader, set_role(others[1], MemberRole::Learner).into());
    cluster.settle();
    assert!(take(&first).is_none() && take(&second).is_none());
    cluster.until("both are answered", |_| take(&first).is_some() && take(&second).is_some());
    let waited = [first, second]
        .iter()
        .filter(|asked| take(asked) == Some(Err(MembershipError::ChangePending)))
        .count();
    assert_eq!(waited, 1, "one is in the log, the other waits for it");
}

#[test]
fn a_change_that_waits_for_another_one_is_answered_within_the_time_of_its_request() {
    let (mut cluster, leader) = cluster_of(3);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    // What they remember of the election is durable.
    cluster.pass_ticks(5);
    // Nothing is committed any more.
    for follower in &others {
        cluster.hang_disk(*follower);
    }
    let first = cluster.change(leader, remove(others[0]));
    let within = test_config().tick_interval * 3;
    let second = cluster.request_within(leader, set_role(others[1], MemberRole::Learner).into(), within);
    cluster.pass_ticks(2);
    assert_eq!(take(&second), None);
    cluster.pass_ticks(1);
    assert_eq!(take(&second), Some(Err(MembershipError::ChangePending)));
    assert_eq!(take(&first), None);
}

#[test]
fn several_joining_nodes_become_voters_through_one_joint_configuration() {
    let (mut cluster, leader) = cluster_of(1);
    let joiners = [2, 3].map(|number| joiner(&mut cluster, number, MemberRole::Voter));
    join(&mut cluster, leader, joiners.to_vec());
    cluster.until("all vote", |cluster| {
        let members = cluster.status(leader).unwrap().members;
        !members.is_joint() && [2, 3].iter().all(|n| members.get(id(*n)).unwrap().role == MemberRole::Voter)
    });
    cluster.check_recovery();
}

#[test]
fn a_learner_stays_one_over_its_own_join_a_restart_and_a_snapshot() {
    let (mut cluster, leader) = cluster_of(3);
    let learner = joiner(&mut cluster, 4, MemberRole::Learner);
    join(&mut cluster, leader, vec![learner.clone()]);
    until_role(&mut cluster, id(4), id(4), MemberRole::Learner);
    let asks_to_vote = Member { role: MemberRole::Voter, ..learner };
    join(&mut cluster, leader, vec![asks_to_vote]);
    crash(&mut cluster, id(4));
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    cluster.start(id(4));
    cluster.pass_ticks(200);
    for node in cluster.ids() {
        assert_eq!(role(&cluster, node, id(4)), Some(MemberRole::Learner));
    }
    cluster.check_recovery();
}

#[test]
fn a_joining_node_that_is_gone_is_cleared_and_may_join_again() {
    let config = Config { joiner_timeout: std::time::Duration::from_secs(1), ..test_config() };
    let mut cluster = Cluster::new(3, 3, config);
    let leader = cluster.until_leader();
    let new = joiner(&mut cluster, 4, MemberRole::Voter);
    cluster.hide_address(id(4));
    join(&mut cluster, leader, vec![new.clone()]);
    crash(&mut cluster, id(4));
    cluster.until("it is cleared", |cluster| role(cluster, leader, id(4)).is_none());
    cluster.until_proposed(leader);

    cluster.show_address(id(4));
    cluster.start(id(4));
    join(&mut cluster, leader, vec![new]);
    until_role(&mut cluster, id(4), id(4), MemberRole::Voter);
    cluster.check_recovery();
}

#[test]
fn a_new_directory_at_the_address_of_a_joining_node_takes_its_place() {
    let (mut cluster, leader) = cluster_of(3);
    let first = joiner(&mut cluster, 4, MemberRole::Voter);
    cluster.hide_address(id(4));
    join(&mut cluster, leader, vec![first.clone()]);
    cluster.lose_unsynced(id(4));
    cluster.wipe(id(4));
    cluster.add_node_at(id(5), &first.address);
    cluster.settle();
    let incarnation = Some(cluster.incarnation(id(5)));
    let second = Member { id: id(5), incarnation, ..first };
    join(&mut cluster, leader, vec![second]);
    assert_eq!(role(&cluster, leader, id(4)), None);
    until_role(&mut cluster, leader, id(5), MemberRole::Voter);
}

#[test]
fn a_ticket_whose_id_another_directory_uses_is_refused() {
    let (mut cluster, leader) = cluster_of(3);
    let new = joiner(&mut cluster, 4, MemberRole::Voter);
    join(&mut cluster, leader, vec![new.clone()]);
    let known = new.incarnation.unwrap();
    let other = Member { incarnation: Some(raftify_core::Incarnation(999)), ..new };
    let error = refusal(&mut cluster, leader, MembershipRequest::join(vec![other]));
    let new = raftify_core::Incarnation(999);
    let expected = MembershipRefusal::OtherIncarnation { id: id(4), known, new };
    assert_eq!(error, MembershipError::Refused(expected));
}

#[test]
fn a_voter_is_replaced_in_one_step_that_never_has_fewer_votes() {
    let (mut cluster, leader) = cluster_of(3);
    let old = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
    crash(&mut cluster, old);
    let new = joiner(&mut cluster, 4, MemberRole::Learner);
    join(&mut cluster, leader, vec![new]);
    let steps = vec![MemberChange::SetRole { id: id(4), role: MemberRole::Voter }, MemberChange::Remove(old)];
    let replacement = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
    let mut replaced = cluster.request(leader, replacement.clone().into());
    cluster.until("it is replaced", |cluster| {
        match take(&replaced) {
            Some(Err(MembershipError::NotCaughtUp { .. } | MembershipError::NotReached { .. })) => {
                replaced = cluster.request(leader, replacement.clone().into());
            }
            Some(answer) => return answer.is_ok(),
            None => {}
        }
        false
    });
    let members = cluster.status(leader).unwrap().members;
    assert_eq!(members.configuration().voters.len(), 3);
    assert!(members.get(old).is_none());
    cluster.until_proposed(leader);
}

#[test]
fn a_member_that_announces_a_new_address_is_recorded_there() {
    let (mut cluster, leader) = cluster_of(3);
    let moved = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
    let everybody_knows = |cluster: &mut Cluster, incarnation| {
        cluster.until("the leader knows the incarnation", |cluster| {
            cluster.status(leader).unwrap().members.get(moved).unwrap().incarnation == Some(incarnation)
        });
    };
    let incarnation = cluster.incarnation(moved);
    everybody_knows(&mut cluster, incarnation);
    let announce = |cluster: &mut Cluster, incarnation, address: &str| {
        let started = Started::default();
        let sender = Sender { id: moved, incarnation, members_as_of: LogIndex::ZERO, started };
        let announced = ServerRequestMsg::Announced { sender, address: address.to_owned() };
        cluster.core(leader).handle_server_request_msg(announced);
        cluster.run_turns(leader);
        cluster.pass_ticks(20);
    };
    let address =
        |cluster: &Cluster| cluster.status(leader).unwrap().members.get(moved).unwrap().address.clone();
    let before = address(&cluster);
    announce(&mut cluster, raftify_core::Incarnation(999), "elsewhere:1");
    assert_eq!(address(&cluster), before, "another life of the node is not believed");
    for elsewhere in ["elsewhere:1", "elsewhere-again:1"] {
        // From now on, its own messages say so as well.
        cluster.move_to(moved, elsewhere);
        announce(&mut cluster, incarnation, elsewhere);
        assert_eq!(address(&cluster), elsewhere);
    }
    let role = role(&cluster, leader, moved);
    assert_eq!(role, Some(MemberRole::Voter));
    cluster.check_recovery();
}

#[test]
fn a_pledged_node_that_votes_before_it_begins_keeps_its_vote() {
    let mut cluster = Cluster::new(9, 3, test_config());
    let (first, away, pledged) = (id(1), id(2), id(3));
    // The first begins while the third is only pledged to the cluster, and the second is away.
    cluster.crash(pledged);
    cluster.pledge(pledged);
    cluster.start(pledged);
    for other in [first, pledged] {
        cluster.cut().extend([(away, other), (other, away)]);
    }
    cluster.until("it votes", |cluster| cluster.stored(pledged).hard_state.vote == Some(first));
    let voted = cluster.stored(pledged);
    assert!(voted.members.is_none(), "it was let in already");
    cluster.start_cluster(pledged);
    cluster.settle();
    let begun = cluster.stored(pledged);
    assert!(begun.members.is_some());
    assert!(begun.hard_state.term > voted.hard_state.term || begun.hard_state.vote == Some(first));
    cluster.cut().clear();
    cluster.check_recovery();
}
