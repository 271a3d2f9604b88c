//! The leader's commit index, confirmed by a majority. Another node does not forward the request: it names
//! the leader.

use raftify_core::error::ReadError;
use raftify_core::{Forwarding, LocalRequestMsg, LogIndex, Responder, ServerRequestMsg};

use crate::channels::reply::channel;
use crate::verbs::verb::{
    Asked, Counter, NotAnswered, Served, ServingNode, Setting, StreamedVerb, Verb, ask, messages,
};
use crate::wire::proto::{streamed_reply, streamed_request};
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
    type Answer = LogIndex;
    type Error = ReadError;

    const REPEATABLE: bool = true;
    const DEADLINE: Setting = |config| config.read_timeout;
    const COUNTER: Counter = |counters| &counters.reads;

    messages!(
        read_index: ReadIndexRequest => ReadIndexReply, read_index_reply::Index,
        |index: LogIndex| index.0,
        |index| wire::log_index("the commit index", index)?
    );

    fn to_wire(self, header: proto::Header, _: bool) -> Self::Request {
        proto::ReadIndexRequest { header: Some(header) }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: false, verb: Ok(ReadIndex) }
    }

    fn to_streamed(&self) -> Option<streamed_request::Verb> {
        Some(streamed_request::Verb::ReadIndex(proto::StreamedReadIndex {}))
    }

    fn from_streamed(outcome: streamed_reply::Outcome) -> Result<LogIndex, NotAnswered> {
        match outcome {
            streamed_reply::Outcome::Index(index) => Ok(wire::log_index("the commit index", index)?),
            _ => Err("it is for another verb".into()),
        }
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        let (reply, answer) = channel();
        ask::<Self, N>(node, ServerRequestMsg::ConfirmReadIndex { reply }, answer).await
    }
}

impl StreamedVerb for ReadIndex {
    fn to_outcome(index: LogIndex) -> streamed_reply::Outcome {
        streamed_reply::Outcome::Index(index.0)
    }
}
