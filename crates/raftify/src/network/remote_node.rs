//! One node's service from the caller's side: the channel, and one call at a time.
//!
//! Used by the outbox, which forwards requests to the leader, and by the remote client. It retries nothing and follows
//! no hint; every call ends by its deadline and reports whether the request may have taken effect.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use raftify_core::error::{MembershipError, ProposeError, ReadError, TransferError};
use raftify_core::{
    ClusterId, Forwarding, Inspection, LogIndex, Members, MembershipRequest, NodeId, Reservation,
};
use tonic::transport::Channel;
use tonic::{ConnectError, Response, Status};

use crate::network::calls::{self, CallPermits, Mark, MarkedChannel, NoResponse};
use crate::network::endpoint::{describe, service};
use crate::wire::identification::Identification;
use crate::wire::proto::raft_service_client::RaftServiceClient;
use crate::wire::{self, RequestRejected, VerbError, proto};

/// Whether the node has declared that it did not, and will not, process the request: by refusing its stream, or by a
/// GOAWAY frame that names an earlier stream as the last processed one (RFC 9113, sections 6.8 and 8.7).
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
            NoResponse::NoPermit => CallError::Refused(E::busy(places.count_max())),
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
    fn senseless(reason: impl ToString) -> CallError<E> {
        CallError::Lost(format!("the answer makes no sense: {}", reason.to_string()))
    }
}

/// The cluster of the requests: the known one, or else the cluster that gives the first result. Nodes of another
/// cluster then reject requests: an address may belong to another cluster by now, and writes acknowledged there do not
/// exist in this one.
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
    service: RaftServiceClient<MarkedChannel>,
    places: CallPermits,
    cluster: Arc<AskedCluster>,
    without_waiting: bool,
}

impl RemoteNode {
    /// Calls under way use permits from `places`.
    pub(crate) fn new(channel: Channel, places: CallPermits, cluster: Arc<AskedCluster>) -> RemoteNode {
        RemoteNode { service: service(MarkedChannel(channel)), places, cluster, without_waiting: false }
    }

    /// The same node with requests that fail at once if it knows no leader.
    pub(crate) fn without_waiting(self) -> RemoteNode {
        RemoteNode { without_waiting: true, ..self }
    }

