//! The gRPC service: what other nodes and remote clients ask comes in here.
//!
//! It translates and checks at the door (version, group, cluster, receiver, sender, form) and decides nothing: what
//! passes goes into the raft loop's bounded queue, and the answer back to who asked. Streams of messages wait for room
//! in the queue, so that a busy node slows its peers down; single requests are answered `Busy` instead. Incoming
//! snapshots go chunk by chunk into the snapshot store and reach the loop when they are whole and durable.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use raftify_core::error::{
    InstallError, MembershipError, ProposeError, ReadError, StopReason, TransferError, UnknownOutcome,
};
use raftify_core::members::{MembershipRefusal, SenderRefusal};
use raftify_core::{
    CheckedConfig, ClusterId, Forwarding, Incarnation, Inspection, LeaderRequest, Members, MembershipRequest,
    ProposalReply, Remembered, Responder, Sender, ServerRequestMsg, SnapshotDigest, SnapshotMeta,
    SnapshotStore, Status as NodeStatus, Term,
};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::begin::EarlierLife;
use crate::connections::{ConnectionId, Connections};
use crate::identification::{Identification, Plan};
use crate::in_flight::InFlight;
use crate::outbox::Outbox;
use crate::probe::check_added_addresses;
use crate::remote_node::{
    CONNECTION_WINDOW_BYTES, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW_BYTES, with_sources,
};
use crate::reply::dropped;
use crate::request_queue::{Refused, RequestSender};
use crate::severable::Severable;
use crate::snapshot_receiver::{Incoming, NotReceived, SnapshotReceiver};
use crate::transport::Listener;
use crate::wire::proto::raft_service_server::{RaftService, RaftServiceServer};
use crate::wire::{self, DoorRefusal, VerbError, proto};
use crate::worker::Blocking;

/// After its deadline the core answers by itself; this much later the door answers in its place.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// How long open connections may take to end when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How many requests may be under way on one connection; a client keeps further ones back.
const STREAMS_MAX: u32 = 1024;

/// Of those that their client has reset, so many may wait to be looked at: no more than there may be requests. A client
/// that opens and resets without an end loses its connection, which nodes and clients of this crate never do: they let
/// calls that were given up run to their end.
const RESET_STREAMS_MAX: usize = STREAMS_MAX as usize;

/// A client that sends so often what makes no sense on its stream loses its connection.
const LOCAL_ERROR_RESETS_MAX: usize = 1024;

/// What the server works with.
pub(crate) struct Door<R, S> {
    /// The raft loop's queue.
    pub(crate) requests: RequestSender<ServerRequestMsg<R>>,
    /// Who this node is and whom it believes.
    pub(crate) status: watch::Receiver<NodeStatus>,
    /// What is known of the starts of other nodes.
    pub(crate) remembered: watch::Receiver<Arc<Remembered>>,
    /// Where incoming snapshots are put.
    pub(crate) snapshots: S,
    /// How many bytes are there of the snapshot that was begun last.
    pub(crate) snapshot_bytes_received: Arc<AtomicU64>,
    /// Limits and times.
    pub(crate) config: CheckedConfig,
    /// Where the others reach this node.
    pub(crate) address: Arc<str>,
    /// What this node waits to begin a cluster with.
    pub(crate) plan: watch::Receiver<Option<Plan>>,
    /// Takes what a member says of this node while it waits for that.
    pub(crate) earlier_life: watch::Sender<Option<EarlierLife>>,
    /// Told of senders that are not members yet.
    pub(crate) outbox: Outbox,
    /// Where incoming snapshots are written.
    pub(crate) blocking: Blocking,
    /// Makes the way back for a proposal that came over the network: the reply in its encoding.
    pub(crate) remote_reply: fn(oneshot::Sender<Result<Bytes, ProposeError>>) -> R,
    /// Why an entry that came over the network must not get into the log: see
    /// [`check_encoded`](crate::log_entry::check_encoded).
    pub(crate) check_entry: fn(&[u8]) -> Result<(), String>,
}

