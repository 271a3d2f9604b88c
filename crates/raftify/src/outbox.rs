//! The connections to the other nodes: everything that leaves this node leaves here.
//!
//! For each peer there is one bounded queue, one task and one stream, so that messages keep their order and a dead or
//! slow peer costs the others nothing. Snapshots and requests for the leader travel over a second connection, so that
//! no heartbeat waits behind them. The raft loop and the log writer hand messages over and never wait; what happens
//! to the connections is told to the loop as [`PeerEvent`]s. How a snapshot is sent is in `snapshot_sender.rs`.
//!
//! It keeps no message for later: what is queued when a connection breaks is dropped, and consensus sends again.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use raftify_core::error::ReadError;
use raftify_core::members::{MEMBERS_MAX, SenderRefusal};
use raftify_core::{
    CheckedConfig, Forward, Forwarding, Identity, LeaderRequest, LogIndex, Members, NodeId, ProposalReply,
    RaftMessage, ReadRound, Sender, SnapshotStore, SnapshotToSend,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, error, info, warn};

use crate::in_flight::InFlight;
use crate::remote_node::{self, CallError, RemoteNode};
use crate::seldom::Seldom;
use crate::snapshot_sender::{Failures, SnapshotReport, SnapshotSender, SnapshotTransfer};
use crate::transport;
use crate::wire::{self, DoorRefusal, VerbError, proto};
use crate::worker::Blocking;

/// The pause before the second attempt to connect; it doubles with each further one.
const FIRST_RECONNECT_DELAY: Duration = Duration::from_millis(20);

/// The pause after a peer has refused this node: trying again helps only once somebody has changed something.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// What the connections tell the raft loop.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The connection to a peer broke; messages may have been lost. Once per broken connection.
    Unreachable(NodeId),
    /// A snapshot was installed by its receiver, or not. Exactly once for each that was to be sent.
    SnapshotSent {
        /// As asked.
        sent: SnapshotToSend,
        /// Why not.
        outcome: Result<(), String>,
    },
    /// The leader confirmed its commit index, or could not.
    ReadRoundAnswered {
        /// As asked.
        round: u64,
        /// The answer.
        answer: Result<LogIndex, ReadError>,
    },
    /// A peer refuses this node's messages.
    RefusedBy {
        /// The peer.
        by: NodeId,
        /// Why.
        refusal: SenderRefusal,
    },
}

/// The events' channel is unbounded so that none is ever dropped; their number is bounded by what causes them: one
/// for each attempt to connect, each snapshot and each round of reads.
pub(crate) type Events = mpsc::UnboundedSender<PeerEvent>;

/// The way back to who proposed, for a proposal that another node answered.
pub(crate) trait RemoteReply: ProposalReply {
    /// The state machine's reply, as postcard.
    fn deliver(self, encoded_reply: Bytes);
}

/// The handle to all connections to peers. A clone is a second handle to the same.
#[derive(Clone)]
pub(crate) struct Outbox {
    shared: Arc<Shared>,
}

struct Shared {
    own_address: String,
    config: CheckedConfig,
    snapshots: Arc<SnapshotSender>,
    events: Events,
    runtime: Handle,
    /// Requests on the way to the leader: no more than this node would take if it led itself.
    forwarded: Arc<InFlight>,
    /// Taken for moments only and never across an `.await`: `send` is called from two threads for every turn, and a
    /// task in between would cost each message a change of threads.
    state: Mutex<State>,
}

struct State {
    /// `None` until this node knows to which cluster it belongs: nobody is spoken to before.
    own: Option<(Identity, Arc<Members>)>,
    contacts: BTreeMap<NodeId, Contact>,
    /// The warning that there are as many as may be: each message of one more is a reason.
    too_many_contacts: Seldom,
    peers: BTreeMap<NodeId, Peer>,
    tasks: JoinSet<()>,
    closed: bool,
}

/// A node that introduced itself and that this node does not know as a member: it may have been added by a change
/// that has not arrived here, and may even be the leader that will bring it. It must be answered somewhere.
#[derive(PartialEq)]
struct Contact {
    address: String,
    members_as_of: LogIndex,
}

