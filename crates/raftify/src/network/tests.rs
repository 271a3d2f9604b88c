//! The network modules together: outboxes, servers and clients communicate over loopback, without a raft
//! loop.

mod addresses;
mod backup;
mod calls;
mod client;
mod events;
mod health;
mod snapshots;
mod streams;
mod validation;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use prost::Message as _;
use raftify_core::error::{LeaderHint, MembershipError, ProposeError, StopReason, UnknownOutcome};
use raftify_core::members::{MemberRecord, SenderRefusal};
use raftify_core::{
    CheckedConfig, ClusterId, Config, Entry, EntryKind, Forward, Forwarding, Identity, Incarnation,
    LeaderRequest, LogIndex, LogPosition, Member, MemberChange, Members, MembershipChange, MembershipRequest,
    NodeId, RaftMessage, RaftMessageBody, ReadRound, Responder, Sender, ServerRequestMsg, Started,
    Status as NodeStatus, Term,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::channels::backups::{BackupCall, backup_calls};
use crate::channels::events::PeerEvent;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::NodeMetrics;
use crate::channels::node_events::NodeEvents;
use crate::channels::reply::{Reply, local_reply};
use crate::channels::request_queue::{RequestReceiver, request_queue};
use crate::client::cluster_connection::ClusterConnection;
use crate::client::error::{ClientError, UnreachableNode};
use crate::network::outbox::Outbox;
use crate::network::server::access::Access;
use crate::network::server::{ServerContext, serve};
use crate::runtime::endpoint::endpoint;
use crate::runtime::transport::{Listener, connect_lazily};
use crate::runtime::worker::Blocking;
use crate::security::dialer::Dialer;
use crate::wire::{self, RequestRejected, proto, service};
use snapshots::TestSnapshots;

const CLUSTER: ClusterId = ClusterId(0xc1);

/// The nodes cannot decode this entry.
const UNDECODABLE: &[u8] = b"undecodable";

fn id(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn identity(node: u64) -> Identity {
    Identity { cluster_id: CLUSTER, node_id: id(node), incarnation: Incarnation(node * 100) }
}

fn config() -> Config {
    Config { connect_timeout: Duration::from_millis(500), ..Config::default() }
}

/// Every wait has a deadline, far longer than the wait takes.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen"),
    }
}

