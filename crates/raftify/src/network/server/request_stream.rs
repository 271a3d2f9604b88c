//! The server's end of `StreamRequests`: many requests and replies over one call.
//!
//! A task for each call takes batches, serves their requests as single requests are served, and gathers the
//! replies; the connection takes all gathered replies whenever it has room for a message. The two are apart
//! so that a client that receives nothing delays only its own replies: proposals under way count, in the
//! limits of the node, only until they are answered.
//!
//! Bounds, for each call: the requests that are taken and whose reply the connection has not taken, by number
//! and by bytes. At the bound the task reads no further message, and HTTP/2 holds the client back.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use futures_util::Stream;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use raftify_core::error::{ProposeError, UnknownOutcome};
use raftify_core::{ProposalReply, SnapshotStore};
use tokio::task::{AbortHandle, unconstrained};
use tonic::{Request, Status, Streaming};

use crate::channels::server_counters::count;
use crate::network::server::connections::{ConnectionId, OpenStream};
use crate::network::server::service::Service;
use crate::runtime::yield_once::YieldOnce;
use crate::verbs::verb::{ServingNode, StreamedVerb};
use crate::verbs::{propose::Propose, read_index::ReadIndex};
use crate::wire::proto::streamed_reply::Outcome;
use crate::wire::proto::streamed_request::Verb;
use crate::wire::{self, RequestRejected, proto};

/// How many requests of one call may be unanswered, or their replies not taken by the connection.
const REQUESTS_MAX: usize = 4096;

/// How many bytes of entries the unanswered requests of one call may have when a further message is read.
const ENTRY_BYTES_MAX: u64 = 64 << 20;

/// How many bytes of replies may wait for the connection when a further message is read.
const WAITING_BYTES_MAX: u64 = 8 << 20;

/// How many bytes of replies may wait for the connection at all. A single reply may have more.
const REPLY_BYTES_MAX: u64 = 256 << 20;

/// How many messages a task takes before it lets others run.
const MESSAGES_PER_TURN: usize = 16;

/// Begins to serve a call, once its first batch has passed validation.
pub(super) async fn open<R: ProposalReply, S: SnapshotStore>(
    service: &Service<R, S>,
    request: Request<Streaming<proto::RequestBatch>>,
) -> Result<ReplyStream, Status> {
    count(&service.context.counters.request_streams);
    let connection = ConnectionId::of(&request);
    let counted = match connection.as_ref().map(ConnectionId::open_stream) {
        Some(None) => {
            return Err(Status::resource_exhausted("too many calls of StreamRequests on one connection"));
        }
        counted => counted.flatten(),
    };
    let mut incoming = request.into_inner();
    let first = service.next(&mut incoming).await?;
    if let Some(first) = &first {
        check(first)?;
        service.admit(first.header.as_ref())?;
    }
    let outlet = Arc::new(Outlet::default());
    let serving = Serving {
        service: service.clone(),
        connection,
        outlet: EndedOutlet(Arc::clone(&outlet)),
        unanswered: HashSet::new(),
        entry_bytes: 0,
        _counted: counted,
    };
    let context = Arc::clone(&service.context);
    let task = service.streams.spawn(unconstrained(serving.run(first, incoming))).abort_handle();
    Ok(ReplyStream { outlet, header: Box::new(move || context.header()), pause: YieldOnce::default(), task })
}

/// A batch that is too long was not read completely: it is not known what else it requests.
fn check(batch: &proto::RequestBatch) -> Result<(), RequestRejected> {
    if batch.is_too_long {
        let limit = wire::batches::BATCH_REQUESTS_MAX;
        return Err(RequestRejected::Malformed(format!("a message may have {limit} requests, it has more")));
    }
    Ok(())
}

/// A reply to a request, which had this many bytes.
type Served = (proto::StreamedReply, u64);

/// The task of one call.
struct Serving<R, S: SnapshotStore> {
    service: Service<R, S>,
    connection: Option<ConnectionId>,
    outlet: EndedOutlet,
    /// The ids of the requests that are being served.
    unanswered: HashSet<u64>,
    /// Of these requests.
    entry_bytes: u64,
    _counted: Option<OpenStream>,
}