/// Serves until `shutdown` resolves; then takes no more connections, ends open streams, lets single requests be
/// answered. A connection that has not ended after [`SHUTDOWN_GRACE`], because its other end hangs, is severed. When this
/// returns, or is dropped, no connection keeps anything of the node.
///
/// # Errors
/// If the listener cannot be used any more.
pub(crate) async fn serve<R: ProposalReply, S: SnapshotStore>(
    listener: Listener,
    door: Door<R, S>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let connections = Arc::new(Connections::new(listener.connections_max()));
    let accepting = Arc::clone(&connections);
    let incoming = listener.incoming()?.filter_map(move |stream| {
        ready(stream.map(|stream| Some(Severable::new(stream, accepting.accept()?))).transpose())
    });
    let (close, closing) = watch::channel(false);
    let (stopped, mut stopping) = oneshot::channel();
    let snapshots = SnapshotReceiver::new(
        door.snapshots.clone(),
        door.blocking.clone(),
        door.config.snapshot_chunk_timeout,
        Arc::clone(&door.snapshot_bytes_received),
    );
    let snapshots = Arc::new(snapshots);
    let proposals = InFlight::new(&door.config);
    let service = Service { door: Arc::new(door), closing, snapshots: Arc::clone(&snapshots), proposals };
    let service = RaftServiceServer::new(service).max_decoding_message_size(wire::RECEIVE_BYTES_LIMIT);
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS_MAX))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move {
            shutdown.await;
            close.send_replace(true);
            // The receiver is only gone when serving has ended anyway.
            let _ = stopped.send(());
        });
    tokio::pin!(serving);
    let ended = tokio::select! {
        biased;
        ended = &mut serving => ended,
        never = snapshots.close_unused() => match never {},
        _ = &mut stopping => match timeout(SHUTDOWN_GRACE, &mut serving).await {
            Ok(ended) => ended,
            Err(_) => {
                debug!("connections are severed that their other ends do not close");
                connections.sever();
                timeout(SHUTDOWN_GRACE, &mut serving).await.unwrap_or(Ok(()))
            }
        },
    };
    ended.map_err(|error| io::Error::other(with_sources(&error)))
}

struct Service<R, S: SnapshotStore> {
    door: Arc<Door<R, S>>,
    closing: watch::Receiver<bool>,
    snapshots: Arc<SnapshotReceiver<S>>,
    /// Those that came over the network.
    proposals: Arc<InFlight>,
}

impl<R, S: SnapshotStore> Clone for Service<R, S> {
    fn clone(&self) -> Self {
        Service {
            door: Arc::clone(&self.door),
            closing: self.closing.clone(),
            snapshots: Arc::clone(&self.snapshots),
            proposals: Arc::clone(&self.proposals),
        }
    }
}

/// Who sent something that passed the door.
struct Admitted {
    cluster_id: ClusterId,
    sender: Sender,
    receiver: Option<Incarnation>,
}

impl<R: ProposalReply, S: SnapshotStore> Service<R, S> {
    /// May this sender speak to this node? For messages of consensus and snapshots.
    fn admit(
        &self,
        header: Option<&proto::Header>,
        sender: Option<proto::Sender>,
        receiver: Option<proto::Receiver>,
    ) -> Result<Admitted, DoorRefusal> {
        let found = wire::check_header(header)?.ok_or(wire::WireError::Missing { what: "the cluster id" })?;
        let (sender, address) = wire::sender_from_wire(sender)?;
        let (receiver, receiver_incarnation) = wire::receiver_from_wire(receiver)?;

        let status = self.door.status.borrow();
        let node = status.node_id;
        let Some(identity) = status.identity else {
            if receiver == node
                && let Some(incarnation) = receiver_incarnation
            {
                self.hear_of_earlier_life(found, incarnation, address);
            }
            return Err(DoorRefusal::NoCluster { node });
        };
        if found != identity.cluster_id {
            if receiver == node
                && let Some(incarnation) = receiver_incarnation
                && incarnation != identity.incarnation
            {
                // As below, if there is no room.
                let _ = self.door.requests.try_send(ServerRequestMsg::KnownElsewhere { incarnation });
            }
            return Err(DoorRefusal::OtherCluster { node, found, own: identity.cluster_id });
        }
        if receiver != node {
            return Err(DoorRefusal::OtherNode { meant: receiver, own: node });
        }
        if let Err(refusal) = status.members.check_sender(&sender, receiver_incarnation, &identity) {
            if let SenderRefusal::OtherReceiver { .. } = refusal {
                // The core has to know that this node is not the one that the cluster knows.
                self.tell_core(&sender, receiver_incarnation);
            }
            return Err(refusal.into());
        }
        self.check_started(&status.members, &sender, receiver_incarnation)?;
        let is_at_its_place = status.members.get(sender.id).is_some_and(|member| member.address == address);
        drop(status);
        if !is_at_its_place && self.door.outbox.hear_of(&sender, &address) {
            // If there is no room in the queue now, there is when it is told again.
            let _ = self.door.requests.try_send(ServerRequestMsg::Announced { sender, address });
        }
        Ok(Admitted { cluster_id: found, sender, receiver: receiver_incarnation })
    }