/// A node without a raft loop: the test is the loop.
struct TestNode {
    id: NodeId,
    address: String,
    requests: RequestReceiver<ServerRequestMsg<Reply<u64>>>,
    status: watch::Sender<NodeStatus>,
    snapshots: TestSnapshots,
    snapshot_bytes_received: Arc<AtomicU64>,
    outbox: Outbox,
    events: mpsc::UnboundedReceiver<PeerEvent>,
    stops: watch::Sender<bool>,
    lifecycle: Lifecycle,
    node_events: Arc<NodeEvents>,
    /// The test makes the backups.
    backup_calls: mpsc::Receiver<BackupCall>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl TestNode {
    fn start(node: u64) -> TestNode {
        TestNode::with(node, config(), Some(identity(node)))
    }

    fn with(node: u64, config: Config, identity: Option<Identity>) -> TestNode {
        TestNode::on(node, config, identity, TestSnapshots::default())
    }

    fn on(node: u64, config: Config, identity: Option<Identity>, snapshots: TestSnapshots) -> TestNode {
        let config: CheckedConfig = config.check().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (requests, received) = request_queue(config.request_queue_max, config.request_queue_bytes_max);
        let (events, peer_events) = mpsc::unbounded_channel();
        let snapshot_bytes_received = Arc::default();
        let metrics = Arc::new(NodeMetrics::new(id(node)));
        let stops = watch::Sender::new(false);
        let (lifecycle, node_events) = (Lifecycle::new(), NodeEvents::new());
        let (backups, backup_calls) = backup_calls();
        let outbox = Outbox::start(
            address.clone(),
            Dialer::default(),
            config.clone(),
            snapshots.clone(),
            Blocking::new(),
            events,
            Arc::clone(&metrics),
        );
        let status = NodeStatus { identity, term: Term(1), ..NodeStatus::initial(id(node)) };
        let (status, seen) = watch::channel(status);
        let context = ServerContext {
            access: Arc::new(Access::new(address.as_str().into(), seen.clone(), Arc::default())),
            dialer: Dialer::default(),
            counters: Arc::default(),
            metrics,
            events: Arc::clone(&node_events),
            backups,
            lifecycle: lifecycle.clone(),
            stops: stops.subscribe(),
            requests,
            status: seen,
            remembered: watch::Sender::new(Arc::default()).subscribe(),
            address: address.as_str().into(),
            plan: watch::Sender::new(None).subscribe(),
            earlier_incarnation: watch::Sender::new(None),
            snapshots: snapshots.clone(),
            snapshot_bytes_received: Arc::clone(&snapshot_bytes_received),
            config,
            outbox: outbox.clone(),
            blocking: Blocking::new(),
            remote_reply: Reply::Remote,
            check_entry: |payload| match payload == UNDECODABLE {
                true => Err("the test says so".to_owned()),
                false => Ok(()),
            },
        };
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(serve(Listener::Tcp(listener), context, async { drop(stopped.await) }));
        let stop = Some(stop);
        let node = id(node);
        TestNode {
            id: node,
            address,
            requests: received,
            status,
            snapshots,
            snapshot_bytes_received,
            outbox,
            events: peer_events,
            stops,
            lifecycle,
            node_events,
            backup_calls,
            stop,
            serving,
        }
    }

    fn knows(&self, members: &Arc<Members>) {
        self.status.send_modify(|status| status.members = Arc::clone(members));
        let identity = self.status.borrow().identity;
        if let Some(identity) = identity {
            self.outbox.set_members(identity, members, Started::default());
        }
    }

    async fn next_request(&mut self) -> ServerRequestMsg<Reply<u64>> {
        within("a request", self.requests.recv()).await.unwrap()
    }

    async fn next_messages(&mut self) -> Vec<RaftMessage> {
        match self.next_request().await {
            ServerRequestMsg::RaftMessages { messages, .. } => messages,
            _ => panic!("no messages, but another request"),
        }
    }

    /// Events of messages and requests; events about reached peers, and about their opinion of this node, are
    /// skipped.
    async fn next_event(&mut self) -> PeerEvent {
        loop {
            match within("an event", self.events.recv()).await.unwrap() {
                PeerEvent::Reached { .. }
                | PeerEvent::Unreached(_)
                | PeerEvent::Agrees(_)
                | PeerEvent::Silent(_) => {}
                event => return event,
            }
        }
    }

    /// The next peer that is reached, or is no longer reached.
    async fn next_reach(&mut self) -> (NodeId, Option<Incarnation>) {
        loop {
            match within("news of which peers are reached", self.events.recv()).await.unwrap() {
                PeerEvent::Reached { peer, incarnation, .. } => return (peer, Some(incarnation)),
                PeerEvent::Unreached(peer) => return (peer, None),
                _ => {}
            }
        }
    }
}

fn members<'a>(nodes: impl IntoIterator<Item = (u64, &'a str)>) -> Arc<Members> {
    let nodes = nodes.into_iter().map(|(node, address)| Member::voter(id(node), address));
    Arc::new(Members::initial(nodes).unwrap())
}

/// Two nodes that know each other.
fn pair() -> (TestNode, TestNode, Arc<Members>) {
    let (a, b) = (TestNode::start(1), TestNode::start(2));
    let members = members([(1, a.address.as_str()), (2, b.address.as_str())]);
    a.knows(&members);
    b.knows(&members);
    (a, b, members)
}

fn heartbeat(to: u64, commit: u64) -> RaftMessage {
    let body = RaftMessageBody::Heartbeat { commit: LogIndex(commit), read_round: None };
    RaftMessage { from: id(1), to: id(to), term: Term(1), body }
}

