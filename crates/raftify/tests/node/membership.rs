//! Joining, leaving, and every rejected change.

use std::time::Duration;

use raftify::error::{
    AddPeersError, BeginError, JoinClusterError, JoinError, MembershipError, MembershipRefusal,
    NodeStartError, RequestIdError, RunError, StopReason,
};
use raftify::membership::{LeaveJoint, MemberChange, MemberRole, MembershipChange};
use raftify::start::Start;
use raftify::status::ClusterId;
use raftify::storage::{Entry, EntryKind};
use raftify::{ClusterJoinTicket, Config, Member, NodeId};

use crate::harness::*;

/// Retries until the change is made or rejected. On a busy machine, a leader that is to be removed may not
/// find a successor in time, and a new leader may not have messages from all voters yet: nothing has happened
/// then.
async fn change(
    raft: &TestRaft,
    change: MembershipChange,
) -> Result<raftify::membership::Members, MembershipError> {
    use MembershipError::{ChangePending, NoLeader, TransferFailed, WouldLoseMajority};
    let mut outcome = None;
    until("it is this change's turn", async || {
        outcome = Some(raft.change_config(change.clone()).await);
        !matches!(outcome, Some(Err(ChangePending | NoLeader | TransferFailed(_) | WouldLoseMajority { .. })))
    })
    .await;
    outcome.unwrap()
}

async fn members_seen(node: &TestNode, count: usize) {
    let what = format!("node {} sees {count} members", node.id);
    until(&what, async || node.raft().cluster_size() == count).await;
}

#[tokio::test]
async fn three_nodes_join_one_after_the_other_and_all_take_part() {
    let mut nodes = joined_cluster(3).await;
    for (place, node) in nodes.iter().enumerate() {
        members_seen(node, 3).await;
        put(node.raft(), place, "value").await;
    }
    // Entries from before a node joined are present as well.
    for node in &nodes {
        for key in ["0", "1", "2"] {
            assert_eq!(node.get(key).await, Some("value".to_owned()));
        }
    }
    // All data is still present after all nodes were down.
    for node in &mut nodes {
        node.kill().await;
    }
    for node in &mut nodes {
        node.start();
    }
    for node in &nodes {
        assert_eq!(node.get("2").await, Some("value".to_owned()));
        assert_eq!(node.raft().cluster_size(), 3);
    }
}

#[tokio::test]
async fn a_ticket_from_a_follower_is_as_good_as_one_from_the_leader() {
    let mut nodes = joined_cluster(2).await;
    let node = join(&nodes[1]).await;
    assert_eq!(node.id, id(3));
    nodes.push(node);
    for node in &nodes {
        members_seen(node, 3).await;
    }
}

#[tokio::test]
async fn two_nodes_that_join_at_once_get_different_ids() {
    let nodes = joined_cluster(1).await;
    let (first, second) = tokio::join!(join(&nodes[0]), join(&nodes[0]));
    assert_ne!(first.id, second.id);
    members_seen(&nodes[0], 3).await;
}

#[tokio::test]
async fn several_tickets_are_one_change() {
    let mut nodes = joined_cluster(1).await;
    let mut tickets = Vec::new();
    for _ in 0..2 {
        tickets.push(ticket(&free_address(), &nodes[0]).await);
    }
    for ticket in &tickets {
        let mut node = TestNode::of(ticket);
        node.start();
        nodes.push(node);
    }
    let (first, second) = tokio::join!(
        nodes[1].raft().join_cluster(tickets.clone()),
        nodes[2].raft().join_cluster(tickets.clone())
    );
    // The second change may meet the first one.
    for (outcome, node) in [(first, &nodes[1]), (second, &nodes[2])] {
        if outcome.is_err() {
            until("it is let in", async || node.raft().join_cluster(tickets.clone()).await.is_ok()).await;
        }
        members_seen(node, 3).await;
    }
}

