//! Identifies the node at an address: one short call, on a connection that is closed afterwards.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use raftify_core::members::MembershipRefusal;
use raftify_core::{
    CheckedConfig, ClusterId, Identity, Member, MemberChange, Members, MembershipChange, MembershipCommand,
    Sender, Started, Status,
};

use crate::network::calls::CallPermits;
use crate::network::endpoint::endpoint;
use crate::network::remote_node::{CallError, RemoteNode};
use crate::security::dialer::Dialer;
use crate::wire::identification::Identification;
use crate::wire::{self, proto};

/// How long a change of the membership waits for an answer from the address of a node that it adds.
const ADDED_NODE_TIMEOUT: Duration = Duration::from_secs(1);

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
    let node = RemoteNode::new(dialer.connect_lazily(&endpoint), CallPermits::of_client(), Arc::default());
    node.identify(within).await.map_err(|error| match error {
        CallError::NotSent(reason) => format!("{address} cannot be connected to ({reason})"),
        CallError::TimedOut(after) => format!("{address} did not answer within {} ms", after.as_millis()),
        CallError::Lost(reason) => format!("{address} gave no answer of a raftify node ({reason})"),
        error @ (CallError::Rejected(_) | CallError::Refused(_)) => {
            format!("{address}: {}", error.into_verb_error())
        }
    })
}

/// The address that the cluster has for this node, if another process runs as this node there: then this node was
/// started on a copy of its directory, and both nodes learn of it. Probed only if this node is started at another
/// address.
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
    let node = RemoteNode::new(
        dialer.connect_lazily(&endpoint(recorded, within).ok()?),
        CallPermits::of_client(),
        Arc::default(),
    );
    let answer = node.identify_with(within, request).await.ok()?;
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

/// Checks that no member answers at the address of a node that is about to be added. This detects two spellings of one
/// address (`localhost:1` and `127.0.0.1:1`). An address at which no node answers passes.
///
/// # Errors
/// Which member answers there.
pub(crate) async fn check_added_addresses(
    dialer: &Dialer,
    command: &MembershipCommand,
    members: &Members,
    cluster: Option<ClusterId>,
) -> Result<(), MembershipRefusal> {
    let added: Vec<&Member> = match command {
        MembershipCommand::Join(joiners) => joiners.iter().collect(),
        MembershipCommand::Change(MembershipChange::Steps { steps, .. }) => {
            let members = steps.iter().filter_map(|step| match step {
                MemberChange::Add(member) => Some(member),
                _ => None,
            });
            members.collect()
        }
        MembershipCommand::Change(MembershipChange::LeaveJoint) => Vec::new(),
    };
    // A known address was checked before, or is rejected without a check.
    let is_new = |member: &&&Member| members.iter().all(|known| known.address != member.address);
    let looks = added.iter().filter(is_new).map(|member| async move {
        let answer = probe(dialer, &member.address, ADDED_NODE_TIMEOUT).await.ok()?;
        let answers = answer.identity.filter(|identity| Some(identity.cluster_id) == cluster)?.node_id;
        let is_other = answers != member.id && members.get(answers).is_some();
        let (id, address) = (member.id, member.address.clone());
        is_other.then_some(MembershipRefusal::AnsweredByOther { id, address, answers })
    });
    join_all(looks).await.into_iter().flatten().next().map_or(Ok(()), Err)
}