fn commit_of(message: &RaftMessage) -> u64 {
    match message.body {
        RaftMessageBody::Heartbeat { commit, .. } => commit.0,
        _ => panic!("no heartbeat: {message:?}"),
    }
}

/// The operating system accepts connections, and no program answers.
fn silent_listener() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// No process listens there, not even another test: the address stays reserved to the end of the process.
fn dead_address() -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    std::mem::forget(socket);
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_keep_their_order() {
    let (a, mut b, _) = pair();
    for first in (0..2000).step_by(10) {
        a.outbox.send((first..first + 10).map(|commit| heartbeat(2, commit)).collect());
    }
    let mut seen = 0;
    while seen < 2000 {
        for message in b.next_messages().await {
            assert_eq!(commit_of(&message), seen);
            seen += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_and_silent_peers_delay_no_other_peer() {
    let (a, mut b, _) = pair();
    let (_listener, silent) = silent_listener();
    let all = members([(1, &*a.address), (2, &*b.address), (3, &*dead_address()), (4, &*silent)]);
    a.knows(&all);
    b.knows(&all);
    for commit in 0..100 {
        a.outbox.send([3, 4, 2].map(|to| heartbeat(to, commit)).into());
    }
    let mut seen = 0;
    while seen < 100 {
        seen += b.next_messages().await.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_drops_what_is_new_and_keeps_the_order() {
    let node = TestNode::with(1, Config { peer_queue_max: 16, ..config() }, Some(identity(1)));
    let mut b = TestNode::start(2);
    let all = members([(1, &*node.address), (2, &*b.address)]);
    b.knows(&all);
    node.knows(&all);
    node.outbox.send((0..100_000).map(|commit| heartbeat(2, commit)).collect());
    let first = b.next_messages().await;
    assert_eq!(first.iter().map(commit_of).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    node.outbox.send(vec![heartbeat(2, 200_000)]);
    assert_eq!(commit_of(&b.next_messages().await[0]), 200_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_back_is_found_again_and_its_absence_reported_once() {
    let (mut a, mut b, _) = pair();
    a.outbox.send(vec![heartbeat(2, 1)]);
    b.next_messages().await;

    b.stop = None;
    within("the end of the server", &mut b.serving).await.unwrap().unwrap();
    assert!(matches!(a.next_event().await, PeerEvent::Unreachable(peer) if peer == id(2)));

    let mut again = TestNode::start(2);
    let moved = members([(1, &*a.address), (2, &*again.address)]);
    again.knows(&moved);
    a.knows(&moved);
    within("a message after the way back", async {
        while again.requests.is_empty() {
            a.outbox.send(vec![heartbeat(2, 2)]);
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(commit_of(&again.next_messages().await[0]), 2);
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, PeerEvent::Unreachable(_)), "reported once only");
    }
}

/// With only the pauses, which double each time, the last attempt would come after several minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_connects_to_this_node_is_connected_to_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    let node = TestNode::with(
        1,
        Config { reconnect_delay_max: Duration::from_secs(3600), ..config() },
        Some(identity(1)),
    );
    node.knows(&members([(1, &*node.address), (2, &*peer)]));
    let introduction = || proto::IdentifyRequest {
        header: Some(wire::header(Some(CLUSTER))),
        sender: Some(wire::sender_to_wire(
            &Sender {
                id: id(2),
                incarnation: Incarnation(200),
                members_as_of: LogIndex(1),
                started: Started::default(),
            },
            &peer,
        )),
        receiver: Some(wire::receiver_to_wire(id(1), None)),
    };
    let channel = connect_lazily(&endpoint(&node.address, Duration::from_secs(5)).unwrap());
    let mut asks = service(channel);
    for _ in 0..16 {
        // The peer closes the connection: the attempt fails.
        drop(within("an attempt to connect", listener.accept()).await.unwrap());
        let answer = within("an answer", asks.identify(introduction())).await.unwrap().into_inner();
        assert!(wire::identification_from_wire(answer).unwrap().agrees);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_larger_than_any_batch_arrive_whole() {
    let (a, mut b, _) = pair();
    let sizes = [1, 3 << 20, 3 << 20, 20 << 20, 5, 3 << 20];
    let entry = |(size, index)| Entry {
        position: LogPosition::new(1, index),
        kind: EntryKind::User,
        payload: vec![index as u8; size].into(),
    };
    let sent: Vec<Entry> = sizes.into_iter().zip(1..).map(entry).collect();
    let body =
        RaftMessageBody::Append { previous: LogPosition::ZERO, commit: LogIndex(4), entries: sent.clone() };
    a.outbox.send(vec![RaftMessage { from: id(1), to: id(2), term: Term(1), body }]);
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let batch = b.next_messages().await;
        let bytes: u64 = batch.iter().map(wire::message_bytes_max).sum();
        let is_one_entry = matches!(&batch[..], [RaftMessage { body: RaftMessageBody::Append { entries, .. }, .. }] if entries.len() == 1);
        assert!(bytes <= wire::BATCH_BYTES || is_one_entry, "a batch of {bytes} bytes");
        for message in batch {
            let RaftMessageBody::Append { previous, entries, .. } = message.body else { panic!("no append") };
            assert_eq!(previous.index.0, received.len() as u64);
            received.extend(entries);
        }
    }
    assert!(received == sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_members_answers_its_callers() {
    let (mut a, mut joining) = (TestNode::start(1), TestNode::start(2));
    joining.knows(&Arc::new(Members::none()));
    let all = members([(1, &*a.address), (2, &*joining.address)]);
    a.knows(&all);
    a.outbox.send(vec![heartbeat(2, 1)]);
    joining.next_messages().await;
    joining.outbox.send(vec![RaftMessage { from: id(2), to: id(1), ..heartbeat(1, 7) }]);
    assert_eq!(commit_of(&a.next_messages().await[0]), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_open_streams_and_hung_connections_stops() {
    let (a, mut b, _) = pair();
    a.outbox.send(vec![heartbeat(2, 1)]);
    b.next_messages().await;
    let _hung = std::net::TcpStream::connect(&b.address).unwrap();
    b.stop = None;
    within("the end of the server", &mut b.serving).await.unwrap().unwrap();
    std::net::TcpListener::bind(&b.address).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_while_the_loop_takes_nothing() {
    let mut b = TestNode::with(2, Config { request_queue_max: 1, ..config() }, Some(identity(2)));
    let a = TestNode::start(1);
    let all = members([(1, &*a.address), (2, &*b.address)]);
    a.knows(&all);
    b.knows(&all);
    within("a full queue", async {
        while b.requests.is_empty() {
            a.outbox.send(vec![heartbeat(2, 1)]);
            tokio::task::yield_now().await;
        }
    })
    .await;
    a.outbox.send(vec![heartbeat(2, 2)]);

    let mut deadline = Duration::from_millis(1);
    let answer = within("an answer", async {
        loop {
            let busy = ClusterConnection::new([b.address.clone()], deadline).unwrap();
            match busy.propose(Bytes::new()).await {
                // The deadline is shorter than the round trip.
                Err(ClientError::Answer(ProposeError::Unknown(_)) | ClientError::Unreachable(_)) => {
                    deadline *= 2
                }
                answer => break answer,
            }
        }
    });
    assert_eq!(answer.await, Err(ClientError::Answer(ProposeError::Busy { waiting: 1 })));

    b.stop = None;
    within("the end of the server", &mut b.serving).await.unwrap().unwrap();
}

fn proposal() -> (LeaderRequest<Reply<u64>>, impl Future<Output = Result<u64, ProposeError>>) {
    let (reply, answer) = local_reply::<u64>();
    (LeaderRequest::Propose { payload: Bytes::from_static(b"entry"), reply }, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_proposal_brings_back_its_reply_or_what_is_known() {
    let (mut a, mut b, _) = pair();
    let leader = b.id;

    let (request, answer) = proposal();
    a.outbox.forward(Forward { to: leader, request });
    let ServerRequestMsg::ForLeader { request, forwarding } = b.next_request().await else {
        panic!("no proposal")
    };
    assert_eq!(forwarding, Forwarding::Never);
    let LeaderRequest::Propose { payload, reply } = request else { panic!("no proposal") };
    assert_eq!(payload, Bytes::from_static(b"entry"));
    reply.applied(42);
    assert_eq!(within("a reply", answer).await, Ok(42));

    let (request, answer) = proposal();
    a.outbox.forward(Forward { to: leader, request });
    let ServerRequestMsg::ForLeader { request, .. } = b.next_request().await else { panic!("no proposal") };
    drop(request);
    let unknown = ProposeError::Unknown(UnknownOutcome::ConnectionLost(String::new()));
    let answer = within("a reply", answer).await.unwrap_err();
    assert_eq!(std::mem::discriminant(&answer), std::mem::discriminant(&unknown), "{answer:?}");

    a.outbox.read_round(ReadRound { leader, round: 6 });
    let ServerRequestMsg::ConfirmReadIndex { reply } = b.next_request().await else { panic!("no read") };
    reply.answer(Ok(LogIndex(12)));
    assert!(matches!(
        a.next_event().await,
        PeerEvent::ReadRoundAnswered { round: 6, answer: Ok(LogIndex(12)) }
    ));

    a.knows(&members([(1, &*a.address), (2, &*dead_address())]));
    let (request, answer) = proposal();
    a.outbox.forward(Forward { to: leader, request });
    assert_eq!(within("a reply", answer).await, Err(ProposeError::NoLeader));

    let (request, answer) = proposal();
    a.outbox.forward(Forward { to: id(9), request });
    assert_eq!(within("a reply", answer).await, Err(ProposeError::NoLeader));
}

/// A leaving node treats the report of its own removal as success: a report of the leader's removal is not
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn that_the_leader_was_removed_is_not_told_as_if_the_one_that_asked_it_were() {
    let (a, mut b, _) = pair();
    let (answered, answer) = oneshot::channel();
    let reply = Responder::new(move |answer| answered.send(answer).unwrap());
    let request = MembershipChange::one(MemberChange::Remove(a.id)).into();
    a.outbox.forward::<Reply<u64>>(Forward {
        to: b.id,
        request: LeaderRequest::ChangeMembership { request, reply },
    });
    let ServerRequestMsg::ForLeader { request, .. } = b.next_request().await else { panic!("no change") };
    let LeaderRequest::ChangeMembership { reply, .. } = request else { panic!("no change") };
    reply.answer(Err(StopReason::Removed { as_of: LogIndex(7) }.into()));
    let answer = within("an answer", answer).await.unwrap();
    assert!(matches!(answer, Err(MembershipError::Unknown(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_forwards_no_more_than_it_would_take_itself() {
    let a = TestNode::with(1, Config { proposals_in_flight_max: 1, ..config() }, Some(identity(1)));
    let mut b = TestNode::start(2);
    let all = members([(1, &*a.address), (2, &*b.address)]);
    a.knows(&all);
    b.knows(&all);
    let (request, first) = proposal();
    a.outbox.forward(Forward { to: b.id, request });
    let ServerRequestMsg::ForLeader { request, .. } = b.next_request().await else { panic!("no proposal") };
    let (second, refused) = proposal();
    a.outbox.forward(Forward { to: b.id, request: second });
    assert_eq!(within("a refusal", refused).await, Err(ProposeError::Busy { waiting: 1 }));
    drop(request);
    assert!(matches!(within("an answer", first).await, Err(ProposeError::Unknown(_))));
}