    /// No call outlives its deadline for its caller, and no abandoned call affects other calls.
    async fn call<T, E, Call>(
        &self,
        payload_bytes: usize,
        timeout: Duration,
        call: impl FnOnce(RaftServiceClient<MarkedChannel>, Mark) -> Call,
    ) -> Result<T, CallError<E>>
    where
        T: Send + 'static,
        E: VerbError,
        Call: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let service = self.service.clone();
        let response = calls::call(&self.places, payload_bytes as u64, timeout, |mark| call(service, mark));
        response.await.map_err(|why| CallError::from_no_response(&self.places, timeout, why))
    }

    fn header(&self) -> Option<proto::Header> {
        Some(proto::Header { without_waiting: self.without_waiting, ..wire::header(self.cluster.id()) })
    }

    pub(crate) async fn propose(
        &self,
        payload: Bytes,
        forwarding: Forwarding,
        timeout: Duration,
    ) -> Result<Bytes, CallError<ProposeError>> {
        use proto::propose_reply::Outcome;
        let forwarded = forwarding == Forwarding::Never;
        let bytes = payload.len();
        let request = proto::ProposeRequest { header: self.header(), payload, forwarded };
        let answer = self
            .call(bytes, timeout, |mut service, mark| async move { service.propose(mark.on(request)).await })
            .await?;
        match answer.outcome {
            Some(Outcome::Reply(reply)) => {
                self.cluster.learn(answer.header.as_ref());
                Ok(wire::owned(reply))
            }
            Some(Outcome::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            None => Err(CallError::senseless("it is empty")),
        }
    }

    pub(crate) async fn change_membership(
        &self,
        request: &MembershipRequest,
        forwarding: Forwarding,
        timeout: Duration,
    ) -> Result<Members, CallError<MembershipError>> {
        use proto::change_membership_reply::Outcome;
        let forwarded = forwarding == Forwarding::Never;
        let request = request.encode();
        let request_bytes = request.len();
        let request = proto::ChangeMembershipRequest { header: self.header(), request, forwarded };
        let answer = self
            .call(request_bytes, timeout, |mut service, mark| async move {
                service.change_membership(mark.on(request)).await
            })
            .await?;
        match answer.outcome {
            Some(Outcome::Members(members)) => {
                self.cluster.learn(answer.header.as_ref());
                Members::decode(&members).map_err(CallError::senseless)
            }
            Some(Outcome::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            None => Err(CallError::senseless("it is empty")),
        }
    }

    /// Also returns the cluster of the id.
    pub(crate) async fn reserve_node_id(
        &self,
        forwarding: Forwarding,
        timeout: Duration,
    ) -> Result<(ClusterId, Reservation), CallError<MembershipError>> {
        use proto::reserve_node_id_reply::Outcome;
        let forwarded = forwarding == Forwarding::Never;
        let request = proto::ReserveNodeIdRequest { header: self.header(), forwarded };
        let reply =
            self.call(0, timeout, |mut service, mark| async move {
                service.reserve_node_id(mark.on(request)).await
            })
            .await?;
        match reply.outcome {
            Some(Outcome::Reservation(reservation)) => {
                self.cluster.learn(reply.header.as_ref());
                let cluster_id = wire::check_header(reply.header.as_ref()).map_err(CallError::senseless)?;
                let cluster_id = cluster_id.ok_or_else(|| CallError::senseless("it names no cluster"))?;
                let reservation = wire::reservation_from_wire(&reservation).map_err(CallError::senseless)?;
                Ok((cluster_id, reservation))
            }
            Some(Outcome::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            None => Err(CallError::senseless("it is empty")),
        }
    }

    pub(crate) async fn transfer_leader(
        &self,
        to: Option<NodeId>,
        forwarding: Forwarding,
        timeout: Duration,
    ) -> Result<NodeId, CallError<TransferError>> {
        use proto::transfer_leader_reply::Outcome;
        let forwarded = forwarding == Forwarding::Never;
        let to = to.map(NodeId::get);
        let request = proto::TransferLeaderRequest { header: self.header(), to, forwarded };
        let answer =
            self.call(0, timeout, |mut service, mark| async move {
                service.transfer_leader(mark.on(request)).await
            })
            .await?;
        match answer.outcome {
            Some(Outcome::Leader(id)) => {
                self.cluster.learn(answer.header.as_ref());
                wire::node_id("the leader's id", id).map_err(CallError::senseless)
            }
            Some(Outcome::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            None => Err(CallError::senseless("it is empty")),
        }
    }

    pub(crate) async fn read_index(&self, timeout: Duration) -> Result<LogIndex, CallError<ReadError>> {
        use proto::read_index_reply::Outcome;
        let request = proto::ReadIndexRequest { header: self.header() };
        let answer = self
            .call(0, timeout, |mut service, mark| async move { service.read_index(mark.on(request)).await })
            .await?;
        match answer.outcome {
            Some(Outcome::Index(index)) => {
                self.cluster.learn(answer.header.as_ref());
                wire::log_index("the commit index", index).map_err(CallError::senseless)
            }
            Some(Outcome::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            None => Err(CallError::senseless("it is empty")),
        }
    }

    /// Which node answers there, in any cluster.
    pub(crate) async fn identify(&self, timeout: Duration) -> Result<Identification, CallError<ReadError>> {
        let header = Some(wire::header(None));
        self.identify_with(timeout, proto::IdentifyRequest { header, ..proto::IdentifyRequest::default() })
            .await
    }

    /// As [`identify`](Self::identify), with the identity of the requesting node.
    pub(crate) async fn identify_with(
        &self,
        timeout: Duration,
        request: proto::IdentifyRequest,
    ) -> Result<Identification, CallError<ReadError>> {
        let reply = self
            .call(0, timeout, |mut service, mark| async move { service.identify(mark.on(request)).await })
            .await?;
        wire::identification_from_wire(reply).map_err(CallError::senseless)
    }

    pub(crate) async fn inspect(&self, timeout: Duration) -> Result<Inspection, CallError<ReadError>> {
        use proto::inspect_reply::Outcome;
        // The request only reads, so it is valid for any cluster.
        let request = proto::InspectRequest { header: Some(wire::header(None)) };
        match self
            .call(0, timeout, |mut service, mark| async move { service.inspect(mark.on(request)).await })
            .await?
            .outcome
        {
            Some(Outcome::Inspection(inspection)) => wire::decode_detail(&inspection)
                .ok_or_else(|| CallError::senseless("the inspection is of another version")),
            Some(Outcome::Refusal(refusal)) => Err(CallError::from_wire(&refusal)),
            None => Err(CallError::senseless("it is empty")),
        }
    }
}