struct Peer {
    address: String,
    queue: Arc<PeerQueue>,
    /// For everything but the stream. Connects by itself when it is used.
    channel: Channel,
    stream_task: AbortHandle,
    /// The last snapshot that was to be sent.
    snapshot_task: Option<AbortHandle>,
    snapshot_failures: Failures,
}

impl Peer {
    /// Also reports the snapshot that is on its way as not sent: its task drops the [`SnapshotReport`].
    fn end(self) {
        self.queue.close();
        self.stream_task.abort();
        if let Some(task) = self.snapshot_task {
            task.abort();
        }
    }
}

/// A panic while the lock is held can only come from an allocation; every state in between is a possible one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Starts without peers. Must be called on a tokio runtime, on which all of its tasks run. `own_address` is where
    /// peers that do not know this node yet can answer.
    pub(crate) fn start<S: SnapshotStore>(
        own_address: String,
        config: CheckedConfig,
        snapshots: S,
        blocking: Blocking,
        events: Events,
    ) -> Outbox {
        let shared = Shared {
            own_address,
            snapshots: Arc::new(SnapshotSender::new(&config, snapshots, blocking, events.clone())),
            events,
            runtime: Handle::current(),
            forwarded: InFlight::new(&config),
            config,
            state: Mutex::new(State {
                own: None,
                contacts: BTreeMap::new(),
                too_many_contacts: Seldom::default(),
                peers: BTreeMap::new(),
                tasks: JoinSet::new(),
                closed: false,
            }),
        };
        Outbox { shared: Arc::new(shared) }
    }

    /// Connects to the members that are new, ends the connections to those that are gone or have moved, and
    /// introduces this node from now on with this membership.
    pub(crate) fn set_members(&self, identity: Identity, members: &Arc<Members>) {
        let mut state = lock(&self.shared.state);
        state.contacts.retain(|id, contact| {
            members.get(*id).is_none() && (members.is_empty() || contact.members_as_of > members.as_of())
        });
        state.own = Some((identity, Arc::clone(members)));
        self.shared.refresh(&mut state);
    }

    /// A node introduced itself, and was believed: if it is no member as far as this node knows, it is answered at
    /// this address until the membership says better.
    pub(crate) fn hear_of(&self, sender: &Sender, address: &str) {
        let mut state = lock(&self.shared.state);
        let Some((identity, members)) = &state.own else {
            return;
        };
        if sender.id == identity.node_id || members.get(sender.id).is_some() {
            return;
        }
        if state.contacts.len() >= MEMBERS_MAX && !state.contacts.contains_key(&sender.id) {
            if state.too_many_contacts.is_due() {
                warn!(peer = %sender.id, address, "too many unknown nodes speak to this one: it is not answered");
            }
            return;
        }
        let contact = Contact { address: address.to_owned(), members_as_of: sender.members_as_of };
        if state.contacts.get(&sender.id) == Some(&contact) {
            return;
        }
        state.contacts.insert(sender.id, contact);
        self.shared.refresh(&mut state);
    }

    /// Hands messages to the connections, each peer's in order. Never blocks, on any thread. Messages to nodes that
    /// are no peers, or that no queue has room for, are dropped.
    pub(crate) fn send(&self, mut messages: Vec<RaftMessage>) {
        if messages.is_empty() {
            return;
        }
        // The sort is stable: each peer's messages keep their order, and go into its queue in one step, so that they
        // also leave in one batch.
        messages.sort_by_key(|message| message.to);
        let state = lock(&self.shared.state);
        let mut messages = messages.into_iter().peekable();
        while let Some(to) = messages.peek().map(|message| message.to) {
            let of_this_peer = std::iter::from_fn(|| messages.next_if(|message| message.to == to));
            match state.peers.get(&to) {
                Some(peer) => peer.queue.push(of_this_peer),
                None => {
                    // Counted outside of the macro, which evaluates nothing while its level is off: messages that
                    // stay in the iterator would come up again for ever.
                    let dropped = of_this_peer.count();
                    debug!(peer = %to, dropped, "no such peer, its messages are dropped");
                }
            }
        }
    }

    /// Sends a snapshot, in place of one that is still on its way there. Exactly one [`PeerEvent::SnapshotSent`]
    /// follows for each, whatever happens.
    pub(crate) fn send_snapshot(&self, snapshot: SnapshotToSend) {
        let report = SnapshotReport::new(snapshot, self.shared.events.clone());
        let mut state = lock(&self.shared.state);
        let state = &mut *state;
        if state.closed {
            return report.failed("this node is stopping".to_owned());
        }
        let Some(peer) = state.peers.get_mut(&snapshot.to) else {
            return report.failed(format!("node {} is not known here", snapshot.to));
        };
        if let Some(earlier) = peer.snapshot_task.take() {
            earlier.abort();
        }
        let transfer = SnapshotTransfer {
            snapshot,
            sender: Arc::clone(&self.shared.snapshots),
            queue: Arc::clone(&peer.queue),
            channel: peer.channel.clone(),
            failures: Arc::clone(&peer.snapshot_failures),
        };
        peer.snapshot_task = Some(self.shared.spawn(&mut state.tasks, transfer.run(report)));
    }

    /// Passes a request on to the leader, and the answer back. At most once: it is never sent again.
    pub(crate) fn forward<R: RemoteReply>(&self, forward: Forward<R>) {
        let node = self.node(forward.to);
        let place = self.shared.forwarded.enter().and_then(|mut place| {
            place.holds(forward.request.payload_bytes())?;
            Ok(Some(place))
        });
        let place = if raftify_core::mutated!(ForwardsWithoutLimit) { Ok(None) } else { place };
        let (node, place) = match (node, place) {
            (Some(node), Ok(place)) => (node, place),
            (None, _) => return refuse_request(forward.request, Unsent::UnknownPeer(forward.to)),
            (_, Err(waiting)) => return refuse_request(forward.request, Unsent::Busy(waiting)),
        };
        let config = self.shared.config.clone();
        let mut state = lock(&self.shared.state);
        if state.closed {
            return; // The dropped request answers that the node has stopped.
        }
        self.shared.spawn(&mut state.tasks, async move {
            pass_on(node, forward, &config).await;
            drop(place);
        });
    }

    /// Asks the leader for its confirmed commit index. Exactly one [`PeerEvent::ReadRoundAnswered`] follows, unless
    /// the outbox is shut down.
    pub(crate) fn read_round(&self, ReadRound { leader, round }: ReadRound) {
        let events = self.shared.events.clone();
        let answer = move |answer| send_event(&events, PeerEvent::ReadRoundAnswered { round, answer });
        let Some(node) = self.node(leader) else {
            return answer(Err(ReadError::not_sent(format!("node {leader} is not known here"))));
        };
        let read_timeout = self.shared.config.read_timeout;
        let mut state = lock(&self.shared.state);
        if state.closed {
            return;
        }
        self.shared.spawn(&mut state.tasks, async move {
            answer(node.read_index(read_timeout).await.map_err(CallError::into_verb_error));
        });
    }

    /// Ends all connections and waits for their tasks. Later calls of the other methods only report that.
    pub(crate) async fn shutdown(&self) {
        let mut tasks = {
            let mut state = lock(&self.shared.state);
            state.closed = true;
            for peer in std::mem::take(&mut state.peers).into_values() {
                peer.end();
            }
            std::mem::take(&mut state.tasks)
        };
        tasks.shutdown().await;
    }

    fn node(&self, id: NodeId) -> Option<RemoteNode> {
        let state = lock(&self.shared.state);
        let (identity, _) = state.own.as_ref()?;
        let peer = state.peers.get(&id)?;
        Some(RemoteNode::new(peer.channel.clone(), Arc::new(identity.cluster_id.into())))
    }
}

