//! Bugs that other Raft systems shipped, each tried on whole clusters of cores. The numbers are those of the
//! table in `docs/testing/guarantees.md`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use raftify_core::error::{
    CampaignError, MembershipError, ProposeError, ReadError, StopReason, TransferError, UnknownOutcome,
};
use raftify_core::members::{LeaveJoint, MembershipRefusal, SenderRefusal};
use raftify_core::message::CampaignReason;
use raftify_core::{
    Config, Entry, Forwarding, Incarnation, LeaderRequest, LocalRequestMsg, LogIndex, LogPosition, Member,
    MemberChange, MemberRole, MembershipChange, NodeId, RaftMessage, RaftMessageBody, ReplicationState, Role,
    Sender, ServerRequestMsg, SnapshotToSend, Started, Status, Term, TurnNumber,
};
use raftify_sim::script::{Cluster, id, outcome, payload, reply_to, responder, take, test_config};

fn cluster_of_three() -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(7, 3, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    (cluster, leader)
}

/// Their state machines keep their state on disk.
fn three_on_disk() -> (Cluster, NodeId) {
    let (mut cluster, _) = cluster_of_three();
    cluster.keep_state_on_disk(cluster.ids());
    for node in cluster.ids() {
        cluster.crash(node);
        cluster.start(node);
    }
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    (cluster, leader)
}

fn isolate(cluster: &mut Cluster, node: NodeId) {
    for other in cluster.ids() {
        cluster.cut().insert((node, other));
        cluster.cut().insert((other, node));
    }
}

fn others(cluster: &Cluster, node: NodeId) -> Vec<NodeId> {
    cluster.ids().into_iter().filter(|other| *other != node).collect()
}

fn remove(node: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::Remove(node))
}

/// A node that waits for the cluster, with its identity on disk.
fn joiner(cluster: &mut Cluster, number: u64) -> Member {
    cluster.add_node(id(number));
    cluster.await_cluster(id(number));
    cluster.settle();
    Member {
        incarnation: Some(cluster.incarnation(id(number))),
        ..Member::voter(id(number), format!("node-{number}:1"))
    }
}

/// The leader steps down, and leaves the succession to an election.
fn demote(cluster: &mut Cluster, leader: NodeId) {
    let term = cluster.status(leader).unwrap().term;
    let reply = responder(&outcome());
    cluster.local(leader, LocalRequestMsg::Demote { term, successor: None, reply });
    assert_eq!(cluster.leader(), None);
}

/// `body` comes to `node` as a message of `from`.
fn hear(cluster: &mut Cluster, node: NodeId, from: NodeId, term: Term, body: RaftMessageBody) {
    let members_as_of = cluster.status(node).unwrap().members.as_of();
    let sender = Sender { members_as_of, ..cluster.introduction(from, node).0 };
    let messages = vec![RaftMessage { from, to: node, term, body }];
    let request = ServerRequestMsg::RaftMessages { sender, receiver: None, messages };
    cluster.core(node).handle_server_request_msg(request);
    cluster.run_turns(node);
}

/// How far `leader` knows the log of `follower` to agree with its own.
fn matched(cluster: &mut Cluster, leader: NodeId, follower: NodeId) -> LogIndex {
    let inspection = outcome();
    cluster.local(leader, LocalRequestMsg::Inspect { reply: responder(&inspection) });
    let progress = take(&inspection).unwrap().unwrap().progress;
    progress.into_iter().find(|peer| peer.id == follower).unwrap().matched
}

#[test]
fn bug_1_a_lost_proposal_is_not_answered_by_the_entry_that_took_its_place() {
    let (mut cluster, old_leader) = cluster_of_three();
    isolate(&mut cluster, old_leader);
    let lost = cluster.propose(old_leader);
    cluster.settle();
    let index = cluster.status(old_leader).unwrap().last.index;
    assert!(take(&lost).is_none());

    cluster.until("the others elect a leader", |cluster| cluster.leader() != Some(old_leader));
    let new_leader = cluster.leader().unwrap();
    cluster.until_proposed(new_leader);
    cluster.cut().clear();
    cluster.until("the proposal is answered", |_| take(&lost).is_some());
    assert_eq!(take(&lost), Some(Err(ProposeError::NotApplied { index })));
    cluster.check_recovery();
}

#[test]
fn bug_4_no_node_leads_without_votes() {
    let mut cluster = Cluster::new(3, 3, test_config());
    for node in cluster.ids() {
        isolate(&mut cluster, node);
    }
    for _ in 0..20 {
        cluster.pass_ticks(5);
        for node in cluster.ids() {
            assert_ne!(cluster.status(node).unwrap().role, Role::Leader);
        }
    }
}

#[test]
fn bug_5_a_change_that_is_refused_is_answered_with_the_reason() {
    let (mut cluster, leader) = cluster_of_three();
    let unknown = cluster.change(leader, remove(id(9)));
    let refusal = MembershipRefusal::UnknownMember { id: id(9) };
    assert_eq!(take(&unknown).unwrap().unwrap_err(), MembershipError::Refused(refusal));

    let follower = others(&cluster, leader)[0];
    let first = cluster.change(leader, remove(follower));
    let second = cluster.change(leader, remove(others(&cluster, leader)[1]));
    assert_eq!(take(&second), None, "changes are made one at a time");
    cluster.until("both changes are made", |_| take(&first).is_some() && take(&second).is_some());
    assert_eq!(take(&first).unwrap().unwrap().len(), 2);
    assert_eq!(take(&second).unwrap().unwrap().len(), 1);
}

#[test]
fn bug_5_the_last_voter_cannot_be_removed() {
    let mut cluster = Cluster::new(1, 1, test_config());
    let leader = cluster.until_leader();
    let refused = cluster.change(leader, remove(leader));
    assert_eq!(take(&refused), Some(Err(MembershipError::Refused(MembershipRefusal::LastVoter))));
}

#[test]
fn bug_6_every_request_without_a_leader_is_answered() {
    let mut cluster = Cluster::new(5, 3, test_config());
    let node = id(1);
    let proposal = cluster.propose(node);
    let read = cluster.read(node);
    let change = cluster.change(node, remove(id(2)));
    let (transfer, reservation) = (outcome(), outcome());
    let request = LeaderRequest::TransferLeader { to: Some(id(2)), reply: responder(&transfer) };
    cluster.local(node, LocalRequestMsg::ForLeader(request));
    let request = LeaderRequest::ReserveNodeId { reply: responder(&reservation) };
    cluster.local(node, LocalRequestMsg::ForLeader(request));
    let other = others(&cluster, node);
    other.into_iter().for_each(|other| cluster.crash(other));
    cluster.pass_ticks(310);
    assert_eq!(take(&proposal), Some(Err(ProposeError::NoLeader)));
    assert_eq!(take(&read), Some(Err(ReadError::NoLeader)));
    assert_eq!(take(&change), Some(Err(MembershipError::NoLeader)));
    assert_eq!(take(&transfer), Some(Err(TransferError::NoLeader)));
    assert_eq!(take(&reservation), Some(Err(MembershipError::NoLeader)));
}

#[test]
fn bug_6_a_request_that_reaches_no_majority_is_answered_when_its_deadline_passes() {
    let (mut cluster, leader) = cluster_of_three();
    isolate(&mut cluster, leader);
    let proposal = cluster.propose(leader);
    let read = cluster.read(leader);
    cluster.pass_ticks(250);
    assert!(matches!(take(&proposal), Some(Err(ProposeError::Unknown(_)))), "{:?}", take(&proposal));
    // It leads no longer.
    assert_eq!(take(&read), Some(Err(ReadError::NoLeader)));
}

#[test]
fn bug_9_a_node_that_starts_again_knows_all_members_and_their_addresses() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    let known = cluster.status(follower).unwrap().members;
    cluster.crash(follower);
    cluster.start(follower);
    assert_eq!(cluster.status(follower).unwrap().members, known);
}

#[test]
fn bug_10_two_nodes_that_join_at_once_get_two_ids_and_an_id_is_never_used_again() {
    let (mut cluster, leader) = cluster_of_three();
    let first = cluster.reserve_id(leader);
    let follower = others(&cluster, leader)[0];
    let second = cluster.reserve_id(follower);
    cluster.until("both are answered", |_| take(&first).is_some() && take(&second).is_some());
    let mut ids = [take(&first).unwrap().unwrap().node_id, take(&second).unwrap().unwrap().node_id];
    ids.sort();
    assert_eq!(ids, [id(4), id(5)]);

    let change = cluster.change(leader, remove(follower));
    cluster.until("it is removed", |_| take(&change).is_some());
    let again = MembershipChange::one(MemberChange::Add(Member::voter(follower, "elsewhere:1")));
    let again = cluster.change(leader, again);
    let refusal = MembershipRefusal::IdWasRemoved { id: follower };
    assert_eq!(take(&again), Some(Err(MembershipError::Refused(refusal))));
}

