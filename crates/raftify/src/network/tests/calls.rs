//! Abandoned calls, and the known outcome of calls whose connection ends.

use raftify_core::ProposalReply;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::runtime::calls::CallPermits;
use crate::runtime::transport::connect_lazily;
use crate::verbs::propose::Propose;
use crate::verbs::remote_node::{CallError, RemoteNode};

const HOUR: Duration = Duration::from_secs(3600);

async fn next_proposal(node: &mut TestNode) -> Reply<u64> {
    let ServerRequestMsg::ForLeader { request, .. } = node.next_request().await else {
        panic!("no proposal")
    };
    let LeaderRequest::Propose { reply, .. } = request else { panic!("no proposal") };
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_given_up_leave_the_connection_to_the_others() {
    let patient = Config { propose_timeout: HOUR, ..config() };
    let mut node = TestNode::with(1, patient, Some(identity(1)));
    let cluster = ClusterConnection::new([node.address.clone()], HOUR).unwrap();
    let kept = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.propose(Bytes::from_static(b"kept")).await }
    });
    let kept_reply = next_proposal(&mut node).await;
    // Many more reset streams than an HTTP/2 connection accepts, each answered after it was abandoned.
    for _ in 0..8 {
        let wave: Vec<_> = (0..500)
            .map(|_| {
                let cluster = cluster.clone();
                tokio::spawn(async move { cluster.propose(Bytes::from_static(b"given up")).await })
            })
            .collect();
        let mut replies = Vec::new();
        for _ in 0..500 {
            replies.push(next_proposal(&mut node).await);
        }
        for call in wave {
            call.abort();
            assert!(call.await.unwrap_err().is_cancelled());
        }
        replies.into_iter().for_each(|reply| reply.applied(7));
    }
    let late = tokio::spawn(async move { cluster.propose(Bytes::from_static(b"late")).await });
    next_proposal(&mut node).await.applied(2);
    assert_eq!(within("an answer", late).await.unwrap(), Ok(Bytes::from_static(&[2])));
    kept_reply.applied(1);
    assert_eq!(within("an answer", kept).await.unwrap(), Ok(Bytes::from_static(&[1])));
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_are_refused_as_stopping_and_asked_elsewhere() {
    let (mut stopping, mut other) = (TestNode::start(1), TestNode::start(2));
    let addresses = [stopping.address.clone(), other.address.clone()];
    let cluster = ClusterConnection::new(addresses, HOUR).unwrap();
    let proposing = tokio::spawn(async move { cluster.propose(Bytes::from_static(b"entry")).await });
    next_proposal(&mut stopping).await.refuse(StopReason::Stopping.into());
    next_proposal(&mut other).await.applied(5);
    assert_eq!(within("an answer", proposing).await.unwrap(), Ok(Bytes::from_static(&[5])));
}

/// The answer of a program of an earlier version for requests that it had accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_no_more_than_that_it_has_stopped_may_have_taken_the_proposal() {
    let (mut stopping, other) = (TestNode::start(1), TestNode::start(2));
    let addresses = [stopping.address.clone(), other.address.clone()];
    let cluster = ClusterConnection::new(addresses, HOUR).unwrap();
    let proposing = tokio::spawn(async move { cluster.propose(Bytes::from_static(b"entry")).await });
    next_proposal(&mut stopping).await.refuse(StopReason::Stopped.into());
    let unknown = ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped));
    assert_eq!(within("an answer", proposing).await.unwrap(), Err(ClientError::Answer(unknown)));
}

/// Proposes to a server that reads the whole request, and then sends `last` and closes.
async fn proposed_to_one_that_says(last: &[u8]) -> CallError<ProposeError> {
    const ENTRY: &[u8] = b"this very entry";
    /// An empty SETTINGS frame.
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let channel = connect_lazily(&endpoint(&address, HOUR).unwrap());
    let node = RemoteNode::new(channel, CallPermits::of_client(), Arc::default());
    let call = tokio::spawn(async move {
        let verb = Propose { payload: Bytes::from_static(ENTRY) };
        node.call(verb, Forwarding::Allowed, HOUR).await.map(|answered| answered.answer).unwrap_err()
    });
    let (mut connection, _) = listener.accept().await.unwrap();
    connection.write_all(&SETTINGS).await.unwrap();
    let mut received = Vec::new();
    while !received.windows(ENTRY.len()).any(|bytes| bytes == ENTRY) {
        connection.read_buf(&mut received).await.unwrap();
    }
    connection.write_all(last).await.unwrap();
    // Closes only the sending side, so that the other end reads the written bytes.
    connection.shutdown().await.unwrap();
    let error = within("the end of the call", call).await.unwrap();
    drop(listener);
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_node_says_it_did_not_read_was_not_sent_and_any_other_may_have_been() {
    /// The last processed stream is number 0: none.
    const GO_AWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    /// The first stream is number 1, and is the last processed one.
    const GO_AWAY_LATER: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    const REFUSED: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    const CANCELLED: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];

    for not_read in [&GO_AWAY[..], &REFUSED] {
        let error = proposed_to_one_that_says(not_read).await;
        assert!(matches!(error, CallError::NotSent(_)), "{error:?}");
    }
    for perhaps_read in [&GO_AWAY_LATER[..], &CANCELLED, &[]] {
        let error = proposed_to_one_that_says(perhaps_read).await;
        assert!(matches!(error, CallError::Lost(_)), "{error:?}");
    }
}

/// The operating system accepts the connection, and no program answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_connection_until_its_deadline_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let channel = connect_lazily(&endpoint(&address, HOUR).unwrap());
    let node = RemoteNode::new(channel, CallPermits::of_client(), Arc::default());
    let verb = Propose { payload: Bytes::from_static(b"entry") };
    let outcome = node.call(verb, Forwarding::Allowed, Duration::ZERO).await.map(|answered| answered.answer);
    assert!(matches!(outcome, Err(CallError::NotSent(_))), "{outcome:?}");
}