    /// Of who is no member, nothing is remembered. Of who has forgotten something, the core has to know as well: a copy of a
    /// directory may run beside the original.
    fn check_started(
        &self,
        members: &Members,
        sender: &Sender,
        receiver: Option<Incarnation>,
    ) -> Result<(), SenderRefusal> {
        if members.get(sender.id).is_none() {
            return Ok(());
        }
        let checked = self.door.remembered.borrow().check(sender);
        if checked.is_err() {
            self.tell_core(sender, receiver);
        }
        checked
    }

    /// Lets the core refuse a sender as well. If there is no room in the queue now, there is when the sender tries again.
    fn tell_core(&self, sender: &Sender, receiver: Option<Incarnation>) {
        let news = ServerRequestMsg::RaftMessages { sender: *sender, receiver, messages: Vec::new() };
        let _ = self.door.requests.try_send(news);
    }

    /// Whether this node knows nothing that speaks against who asks. A member that has forgotten what it told is refused; to
    /// all others, their messages will be answered.
    fn agrees_with(&self, request: proto::IdentifyRequest) -> Result<bool, DoorRefusal> {
        let found = wire::check_header(request.header.as_ref())?;
        let (Some(sender), Some(receiver)) = (request.sender, request.receiver) else {
            return Ok(false);
        };
        let (sender, _) = wire::sender_from_wire(Some(sender))?;
        let (receiver, incarnation) = wire::receiver_from_wire(Some(receiver))?;
        let status = self.door.status.borrow();
        let Some(identity) = status.identity.filter(|identity| found == Some(identity.cluster_id)) else {
            return Ok(false);
        };
        if sender.id == identity.node_id && sender.incarnation == identity.incarnation {
            // A copy of this node's directory asks for its original.
            self.tell_core(&sender, incarnation);
        }
        if receiver != status.node_id || status.members.check_sender(&sender, incarnation, &identity).is_err()
        {
            return Ok(false);
        }
        self.check_started(&status.members, &sender, incarnation)?;
        Ok(true)
    }

    /// A member of a cluster knows this node, which waits to begin one. If that is the cluster of its list, it began long ago.
    fn hear_of_earlier_life(&self, cluster: ClusterId, incarnation: Incarnation, teller: String) {
        let plan = self.door.plan.borrow();
        if plan.as_ref().is_some_and(|plan| plan.members.derive_cluster_id() == cluster) {
            self.door.earlier_life.send_replace(Some(EarlierLife { incarnation, teller }));
        }
    }

    /// Is this request meant for this cluster? For single requests, which anybody may make who knows the address, and
    /// who may not know the cluster's id.
    fn admit_request(&self, header: Option<&proto::Header>) -> Result<(), DoorRefusal> {
        let named = wire::check_header(header)?;
        let status = self.door.status.borrow();
        match (named, status.identity) {
            (Some(found), Some(identity)) if found != identity.cluster_id => {
                Err(DoorRefusal::OtherCluster { node: status.node_id, found, own: identity.cluster_id })
            }
            (Some(_), None) => Err(DoorRefusal::NoCluster { node: status.node_id }),
            _ => Ok(()),
        }
    }

    fn header(&self) -> Option<proto::Header> {
        let status = self.door.status.borrow();
        let cluster_id = status.identity.map(|identity| identity.cluster_id);
        let members_as_of = Some(status.members.as_of().0);
        Some(proto::Header { members_as_of, ..wire::header(cluster_id) })
    }

    /// Puts a request into the loop's queue and waits for its answer.
    async fn ask<T, E, A>(
        &self,
        deadline: Duration,
        request: impl FnOnce(Responder<T, E>) -> ServerRequestMsg<R>,
    ) -> Result<Result<T, A>, DoorRefusal>
    where
        T: Send + 'static,
        E: From<StopReason> + Into<A> + Send + 'static,
        A: VerbError,
    {
        let (answered, answer) = oneshot::channel();
        self.enqueue_and_wait(request(responder(answered)), deadline, async {
            answer.await.unwrap_or_else(|_| Err(StopReason::Stopped.into())).map_err(Into::into)
        })
        .await
    }

