//! What a verb is, and how the node that serves it asks its core.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use raftify_core::error::{ProposeError, StopReason};
use raftify_core::{
    CheckedConfig, Config, Forwarding, LeaderRequest, MembershipCommand, ProposalReply, Responder,
    ServerRequestMsg, Status, VerbError,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::channels::in_flight::InFlight;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::NodeMetrics;
use crate::channels::reply::channel;
use crate::channels::request_queue::{Refused, RequestSender};
use crate::channels::server_counters::ServerCounters;
use crate::error::BoxError;
use crate::runtime::calls::MarkedChannel;
use crate::security::dialer::Dialer;
use crate::wire::identification::Identification;
use crate::wire::proto::raft_service_client::RaftServiceClient;
use crate::wire::{RequestRejected, WireError, proto};

/// After its deadline the core answers by itself; after this additional time the server answers instead.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// The generated client.
pub(crate) type Client = RaftServiceClient<MarkedChannel>;

/// The setting that limits a duration.
pub(crate) type Setting = fn(&Config) -> Duration;

/// A counter of the server.
pub(crate) type Counter = fn(&ServerCounters) -> &AtomicU64;

/// What a call of the generated client returns.
pub(crate) type Returned<V> = Result<tonic::Response<<V as Verb>::Reply>, tonic::Status>;

/// What a node does with a verb: it rejects the request without processing it, or its core answers.
pub(crate) type Served<V> = Result<Result<<V as Verb>::Answer, <V as Verb>::Error>, RequestRejected>;

/// What a node can be asked to do over the network.
pub(crate) trait Verb: Clone + Send + 'static {
    type Request: prost::Message + Default;
    type Reply: prost::Message + Default;
    type Answer: Send + 'static;
    type Error: VerbError;

    /// Whether a request with an unknown outcome may be sent again.
    const REPEATABLE: bool;

    /// Whether the request is valid for any cluster: it names none, and its answer determines none.
    const OF_ANY_CLUSTER: bool = false;

    const DEADLINE: Setting;
    const COUNTER: Counter;

    /// `forwarded`: another node must not forward it again.
    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request;

    fn from_wire(request: Self::Request) -> Asked<Self>;

    /// Who may request it over TLS.
    fn permission(&self) -> Permission<'_> {
        Permission::ByRole
    }

    /// How much payload of the user the request holds.
    fn payload_bytes(request: &Self::Request) -> usize {
        let _ = request;
        0
    }

    /// Calls the generated client.
    fn send(
        client: Client,
        request: tonic::Request<Self::Request>,
    ) -> impl Future<Output = Returned<Self>> + Send + 'static;

    /// Whether the request is for this node, which its header says.
    fn admit<N: ServingNode>(node: &N, header: Option<&proto::Header>) -> Result<(), RequestRejected> {
        node.admit(header)
    }

    /// Asks the core of this node, or answers otherwise.
    fn serve<N: ServingNode>(
        self,
        node: &N,
        forwarding: Forwarding,
    ) -> impl Future<Output = Served<Self>> + Send;

    fn to_reply(header: Option<proto::Header>, outcome: Result<Self::Answer, proto::Refusal>) -> Self::Reply;

    fn from_reply(reply: Self::Reply) -> Result<Answered<Self::Answer>, NotAnswered>;

    /// The request as one of many in a batch; `None` for a verb that only has separate calls.
    fn to_streamed(&self) -> Option<proto::streamed_request::Verb> {
        None
    }

    /// The answer to a request of a batch.
    fn from_streamed(outcome: proto::streamed_reply::Outcome) -> Result<Self::Answer, NotAnswered> {
        let _ = outcome;
        Err("it is for another verb".into())
    }
}

/// A verb whose requests also travel in batches over a stream.
pub(crate) trait StreamedVerb: Verb {
    /// The answer as the server writes it.
    fn to_outcome(answer: Self::Answer) -> proto::streamed_reply::Outcome;
}

/// Who may request a verb over TLS, besides the roles that the server lists for its method.
pub(crate) enum Permission<'a> {
    /// The roles decide alone.
    ByRole,
    /// An administrator, or a member that forwards the request of one.
    Administrator {
        /// The name of the method, for the refusal.
        method: &'static str,
    },
    /// The same; and a node may ask for its own admission.
    Membership(&'a MembershipCommand),
}

/// A verb that only the leader can serve. Any other node forwards it, once.
pub(crate) trait LeaderVerb: Verb {
    /// The reply channel of the core's message. `R`: that of a proposal.
    type Channel<R>;

    fn request<R>(self, reply: Self::Channel<R>) -> LeaderRequest<R>;
}

/// A request, as the server reads it.
pub(crate) struct Asked<V> {
    pub(crate) header: Option<proto::Header>,
    pub(crate) forwarded: bool,
    pub(crate) verb: Result<V, WireError>,
}

/// An answer of a node.
pub(crate) struct Answered<A> {
    pub(crate) header: Option<proto::Header>,
    pub(crate) answer: A,
}

