//! Which node answers at an address: one short call, on a connection that is closed afterwards.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use raftify_core::error::ReadError;
use raftify_core::{CheckedConfig, Forwarding, Identity, Sender, Started, Status};
use tonic::Request;
use tonic::transport::Endpoint;

use crate::runtime::calls::CallPermits;
use crate::runtime::endpoint::endpoint;
use crate::security::dialer::Dialer;
use crate::verbs::remote_node::{CallError, RemoteNode};
use crate::verbs::verb::{
    Answered, Asked, Client, Counter, NotAnswered, Returned, Served, ServingNode, Setting, Verb,
};
use crate::wire::identification::Identification;
use crate::wire::{self, RequestRejected, proto};

/// Answered whichever cluster the request names, also before the node belongs to one.
#[derive(Clone, Debug)]
pub(crate) struct Identify(pub(crate) proto::IdentifyRequest);

impl Identify {
    /// Which node answers there, in any cluster. The request does not say which node sends it.
    pub(crate) fn anonymous() -> Identify {
        let header = Some(wire::header(None));
        Identify(proto::IdentifyRequest { header, ..proto::IdentifyRequest::default() })
    }

    /// Calls the node there, over its own connection.
    async fn call_at(
        self,
        dialer: &Dialer,
        endpoint: &Endpoint,
        within: Duration,
    ) -> Result<Identification, CallError<ReadError>> {
        let node = RemoteNode::new(dialer.connect_lazily(endpoint), CallPermits::of_client(), Arc::default());
        Ok(node.call(self, Forwarding::Never, within).await?.answer)
    }
}

impl Verb for Identify {
    type Request = proto::IdentifyRequest;
    type Reply = proto::IdentifyReply;
    type Answer = Identification;
    type Error = ReadError;

    const REPEATABLE: bool = true;
    const OF_ANY_CLUSTER: bool = true;
    const DEADLINE: Setting = |config| config.connect_timeout;
    const COUNTER: Counter = |counters| &counters.identifications;

    fn to_wire(self, _: proto::Header, _: bool) -> Self::Request {
        self.0
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        Asked { header: request.header, forwarded: false, verb: Ok(Identify(request)) }
    }

    async fn send(mut client: Client, request: Request<Self::Request>) -> Returned<Self> {
        client.identify(request).await
    }

    fn admit<N: ServingNode>(_: &N, header: Option<&proto::Header>) -> Result<(), RequestRejected> {
        wire::check_header(header).map(drop)
    }

    async fn serve<N: ServingNode>(self, node: &N, _: Forwarding) -> Served<Self> {
        node.identify(self.0).map(Ok)
    }

    /// A node identifies itself or rejects the request: the verb has no refusal.
    fn to_reply(
        header: Option<proto::Header>,
        outcome: Result<Identification, proto::Refusal>,
    ) -> Self::Reply {
        outcome.map_or_else(|_| Self::Reply::default(), |node| wire::identification_to_wire(header, node))
    }

    fn from_reply(reply: Self::Reply) -> Result<Answered<Identification>, NotAnswered> {
        Ok(Answered { header: reply.header, answer: wire::identification_from_wire(reply)? })
    }
}

/// Which node answers at this address.
///
/// # Errors
/// Why no node answered, as text that includes the address.
pub(crate) async fn probe(
    dialer: &Dialer,
    address: &str,
    within: Duration,
) -> Result<Identification, String> {
    let endpoint = endpoint(address, within).map_err(|error| format!("{address}: {error}"))?;
    let identified = Identify::anonymous().call_at(dialer, &endpoint, within).await;
    identified.map_err(|error| match error {
        CallError::NotSent(reason) => format!("{address} cannot be connected to ({reason})"),
        CallError::TimedOut(after) => format!("{address} did not answer within {} ms", after.as_millis()),
        CallError::Lost(reason) => format!("{address} gave no answer of a raftify node ({reason})"),
        error @ (CallError::Rejected(_) | CallError::Refused(_)) => {
            format!("{address}: {}", error.into_verb_error())
        }
    })
}

/// The address that the cluster has for this node, if another process runs as this node there: then this node
/// was started on a copy of its directory, and both nodes learn of it. Probed only if this node is started at
/// another address.
pub(crate) async fn original_at(
    dialer: &Dialer,
    status: &Status,
    started: Started,
    own_address: &str,
    config: &CheckedConfig,
) -> Option<String> {
    let Identity { cluster_id, node_id, incarnation } = status.identity?;
    let recorded = &status.members.get(node_id)?.address;
    if recorded == own_address {
        return None;
    }
    let members_as_of = status.members.as_of();
    let sender = Sender { id: node_id, incarnation, members_as_of, started };
    let request = proto::IdentifyRequest {
        header: Some(wire::header(Some(cluster_id))),
        sender: Some(wire::sender_to_wire(&sender, own_address)),
        receiver: Some(wire::receiver_to_wire(node_id, Some(incarnation))),
    };
    let within = config.connect_timeout.min(config.election_timeout);
    let answer = Identify(request).call_at(dialer, &endpoint(recorded, within).ok()?, within).await.ok()?;
    (answer.identity == status.identity).then(|| recorded.clone())
}

/// Probes all addresses at once.
pub(crate) async fn probe_all<'a>(
    dialer: &Dialer,
    addresses: impl IntoIterator<Item = &'a str>,
    within: Duration,
) -> Vec<(&'a str, Result<Identification, String>)> {
    join_all(
        addresses.into_iter().map(|address| async move { (address, probe(dialer, address, within).await) }),
    )
    .await
}