#[tokio::test]
async fn joining_again_changes_nothing() {
    let nodes = joined_cluster(1).await;
    let address = free_address();
    let ticket = ticket(&address, &nodes[0]).await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    join_with(&raft, ticket.clone()).await;
    raft.join_cluster(vec![ticket.clone()]).await.unwrap();
    node.kill().await;
    let raft = node.start();
    raft.join_cluster(vec![ticket]).await.unwrap();
    assert_eq!(raft.cluster_size(), 2);
}

#[tokio::test]
async fn joining_twice_at_once_is_joining_once() {
    let nodes = joined_cluster(1).await;
    let ticket = ticket(&free_address(), &nodes[0]).await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    let (first, second) =
        tokio::join!(raft.join_cluster(vec![ticket.clone()]), raft.join_cluster(vec![ticket.clone()]));
    first.unwrap();
    second.unwrap();
    assert_eq!(raft.cluster_size(), 2);
}

#[tokio::test]
async fn a_joining_node_learns_of_its_own_stop_while_the_cluster_does_not_answer() {
    let nodes = joined_cluster(1).await;
    let mut ticket = ticket(&free_address(), &nodes[0]).await;
    // Accepts connections, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    ticket.leader_addr = silent.local_addr().unwrap().to_string();
    ticket.peer_addr.clone_from(&ticket.leader_addr);
    ticket.peers.clear();
    let mut node = TestNode::of(&ticket);
    node.config = Config { membership_timeout: Duration::from_secs(3600), ..Config::default() };
    let raft = node.start();
    let joining = tokio::spawn(async move { raft.join_cluster(vec![ticket]).await });
    let _asked = within("the question", silent.accept()).await.unwrap();
    node.stop().await;
    let joined = within("the answer", joining).await.unwrap();
    assert!(matches!(joined, Err(JoinClusterError::Stopped(StopReason::Stopped))), "{joined:?}");
}

#[tokio::test]
async fn asking_a_dead_peer_for_a_ticket_is_an_error() {
    let peer = free_address();
    let error = within("an answer", TestRaft::request_id(free_address(), &peer)).await.unwrap_err();
    assert!(matches!(&error, RequestIdError::Unreachable { address, .. } if *address == peer), "{error}");
    for bad in ["nowhere", "127.0.0.1:", "[::1:5", "host name:80"] {
        let error = TestRaft::request_id(free_address(), bad).await.unwrap_err();
        assert!(matches!(error, RequestIdError::Address(_)), "{error}");
    }
}

#[tokio::test]
async fn a_ticket_from_a_node_that_moved_opens_the_door_at_the_address_that_was_asked() {
    let nodes = joined_cluster(1).await;
    let mut ticket = ticket(&free_address(), &nodes[0]).await;
    assert_eq!(ticket.peer_addr, nodes[0].address);
    // As recorded before it moved.
    ticket.leader_addr = free_address();
    ticket.peers.iter_mut().for_each(|peer| peer.address.clone_from(&ticket.leader_addr));
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    within("the join", raft.join_cluster(vec![ticket])).await.unwrap();
    assert_eq!(raft.cluster_size(), 2);
}

#[tokio::test]
async fn a_ticket_whose_leader_has_died_still_opens_the_door() {
    let mut nodes = joined_cluster(3).await;
    let address = free_address();
    let ticket = ticket(&address, &nodes[0]).await;
    let leader = nodes.iter().position(|node| node.id == ticket.leader_id).unwrap();
    nodes[leader].kill().await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    join_with(&raft, ticket).await;
    assert_eq!(raft.cluster_size(), 4);
}

#[tokio::test]
async fn joining_without_a_live_peer_is_an_error_that_names_the_tried_peers() {
    let mut nodes = joined_cluster(1).await;
    let address = free_address();
    let ticket = ticket(&address, &nodes[0]).await;
    nodes[0].kill().await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    let error = within("an answer", raft.join_cluster(vec![ticket.clone()])).await.unwrap_err();
    assert!(
        matches!(&error, JoinClusterError::Unreachable(text) if text.contains(&nodes[0].address)),
        "{error}"
    );
    // The join succeeds once a node runs there again.
    nodes[0].start();
    join_with(&raft, ticket).await;
}

