//! An untyped connection to a cluster: finds the leader, retries the requests that are safe to retry, and
//! follows the members.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use raftify_core::error::{MembershipError, ProposeError, ReadError};
use raftify_core::members::check_address;
use raftify_core::{
    Again, ClusterId, Forwarding, Inspection, LogIndex, Member, MemberRole, Members, MembershipRequest,
    NodeId, Reservation, VerbError,
};
use tokio::time::{Instant, sleep, timeout};

use crate::client::error::{ClientError, InvalidAddress, UnreachableNode};
use crate::runtime::calls::CallPermits;
use crate::runtime::endpoint::endpoint;
use crate::runtime::transport::resolve;
use crate::security::dialer::Dialer;
use crate::verbs::asked_cluster::AskedCluster;
use crate::verbs::remote_node::{CallError, RemoteNode};
use crate::verbs::verb::{Answered, Verb};
use crate::verbs::{
    change_membership::ChangeMembership, identify::Identify, inspect::Inspect, propose::Propose,
    read_index::ReadIndex, reserve_node_id::ReserveNodeId,
};
use crate::wire;
use crate::wire::identification::Identification;

/// How long connecting to one address may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The time limit for a node to return the members.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after all known nodes have rejected the request; it doubles with each round.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A connection to a cluster, untyped: payloads and replies are bytes.
#[derive(Clone, Debug)]
pub(crate) struct ClusterConnection {
    pub(crate) deadline: Duration,
    waits_for_leader: bool,
    /// Each request has a separate call.
    is_unary: bool,
    pub(crate) given: Arc<[Arc<str>]>,
    pub(crate) dialer: Dialer,
    pub(crate) cluster: Arc<AskedCluster>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug)]
struct Known {
    /// The addresses in this order: the node that answered last comes first, an unresponsive node comes
    /// last.
    addresses: Vec<Arc<str>>,
    nodes: BTreeMap<Arc<str>, RemoteNode>,
    /// The membership index of the addresses; zero for the addresses given by the user.
    as_of: LogIndex,
    /// Whether a request for the members is under way.
    is_refreshing: bool,
}

/// Why a round of attempts brought no result.
enum RoundFailure<E> {
    /// Another round would not help, or could do harm.
    Final(ClientError<E>),
    /// A node answered, or may still answer.
    Later(E),
}