impl Shared {
    fn spawn(&self, tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                error!(%error, "a task of a connection panicked");
            }
        }
        tasks.spawn_on(task, &self.runtime)
    }

    /// Makes the connections follow from the membership and the contacts.
    fn refresh(&self, state: &mut State) {
        let Some((identity, members)) = &state.own else {
            return;
        };
        if state.closed {
            return;
        }
        let mut wanted: BTreeMap<NodeId, &str> =
            state.contacts.iter().map(|(id, contact)| (*id, contact.address.as_str())).collect();
        wanted.extend(members.iter().map(|member| (member.id, member.address.as_str())));
        wanted.remove(&identity.node_id);

        let ended: Vec<NodeId> = state
            .peers
            .iter()
            .filter(|(id, peer)| wanted.get(id) != Some(&peer.address.as_str()))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            info!(peer = %id, "the peer is gone or has moved: its connection ends");
            if let Some(peer) = state.peers.remove(&id) {
                peer.end();
            }
        }
        for (id, address) in wanted {
            let introduction = Introduction {
                header: wire::header(Some(identity.cluster_id)),
                sender: wire::sender_to_wire(
                    &Sender {
                        id: identity.node_id,
                        incarnation: identity.incarnation,
                        members_as_of: members.as_of(),
                    },
                    &self.own_address,
                ),
                receiver: wire::receiver_to_wire(id, members.get(id).and_then(|member| member.incarnation)),
            };
            if let Some(peer) = state.peers.get(&id) {
                peer.queue.introduce(introduction);
                continue;
            }
            let endpoint = match remote_node::endpoint(address, self.config.connect_timeout) {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    warn!(peer = %id, address, %error, "the peer's address cannot be used");
                    continue;
                }
            };
            let queue = Arc::new(PeerQueue::new(id, introduction, &self.config));
            let connection = PeerConnection {
                id,
                address: address.to_owned(),
                endpoint: endpoint.clone(),
                queue: Arc::clone(&queue),
                events: self.events.clone(),
                delay_max: self.config.reconnect_delay_max,
            };
            let peer = Peer {
                address: address.to_owned(),
                queue,
                channel: {
                    let _on_runtime = self.runtime.enter(); // The channel starts a task of its own.
                    transport::connect_lazily(&endpoint)
                },
                stream_task: self.spawn(&mut state.tasks, connection.keep()),
                snapshot_task: None,
                snapshot_failures: Failures::default(),
            };
            state.peers.insert(id, peer);
        }
    }
}