impl<R: ProposalReply, S: SnapshotStore> Serving<R, S> {
    /// Serves until the client closes its side, or the server stops, or the client breaks the rules. Then
    /// answers all requests that it has taken.
    async fn run(mut self, first: Option<proto::RequestBatch>, mut incoming: Streaming<proto::RequestBatch>) {
        let (service, connection) = (self.service.clone(), self.connection.clone());
        let mut serving = FuturesUnordered::new();
        let mut closed = pin!(service.closed());
        let mut has_ended = first.is_none();
        let mut next = first;
        let ended: Result<(), Status> = poll_fn(|context| {
            for _ in 0..MESSAGES_PER_TURN {
                if let Some(batch) = next.take() {
                    match self.take(batch) {
                        Ok(requests) => {
                            for request in requests {
                                serving.push(serve(&service, connection.as_ref(), request));
                            }
                        }
                        Err(refusal) => return Poll::Ready(Err(refusal.into())),
                    }
                }
                self.gather(&mut serving, context);
                if has_ended || closed.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Ok(()));
                }
                let is_full = serving.len() >= REQUESTS_MAX || self.entry_bytes >= ENTRY_BYTES_MAX;
                let is_full = is_full || !self.outlet.0.has_room(serving.len(), context);
                if is_full && !raftify_core::mutated!(StreamHasNoLimit) {
                    return Poll::Pending;
                }
                match ready!(incoming.poll_next_unpin(context)) {
                    Some(Ok(batch)) => next = Some(batch),
                    Some(Err(status)) => return Poll::Ready(Err(status)),
                    None => has_ended = true,
                }
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        poll_fn(|context| {
            self.gather(&mut serving, context);
            if serving.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.outlet.0.end(ended);
    }

    /// Validates a batch.
    fn take(&mut self, batch: proto::RequestBatch) -> Result<Vec<Admitted>, RequestRejected> {
        check(&batch)?;
        let header = batch.header.as_ref();
        let refusal = match self.service.admit(header) {
            Ok(()) => None,
            // The node serves another cluster than the client has found meanwhile.
            Err(refusal @ (RequestRejected::OtherCluster { .. } | RequestRejected::NoCluster { .. })) => {
                Some(refusal)
            }
            Err(refusal) => return Err(refusal),
        };
        let mut requests = Vec::with_capacity(batch.items.len());
        for request in batch.items {
            if !self.unanswered.insert(request.id) {
                let reason = format!("request {} is under way already", request.id);
                return Err(RequestRejected::Malformed(reason));
            }
            let bytes = match &request.verb {
                Some(Verb::Propose(payload)) => payload.len() as u64,
                _ => 0,
            };
            self.entry_bytes += bytes;
            requests.push(Admitted { request, bytes, refusal: refusal.clone() });
        }
        Ok(requests)
    }

    /// Passes the replies that are ready to the connection.
    fn gather(
        &mut self,
        serving: &mut FuturesUnordered<impl Future<Output = Served>>,
        context: &mut Context<'_>,
    ) {
        let mut replies = Vec::new();
        while let Poll::Ready(Some((reply, bytes))) = serving.poll_next_unpin(context) {
            self.unanswered.remove(&reply.id);
            self.entry_bytes -= bytes;
            replies.push(reply);
        }
        self.outlet.0.put(replies);
    }
}

/// A request of a batch.
struct Admitted {
    request: proto::StreamedRequest,
    bytes: u64,
    /// Why all requests of its batch are refused.
    refusal: Option<RequestRejected>,
}

async fn serve<R: ProposalReply, S: SnapshotStore>(
    service: &Service<R, S>,
    connection: Option<&ConnectionId>,
    Admitted { request, bytes, refusal }: Admitted,
) -> Served {
    let proto::StreamedRequest { id, verb, forwarded, without_waiting } = request;
    let as_asked = AsAsked { service, connection, forwarded, without_waiting };
    let outcome = match (refusal, verb) {
        (Some(refusal), _) => rejection(&refusal),
        (None, Some(Verb::Propose(payload))) => as_asked.serve(Propose { payload }).await,
        (None, Some(Verb::ReadIndex(_))) => as_asked.serve(ReadIndex).await,
        (None, None) => {
            rejection(&RequestRejected::Malformed("the request has no verb that is known here".to_owned()))
        }
    };
    (proto::StreamedReply { id, outcome: Some(outcome) }, bytes)
}

fn rejection(refusal: &RequestRejected) -> Outcome {
    Outcome::Rejection(wire::refusal_to_wire(refusal))
}

/// How a request asks to be served.
struct AsAsked<'a, R, S: SnapshotStore> {
    service: &'a Service<R, S>,
    connection: Option<&'a ConnectionId>,
    forwarded: bool,
    without_waiting: bool,
}

impl<R: ProposalReply, S: SnapshotStore> AsAsked<'_, R, S> {
    async fn serve<V: StreamedVerb>(self, verb: V) -> Outcome {
        let AsAsked { service, connection, forwarded, without_waiting } = self;
        count(V::COUNTER(&service.context.counters));
        match service.serve_admitted(connection, verb, forwarded, without_waiting).await {
            Ok(Ok(answer)) => V::to_outcome(answer),
            Ok(Err(error)) => Outcome::Refusal(wire::refusal_to_wire(&error)),
            Err(refusal) => rejection(&refusal),
        }
    }
}

/// The replies of a call that the connection has not taken.
#[derive(Default)]
struct Outlet(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    replies: VecDeque<proto::StreamedReply>,
    bytes: u64,
    stage: Stage,
    /// The connection waits for replies.
    connection: Option<Waker>,
    /// The task waits for room.
    task: Option<Waker>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Serving,
    /// No reply follows. `Err`: the status with which the call ends.
    Ended(Result<(), Status>),
    /// The connection has it.
    Sent,
}

fn bytes_of(reply: &proto::StreamedReply) -> u64 {
    /// More than the framing of a reply can take.
    const FRAME_BYTES: usize = 32;
    let content = match &reply.outcome {
        Some(Outcome::Reply(reply)) => reply.len(),
        Some(Outcome::Refusal(refusal) | Outcome::Rejection(refusal)) => {
            refusal.message.len() + refusal.detail.len()
        }
        Some(Outcome::Index(_)) | None => 0,
    };
    (content + FRAME_BYTES) as u64
}

/// The entry was applied, and its reply is left out.
fn not_received(waiting: u64) -> ProposeError {
    let reason = format!("{waiting} bytes of replies wait for this client, which does not receive them");
    ProposeError::Unknown(UnknownOutcome::BadReply(reason))
}

impl Outlet {
    /// Whether a further message may be read while this many requests are unanswered. Otherwise, the task is
    /// woken when there is room.
    fn has_room(&self, unanswered: usize, context: &Context<'_>) -> bool {
        let mut gathered = self.0.lock();
        let has_room =
            gathered.replies.len() + unanswered < REQUESTS_MAX && gathered.bytes < WAITING_BYTES_MAX;
        gathered.task = (!has_room).then(|| context.waker().clone());
        has_room
    }

