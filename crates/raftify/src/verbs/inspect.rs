//! The full diagnostics of the node that is asked. The request only reads, so it is valid for any cluster.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use raftify_core::error::{ReadError, StopReason};
use raftify_core::{Config, Forwarding, Inspection, LocalRequestMsg, Responder, ServerRequestMsg};
use tonic::Request;

use crate::channels::reply::channel;
use crate::channels::server_counters::ServerCounters;
use crate::verbs::verb::{Answered, Asked, Client, NotAnswered, Returned, Served, ServingNode, Verb, ask};
use crate::wire::proto::inspect_reply::Outcome;
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct Inspect;

impl Inspect {
    /// For the user of this node.
    pub(crate) fn of_this_node<R>(reply: Responder<Inspection, StopReason>) -> LocalRequestMsg<R> {
        LocalRequestMsg::Inspect { reply }
    }
}

impl Verb for Inspect {
    type Request = proto::InspectRequest;
    type Reply = proto::InspectReply;
    type Answer = Inspection;
    type Error = ReadError;

    const REPEATABLE: bool = true;
    const DEADLINE: fn(&Config) -> Duration = |config| config.read_timeout;
    const COUNTER: fn(&ServerCounters) -> &AtomicU64 = |counters| &counters.inspections;

    fn to_wire(self, _: proto::Header, _: bool) -> Self::Request {
        proto::InspectRequest { header: Some(wire::header(None)) }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: false, verb: Ok(Inspect) }
    }

    async fn send(mut client: Client, request: Request<Self::Request>) -> Returned<Self> {
        client.inspect(request).await
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        let (reply, answer) = channel::<Inspection, StopReason>();
        let answer = async { answer.await.map_err(ReadError::from) };
        ask::<Self, N>(node, ServerRequestMsg::Inspect { reply }, answer).await
    }

    fn to_reply(header: Option<proto::Header>, outcome: Result<Inspection, proto::Refusal>) -> Self::Reply {
        let outcome = outcome.map(|inspection| wire::encode_detail(&inspection));
        let outcome = outcome.map_or_else(Outcome::Refusal, Outcome::Inspection);
        proto::InspectReply { header, outcome: Some(outcome) }
    }

    fn from_reply(reply: Self::Reply) -> Result<Answered<Inspection>, NotAnswered> {
        match reply.outcome.ok_or_else(NotAnswered::empty)? {
            Outcome::Inspection(inspection) => match wire::decode_detail(&inspection) {
                Some(answer) => Ok(Answered { header: None, answer }),
                None => Err(NotAnswered::Malformed("the inspection is of another version".to_owned())),
            },
            Outcome::Refusal(refusal) => Err(NotAnswered::Refusal(refusal)),
        }
    }
}