/// The loop that listens may have ended: then nobody needs the event any more.
pub(crate) fn send_event(events: &Events, event: PeerEvent) {
    if let Err(event) = events.send(event) {
        debug!(event = ?event.0, "nobody listens any more");
    }
}

/// What a batch says besides its messages.
#[derive(Clone)]
pub(crate) struct Introduction {
    pub(crate) header: proto::Header,
    pub(crate) sender: proto::Sender,
    pub(crate) receiver: proto::Receiver,
}

/// The messages that wait for one peer's stream, which takes them out itself: no task stands between.
pub(crate) struct PeerQueue {
    peer: NodeId,
    messages_max: usize,
    bytes_max: u64,
    inner: Mutex<QueueInner>,
}

struct QueueInner {
    introduction: Introduction,
    waiting: Waiting,
    /// Whether a stream takes messages out, or will as soon as its connection is made. If not, they are dropped.
    open: bool,
    /// Which stream: a broken one must not take what the next one should send.
    generation: u64,
    /// How many were dropped since the queue was last emptied, because it was full.
    dropped: u64,
    waker: Option<Waker>,
}

impl PeerQueue {
    fn new(peer: NodeId, introduction: Introduction, config: &CheckedConfig) -> PeerQueue {
        let inner = QueueInner {
            introduction,
            waiting: Waiting::default(),
            open: true,
            generation: 0,
            dropped: 0,
            waker: None,
        };
        let (messages_max, bytes_max) = (config.peer_queue_max, config.peer_queue_bytes_max);
        PeerQueue { peer, messages_max, bytes_max, inner: Mutex::new(inner) }
    }

    pub(crate) fn introduction(&self) -> Introduction {
        lock(&self.inner).introduction.clone()
    }

    fn introduce(&self, introduction: Introduction) {
        lock(&self.inner).introduction = introduction;
    }