#[test]
fn bug_12_no_vote_and_no_acknowledgement_leaves_before_it_is_durable() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    cluster.propose(leader);
    cluster.settle();
    cluster.propose(leader);
    while cluster.deliver(leader, follower) {}
    assert_eq!(cluster.packets(follower, leader), 0, "acknowledged before the write");
    while cluster.complete_write(follower) {}
    assert!(cluster.packets(follower, leader) > 0);

    let mut cluster = Cluster::new(8, 3, test_config());
    cluster.settle();
    while cluster.status(id(1)).unwrap().role == Role::Follower {
        cluster.tick(id(1));
    }
    let ask = |cluster: &mut Cluster| {
        while cluster.complete_write(id(1)) {}
        while cluster.deliver(id(1), id(2)) {}
    };
    // The pre-vote asks for nothing durable of the voter; the vote does.
    ask(&mut cluster);
    while cluster.deliver(id(2), id(1)) {}
    assert_eq!(cluster.status(id(1)).unwrap().role, Role::Candidate);
    ask(&mut cluster);
    assert_eq!(cluster.status(id(2)).unwrap().term, cluster.status(id(1)).unwrap().term);
    assert_eq!(cluster.packets(id(2), id(1)), 0, "voted before the write");
    assert!(cluster.complete_write(id(2)));
    assert_eq!(cluster.packets(id(2), id(1)), 1);
    cluster.check_recovery();
}

#[test]
fn bug_12_a_single_voter_sends_nothing_to_its_learners_before_its_term_is_durable() {
    let mut cluster = Cluster::new(6, 1, test_config());
    let leader = cluster.until_leader();
    let learner = Member { role: MemberRole::Learner, ..joiner(&mut cluster, 2) };
    let added = cluster.change(leader, MembershipChange::one(MemberChange::Add(learner)));
    cluster.until("it is added", |_| take(&added).is_some());
    cluster.until_proposed(leader);
    cluster.settle();

    demote(&mut cluster, leader);
    cluster.local(leader, LocalRequestMsg::Campaign { reply: responder(&outcome()) });
    assert_eq!(cluster.leader(), Some(leader), "it needs nobody's vote");
    cluster.propose(leader);
    assert_eq!(cluster.packets(leader, id(2)), 0, "after a crash, it would lead in this term once more");
    cluster.settle();
    assert_eq!(cluster.status(id(2)).unwrap().last, cluster.status(leader).unwrap().last);
    cluster.check_recovery();
}

#[test]
fn bug_12_a_second_call_that_awaits_a_cluster_is_not_answered_before_it_is_durable() {
    let mut cluster = Cluster::new(6, 1, test_config());
    cluster.add_node(id(2));
    cluster.hang_disk(id(2));
    let (first, second) = (cluster.await_cluster(id(2)), cluster.await_cluster(id(2)));
    cluster.settle();
    // The cluster would be told of an incarnation that the disk may yet lose.
    assert!(take(&first).is_none() && take(&second).is_none());
    cluster.repair_disks();
    cluster.settle();
    let later = cluster.await_cluster(id(2));
    for answer in [first, second, later] {
        assert_eq!(take(&answer), Some(Ok(())));
    }
}

#[test]
fn bug_12_news_of_an_older_write_are_taken_for_no_newer_one() {
    let mut cluster = Cluster::new(6, 1, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    cluster.hang_disk(leader);
    let queued = |cluster: &mut Cluster| -> Vec<TurnNumber> {
        cluster.waiting_turns(leader).into_iter().map(|(number, _)| number).collect()
    };
    let first = cluster.propose(leader);
    cluster.settle();
    let second = cluster.propose(leader);
    cluster.settle();
    let [one, two] = queued(&mut cluster)[..] else { panic!("two turns wait for the disk") };
    assert!(one < two);

    let told = |cluster: &mut Cluster, number: TurnNumber| {
        cluster.core(leader).written(number);
        cluster.run_turns(leader);
        while cluster.apply_one(leader) {}
        cluster.deliver_answers();
    };
    for older in [TurnNumber(0), TurnNumber(one.0 - 1), TurnNumber(0)] {
        told(&mut cluster, older);
        assert!(take(&first).is_none() && take(&second).is_none(), "told of {older:?}");
    }
    cluster.repair_disks();
    assert!(cluster.complete_write(leader));
    cluster.hang_disk(leader);
    for older in [one, TurnNumber(one.0 - 1), one] {
        told(&mut cluster, older);
        assert!(take(&first).is_some_and(|answer| answer.is_ok()));
        assert!(take(&second).is_none(), "told of {older:?}, and {two:?} is not written");
    }
    cluster.repair_disks();
    cluster.until("the second is written", |_| take(&second).is_some_and(|answer| answer.is_ok()));
    told(&mut cluster, one);
    cluster.check_recovery();
}

/// A leader that was cut off with so many entries that no other node has, and the next one, with so many
/// others.
fn two_leaders(old_entries: usize, new_entries: usize) -> (Cluster, NodeId, NodeId) {
    let (mut cluster, old_leader) = cluster_of_three();
    isolate(&mut cluster, old_leader);
    for _ in 0..old_entries {
        cluster.propose(old_leader);
    }
    cluster.settle();
    cluster.until("the others elect a leader", |cluster| cluster.leader() != Some(old_leader));
    let leader = cluster.leader().unwrap();
    for _ in 0..new_entries {
        cluster.until_proposed(leader);
    }
    (cluster, old_leader, leader)
}

#[test]
fn bug_14_an_installed_snapshot_leaves_nothing_of_a_conflicting_suffix() {
    let (mut cluster, old_leader, leader) = two_leaders(5, 100);
    assert!(cluster.status(leader).unwrap().truncated.index > cluster.status(old_leader).unwrap().last.index);
    cluster.cut().clear();
    let installed = cluster.snapshots_installed();
    cluster.until("it has caught up", |cluster| {
        cluster.status(old_leader).unwrap().applied == cluster.status(leader).unwrap().applied
    });
    cluster.pass_ticks(100);
    assert_eq!(cluster.snapshots_installed(), installed + 1, "one snapshot is enough");
    cluster.check_recovery();
}

#[test]
fn bug_14_an_installed_snapshot_leaves_nothing_of_a_longer_suffix() {
    let (mut cluster, old_leader, leader) = two_leaders(300, 60);
    let installed = cluster.snapshots_installed();
    assert!(cluster.status(leader).unwrap().last.index < cluster.status(old_leader).unwrap().last.index);
    cluster.cut().clear();
    cluster.until("the snapshot is installed", |cluster| cluster.snapshots_installed() > installed);
    cluster.until("it has caught up", |cluster| {
        cluster.status(old_leader).unwrap().last == cluster.status(leader).unwrap().last
    });
    cluster.crash(old_leader);
    cluster.start(old_leader);
    assert_eq!(cluster.status(old_leader).unwrap().last, cluster.status(leader).unwrap().last);
    cluster.check_recovery();
}

/// The leader of a cluster that has node 4 in place of another one; one member has missed it, is down, and
/// can learn of it by a snapshot only. Who is gone.
fn a_member_has_missed_a_change() -> (Cluster, NodeId, NodeId, NodeId) {
    let (mut cluster, leader) = cluster_of_three();
    let [away, gone] = others(&cluster, leader)[..] else { panic!("three nodes") };
    cluster.until("it knows the first members", |cluster| cluster.status(away).unwrap().members.len() == 3);
    cluster.crash(away);
    let fourth = joiner(&mut cluster, 4);
    for change in [MembershipChange::one(MemberChange::Add(fourth)), remove(gone)] {
        let made = cluster.change(leader, change);
        cluster.until("the change is made", |_| take(&made).is_some());
        assert!(take(&made).unwrap().is_ok());
    }
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    (cluster, leader, away, gone)
}

#[test]
fn bug_15_an_installed_snapshot_brings_its_members_into_force() {
    let (mut cluster, leader, away, _) = a_member_has_missed_a_change();
    let installed = cluster.snapshots_installed();
    cluster.start(away);
    cluster.until("the snapshot is installed", |cluster| cluster.snapshots_installed() > installed);
    cluster.until("it has applied everything", |cluster| {
        cluster.status(away).unwrap().applied == cluster.status(leader).unwrap().applied
    });
    assert_eq!(cluster.status(away).unwrap().members, cluster.status(leader).unwrap().members);
    // Of the old members, it and the one that is gone would have been a majority.
    for node in [leader, id(4)] {
        cluster.crash(node);
    }
    cluster.pass_ticks(100);
    assert_eq!(cluster.leader(), None);
    cluster.check_recovery();
}

#[test]
fn bug_15_the_members_of_a_snapshot_are_in_force_once_it_is_durable_and_not_before() {
    let (mut cluster, leader, away, gone) = a_member_has_missed_a_change();
    let begins = cluster.status(leader).unwrap().truncated.index;
    cluster.start(away);
    for _ in 0..1000 {
        while cluster.deliver(leader, away) {}
        if cluster.status(away).unwrap().truncated.index >= begins {
            break;
        }
        while cluster.complete_write(away) || cluster.apply_one(away) {}
        while cluster.deliver(away, leader) || cluster.complete_write(leader) {}
        cluster.tick(leader);
    }
    assert!(cluster.status(away).unwrap().truncated.index >= begins, "the snapshot has arrived");
    let members = cluster.status(away).unwrap().members;
    assert!(members.get(gone).is_some(), "a crash would bring them back: {members:?}");
    while cluster.complete_write(away) || cluster.apply_one(away) {}
    assert_eq!(cluster.status(away).unwrap().members, cluster.status(leader).unwrap().members);
    cluster.check_recovery();
}

#[test]
fn bug_16_a_rejection_moves_no_match_index() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    isolate(&mut cluster, follower);
    cluster.until_proposed(leader);
    let Status { term, last, .. } = cluster.status(leader).unwrap();
    let before = matched(&mut cluster, leader, follower);
    assert!(before < last.index);
    let hint = LogPosition { index: before, ..last };
    let commit = LogIndex::ZERO;
    let rejection = RaftMessageBody::AppendResponse { index: last.index, commit, rejection: Some(hint) };
    hear(&mut cluster, leader, follower, term, rejection);
    assert_eq!(matched(&mut cluster, leader, follower), before);
    hear(
        &mut cluster,
        leader,
        follower,
        term,
        RaftMessageBody::HeartbeatResponse { commit: last.index, read_round: None },
    );
    assert_eq!(matched(&mut cluster, leader, follower), before, "nor does the answer to a heartbeat");
    cluster.check_recovery();
}

