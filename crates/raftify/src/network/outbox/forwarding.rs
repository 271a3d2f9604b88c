//! Requests that are forwarded to the leader, and their answers back: at most once each, and no more of them
//! at a time than this node would accept as leader.

use raftify_core::{CheckedConfig, Forwarding, LeaderRequest, NodeId, Refusal, VerbError};
use tracing::debug;

use crate::channels::reply::RemoteReply;
use crate::verbs::remote_node::RemoteNode;
use crate::verbs::verb::Verb;
use crate::verbs::{
    change_membership::ChangeMembership, propose::Propose, reserve_node_id::ReserveNodeId,
    transfer_leader::TransferLeader,
};

/// Why a request was not sent.
pub(crate) enum Unsent {
    UnknownPeer(NodeId),
    Busy(u64),
}

impl Refusal for Unsent {
    fn error<E: VerbError>(self) -> E {
        match self {
            Unsent::UnknownPeer(id) => E::not_sent(format!("node {id} is not known here")),
            Unsent::Busy(waiting) => E::busy_there(waiting),
        }
    }
}

/// The leader, as this node knows it.
pub(crate) struct Leader {
    pub(crate) id: NodeId,
    pub(crate) node: RemoteNode,
    pub(crate) config: CheckedConfig,
}

impl Leader {
    pub(crate) async fn serve<R: RemoteReply>(self, request: LeaderRequest<R>) {
        match request {
            LeaderRequest::Propose { payload, reply } => match self.ask(Propose { payload }).await {
                Ok(encoded) => reply.deliver(encoded),
                Err(error) => reply.refuse(error),
            },
            LeaderRequest::ChangeMembership { request, reply } => {
                reply.answer(self.ask(ChangeMembership { request }).await);
            }
            LeaderRequest::ReserveNodeId { reply } => reply.answer(self.ask(ReserveNodeId).await),
            LeaderRequest::TransferLeader { to, reply } => {
                reply.answer(self.ask(TransferLeader { to }).await);
            }
        }
    }

    /// The verb's error has no field for why a node was not reached or rejected the request: the reason is
    /// logged.
    async fn ask<V: Verb>(&self, verb: V) -> Result<V::Answer, V::Error> {
        let (to, timeout) = (self.id, V::DEADLINE(&self.config));
        let error = match self.node.call(verb, Forwarding::Never, timeout).await {
            Ok(answered) => return Ok(answered.answer),
            Err(error) => error,
        };
        debug!(peer = %to, ?error, "a request for the leader failed");
        let error = error.into_verb_error();
        Err(match error.stopped() {
            Some(reason) if reason.nothing_happened() => V::Error::not_sent(format!("node {to}: {reason}")),
            // If it were returned unchanged, it would mean that this node has stopped.
            Some(reason) => V::Error::lost(format!("node {to}: {reason}")),
            None => error,
        })
    }
}
