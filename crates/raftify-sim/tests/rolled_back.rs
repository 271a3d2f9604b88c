//! Disks that are rolled back to an older copy: who knows better says so, and who has proof that acknowledged
//! writes were lost stops.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use raftify_core::error::{InstallError, StopReason};
use raftify_core::members::SenderRefusal;
use raftify_core::message::CampaignReason;
use raftify_core::{
    Config, Entry, EntryKind, LocalRequestMsg, LogIndex, LogPosition, Member, MemberChange, MembershipChange,
    NodeId, RaftMessage, RaftMessageBody, Role, ServerRequestMsg, SnapshotMeta, Status, Term,
};
use raftify_sim::script::{Cluster, DiskCopy, id, outcome, responder, take, test_config};

/// So many entries are acknowledged while one of three nodes is away.
const ACKNOWLEDGED: usize = 20;

fn config() -> Config {
    // The copies that are made have no snapshots.
    Config { snapshot_entries: Some(1_000_000), ..test_config() }
}

/// Of three nodes: the leader, the one that has everything, and the one that was away meanwhile; and the disk
/// of the second one before that.
struct OneIsAway {
    cluster: Cluster,
    leader: NodeId,
    keeper: NodeId,
    away: NodeId,
    old_copies: [(NodeId, DiskCopy); 2],
}

fn one_is_away(seed: u64) -> OneIsAway {
    let mut cluster = Cluster::new(seed, 3, config());
    let leader = cluster.until_leader();
    cluster.until("all incarnations are known", |cluster| {
        cluster.ids().into_iter().all(|node| cluster.is_incarnation_known(node))
    });
    cluster.until_proposed(leader);
    cluster.pass_ticks(20);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    let (keeper, away) = (others[0], others[1]);
    let old_copies = [leader, keeper].map(|node| (node, cluster.copy_of_disk(node)));
    cluster.crash(away);
    for _ in 0..ACKNOWLEDGED {
        cluster.until_proposed(leader);
    }
    cluster.pass_ticks(20);
    OneIsAway { cluster, leader, keeper, away, old_copies }
}

/// `body` comes to `node` as a message of `from`.
fn hear(cluster: &mut Cluster, node: NodeId, from: NodeId, term: Term, body: RaftMessageBody) {
    let (sender, receiver) = cluster.introduction(from, node);
    let messages = vec![RaftMessage { from, to: node, term, body }];
    let request = ServerRequestMsg::RaftMessages { sender, receiver, messages };
    cluster.core(node).handle_server_request_msg(request);
}

fn empty(position: LogPosition) -> Entry {
    Entry { position, kind: EntryKind::Empty, payload: Bytes::new() }
}

fn refusal_of(cluster: &Cluster, node: NodeId) -> SenderRefusal {
    match cluster.stopped_because(node) {
        Some(StopReason::Refused(refusal)) => refusal,
        reason => panic!("{reason:?}"),
    }
}

/// The node is set back, and started while those that know better are up. It stops, and the others have
/// everything.
fn is_noticed(mut cluster: Cluster, node: NodeId, copy: DiskCopy) -> SenderRefusal {
    cluster.crash(node);
    cluster.roll_back(node, copy);
    cluster.start(node);
    cluster.until("it stops", |cluster| !cluster.is_running(node));
    cluster.check_recovery();
    refusal_of(&cluster, node)
}

#[test]
fn a_copy_of_an_earlier_day_is_refused_by_the_leader_that_knew_its_log_and_nothing_is_lost() {
    let OneIsAway { cluster, keeper, old_copies: [_, (_, copy)], .. } = one_is_away(7);
    let refusal = is_noticed(cluster, keeper, copy);
    let SenderRefusal::RolledBack { id, found, told, .. } = refusal else { panic!("{refusal:?}") };
    assert_eq!(id, keeper);
    assert!(found.index.get() + ACKNOWLEDGED as u64 <= told.index.get(), "{found} {told}");
}