#[test]
fn bug_17_nothing_is_committed_without_a_quorum() {
    let mut cluster = Cluster::new(7, 5, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    let [one, two, ..] = others(&cluster, leader)[..] else { panic!("five nodes") };
    let commit = cluster.status(leader).unwrap().commit;
    cluster.propose(leader);
    // Two followers have the entry durably; their own acknowledgements are lost.
    for follower in [one, two] {
        while cluster.deliver(leader, follower) || cluster.complete_write(follower) {}
    }
    isolate(&mut cluster, leader);
    cluster.settle();
    let Status { term, last, .. } = cluster.status(leader).unwrap();
    assert!(last.index > commit);
    let acknowledgement = RaftMessageBody::AppendResponse { index: last.index, commit, rejection: None };
    hear(&mut cluster, leader, one, term, acknowledgement.clone());
    hear(&mut cluster, leader, one, term, acknowledgement.clone());
    assert_eq!(cluster.status(leader).unwrap().commit, commit, "two of five, one of them twice");
    hear(&mut cluster, leader, two, term, acknowledgement);
    assert_eq!(cluster.status(leader).unwrap().commit, last.index);
}

#[test]
fn bug_17_an_entry_of_an_earlier_term_is_not_committed_by_counting_its_copies() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    cluster.settle();
    cluster.propose(leader);
    // The follower has the entry durably; its acknowledgement is lost.
    while cluster.deliver(leader, follower) || cluster.complete_write(follower) {}
    isolate(&mut cluster, leader);
    cluster.settle();
    let earlier = cluster.status(leader).unwrap().last;
    for node in cluster.ids() {
        isolate(&mut cluster, node);
    }
    cluster.until("it steps down", |cluster| cluster.leader().is_none());
    cluster.pass_ticks(30);
    cluster.cut().clear();
    cluster.local(leader, LocalRequestMsg::Campaign { reply: responder(&outcome()) });
    while cluster.leader().is_none() {
        assert!(
            cluster.complete_write(leader)
                || cluster.deliver(leader, follower)
                || cluster.deliver(follower, leader)
                || cluster.complete_write(follower)
        );
    }
    // The copy is acknowledged before anything of the new term is.
    let Status { term, commit, last, .. } = cluster.status(leader).unwrap();
    assert!(commit < earlier.index && earlier.index < last.index && earlier.term < term);
    let acknowledgement = |index| RaftMessageBody::AppendResponse { index, commit, rejection: None };
    hear(&mut cluster, leader, follower, term, acknowledgement(earlier.index));
    assert_eq!(cluster.status(leader).unwrap().commit, commit);
    cluster.check_recovery();
}

#[test]
fn bug_19_a_leader_whose_disk_hangs_makes_room_for_one_that_can_write() {
    let (mut cluster, old_leader) = three_on_disk();
    cluster.hang_disk(old_leader);
    let proposal = cluster.propose(old_leader);
    cluster
        .until("another node leads", |cluster| cluster.leader().is_some_and(|leader| leader != old_leader));
    let leader = cluster.leader().unwrap();
    cluster.until_proposed(leader);
    assert!(take(&proposal).is_none(), "it cannot be applied where it cannot be written");
    cluster.repair_disks();
    cluster.until("the proposal is answered", |_| take(&proposal).is_some());
    assert!(take(&proposal).unwrap().is_ok(), "a majority had it");
    cluster.check_recovery();
}

#[test]
fn bug_19_a_follower_whose_disk_hangs_delays_no_other_node() {
    let (mut cluster, leader) = cluster_of_three();
    cluster.hang_disk(others(&cluster, leader)[0]);
    let term = cluster.status(leader).unwrap().term;
    for _ in 0..20 {
        cluster.until_proposed(leader);
    }
    cluster.pass_ticks(100);
    assert_eq!(cluster.status(leader).unwrap().term, term);
    cluster.check_recovery();
}

#[test]
fn bug_20_a_transfer_to_a_dead_node_is_refused_and_blocks_no_caller() {
    let (mut cluster, leader) = cluster_of_three();
    let dead = others(&cluster, leader)[0];
    cluster.crash(dead);
    cluster.pass_ticks(30);
    let transfer = outcome();
    let request = LeaderRequest::TransferLeader { to: Some(dead), reply: responder(&transfer) };
    cluster.local(leader, LocalRequestMsg::ForLeader(request));
    assert_eq!(take(&transfer), Some(Err(TransferError::Unreachable { id: dead })));
    cluster.until_proposed(leader);
}

#[test]
fn bug_20_proposals_during_a_transfer_wait_for_its_outcome() {
    let (mut cluster, leader) = cluster_of_three();
    let target = others(&cluster, leader)[0];
    let transfer = outcome();
    let request = LeaderRequest::TransferLeader { to: Some(target), reply: responder(&transfer) };
    cluster.local(leader, LocalRequestMsg::ForLeader(request));
    let proposal = cluster.propose(leader);
    assert!(take(&proposal).is_none(), "neither lost nor refused");
    cluster.until("both are answered", |_| take(&transfer).is_some() && take(&proposal).is_some());
    assert_eq!(take(&transfer), Some(Ok(target)));
    // It was forwarded to the new leader, whose own state machine answers.
    assert!(take(&proposal).unwrap().is_ok());
    cluster.check_recovery();
}

#[test]
fn bug_21_a_refused_pre_vote_teaches_the_higher_term() {
    let (mut cluster, leader) = cluster_of_three();
    let [one, two] = others(&cluster, leader)[..] else { panic!("three nodes") };
    isolate(&mut cluster, one);
    while cluster.status(one).unwrap().role != Role::PreCandidate {
        cluster.tick(one);
    }
    let term = Term(cluster.status(one).unwrap().term.0 + 5);
    let commit = LogPosition::ZERO;
    hear(&mut cluster, one, two, term, RaftMessageBody::PreVoteResponse { granted: false, commit });
    let Status { term: learnt, role, .. } = cluster.status(one).unwrap();
    assert_eq!((learnt, role), (term, Role::Follower));
    cluster.check_recovery();
}