    fn put(&self, replies: Vec<proto::StreamedReply>) {
        if replies.is_empty() {
            return;
        }
        let mut gathered = self.0.lock();
        for mut reply in replies {
            let bytes = bytes_of(&reply);
            if gathered.bytes > 0 && gathered.bytes + bytes > REPLY_BYTES_MAX {
                let waiting = gathered.bytes;
                if let Some(Outcome::Reply(_)) = reply.outcome {
                    reply.outcome = Some(Outcome::Refusal(wire::refusal_to_wire(&not_received(waiting))));
                }
            }
            gathered.bytes += bytes_of(&reply);
            gathered.replies.push_back(reply);
        }
        gathered.wake_connection();
    }

    fn end(&self, ended: Result<(), Status>) {
        let mut gathered = self.0.lock();
        if matches!(gathered.stage, Stage::Serving) {
            gathered.stage = Stage::Ended(ended);
            gathered.wake_connection();
        }
    }
}

impl Gathered {
    fn wake_connection(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.wake();
        }
    }

    /// The replies for the next message: as many as fit into one, and at least one.
    fn next_batch(&mut self) -> Vec<proto::StreamedReply> {
        let (mut replies, mut taken) = (Vec::new(), 0);
        while let Some(reply) = self.replies.front() {
            let bytes = bytes_of(reply);
            let is_full =
                taken + bytes > wire::BATCH_BYTES || replies.len() == wire::batches::BATCH_REQUESTS_MAX;
            if is_full && !replies.is_empty() {
                break;
            }
            taken += bytes;
            replies.extend(self.replies.pop_front());
        }
        self.bytes -= taken;
        if let Some(task) = self.task.take() {
            task.wake();
        }
        replies
    }
}

/// Ends with its task, also if that panics.
struct EndedOutlet(Arc<Outlet>);

impl Drop for EndedOutlet {
    fn drop(&mut self) {
        self.0.end(Err(Status::internal("the task of the call has ended")));
    }
}

/// The outgoing messages of a call. Polled only while the connection has room for them. When it is dropped,
/// the task of the call ends.
pub(super) struct ReplyStream {
    outlet: Arc<Outlet>,
    header: Box<dyn Fn() -> Option<proto::Header> + Send>,
    pause: YieldOnce,
    task: AbortHandle,
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream for ReplyStream {
    type Item = Result<proto::ReplyBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let ReplyStream { outlet, header, pause, .. } = self.get_mut();
        let mut gathered = outlet.0.lock();
        if !gathered.replies.is_empty() {
            ready!(pause.poll(context));
        }
        let items = gathered.next_batch();
        let mut closes = false;
        if items.is_empty() {
            match std::mem::replace(&mut gathered.stage, Stage::Sent) {
                Stage::Serving => {
                    gathered.stage = Stage::Serving;
                    gathered.connection = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Stage::Ended(Ok(())) => closes = true,
                Stage::Ended(Err(status)) => return Poll::Ready(Some(Err(status))),
                Stage::Sent => return Poll::Ready(None),
            }
        }
        drop(gathered);
        Poll::Ready(Some(Ok(proto::ReplyBatch { header: header(), items, closes, ..Default::default() })))
    }
}
