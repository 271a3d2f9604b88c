//! The remote client: a program that belongs to no node asks a cluster over gRPC.
//!
//! It is given the addresses of some members, finds the leader, and repeats what is safe to repeat: what was never
//! sent, and what was answered with a refusal that says that nothing happened. A request whose outcome is unknown is
//! never sent again. [`ClusterConnection`] is the untyped half, which also lets a new node ask for a ticket.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use raftify_core::error::{
    LeaderHint, MembershipError, ProposeError, ReadError, TransferError, UnknownOutcome,
};
use raftify_core::members::{AddressProblem, check_address};
use raftify_core::{
    ClusterId, Forwarding, Inspection, LogIndex, Members, MembershipRequest, NodeId, Reservation,
};
use tokio::time::{Instant, sleep, timeout};

use crate::encoding;
use crate::log_entry::check_entry;
use crate::membership::{demotion, is_voter_already, promotion, removal, replacement, while_catching_up};
use crate::remote_node::{AskedCluster, CallError, RemoteNode, endpoint};
use crate::transport::connect_lazily;
use crate::wire::{self, DoorRefusal, VerbError};
use crate::{AbstractLogEntry, AbstractStateMachine};

/// How long one request of a [`RaftClient`] may take unless said otherwise, all attempts together.
const DEADLINE: Duration = Duration::from_secs(15);

/// How long [`RaftClient::replace`] waits without progress.
const JOINER_TIMEOUT: Duration = Duration::from_secs(600);

/// Thirty years; a clock cannot tell all times that a [`Duration`] can.
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// How long connecting to one address may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after all known nodes have refused; it doubles with each round.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A remote client of a cluster with this log entry and this state machine.
///
/// Cheap to clone; clones share their connections. Any number of requests may be under way at once.
pub struct RaftClient<LogEntry, FSM> {
    cluster: ClusterConnection,
    types: PhantomData<fn() -> (LogEntry, FSM)>,
}

impl<LogEntry, FSM> Clone for RaftClient<LogEntry, FSM> {
    fn clone(&self) -> Self {
        RaftClient { cluster: self.cluster.clone(), types: PhantomData }
    }
}

impl<LogEntry, FSM> fmt::Debug for RaftClient<LogEntry, FSM> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftClient").field("cluster", &self.cluster).finish()
    }
}