#[test]
fn bug_21_a_candidate_of_an_earlier_term_is_told_the_term() {
    let (mut cluster, leader) = cluster_of_three();
    let [one, two] = others(&cluster, leader)[..] else { panic!("three nodes") };
    isolate(&mut cluster, two);
    let Status { term, last, .. } = cluster.status(one).unwrap();
    let reason = CampaignReason::Timeout;
    let body = RaftMessageBody::RequestVote { last, commit: LogPosition::ZERO, reason };
    let before = cluster.packets(one, two);
    hear(&mut cluster, one, two, Term(term.0 - 1), body);
    while cluster.complete_write(one) {}
    assert_eq!(cluster.packets(one, two), before + 1);
}

#[test]
fn bug_22_any_leader_leaves_a_joint_configuration() {
    let (mut cluster, leader) = cluster_of_three();
    let (fourth, fifth) = (joiner(&mut cluster, 4), joiner(&mut cluster, 5));
    let gone = others(&cluster, leader)[0];
    let steps = vec![MemberChange::Add(fourth), MemberChange::Add(fifth), MemberChange::Remove(gone)];
    let change = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
    let result = cluster.change(leader, change);
    cluster.until("some node is in the joint configuration", |cluster| {
        let nodes = cluster.ids();
        nodes.iter().any(|node| cluster.status(*node).is_some_and(|status| status.members.is_joint()))
    });
    cluster.crash(leader);
    cluster.until("the joint configuration is left", |cluster| {
        let Some(now) = cluster.leader() else { return false };
        let members = cluster.status(now).unwrap().members;
        now != leader && !members.is_joint() && members.len() == 4
    });
    drop(result);
    cluster.check_recovery();
}

#[test]
fn bug_22_a_joint_configuration_stays_until_it_is_left_on_request() {
    let (mut cluster, leader) = cluster_of_three();
    let (fourth, fifth) = (joiner(&mut cluster, 4), joiner(&mut cluster, 5));
    let steps = vec![MemberChange::Add(fourth), MemberChange::Add(fifth)];
    let change = MembershipChange::Steps { steps, leave: LeaveJoint::OnRequest };
    let entered = cluster.change(leader, change);
    cluster.until("it is entered", |_| take(&entered).is_some());
    assert!(take(&entered).unwrap().unwrap().is_joint());
    cluster.pass_ticks(50);
    assert!(cluster.status(leader).unwrap().members.is_joint());
    let left = cluster.change(leader, MembershipChange::LeaveJoint);
    cluster.until("it is left", |_| take(&left).is_some());
    assert!(!take(&left).unwrap().unwrap().is_joint());
    let twice = cluster.change(leader, MembershipChange::LeaveJoint);
    assert_eq!(take(&twice), Some(Err(MembershipError::Refused(MembershipRefusal::NotJoint))));
    cluster.check_recovery();
}

#[test]
fn bug_23_a_leader_that_is_removed_transfers_leadership_first_and_then_stops() {
    let (mut cluster, leader) = cluster_of_three();
    let result = cluster.change(leader, remove(leader));
    cluster.until("it is removed", |cluster| {
        cluster
            .leader()
            .is_some_and(|now| now != leader && cluster.status(now).unwrap().members.get(leader).is_none())
    });
    cluster.until("it stops", |cluster| !cluster.is_running(leader));
    let new_leader = cluster.leader().unwrap();
    cluster.until_proposed(new_leader);
    assert!(take(&result).is_some());
}

