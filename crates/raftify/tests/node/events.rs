//! The events of a node: each change once, in order, with its numbers; and over the network.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftify::client::ClientError;
use raftify::error::{MembershipError, ReadError, RunError, SnapshotError, StopReason};
use raftify::events::{Event, EventRecord, Events};
use raftify::membership::{MemberChange, MemberRole, MembershipChange};
use raftify::status::Role;
use raftify::{Config, RaftClient};

use crate::harness::*;

type Client = RaftClient<Change, Store>;

fn client(node: &TestNode) -> Client {
    RaftClient::new([node.address.clone()]).unwrap().with_deadline(Duration::from_secs(60))
}

/// The events up to the first one that is meant. Their numbers follow each other.
async fn until_event(events: &mut Events, what: &str, is_meant: impl Fn(&Event) -> bool) -> Vec<EventRecord> {
    let mut all: Vec<EventRecord> = Vec::new();
    let found = async {
        while let Some(record) = events.next().await {
            if let Some(last) = all.last() {
                assert_eq!(record.sequence, last.sequence + 1, "{what}: {all:?}");
            }
            let is_last = is_meant(&record.event);
            all.push(record);
            if is_last {
                return;
            }
        }
        panic!("the events end before {what}");
    };
    within(what, found).await;
    all
}