/// A reply without an answer.
pub(crate) enum NotAnswered {
    Refusal(proto::Refusal),
    /// Gives no information about the outcome.
    Malformed(String),
}

impl<E: Into<BoxError>> From<E> for NotAnswered {
    fn from(error: E) -> NotAnswered {
        NotAnswered::Malformed(error.into().to_string())
    }
}

/// The messages of a verb whose reply is an answer or a refusal: the method of the generated client, the
/// messages, and the answer to and from its field.
macro_rules! messages {
    (
        $call:ident: $request:ident => $reply:ident, $module:ident::$field:ident,
        $encode:expr, |$encoded:ident| $decode:expr
    ) => {
        type Request = $crate::wire::proto::$request;
        type Reply = $crate::wire::proto::$reply;

        async fn send(
            mut client: $crate::verbs::verb::Client,
            request: tonic::Request<Self::Request>,
        ) -> $crate::verbs::verb::Returned<Self> {
            client.$call(request).await
        }

        fn to_reply(
            header: Option<$crate::wire::proto::Header>,
            outcome: Result<Self::Answer, $crate::wire::proto::Refusal>,
        ) -> Self::Reply {
            use $crate::wire::proto::$module::Outcome;
            let outcome = outcome.map($encode).map_or_else(Outcome::Refusal, Outcome::$field);
            $crate::wire::proto::$reply { header, outcome: Some(outcome) }
        }

        fn from_reply(
            reply: Self::Reply,
        ) -> Result<$crate::verbs::verb::Answered<Self::Answer>, $crate::verbs::verb::NotAnswered> {
            use $crate::wire::proto::$module::Outcome;
            match reply.outcome.ok_or("it is empty")? {
                Outcome::$field($encoded) => {
                    Ok($crate::verbs::verb::Answered { header: reply.header, answer: $decode })
                }
                Outcome::Refusal(refusal) => Err($crate::verbs::verb::NotAnswered::Refusal(refusal)),
            }
        }
    };
}

pub(crate) use messages;

/// What verbs use of the node that serves them.
pub(crate) trait ServingNode: Sync {
    /// The reply channel of a proposal.
    type Reply: ProposalReply;

    fn config(&self) -> &CheckedConfig;

    /// Makes connections to other nodes.
    fn dialer(&self) -> &Dialer;

    fn status(&self) -> Status;

    /// The raft loop's queue.
    fn requests(&self) -> &RequestSender<ServerRequestMsg<Self::Reply>>;

    /// Proposals that came over the network.
    fn proposals(&self) -> &Arc<InFlight>;

    /// A reply channel that encodes the reply.
    fn remote_reply(&self, answered: oneshot::Sender<Result<Bytes, ProposeError>>) -> Self::Reply;

    /// Why an entry that came over the network must not get into the log.
    fn check_entry(&self, payload: &[u8]) -> Result<(), String>;

    fn metrics(&self) -> &NodeMetrics;

    /// Whether the request is for this cluster.
    fn admit(&self, header: Option<&proto::Header>) -> Result<(), RequestRejected>;

    fn identify(&self, request: proto::IdentifyRequest) -> Result<Identification, RequestRejected>;

    /// For the verbs that stop the node.
    fn lifecycle(&self) -> &Lifecycle;

    /// Resolves when the server stops.
    fn closed(&self) -> impl Future<Output = ()> + Send;
}

/// Puts a request into the loop's queue and waits for its answer.
///
/// A closed queue accepts no request: the request is rejected, and the caller may try another node. From a
/// node that has accepted the request, the same reason would mean an unknown outcome.
pub(crate) async fn ask<V: Verb, N: ServingNode>(
    node: &N,
    request: ServerRequestMsg<N::Reply>,
    answer: impl Future<Output = Result<V::Answer, V::Error>>,
) -> Served<V> {
    let deadline = V::DEADLINE(node.config());
    match node.requests().try_send(request) {
        Ok(()) => {
            let until = Instant::now() + deadline + ANSWER_GRACE;
            let answer = node.lifecycle().backstop().until(until, pin!(answer)).await;
            Ok(answer.unwrap_or_else(|| Err(V::Error::timed_out(deadline))))
        }
        Err(Refused::Full { waiting, .. }) => Ok(Err(V::Error::busy_there(waiting))),
        Err(Refused::Closed) => Err(RequestRejected::Stopped(StopReason::Stopped)),
    }
}

/// As [`ask`], for a verb of the leader.
pub(crate) async fn ask_leader<V, N>(node: &N, verb: V, forwarding: Forwarding) -> Served<V>
where
    N: ServingNode,
    V: LeaderVerb<Channel<N::Reply> = Responder<<V as Verb>::Answer, <V as Verb>::Error>>,
{
    let (reply, answer) = channel();
    let request = ServerRequestMsg::ForLeader { request: verb.request(reply), forwarding };
    ask::<V, N>(node, request, answer).await
}