#[tokio::test]
async fn tickets_that_do_not_fit_are_refused() {
    let nodes = joined_cluster(1).await;
    let address = free_address();
    let good = ticket(&address, &nodes[0]).await;
    let mut node = TestNode::of(&good);
    let raft = node.start();
    let foreign = ClusterJoinTicket { reserved_id: id(99), ..good.clone() };
    let error = raft.join_cluster(vec![foreign]).await.unwrap_err();
    assert!(matches!(error, JoinClusterError::NoTicket { .. }), "{error}");
    let elsewhere = ClusterJoinTicket { raft_addr: "127.0.0.1:1".to_owned(), ..good.clone() };
    let error = raft.join_cluster(vec![elsewhere]).await.unwrap_err();
    assert!(matches!(error, JoinClusterError::OtherAddress { .. }), "{error}");
    let other = ClusterJoinTicket { cluster_id: ClusterId(7), reserved_id: id(98), ..good.clone() };
    let error = raft.join_cluster(vec![good.clone(), other]).await.unwrap_err();
    assert!(matches!(error, JoinClusterError::DifferentClusters { .. }), "{error}");
    let expired = good.clone().valid_for(Duration::ZERO);
    let error = raft.join_cluster(vec![expired.clone()]).await.unwrap_err();
    assert!(matches!(error, JoinClusterError::TicketExpired { .. }), "{error}");
    raft.join_cluster(vec![good.clone()]).await.unwrap();
    // A program may give the ticket at every start.
    raft.join_cluster(vec![expired]).await.unwrap();
    // Its directory belongs to a cluster now.
    let other = ClusterJoinTicket { cluster_id: ClusterId(7), ..good };
    let error = raft.join_cluster(vec![other]).await.unwrap_err();
    assert!(matches!(error, JoinClusterError::Directory(JoinError::OtherIdentity { .. })), "{error}");
}

#[tokio::test]
async fn a_wiped_member_is_not_let_in_under_its_old_id() {
    let nodes = joined_cluster(2).await;
    let address = free_address();
    let ticket = ticket(&address, &nodes[0]).await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    join_with(&raft, ticket.clone()).await;
    node.kill().await;
    node.disk.wipe();
    let raft = node.start();
    let refused = async || {
        let error = raft.join_cluster(vec![ticket.clone()]).await.unwrap_err();
        matches!(
            error,
            JoinClusterError::Refused(MembershipError::Refused(MembershipRefusal::OtherIncarnation { .. }))
                | JoinClusterError::Stopped(StopReason::Refused(_))
        )
    };
    until("the wiped node is refused", refused).await;
    // The remedy: remove it, and let it join again with a new ticket.
    change(nodes[0].raft(), MembershipChange::one(MemberChange::Remove(node.id))).await.unwrap();
    let again = join(&nodes[0]).await;
    assert_ne!(again.id, node.id);
}

#[tokio::test]
async fn a_wiped_node_that_knows_none_of_the_members_of_today_is_told_by_one() {
    let (mut nodes, first_members) = static_nodes(2);
    for node in &mut nodes {
        start_static(node, &first_members).await;
    }
    agreed_leader(&nodes).await;
    let newcomer = join(&nodes[0]).await;
    let known =
        |status: &raftify::status::Status| status.members.iter().all(|member| member.incarnation.is_some());
    within("all to be known", newcomer.raft().status().wait_for(known)).await.unwrap();
    change(newcomer.raft(), MembershipChange::one(MemberChange::Remove(nodes[0].id))).await.unwrap();
    nodes[0].ended().await.unwrap_err();

    let wiped = &mut nodes[1];
    wiped.kill().await;
    wiped.disk.wipe();
    start_static(wiped, &first_members).await;
    let error = wiped.ended().await.unwrap_err();
    let RunError::Begin(BeginError::Wiped { id, address, .. }) = &error else { panic!("{error:?}") };
    assert_eq!((*id, address), (wiped.id, &newcomer.address));
}

