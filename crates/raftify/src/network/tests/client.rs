//! The remote client against servers without a raft loop.

use super::*;

/// Accepts connections and closes each after it has read some bytes. Closes each connection on which it has
/// read this payload.
async fn closing_listener(payload: &'static [u8]) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut received = Vec::new();
            while !received.windows(payload.len()).any(|bytes| bytes == payload) {
                socket.read_buf(&mut received).await.unwrap();
            }
        }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_follows_the_leader_and_retries_refusals() {
    let mut follower = TestNode::start(1);
    let mut leader = TestNode::start(2);
    let hint = LeaderHint { id: leader.id, address: leader.address.clone() };
    let cluster =
        ClusterConnection::new([dead_address(), follower.address.clone()], Duration::from_secs(20)).unwrap();
    let proposing = tokio::spawn(async move { cluster.propose(Bytes::from_static(b"entry")).await });
    for (node, refusal) in
        [(&mut follower, ProposeError::NotLeader(hint)), (&mut leader, ProposeError::Busy { waiting: 1 })]
    {
        let ServerRequestMsg::ForLeader { request, forwarding } = node.next_request().await else {
            panic!("no proposal")
        };
        assert_eq!(forwarding, Forwarding::Allowed);
        let LeaderRequest::Propose { reply, .. } = request else { panic!("no proposal") };
        raftify_core::ProposalReply::refuse(reply, refusal);
    }
    let ServerRequestMsg::ForLeader { request, .. } = follower.next_request().await else {
        panic!("no proposal")
    };
    let LeaderRequest::Propose { reply, .. } = request else { panic!("no proposal") };
    reply.applied(5);
    assert_eq!(proposing.await.unwrap(), Ok(Bytes::from_static(&[5])));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_asks_another_node_if_one_takes_nothing_because_it_stops() {
    let TestNode { address: stopping, requests, serving: _serving, stop: _stop, .. } = TestNode::start(1);
    drop(requests);
    let mut other = TestNode::start(2);
    let alone = ClusterConnection::new([stopping.clone()], Duration::from_secs(20)).unwrap();
    let refused = alone.propose(Bytes::new()).await;
    assert_eq!(refused, Err(ClientError::Rejected(RequestRejected::Stopped(StopReason::Stopped))));

    let cluster = ClusterConnection::new([stopping, other.address.clone()], Duration::from_secs(20)).unwrap();
    let proposing = tokio::spawn(async move { cluster.propose(Bytes::new()).await });
    let ServerRequestMsg::ForLeader { request, .. } = other.next_request().await else {
        panic!("no proposal")
    };
    let LeaderRequest::Propose { reply, .. } = request else { panic!("no proposal") };
    reply.applied(5);
    assert_eq!(within("an answer", proposing).await.unwrap(), Ok(Bytes::from_static(&[5])));
}

/// Its address was reassigned to another cluster, or it lost its disk and began a new one.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_takes_no_node_of_another_cluster_for_one_of_its_own() {
    let mut own = TestNode::start(1);
    let other = Identity { cluster_id: ClusterId(0xc2), ..identity(2) };
    let mut other = TestNode::with(2, config(), Some(other));
    let addresses = [own.address.clone(), other.address.clone()];
    let cluster = ClusterConnection::new(addresses, Duration::from_secs(20)).unwrap();
    let proposing = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.propose(Bytes::new()).await }
    });
    let ServerRequestMsg::ForLeader { request, .. } = own.next_request().await else { panic!("no proposal") };
    let LeaderRequest::Propose { reply, .. } = request else { panic!("no proposal") };
    reply.applied(5);
    assert_eq!(proposing.await.unwrap(), Ok(Bytes::from_static(&[5])));

    // It stops, and rejects requests.
    drop(own.requests);
    tokio::select! {
        proposed = cluster.propose(Bytes::new()) => {
            assert!(matches!(proposed, Err(ClientError::Rejected(RequestRejected::OtherCluster { .. }))), "{proposed:?}");
        }
        _ = other.next_request() => panic!("what it acknowledged would be lost to the client's cluster"),
    }
    // An inspection is valid for any cluster, and still reaches the node.
    let inspecting = tokio::spawn(async move { cluster.inspect().await });
    let ServerRequestMsg::Inspect { reply } = other.next_request().await else { panic!("another question") };
    drop(reply);
    assert!(within("an answer", inspecting).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_says_what_is_wrong() {
    let deadline = Duration::from_secs(20);
    let cluster = ClusterConnection::new(["no-such-host.invalid:1"], deadline).unwrap();
    match cluster.read_index().await {
        Err(ClientError::Unreachable(nodes)) => {
            assert!(matches!(nodes.as_slice(), [UnreachableNode::Unresolved { .. }]), "{nodes:?}");
        }
        other => panic!("{other:?}"),
    }

    let cluster = ClusterConnection::new([dead_address()], deadline).unwrap();
    match cluster.reserve_node_id().await {
        Err(ClientError::Unreachable(nodes)) => {
            assert!(matches!(nodes.as_slice(), [UnreachableNode::NotConnected { .. }]), "{nodes:?}");
        }
        other => panic!("{other:?}"),
    }

    assert!(ClusterConnection::new(["localhost"], deadline).is_err());
    assert!(ClusterConnection::new(Vec::<String>::new(), deadline).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_never_repeats_what_may_have_happened() {
    let mut node = TestNode::start(1);
    let entry = b"what may have happened";
    let (broken, _task) = closing_listener(entry).await;
    let cluster = ClusterConnection::new([broken, node.address.clone()], Duration::from_secs(20)).unwrap();
    match within("an answer", cluster.propose(Bytes::from_static(entry))).await {
        Err(ClientError::Answer(ProposeError::Unknown(UnknownOutcome::ConnectionLost(_)))) => {}
        other => panic!("{other:?}"),
    }
    assert!(node.requests.is_empty());

    let cluster = ClusterConnection::new([node.address.clone()], Duration::from_secs(3)).unwrap();
    let change = MembershipRequest::from(MembershipChange::LeaveJoint);
    let changing = tokio::spawn(async move { cluster.change_config(&change).await });
    let _unanswered = node.next_request().await;
    assert!(matches!(
        changing.await.unwrap(),
        Err(ClientError::Answer(MembershipError::Unknown(UnknownOutcome::TimedOut(_))))
    ));
    assert!(node.requests.is_empty());
}

/// Answers one read through `cluster` on `node`.
async fn read_on(cluster: &ClusterConnection, node: &mut TestNode) {
    let reading = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.read_index().await }
    });
    let ServerRequestMsg::ConfirmReadIndex { reply } = node.next_request().await else { panic!("no read") };
    reply.answer(Ok(LogIndex(7)));
    assert_eq!(within("an answer", reading).await.unwrap(), Ok(LogIndex(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_the_members_when_all_that_it_knew_were_replaced() {
    let (mut a, mut b, _) = pair();
    let mut c = TestNode::start(3);
    let cluster = ClusterConnection::new([a.address.clone()], Duration::from_secs(20)).unwrap();
    read_on(&cluster, &mut a).await;
    let follows = async |addresses: &[&str]| {
        within("the client follows the members", async {
            while !cluster.addresses().iter().map(|known| &**known).eq(addresses.iter().copied()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    follows(&[&a.address, &b.address]).await;
    let given = a.address.clone();
    drop(a);
    // The first answer of `b`.
    let after = members([(2, &*b.address), (3, &*c.address)]);
    let newer = Arc::new(after.recorded(LogIndex(9), &MemberRecord::ReserveNodeId));
    b.knows(&newer);
    read_on(&cluster, &mut b).await;
    follows(&[&b.address, &c.address, &given]).await;
    assert_eq!(cluster.members().await.as_ref(), Ok(&*newer));
    drop(b);
    c.knows(&newer);
    read_on(&cluster, &mut c).await;
}
