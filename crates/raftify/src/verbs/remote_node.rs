//! Another node from the caller's side: the channel, and one call of a verb at a time.
//!
//! Used by the outbox, which forwards requests to the leader, and by the remote client. It retries nothing
//! and follows no hint; every call ends by its deadline and reports whether the request may have taken
//! effect.

use std::error::Error;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use raftify_core::{ClusterId, Forwarding, LogIndex, VerbError};
use tonic::transport::Channel;
use tonic::{ConnectError, Status};

use crate::runtime::calls::{self, CallPermits, MarkedChannel, NoResponse};
use crate::runtime::endpoint::describe;
use crate::verbs::verb::{Answered, Client, NotAnswered, Verb};
use crate::wire::{self, RequestRejected, proto};

/// Whether the node has declared that it did not, and will not, process the request: by refusing its stream,
/// or by a GOAWAY frame that names an earlier stream as the last processed one (RFC 9113, sections 6.8 and
/// 8.7).
fn is_refused_unread(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<h2::Error>().is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
    })
}

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
        let mut source = status.source();
        while let Some(error) = source {
            if error.is::<ConnectError>() || is_refused_unread(error) {
                return CallError::NotSent(describe(status));
            }
            source = error.source();
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

/// The cluster of the requests: the known one, or else the cluster that gives the first result. Nodes of
/// another cluster then reject requests: an address may belong to another cluster by now, and writes
/// acknowledged there do not exist in this one.
#[derive(Debug, Default)]
pub(crate) struct AskedCluster {
    id: OnceLock<ClusterId>,
    /// The newest membership index in an answer of its nodes.
    members_as_of: AtomicU64,
}

impl AskedCluster {
    pub(crate) fn of(id: ClusterId) -> AskedCluster {
        AskedCluster { id: id.into(), members_as_of: AtomicU64::new(0) }
    }

    pub(crate) fn id(&self) -> Option<ClusterId> {
        self.id.get().copied()
    }

    pub(crate) fn members_as_of(&self) -> LogIndex {
        LogIndex(self.members_as_of.load(Ordering::Relaxed))
    }

    /// Processes the header of a result.
    fn learn(&self, header: Option<&proto::Header>) {
        let Ok(Some(cluster_id)) = wire::check_header(header) else { return };
        // The first cluster stays.
        if *self.id.get_or_init(|| cluster_id) == cluster_id
            && let Some(as_of) = header.and_then(|header| header.members_as_of)
        {
            self.members_as_of.fetch_max(as_of, Ordering::Relaxed);
        }
    }
}

/// One node, reached through one channel, which reconnects by itself.
#[derive(Clone, Debug)]
pub(crate) struct RemoteNode {
    client: Client,
    places: CallPermits,
    cluster: Arc<AskedCluster>,
    without_waiting: bool,
}

impl RemoteNode {
    /// Calls under way use permits from `places`.
    pub(crate) fn new(channel: Channel, places: CallPermits, cluster: Arc<AskedCluster>) -> RemoteNode {
        RemoteNode { client: wire::service(MarkedChannel(channel)), places, cluster, without_waiting: false }
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
        let header = match V::OF_ANY_CLUSTER {
            true => wire::header(None),
            false => {
                proto::Header { without_waiting: self.without_waiting, ..wire::header(self.cluster.id()) }
            }
        };
        let request = verb.to_wire(header, forwarding == Forwarding::Never);
        let (client, bytes) = (self.client.clone(), V::payload_bytes(&request) as u64);
        let reply = calls::call(&self.places, bytes, timeout, |mark| V::send(client, mark.on(request))).await;
        let reply = reply.map_err(|why| CallError::from_no_response(&self.places, timeout, why))?;
        match V::from_reply(reply) {
            Ok(answered) => {
                if !V::OF_ANY_CLUSTER {
                    self.cluster.learn(answered.header.as_ref());
                }
                Ok(answered)
            }
            Err(NotAnswered::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            Err(NotAnswered::Malformed(reason)) => Err(CallError::senseless(reason)),
        }
    }
}