#[tokio::test]
async fn changes_that_make_no_sense_are_refused() {
    let nodes = joined_cluster(2).await;
    for node in &nodes {
        let remove = |id| MembershipChange::one(MemberChange::Remove(id));
        let refused = |refusal| Err(MembershipError::Refused(refusal));
        assert_eq!(
            change(node.raft(), remove(id(9))).await,
            refused(MembershipRefusal::UnknownMember { id: id(9) })
        );
        assert_eq!(
            change(node.raft(), MembershipChange::LeaveJoint).await,
            refused(MembershipRefusal::NotJoint)
        );
        let taken = Member::voter(id(9), &nodes[0].address);
        let taken = change(node.raft(), MembershipChange::one(MemberChange::Add(taken))).await;
        assert!(
            matches!(taken, Err(MembershipError::Refused(MembershipRefusal::AddressTaken { .. }))),
            "{taken:?}"
        );
        let bad = MembershipChange::one(MemberChange::Add(Member::voter(id(9), "nowhere")));
        let bad = change(node.raft(), bad).await;
        assert!(
            matches!(bad, Err(MembershipError::Refused(MembershipRefusal::BadAddress { .. }))),
            "{bad:?}"
        );
    }
}

/// Addresses are reused, by containers or after a test: the node that listens there now may belong to another
/// cluster.
#[tokio::test]
async fn a_ticket_adds_its_holder_to_no_other_cluster() {
    let own = joined_cluster(1).await;
    let other = joined_cluster(1).await;
    let ticket = ClusterJoinTicket {
        leader_addr: other[0].address.clone(),
        peer_addr: other[0].address.clone(),
        peers: Vec::new(),
        ..ticket(&free_address(), &own[0]).await
    };
    let mut node = TestNode::of(&ticket);
    node.config = Config { membership_timeout: Duration::from_secs(2), ..Config::default() };
    let raft = node.start();
    let error = raft.join_cluster(vec![ticket]).await.unwrap_err();
    assert_eq!(other[0].raft().cluster_size(), 1, "{error}");
    assert!(matches!(error, JoinClusterError::Unreachable(_)), "{error}");
    put(other[0].raft(), "key", "still in service").await;
}

#[tokio::test]
async fn the_last_voter_can_neither_be_removed_nor_leave() {
    let mut nodes = joined_cluster(1).await;
    let raft = nodes[0].raft();
    let refused = MembershipError::Refused(MembershipRefusal::LastVoter);
    let remove = MembershipChange::one(MemberChange::Remove(NodeId::FIRST));
    assert_eq!(change(raft, remove).await, Err(refused.clone()));
    assert_eq!(raft.leave().await, Err(refused));
    put(raft, "key", "still in service").await;
    nodes[0].stop().await;
}

#[tokio::test]
async fn a_leader_that_is_removed_hands_over_first_and_stops() {
    let mut nodes = joined_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    let remove = MembershipChange::one(MemberChange::Remove(nodes[leader].id));
    let asked = (leader + 1) % 3;
    change(nodes[asked].raft(), remove).await.unwrap();
    let error = nodes[leader].ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stopped(StopReason::Removed { .. })), "{error}");
    put(nodes[asked].raft(), "key", "value").await;
    members_seen(&nodes[asked], 2).await;
}

#[tokio::test]
async fn any_node_can_leave_and_its_run_ends_well() {
    let mut nodes = joined_cluster(3).await;
    let follower = (agreed_leader(&nodes).await + 1) % 3;
    leave(&mut nodes[follower]).await;
    let leader = agreed_leader(&nodes).await;
    leave(&mut nodes[leader]).await;
    let last = agreed_leader(&nodes).await;
    put(nodes[last].raft(), "key", "value").await;
    assert_eq!(nodes[last].raft().cluster_size(), 1);
}

/// The order of the original system: `run`, `add_peers` with the peers of the ticket, `join_cluster`.
#[tokio::test]
async fn peers_that_are_added_between_run_and_join_cluster_are_where_to_ask() {
    let nodes = joined_cluster(1).await;
    let ticket = ticket(&free_address(), &nodes[0]).await;
    let mut node = TestNode::of(&ticket);
    let raft = node.start();
    raft.add_peers(ticket.peers.clone()).await.unwrap();
    let nowhere = free_address();
    let knows_no_address =
        ClusterJoinTicket { leader_addr: nowhere.clone(), peer_addr: nowhere, peers: Vec::new(), ..ticket };
    within("the node to join", raft.join_cluster(vec![knows_no_address])).await.unwrap();
    assert_eq!(raft.cluster_size(), 2);
}

