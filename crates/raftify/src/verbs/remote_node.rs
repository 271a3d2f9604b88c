//! Another node from the caller's side: the channel, and the calls of verbs over it, over one shared stream for
//! the verbs that a stream carries.
//!
//! Used by the outbox, which forwards requests to the leader, and by the remote client. It retries nothing
//! and follows no hint; every call ends by its deadline and reports whether the request may have taken
//! effect.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use raftify_core::{Forwarding, VerbError};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::runtime::calls::{self, CallPermits, MarkedChannel, NoResponse};
use crate::runtime::endpoint::describe;
use crate::verbs::asked_cluster::AskedCluster;
use crate::verbs::call_stream::{self, CallStream, NoReply};
use crate::verbs::verb::{Answered, Client, NotAnswered, Verb};
use crate::wire::proto::streamed_reply;
use crate::wire::{self, RequestRejected, proto};

/// Why one call to one node brought no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CallError<E> {
    /// Nothing happened: there was no connection, or it ended before the node could read the request.
    NotSent(String),
    /// Nothing happened: the node rejected the request without processing it.
    Rejected(RequestRejected),
    /// The request was sent, and the connection broke before the answer arrived.
    Lost(String),
    /// The request was possibly sent, and no answer arrived in time.
    TimedOut(Duration),
    /// The node's answer.
    Refused(E),
}

impl<E: VerbError> CallError<E> {
    /// Converts to the error of the verb.
    pub(crate) fn into_verb_error(self) -> E {
        match self {
            CallError::NotSent(reason) => E::not_sent(reason),
            CallError::Rejected(refusal) => E::not_sent(refusal.to_string()),
            CallError::Lost(reason) => E::lost(reason),
            CallError::TimedOut(after) => E::timed_out(after),
            CallError::Refused(error) => error,
        }
    }

    fn from_status(status: &Status) -> CallError<E> {
        if let Some(refusal) = RequestRejected::from_status(status) {
            return CallError::Rejected(refusal);
        }
        if calls::is_unread(status) {
            return CallError::NotSent(describe(status));
        }
        CallError::Lost(describe(status))
    }

    fn from_no_response(places: &CallPermits, after: Duration, why: NoResponse) -> CallError<E> {
        match why {
            NoResponse::NoPermit => CallError::Refused(E::busy_there(places.count_max())),
            NoResponse::NotSent(Some(status)) => match CallError::from_status(&status) {
                CallError::Lost(reason) => CallError::NotSent(reason),
                error => error,
            },
            NoResponse::NotSent(None) => {
                CallError::NotSent(format!("no connection within {} ms", after.as_millis()))
            }
            NoResponse::Failed(status) => CallError::from_status(&status),
            NoResponse::TimedOut => CallError::TimedOut(after),
        }
    }

    fn from_wire(refusal: &proto::Refusal) -> CallError<E> {
        match wire::refusal_from_wire::<E>(refusal) {
            Some(error) => CallError::Refused(error.of_another()),
            None => CallError::Lost(refusal.message.clone()),
        }
    }

    /// A malformed answer gives no information about the outcome.
    pub(crate) fn senseless(reason: impl Display) -> CallError<E> {
        CallError::Lost(format!("the answer makes no sense: {reason}"))
    }
}

/// One node, reached through one channel, which reconnects by itself. A clone shares the channel, and the
/// stream over it.
#[derive(Clone, Debug)]
pub(crate) struct RemoteNode {
    link: Arc<Link>,
    without_waiting: bool,
}

#[derive(Debug)]
struct Link {
    client: Client,
    places: CallPermits,
    cluster: Arc<AskedCluster>,
    /// `None`: each request has a separate call.
    stream: Option<CallStream>,
}

impl RemoteNode {
    /// Calls under way use permits from `places`. Those of the verbs that a stream carries share one.
    pub(crate) fn new(channel: Channel, places: CallPermits, cluster: Arc<AskedCluster>) -> RemoteNode {
        let stream = Some(CallStream::new(Arc::clone(&cluster)));
        RemoteNode::with(channel, places, cluster, stream)
    }

    /// As [`new`](Self::new), with a separate call for each request.
    pub(crate) fn unary(channel: Channel, places: CallPermits, cluster: Arc<AskedCluster>) -> RemoteNode {
        RemoteNode::with(channel, places, cluster, None)
    }

