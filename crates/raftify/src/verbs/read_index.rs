//! The leader's commit index, confirmed by a majority. Another node does not forward the request: it names the leader.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use raftify_core::error::ReadError;
use raftify_core::{Config, Forwarding, LocalRequestMsg, LogIndex, Responder, ServerRequestMsg};
use tonic::Request;

use crate::channels::reply::channel;
use crate::channels::server_counters::ServerCounters;
use crate::verbs::verb::{Answered, Asked, Client, NotAnswered, Returned, Served, ServingNode, Verb, ask};
use crate::wire::proto::read_index_reply::Outcome;
use crate::wire::{self, proto};

#[derive(Clone, Debug)]
pub(crate) struct ReadIndex;

impl ReadIndex {
    /// For the user of this node: answered when this node has applied the index.
    pub(crate) fn of_this_node<R>(reply: Responder<LogIndex, ReadError>) -> LocalRequestMsg<R> {
        LocalRequestMsg::ReadIndex { reply }
    }
}

impl Verb for ReadIndex {
    type Request = proto::ReadIndexRequest;
    type Reply = proto::ReadIndexReply;
    type Answer = LogIndex;
    type Error = ReadError;

    const REPEATABLE: bool = true;
    const DEADLINE: fn(&Config) -> Duration = |config| config.read_timeout;
    const COUNTER: fn(&ServerCounters) -> &AtomicU64 = |counters| &counters.reads;

    fn to_wire(self, header: proto::Header, _: bool) -> Self::Request {
        proto::ReadIndexRequest { header: Some(header) }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: false, verb: Ok(ReadIndex) }
    }

    async fn send(mut client: Client, request: Request<Self::Request>) -> Returned<Self> {
        client.read_index(request).await
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        let (reply, answer) = channel();
        ask::<Self, N>(node, ServerRequestMsg::ConfirmReadIndex { reply }, answer).await
    }

    fn to_reply(header: Option<proto::Header>, outcome: Result<LogIndex, proto::Refusal>) -> Self::Reply {
        let outcome = outcome.map_or_else(Outcome::Refusal, |index| Outcome::Index(index.0));
        proto::ReadIndexReply { header, outcome: Some(outcome) }
    }

    fn from_reply(reply: Self::Reply) -> Result<Answered<LogIndex>, NotAnswered> {
        match reply.outcome.ok_or_else(NotAnswered::empty)? {
            Outcome::Index(index) => {
                Ok(Answered { header: reply.header, answer: wire::log_index("the commit index", index)? })
            }
            Outcome::Refusal(refusal) => Err(NotAnswered::Refusal(refusal)),
        }
    }
}