impl<LogEntry, FSM> RaftClient<LogEntry, FSM>
where
    LogEntry: AbstractLogEntry,
    FSM: AbstractStateMachine<LogEntry = LogEntry>,
{
    /// A client of the cluster whose members listen at `addresses`, each `host:port`: one is enough, several let it
    /// find the cluster while one is down. Connects with the first request. The first result tells which cluster it is:
    /// whoever belongs to another one by then, because its address was given away, or its disk was lost, is not asked
    /// any more. A request may take 15 s unless [`with_deadline`](Self::with_deadline) says otherwise.
    ///
    /// # Errors
    /// If there is no address, or one is not of that form.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, AddressesError> {
        Ok(RaftClient { cluster: ClusterConnection::new(addresses, DEADLINE)?, types: PhantomData })
    }

    /// The same client, whose requests may take this long, all attempts together.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        RaftClient {
            cluster: ClusterConnection { deadline: deadline.min(DEADLINE_MAX), ..self.cluster },
            types: PhantomData,
        }
    }

    /// Replicates `entry` and returns the state machine's reply, as
    /// [`RaftNode::propose`](crate::RaftNode::propose) does on a node.
    ///
    /// # Errors
    /// - [`ClientError::Addresses`], [`ClientError::Unreachable`], [`ClientError::Door`]: nothing happened.
    /// - [`ClientError::Answer`] with [`ProposeError::Unknown`] or [`ProposeError::Stopped`]: it may have been applied.
    /// - [`ClientError::Answer`] with anything else: it was not applied, and the deadline passed or trying again would
    ///   not have helped.
    ///
    /// # Cancel safety
    /// Dropping the future does not withdraw the proposal; treat the outcome as unknown.
    pub async fn propose(&self, entry: &LogEntry) -> Result<FSM::Reply, ClientError<ProposeError>> {
        let encoded = entry.encode();
        let payload =
            encoded.map_err(|error| ClientError::Answer(ProposeError::Encode(error.to_string())))?;
        check_entry(entry, &payload)
            .map_err(|reason| ClientError::Answer(ProposeError::Undecodable(reason)))?;
        let reply = self.cluster.propose(payload).await?;
        encoding::decode(&reply).map_err(|error| {
            ClientError::Answer(ProposeError::Unknown(UnknownOutcome::BadReply(error.to_string())))
        })
    }

    /// Changes voters or learners, and returns the membership once the change is in force.
    ///
    /// # Errors
    /// As for [`propose`](Self::propose). After [`MembershipError::Unknown`], look at the members before trying again.
    ///
    /// # Cancel safety
    /// Dropping the future does not withdraw the change; treat the outcome as unknown.
    pub async fn change_config(
        &self,
        change: impl Into<MembershipRequest>,
    ) -> Result<Members, ClientError<MembershipError>> {
        self.cluster.change_config(&change.into()).await
    }

    /// Makes a learner or a joining node a voter, as [`RaftNode::promote`](crate::RaftNode::promote) does.
    ///
    /// # Errors
    /// As for [`change_config`](Self::change_config).
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn promote(&self, id: NodeId) -> Result<Members, ClientError<MembershipError>> {
        self.change_config(promotion(id)).await
    }

    /// Takes the vote from a voter, which stays a learner, as
    /// [`RaftNode::demote_to_learner`](crate::RaftNode::demote_to_learner) does.
    ///
    /// # Errors
    /// As for [`change_config`](Self::change_config).
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn demote_to_learner(&self, id: NodeId) -> Result<Members, ClientError<MembershipError>> {
        self.change_config(demotion(id)).await
    }

    /// Puts the member `new` in the place of the voter `old`, as [`RaftNode::replace`](crate::RaftNode::replace) does. Waits
    /// for `new` to catch up as long as it makes progress, and gives up after ten minutes without any.
    ///
    /// # Errors
    /// As for [`change_config`](Self::change_config); nothing was changed unless the outcome is unknown.
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn replace(&self, old: NodeId, new: NodeId) -> Result<Members, ClientError<MembershipError>> {
        let attempt = || self.change_config(replacement(old, new));
        let answer = |error: &ClientError<MembershipError>| match error {
            ClientError::Answer(error) => Some(error.clone()),
            _ => None,
        };
        match while_catching_up(JOINER_TIMEOUT, attempt, answer).await {
            Err(ClientError::Answer(error)) if is_voter_already(&error, new) => {
                self.change_config(removal(old)).await
            }
            answer => answer,
        }
    }

    /// Hands leadership to the voter `to`, or to the most caught-up one, and returns the new leader.
    ///
    /// # Errors
    /// The cluster is unharmed in every case.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the transfer.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, ClientError<TransferError>> {
        self.cluster.transfer_leader(to).await
    }

    /// The leader's commit index, confirmed by a majority: a state machine that has applied it shows everything that
    /// was acknowledged before this call.
    ///
    /// # Errors
    /// Nothing happened; asking again is always safe.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn read_index(&self) -> Result<LogIndex, ClientError<ReadError>> {
        self.cluster.read_index().await
    }

    /// Everything about the state of one node: the first of the addresses given to [`new`](Self::new) that answers,
    /// whoever leads. To look at a certain node, make a client with its address alone.
    ///
    /// # Errors
    /// No address answered, each asked once. Nothing happened; asking again is always safe.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn inspect(&self) -> Result<Inspection, ClientError<ReadError>> {
        self.cluster.inspect().await
    }
}