    fn with(
        channel: Channel,
        places: CallPermits,
        cluster: Arc<AskedCluster>,
        stream: Option<CallStream>,
    ) -> RemoteNode {
        let client = wire::service(MarkedChannel(channel));
        RemoteNode { link: Arc::new(Link { client, places, cluster, stream }), without_waiting: false }
    }

    /// The same node with requests that fail at once if it knows no leader.
    pub(crate) fn without_waiting(self) -> RemoteNode {
        RemoteNode { without_waiting: true, ..self }
    }

    /// No call outlives its deadline for its caller, and no abandoned call affects other calls.
    pub(crate) async fn call<V: Verb>(
        &self,
        verb: V,
        forwarding: Forwarding,
        timeout: Duration,
    ) -> Result<Answered<V::Answer>, CallError<V::Error>> {
        let Some((stream, request)) = self.link.stream.as_ref().zip(verb.to_streamed()) else {
            return self.call_alone(verb, forwarding, timeout).await;
        };
        let until = calls::deadline(timeout);
        let places = &self.link.places;
        let Some(permit) = places.enter(call_stream::payload_bytes(&request), until).await else {
            return Err(CallError::from_no_response(places, timeout, NoResponse::NoPermit));
        };
        let request = proto::StreamedRequest {
            id: 0,
            verb: Some(request),
            forwarded: forwarding == Forwarding::Never,
            without_waiting: self.without_waiting,
        };
        match stream.call(&self.link.client, request, permit, until).await {
            Ok(outcome) => read_outcome::<V>(outcome),
            Err(NoReply::NotServed) => {
                let left = until.saturating_duration_since(Instant::now());
                self.call_alone(verb, forwarding, left).await
            }
            Err(NoReply::NotSent(reason)) => Err(CallError::NotSent(reason)),
            Err(NoReply::Rejected(refusal)) => Err(CallError::Rejected(refusal)),
            Err(NoReply::Lost(reason)) => Err(CallError::Lost(reason)),
            Err(NoReply::TimedOut) => Err(CallError::TimedOut(timeout)),
        }
    }

    /// A call for this request alone.
    async fn call_alone<V: Verb>(
        &self,
        verb: V,
        forwarding: Forwarding,
        timeout: Duration,
    ) -> Result<Answered<V::Answer>, CallError<V::Error>> {
        let Link { client, places, cluster, .. } = &*self.link;
        let header = match V::OF_ANY_CLUSTER {
            true => wire::header(None),
            false => proto::Header { without_waiting: self.without_waiting, ..wire::header(cluster.id()) },
        };
        let request = verb.to_wire(header, forwarding == Forwarding::Never);
        let (client, bytes) = (client.clone(), V::payload_bytes(&request) as u64);
        let reply = calls::call(places, bytes, timeout, |mark| V::send(client, mark.on(request))).await;
        let reply = reply.map_err(|why| CallError::from_no_response(places, timeout, why))?;
        let answered = read_answer::<V>(V::from_reply(reply))?;
        if !V::OF_ANY_CLUSTER {
            cluster.learn(answered.header.as_ref());
        }
        Ok(answered)
    }
}

fn read_answer<V: Verb>(
    answered: Result<Answered<V::Answer>, NotAnswered>,
) -> Result<Answered<V::Answer>, CallError<V::Error>> {
    answered.map_err(|why| match why {
        NotAnswered::Refusal(refusal) => CallError::from_wire(&refusal),
        NotAnswered::Malformed(reason) => CallError::senseless(reason),
    })
}

/// The reply of a stream.
fn read_outcome<V: Verb>(
    outcome: streamed_reply::Outcome,
) -> Result<Answered<V::Answer>, CallError<V::Error>> {
    match outcome {
        streamed_reply::Outcome::Rejection(proto::Refusal { message, detail }) => {
            Err(wire::decode_detail(&detail).map_or(CallError::Lost(message), CallError::Rejected))
        }
        streamed_reply::Outcome::Refusal(refusal) => read_answer::<V>(Err(NotAnswered::Refusal(refusal))),
        outcome => {
            let answered = V::from_streamed(outcome).map(|answer| Answered { header: None, answer });
            read_answer::<V>(answered)
        }
    }
}