#[test]
fn a_leader_that_comes_back_with_an_older_copy_is_refused_by_its_follower_and_nothing_is_lost() {
    let OneIsAway { cluster, leader, old_copies: [(_, copy), _], .. } = one_is_away(8);
    let refusal = is_noticed(cluster, leader, copy);
    assert!(matches!(refusal, SenderRefusal::RolledBack { id, .. } if id == leader), "{refusal:?}");
}

#[test]
fn one_member_that_knows_is_enough_while_another_one_lags_behind_and_also_after_all_have_restarted() {
    for seed in 9..15 {
        let OneIsAway { mut cluster, leader, keeper, away, old_copies: [_, (_, copy)] } = one_is_away(seed);
        // What was told is durable by now.
        cluster.pass_ticks(400);
        for node in [leader, keeper] {
            cluster.crash(node);
        }
        cluster.roll_back(keeper, copy);
        for node in [away, keeper, leader] {
            cluster.start(node);
        }
        cluster.until("it stops", |cluster| !cluster.is_running(keeper));
        assert!(matches!(refusal_of(&cluster, keeper), SenderRefusal::RolledBack { .. }));
        cluster.check_recovery();
    }
}

#[test]
fn a_copy_of_before_the_last_start_counts_fewer_starts_and_one_of_before_this_start_as_many() {
    let OneIsAway { mut cluster, leader, keeper, away, old_copies: [_, (_, copy)] } = one_is_away(16);
    cluster.start(away);
    cluster.crash(keeper);
    let before_the_start = cluster.copy_of_disk(keeper);
    for _ in 0..2 {
        cluster.start(keeper);
        cluster.until_proposed(leader);
        cluster.pass_ticks(20);
        cluster.crash(keeper);
    }
    for (copy, is_twice) in [(before_the_start, false), (copy, false), (cluster.copy_of_disk(keeper), true)] {
        let kept = cluster.copy_of_disk(keeper);
        if is_twice {
            // Now the original is started, and stopped again, before its copy is.
            cluster.start(keeper);
            cluster.until("it is heard", |cluster| {
                cluster.core(leader).remembered().peers[&keeper].told.starts == 4
            });
            cluster.crash(keeper);
        }
        cluster.roll_back(keeper, copy);
        cluster.start(keeper);
        cluster.until("it stops", |cluster| !cluster.is_running(keeper));
        match refusal_of(&cluster, keeper) {
            SenderRefusal::StartedTwice { starts: 4, .. } if is_twice => {}
            SenderRefusal::RolledBack { found, told, .. } if !is_twice => assert!(found.starts < told.starts),
            refusal => panic!("{refusal:?}"),
        }
        cluster.roll_back(keeper, kept);
    }
}

