//! The remote client: a program without a node sends requests to a cluster over gRPC.
//!
//! It gets the addresses of some members, finds the leader, and retries the requests that are safe to retry:
//! unsent requests, and requests whose rejection says that nothing happened. A request with an unknown
//! outcome is never sent again. The untyped half is in `cluster_connection.rs`.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use raftify_core::error::{
    MembershipError, ProposeError, ReadError, SnapshotError, TransferError, UnknownOutcome,
};
use raftify_core::{
    ClusterId, Inspection, LogIndex, LogPosition, Members, MembershipRequest, NodeId, Reservation,
    SnapshotMeta,
};

use crate::application::encoding;
use crate::application::log_entry::LogEntry;
use crate::application::log_entry::check_entry;
use crate::application::state_machine::StateMachine;
use crate::client::backup::{BackupOptions, BackupProgress};
use crate::client::cluster_connection::ClusterConnection;
use crate::client::error::{ClientBackupError, ClientError, InvalidAddress};
use crate::client::events::RemoteEvents;
use crate::security::config::{Tls, TlsError};
use crate::security::credentials::Holder;
use crate::security::dialer::Dialer;
use crate::verbs::change_membership::{
    demotion, is_voter_already, promotion, removal, replacement, while_catching_up,
};
use crate::verbs::leave::Leave;
use crate::verbs::make_snapshot::MakeSnapshot;
use crate::verbs::transfer_leader::TransferLeader;

/// The default limit for one request of a [`RaftClient`], all attempts together.
const DEADLINE: Duration = Duration::from_secs(15);

/// How long [`RaftClient::replace`] waits without progress.
const JOINER_TIMEOUT: Duration = Duration::from_secs(600);

/// Thirty years; a clock cannot represent all times that a [`Duration`] can.
const DEADLINE_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A remote client of a cluster with this log entry and this state machine.
///
/// Cheap to clone; clones share their connections. Any number of requests may be under way at once.
pub struct RaftClient<Entry, FSM> {
    cluster: ClusterConnection,
    types: PhantomData<fn() -> (Entry, FSM)>,
}

impl<Entry, FSM> Clone for RaftClient<Entry, FSM> {
    fn clone(&self) -> Self {
        RaftClient { cluster: self.cluster.clone(), types: PhantomData }
    }
}

impl<Entry, FSM> fmt::Debug for RaftClient<Entry, FSM> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftClient").field("cluster", &self.cluster).finish()
    }
}