#[test]
fn bug_23_a_leader_that_takes_the_vote_from_others_too_transfers_leadership_to_one_that_keeps_it() {
    let mut cluster = Cluster::new(7, 4, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let learner = |node| Member::learner(node, format!("node-{node}:1"));
    // Not the one that would be chosen first.
    let kept = others(&cluster, leader)[0];
    let steps = others(&cluster, kept).into_iter().map(|node| MemberChange::Add(learner(node))).collect();
    let change = MembershipChange::Steps { steps, leave: LeaveJoint::Automatically };
    cluster.change(leader, change);
    cluster.until("only one votes", |cluster| {
        let members = cluster.status(kept).unwrap().members;
        !members.is_joint() && members.iter().filter(|member| member.role == MemberRole::Voter).count() == 1
    });
    assert!(cluster.status(kept).unwrap().term.0 < 10, "leadership went to and fro");
    cluster.check_recovery();
}

#[test]
fn bug_23_a_leader_that_loses_its_vote_by_an_earlier_leaders_change_steps_down() {
    let mut cluster = Cluster::new(2, 2, test_config());
    let earlier = cluster.until_leader();
    cluster.until_proposed(earlier);
    let demoted = others(&cluster, earlier)[0];
    cluster.cut().insert((demoted, earlier));
    let learner = Member::learner(demoted, "elsewhere:1");
    cluster.change(earlier, MembershipChange::one(MemberChange::Add(learner)));
    cluster.settle();
    cluster.crash(earlier);
    cluster.cut().clear();
    cluster.start(earlier);
    cluster.local(demoted, LocalRequestMsg::Campaign { reply: responder(&outcome()) });
    cluster.settle();
    let status = cluster.status(demoted).unwrap();
    assert!(!status.members.is_voter(demoted), "it led, and committed the change");
    assert_eq!(status.role, Role::Follower);
    cluster.until("the one with a vote leads", |cluster| cluster.leader() == Some(earlier));
    cluster.check_recovery();
}

#[test]
fn bug_23_a_leader_that_is_replaced_transfers_leadership_to_a_node_that_can_take_over() {
    let (mut cluster, leader) = cluster_of_three();
    for _ in 0..60 {
        cluster.until_proposed(leader);
    }
    // Whose state machine needs long for the snapshot that it gets.
    let successor = joiner(&mut cluster, 4);
    let steps = vec![MemberChange::Remove(leader), MemberChange::Add(successor)];
    let leave = LeaveJoint::Automatically;
    cluster.change(leader, MembershipChange::Steps { steps, leave });
    for _ in 0..200 {
        for node in cluster.ids() {
            cluster.tick(node);
        }
        all_but_the_state_machine_of(&mut cluster, id(4));
    }
    let next = cluster.leader().unwrap();
    assert!(next != leader && next != id(4), "{next}");
    assert!(!cluster.status(next).unwrap().members.is_joint());
    let proposal = cluster.propose(next);
    for _ in 0..10 {
        cluster.tick(next);
        all_but_the_state_machine_of(&mut cluster, id(4));
    }
    assert!(matches!(take(&proposal), Some(Ok(_))), "{:?}", take(&proposal));
    cluster.check_recovery();
}

#[test]
fn bug_24_snapshots_in_quick_succession_and_one_that_is_lost() {
    let (mut cluster, leader) = cluster_of_three();
    let away = others(&cluster, leader)[0];
    cluster.crash(away);
    for _ in 0..60 {
        cluster.until_proposed(leader);
    }
    cluster.start(away);
    cluster.lose_percent(40);
    for _ in 0..3 {
        cluster.make_snapshot(leader);
        for _ in 0..20 {
            cluster.propose(leader);
        }
        cluster.pass_ticks(5);
    }
    cluster.check_recovery();
}

#[test]
fn bug_24_the_outcome_of_an_earlier_attempt_to_send_a_snapshot_is_not_that_of_the_last_one() {
    let (mut cluster, leader) = cluster_of_three();
    let away = others(&cluster, leader)[0];
    cluster.crash(away);
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    cluster.start(away);
    let is_waiting = |cluster: &mut Cluster| {
        let inspection = outcome();
        cluster.local(leader, LocalRequestMsg::Inspect { reply: responder(&inspection) });
        let progress = take(&inspection).unwrap().unwrap().progress;
        progress.iter().any(|peer| peer.id == away && peer.state == ReplicationState::Snapshot)
    };
    while !is_waiting(&mut cluster) {
        cluster.tick(leader);
        while cluster.complete_write(away) || cluster.deliver(away, leader) {}
        if !is_waiting(&mut cluster) {
            while cluster.deliver(leader, away) {}
        }
    }
    let status = cluster.status(leader).unwrap();
    let position = status.snapshot.unwrap();
    let earlier = SnapshotToSend { attempt: 0, to: away, term: status.term, position };
    cluster.core(leader).snapshot_sent(earlier, Err("it was given up".to_owned()));
    assert!(is_waiting(&mut cluster), "the last attempt is still on its way");
    assert!(cluster.core(leader).snapshots_in_use().contains(&position));
    cluster.check_recovery();
}

#[test]
fn bug_24_a_snapshot_that_is_finished_while_a_newer_one_is_being_installed_is_of_no_use() {
    let (mut cluster, leader) = cluster_of_three();
    let away = others(&cluster, leader)[0];
    cluster.until_proposed(leader);
    cluster.settle();
    let taken = cluster.make_snapshot(away);
    isolate(&mut cluster, away);
    for _ in 0..100 {
        let proposal = cluster.propose(leader);
        while take(&proposal).is_none() {
            // Everything moves but the state machine of the node that is away, which has a snapshot to take.
            for node in others(&cluster, away) {
                while cluster.complete_write(node) || cluster.apply_one(node) {}
                for other in cluster.ids() {
                    while cluster.deliver(node, other) {}
                }
            }
        }
    }
    cluster.cut().clear();
    while cluster.status(away).is_none_or(|status| status.truncated.index <= LogIndex(40)) {
        cluster.tick(leader);
        while cluster.deliver(leader, away) {}
        while cluster.deliver(away, leader) {}
        while cluster.apply_one(leader) || cluster.complete_write(leader) {}
        cluster.deliver_answers();
    }
    assert!(cluster.apply_one(away), "the snapshot is taken while the newer one is on its way to the disk");
    cluster.check_recovery();
    assert!(take(&taken).unwrap().unwrap().index > LogIndex(40));
}

#[test]
fn bug_24_a_snapshot_that_a_slow_state_machine_has_yet_to_restore_is_kept() {
    let (mut cluster, leader) = cluster_of_three();
    let slow = others(&cluster, leader)[0];
    let mut waiting = Vec::new();
    for _ in 0..2 {
        until_a_snapshot_is_to_be_restored(&mut cluster, leader, slow);
        waiting.extend(cluster.status(slow).unwrap().snapshot);
    }
    assert!(waiting[0] < waiting[1]);
    let in_use = |cluster: &mut Cluster| cluster.core(slow).snapshots_in_use();
    let kept = in_use(&mut cluster);
    assert!(waiting.iter().all(|position| kept.contains(position)), "{kept:?}");
    cluster.check_recovery();
    assert!(!in_use(&mut cluster).contains(&waiting[0]), "it was restored, and is of no use any more");
}

#[test]
fn bug_24_the_snapshot_that_a_node_starts_with_is_kept_until_it_is_restored() {
    let (mut cluster, leader) = cluster_of_three();
    let slow = others(&cluster, leader)[0];
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    cluster.settle();
    let first = cluster.status(slow).unwrap().snapshot.unwrap();
    cluster.crash(slow);
    cluster.start(slow);
    until_a_snapshot_is_to_be_restored(&mut cluster, leader, slow);
    let in_use = |cluster: &mut Cluster| cluster.core(slow).snapshots_in_use();
    assert!(in_use(&mut cluster).contains(&first), "the state machine may not have come to read it");
    cluster.check_recovery();
    assert!(!in_use(&mut cluster).contains(&first));
}

#[test]
fn bug_24_a_node_that_restores_a_snapshot_votes_when_the_leader_is_lost() {
    let (mut cluster, leader) = cluster_of_three();
    let [slow, other] = others(&cluster, leader)[..] else { panic!("three nodes") };
    until_a_snapshot_is_to_be_restored(&mut cluster, leader, slow);
    cluster.crash(leader);
    for _ in 0..200 {
        for node in [slow, other] {
            cluster.tick(node);
        }
        all_but_the_state_machine_of(&mut cluster, slow);
    }
    assert_eq!(cluster.leader(), Some(other));
    cluster.check_recovery();
}

/// `slow` misses so much that it is sent a snapshot, which its state machine has yet to restore.
fn until_a_snapshot_is_to_be_restored(cluster: &mut Cluster, leader: NodeId, slow: NodeId) {
    let installed = cluster.snapshots_installed();
    isolate(cluster, slow);
    for _ in 0..100 {
        let proposal = cluster.propose(leader);
        while take(&proposal).is_none() {
            all_but_the_state_machine_of(cluster, slow);
        }
    }
    cluster.cut().clear();
    while cluster.snapshots_installed() == installed {
        cluster.tick(leader);
        all_but_the_state_machine_of(cluster, slow);
    }
}

/// Everything moves once but the state machine of `slow`.
fn all_but_the_state_machine_of(cluster: &mut Cluster, slow: NodeId) {
    for node in cluster.ids() {
        while cluster.complete_write(node) || (node != slow && cluster.apply_one(node)) {}
        for other in cluster.ids() {
            while cluster.deliver(node, other) {}
        }
    }
    cluster.deliver_answers();
}

#[test]
fn bug_26_a_leader_that_is_cut_off_answers_no_read() {
    let (mut cluster, old_leader) = cluster_of_three();
    isolate(&mut cluster, old_leader);
    let read = cluster.read(old_leader);
    cluster.until("the others elect a leader", |cluster| cluster.leader() != Some(old_leader));
    let leader = cluster.leader().unwrap();
    cluster.until_proposed(leader);
    cluster.pass_ticks(300);
    assert!(matches!(take(&read), Some(Err(_))), "{:?}", take(&read));
}

#[test]
fn bug_26_a_read_waits_until_its_index_is_applied() {
    let (mut cluster, leader) = cluster_of_three();
    let slow = others(&cluster, leader)[0];
    cluster.settle();
    // Everything moves but the state machine of one node.
    let go_on = |cluster: &mut Cluster| {
        for node in cluster.ids() {
            while cluster.complete_write(node) || (node != slow && cluster.apply_one(node)) {}
            for other in cluster.ids() {
                while cluster.deliver(node, other) {}
            }
        }
        cluster.deliver_answers();
    };
    let written = cluster.propose(leader);
    while take(&written).is_none() {
        go_on(&mut cluster);
    }
    let read = cluster.read(slow);
    for _ in 0..20 {
        go_on(&mut cluster);
        assert!(take(&read).is_none(), "nothing of it is applied here");
    }
    cluster.settle();
    assert!(take(&read).unwrap().unwrap() >= take(&written).unwrap().unwrap().index);
}

#[test]
fn bug_26_a_read_waits_until_the_snapshot_that_its_node_starts_with_is_restored() {
    let (mut cluster, leader) = cluster_of_three();
    let slow = others(&cluster, leader)[0];
    cluster.settle();
    let taken = cluster.make_snapshot(slow);
    cluster.settle();
    let snapshot = take(&taken).unwrap().unwrap();
    cluster.crash(slow);
    cluster.start(slow);
    while cluster.status(slow).unwrap().leader_id.is_none() {
        cluster.tick(leader);
        all_but_the_state_machine_of(&mut cluster, slow);
    }
    let read = cluster.read(slow);
    for _ in 0..20 {
        all_but_the_state_machine_of(&mut cluster, slow);
        assert!(take(&read).is_none(), "the state machine is empty");
    }
    assert_eq!(cluster.status(slow).unwrap().applied, LogIndex::ZERO);
    cluster.settle();
    assert_eq!(take(&read), Some(Ok(snapshot.index)), "nothing was committed since");
}

#[test]
fn bug_26_a_read_on_any_node_sees_what_was_acknowledged_before() {
    let (mut cluster, leader) = cluster_of_three();
    for node in cluster.ids() {
        let written = cluster.until_proposed(leader);
        let read = cluster.read(node);
        cluster.until("the read is answered", |_| take(&read).is_some());
        assert!(take(&read).unwrap().unwrap() >= written.index);
        assert!(cluster.status(node).unwrap().applied >= written.index);
    }
}

#[test]
fn bug_27_a_node_with_a_wiped_disk_is_refused_under_its_old_id() {
    let (mut cluster, leader) = cluster_of_three();
    cluster.until("all incarnations are known", |cluster| {
        let members = cluster.status(leader).unwrap().members;
        members.iter().all(|member| member.incarnation.is_some())
    });
    let wiped = others(&cluster, leader)[0];
    cluster.crash(wiped);
    cluster.wipe(wiped);
    let term = cluster.status(leader).unwrap().term;
    cluster.start(wiped);
    cluster.until("it stops", |cluster| !cluster.is_running(wiped));
    assert!(cluster.trace().contains("was wiped or replaced"), "{:?}", cluster.trace());
    cluster.until_proposed(leader);
    assert_eq!(cluster.status(leader).unwrap().term, term, "it did not disturb");
}

#[test]
fn bug_27_a_wiped_node_to_which_all_members_are_strangers_learns_it_from_their_messages() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    let as_of = cluster.status(follower).unwrap().members.as_of();
    let core = cluster.core(follower);
    let mut meant_for_another_life = |members_as_of| {
        let started = Started::default();
        let sender = Sender { id: id(9), incarnation: Incarnation(9), members_as_of, started };
        let receiver = Some(Incarnation(0xbad));
        let messages = Vec::new();
        core.handle_server_request_msg(ServerRequestMsg::RaftMessages { sender, receiver, messages });
        core.stop_reason().cloned()
    };
    assert_eq!(meant_for_another_life(as_of), None, "it knows that the sender is no member");
    let reason = meant_for_another_life(as_of.next());
    assert!(matches!(reason, Some(StopReason::Refused(SenderRefusal::Fenced { .. }))), "{reason:?}");
}