#[test]
fn a_node_votes_for_none_and_acknowledges_nothing_before_it_has_heard_from_the_others() {
    let mut cluster = Cluster::new(17, 3, config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let others: Vec<NodeId> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
    let (node, silent) = (others[0], others[1]);
    cluster.crash(node);
    for _ in 0..3 {
        cluster.until_proposed(leader);
    }
    let last = cluster.status(leader).unwrap().last;
    // One of the others neither answers nor is known to be down.
    cluster.undecided().insert(silent);
    cluster.start(node);
    cluster.pass_ticks(3);
    assert!(cluster.status(node).unwrap().last < last, "it has acknowledged an entry");
    let Status { term, .. } = cluster.status(node).unwrap();
    let vote = RaftMessageBody::RequestVote {
        last: LogPosition::new(term.get(), 1_000),
        commit: LogPosition::ZERO,
        reason: CampaignReason::Transfer,
    };
    hear(&mut cluster, node, leader, Term(term.get() + 1), vote);
    hear(&mut cluster, node, leader, term, RaftMessageBody::TimeoutNow);
    let answer = outcome();
    cluster.local(node, LocalRequestMsg::Campaign { reply: responder(&answer) });
    assert!(take(&answer).unwrap().is_err());
    let status = cluster.status(node).unwrap();
    assert_eq!((status.term, status.role), (term, Role::Follower));
    // It does not wait for ever.
    cluster.until("it has caught up", |cluster| cluster.status(node).unwrap().last.index >= last.index);
    cluster.undecided().clear();
    cluster.check_recovery();
}

#[test]
fn a_single_voter_with_an_older_copy_hears_from_its_learner_before_it_leads() {
    let mut cluster = Cluster::new(18, 1, config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let learner = id(2);
    cluster.add_node(learner);
    cluster.await_cluster(learner);
    cluster.settle();
    let incarnation = Some(cluster.incarnation(learner));
    let joins = Member { incarnation, ..Member::learner(learner, "node-2:1") };
    cluster.change(leader, MembershipChange::one(MemberChange::Add(joins)));
    cluster.pass_ticks(40);
    let copy = cluster.copy_of_disk(leader);
    for _ in 0..ACKNOWLEDGED {
        cluster.until_proposed(leader);
    }
    cluster.pass_ticks(20);
    cluster.crash(leader);
    cluster.roll_back(leader, copy);
    cluster.start(leader);
    cluster.until("it stops", |cluster| !cluster.is_running(leader));
    assert!(matches!(refusal_of(&cluster, leader), SenderRefusal::RolledBack { .. }));
}

#[test]
fn messages_of_an_earlier_run_that_come_late_are_refused_and_stop_neither_run() {
    let mut cluster = Cluster::new(19, 3, config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    let node = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
    let (earlier, receiver) = cluster.introduction(node, leader);
    cluster.crash(node);
    cluster.start(node);
    cluster.until_proposed(leader);
    cluster.pass_ticks(20);
    let core = cluster.core(leader);
    let refusal = core.check_sender(&earlier, receiver).unwrap_err();
    assert!(matches!(refusal, SenderRefusal::RolledBack { .. }), "{refusal:?}");
    cluster.run_turns(leader);
    let core = cluster.core(node);
    core.refused_by(leader, refusal);
    assert_eq!(core.stop_reason(), None, "it is not this run that was refused");
    cluster.check_recovery();
}

#[test]
fn a_node_that_has_what_a_new_leader_lacks_stops_with_the_proof_that_writes_were_lost() {
    let OneIsAway { mut cluster, leader, keeper, away, old_copies } = one_is_away(1);
    let commit = cluster.status(leader).unwrap().commit;
    // All that know better are down when the other two go on.
    for node in [leader, keeper] {
        cluster.crash(node);
    }
    let [_, (_, copy)] = old_copies;
    cluster.roll_back(keeper, copy);
    cluster.judge_without(leader);
    cluster.start(keeper);
    cluster.start(away);
    cluster.until("the other two elect a leader", |cluster| cluster.leader().is_some());
    let new_leader = cluster.leader().unwrap();
    cluster.until_proposed(new_leader);
    assert!(cluster.status(new_leader).unwrap().commit < commit, "they have forgotten what was acknowledged");

    cluster.start(leader);
    cluster.until("who still has it stops", |cluster| !cluster.is_running(leader));
    let reason = cluster.stopped_because(leader);
    let Some(StopReason::WritesLost { node, missing, commit: has, leader: of, term }) = reason else {
        panic!("{reason:?}");
    };
    assert_eq!((node, of, term), (leader, new_leader, cluster.status(new_leader).unwrap().term));
    assert!(missing <= commit && has >= commit.previous(), "{missing} {has} {commit}");
}

#[test]
fn what_a_leader_of_an_earlier_term_said_is_no_proof_of_a_loss_nor_is_what_the_leader_itself_said_before() {
    let mut cluster = Cluster::new(2, 3, config());
    let old_leader = cluster.until_leader();
    let follower = cluster.ids().into_iter().find(|node| *node != old_leader).unwrap();
    let Status { term: old_term, last, .. } = cluster.status(old_leader).unwrap();
    for node in cluster.ids() {
        if node != old_leader {
            cluster.cut().insert((old_leader, node));
            cluster.cut().insert((node, old_leader));
        }
    }
    cluster.until("the others elect a leader", |cluster| {
        cluster.leader().is_some_and(|leader| leader != old_leader)
    });
    let leader = cluster.leader().unwrap();
    cluster.until_proposed(leader);
    cluster.pass_ticks(20);
    let Status { term, commit, .. } = cluster.status(follower).unwrap();
    assert!(commit > last.index);
    let append = |previous: LogPosition, entries| RaftMessageBody::Append {
        previous,
        commit: previous.index,
        entries,
    };
    // The old leader had put something else where a committed entry stands now.
    let other = LogPosition { term: old_term, index: last.index.next() };
    hear(&mut cluster, follower, old_leader, old_term, append(last, vec![empty(other)]));
    // The leader looked for agreement further back.
    hear(&mut cluster, follower, leader, term, append(LogPosition::new(1, 1), Vec::new()));
    hear(&mut cluster, follower, leader, term, append(LogPosition::ZERO, Vec::new()));
    hear(&mut cluster, follower, leader, term, append(last, Vec::new()));
    assert_eq!(cluster.core(follower).stop_reason(), None);
    cluster.run_turns(follower);
    cluster.check_recovery();
}

/// What `position` in a leader's snapshot or append tells a follower whose commit index is that of the
/// cluster.
fn told(seed: u64, claim: impl Fn(&Status) -> (LogPosition, bool)) -> (Status, Option<StopReason>) {
    let mut cluster = Cluster::new(seed, 3, config());
    let leader = cluster.until_leader();
    cluster.until_proposed(leader);
    cluster.pass_ticks(20);
    let follower = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
    let status = cluster.status(follower).unwrap();
    let (position, in_snapshot) = claim(&status);
    let term = status.term.get() + 1;
    if in_snapshot {
        let answer = outcome::<Result<(), InstallError>>();
        let members = (*status.members).clone();
        let snapshot = SnapshotMeta { cluster_id: cluster.cluster_id(), position, members };
        let (sender, receiver) = cluster.introduction(leader, follower);
        let (term, reply) = (Term(term), responder(&answer));
        let request = ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply };
        cluster.core(follower).handle_server_request_msg(request);
        assert!(take(&answer).is_none_or(|answer| answer.is_err()), "it is installed");
    } else {
        let body = RaftMessageBody::Append {
            previous: position,
            commit: LogIndex::ZERO,
            entries: vec![empty(LogPosition::new(term, position.index.get() + 1))],
        };
        hear(&mut cluster, follower, leader, Term(term), body);
    }
    let reason = cluster.core(follower).stop_reason().cloned();
    (status, reason)
}

#[test]
fn a_leader_whose_log_provably_lacks_a_committed_entry_is_not_followed() {
    let lower = |status: &Status| LogPosition {
        term: Term(status.last.term.get() - 1),
        index: LogIndex(status.commit.get() + 5),
    };
    let at_commit = |status: &Status| LogPosition { term: Term(status.term.get() + 1), index: status.commit };
    let before = |status: &Status| LogPosition { term: status.last.term, index: status.commit.previous() };
    // Its log ends before the committed entry, and an entry of its own term follows.
    let (status, reason) = told(3, |status| (before(status), false));
    let missing = status.commit;
    assert!(
        matches!(reason, Some(StopReason::WritesLost { missing: at, .. }) if at == missing),
        "{reason:?}"
    );
    // Further on, its log is still of an earlier term than the committed entry.
    for in_snapshot in [false, true] {
        let (_, reason) = told(4, |status| (lower(status), in_snapshot));
        assert!(matches!(reason, Some(StopReason::WritesLost { .. })), "{reason:?}");
        let (_, reason) = told(5, |status| (at_commit(status), in_snapshot));
        assert!(matches!(reason, Some(StopReason::WritesLost { .. })), "{reason:?}");
    }
    // One that is ahead of this node may have everything.
    let ahead = |status: &Status| LogPosition {
        term: Term(status.term.get() + 1),
        index: LogIndex(status.commit.get() + 5),
    };
    let (_, reason) = told(6, |status| (ahead(status), false));
    assert_eq!(reason, None);
}