    /// A queue that is closed takes nothing: that is refused at the door, and another node may be asked. From a node that
    /// has taken the request, the same reason would mean that the outcome is unknown.
    async fn enqueue_and_wait<T, A: VerbError>(
        &self,
        request: ServerRequestMsg<R>,
        deadline: Duration,
        answer: impl Future<Output = Result<T, A>>,
    ) -> Result<Result<T, A>, DoorRefusal> {
        match self.door.requests.try_send(request) {
            Ok(()) => {
                let answer = timeout(deadline + ANSWER_GRACE, answer).await;
                Ok(answer.unwrap_or_else(|_| Err(A::timed_out(deadline))))
            }
            Err(Refused::Full { waiting, .. }) => Ok(Err(A::busy(waiting))),
            Err(Refused::Closed) => Err(DoorRefusal::Stopped(StopReason::Stopped)),
        }
    }

    async fn propose_here(
        &self,
        payload: Bytes,
        forwarding: Forwarding,
    ) -> Result<Result<Bytes, ProposeError>, DoorRefusal> {
        let place = self.proposals.enter().and_then(|mut place| {
            place.holds(payload.len() as u64)?;
            Ok(place)
        });
        let _place = match place {
            Ok(place) => place,
            Err(waiting) => return Ok(Err(ProposeError::Busy { waiting })),
        };
        if let Err(reason) = (self.door.check_entry)(&payload) {
            return Ok(Err(ProposeError::Undecodable(reason)));
        }
        let payload = wire::owned(payload);
        let (answered, answer) = oneshot::channel();
        let request = LeaderRequest::Propose { payload, reply: (self.door.remote_reply)(answered) };
        let request = ServerRequestMsg::ForLeader { request, forwarding };
        let answer = async { answer.await.unwrap_or_else(|_| Err(dropped())) };
        Ok(self
            .enqueue_and_wait(request, self.door.config.propose_timeout, answer)
            .await?
            .and_then(small_enough))
    }

    /// Whether another member answers at the address of a node that is to be added.
    async fn check_added_addresses(
        &self,
        request: &MembershipRequest,
    ) -> Result<Result<(), MembershipRefusal>, Status> {
        let status = self.door.status.borrow().clone();
        let cluster = status.identity.map(|identity| identity.cluster_id);
        tokio::select! {
            biased;
            () = self.closed() => Err(DoorRefusal::Stopped(StopReason::Stopped).into()),
            checked = check_added_addresses(&request.command, &status.members, cluster) => Ok(checked),
        }
    }

    /// The next message of a stream, or a reason why there will be none.
    async fn next<M>(&self, stream: &mut Streaming<M>) -> Result<Option<M>, Status> {
        tokio::select! {
            // First: a stream that never pauses must not keep the server open.
            biased;
            () = self.closed() => Err(DoorRefusal::Stopped(StopReason::Stopped).into()),
            message = stream.message() => message,
        }
    }

    async fn closed(&self) {
        // An error means that the server is gone altogether.
        let _ = self.closing.clone().wait_for(|closing| *closing).await;
    }

    /// Reads the head of a snapshot, and begins to take it in.
    async fn begin_snapshot(
        &self,
        stream: &mut Streaming<proto::SnapshotChunk>,
    ) -> Result<IncomingSnapshot<S>, Status> {
        use proto::snapshot_chunk::Part;
        let head = match self.next_chunk(stream).await? {
            Some(Part::Head(head)) => head,
            _ => return Err(malformed("a snapshot must begin with its head")),
        };
        let admitted = self.admit(head.header.as_ref(), head.sender, head.receiver)?;
        let term = wire::nonzero_term("the leader's term", head.term).map_err(DoorRefusal::from)?;
        let snapshot = wire::snapshot_from_wire(admitted.cluster_id, head.position, &head.members)
            .map_err(DoorRefusal::from)?;
        let digest = SnapshotDigest { data_bytes: head.data_bytes, crc32c: head.data_crc32c };
        let position = snapshot.position;
        if self.door.status.borrow().commit >= position.index {
            // What it holds is here, and known to be committed: an earlier call may have broken off after its end.
            return Ok(IncomingSnapshot::Answered(Ok(())));
        }
        let begun = tokio::select! {
            biased;
            begun = self.snapshots.begin(term, snapshot, digest) => begun,
            () = self.closed() => return Err(DoorRefusal::Stopped(StopReason::Stopped).into()),
        };
        let incoming = match begun {
            Ok(incoming) => incoming,
            Err(NotReceived::Status(status)) => return Err(status),
            Err(NotReceived::Refused(error)) => return Ok(IncomingSnapshot::Answered(Err(error))),
        };
        let (peer, begin_at) = (admitted.sender.id, incoming.begin_at());
        info!(%peer, %position, begin_at, bytes = digest.data_bytes, "receiving a snapshot");
        Ok(IncomingSnapshot::Begun { incoming, admitted, term })
    }