    fn push(&self, messages: impl Iterator<Item = RaftMessage>) {
        let mut inner = lock(&self.inner);
        if !inner.open {
            messages.for_each(drop);
            return;
        }
        for message in messages {
            if inner.waiting.has_room(&message, self.messages_max, self.bytes_max) {
                inner.waiting.push_back(message);
                continue;
            }
            if inner.dropped == 0 {
                warn!(
                    peer = %self.peer,
                    waiting = inner.waiting.messages.len(),
                    bytes = inner.waiting.bytes,
                    "the peer takes messages too slowly: its queue is full, and further messages are dropped"
                );
            }
            inner.dropped += 1;
        }
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// For the next stream.
    fn open(self: &Arc<Self>) -> Batches {
        let mut inner = lock(&self.inner);
        inner.open = true;
        inner.generation += 1;
        Batches { queue: Arc::clone(self), generation: inner.generation }
    }

    fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.open = false;
        inner.generation += 1;
        inner.waiting = Waiting::default();
        inner.dropped = 0;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }
}

/// Everything that has queued up, batch by batch.
struct Batches {
    queue: Arc<PeerQueue>,
    generation: u64,
}

impl Stream for Batches {
    type Item = proto::MessageBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<proto::MessageBatch>> {
        let mut inner = lock(&self.queue.inner);
        if inner.generation != self.generation {
            return Poll::Ready(None);
        }
        if inner.waiting.messages.is_empty() {
            inner.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let batch = inner.waiting.gather();
        if inner.waiting.messages.is_empty() && inner.dropped > 0 {
            info!(peer = %self.queue.peer, dropped = inner.dropped, "the peer takes messages again");
            inner.dropped = 0;
        }
        let Introduction { header, sender, receiver } = inner.introduction.clone();
        drop(inner);
        let messages = batch.into_iter().map(wire::message_to_wire).collect();
        let batch = proto::MessageBatch {
            header: Some(header),
            sender: Some(sender),
            receiver: Some(receiver),
            messages,
        };
        Poll::Ready(Some(batch))
    }
}

/// Messages in order, and how many bytes they have at most.
#[derive(Default)]
struct Waiting {
    messages: VecDeque<RaftMessage>,
    bytes: u64,
}

impl Waiting {
    fn has_room(&self, message: &RaftMessage, messages_max: usize, bytes_max: u64) -> bool {
        let bytes = self.bytes + wire::message_bytes_max(message);
        self.messages.is_empty() || (self.messages.len() < messages_max && bytes <= bytes_max)
    }

    fn push_back(&mut self, message: RaftMessage) {
        self.bytes += wire::message_bytes_max(&message);
        self.messages.push_back(message);
    }

    /// Takes as many messages as one batch may hold; at least one. A message that is too large for any batch is split.
    fn gather(&mut self) -> Vec<RaftMessage> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(message) = self.messages.pop_front() {
            let message_bytes = wire::message_bytes_max(&message);
            if bytes + message_bytes <= wire::BATCH_BYTES || raftify_core::mutated!(BatchHasNoLimit) {
                bytes += message_bytes;
                self.bytes -= message_bytes;
                batch.push(message);
                continue;
            }
            if !batch.is_empty() {
                self.messages.push_front(message);
                break;
            }
            let (first, rest) = wire::split_large(message);
            batch.push(first);
            self.bytes -= message_bytes;
            if let Some(rest) = rest {
                self.bytes += wire::message_bytes_max(&rest);
                self.messages.push_front(rest);
            }
            break;
        }
        batch
    }
}

/// Keeps the stream to one peer up.
struct PeerConnection {
    id: NodeId,
    address: String,
    endpoint: Endpoint,
    queue: Arc<PeerQueue>,
    events: Events,
    delay_max: Duration,
}

