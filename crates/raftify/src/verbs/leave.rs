//! The node that is asked leaves the cluster: it has itself removed, and stops.

use raftify_core::error::{MembershipError, StopReason};
use raftify_core::{Forwarding, MembershipRequest, NodeId, VerbError};
use tokio::time::{Instant, sleep, timeout};

use crate::verbs::change_membership::{ChangeMembership, removal};
use crate::verbs::verb::{Asked, Counter, Permission, Served, ServingNode, Setting, Verb, messages};
use crate::wire::{self, RequestRejected, proto};

#[derive(Clone, Debug)]
pub(crate) struct Leave {
    /// The node that is meant: no other one may leave because it has the address by now.
    pub(crate) id: NodeId,
    pub(crate) force: bool,
}

impl Verb for Leave {
    type Answer = ();
    type Error = MembershipError;

    const REPEATABLE: bool = false;
    const DEADLINE: Setting = |config| config.membership_timeout;
    const COUNTER: Counter = |counters| &counters.leaves;

    messages!(
        leave: LeaveRequest => LeaveReply, leave_reply::Left,
        |()| proto::Left {},
        |left| {
            let proto::Left {} = left;
        }
    );

    fn to_wire(self, header: proto::Header, _: bool) -> Self::Request {
        proto::LeaveRequest { header: Some(header), node_id: self.id.get(), force: self.force }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        let proto::LeaveRequest { header, node_id, force } = request;
        let verb = wire::node_id("the node's id", node_id).map(|id| Leave { id, force });
        Asked { header, forwarded: false, verb }
    }

    fn permission(&self) -> Permission<'_> {
        Permission::Administrator { method: "Leave" }
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        let own = node.status().node_id;
        if self.id != own {
            return Err(RequestRejected::OtherNode { meant: self.id, own });
        }
        let lifecycle = node.lifecycle().clone();
        let leaving = lifecycle.begin_to_leave();
        let outcome = self.remove_itself(node).await?;
        match outcome.map_err(|error| error.explained(|| lifecycle.stop_reason())) {
            // This node may learn of its removal before it gets the answer.
            Ok(()) | Err(MembershipError::Stopped(StopReason::Removed { .. })) => {
                leaving.succeeded();
                // It stops by itself, once enough of the others know of its removal. The wait is bounded.
                let (at_most, lifecycle) = (node.config().membership_timeout, lifecycle.clone());
                tokio::spawn(async move {
                    let _ = timeout(at_most, lifecycle.stopping()).await;
                    lifecycle.ask_to_quit();
                });
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

impl Leave {
    /// Tries again as long as the answer is that leadership has moved: nothing was done then.
    async fn remove_itself<N: ServingNode>(&self, node: &N) -> Served<Self> {
        let request = MembershipRequest::from(removal(self.id));
        let request = if self.force { request.forced() } else { request };
        let until = Instant::now() + node.config().membership_timeout;
        loop {
            let change = ChangeMembership { request: request.clone() };
            match change.serve(node, Forwarding::Allowed).await? {
                Ok(_) => return Ok(Ok(())),
                Err(error) if !error.leadership_moved() || Instant::now() >= until => return Ok(Err(error)),
                Err(_) => sleep(node.config().tick_interval).await,
            }
        }
    }
}
