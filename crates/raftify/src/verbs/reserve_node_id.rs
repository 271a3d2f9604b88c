//! Reserves a node id that no other caller will get.

use raftify_core::error::MembershipError;
use raftify_core::{ClusterId, Forwarding, LeaderRequest, Reservation, Responder};

use crate::verbs::remote_node::CallError;
use crate::verbs::verb::{
    Answered, Asked, Counter, LeaderVerb, Served, ServingNode, Setting, Verb, ask_leader, messages,
};
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct ReserveNodeId;

impl Verb for ReserveNodeId {
    type Answer = Reservation;
    type Error = MembershipError;

    const REPEATABLE: bool = false;
    const DEADLINE: Setting = |config| config.membership_timeout;
    const COUNTER: Counter = |counters| &counters.id_reservations;

    messages!(
        reserve_node_id: ReserveNodeIdRequest => ReserveNodeIdReply, reserve_node_id_reply::Reservation,
        |reservation| wire::reservation_to_wire(&reservation),
        |reservation| wire::reservation_from_wire(&reservation)?
    );

    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request {
        proto::ReserveNodeIdRequest { header: Some(header), forwarded }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: request.forwarded, verb: Ok(ReserveNodeId) }
    }

    async fn serve<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        ask_leader(node, self, forwarding).await
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

    fn request<R>(self, reply: Self::Channel<R>) -> LeaderRequest<R> {
        LeaderRequest::ReserveNodeId { reply }
    }
}