impl PeerConnection {
    async fn keep(self) {
        let mut delay = FIRST_RECONNECT_DELAY.min(self.delay_max);
        // Reported when it breaks, or when the first attempt fails, not again with every further attempt.
        let mut reported = false;
        let mut last_reason = String::new();
        loop {
            let batches = self.queue.open();
            let broken = match transport::connect(&self.endpoint).await {
                Ok(channel) => {
                    debug!(peer = %self.id, address = self.address, "connected");
                    reported = false;
                    let since = Instant::now();
                    let ended = remote_node::service(channel).stream_messages(batches).await;
                    if since.elapsed() > self.delay_max {
                        delay = FIRST_RECONNECT_DELAY.min(self.delay_max);
                        last_reason.clear();
                    }
                    ended.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream"))
                }
                Err(error) => Status::from_error(Box::new(error)),
            };
            self.queue.close();
            let reason = remote_node::describe(&broken);
            if reason != last_reason {
                warn!(peer = %self.id, address = self.address, reason, "no connection to the peer");
                last_reason = reason;
            }
            if !reported {
                reported = true;
                send_event(&self.events, PeerEvent::Unreachable(self.id));
            }
            sleep(self.pause(&broken).max(delay)).await;
            delay = (delay * 2).min(self.delay_max);
        }
    }

    /// What a peer's refusal adds to the pause.
    fn pause(&self, broken: &Status) -> Duration {
        match DoorRefusal::from_status(broken) {
            None | Some(DoorRefusal::NoCluster { .. } | DoorRefusal::Stopped(_)) => Duration::ZERO,
            Some(DoorRefusal::Sender(refusal)) => {
                send_event(&self.events, PeerEvent::RefusedBy { by: self.id, refusal });
                REFUSED_DELAY
            }
            Some(_) => REFUSED_DELAY,
        }
    }
}

/// Why a request did not leave.
enum Unsent {
    UnknownPeer(NodeId),
    Busy(u64),
}

impl Unsent {
    fn into_error<E: VerbError>(self) -> E {
        match self {
            Unsent::UnknownPeer(id) => E::not_sent(format!("node {id} is not known here")),
            Unsent::Busy(waiting) => E::busy(waiting),
        }
    }
}

fn refuse_request<R: ProposalReply>(request: LeaderRequest<R>, why: Unsent) {
    match request {
        LeaderRequest::Propose { reply, .. } => reply.refuse(why.into_error()),
        LeaderRequest::ChangeMembership { reply, .. } => reply.answer(Err(why.into_error())),
        LeaderRequest::ReserveNodeId { reply } => reply.answer(Err(why.into_error())),
        LeaderRequest::TransferLeader { reply, .. } => reply.answer(Err(why.into_error())),
    }
}

async fn pass_on<R: RemoteReply>(node: RemoteNode, forward: Forward<R>, config: &CheckedConfig) {
    let once = Forwarding::Never;
    match forward.request {
        LeaderRequest::Propose { payload, reply } => {
            match node.propose(payload, once, config.propose_timeout).await {
                Ok(encoded) => reply.deliver(encoded),
                Err(error) => reply.refuse(told(forward.to, error)),
            }
        }
        LeaderRequest::ChangeMembership { request, reply } => {
            let answer = node.change_membership(&request, once, config.membership_timeout).await;
            reply.answer(answer.map_err(|error| told(forward.to, error)));
        }
        LeaderRequest::ReserveNodeId { reply } => {
            let answer = node.reserve_node_id(once, config.membership_timeout).await;
            reply.answer(answer.map(|(_, reservation)| reservation).map_err(|error| told(forward.to, error)));
        }
        LeaderRequest::TransferLeader { to, reply } => {
            let answer = node.transfer_leader(to, once, config.membership_timeout).await;
            reply.answer(answer.map_err(|error| told(forward.to, error)));
        }
    }
}

/// The verb's error has no place for why a node was not reached or did not listen: it is logged.
fn told<E: VerbError + std::fmt::Debug>(to: NodeId, error: CallError<E>) -> E {
    debug!(peer = %to, ?error, "a request for the leader failed");
    let error = error.into_verb_error();
    match error.stopped() {
        // Passed on as it is, it would say that this node has stopped.
        Some(reason) => E::lost(format!("node {to}: {reason}")),
        None => error,
    }
}