#[test]
fn bug_27_a_node_whose_log_has_lost_what_it_acknowledged_stops() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    let Status { term, last, .. } = cluster.status(follower).unwrap();
    let (sender, _) = cluster.introduction(leader, follower);
    // No leader tells a follower to commit more than what that follower has acknowledged.
    let body = RaftMessageBody::Heartbeat { commit: last.index.next(), read_round: None };
    let messages = vec![RaftMessage { from: leader, to: follower, term, body }];
    let core = cluster.core(follower);
    core.handle_server_request_msg(ServerRequestMsg::RaftMessages { sender, receiver: None, messages });
    assert!(matches!(core.stop_reason(), Some(StopReason::Storage(_))), "{:?}", core.stop_reason());
}

#[test]
fn bug_30_a_node_that_was_removed_while_away_learns_it_and_does_not_disturb() {
    let (mut cluster, leader) = cluster_of_three();
    let away = others(&cluster, leader)[0];
    cluster.crash(away);
    let change = cluster.change(leader, remove(away));
    cluster.until("it is removed", |_| take(&change).is_some());
    let term = cluster.status(leader).unwrap().term;
    cluster.start(away);
    cluster.until("it stops", |cluster| !cluster.is_running(away));
    assert!(cluster.trace().contains("was removed from the cluster"), "{:?}", cluster.trace());
    assert_eq!(cluster.status(leader).unwrap().term, term);
    cluster.until_proposed(leader);
}