impl<Entry, FSM> RaftClient<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// A client of the cluster whose members listen at `addresses`, each `host:port`: one is enough, with
    /// several the client finds the cluster while one is down. Connects with the first request. From the
    /// first result on, it learns the members from the cluster and follows them, also when all of them
    /// have been replaced; the given addresses remain the last resort. The first result determines the
    /// cluster: later, the client ignores a node that belongs to another cluster, because its address was
    /// reassigned or its disk was lost. A request may take 15 s unless
    /// [`with_deadline`](Self::with_deadline) sets another limit.
    ///
    /// # Errors
    /// If there is no address, or one is malformed.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, InvalidAddress> {
        Ok(RaftClient { cluster: ClusterConnection::new(addresses, DEADLINE)?, types: PhantomData })
    }

    /// The same client with this limit for each request, all attempts together.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        RaftClient { cluster: self.cluster.with_deadline(deadline.min(DEADLINE_MAX)), types: PhantomData }
    }

    /// The same client over TLS, with its certificate. The files are read now, and again when they change.
    /// Clones that were made before remain without TLS.
    ///
    /// # Errors
    /// The certificate cannot be used; see [`TlsError`].
    pub fn with_tls(self, tls: &Tls) -> Result<Self, TlsError> {
        let dialer = Dialer::load(Some(tls), &Holder::Client)?;
        Ok(RaftClient { cluster: self.cluster.unconnected().with_dialer(dialer), types: PhantomData })
    }

    /// The same client, whose requests do not wait for a leader: if no node that answers knows a leader, they
    /// fail at once with `NoLeader`, and nothing happened. By default they wait for the next leader until
    /// their deadline.
    #[must_use]
    pub fn without_waiting(self) -> Self {
        RaftClient { cluster: self.cluster.without_waiting(), types: PhantomData }
    }

    /// The same client without streams: each request has a separate gRPC call, as in a client that was
    /// generated from the `.proto` file. That costs several times as much processor time, on both ends. Has
    /// its own connections; clones that were made before keep theirs.
    ///
    /// By default, all proposals and reads for a node share one stream, many in each message; other requests
    /// have calls of their own. A node whose program is older, and serves no streams, is called as if this
    /// had been set.
    #[must_use]
    pub fn with_unary_calls(self) -> Self {
        RaftClient { cluster: self.cluster.unary(), types: PhantomData }
    }

    /// Replicates `entry` and returns the state machine's reply, as
    /// [`RaftNode::propose`](crate::RaftNode::propose) does on a node.
    ///
    /// # Errors
    /// - [`ClientError::Addresses`], [`ClientError::Unreachable`], [`ClientError::Rejected`]: nothing
    ///   happened.
    /// - [`ClientError::Answer`] with [`ProposeError::Unknown`]: it may have been applied.
    /// - [`ClientError::Answer`] with any other error: the entry was not applied; either the deadline passed
    ///   or a retry would not have helped.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the proposal only if it was not sent yet; treat the outcome as unknown. A
    /// dropped call does not affect other calls: once sent, it continues in the background until the node
    /// answers. Up to 4096 calls, with up to 64 MiB of entries, are under way to a node at once; further
    /// calls wait.
    pub async fn propose(&self, entry: &Entry) -> Result<FSM::Reply, ClientError<ProposeError>> {
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
    /// As for [`propose`](Self::propose). After [`MembershipError::Unknown`], look at the members before
    /// trying again.
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

    /// Turns a voter into a learner, as [`RaftNode::demote_to_learner`](crate::RaftNode::demote_to_learner)
    /// does.
    ///
    /// # Errors
    /// As for [`change_config`](Self::change_config).
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn demote_to_learner(&self, id: NodeId) -> Result<Members, ClientError<MembershipError>> {
        self.change_config(demotion(id)).await
    }

    /// Replaces the voter `old` by the member `new`, as [`RaftNode::replace`](crate::RaftNode::replace) does.
    /// Waits for `new` to catch up as long as it makes progress, and gives up after ten minutes without
    /// any.
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

    /// Transfers leadership to the voter `to`, or to the most caught-up one, and returns the new leader.
    ///
    /// # Errors
    /// The cluster is unharmed in every case.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the transfer.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, ClientError<TransferError>> {
        self.cluster.ask(TransferLeader { to }).await
    }

    /// The leader's commit index, confirmed by a majority: a state machine that has applied it reflects every
    /// write acknowledged before this call.
    ///
    /// # Errors
    /// Nothing happened; a retry is always safe.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn read_index(&self) -> Result<LogIndex, ClientError<ReadError>> {
        self.cluster.read_index().await
    }

    /// The membership, as one of the members knows it: it may be behind the leader's.
    ///
    /// # Errors
    /// Nothing happened; a retry is always safe.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn members(&self) -> Result<Members, ClientError<ReadError>> {
        self.cluster.members().await
    }

    /// The full diagnostics of one node, leader or not: the first of the addresses given to
    /// [`new`](Self::new) that answers. To inspect a certain node, make a client with its address alone.
    ///
    /// # Errors
    /// No address answered; each was tried once. Nothing happened; a retry is always safe.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub async fn inspect(&self) -> Result<Inspection, ClientError<ReadError>> {
        self.cluster.inspect().await
    }

    /// Reserves an id for a node that is to join, as [`Raft::request_id`](crate::Raft::request_id) does, and
    /// returns it with the cluster and its members. No other node gets this id, also if it is not used.
    ///
    /// # Errors
    /// As for [`change_config`](Self::change_config). A repetition reserves another id.
    ///
    /// # Cancel safety
    /// Dropping the future may reserve an id that no node gets.
    pub async fn reserve_node_id(&self) -> Result<(ClusterId, Reservation), ClientError<MembershipError>> {
        self.cluster.reserve_node_id().await
    }

    /// Takes a snapshot of the state machine on the member `id`, and returns its position, as
    /// [`RaftNode::make_snapshot`](crate::RaftNode::make_snapshot) does. Give the client enough time for it
    /// with [`with_deadline`](Self::with_deadline).
    ///
    /// # Errors
    /// - [`ClientError::NotAMember`] and the others that say that nothing happened.
    /// - [`ClientError::Answer`]: the previous snapshot stays in use. Without an answer in time, the snapshot
    ///   may still be written.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the snapshot.
    pub async fn make_snapshot(&self, id: NodeId) -> Result<LogPosition, ClientError<SnapshotError>> {
        self.cluster.ask_member(id, MakeSnapshot { id }).await
    }

    /// Makes a backup of a node in a new file: of the first of the addresses given to [`new`](Self::new) that
    /// answers, leader or not. Returns the metadata of the snapshot, and how many bytes of data it holds. A
    /// backup is a snapshot file; `raftify-cli restore` makes a new cluster of it.
    ///
    /// The file is written as `FILE.partial`. When it is complete, it is synced, all its checksums are verified,
    /// and it gets its name. An existing file is never replaced. A transfer whose connection breaks, also because
    /// the node was started again, continues at the byte where it was interrupted; if the node no longer has that
    /// snapshot, it begins again. The call fails after 60 s without progress. The deadline of the client does not
    /// apply. `progress` is called for each part, on the task of the caller.
    ///
    /// # Errors
    /// See [`ClientBackupError`]. `FILE.partial` is left where it can be resumed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves `FILE.partial`, as after an interruption; or, in the last step, possibly the
    /// complete file.
    ///
    /// # Examples
    /// ```no_run
    /// # use raftify::{LogEntry, RaftClient, StateMachine};
    /// use raftify::client::BackupOptions;
    ///
    /// # async fn save<E: LogEntry, S: StateMachine<LogEntry = E>>(client: RaftClient<E, S>)
    /// # -> Result<(), raftify::BoxError> {
    /// let (snapshot, bytes) = client.backup("cluster.backup", &BackupOptions::default(), |_| {}).await?;
    /// println!("a backup up to {}: {bytes} bytes", snapshot.position);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn backup(
        &self,
        file: impl Into<PathBuf>,
        options: &BackupOptions,
        progress: impl FnMut(BackupProgress) + Send,
    ) -> Result<(SnapshotMeta, u64), ClientBackupError> {
        self.cluster.backup(file.into(), options, progress).await
    }

    /// The member `id` leaves the cluster, as by its own [`RaftNode::leave`](crate::RaftNode::leave): it is
    /// removed permanently, and its [`Raft::run`](crate::Raft::run) returns `Ok`. The node itself must
    /// answer: remove a node that is down with [`change_config`](Self::change_config). `force`: also if the
    /// remaining live voters would be no majority.
    ///
    /// # Errors
    /// As for [`change_config`](Self::change_config), and [`ClientError::NotAMember`]; the node continues to
    /// run unless the outcome is unknown.
    ///
    /// # Cancel safety
    /// As for `change_config`.
    pub async fn leave(&self, id: NodeId, force: bool) -> Result<(), ClientError<MembershipError>> {
        self.cluster.ask_member(id, Leave { id, force }).await
    }

    /// The events of one node from now on: of the first of the addresses given to [`new`](Self::new) that
    /// answers. To follow a certain node, make a client with its address alone. See
    /// [`RaftNode::events`](crate::RaftNode::events).
    ///
    /// The stream has its own connection, which is closed when it is dropped. A node serves at most 64 such
    /// streams. A client that does not read holds up nothing: the node keeps a bounded number of events for
    /// it, and it misses the rest.
    ///
    /// # Errors
    /// No address answered; each was tried once.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    ///
    /// # Examples
    /// ```no_run
    /// # use raftify::{LogEntry, RaftClient, StateMachine};
    /// # async fn watch<E: LogEntry, S: StateMachine<LogEntry = E>>(client: RaftClient<E, S>)
    /// # -> Result<(), raftify::BoxError> {
    /// let mut events = client.events().await?;
    /// while let Some(record) = events.next().await? {
    ///     println!("{}: {}", record.sequence, record.event);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn events(&self) -> Result<RemoteEvents, ClientError<ReadError>> {
        self.cluster.events().await
    }
}