/// Why a remote request failed. `E` is the error of the verb, as a node gives it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError<E> {
    /// Nothing was sent: the addresses cannot be used.
    #[error(transparent)]
    Addresses(#[from] AddressesError),
    /// Nothing was sent: no node could be reached.
    #[error("no node of the cluster could be reached: {}", list(.0))]
    Unreachable(Vec<UnreachableNode>),
    /// Nothing happened: the node refused the request at its door.
    #[error(transparent)]
    Door(DoorRefusal),
    /// What a node answered, or, if the connection broke or the deadline passed after the request was sent, what that
    /// means for the verb.
    #[error(transparent)]
    Answer(E),
}

/// Why the addresses that a client was given cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressesError {
    /// There is none.
    #[error("no address of a node was given: name at least one, as host:port")]
    None,
    /// One is no address.
    #[error(transparent)]
    Bad(#[from] AddressProblem),
}

/// Why one node could not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreachableNode {
    /// The host's name is not known.
    #[error("{address} cannot be resolved: {reason}")]
    Unresolved {
        /// As given.
        address: String,
        /// As the system says.
        reason: String,
    },
    /// Nobody listens there, or the way is blocked.
    #[error("{address} cannot be connected to: {reason}")]
    NotConnected {
        /// As given.
        address: String,
        /// As the system says.
        reason: String,
    },
}

fn list(nodes: &[UnreachableNode]) -> String {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    nodes.join("; ")
}

/// A connection to a cluster, untyped: payloads and replies are bytes.
#[derive(Clone, Debug)]
pub(crate) struct ClusterConnection {
    deadline: Duration,
    given: Arc<[String]>,
    cluster: AskedCluster,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug)]
struct Known {
    /// Where to ask, in this order: who answered last comes first, who was silent last.
    addresses: Vec<String>,
    nodes: BTreeMap<String, RemoteNode>,
}

/// Why a round of asking brought no result.
enum RoundFailure<E> {
    /// Another round would not help, or could do harm.
    Final(ClientError<E>),
    /// Somebody answered, or may answer yet.
    Later(E),
}

/// What a refusal says about trying again.
enum Again {
    /// It would not help, or could do harm.
    Never,
    /// A little later, here or elsewhere.
    Later,
    /// There, at once.
    At(LeaderHint),
}

/// The error of a verb, as the client sees it.
trait ClientVerb: VerbError {
    /// Whether a request that was sent and not answered may be sent again.
    const REPEATABLE: bool;

    fn again(&self) -> Again;
}

impl ClientVerb for ProposeError {
    const REPEATABLE: bool = false;

    fn again(&self) -> Again {
        match self {
            ProposeError::NotLeader(hint) => Again::At(hint.clone()),
            ProposeError::NoLeader | ProposeError::Busy { .. } | ProposeError::NotApplied { .. } => {
                Again::Later
            }
            _ => Again::Never,
        }
    }
}

impl ClientVerb for MembershipError {
    const REPEATABLE: bool = false;

    fn again(&self) -> Again {
        match self {
            MembershipError::NotLeader(hint) => Again::At(hint.clone()),
            MembershipError::NoLeader
            | MembershipError::Busy { .. }
            | MembershipError::ChangePending
            | MembershipError::NotApplied { .. } => Again::Later,
            _ => Again::Never,
        }
    }
}

impl ClientVerb for TransferError {
    const REPEATABLE: bool = false;

    fn again(&self) -> Again {
        match self {
            TransferError::NotLeader(hint) => Again::At(hint.clone()),
            TransferError::NoLeader => Again::Later,
            _ => Again::Never,
        }
    }
}

impl ClientVerb for ReadError {
    const REPEATABLE: bool = true;

    fn again(&self) -> Again {
        match self {
            ReadError::NotLeader(hint) => Again::At(hint.clone()),
            _ => Again::Later,
        }
    }
}

