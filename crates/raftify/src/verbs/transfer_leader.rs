//! Transfers leadership to another voter, and returns the new leader.

use raftify_core::error::TransferError;
use raftify_core::{Forwarding, LeaderRequest, NodeId, Responder};

use crate::verbs::verb::{
    Asked, Counter, LeaderVerb, Permission, Served, ServingNode, Setting, Verb, ask_leader, messages,
};
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct TransferLeader {
    /// `None`: the most caught-up voter that is alive.
    pub(crate) to: Option<NodeId>,
}

impl Verb for TransferLeader {
    type Answer = NodeId;
    type Error = TransferError;

    const REPEATABLE: bool = false;
    const DEADLINE: Setting = |config| config.membership_timeout;
    const COUNTER: Counter = |counters| &counters.leadership_transfers;

    messages!(
        transfer_leader: TransferLeaderRequest => TransferLeaderReply, transfer_leader_reply::Leader,
        |leader: NodeId| leader.get(),
        |id| wire::node_id("the leader's id", id)?
    );

    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request {
        proto::TransferLeaderRequest { header: Some(header), to: self.to.map(NodeId::get), forwarded }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        let proto::TransferLeaderRequest { header, to, forwarded } = request;
        let to = to.map(|id| wire::node_id("the new leader's id", id)).transpose();
        Asked { header, forwarded, verb: to.map(|to| TransferLeader { to }) }
    }

    fn permission(&self) -> Permission<'_> {
        Permission::Administrator { method: "TransferLeader" }
    }

    async fn serve<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        ask_leader(node, self, forwarding).await
    }
}

impl LeaderVerb for TransferLeader {
    type Channel<R> = Responder<NodeId, TransferError>;

    fn request<R>(self, reply: Self::Channel<R>) -> LeaderRequest<R> {
        LeaderRequest::TransferLeader { to: self.to, reply }
    }
}
