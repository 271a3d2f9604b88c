//! Transfers leadership to another voter, and returns the new leader.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use raftify_core::error::TransferError;
use raftify_core::{Config, Forwarding, LeaderRequest, NodeId, Responder};
use tonic::Request;

use crate::channels::server_counters::ServerCounters;
use crate::verbs::verb::{
    Answered, Asked, Client, LeaderVerb, NotAnswered, Returned, Served, ServingNode, Verb, ask_leader,
};
use crate::wire::proto::transfer_leader_reply::Outcome;
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct TransferLeader {
    /// `None`: the most caught-up voter that is alive.
    pub(crate) to: Option<NodeId>,
}

impl Verb for TransferLeader {
    type Request = proto::TransferLeaderRequest;
    type Reply = proto::TransferLeaderReply;
    type Answer = NodeId;
    type Error = TransferError;

    const REPEATABLE: bool = false;
    const DEADLINE: fn(&Config) -> Duration = |config| config.membership_timeout;
    const COUNTER: fn(&ServerCounters) -> &AtomicU64 = |counters| &counters.leadership_transfers;

    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request {
        proto::TransferLeaderRequest { header: Some(header), to: self.to.map(NodeId::get), forwarded }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        let proto::TransferLeaderRequest { header, to, forwarded } = request;
        let to = to.map(|id| wire::node_id("the new leader's id", id)).transpose();
        Asked { header, forwarded, verb: to.map(|to| TransferLeader { to }) }
    }

    async fn send(mut client: Client, request: Request<Self::Request>) -> Returned<Self> {
        client.transfer_leader(request).await
    }

    async fn serve<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        ask_leader(node, self, forwarding).await
    }

    fn to_reply(header: Option<proto::Header>, outcome: Result<NodeId, proto::Refusal>) -> Self::Reply {
        let outcome = outcome.map_or_else(Outcome::Refusal, |leader| Outcome::Leader(leader.get()));
        proto::TransferLeaderReply { header, outcome: Some(outcome) }
    }

    fn from_reply(reply: Self::Reply) -> Result<Answered<NodeId>, NotAnswered> {
        match reply.outcome.ok_or_else(NotAnswered::empty)? {
            Outcome::Leader(id) => {
                Ok(Answered { header: reply.header, answer: wire::node_id("the leader's id", id)? })
            }
            Outcome::Refusal(refusal) => Err(NotAnswered::Refusal(refusal)),
        }
    }
}

impl LeaderVerb for TransferLeader {
    type Channel<R> = Responder<NodeId, TransferError>;

    fn request<R>(self, reply: Responder<NodeId, TransferError>) -> LeaderRequest<R> {
        LeaderRequest::TransferLeader { to: self.to, reply }
    }
}