impl ClusterConnection {
    /// Checks the form of the addresses; connects on first use. Each request may take `deadline`, all attempts
    /// together.
    pub(crate) fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        deadline: Duration,
    ) -> Result<ClusterConnection, AddressesError> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        if addresses.is_empty() {
            return Err(AddressesError::None);
        }
        for address in &addresses {
            check_address(address)?;
        }
        let given = addresses.clone().into();
        let known = Known { addresses, nodes: BTreeMap::new() };
        let (cluster, known) = (AskedCluster::default(), Arc::new(Mutex::new(known)));
        Ok(ClusterConnection { deadline, given, cluster, known })
    }

    /// A connection to this cluster, whoever listens at the addresses.
    pub(crate) fn to(self, cluster_id: ClusterId) -> ClusterConnection {
        ClusterConnection { cluster: Arc::new(cluster_id.into()), ..self }
    }

    /// Replicates an encoded entry; the reply is postcard of the state machine's reply type.
    pub(crate) async fn propose(&self, payload: Bytes) -> Result<Bytes, ClientError<ProposeError>> {
        let (bytes, limit) = (payload.len() as u64, wire::PAYLOAD_BYTES_LIMIT);
        if bytes > limit {
            return Err(ClientError::Answer(ProposeError::TooLarge { bytes, limit }));
        }
        self.ask(|node, timeout| {
            let payload = payload.clone();
            async move { node.propose(payload, Forwarding::Allowed, timeout).await }
        })
        .await
    }

    /// Changes the membership.
    pub(crate) async fn change_config(
        &self,
        request: &MembershipRequest,
    ) -> Result<Members, ClientError<MembershipError>> {
        self.ask(|node, timeout| async move {
            node.change_membership(request, Forwarding::Allowed, timeout).await
        })
        .await
    }

    /// A fresh node id, and the cluster that it is of.
    pub(crate) async fn reserve_node_id(
        &self,
    ) -> Result<(ClusterId, Reservation), ClientError<MembershipError>> {
        self.ask(|node, timeout| async move { node.reserve_node_id(Forwarding::Allowed, timeout).await })
            .await
    }

    /// Hands leadership over.
    pub(crate) async fn transfer_leader(
        &self,
        to: Option<NodeId>,
    ) -> Result<NodeId, ClientError<TransferError>> {
        self.ask(|node, timeout| async move { node.transfer_leader(to, Forwarding::Allowed, timeout).await })
            .await
    }

    /// The leader's confirmed commit index.
    pub(crate) async fn read_index(&self) -> Result<LogIndex, ClientError<ReadError>> {
        self.ask(|node, timeout| async move { node.read_index(timeout).await }).await
    }

    /// The state of the first of the given nodes that answers.
    pub(crate) async fn inspect(&self) -> Result<Inspection, ClientError<ReadError>> {
        let until = Instant::now() + self.deadline;
        let inspect = |node: RemoteNode, timeout| async move { node.inspect(timeout).await };
        match self.round(self.given.to_vec(), until, &inspect).await {
            Ok((_, inspection)) => Ok(inspection),
            Err(RoundFailure::Final(error)) => Err(error),
            Err(RoundFailure::Later(answer)) => Err(ClientError::Answer(answer)),
        }
    }

    /// Asks in rounds until one node gives a result, or an answer that ends the matter, or the deadline has passed.
    async fn ask<T, E, Call>(&self, call: impl Fn(RemoteNode, Duration) -> Call) -> Result<T, ClientError<E>>
    where
        E: ClientVerb,
        Call: Future<Output = Result<T, CallError<E>>>,
    {
        let until = Instant::now() + self.deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let addresses = self.lock().addresses.clone();
            let answer = match self.round(addresses, until, &call).await {
                Ok((address, result)) => {
                    self.lock().prefer(&address);
                    return Ok(result);
                }
                Err(RoundFailure::Final(error)) => return Err(error),
                Err(RoundFailure::Later(answer)) => answer,
            };
            if Instant::now() + pause >= until {
                return Err(ClientError::Answer(answer));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks one node after the other, each once, and says who gave the result. If no node can be reached, or each
    /// refuses at its door, waiting would not help.
    async fn round<T, E, Call>(
        &self,
        addresses: Vec<String>,
        until: Instant,
        call: &impl Fn(RemoteNode, Duration) -> Call,
    ) -> Result<(String, T), RoundFailure<E>>
    where
        E: ClientVerb,
        Call: Future<Output = Result<T, CallError<E>>>,
    {
        let mut round = Round { waiting: addresses.into(), tried: BTreeSet::new() };
        let mut unreachable = Vec::new();
        let mut door = None;
        let mut later = None;
        while let Some(address) = round.next() {
            let node = match self.node(&address, until).await {
                Ok(node) => node,
                Err(problem) => {
                    unreachable.push(problem);
                    continue;
                }
            };
            let left = until.saturating_duration_since(Instant::now());
            // What may be repeated does not spend all of its time on one node that hangs.
            let attempts = if E::REPEATABLE { round.waiting.len() as u32 + 1 } else { 1 };
            match call(node, left / attempts).await {
                Ok(result) => return Ok((address, result)),
                Err(CallError::NotSent(reason)) => {
                    unreachable.push(UnreachableNode::NotConnected { address, reason });
                }
                Err(CallError::Door(refusal)) => door = Some(refusal),
                Err(CallError::Refused(error)) => match error.again() {
                    Again::Never => return Err(RoundFailure::Final(ClientError::Answer(error))),
                    Again::At(hint) => {
                        round.next_is(hint.address);
                        later = Some(error);
                    }
                    Again::Later => later = Some(error),
                },
                Err(error @ (CallError::Lost(_) | CallError::TimedOut(_))) => {
                    // A node that hangs must not take the whole time of the next request as well.
                    self.lock().defer(&address);
                    let error = error.into_verb_error();
                    if !E::REPEATABLE {
                        return Err(RoundFailure::Final(ClientError::Answer(error)));
                    }
                    later = Some(error);
                }
            }
        }
        Err(later.map_or_else(
            || RoundFailure::Final(door.map_or(ClientError::Unreachable(unreachable), ClientError::Door)),
            RoundFailure::Later,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What a panic could leave behind is a list of addresses in another order.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn node(&self, address: &str, until: Instant) -> Result<RemoteNode, UnreachableNode> {
        if let Some(node) = self.lock().nodes.get(address) {
            return Ok(node.clone());
        }
        // The transport resolves for itself; this is for a clear word on a name that is not known.
        let unresolved = |reason: String| UnreachableNode::Unresolved { address: address.to_owned(), reason };
        let patience = CONNECT_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
        match timeout(patience, tokio::net::lookup_host(address)).await {
            Ok(found) => drop(found.map_err(|error| unresolved(error.to_string()))?),
            Err(_) => return Err(unresolved(format!("no answer within {patience:?}"))),
        }
        let endpoint = endpoint(address, CONNECT_TIMEOUT).map_err(|error| UnreachableNode::NotConnected {
            address: address.to_owned(),
            reason: error.to_string(),
        })?;
        let node = RemoteNode::new(connect_lazily(&endpoint), Arc::clone(&self.cluster));
        self.lock().nodes.insert(address.to_owned(), node.clone());
        Ok(node)
    }
}

impl Known {
    /// The next request goes there first.
    fn prefer(&mut self, address: &str) {
        self.addresses.retain(|known| known != address);
        self.addresses.insert(0, address.to_owned());
    }

    /// The next request goes there last.
    fn defer(&mut self, address: &str) {
        if let Some(place) = self.addresses.iter().position(|known| known == address) {
            self.addresses[place..].rotate_left(1);
        }
    }
}

/// One round of asking every node once.
struct Round {
    waiting: VecDeque<String>,
    tried: BTreeSet<String>,
}

impl Round {
    fn next(&mut self) -> Option<String> {
        let address = self.waiting.pop_front()?;
        self.tried.insert(address.clone());
        Some(address)
    }

    /// Two nodes that take each other for the leader are not asked in turn for ever: nobody is asked twice.
    fn next_is(&mut self, address: String) {
        if !self.tried.contains(&address) && check_address(&address).is_ok() {
            self.waiting.retain(|waiting| *waiting != address);
            self.waiting.push_front(address);
        }
    }
}
