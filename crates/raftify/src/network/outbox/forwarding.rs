//! Requests that are forwarded to the leader, and their answers back: at most once each, and no more of them at a time
//! than this node would accept as leader.

use raftify_core::{CheckedConfig, Forward, Forwarding, LeaderRequest, NodeId, ProposalReply};
use tracing::debug;

use crate::channels::reply::RemoteReply;
use crate::network::remote_node::{CallError, RemoteNode};
use crate::wire::VerbError;

/// Why a request was not sent.
pub(crate) enum Unsent {
    UnknownPeer(NodeId),
    Busy(u64),
}

impl Unsent {
    fn into_error<E: VerbError>(self) -> E {
        match self {
            Unsent::UnknownPeer(id) => E::not_sent(format!("node {id} is not known here")),
            Unsent::Busy(waiting) => E::busy(waiting),
        }
    }
}

pub(crate) fn refuse_request<R: ProposalReply>(request: LeaderRequest<R>, why: Unsent) {
    match request {
        LeaderRequest::Propose { reply, .. } => reply.refuse(why.into_error()),
        LeaderRequest::ChangeMembership { reply, .. } => reply.answer(Err(why.into_error())),
        LeaderRequest::ReserveNodeId { reply } => reply.answer(Err(why.into_error())),
        LeaderRequest::TransferLeader { reply, .. } => reply.answer(Err(why.into_error())),
    }
}

pub(crate) async fn pass_on<R: RemoteReply>(node: RemoteNode, forward: Forward<R>, config: &CheckedConfig) {
    let once = Forwarding::Never;
    match forward.request {
        LeaderRequest::Propose { payload, reply } => {
            match node.propose(payload, once, config.propose_timeout).await {
                Ok(encoded) => reply.deliver(encoded),
                Err(error) => reply.refuse(told(forward.to, error)),
            }
        }
        LeaderRequest::ChangeMembership { request, reply } => {
            let answer = node.change_membership(&request, once, config.membership_timeout).await;
            reply.answer(answer.map_err(|error| told(forward.to, error)));
        }
        LeaderRequest::ReserveNodeId { reply } => {
            let answer = node.reserve_node_id(once, config.membership_timeout).await;
            reply.answer(answer.map(|(_, reservation)| reservation).map_err(|error| told(forward.to, error)));
        }
        LeaderRequest::TransferLeader { to, reply } => {
            let answer = node.transfer_leader(to, once, config.membership_timeout).await;
            reply.answer(answer.map_err(|error| told(forward.to, error)));
        }
    }
}

/// The verb's error has no field for why a node was not reached or rejected the request: the reason is logged.
fn told<E: VerbError + std::fmt::Debug>(to: NodeId, error: CallError<E>) -> E {
    debug!(peer = %to, ?error, "a request for the leader failed");
    let error = error.into_verb_error();
    match error.stopped() {
        Some(reason) if reason.nothing_happened() => E::not_sent(format!("node {to}: {reason}")),
        // If it were returned unchanged, it would mean that this node has stopped.
        Some(reason) => E::lost(format!("node {to}: {reason}")),
        None => error,
    }
}
