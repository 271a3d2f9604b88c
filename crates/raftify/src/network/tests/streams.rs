//! Many requests over one call: order, limits, malformed input, and the ends of a stream on both sides.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use raftify_core::ProposalReply;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Streaming};
use tonic_prost::ProstCodec;

use super::*;
use crate::wire::proto::streamed_reply::Outcome;
use crate::wire::proto::streamed_request::Verb;

const PATIENCE: Duration = Duration::from_secs(20);

async fn next_proposal(node: &mut TestNode) -> (Bytes, Reply<u64>) {
    match node.next_request().await {
        ServerRequestMsg::ForLeader { request: LeaderRequest::Propose { payload, reply }, .. } => {
            (payload, reply)
        }
        _ => panic!("no proposal"),
    }
}

fn proposal(id: u64, payload: impl Into<Bytes>) -> proto::StreamedRequest {
    let verb = Some(Verb::Propose(payload.into()));
    proto::StreamedRequest { id, verb, ..Default::default() }
}

fn read(id: u64) -> proto::StreamedRequest {
    let verb = Some(Verb::ReadIndex(proto::StreamedReadIndex {}));
    proto::StreamedRequest { id, verb, ..Default::default() }
}

fn batch(items: Vec<proto::StreamedRequest>) -> proto::RequestBatch {
    proto::RequestBatch { header: Some(wire::header(Some(CLUSTER))), items, ..Default::default() }
}

/// A client that writes its batches itself.
struct RawStream {
    requests: mpsc::Sender<proto::RequestBatch>,
    replies: JoinHandle<Result<Response<Streaming<proto::ReplyBatch>>, Status>>,
}

impl RawStream {
    /// `window`: how many bytes the server may send before the client receives them.
    fn open(node: &TestNode, window: u32) -> RawStream {
        let endpoint = endpoint(&node.address, Duration::from_secs(5)).unwrap();
        let mut client = service(connect_lazily(&endpoint.initial_stream_window_size(window)));
        let (requests, received) = mpsc::channel(1);
        let replies =
            tokio::spawn(async move { client.stream_requests(ReceiverStream::new(received)).await });
        RawStream { requests, replies }
    }

    async fn send(&self, items: Vec<proto::StreamedRequest>) {
        within("room for a batch", self.requests.send(batch(items))).await.unwrap();
    }

    /// The replies, from now on.
    async fn receive(self) -> (mpsc::Sender<proto::RequestBatch>, Replies) {
        let response = within("a response", self.replies).await.unwrap().unwrap();
        (self.requests, Replies { batches: response.into_inner(), left: Vec::new(), closes: false })
    }
}

struct Replies {
    batches: Streaming<proto::ReplyBatch>,
    left: Vec<proto::StreamedReply>,
    closes: bool,
}

impl Replies {
    /// The next reply; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Result<(u64, Outcome), Status>> {
        while self.left.is_empty() {
            match within("a reply", self.batches.message()).await {
                Ok(Some(batch)) => {
                    assert!(!self.closes, "the last batch is the last");
                    self.left = batch.items;
                    self.closes = batch.closes;
                }
                Ok(None) => return None,
                Err(status) => return Some(Err(status)),
            }
        }
        let proto::StreamedReply { id, outcome } = self.left.remove(0);
        Some(Ok((id, outcome.unwrap())))
    }

    async fn one(&mut self) -> (u64, Outcome) {
        self.next().await.unwrap().unwrap()
    }

    async fn refusal(&mut self) -> RequestRejected {
        let status = self.next().await.unwrap().unwrap_err();
        RequestRejected::from_status(&status).unwrap_or_else(|| panic!("{status:?}"))
    }
}

fn index(index: u64) -> Outcome {
    Outcome::Index(index)
}