#[tokio::test]
async fn two_nodes_that_leave_at_once_are_both_served() {
    let mut nodes = joined_cluster(4).await;
    let leader = agreed_leader(&nodes).await;
    let leaving = [(leader + 1) % 4, (leader + 2) % 4];
    let (first, second) = (nodes[leaving[0]].raft().clone(), nodes[leaving[1]].raft().clone());
    let (first, second) =
        within("both to leave", async { tokio::join!(first.leave(), second.leave()) }).await;
    first.unwrap();
    second.unwrap();
    for place in leaving {
        nodes[place].ended().await.unwrap();
    }
    members_seen(&nodes[leader], 2).await;
}

#[tokio::test]
async fn another_name_of_a_members_address_is_refused_as_that_of_a_new_node() {
    let nodes = joined_cluster(1).await;
    let address = nodes[0].address.replace("127.0.0.1", "localhost");
    let again = MembershipChange::one(MemberChange::Add(Member::voter(id(9), &address)));
    let refused = MembershipRefusal::AnsweredByOther { id: id(9), address, answers: id(1) };
    let local = nodes[0].raft().change_config(again.clone()).await;
    assert_eq!(local, Err(MembershipError::Refused(refused.clone())));
    let client = raftify::RaftClient::<Change, Store>::new([&nodes[0].address]).unwrap();
    let remote = client.change_config(again).await;
    assert_eq!(remote, Err(raftify::client::ClientError::Answer(MembershipError::Refused(refused))));
    assert_eq!(nodes[0].raft().cluster_size(), 1);
}

/// The other nodes may not know the membership that is in force on the leader: without this node's vote, they
/// could not continue if the leader failed then.
#[tokio::test]
async fn a_node_that_leaves_stays_until_a_majority_knows_of_it() {
    let mut nodes = static_cluster(3).await;
    let leader = agreed_leader(&nodes).await;
    put(nodes[leader].raft(), "key", "value").await;
    let [leaving, unknowing] = [(leader + 1) % 3, (leader + 2) % 3];
    let hung = Gate::default();
    let disk = hung.clone();
    // It runs until the removal reaches it.
    nodes[unknowing].disk.judge(move |writes| {
        let is_removal = |entry: &Entry| entry.kind == EntryKind::MembershipChange;
        if writes.iter().flat_map(|write| &write.append).any(is_removal) {
            disk.pass();
        }
        true
    });
    let raft = nodes[leaving].raft().clone();
    let mut left = tokio::spawn(async move { ask_to_leave(&raft).await });
    members_seen(&nodes[leader], 2).await;
    let early = tokio::time::timeout(Duration::from_secs(1), &mut left).await;
    assert_eq!(nodes[unknowing].raft().cluster_size(), 3);
    hung.open();
    assert!(early.is_err(), "one of two does not know yet: {early:?}");
    within("the node to leave", left).await.unwrap();
    nodes[leaving].ended().await.unwrap();
    members_seen(&nodes[unknowing], 2).await;
}

#[tokio::test]
async fn a_node_that_is_asked_to_leave_twice_at_once_ends_well() {
    let mut nodes = static_cluster(3).await;
    let follower = (agreed_leader(&nodes).await + 1) % 3;
    let raft = nodes[follower].raft().clone();
    until("one of the two is heard", async || {
        let (first, second) = tokio::join!(raft.leave(), raft.leave());
        first.is_ok() || second.is_ok()
    })
    .await;
    nodes[follower].ended().await.unwrap();
}

async fn leave(node: &mut TestNode) {
    ask_to_leave(node.raft()).await;
    node.ended().await.unwrap();
}

