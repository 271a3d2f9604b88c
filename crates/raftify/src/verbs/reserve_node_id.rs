//! Reserves a node id that no other caller will get.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use raftify_core::error::MembershipError;
use raftify_core::{ClusterId, Config, Forwarding, LeaderRequest, Reservation, Responder};
use tonic::Request;

use crate::channels::server_counters::ServerCounters;
use crate::verbs::remote_node::CallError;
use crate::verbs::verb::{
    Answered, Asked, Client, LeaderVerb, NotAnswered, Returned, Served, ServingNode, Verb, ask_leader,
};
use crate::wire::proto::reserve_node_id_reply::Outcome;
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct ReserveNodeId;

impl Verb for ReserveNodeId {
    type Request = proto::ReserveNodeIdRequest;
    type Reply = proto::ReserveNodeIdReply;
    type Answer = Reservation;
    type Error = MembershipError;

    const REPEATABLE: bool = false;
    const DEADLINE: fn(&Config) -> Duration = |config| config.membership_timeout;
    const COUNTER: fn(&ServerCounters) -> &AtomicU64 = |counters| &counters.id_reservations;

    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request {
        proto::ReserveNodeIdRequest { header: Some(header), forwarded }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: request.forwarded, verb: Ok(ReserveNodeId) }
    }

    async fn send(mut client: Client, request: Request<Self::Request>) -> Returned<Self> {
        client.reserve_node_id(request).await
    }

    async fn serve<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        ask_leader(node, self, forwarding).await
    }

    fn to_reply(header: Option<proto::Header>, outcome: Result<Reservation, proto::Refusal>) -> Self::Reply {
        let outcome = outcome.map(|reservation| wire::reservation_to_wire(&reservation));
        let outcome = outcome.map_or_else(Outcome::Refusal, Outcome::Reservation);
        proto::ReserveNodeIdReply { header, outcome: Some(outcome) }
    }

    fn from_reply(reply: Self::Reply) -> Result<Answered<Reservation>, NotAnswered> {
        match reply.outcome.ok_or_else(NotAnswered::empty)? {
            Outcome::Reservation(reservation) => {
                let answer = wire::reservation_from_wire(&reservation)?;
                Ok(Answered { header: reply.header, answer })
            }
            Outcome::Refusal(refusal) => Err(NotAnswered::Refusal(refusal)),
        }
    }
}

impl ReserveNodeId {
    /// The reservation with the cluster of the id.
    pub(crate) fn with_cluster(
        answered: Answered<Reservation>,
    ) -> Result<(ClusterId, Reservation), CallError<MembershipError>> {
        let cluster_id = wire::check_header(answered.header.as_ref()).map_err(CallError::senseless)?;
        let cluster_id = cluster_id.ok_or_else(|| CallError::senseless("it names no cluster"))?;
        Ok((cluster_id, answered.answer))
    }
}

impl LeaderVerb for ReserveNodeId {
    type Channel<R> = Responder<Reservation, MembershipError>;

    fn request<R>(self, reply: Responder<Reservation, MembershipError>) -> LeaderRequest<R> {
        LeaderRequest::ReserveNodeId { reply }
    }
}