    /// Takes in the data of a snapshot, and has it installed.
    async fn complete_snapshot(
        &self,
        incoming: Incoming<S>,
        Admitted { sender, receiver, .. }: Admitted,
        term: Term,
        mut stream: Streaming<proto::SnapshotChunk>,
    ) -> Result<Result<(), InstallError>, Status> {
        let snapshot = match self.receive_data(incoming, &mut stream).await {
            Ok(snapshot) => snapshot,
            Err(NotReceived::Status(status)) => return Err(status),
            Err(NotReceived::Refused(error)) => return Ok(Err(error)),
        };
        let (answered, answer) = oneshot::channel();
        let reply = responder(answered);
        let install = ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply };
        tokio::select! {
            biased;
            queued = self.door.requests.send(install) => {
                queued.map_err(|_| DoorRefusal::Stopped(StopReason::Stopped))?;
            }
            () = self.closed() => return Err(DoorRefusal::Stopped(StopReason::Stopped).into()),
        }
        Ok(answer.await.unwrap_or(Err(InstallError::Stopped(StopReason::Stopped))))
    }

    async fn receive_data(
        &self,
        mut incoming: Incoming<S>,
        stream: &mut Streaming<proto::SnapshotChunk>,
    ) -> Result<SnapshotMeta, NotReceived> {
        use proto::snapshot_chunk::Part;
        loop {
            let part = tokio::select! {
                biased;
                ended = incoming.ended() => return Err(ended),
                part = self.next_chunk(stream) => part?,
            };
            match part {
                Some(Part::Data(data)) => incoming.write(data).await?,
                Some(Part::Head(_)) => {
                    return Err(malformed("a second head in the middle of a snapshot").into());
                }
                None => return incoming.finish().await,
            }
        }
    }

    fn snapshot_reply(&self, answer: proto::install_snapshot_reply::Answer) -> proto::InstallSnapshotReply {
        proto::InstallSnapshotReply { header: self.header(), answer: Some(answer) }
    }

    /// The next part, if it comes in time: a sender that hangs must not keep others from sending.
    async fn next_chunk(
        &self,
        stream: &mut Streaming<proto::SnapshotChunk>,
    ) -> Result<Option<proto::snapshot_chunk::Part>, Status> {
        let patience = self.door.config.snapshot_chunk_timeout;
        match timeout(patience, self.next(stream)).await {
            Ok(chunk) => match chunk? {
                Some(proto::SnapshotChunk { part: Some(part) }) => Ok(Some(part)),
                Some(proto::SnapshotChunk { part: None }) => Err(malformed("an empty chunk")),
                None => Ok(None),
            },
            Err(_) => {
                Err(Status::deadline_exceeded(format!("no chunk of the snapshot came within {patience:?}")))
            }
        }
    }
}

enum IncomingSnapshot<S: SnapshotStore> {
    Begun {
        incoming: Incoming<S>,
        admitted: Admitted,
        term: Term,
    },
    /// Nothing of it is taken in: it is here already, or refused.
    Answered(Result<(), InstallError>),
}

fn installed(outcome: Result<(), InstallError>) -> proto::install_snapshot_reply::Answer {
    use proto::install_snapshot_reply::Answer;
    match outcome {
        Ok(()) => Answer::Installed(proto::SnapshotInstalled {}),
        Err(error) => Answer::Refusal(wire::refusal_to_wire(&error)),
    }
}