async fn ask_to_leave(raft: &TestRaft) {
    use MembershipError::{ChangePending, NoLeader, TransferFailed, WouldLoseMajority};
    while let Err(error) = raft.leave().await {
        let passes = matches!(error, ChangePending | NoLeader | TransferFailed(_) | WouldLoseMajority { .. });
        assert!(passes, "{error}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_node_that_was_removed_while_it_was_down_learns_of_it() {
    let mut nodes = joined_cluster(3).await;
    agreed_leader(&nodes).await;
    nodes[2].kill().await;
    change(nodes[0].raft(), MembershipChange::one(MemberChange::Remove(nodes[2].id))).await.unwrap();
    nodes[2].start();
    let error = nodes[2].ended().await.unwrap_err();
    assert!(matches!(error, RunError::Stopped(StopReason::Removed { .. })), "{error}");
    put(nodes[0].raft(), "key", "value").await;
}

/// It would serve an empty state.
#[tokio::test]
async fn a_first_node_whose_directory_was_wiped_asks_to_be_let_in() {
    let mut nodes = joined_cluster(3).await;
    put(nodes[0].raft(), "key", "value").await;
    nodes[0].kill().await;
    nodes[0].disk.wipe();
    let peers = [nodes[1].address.clone(), nodes[2].address.clone()];
    let error = nodes[0].start_as(Start::Join(peers.clone().into())).await.unwrap_err();
    let NodeStartError::Join(JoinClusterError::Refused(MembershipError::Refused(refusal))) = &error else {
        panic!("{error}")
    };
    assert!(matches!(refusal, MembershipRefusal::AddressTaken { .. }), "{refusal}");
    // The remedy.
    change(nodes[1].raft(), MembershipChange::one(MemberChange::Remove(id(1)))).await.unwrap();
    nodes[0].disk.wipe();
    within("the node to join", nodes[0].start_as(Start::Join(peers.into()))).await.unwrap();
    assert_ne!(nodes[0].id, id(1));
    assert_eq!(nodes[0].get("key").await, Some("value".to_owned()));
}

#[tokio::test]
async fn a_joint_configuration_stays_until_it_is_left() {
    let nodes = joined_cluster(3).await;
    let steps = vec![
        MemberChange::Add(Member::learner(nodes[2].id, &nodes[2].address)),
        MemberChange::Add(Member::learner(id(8), free_address())),
    ];
    let joint = MembershipChange::Steps { steps, leave: LeaveJoint::OnRequest };
    let members = change(nodes[1].raft(), joint).await.unwrap();
    assert!(members.is_joint());
    put(nodes[0].raft(), "key", "value").await;
    let members = nodes[1].raft().leave_joint().await.unwrap();
    assert!(!members.is_joint());
    assert_eq!(members.get(nodes[2].id).unwrap().role, MemberRole::Learner);
}

#[tokio::test]
async fn peers_are_added_to_a_running_cluster_in_one_change() {
    let nodes = joined_cluster(1).await;
    let peers = [Member::learner(id(7), free_address()), Member::learner(id(8), free_address())];
    nodes[0].raft().add_peers(peers).await.unwrap();
    members_seen(&nodes[0], 3).await;
}

#[tokio::test]
async fn a_list_of_peers_must_name_this_node_as_it_is() {
    let node = TestNode::new(1);
    let raft = node.bootstrap().unwrap();
    let other = Member::voter(id(2), free_address());
    let error = raft.add_peers([other.clone()]).await.unwrap_err();
    assert!(matches!(error, AddPeersError::NotListed { .. }), "{error}");
    let error = raft.add_peers([Member::voter(id(1), free_address()), other.clone()]).await.unwrap_err();
    assert!(matches!(error, AddPeersError::OtherAddress { .. }), "{error}");
    let twice = [Member::voter(id(1), &node.address), other.clone(), other];
    let error = raft.add_peers(twice).await.unwrap_err();
    assert!(matches!(error, AddPeersError::Members(MembershipRefusal::NamedTwice { .. })), "{error}");
    let error = raft.add_peers([]).await.unwrap_err();
    assert!(matches!(error, AddPeersError::Members(MembershipRefusal::LastVoter)), "{error}");
}