impl ClusterConnection {
    /// Checks the form of the addresses; connects on first use. The limit for each request is `deadline`, all
    /// attempts together.
    pub(crate) fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        deadline: Duration,
    ) -> Result<ClusterConnection, InvalidAddress> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        if addresses.is_empty() {
            return Err(InvalidAddress::None);
        }
        for address in &addresses {
            check_address(address)?;
        }
        let given: Arc<[Arc<str>]> = addresses.into_iter().map(Arc::from).collect();
        let (cluster, known, dialer) = (Arc::default(), Known::only(&given), Dialer::default());
        let waits_for_leader = true;
        Ok(ClusterConnection { deadline, waits_for_leader, is_unary: false, given, dialer, cluster, known })
    }

    /// The same connection with this dialer, before its first request.
    pub(crate) fn with_dialer(self, dialer: Dialer) -> ClusterConnection {
        ClusterConnection { dialer, ..self }
    }

    /// The same addresses without the connections so far.
    pub(crate) fn unconnected(self) -> ClusterConnection {
        ClusterConnection { known: Known::only(&self.given), ..self }
    }

    /// The same addresses, with a separate call for each request.
    pub(crate) fn unary(self) -> ClusterConnection {
        ClusterConnection { is_unary: true, ..self.unconnected() }
    }

    /// The same connection with this limit for a request.
    pub(crate) fn with_deadline(self, deadline: Duration) -> ClusterConnection {
        ClusterConnection { deadline, ..self }
    }

    /// The same connection, whose requests fail at once if no leader is known.
    pub(crate) fn without_waiting(self) -> ClusterConnection {
        ClusterConnection { waits_for_leader: false, ..self }
    }

    /// A connection to this cluster, regardless of the nodes at the addresses.
    pub(crate) fn to(self, cluster_id: ClusterId) -> ClusterConnection {
        ClusterConnection { cluster: Arc::new(AskedCluster::of(cluster_id)), ..self }
    }

    /// Replicates an encoded entry; the reply is postcard of the state machine's reply type.
    pub(crate) async fn propose(&self, payload: Bytes) -> Result<Bytes, ClientError<ProposeError>> {
        let (bytes, limit) = (payload.len() as u64, wire::PAYLOAD_BYTES_LIMIT);
        if bytes > limit {
            return Err(ClientError::Answer(ProposeError::TooLarge { bytes, limit }));
        }
        self.ask(Propose { payload }).await
    }

    /// Changes the membership.
    pub(crate) async fn change_config(
        &self,
        request: &MembershipRequest,
    ) -> Result<Members, ClientError<MembershipError>> {
        self.ask(ChangeMembership { request: request.clone() }).await
    }

    /// A fresh node id, and its cluster.
    pub(crate) async fn reserve_node_id(
        &self,
    ) -> Result<(ClusterId, Reservation), ClientError<MembershipError>> {
        self.ask_for(ReserveNodeId, ReserveNodeId::with_cluster).await
    }

    /// The leader's confirmed commit index.
    pub(crate) async fn read_index(&self) -> Result<LogIndex, ClientError<ReadError>> {
        self.ask(ReadIndex).await
    }

    /// The state of the first of the given nodes that answers.
    pub(crate) async fn inspect(&self) -> Result<Inspection, ClientError<ReadError>> {
        let until = Instant::now() + self.deadline;
        let accept = |answered: Answered<Inspection>| Ok(answered.answer);
        match self.round(self.given.to_vec(), until, &Inspect, &accept).await {
            Ok((_, inspection)) => Ok(inspection),
            Err(RoundFailure::Final(error)) => Err(error),
            Err(RoundFailure::Later(answer)) => Err(ClientError::Answer(answer)),
        }
    }

    /// The membership, as a node of the cluster knows it.
    pub(crate) async fn members(&self) -> Result<Members, ClientError<ReadError>> {
        let is_own = |id: ClusterId| self.cluster.id().is_none_or(|own| own == id);
        let accept = |Answered { answer: node, .. }: Answered<Identification>| match node.identity {
            Some(identity) if is_own(identity.cluster_id) && !node.members.is_empty() => Ok(node.members),
            _ => Err(CallError::NotSent(format!("{} is no member of this cluster", node.address))),
        };
        self.ask_for(Identify::anonymous(), accept).await
    }

    /// Asks for a verb: see [`ask_for`](Self::ask_for).
    pub(crate) async fn ask<V: Verb>(&self, verb: V) -> Result<V::Answer, ClientError<V::Error>> {
        self.ask_for(verb, |answered| Ok(answered.answer)).await
    }

    /// Tries the nodes in rounds until one returns a result or a final answer, or the deadline has passed.
    async fn ask_for<V: Verb, T>(
        &self,
        verb: V,
        accept: impl Fn(Answered<V::Answer>) -> Result<T, CallError<V::Error>>,
    ) -> Result<T, ClientError<V::Error>> {
        let until = Instant::now() + self.deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let addresses = self.addresses();
            let answer = match self.round(addresses, until, &verb, &accept).await {
                Ok((address, result)) => {
                    self.lock().prefer(&address);
                    self.refresh_if_due(&address);
                    return Ok(result);
                }
                Err(RoundFailure::Final(error)) => return Err(error),
                Err(RoundFailure::Later(answer)) => answer,
            };
            if Instant::now() + pause >= until || (!self.waits_for_leader && answer.is_no_leader()) {
                return Err(ClientError::Answer(answer));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The addresses to try: the known members, and last the addresses given by the user.
    pub(crate) fn addresses(&self) -> Vec<Arc<str>> {
        let mut addresses = self.lock().addresses.clone();
        for given in self.given.iter() {
            if !addresses.contains(given) {
                addresses.push(given.clone());
            }
        }
        addresses
    }

    /// The node at `address` has answered. If the members of the cluster have changed since this client
    /// learned them, requests them in the background, at most once at a time, so that the client
    /// continues when all nodes that it knew are gone.
    fn refresh_if_due(&self, address: &str) {
        let node = {
            let mut known = self.lock();
            if known.is_refreshing || self.cluster.members_as_of() <= known.as_of {
                return;
            }
            let Some(node) = known.nodes.get(address).cloned() else { return };
            known.is_refreshing = true;
            node
        };
        let connection = self.clone();
        tokio::spawn(async move {
            let answer = node.call(Identify::anonymous(), Forwarding::Never, REFRESH_TIMEOUT).await;
            let mut known = connection.lock();
            known.is_refreshing = false;
            // A failure has no effect: the next result triggers another attempt.
            if let Ok(Answered { answer, .. }) = answer
                && let Some(identity) = answer.identity
                && connection.cluster.id() == Some(identity.cluster_id)
            {
                known.follow(&answer.members, answer.leader_id, &connection.given);
            }
        });
    }

    /// Tries each node once, and reports the node that gave the result. If no node can be reached, or each
    /// rejects the request, waiting would not help.
    async fn round<V: Verb, T>(
        &self,
        addresses: Vec<Arc<str>>,
        until: Instant,
        verb: &V,
        accept: &impl Fn(Answered<V::Answer>) -> Result<T, CallError<V::Error>>,
    ) -> Result<(Arc<str>, T), RoundFailure<V::Error>> {
        let mut round = Round { waiting: addresses.into(), tried: Vec::new() };
        let mut unreachable = Vec::new();
        let mut rejected = None;
        let mut later = None;
        while let Some(address) = round.next() {
            let node = match self.node(&address, until).await {
                Ok(node) => node,
                Err(problem) => {
                    unreachable.push(problem);
                    continue;
                }
            };
            let node = if self.waits_for_leader { node } else { node.without_waiting() };
            let left = until.saturating_duration_since(Instant::now());
            // A repeatable request does not spend all of its time on one node that hangs.
            let attempts = if V::REPEATABLE { round.waiting.len() as u32 + 1 } else { 1 };
            let answered = node.call(verb.clone(), Forwarding::Allowed, left / attempts).await;
            match answered.and_then(accept) {
                Ok(result) => return Ok((address, result)),
                Err(CallError::NotSent(reason)) => {
                    let address = address.to_string();
                    unreachable.push(UnreachableNode::NotConnected { address, reason });
                }
                Err(CallError::Rejected(refusal)) => rejected = Some(refusal),
                Err(CallError::Refused(error)) => match error.again() {
                    Again::Never => return Err(RoundFailure::Final(ClientError::Answer(error))),
                    Again::At(leader) => {
                        round.next_is(&leader.address);
                        later = Some(error);
                    }
                    Again::Later => later = Some(error),
                },
                Err(error @ (CallError::Lost(_) | CallError::TimedOut(_))) => {
                    // A node that hangs must not use up the time of the next request as well.
                    self.lock().defer(&address);
                    let error = error.into_verb_error();
                    if !V::REPEATABLE {
                        return Err(RoundFailure::Final(ClientError::Answer(error)));
                    }
                    later = Some(error);
                }
            }
        }
        Err(later.map_or_else(
            || {
                RoundFailure::Final(
                    rejected.map_or(ClientError::Unreachable(unreachable), ClientError::Rejected),
                )
            },
            RoundFailure::Later,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    pub(crate) async fn node(
        &self,
        address: &Arc<str>,
        until: Instant,
    ) -> Result<RemoteNode, UnreachableNode> {
        if let Some(node) = self.lock().nodes.get(address) {
            return Ok(node.clone());
        }
        // The transport resolves names by itself; this lookup is for a clear error on an unknown name.
        let unresolved =
            |reason: String| UnreachableNode::Unresolved { address: address.to_string(), reason };
        let patience = CONNECT_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
        match timeout(patience, resolve(address)).await {
            Ok(Ok(found)) => drop(found.map_err(|error| unresolved(error.to_string()))?),
            Ok(Err(error)) => return Err(unresolved(error.to_string())),
            Err(_) => return Err(unresolved(format!("no answer within {patience:?}"))),
        }
        let endpoint = endpoint(address, CONNECT_TIMEOUT).map_err(|error| UnreachableNode::NotConnected {
            address: address.to_string(),
            reason: error.to_string(),
        })?;
        let (channel, cluster) = (self.dialer.connect_lazily(&endpoint), Arc::clone(&self.cluster));
        let connect = if self.is_unary { RemoteNode::unary } else { RemoteNode::new };
        let node = connect(channel, CallPermits::of_client(), cluster);
        // Of two callers that connect at once, both use the first connection.
        Ok(self.lock().nodes.entry(Arc::clone(address)).or_insert(node).clone())
    }
}

impl Known {
    /// The addresses given by the user, without connections.
    fn only(given: &[Arc<str>]) -> Arc<Mutex<Known>> {
        let (addresses, nodes, as_of) = (given.to_vec(), BTreeMap::new(), LogIndex::ZERO);
        Arc::new(Mutex::new(Known { addresses, nodes, as_of, is_refreshing: false }))
    }

    /// From now on, the client uses the members of this membership: the one that answered last, then the
    /// leader, then the others.
    fn follow(&mut self, members: &Members, leader: Option<NodeId>, given: &[Arc<str>]) {
        if members.as_of() <= self.as_of || members.is_empty() {
            return;
        }
        self.as_of = members.as_of();
        let last = self.addresses.first().cloned();
        let mut listed: Vec<&Member> = members.iter().collect();
        listed.sort_by_key(|member| (Some(member.id) != leader, member.role != MemberRole::Voter, member.id));
        self.addresses = listed.into_iter().map(|member| member.address.as_str().into()).collect();
        if let Some(last) = last.filter(|last| self.addresses.contains(last)) {
            self.prefer(&last);
        }
        let addresses = &self.addresses;
        self.nodes.retain(|address, _| addresses.contains(address) || given.contains(address));
    }

    /// The next request goes there first.
    fn prefer(&mut self, address: &Arc<str>) {
        if self.addresses.first() == Some(address) {
            return;
        }
        // A node that is no longer a member, or that only a hint has named, is not added because it answered.
        let is_listed = self.addresses.contains(address);
        if self.as_of == LogIndex::ZERO || is_listed {
            self.addresses.retain(|known| known != address);
            self.addresses.insert(0, Arc::clone(address));
        }
    }

    /// The next request goes there last.
    fn defer(&mut self, address: &Arc<str>) {
        if let Some(place) = self.addresses.iter().position(|known| known == address) {
            self.addresses[place..].rotate_left(1);
        }
    }
}

/// One round of asking every node once.
struct Round {
    waiting: VecDeque<Arc<str>>,
    tried: Vec<Arc<str>>,
}

impl Round {
    fn next(&mut self) -> Option<Arc<str>> {
        let address = self.waiting.pop_front()?;
        self.tried.push(Arc::clone(&address));
        Some(address)
    }

    /// If two nodes take each other for the leader, the round still ends: no node is tried twice.
    fn next_is(&mut self, address: &str) {
        if !self.tried.iter().any(|tried| **tried == *address) && check_address(address).is_ok() {
            self.waiting.retain(|waiting| **waiting != *address);
            self.waiting.push_front(address.into());
        }
    }
}
