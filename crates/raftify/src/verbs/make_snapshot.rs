//! Takes a snapshot of the state machine of the node that is asked.

use raftify_core::error::SnapshotError;
use raftify_core::{Forwarding, LogPosition, NodeId, ServerRequestMsg};

use crate::channels::reply::channel;
use crate::verbs::verb::{Asked, Counter, Permission, Served, ServingNode, Setting, Verb, ask, messages};
use crate::wire::{self, RequestRejected, proto};

#[derive(Clone, Debug)]
pub(crate) struct MakeSnapshot {
    /// The node that is meant.
    pub(crate) id: NodeId,
}

impl Verb for MakeSnapshot {
    type Answer = LogPosition;
    type Error = SnapshotError;

    const REPEATABLE: bool = false;
    const DEADLINE: Setting = |config| config.snapshot_timeout;
    const COUNTER: Counter = |counters| &counters.requested_snapshots;

    messages!(
        make_snapshot: MakeSnapshotRequest => MakeSnapshotReply, make_snapshot_reply::Position,
        |position: LogPosition| proto::Position { term: position.term.0, index: position.index.0 },
        |position| wire::position_from_wire("the snapshot's position", Some(position))?
    );

    fn to_wire(self, header: proto::Header, _: bool) -> Self::Request {
        proto::MakeSnapshotRequest { header: Some(header), node_id: self.id.get() }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        let verb = wire::node_id("the node's id", request.node_id).map(|id| MakeSnapshot { id });
        Asked { header: request.header, forwarded: false, verb }
    }

    fn permission(&self) -> Permission<'_> {
        Permission::Administrator { method: "MakeSnapshot" }
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        let own = node.status().node_id;
        if self.id != own {
            return Err(RequestRejected::OtherNode { meant: self.id, own });
        }
        let (reply, answer) = channel();
        ask::<Self, N>(node, ServerRequestMsg::MakeSnapshot { reply }, answer).await
    }
}
