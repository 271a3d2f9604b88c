//! The caller's end of `StreamRequests`: the calls to one node share one stream, many in each message.
//!
//! A request waits in the table of calls until the connection has room for a message; the message then has
//! all waiting requests. The stream is opened by the first call, and again by the first call after it broke.
//! Until a request is given to the connection, its caller can withdraw it, and a broken stream has not sent
//! it. A given one is never sent again: its outcome is unknown if the stream breaks before the answer.
//!
//! The number of calls and their payload are bounded by the permits that they hold until they are answered,
//! also if their callers are gone.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, Streaming};

use crate::runtime::calls::{self, Permit};
use crate::runtime::endpoint::describe;
use crate::runtime::yield_once::YieldOnce;
use crate::verbs::asked_cluster::AskedCluster;
use crate::verbs::verb::Client;
use crate::wire::batches::BATCH_REQUESTS_MAX;
use crate::wire::proto::streamed_reply::Outcome;
use crate::wire::proto::streamed_request::Verb;
use crate::wire::{self, RequestRejected, proto};

/// How long requests have calls of their own after a node has refused to serve a stream.
const OWN_CALLS_FOR: Duration = Duration::from_secs(60);

/// More than the framing of a request can take.
const FRAME_BYTES: u64 = 32;

/// Why a request brought no reply.
#[derive(Clone, Debug)]
pub(crate) enum NoReply {
    /// The node serves no stream to this caller, and has read no request: use a separate call.
    NotServed,
    /// Nothing happened: the node has not read the request, and never will.
    NotSent(String),
    /// Nothing happened: the node rejected the request without processing it.
    Rejected(RequestRejected),
    /// The request was sent, at least in part, and the stream ended before the answer.
    Lost(String),
    /// The request was sent, at least in part, and the deadline has passed.
    TimedOut,
}

/// How a stream ended.
enum Ended {
    /// The node serves no stream to this caller.
    NotServed,
    /// The node rejected the stream, with all of its requests.
    Rejected(RequestRejected),
    /// The node has not read the requests that it has not answered.
    Unread(String),
    /// What the node has read is unknown.
    Broken(String),
}

impl Ended {
    /// Before the node has answered the call: it has served no request.
    fn unopened(status: &Status) -> Ended {
        match RequestRejected::from_status(status) {
            // Of the single methods it may permit some. An older program lists no streams.
            Some(RequestRejected::RoleMissing { .. }) => Ended::NotServed,
            Some(refusal) => Ended::Rejected(refusal),
            None if status.code() == Code::Unimplemented => Ended::NotServed,
            None => Ended::broken(status),
        }
    }

    fn broken(status: &Status) -> Ended {
        if calls::is_unread(status) {
            Ended::Unread(describe(status))
        } else {
            Ended::Broken(describe(status))
        }
    }

    fn senseless(reason: &str) -> Ended {
        Ended::Broken(format!("the answer makes no sense: {reason}"))
    }

    fn for_call(&self, is_written: bool) -> NoReply {
        match self {
            Ended::NotServed => NoReply::NotServed,
            Ended::Rejected(refusal) => NoReply::Rejected(refusal.clone()),
            Ended::Unread(reason) => NoReply::NotSent(reason.clone()),
            Ended::Broken(reason) if is_written && !raftify_core::mutated!(BrokenStreamMeansUnsent) => {
                NoReply::Lost(reason.clone())
            }
            Ended::Broken(reason) => NoReply::NotSent(reason.clone()),
        }
    }
}

/// The stream to one node. When it is dropped, the requests that are under way run to their end.
#[derive(Debug)]
pub(crate) struct CallStream(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cluster: Arc<AskedCluster>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The unanswered calls, by the id of their request. Ids grow, and are never used again.
    calls: BTreeMap<u64, Call>,
    last_id: u64,
    /// Requests up to this id were given to a connection.
    written: u64,
    /// The number of the open stream.
    open: Option<u64>,
    streams: u64,
    /// The stream waits for requests.
    writer: Option<Waker>,
    /// No call follows.
    is_closing: bool,
    own_calls_until: Option<Instant>,
}

