//! The full diagnostics of the node that is asked. The request only reads, so it is valid for any cluster.

use raftify_core::error::{ReadError, StopReason};
use raftify_core::{Forwarding, Inspection, LocalRequestMsg, Responder, ServerRequestMsg};

use crate::channels::reply::channel;
use crate::verbs::verb::{Asked, Counter, Served, ServingNode, Setting, Verb, ask, messages};
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
    type Answer = Inspection;
    type Error = ReadError;

    const REPEATABLE: bool = true;
    const OF_ANY_CLUSTER: bool = true;
    const DEADLINE: Setting = |config| config.read_timeout;
    const COUNTER: Counter = |counters| &counters.inspections;

    messages!(
        inspect: InspectRequest => InspectReply, inspect_reply::Inspection,
        |inspection| wire::encode_detail(&inspection),
        |inspection| wire::decode_detail(&inspection).ok_or("the inspection is of another version")?
    );

    fn to_wire(self, header: proto::Header, _: bool) -> Self::Request {
        proto::InspectRequest { header: Some(header) }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: false, verb: Ok(Inspect) }
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        let (reply, answer) = channel::<Inspection, StopReason>();
        let answer = async {
            let inspection = answer.await.map_err(ReadError::from)?;
            Ok(Inspection { disk: node.metrics().disk_space(), ..inspection })
        };
        ask::<Self, N>(node, ServerRequestMsg::Inspect { reply }, answer).await
    }
}