#[test]
fn bug_30_a_removed_node_stays_until_a_majority_refuses_it() {
    let mut cluster = Cluster::new(2, 4, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let gone = others(&cluster, leader)[0];
    cluster.change(leader, remove(gone));
    while cluster.status(gone).unwrap().members.get(gone).is_some() {
        for node in cluster.ids() {
            while cluster.complete_write(node) || cluster.apply_one(node) {}
            for other in cluster.ids() {
                while (node != gone || other == leader) && cluster.deliver(node, other) {}
            }
        }
        cluster.tick(leader);
    }
    let as_of = cluster.status(gone).unwrap().members.as_of();
    let another = others(&cluster, gone).into_iter().find(|node| *node != leader).unwrap();
    let core = cluster.core(gone);
    let refusal = || SenderRefusal::NotAMember { id: gone, as_of };
    core.refused_by(leader, refusal());
    core.refused_by(leader, refusal());
    assert_eq!(core.stop_reason(), None, "two of three may still need its vote");
    core.refused_by(another, refusal());
    assert!(matches!(core.stop_reason(), Some(StopReason::Removed { .. })));
}

#[test]
fn bug_30_a_removed_node_that_is_started_again_stops_at_once() {
    let (mut cluster, leader) = cluster_of_three();
    let gone = others(&cluster, leader)[0];
    let change = cluster.change(leader, remove(gone));
    cluster.until("it is removed and stops", |cluster| take(&change).is_some() && !cluster.is_running(gone));
    cluster.start(gone);
    if cluster.is_running(gone) {
        // The removal itself may not have reached its disk; then the others tell it.
        cluster.until("it stops", |cluster| !cluster.is_running(gone));
    }
    let reason = cluster.stopped_because(gone);
    assert!(matches!(reason, Some(StopReason::Removed { .. })), "{reason:?}");
}

/// A leader of two that has proposed to remove the other one, who that is, and where.
fn one_of_two_is_to_go() -> (Cluster, NodeId, NodeId, LogIndex) {
    let mut cluster = Cluster::new(2, 2, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let gone = others(&cluster, leader)[0];
    cluster.change(leader, remove(gone));
    let removal = cluster.status(leader).unwrap().last.index;
    (cluster, leader, gone, removal)
}

/// The leader of two was started again without the commit of the removal: it needs the vote of who was
/// removed.
fn the_removal_is_committed_again(mut cluster: Cluster, leader: NodeId, gone: NodeId, removal: LogIndex) {
    assert!(cluster.status(leader).unwrap().commit < removal, "the other one has forgotten");
    cluster.until_proposed(leader);
    assert_eq!(cluster.status(leader).unwrap().members.len(), 1);
    cluster.until("the removed node stops", |cluster| !cluster.is_running(gone));
}

#[test]
fn bug_30_a_removed_node_stays_until_the_voters_that_need_its_vote_know_of_the_removal() {
    let (mut cluster, leader, gone, removal) = one_of_two_is_to_go();
    // The leader's disk stops right after the commit, before it has written that there was one.
    for _ in 0..100 {
        if cluster.status(leader).unwrap().commit < removal {
            cluster.complete_write(leader);
        }
        while cluster.deliver(leader, gone) || cluster.complete_write(gone) || cluster.apply_one(gone) {}
        while cluster.deliver(gone, leader) {}
        cluster.tick(leader);
    }
    assert!(cluster.status(gone).unwrap().members.get(gone).is_none(), "it knows that it was removed");
    cluster.lose_unsynced(leader);
    cluster.start(leader);
    the_removal_is_committed_again(cluster, leader, gone, removal);
}

#[test]
fn bug_30_a_removed_node_that_is_started_again_still_votes_for_members_that_forgot_the_removal() {
    let (mut cluster, leader, gone, removal) = one_of_two_is_to_go();
    while cluster.status(leader).unwrap().commit < removal {
        cluster.complete_write(leader);
        while cluster.deliver(leader, gone) || cluster.complete_write(gone) || cluster.apply_one(gone) {}
        while cluster.status(leader).unwrap().commit < removal && cluster.deliver(gone, leader) {}
    }
    while cluster.deliver(leader, gone) || cluster.complete_write(gone) || cluster.apply_one(gone) {}
    assert!(cluster.status(gone).unwrap().members.get(gone).is_none(), "it knows that it was removed");
    cluster.lose_unsynced(leader);
    cluster.crash(gone);
    cluster.start(gone);
    cluster.start(leader);
    the_removal_is_committed_again(cluster, leader, gone, removal);
}

#[test]
fn bug_30_a_node_that_one_member_refuses_as_removed_stays_as_long_as_others_need_its_vote() {
    let mut cluster = Cluster::new(2, 4, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    let [gone, has_it, behind] = others(&cluster, leader)[..] else { panic!("there are four") };
    isolate(&mut cluster, behind);
    cluster.change(leader, remove(gone));
    let removal = cluster.status(leader).unwrap().last.index;
    while cluster.status(leader).unwrap().commit < removal {
        cluster.complete_write(leader);
        for node in [gone, has_it] {
            while cluster.deliver(leader, node) || cluster.complete_write(node) {}
        }
        for node in [gone, has_it] {
            while cluster.status(leader).unwrap().commit < removal && cluster.deliver(node, leader) {}
        }
    }
    // What the leader says of the commit is lost, and so is the leader in the end.
    cluster.cut().clear();
    while cluster.complete_write(leader) {}
    assert!(cluster.status(leader).unwrap().members.get(gone).is_none());
    // For half of the time for which it waits for the others.
    for _ in 0..50 {
        cluster.tick(gone);
        while cluster.deliver(gone, leader) {}
        [gone, has_it, behind].iter().for_each(|node| cluster.drop_packets(leader, *node));
    }
    cluster.crash(leader);
    cluster.until("there is a leader again", |cluster| cluster.leader().is_some());
    let leader = cluster.leader().unwrap();
    cluster.until_proposed(leader);
    assert_eq!(cluster.status(leader).unwrap().members.len(), 3);
    cluster.until("the removed node stops", |cluster| !cluster.is_running(gone));
}

#[test]
fn bug_30_a_learner_that_was_removed_while_away_learns_it() {
    let (mut cluster, leader) = cluster_of_three();
    let learner = Member { role: MemberRole::Learner, ..joiner(&mut cluster, 4) };
    let added = cluster.change(leader, MembershipChange::one(MemberChange::Add(learner)));
    cluster.until("it is added", |cluster| {
        take(&added).is_some() && cluster.status(id(4)).is_some_and(|status| status.is_member())
    });
    cluster.until_proposed(leader);
    cluster.crash(id(4));
    let removed = cluster.change(leader, remove(id(4)));
    cluster.until("it is removed", |_| take(&removed).is_some());
    cluster.start(id(4));
    cluster.until("it stops", |cluster| !cluster.is_running(id(4)));
}

#[test]
fn bug_30_a_node_that_asks_whether_it_was_removed_does_not_spread_its_term() {
    let mut cluster = Cluster::new(2, 4, Config { pre_vote: false, ..test_config() });
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    let [gone, has_it, behind] = others(&cluster, leader)[..] else { panic!("there are four") };
    isolate(&mut cluster, gone);
    cluster.change(leader, remove(gone));
    let Status { last, term, .. } = cluster.status(leader).unwrap();
    while cluster.status(leader).unwrap().commit < last.index {
        cluster.complete_write(leader);
        for node in [has_it, behind] {
            while cluster.deliver(leader, node) || cluster.complete_write(node) {}
        }
        for node in [has_it, behind] {
            while cluster.status(leader).unwrap().commit < last.index && cluster.deliver(node, leader) {}
        }
    }
    while cluster.complete_write(leader) {}
    assert!(cluster.status(leader).unwrap().members.get(gone).is_none());
    // In an election that nobody hears of, it comes to a later term. Then the leader alone can tell it.
    while cluster.status(gone).unwrap().term == term {
        cluster.tick(gone);
    }
    while cluster.complete_write(gone) {}
    cluster.cut().clear();
    while cluster.deliver(gone, leader) {}
    cluster.tick(gone);
    while cluster.deliver(gone, behind) {}
    assert!(cluster.status(gone).unwrap().term > term && cluster.status(behind).unwrap().is_member());
    assert_eq!(
        cluster.status(behind).unwrap().term,
        term,
        "who follows a leader that is alive does not leave it"
    );
    cluster.until("the removed node stops", |cluster| !cluster.is_running(gone));
    assert_eq!(cluster.leader(), Some(leader));
}

#[test]
fn bug_30_a_node_refused_by_a_leader_that_had_forgotten_it_does_not_stop_once_it_is_known() {
    let mut cluster = Cluster::new(2, 1, test_config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let newcomer = joiner(&mut cluster, 2);
    cluster.change(leader, MembershipChange::one(MemberChange::Add(newcomer)));
    // The leader lets it in, and speaks to it; the power fails before it has written that.
    while cluster.status(leader).unwrap().members.get(id(2)).is_none() {
        assert!(cluster.complete_write(leader));
    }
    while !cluster.deliver(leader, id(2)) {
        cluster.tick(leader);
    }
    while cluster.complete_write(id(2)) {}
    cluster.lose_unsynced(leader);
    cluster.start(leader);
    assert!(cluster.status(leader).unwrap().members.get(id(2)).is_none(), "it has forgotten");
    assert!(cluster.deliver(id(2), leader), "it refuses the answer");
    cluster.until("it is let in", |cluster| cluster.status(id(2)).is_none_or(|status| status.is_member()));
    cluster.pass_ticks(200);
    assert!(cluster.is_running(id(2)), "{:?}", cluster.trace());
    cluster.until_proposed(leader);
}

#[test]
fn a_leader_that_is_to_step_down_in_favour_of_itself_does_not_say_that_it_did() {
    let (mut cluster, leader) = cluster_of_three();
    let term = cluster.status(leader).unwrap().term;
    let demoted = outcome();
    let reply = responder(&demoted);
    cluster.local(leader, LocalRequestMsg::Demote { term, successor: Some(leader), reply });
    let answer = take(&demoted).unwrap();
    assert_eq!(answer.is_ok(), cluster.leader() != Some(leader), "{answer:?}");
}

#[test]
fn bug_32_proposals_that_wait_for_the_disk_are_one_write_and_a_few_messages() {
    const PROPOSALS: usize = 200;
    let config = Config { message_bytes_max: 1 << 20, ..test_config() };
    let mut cluster = Cluster::new(7, 3, config);
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.settle();
    let follower = others(&cluster, leader)[0];
    let core = cluster.core(leader);
    let answers: Vec<_> = (0..PROPOSALS).map(|_| outcome()).collect();
    for answer in &answers {
        let request = LeaderRequest::Propose { payload: payload(), reply: reply_to(answer) };
        core.handle_local_request_msg(LocalRequestMsg::ForLeader(request));
    }
    cluster.run_turns(leader);
    let appended = |cluster: &mut Cluster, node| -> Vec<usize> {
        cluster
            .waiting_turns(node)
            .into_iter()
            .map(|(_, entries)| entries)
            .filter(|entries| *entries > 0)
            .collect()
    };
    assert_eq!(appended(&mut cluster, leader), [PROPOSALS], "one write");
    assert_eq!(cluster.packets(leader, follower), 1, "one message");
    while cluster.deliver(leader, follower) {}
    assert_eq!(appended(&mut cluster, follower), [PROPOSALS], "one write on the follower");
    cluster.settle();
    assert!(answers.iter().all(|answer| take(answer).is_some_and(|answer| answer.is_ok())));
}

#[test]
fn bug_34_the_log_is_cut_although_a_member_is_dead() {
    let (mut cluster, leader) = cluster_of_three();
    let dead = others(&cluster, leader)[0];
    cluster.crash(dead);
    for _ in 0..200 {
        cluster.until_proposed(leader);
    }
    let status = cluster.status(leader).unwrap();
    assert!(status.last.index.0 - status.truncated.index.0 < 80, "{status:?}");
    cluster.check_recovery();
}

/// One of three needs a snapshot, which is on its way.
fn cluster_that_sends_a_snapshot(config: Config) -> (Cluster, NodeId, NodeId) {
    let mut cluster = Cluster::new(34, 3, config);
    let leader = cluster.until_leader();
    let lagging = others(&cluster, leader)[0];
    cluster.crash(lagging);
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    cluster.slow_snapshots = true;
    cluster.start(lagging);
    cluster.until("a snapshot is on its way", |cluster| cluster.is_sending_snapshots());
    (cluster, leader, lagging)
}

#[test]
fn a_follower_that_was_sent_a_snapshot_does_not_need_the_next_one() {
    let (mut cluster, leader, lagging) =
        cluster_that_sends_a_snapshot(Config { log_bytes_kept_for_followers: 1 << 20, ..test_config() });
    let taken = cluster.status(leader).unwrap().snapshot;
    for _ in 0..200 {
        cluster.until_proposed(leader);
    }
    assert!(cluster.status(leader).unwrap().snapshot > taken);
    cluster.deliver_snapshots();
    cluster.until("it has caught up, or needs another one", |cluster| {
        let status = cluster.status(lagging).unwrap();
        cluster.is_sending_snapshots() || status.last == cluster.status(leader).unwrap().last
    });
    assert!(!cluster.is_sending_snapshots());

    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    let status = cluster.status(leader).unwrap();
    assert!(status.last.index.0 - status.truncated.index.0 < 80, "nobody needs the log any more: {status:?}");
    cluster.slow_snapshots = false;
    cluster.check_recovery();
}

#[test]
fn the_log_waits_up_to_a_bound_for_a_follower_whose_snapshot_never_arrives() {
    let bytes_max = 100 * Entry::OVERHEAD_BYTES;
    let config = Config { log_bytes_kept_for_followers: bytes_max, ..test_config() };
    let (mut cluster, leader, _) = cluster_that_sends_a_snapshot(config);
    for _ in 0..400 {
        cluster.until_proposed(leader);
    }
    let status = cluster.status(leader).unwrap();
    assert!(status.last.index.0 - status.truncated.index.0 < 180, "{status:?}");
    cluster.slow_snapshots = false;
    cluster.deliver_snapshots();
    cluster.check_recovery();
}

#[test]
fn bug_35_a_leader_does_not_count_its_own_log_before_it_is_flushed() {
    let (mut cluster, leader) = cluster_of_three();
    cluster.settle();
    let away = others(&cluster, leader)[0];
    isolate(&mut cluster, away);
    cluster.hang_disk(leader);
    let commit = cluster.status(leader).unwrap().commit;
    let proposal = cluster.propose(leader);
    cluster.settle();
    assert_eq!(cluster.status(leader).unwrap().commit, commit, "one of three has it");
    assert!(take(&proposal).is_none());
    cluster.repair_disks();
    cluster.settle();
    assert!(take(&proposal).unwrap().is_ok());
}

#[test]
fn bug_35_an_acknowledgement_of_an_earlier_term_counts_for_nothing() {
    let (mut cluster, leader) = cluster_of_three();
    cluster.settle();
    isolate(&mut cluster, leader);
    cluster.propose(leader);
    cluster.settle();
    let Status { term, last, commit, .. } = cluster.status(leader).unwrap();
    assert!(commit < last.index);
    for follower in others(&cluster, leader) {
        let stale = RaftMessageBody::AppendResponse { index: last.index, commit, rejection: None };
        hear(&mut cluster, leader, follower, Term(term.0 - 1), stale);
    }
    assert_eq!(cluster.status(leader).unwrap().commit, commit);
    cluster.check_recovery();
}

#[test]
fn bug_35_the_only_voter_of_both_halves_of_a_joint_configuration_waits_for_its_disk() {
    let mut cluster = Cluster::new(6, 1, test_config());
    let leader = cluster.until_leader();
    let learners = [2, 3].map(|number| Member { role: MemberRole::Learner, ..joiner(&mut cluster, number) });
    let steps = learners.map(MemberChange::Add).to_vec();
    let change = MembershipChange::Steps { steps, leave: LeaveJoint::OnRequest };
    let entered = cluster.change(leader, change);
    cluster.until("it is entered", |_| take(&entered).is_some());
    cluster.settle();

    cluster.propose(leader);
    demote(&mut cluster, leader);
    let campaign = outcome();
    cluster.local(leader, LocalRequestMsg::Campaign { reply: responder(&campaign) });
    assert_eq!(take(&campaign), Some(Err(CampaignError::NotReady)));
    cluster.check_recovery();
}

#[test]
fn bug_36_compaction_never_passes_what_is_applied() {
    let (mut cluster, leader) = cluster_of_three();
    for _ in 0..5 {
        let taken = cluster.make_snapshot(leader);
        // They are committed while the state machine still has the snapshot before it.
        for _ in 0..30 {
            cluster.propose(leader);
            while cluster.complete_write(leader) {}
            for other in others(&cluster, leader) {
                while cluster.deliver(leader, other)
                    || cluster.complete_write(other)
                    || cluster.deliver(other, leader)
                {}
            }
        }
        while take(&taken).is_none() {
            assert!(cluster.apply_one(leader) || cluster.complete_write(leader));
            let Status { truncated, snapshot, applied, .. } = cluster.status(leader).unwrap();
            assert!(
                truncated.index <= snapshot.map_or(truncated.index, |at| at.index)
                    && truncated.index <= applied
            );
        }
        cluster.settle();
    }
    assert!(cluster.status(leader).unwrap().truncated.index > LogIndex(50));
    cluster.check_recovery();
}

#[test]
fn bug_38_a_waiting_request_that_is_dropped_is_answered() {
    let answer = outcome::<Result<(), CampaignError>>();
    drop(responder(&answer));
    assert_eq!(take(&answer), Some(Err(StopReason::Stopped.into())));
}

#[test]
fn bug_38_a_stopping_node_answers_every_waiting_caller() {
    let (mut cluster, leader) = cluster_of_three();
    isolate(&mut cluster, leader);
    let proposal = cluster.propose(leader);
    let read = cluster.read(leader);
    let change = cluster.change(leader, remove(others(&cluster, leader)[0]));
    let reservation = outcome();
    let request = LeaderRequest::ReserveNodeId { reply: responder(&reservation) };
    cluster.local(leader, LocalRequestMsg::ForLeader(request));
    let snapshot = cluster.make_snapshot(leader);
    let reason = StopReason::Storage("the disk is full".to_owned());
    cluster.core(leader).stop(&reason);
    let unknown = UnknownOutcome::NodeStopped(reason.clone());
    assert_eq!(take(&proposal), Some(Err(ProposeError::Unknown(unknown))));
    assert_eq!(take(&read), Some(Err(ReadError::Stopped(reason.clone()))));
    assert_eq!(take(&change), Some(Err(MembershipError::Stopped(reason.clone()))));
    assert_eq!(take(&reservation).unwrap().unwrap_err(), MembershipError::Stopped(reason.clone()));
    assert_eq!(take(&snapshot).unwrap().unwrap_err(), reason.into());
}

#[test]
fn an_election_while_a_snapshot_is_being_restored_is_no_danger() {
    let (mut cluster, leader) = cluster_of_three();
    let away = others(&cluster, leader)[0];
    cluster.crash(away);
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    cluster.start(away);
    let installed = cluster.snapshots_installed();
    // Everything moves but the state machine of the node that receives the snapshot, and then its elections
    // begin.
    for _ in 0..200 {
        for node in cluster.ids() {
            cluster.tick(node);
            while cluster.complete_write(node) {}
            while node != away && cluster.apply_one(node) {}
        }
        for node in cluster.ids() {
            for other in cluster.ids() {
                while cluster.deliver(node, other) {}
            }
        }
        cluster.deliver_answers();
        if cluster.snapshots_installed() > installed {
            isolate(&mut cluster, away);
        }
    }
    assert_eq!(cluster.snapshots_installed(), installed + 1);
    cluster.check_recovery();
}

#[test]
fn a_learner_receives_the_log_and_does_not_vote() {
    let (mut cluster, leader) = cluster_of_three();
    let learner = Member { role: MemberRole::Learner, ..joiner(&mut cluster, 4) };
    let added = cluster.change(leader, MembershipChange::one(MemberChange::Add(learner)));
    cluster.until("it is added", |_| take(&added).is_some());
    assert!(take(&added).unwrap().is_ok());
    cluster.until_proposed(leader);
    cluster.until("it has applied everything", |cluster| {
        cluster.status(id(4)).unwrap().applied == cluster.status(leader).unwrap().applied
    });
    for voter in [1, 2, 3].map(id) {
        cluster.crash(voter);
    }
    cluster.pass_ticks(100);
    let status = cluster.status(id(4)).unwrap();
    assert_eq!((status.role, status.leader_id), (Role::Follower, status.leader_id));
    assert!(cluster.leader().is_none());
    cluster.check_recovery();
}

#[test]
fn a_majority_goes_on_and_the_rest_catches_up_by_entries() {
    let (mut cluster, leader) = cluster_of_three();
    let away = others(&cluster, leader)[0];
    isolate(&mut cluster, away);
    for _ in 0..8 {
        cluster.until_proposed(leader);
    }
    let installed = cluster.snapshots_installed();
    cluster.cut().clear();
    cluster.until("it has applied everything", |cluster| {
        cluster.status(away).unwrap().applied == cluster.status(leader).unwrap().applied
    });
    assert_eq!(cluster.snapshots_installed(), installed, "the log reached far enough");
}

#[test]
fn a_follower_far_behind_is_fed_from_the_disk() {
    // Nothing stays in memory but what is not applied, and no snapshot is taken.
    let config = Config { log_cache_bytes: 0, snapshot_entries: None, ..test_config() };
    let mut cluster = Cluster::new(4, 3, config);
    let leader = cluster.until_leader();
    let away = others(&cluster, leader)[0];
    // It must have begun to follow, or it would need a snapshot of the beginning.
    cluster.until("it follows", |cluster| cluster.status(away).unwrap().applied > LogIndex(1));
    cluster.crash(away);
    for _ in 0..100 {
        cluster.until_proposed(leader);
    }
    cluster.start(away);
    cluster.until("it has applied everything", |cluster| {
        cluster.status(away).unwrap().applied == cluster.status(leader).unwrap().applied
    });
    cluster.check_recovery();
}

#[test]
fn all_nodes_crash_at_once_and_nothing_acknowledged_is_lost() {
    let (mut cluster, leader) = cluster_of_three();
    for _ in 0..30 {
        cluster.until_proposed(leader);
    }
    for node in cluster.ids() {
        cluster.crash(node);
    }
    cluster.check_recovery();
    assert_eq!(cluster.acknowledged().len(), 32);
}

#[test]
fn a_request_that_was_forwarded_is_not_forwarded_again() {
    let (mut cluster, leader) = cluster_of_three();
    let follower = others(&cluster, leader)[0];
    cluster.settle();
    let answer = outcome();
    let request = LeaderRequest::Propose { payload: payload(), reply: reply_to(&answer) };
    let request = ServerRequestMsg::ForLeader { request, forwarding: Forwarding::Never };
    cluster.core(follower).handle_server_request_msg(request);
    cluster.run_turns(follower);
    assert!(matches!(take(&answer), Some(Err(ProposeError::NotLeader(hint))) if hint.id == leader));
    assert_eq!(cluster.packets(follower, leader), 0);
}