#[derive(Debug)]
struct Call {
    /// Until it is given to the connection.
    request: Option<proto::StreamedRequest>,
    /// `None`: the caller is gone.
    caller: Option<oneshot::Sender<Result<Outcome, NoReply>>>,
    _permit: Permit,
}

/// The payload of a request.
pub(crate) fn payload_bytes(verb: &Verb) -> u64 {
    match verb {
        Verb::Propose(payload) => payload.len() as u64,
        Verb::ReadIndex(_) => 0,
    }
}

impl CallStream {
    pub(crate) fn new(cluster: Arc<AskedCluster>) -> CallStream {
        CallStream(Arc::new(Shared { cluster, state: Mutex::default() }))
    }

    /// Sends a request, whose id is chosen here, and waits for its reply. If the future is dropped, a request
    /// that was not given to the connection yet is withdrawn; any other one runs to its end.
    pub(crate) async fn call(
        &self,
        client: &Client,
        mut request: proto::StreamedRequest,
        permit: Permit,
        until: Instant,
    ) -> Result<Outcome, NoReply> {
        let (caller, mut reply) = oneshot::channel();
        let (id, writer, opens) = {
            let mut state = self.0.state.lock();
            if state.own_calls_until.is_some_and(|until| Instant::now() < until) {
                return Err(NoReply::NotServed);
            }
            state.last_id += 1;
            let id = state.last_id;
            request.id = id;
            let call = Call { request: Some(request), caller: Some(caller), _permit: permit };
            state.calls.insert(id, call);
            let opens = state.open.is_none();
            if opens {
                state.streams += 1;
                state.open = Some(state.streams);
            }
            (id, state.writer.take(), opens.then_some(state.streams))
        };
        if let Some(number) = opens {
            tokio::spawn(Open { shared: Arc::clone(&self.0), number }.run(client.clone()));
        } else if let Some(writer) = writer {
            writer.wake();
        }
        let mut waiting = Waiting { shared: &self.0, id, is_answered: false };
        let answered = match timeout_at(until, &mut reply).await {
            Ok(answered) => answered.ok(),
            Err(_) if waiting.withdraw() => {
                return Err(NoReply::NotSent("no connection before the deadline".to_owned()));
            }
            // It may have arrived just now.
            Err(_) => match reply.try_recv() {
                Ok(answered) => Some(answered),
                Err(_) => return Err(NoReply::TimedOut),
            },
        };
        waiting.is_answered = true;
        // Each call is answered when its stream ends, also with its runtime.
        answered.unwrap_or_else(|| Err(NoReply::Lost("the stream has ended".to_owned())))
    }
}

impl Drop for CallStream {
    fn drop(&mut self) {
        let writer = {
            let mut state = self.0.state.lock();
            state.is_closing = true;
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

/// A call whose caller waits.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
    is_answered: bool,
}

impl Waiting<'_> {
    /// The caller no longer waits. Returns whether the request was not given to a connection, and never will
    /// be.
    fn withdraw(&mut self) -> bool {
        self.is_answered = true;
        let mut state = self.shared.state.lock();
        if self.id > state.written {
            return state.calls.remove(&self.id).is_some();
        }
        if let Some(call) = state.calls.get_mut(&self.id) {
            call.caller = None;
        }
        false
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.withdraw();
        }
    }
}

/// An open stream. However its task ends, all of its calls are answered.
struct Open {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.end(self.number, &Ended::Broken("the task of the stream has ended".to_owned()));
    }
}

impl Open {
    async fn run(self, mut client: Client) {
        let pause = YieldOnce::default();
        let requests = Requests { shared: Arc::clone(&self.shared), number: self.number, pause };
        let ended = match client.stream_requests(requests).await {
            Ok(response) => self.read(response.into_inner()).await,
            Err(status) => Ended::unopened(&status),
        };
        self.shared.end(self.number, &ended);
    }