fn responder<T: Send + 'static, E: From<StopReason> + Send + 'static>(
    answered: oneshot::Sender<Result<T, E>>,
) -> Responder<T, E> {
    Responder::new(move |answer| {
        // Who asked may be gone; then nobody needs the answer.
        let _ = answered.send(answer);
    })
}

/// A reply that a message has room for.
fn small_enough(reply: Bytes) -> Result<Bytes, ProposeError> {
    let limit = wire::RECEIVE_BYTES_LIMIT - 1024;
    if reply.len() > limit {
        let reason = format!("it has {} bytes, over the network it may have {limit}", reply.len());
        return Err(ProposeError::Unknown(UnknownOutcome::BadReply(reason)));
    }
    Ok(reply)
}

fn malformed(reason: impl Into<String>) -> Status {
    DoorRefusal::Malformed(reason.into()).into()
}

fn forwarding(forwarded: bool, header: Option<&proto::Header>) -> Forwarding {
    match header {
        _ if forwarded => Forwarding::Never,
        Some(header) if header.without_waiting => Forwarding::IfLeaderIsKnown,
        _ => Forwarding::Allowed,
    }
}

#[tonic::async_trait]
impl<R: ProposalReply, S: SnapshotStore> RaftService for Service<R, S> {
    async fn stream_messages(
        &self,
        request: Request<Streaming<proto::MessageBatch>>,
    ) -> Result<Response<proto::StreamMessagesReply>, Status> {
        let mut connection = ConnectionId::of(&request);
        let mut stream = request.into_inner();
        while let Some(batch) = self.next(&mut stream).await? {
            let Admitted { sender, receiver, .. } =
                self.admit(batch.header.as_ref(), batch.sender, batch.receiver)?;
            if let Some(connection) = connection.take() {
                connection.is_members();
            }
            let own_id = self.door.status.borrow().node_id;
            let messages: Result<Vec<_>, _> = batch
                .messages
                .into_iter()
                .map(|message| wire::message_from_wire(message, sender.id, own_id))
                .collect();
            let messages = messages.map_err(DoorRefusal::from)?;
            let queued = tokio::select! {
                biased;
                queued = self.door.requests.send(ServerRequestMsg::RaftMessages { sender, receiver, messages }) => queued,
                () = self.closed() => return Err(DoorRefusal::Stopped(StopReason::Stopped).into()),
            };
            queued.map_err(|_| DoorRefusal::Stopped(StopReason::Stopped))?;
        }
        Ok(Response::new(proto::StreamMessagesReply { header: self.header() }))
    }

