//! Replicates an entry, and returns the state machine's reply as postcard.

use bytes::Bytes;
use raftify_core::error::{ProposeError, UnknownOutcome};
use raftify_core::{Forwarding, LeaderRequest, ServerRequestMsg};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::channels::reply::dropped;
use crate::verbs::verb::{
    Asked, Counter, LeaderVerb, NotAnswered, Served, ServingNode, Setting, StreamedVerb, Verb, ask, messages,
};
use crate::wire::proto::{streamed_reply, streamed_request};
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct Propose {
    /// The encoded entry. It is passed on, never copied, except for a small one out of its receive buffer.
    pub(crate) payload: Bytes,
}

impl Verb for Propose {
    type Answer = Bytes;
    type Error = ProposeError;

    const REPEATABLE: bool = false;
    const DEADLINE: Setting = |config| config.propose_timeout;
    const COUNTER: Counter = |counters| &counters.proposals;

    messages!(
        propose: ProposeRequest => ProposeReply, propose_reply::Reply,
        |reply| reply,
        |reply| wire::owned(reply)
    );

    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request {
        proto::ProposeRequest { header: Some(header), payload: self.payload, forwarded }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        let proto::ProposeRequest { header, payload, forwarded } = request;
        Asked { header, forwarded, verb: Ok(Propose { payload }) }
    }

    fn payload_bytes(request: &Self::Request) -> usize {
        request.payload.len()
    }

    fn to_streamed(&self) -> Option<streamed_request::Verb> {
        Some(streamed_request::Verb::Propose(self.payload.clone()))
    }

    fn from_streamed(outcome: streamed_reply::Outcome) -> Result<Bytes, NotAnswered> {
        match outcome {
            streamed_reply::Outcome::Reply(reply) => Ok(wire::owned(reply)),
            _ => Err("it is for another verb".into()),
        }
    }

    /// A forwarded proposal is counted by the node at which it was proposed.
    async fn serve<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        let begin = Instant::now();
        let served = self.replicate(node, forwarding).await;
        if forwarding != Forwarding::Never
            && let Ok(outcome) = &served
        {
            node.metrics().proposed(outcome, begin.elapsed());
        }
        served
    }
}

impl Propose {
    async fn replicate<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        let _place = match node.proposals().enter_with(self.payload.len() as u64) {
            Ok(place) => place,
            Err(waiting) => return Ok(Err(ProposeError::Busy { waiting })),
        };
        if let Err(reason) = node.check_entry(&self.payload) {
            return Ok(Err(ProposeError::Undecodable(reason)));
        }
        let (answered, answer) = oneshot::channel();
        let proposal = Propose { payload: wire::owned(self.payload) };
        let request = proposal.request(node.remote_reply(answered));
        let request = ServerRequestMsg::ForLeader { request, forwarding };
        let answer = async { answer.await.unwrap_or_else(|_| Err(dropped())) };
        Ok(ask::<Self, N>(node, request, answer).await?.and_then(small_enough))
    }
}

impl StreamedVerb for Propose {
    fn to_outcome(reply: Bytes) -> streamed_reply::Outcome {
        streamed_reply::Outcome::Reply(reply)
    }
}

impl LeaderVerb for Propose {
    type Channel<R> = R;

    fn request<R>(self, reply: R) -> LeaderRequest<R> {
        LeaderRequest::Propose { payload: self.payload, reply }
    }
}

/// A reply that fits into a message.
fn small_enough(reply: Bytes) -> Result<Bytes, ProposeError> {
    let limit = wire::RECEIVE_BYTES_LIMIT - 1024;
    if reply.len() > limit {
        let reason = format!("it has {} bytes, over the network it may have {limit}", reply.len());
        return Err(ProposeError::Unknown(UnknownOutcome::BadReply(reason)));
    }
    Ok(reply)
}