    /// Passes the replies to their callers until the stream ends.
    async fn read(&self, mut replies: Streaming<proto::ReplyBatch>) -> Ended {
        let mut answers = Vec::new();
        loop {
            let batch = match replies.message().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ended::Broken("the node ended the stream".to_owned()),
                Err(status) => return Ended::broken(&status),
            };
            if batch.is_too_long {
                return Ended::senseless("a message has too many replies");
            }
            let closes = batch.closes;
            let outcome = self.shared.match_calls(batch, &mut answers);
            for (caller, answer) in answers.drain(..) {
                // The caller may be gone.
                let _ = caller.send(answer);
            }
            match outcome {
                Err(reason) => return Ended::senseless(&reason),
                Ok(()) if closes => {
                    return Ended::Unread("the node ended the stream before it read the request".to_owned());
                }
                Ok(()) => {}
            }
        }
    }
}

type Answer = (oneshot::Sender<Result<Outcome, NoReply>>, Result<Outcome, NoReply>);

impl Shared {
    /// Finds the callers of a batch of replies.
    fn match_calls(&self, batch: proto::ReplyBatch, answers: &mut Vec<Answer>) -> Result<(), String> {
        let is_result = |reply: &proto::StreamedReply| {
            matches!(reply.outcome, Some(Outcome::Reply(_) | Outcome::Index(_)))
        };
        if batch.items.iter().any(is_result) {
            self.cluster.learn(batch.header.as_ref());
        }
        let mut state = self.state.lock();
        for proto::StreamedReply { id, outcome } in batch.items {
            let id = if raftify_core::mutated!(RepliesMatchedByOrder) {
                state.calls.keys().next().copied().unwrap_or(id)
            } else {
                id
            };
            let call = if id <= state.written { state.calls.remove(&id) } else { None };
            let call = call.ok_or_else(|| format!("request {id} is not under way"))?;
            if let Some(caller) = call.caller {
                let unknown = || NoReply::Lost("the answer makes no sense: it is empty".to_owned());
                answers.push((caller, outcome.ok_or_else(unknown)));
            }
        }
        Ok(())
    }

    /// Answers all calls that are left, once for each stream.
    fn end(&self, number: u64, ended: &Ended) {
        let (calls, written) = {
            let mut state = self.state.lock();
            if state.open != Some(number) {
                return;
            }
            state.open = None;
            state.writer = None;
            if matches!(ended, Ended::NotServed) {
                state.own_calls_until = Some(Instant::now() + OWN_CALLS_FOR);
            }
            (std::mem::take(&mut state.calls), state.written)
        };
        for (id, call) in calls {
            if let Some(caller) = call.caller {
                // The caller may be gone.
                let _ = caller.send(Err(ended.for_call(id <= written)));
            }
        }
    }
}

impl State {
    /// Whether a request waits for the connection.
    fn has_next(&self) -> bool {
        self.calls.last_key_value().is_some_and(|(id, _)| *id > self.written)
    }

    /// The requests for the next message: at most as many as fit into one, and at least one.
    fn next_batch(&mut self) -> Vec<proto::StreamedRequest> {
        let (mut requests, mut bytes, mut written) = (Vec::new(), 0, self.written);
        for (id, call) in self.calls.range_mut(self.written + 1..) {
            let Some(request) = &call.request else { continue };
            bytes += FRAME_BYTES + request.verb.as_ref().map_or(0, payload_bytes);
            let is_full = bytes > wire::BATCH_BYTES || requests.len() == BATCH_REQUESTS_MAX;
            if is_full && !requests.is_empty() {
                break;
            }
            requests.extend(call.request.take());
            written = *id;
        }
        self.written = written;
        requests
    }
}

/// The outgoing messages of a stream. Polled only while the connection has room for them.
struct Requests {
    shared: Arc<Shared>,
    number: u64,
    pause: YieldOnce,
}

impl Stream for Requests {
    type Item = proto::RequestBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<proto::RequestBatch>> {
        let Requests { shared, number, pause } = self.get_mut();
        let mut state = shared.state.lock();
        if state.open != Some(*number) {
            // The requests of the table are for the next stream.
            return Poll::Ready(None);
        }
        if state.has_next() {
            ready!(pause.poll(context));
            let items = state.next_batch();
            drop(state);
            let header = Some(wire::header(shared.cluster.id()));
            return Poll::Ready(Some(proto::RequestBatch { header, items, ..Default::default() }));
        }
        if state.is_closing {
            return Poll::Ready(None);
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }
}