/// The events up to the end of the stream.
async fn to_the_end(events: &mut Events) -> Vec<Event> {
    let mut all = Vec::new();
    within("the end of the events", async {
        while let Some(record) = events.next().await {
            all.push(record.event);
        }
    })
    .await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_its_term_and_the_roles_are_reported_once_each() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let mut events: Vec<Events> = nodes.iter().map(|node| node.raft().events()).collect();
    nodes[leader].stop().await;
    let next = agreed_leader(&nodes).await;
    let id = nodes[next].id;
    for (place, events) in events.iter_mut().enumerate().filter(|(place, _)| *place != leader) {
        let seen = until_event(
            events,
            "the new leader",
            |event| matches!(event, Event::LeaderChanged { leader: Some(leader), .. } if *leader == id),
        )
        .await;
        let terms: Vec<u64> = seen
            .iter()
            .filter_map(|record| match record.event {
                Event::TermChanged { term } => Some(term.get()),
                _ => None,
            })
            .collect();
        assert!(!terms.is_empty() && terms.is_sorted_by(|a, b| a < b), "{seen:?}");
        let leads =
            seen.iter().any(|record| matches!(record.event, Event::RoleChanged { role: Role::Leader, .. }));
        assert_eq!(leads, place == next, "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_members_are_reported_with_the_index_of_the_membership() {
    let mut nodes = joined_cluster(1).await;
    let mut events = nodes[0].raft().events();
    nodes.push(join(&nodes[0]).await);
    let added =
        until_event(&mut events, "the joining node", |event| matches!(event, Event::MemberAdded { .. }))
            .await;
    let Some(EventRecord { event: Event::MemberAdded { member, index }, .. }) = added.last() else {
        panic!()
    };
    assert_eq!((member.id, member.role, &member.address), (id(2), MemberRole::Joining, &nodes[1].address));
    let joined_at = *index;
    let promoted = |event: &Event| matches!(event, Event::MemberPromoted { role: MemberRole::Voter, .. });
    let seen = until_event(&mut events, "the promotion", promoted).await;
    let Some(EventRecord { event: Event::MemberPromoted { id: voter, index, .. }, .. }) = seen.last() else {
        panic!()
    };
    assert!(*voter == id(2) && *index > joined_at, "{seen:?}");

    until("node 2 is demoted", async || nodes[0].raft().demote_to_learner(id(2)).await.is_ok()).await;
    let demoted = |event: &Event| matches!(event, Event::MemberDemoted { role: MemberRole::Learner, .. });
    until_event(&mut events, "the demotion", demoted).await;

    let before = nodes[1].address.clone();
    until("node 2 is identified", async || {
        nodes[0].raft().members().iter().all(|member| member.incarnation.is_some())
    })
    .await;
    nodes[1].stop().await;
    nodes[1].address = free_address();
    nodes[1].start();
    let moved =
        until_event(&mut events, "the move", |event| matches!(event, Event::MemberMoved { .. })).await;
    let Some(EventRecord { event: Event::MemberMoved { from, to, .. }, .. }) = moved.last() else { panic!() };
    assert_eq!((from, to), (&before, &nodes[1].address));

    let removal = MembershipChange::one(MemberChange::Remove(id(2)));
    let members = nodes[0].raft().change_config(removal).await.unwrap();
    let removed = |event: &Event| *event == Event::MemberRemoved { id: id(2), index: members.as_of() };
    until_event(&mut events, "the removal", removed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_reported_when_they_begin_and_when_they_are_in_use_here_and_there() {
    let mut node = TestNode::new(1);
    node.config = short_log();
    let raft = node.start();
    put(&raft, "key", "value").await;
    let mut events = raft.events();
    let position = raft.make_snapshot().await.unwrap();
    let taken =
        until_event(&mut events, "the snapshot", |event| *event == Event::SnapshotTaken { position }).await;
    let begun = taken.iter().find_map(|record| match record.event {
        Event::SnapshotBegun { index } => Some(index),
        _ => None,
    });
    assert!(begun.is_some_and(|index| index <= position.index), "{taken:?}");

    // A node that joins gets it, because the log before it is gone.
    let ticket = ticket(&free_address(), &node).await;
    let mut other = TestNode::of(&ticket);
    let joining = other.bootstrap().unwrap();
    let mut of_other = joining.events();
    let joining = other.run(joining);
    let mut of_node = raft.events();
    join_with(&joining, ticket).await;
    let installed = |event: &Event| matches!(event, Event::SnapshotInstalled { .. });
    let seen = until_event(&mut of_other, "the installed snapshot", installed).await;
    let Some(EventRecord { event: Event::SnapshotInstalled { position }, .. }) = seen.last() else {
        panic!()
    };
    let (position, to) = (*position, other.id);
    let sent =
        until_event(&mut of_node, "it is sent", |event| *event == Event::SnapshotSent { to, position }).await;
    assert!(sent.iter().any(|record| record.event == Event::SnapshotSending { to, position }), "{sent:?}");

    node.faults.snapshot.store(true, Ordering::SeqCst);
    assert!(matches!(raft.make_snapshot().await, Err(SnapshotError::Failed(_))));
    let failed =
        |event: &Event| matches!(event, Event::SnapshotFailed { reason } if reason.contains("no snapshot"));
    until_event(&mut of_node, "the failure", failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_killed_and_comes_back_is_unreachable_and_reachable_once_each() {
    let mut nodes = static_cluster(3).await;
    let place = (agreed_leader(&nodes).await + 1) % 3;
    let watching = nodes[(place + 1) % 3].raft().clone();
    let id = nodes[place].id;
    let mut events = watching.events();
    nodes[place].kill().await;
    until_event(&mut events, "the member is gone", |event| *event == Event::PeerUnreachable { id }).await;
    nodes[place].start();
    let back = until_event(&mut events, "it is back", |event| *event == Event::PeerReachable { id }).await;
    let again = back.iter().filter(|record| record.event == Event::PeerUnreachable { id }).count();
    assert_eq!(again, 0, "each attempt to connect is reported: {back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_and_a_full_one_are_reported_and_the_last_event_is_the_reason_of_the_stop() {
    let millis = Duration::from_millis;
    let config = Config {
        tick_interval: millis(10),
        heartbeat_interval: millis(20),
        election_timeout: millis(60),
        ..Config::default()
    };
    let mut node = TestNode::new(1);
    node.config = config;
    let raft = node.start();
    put(&raft, "key", "value").await;
    let mut events = raft.events();
    let is_slow = AtomicBool::new(true);
    node.disk.judge(move |_| {
        if is_slow.swap(false, Ordering::SeqCst) {
            std::thread::sleep(millis(150)); // The disk is slow once.
        }
        true
    });
    put(&raft, "key", "slow").await;
    let slow =
        until_event(&mut events, "the slow write", |event| matches!(event, Event::DiskSlow { .. })).await;
    let Some(EventRecord { event: Event::DiskSlow { millis, limit_millis }, .. }) = slow.last() else {
        panic!()
    };
    assert!(*millis >= 150 && *limit_millis == 60, "{slow:?}");

    node.disk.full.store(true, Ordering::SeqCst);
    assert!(raft.propose(set("key", "full")).await.is_err());
    assert!(matches!(node.ended().await, Err(RunError::Stopped(StopReason::Storage(_)))));
    let end = to_the_end(&mut events).await;
    let [.., Event::DiskFailed { reason }, Event::Stopped { reason: StopReason::Storage(same) }] = &end[..]
    else {
        panic!("{end:?}")
    };
    assert!(reason == same && reason.contains("no storage space"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_end_when_the_node_has_stopped_and_a_later_reader_gets_none() {
    let mut node = TestNode::new(1);
    let raft = node.bootstrap().unwrap();
    let mut before_the_run = raft.events();
    begins_alone(&raft, &node.address);
    let raft = node.run(raft);
    put(&raft, "key", "value").await;
    node.stop().await;
    let all = to_the_end(&mut before_the_run).await;
    assert!(matches!(&all[..], [.., Event::Stopped { reason: StopReason::Stopped }]), "{all:?}");
    assert!(
        all.iter().any(|event| matches!(event, Event::RoleChanged { role: Role::Leader, .. })),
        "{all:?}"
    );
    assert!(to_the_end(&mut raft.events()).await.is_empty());

    let never_run = TestNode::new(1).bootstrap().unwrap();
    let mut events = never_run.events();
    never_run.quit().await;
    assert!(to_the_end(&mut events).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_ends_the_events_of_its_readers() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    let mut events = raft.events();
    node.kill().await;
    to_the_end(&mut events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_readers_get_the_same_events_and_the_end_and_one_that_does_not_read_holds_up_nothing() {
    let mut node = TestNode::new(1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    let quiet = client(&node).events().await.unwrap();
    let mut here = raft.events();
    let mut remote = client(&node).events().await.unwrap();
    assert_eq!(remote.address(), node.address);
    let position = raft.make_snapshot().await.unwrap();
    let read = Arc::new(Mutex::new(Vec::new()));
    let reading = tokio::spawn({
        let read = Arc::clone(&read);
        async move {
            while let Some(record) = remote.next().await.unwrap() {
                read.lock().unwrap().push(record);
            }
        }
    });
    node.stop().await;
    within("the end of the remote events", reading).await.unwrap();
    let mut all = Vec::new();
    while let Some(record) = here.next().await {
        all.push(record);
    }
    assert_eq!(*read.lock().unwrap(), all);
    assert!(all.iter().any(|record| record.event == Event::SnapshotTaken { position }), "{all:?}");
    assert!(matches!(all.last().unwrap().event, Event::Stopped { .. }), "{all:?}");
    drop(quiet);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_a_bounded_number_of_remote_readers() {
    let node = &mut TestNode::new(1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    let mut readers = Vec::new();
    for _ in 0..64 {
        readers.push(client(node).events().await.unwrap());
    }
    let mut refused = client(node).events().await.unwrap();
    let busy = ClientError::Answer(ReadError::Busy { waiting: 64 });
    assert_eq!(within("a refusal", refused.next()).await, Err(busy));
    readers.pop();
    // The node learns of the closed connection a moment later.
    until("there is room again", async || {
        let mut next = client(node).events().await.unwrap();
        put(&raft, "key", "other").await;
        raft.make_snapshot().await.unwrap();
        within("an answer", next.next()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_client_takes_the_snapshot_of_one_member_and_is_told_of_an_unknown_one() {
    let nodes = static_cluster(3).await;
    put(nodes[0].raft(), "key", "value").await;
    let client = client(&nodes[0]);
    for node in &nodes {
        let position = client.make_snapshot(node.id).await.unwrap();
        until("it is in use", async || node.raft().status().borrow().snapshot == Some(position)).await;
        assert_eq!(node.raft().raft_server().requests().requested_snapshots, 1);
    }
    let unknown = client.make_snapshot(id(9)).await.unwrap_err();
    assert_eq!(unknown.to_string(), "node 9 is no member: the members are 1, 2, 3");
    nodes[1].faults.snapshot.store(true, Ordering::SeqCst);
    put(nodes[0].raft(), "key", "other").await;
    until("there is more to take than its newest snapshot has", async || {
        let status = nodes[1].raft().status().borrow().clone();
        status.snapshot.is_some_and(|snapshot| snapshot.index < status.applied)
    })
    .await;
    let failed = client.make_snapshot(id(2)).await.unwrap_err();
    assert!(matches!(failed, ClientError::Answer(SnapshotError::Failed(_))), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_a_remote_client_makes_leave_has_left_in_order_also_the_leader() {
    let mut nodes = joined_cluster(3).await;
    until("all vote", async || {
        nodes[0].raft().members().iter().all(|member| member.role == MemberRole::Voter)
    })
    .await;
    let leader = agreed_leader(&nodes).await;
    let (leaving, other) = (nodes[leader].id, (leader + 1) % 3);
    let client = client(&nodes[other]);
    let mut outcome = Err(ClientError::Answer(MembershipError::NoLeader));
    // On a busy machine, the leader may not find a successor in time: nothing has happened then.
    until("it leaves", async || {
        outcome = client.leave(leaving, false).await;
        !matches!(
            outcome,
            Err(ClientError::Answer(
                MembershipError::NoLeader
                    | MembershipError::TransferFailed(_)
                    | MembershipError::WouldLoseMajority { .. }
            ))
        )
    })
    .await;
    outcome.unwrap();
    nodes[leader].ended().await.unwrap();
    until("the others know", async || nodes[other].raft().cluster_size() == 2).await;
    let gone = client.leave(leaving, false).await.unwrap_err();
    assert!(matches!(gone, ClientError::NotAMember { id, .. } if id == leaving), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_does_not_leave_and_diagnostics_say_when_a_member_was_heard_from() {
    let nodes = static_cluster(2).await;
    let leader = agreed_leader(&nodes).await;
    until("the other one was heard from", async || {
        let inspection = nodes[leader].raft().inspect().await.unwrap();
        let other = inspection.progress.iter().find(|peer| peer.id == nodes[1 - leader].id);
        other.is_some_and(|peer| peer.heard_millis.is_some())
    })
    .await;
    let mut node = TestNode::on(DiskKind::Wal, 1);
    let raft = node.start();
    put(&raft, "key", "value").await;
    let refused = client(&node).leave(id(1), false).await.unwrap_err();
    assert!(refused.to_string().contains("no voter would be left"), "{refused}");
    assert!(raft.propose(set("key", "still there")).await.is_ok());
}
