//! Requests to one certain member, which no other node must serve in its place.

use raftify_core::{Forwarding, NodeId, VerbError};
use tokio::time::Instant;

use crate::client::cluster_connection::ClusterConnection;
use crate::client::error::{ClientError, UnreachableNode};
use crate::verbs::remote_node::CallError;
use crate::verbs::verb::Verb;

impl ClusterConnection {
    /// Asks the member `id`, once, at the address that the membership has.
    pub(crate) async fn ask_member<V: Verb>(
        &self,
        id: NodeId,
        verb: V,
    ) -> Result<V::Answer, ClientError<V::Error>> {
        let until = Instant::now() + self.deadline;
        let not_sent =
            |error: ClientError<_>| error.map_answer(|error| V::Error::not_sent(format!("{error}")));
        let members = self.members().await.map_err(not_sent)?;
        let Some(member) = members.get(id) else {
            return Err(ClientError::NotAMember {
                id,
                members: members.iter().map(|member| member.id).collect(),
            });
        };
        let address = member.address.clone();
        let node = match self.node(&address.as_str().into(), until).await {
            Ok(node) => node,
            Err(problem) => return Err(ClientError::Unreachable(vec![problem])),
        };
        let left = until.saturating_duration_since(Instant::now());
        node.call(verb, Forwarding::Allowed, left).await.map(|answered| answered.answer).map_err(|error| {
            match error {
                CallError::NotSent(reason) => {
                    ClientError::Unreachable(vec![UnreachableNode::NotConnected { address, reason }])
                }
                CallError::Rejected(rejection) => ClientError::Rejected(rejection),
                error => ClientError::Answer(error.into_verb_error()),
            }
        })
    }
}