async fn next_read(node: &mut TestNode) -> Responder<LogIndex, raftify_core::error::ReadError> {
    match node.next_request().await {
        ServerRequestMsg::ConfirmReadIndex { reply } => reply,
        _ => panic!("no read"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_gets_its_own_reply_in_whatever_order_they_come() {
    let mut node = TestNode::start(1);
    let cluster = ClusterConnection::new([node.address.clone()], PATIENCE).unwrap();
    let callers: Vec<_> = (0..100_u64)
        .map(|number| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.propose(number.to_be_bytes().to_vec().into()).await })
        })
        .collect();
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let (payload, reply) = next_proposal(&mut node).await;
        waiting.push((u64::from_be_bytes(payload.as_ref().try_into().unwrap()), reply));
    }
    for (number, reply) in waiting.into_iter().rev() {
        reply.applied(number);
    }
    for (number, caller) in (0..).zip(callers) {
        let reply = within("a reply", caller).await.unwrap().unwrap();
        assert_eq!(postcard::from_bytes::<u64>(&reply), Ok(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_batch_that_cannot_be_served_leaves_the_others_alone() {
    let mut node = TestNode::start(1);
    let stream = RawStream::open(&node, 1 << 20);
    let unknown = proto::StreamedRequest { id: 4, ..Default::default() };
    stream.send(vec![proposal(1, "good"), proposal(2, UNDECODABLE), read(3), unknown, proposal(5, "")]).await;
    let (_, first) = next_proposal(&mut node).await;
    let reading = next_read(&mut node).await;
    let (_, last) = next_proposal(&mut node).await;
    reading.answer(Ok(LogIndex(7)));
    first.applied(1);
    last.refuse(ProposeError::NoLeader);
    let (_requests, mut replies) = stream.receive().await;
    let mut outcomes = std::collections::BTreeMap::new();
    for _ in 0..5 {
        let (id, outcome) = replies.one().await;
        assert!(outcomes.insert(id, outcome).is_none(), "two replies to request {id}");
    }
    let outcome = |id: u64| &outcomes[&id];
    assert_eq!(*outcome(1), Outcome::Reply(Bytes::from_static(&[1])));
    assert_eq!(*outcome(3), index(7));
    let refused = |id: u64| match outcome(id) {
        Outcome::Refusal(refusal) => wire::refusal_from_wire::<ProposeError>(refusal),
        outcome => panic!("{outcome:?}"),
    };
    assert!(matches!(refused(2), Some(ProposeError::Undecodable(_))));
    assert_eq!(refused(5), Some(ProposeError::NoLeader));
    let Outcome::Rejection(refusal) = outcome(4) else { panic!("{:?}", outcome(4)) };
    assert!(matches!(wire::decode_detail(&refusal.detail), Some(RequestRejected::Malformed(_))));
}

/// Malformed input ends the stream, after the requests before it are answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_the_rules_of_a_stream_learns_why_and_gets_the_replies_it_waits_for() {
    let mut node = TestNode::start(1);
    let no_header = proto::RequestBatch { header: None, ..batch(vec![read(2)]) };
    let mut old = batch(vec![read(2)]);
    old.header.as_mut().unwrap().wire_version = 9;
    let too_long = batch((2..5000).map(read).collect());
    for (bad, reason) in [
        (batch(vec![read(2), read(2)]), "request 2 is under way already"),
        (no_header, "the header is missing"),
        (old, "wire version 9"),
        (too_long, "may have 4096 requests"),
    ] {
        let stream = RawStream::open(&node, 1 << 20);
        stream.send(vec![read(1)]).await;
        let reading = next_read(&mut node).await;
        within("room", stream.requests.send(bad)).await.unwrap();
        let (_requests, mut replies) = stream.receive().await;
        reading.answer(Ok(LogIndex(7)));
        assert_eq!(replies.one().await, (1, index(7)));
        let refusal = replies.refusal().await.to_string();
        assert!(refusal.contains(reason), "{refusal}");
        assert!(!replies.closes, "what it has read is not known");
    }
}

/// Nothing of such a stream is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_first_batch_is_refused_is_refused_as_a_whole() {
    let node = TestNode::start(1);
    let stream = RawStream::open(&node, 1 << 20);
    let header = Some(wire::header(Some(ClusterId(0xdead))));
    let other = proto::RequestBatch { header, ..batch(vec![proposal(1, "entry")]) };
    within("room", stream.requests.send(other)).await.unwrap();
    let status = within("a refusal", stream.replies).await.unwrap().map(|_| ()).unwrap_err();
    let expected = RequestRejected::OtherCluster { node: id(1), found: ClusterId(0xdead), own: CLUSTER };
    assert_eq!(RequestRejected::from_status(&status), Some(expected));
    assert!(node.requests.is_empty());
}

/// The node was found to be of another cluster later, by the requests of another caller.
#[tokio::test(flavor = "multi_thread")]
async fn requests_for_another_cluster_are_rejected_one_by_one_on_a_stream_that_has_others() {
    let mut node = TestNode::start(1);
    let stream = RawStream::open(&node, 1 << 20);
    stream.send(vec![read(1)]).await;
    let reading = next_read(&mut node).await;
    let header = Some(wire::header(Some(ClusterId(0xdead))));
    let other = proto::RequestBatch { header, ..batch(vec![proposal(2, "entry")]) };
    within("room", stream.requests.send(other)).await.unwrap();
    let (_requests, mut replies) = stream.receive().await;
    let (2, Outcome::Rejection(refusal)) = replies.one().await else { panic!("it is served") };
    let refusal = wire::decode_detail(&refusal.detail);
    assert!(matches!(refusal, Some(RequestRejected::OtherCluster { .. })), "{refusal:?}");
    reading.answer(Ok(LogIndex(7)));
    assert_eq!(replies.one().await, (1, index(7)));
    assert!(node.requests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_oversized_messages_of_a_stream_are_refused_and_the_server_lives() {
    let node = TestNode::start(1);
    let path = "/raftify.v1.RaftService/StreamRequests";
    let whole = batch(vec![proposal(1, "entry"), read(2)]).encode_to_vec();
    let oversized = Bytes::from(vec![0; wire::RECEIVE_BYTES_LIMIT + 1]);
    for (bytes, code) in [
        (Bytes::from(whole[..whole.len() - 3].to_vec()), Code::Internal),
        (Bytes::from_static(b"\xff\x00\x13random"), Code::Internal),
        (oversized, Code::OutOfRange),
        // Millions of empty requests.
        (Bytes::from([0x12, 0].repeat(4 << 20)), Code::InvalidArgument),
    ] {
        assert_eq!(validation::stream_raw(&node, path, bytes).await.code(), code);
    }
    assert!(node.requests.is_empty(), "nothing of it is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_closed_its_side_gets_all_replies_and_the_last_batch() {
    let mut node = TestNode::start(1);
    let stream = RawStream::open(&node, 1 << 20);
    stream.send((1..=10).map(read).collect()).await;
    let mut reading = Vec::new();
    for _ in 0..10 {
        reading.push(next_read(&mut node).await);
    }
    let (requests, mut replies) = stream.receive().await;
    drop(requests);
    for reading in reading {
        reading.answer(Ok(LogIndex(7)));
    }
    let mut answered = BTreeSet::new();
    while let Some(reply) = replies.next().await {
        answered.insert(reply.unwrap().0);
    }
    assert_eq!(answered, (1..=10).collect());
    assert!(replies.closes);
}

/// Some rounds over other connections: the server has had the time to read what it was about to read.
async fn served_meanwhile(
    node: &mut TestNode,
    held: &mut Vec<Responder<LogIndex, raftify_core::error::ReadError>>,
) {
    for _ in 0..5 {
        let cluster = ClusterConnection::new([node.address.clone()], PATIENCE).unwrap();
        let proposing = tokio::spawn(async move { cluster.propose(Bytes::from_static(b"probe")).await });
        loop {
            match node.next_request().await {
                ServerRequestMsg::ConfirmReadIndex { reply } => held.push(reply),
                ServerRequestMsg::ForLeader { request: LeaderRequest::Propose { reply, .. }, .. } => {
                    reply.applied(1);
                    break;
                }
                _ => panic!("another request"),
            }
        }
        within("a reply", proposing).await.unwrap().unwrap();
    }
}

/// As many as one connection may have under way.
const UNANSWERED_MAX: usize = 4096;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_on_and_on_is_held_back_at_the_limit_of_unanswered_requests() {
    let mut node = TestNode::start(1);
    let stream = RawStream::open(&node, 1 << 20);
    let RawStream { requests, replies } = stream;
    let sending = tokio::spawn(async move {
        for first in (0..40_000).step_by(100) {
            if requests.send(batch((first..first + 100).map(read).collect())).await.is_err() {
                break;
            }
        }
    });
    let mut held = Vec::new();
    while held.len() < UNANSWERED_MAX {
        held.push(next_read(&mut node).await);
    }
    served_meanwhile(&mut node, &mut held).await;
    // The last batch is taken as a whole.
    assert!(held.len() < UNANSWERED_MAX + 100, "{} requests are taken", held.len());
    // The others follow as soon as there is room.
    let mut replies = within("a response", replies).await.unwrap().unwrap().into_inner();
    let mut answered = BTreeSet::new();
    while answered.len() < 40_000 {
        for reply in held.drain(..) {
            reply.answer(Ok(LogIndex(7)));
        }
        tokio::select! {
            batch = replies.message() => {
                answered.extend(batch.unwrap().unwrap().items.into_iter().map(|reply| reply.id));
            }
            request = node.requests.recv() => match request.unwrap() {
                ServerRequestMsg::ConfirmReadIndex { reply } => held.push(reply),
                _ => panic!("no read"),
            },
        }
    }
    within("the end of the requests", sending).await.unwrap();
}

/// Its replies do not pile up in the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_receives_makes_the_node_hold_a_bounded_number_of_replies() {
    let mut node = TestNode::start(1);
    let stream = RawStream::open(&node, 1);
    let RawStream { requests, replies: _never_received } = stream;
    let sending = tokio::spawn(async move {
        for first in (0..100_000).step_by(100) {
            if requests.send(batch((first..first + 100).map(read).collect())).await.is_err() {
                break;
            }
        }
    });
    let (mut taken, mut held) = (0, Vec::new());
    while taken < UNANSWERED_MAX {
        next_read(&mut node).await.answer(Ok(LogIndex(7)));
        taken += 1;
    }
    for _ in 0..20 {
        served_meanwhile(&mut node, &mut held).await;
        taken += held.len();
        for reply in held.drain(..) {
            reply.answer(Ok(LogIndex(7)));
        }
    }
    // One message is on its way to the connection, one is being taken, and the limit waits.
    assert!(taken <= 3 * UNANSWERED_MAX + 100, "{taken} requests are taken");
    sending.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disappears_with_ten_thousand_proposals_leaves_nothing_behind() {
    let config = Config { proposals_in_flight_max: UNANSWERED_MAX + 100, ..config() };
    let mut node = TestNode::with(1, config, Some(identity(1)));
    let stream = RawStream::open(&node, 1 << 20);
    let RawStream { requests, replies } = stream;
    let sending = tokio::spawn(async move {
        for first in (0..10_000).step_by(100) {
            let proposals = (first..first + 100).map(|id| proposal(id, "entry"));
            if requests.send(batch(proposals.collect())).await.is_err() {
                break;
            }
        }
        // The request side stays open as well.
        std::future::pending::<()>().await;
    });
    let mut held = Vec::new();
    while held.len() < UNANSWERED_MAX {
        held.push(next_proposal(&mut node).await.1);
    }
    sending.abort();
    drop(replies);
    for reply in held {
        let Reply::Remote(mut reply) = reply else { panic!("a reply of this process") };
        within("the request is given up", reply.closed()).await;
    }
    // As many as before may be under way again.
    let stream = RawStream::open(&node, 1 << 20);
    stream.send((0..UNANSWERED_MAX as u64).map(|id| proposal(id, "entry")).collect()).await;
    let mut replies = Vec::new();
    while replies.len() < UNANSWERED_MAX {
        match node.next_request().await {
            ServerRequestMsg::ForLeader { request: LeaderRequest::Propose { reply, .. }, .. } => {
                if !matches!(&reply, Reply::Remote(reply) if reply.is_closed()) {
                    replies.push(reply);
                }
            }
            _ => panic!("no proposal"),
        }
    }
    replies.into_iter().for_each(|reply| reply.applied(1));
    let (_requests, mut replies) = stream.receive().await;
    for _ in 0..UNANSWERED_MAX {
        let (_, outcome) = replies.one().await;
        assert_eq!(outcome, Outcome::Reply(Bytes::from_static(&[1])));
    }
}

/// The requests that the node has not read go to another node.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answers_what_it_has_read_and_says_that_it_has_not_read_the_rest() {
    let mut node = TestNode::start(1);
    let stream = RawStream::open(&node, 1 << 20);
    stream.send((0..4096).map(read).collect()).await;
    stream.send((5000..5100).map(read).collect()).await;
    let mut held = Vec::new();
    while held.len() < UNANSWERED_MAX {
        held.push(next_read(&mut node).await);
    }
    let TestNode { mut requests, mut serving, stop, .. } = node;
    drop(stop);
    let answering = tokio::spawn(async move {
        held.into_iter().for_each(|reply| reply.answer(Ok(LogIndex(7))));
        // It may still read the second batch.
        while let Some(ServerRequestMsg::ConfirmReadIndex { reply }) = requests.recv().await {
            reply.answer(Ok(LogIndex(7)));
        }
    });
    let (_requests, mut replies) = stream.receive().await;
    let mut answered = BTreeSet::new();
    while let Some(reply) = replies.next().await {
        answered.insert(reply.unwrap().0);
    }
    assert!(replies.closes);
    assert!((0..4096).all(|id| answered.contains(&id)), "all that it has read is answered");
    within("the end of the server", &mut serving).await.unwrap().unwrap();
    within("the end of all requests", answering).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_have_a_few_streams_and_no_more() {
    let mut node = TestNode::start(1);
    let channel = endpoint(&node.address, Duration::from_secs(5)).unwrap().connect().await.unwrap();
    let mut open = Vec::new();
    for id in 0..16 {
        let (requests, received) = mpsc::channel(1);
        requests.send(batch(vec![read(id)])).await.unwrap();
        let mut client = service(channel.clone());
        let calling =
            tokio::spawn(async move { client.stream_requests(ReceiverStream::new(received)).await });
        next_read(&mut node).await.answer(Ok(LogIndex(7)));
        open.push((requests, within("a response", calling).await.unwrap().unwrap()));
    }
    let (_requests, received) = mpsc::channel(1);
    let refused = within("a refusal", service(channel).stream_requests(ReceiverStream::new(received))).await;
    assert_eq!(refused.map(|_| ()).unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_calls_still_serve_clients_without_streams() {
    let mut node = TestNode::start(1);
    let cluster = ClusterConnection::new([node.address.clone()], PATIENCE).unwrap().unary();
    let proposing = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.propose(Bytes::from_static(b"entry")).await }
    });
    next_proposal(&mut node).await.1.applied(5);
    assert_eq!(within("a reply", proposing).await.unwrap(), Ok(Bytes::from_static(&[5])));
    let reading = tokio::spawn(async move { cluster.read_index().await });
    next_read(&mut node).await.answer(Ok(LogIndex(7)));
    assert_eq!(within("an answer", reading).await.unwrap(), Ok(LogIndex(7)));
}

type Answering = fn(Streaming<proto::RequestBatch>) -> BoxFuture<'static, Vec<proto::ReplyBatch>>;

/// A server that answers single proposals with 7 and serves streams as the test says; without, it does not
/// know them, like a program of an earlier version.
#[derive(Clone)]
struct OtherServer {
    stream: Option<Answering>,
}

impl NamedService for OtherServer {
    const NAME: &'static str = "raftify.v1.RaftService";
}

impl Service<http::Request<Body>> for OtherServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            Ok(match (request.uri().path(), this.stream) {
                ("/raftify.v1.RaftService/Propose", _) => {
                    let codec = ProstCodec::<proto::ProposeReply, proto::ProposeRequest>::default();
                    Grpc::new(codec).unary(this, request).await
                }
                ("/raftify.v1.RaftService/StreamRequests", Some(_)) => {
                    let codec = ProstCodec::<proto::ReplyBatch, proto::RequestBatch>::default();
                    Grpc::new(codec).streaming(this, request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

impl UnaryService<proto::ProposeRequest> for OtherServer {
    type Response = proto::ProposeReply;
    type Future = BoxFuture<'static, Result<Response<proto::ProposeReply>, Status>>;

    fn call(&mut self, _: Request<proto::ProposeRequest>) -> Self::Future {
        let outcome = Some(proto::propose_reply::Outcome::Reply(Bytes::from_static(&[7])));
        let reply = proto::ProposeReply { header: Some(wire::header(Some(CLUSTER))), outcome };
        Box::pin(async { Ok(Response::new(reply)) })
    }
}

impl StreamingService<proto::RequestBatch> for OtherServer {
    type Response = proto::ReplyBatch;
    type ResponseStream = tokio_stream::Iter<std::vec::IntoIter<Result<proto::ReplyBatch, Status>>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<proto::RequestBatch>>) -> Self::Future {
        let stream = self.stream.unwrap();
        Box::pin(async move {
            let batches = stream(request.into_inner()).await;
            let batches: Vec<_> = batches.into_iter().map(Ok).collect();
            Ok(Response::new(tokio_stream::iter(batches)))
        })
    }
}

impl OtherServer {
    /// A client of it alone.
    async fn start(self) -> ClusterConnection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(self);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        ClusterConnection::new([address], PATIENCE).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_no_streams_is_called_once_for_each_request() {
    let cluster = OtherServer { stream: None }.start().await;
    for _ in 0..3 {
        let proposed = within("an answer", cluster.propose(Bytes::from_static(b"entry"))).await;
        assert_eq!(proposed, Ok(Bytes::from_static(&[7])));
    }
}

fn reply_to(id: u64) -> proto::StreamedReply {
    proto::StreamedReply { id, outcome: Some(Outcome::Reply(Bytes::from_static(&[1]))) }
}

fn replies(items: Vec<proto::StreamedReply>, closes: bool) -> Vec<proto::ReplyBatch> {
    let header = Some(wire::header(Some(CLUSTER)));
    vec![proto::ReplyBatch { header, items, closes, ..Default::default() }]
}

/// The answer to a proposal, of a server that serves streams in this way.
async fn proposed_to(
    stream: fn(Streaming<proto::RequestBatch>) -> BoxFuture<'static, Vec<proto::ReplyBatch>>,
) -> Result<Bytes, ClientError<ProposeError>> {
    let cluster = OtherServer { stream: Some(stream) }.start().await;
    within("an answer", cluster.propose(Bytes::from_static(b"entry"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_a_stream_leaves_without_a_valid_reply_has_an_unknown_outcome() {
    let unknown = |answer: Result<Bytes, ClientError<ProposeError>>| match answer {
        Err(ClientError::Answer(ProposeError::Unknown(UnknownOutcome::ConnectionLost(reason)))) => reason,
        answer => panic!("{answer:?}"),
    };
    let ended = proposed_to(|mut requests| {
        Box::pin(async move {
            requests.message().await.unwrap().unwrap();
            Vec::new()
        })
    });
    assert!(unknown(ended.await).contains("ended the stream"));
    let of_another = proposed_to(|mut requests| {
        Box::pin(async move {
            let id = requests.message().await.unwrap().unwrap().items[0].id;
            replies(vec![reply_to(id + 1)], false)
        })
    });
    assert!(unknown(of_another.await).contains("is not under way"));
    let empty = proposed_to(|mut requests| {
        Box::pin(async move {
            let id = requests.message().await.unwrap().unwrap().items[0].id;
            replies(vec![proto::StreamedReply { id, outcome: None }], false)
        })
    });
    assert!(unknown(empty.await).contains("makes no sense"));
    let of_a_read = proposed_to(|mut requests| {
        Box::pin(async move {
            let id = requests.message().await.unwrap().unwrap().items[0].id;
            replies(vec![proto::StreamedReply { id, outcome: Some(index(7)) }], false)
        })
    });
    assert!(unknown(of_a_read.await).contains("makes no sense"));
    let too_many = proposed_to(|mut requests| {
        Box::pin(async move {
            let id = requests.message().await.unwrap().unwrap().items[0].id;
            replies((id..id + 5000).map(reply_to).collect(), false)
        })
    });
    assert!(unknown(too_many.await).contains("too many replies"));
}

/// No other caller gets the second one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_comes_twice_is_not_the_reply_to_another_proposal() {
    let cluster = OtherServer {
        stream: Some(|mut requests| {
            Box::pin(async move {
                let id = requests.message().await.unwrap().unwrap().items[0].id;
                replies(vec![reply_to(id), reply_to(id)], false)
            })
        }),
    };
    let cluster = cluster.start().await;
    let first = within("an answer", cluster.propose(Bytes::from_static(b"first"))).await;
    assert_eq!(first, Ok(Bytes::from_static(&[1])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_a_stopping_node_says_it_has_not_read_goes_to_another_node() {
    let mut other = TestNode::start(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stopping = listener.local_addr().unwrap().to_string();
    let server = OtherServer {
        stream: Some(|mut requests| {
            Box::pin(async move {
                requests.message().await.unwrap().unwrap();
                replies(Vec::new(), true)
            })
        }),
    };
    let server = tonic::transport::Server::builder().add_service(server);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let cluster = ClusterConnection::new([stopping, other.address.clone()], PATIENCE).unwrap();
    let proposing = tokio::spawn(async move { cluster.propose(Bytes::from_static(b"entry")).await });
    next_proposal(&mut other).await.1.applied(5);
    assert_eq!(within("an answer", proposing).await.unwrap(), Ok(Bytes::from_static(&[5])));
}

/// Many callers, one of which waits for long: the others are not affected, and the stream is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_takes_no_reply_of_the_others() {
    let patient = Config { propose_timeout: Duration::from_secs(3600), ..config() };
    let mut node = TestNode::with(1, patient, Some(identity(1)));
    let cluster = ClusterConnection::new([node.address.clone()], Duration::from_secs(3600)).unwrap();
    let propose = |payload: &'static [u8]| {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.propose(Bytes::from_static(payload)).await })
    };
    let gives_up = propose(b"first");
    let (_, first) = next_proposal(&mut node).await;
    gives_up.abort();
    assert!(gives_up.await.unwrap_err().is_cancelled());
    let stays = propose(b"second");
    let (_, second) = next_proposal(&mut node).await;
    first.applied(1);
    second.applied(2);
    assert_eq!(within("a reply", stays).await.unwrap(), Ok(Bytes::from_static(&[2])));
}