    type InstallSnapshotStream = BoxStream<'static, Result<proto::InstallSnapshotReply, Status>>;

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        use proto::install_snapshot_reply::Answer;
        let connection = ConnectionId::of(&request);
        let mut chunks = request.into_inner();
        let (incoming, admitted, term) = match self.begin_snapshot(&mut chunks).await? {
            IncomingSnapshot::Begun { incoming, admitted, term } => (incoming, admitted, term),
            IncomingSnapshot::Answered(outcome) => {
                let only = self.snapshot_reply(installed(outcome));
                return Ok(Response::new(stream::once(ready(Ok(only))).boxed()));
            }
        };
        if let Some(connection) = connection {
            connection.is_members();
        }
        let first = self.snapshot_reply(Answer::BeginAt(incoming.begin_at()));
        let service = self.clone();
        // Driven by the connection that takes the answers, and dropped with it.
        let last = async move {
            let outcome = service.complete_snapshot(incoming, admitted, term, chunks).await?;
            Ok(service.snapshot_reply(installed(outcome)))
        };
        Ok(Response::new(stream::iter([Ok(first)]).chain(stream::once(last)).boxed()))
    }

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        use proto::propose_reply::Outcome;
        let connection = ConnectionId::of(&request);
        let request = request.into_inner();
        self.admit_request(request.header.as_ref())?;
        if let (true, Some(connection)) = (request.forwarded, connection) {
            connection.is_members();
        }
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let outcome = match self.propose_here(request.payload, forwarding).await? {
            Ok(reply) => Outcome::Reply(reply),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ProposeReply { header: self.header(), outcome: Some(outcome) }))
    }

    async fn change_membership(
        &self,
        request: Request<proto::ChangeMembershipRequest>,
    ) -> Result<Response<proto::ChangeMembershipReply>, Status> {
        use proto::change_membership_reply::Outcome;
        let request = request.into_inner();
        self.admit_request(request.header.as_ref())?;
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let request = MembershipRequest::decode(&request.request).map_err(wire::WireError::from);
        let request = request.map_err(DoorRefusal::from)?;
        // The node that has forwarded it has looked already.
        let checked = match forwarding {
            Forwarding::Allowed | Forwarding::IfLeaderIsKnown => self.check_added_addresses(&request).await?,
            Forwarding::Never => Ok(()),
        };
        let changed = match checked {
            Err(refusal) => Err(MembershipError::Refused(refusal)),
            Ok(()) => {
                let ask = |reply| {
                    let request = LeaderRequest::ChangeMembership { request, reply };
                    ServerRequestMsg::ForLeader { request, forwarding }
                };
                self.ask::<_, MembershipError, MembershipError>(self.door.config.membership_timeout, ask)
                    .await?
            }
        };
        let outcome = match changed {
            Ok(members) => Outcome::Members(members.encode()),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ChangeMembershipReply { header: self.header(), outcome: Some(outcome) }))
    }

    async fn reserve_node_id(
        &self,
        request: Request<proto::ReserveNodeIdRequest>,
    ) -> Result<Response<proto::ReserveNodeIdReply>, Status> {
        use proto::reserve_node_id_reply::Outcome;
        let request = request.into_inner();
        self.admit_request(request.header.as_ref())?;
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let reserved =
            self.ask::<_, MembershipError, MembershipError>(self.door.config.membership_timeout, |reply| {
                let request = LeaderRequest::ReserveNodeId { reply };
                ServerRequestMsg::ForLeader { request, forwarding }
            });
        let outcome = match reserved.await? {
            Ok(reservation) => Outcome::Reservation(wire::reservation_to_wire(&reservation)),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ReserveNodeIdReply { header: self.header(), outcome: Some(outcome) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderReply>, Status> {
        use proto::transfer_leader_reply::Outcome;
        let request = request.into_inner();
        self.admit_request(request.header.as_ref())?;
        let to = request.to.map(|id| wire::node_id("the new leader's id", id)).transpose();
        let to = to.map_err(DoorRefusal::from)?;
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let transferred =
            self.ask::<_, TransferError, TransferError>(self.door.config.membership_timeout, |reply| {
                let request = LeaderRequest::TransferLeader { to, reply };
                ServerRequestMsg::ForLeader { request, forwarding }
            });
        let outcome = match transferred.await? {
            Ok(leader) => Outcome::Leader(leader.get()),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::TransferLeaderReply { header: self.header(), outcome: Some(outcome) }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        use proto::read_index_reply::Outcome;
        self.admit_request(request.into_inner().header.as_ref())?;
        let confirmed = self.ask::<_, ReadError, ReadError>(self.door.config.read_timeout, |reply| {
            ServerRequestMsg::ConfirmReadIndex { reply }
        });
        let outcome = match confirmed.await? {
            Ok(index) => Outcome::Index(index.0),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ReadIndexReply { header: self.header(), outcome: Some(outcome) }))
    }

    async fn inspect(
        &self,
        request: Request<proto::InspectRequest>,
    ) -> Result<Response<proto::InspectReply>, Status> {
        use proto::inspect_reply::Outcome;
        self.admit_request(request.into_inner().header.as_ref())?;
        let inspected = self
            .ask::<Inspection, StopReason, ReadError>(self.door.config.read_timeout, |reply| {
                ServerRequestMsg::Inspect { reply }
            });
        let outcome = match inspected.await? {
            Ok(inspection) => Outcome::Inspection(wire::encode_detail(&inspection)),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::InspectReply { header: self.header(), outcome: Some(outcome) }))
    }

    async fn identify(
        &self,
        request: Request<proto::IdentifyRequest>,
    ) -> Result<Response<proto::IdentifyReply>, Status> {
        let agrees = self.agrees_with(request.into_inner())?;
        let header = self.header();
        let status = self.door.status.borrow().clone();
        let identification = Identification {
            node_id: status.node_id,
            address: self.door.address.to_string(),
            identity: status.identity,
            members: Members::clone(&status.members),
            leader_id: status.leader_id,
            plan: self.door.plan.borrow().clone(),
            agrees,
        };
        Ok(Response::new(wire::identification_to_wire(header, identification)))
    }
}
