//! The metrics of a node: the handles that record them. `metrics/names.rs` has their names and descriptions.
//!
//! They go to the recorder of the crate `metrics` that the program has installed; without one, recording does
//! nothing. `docs/metrics.md` has the same table for operators. A node registers its handles once, when it is
//! set up, and those of a peer when it connects to it: recording costs an atomic operation, without a lookup
//! or an allocation.

mod names;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, NoopRecorder, with_local_recorder};
use parking_lot::Mutex;
use raftify_core::error::{ProposeError, ReadError};
use raftify_core::{DiskSpace, Elections, Inspection, LogIndex, MemberRole, NodeId, Role, Status};

use self::names::{
    ALL, APPLIED_INDEX, APPLY_BATCH, APPLY_SECONDS, COMMIT_INDEX, COMMIT_SECONDS, DISK_FREE, DISK_SIZE,
    DURABLE_INDEX, ELECTIONS, FOLLOWER_ACTIVE, FOLLOWER_LAG, FSYNC_SECONDS, LAST_INDEX, LEADER_CHANGES,
    LEADER_ID, LOG_BYTES, LOG_CACHE_BYTES, LOG_ENTRIES, LOG_WRITTEN_BYTES, LOG_WRITTEN_ENTRIES, Labels,
    MEMBERS, Metric, PEER_BATCH, PEER_CONNECTED, PEER_DROPPED, PEER_QUEUE_MESSAGES, PEER_RECEIVED_BYTES,
    PEER_RECEIVED_MESSAGES, PEER_SENT_BYTES, PEER_SENT_MESSAGES, PROPOSALS, PROPOSE_SECONDS, QUERY_SECONDS,
    QUEUE_LENGTH, QUEUE_LIMIT, READ_SECONDS, READS, ROLE, RUNNING, SERVER_CONNECTIONS,
    SERVER_REFUSED_HANDSHAKES, SERVER_REFUSED_REQUESTS, SERVER_REQUESTS, SNAPSHOT_BYTES, SNAPSHOT_INDEX,
    SNAPSHOT_SECONDS, SNAPSHOTS, TERM, WRITE_BATCH,
};
pub use self::names::{SECONDS_BUCKETS, SIZE_BUCKETS};
use crate::channels::server_counters::{RefusalCounts, RequestCounts};

const ROLES: [(Role, &str); 4] = [
    (Role::Follower, "follower"),
    (Role::PreCandidate, "pre_candidate"),
    (Role::Candidate, "candidate"),
    (Role::Leader, "leader"),
];

const MEMBER_ROLES: [(MemberRole, &str); 4] = [
    (MemberRole::Voter, "voter"),
    (MemberRole::Learner, "learner"),
    (MemberRole::Joining, "joining"),
    (MemberRole::Leaving, "leaving"),
];

const PROPOSAL_RESULTS: [&str; 10] = [
    "applied",
    "no_leader",
    "not_leader",
    "busy",
    "too_large",
    "invalid",
    "not_applied",
    "unknown",
    "stopped",
    "storage_full",
];

fn proposal_result<T>(outcome: &Result<T, ProposeError>) -> usize {
    match outcome {
        Ok(_) => 0,
        Err(ProposeError::NoLeader) => 1,
        Err(ProposeError::NotLeader(_)) => 2,
        Err(ProposeError::Busy { .. }) => 3,
        Err(ProposeError::TooLarge { .. }) => 4,
        Err(ProposeError::Encode(_) | ProposeError::Undecodable(_)) => 5,
        Err(ProposeError::NotApplied { .. }) => 6,
        Err(ProposeError::Stopped(_)) => 8,
        Err(ProposeError::StorageFull { .. }) => 9,
        // Also a later kind of error, until it has its own label.
        Err(_) => 7,
    }
}

const READ_RESULTS: [&str; 6] = ["confirmed", "no_leader", "busy", "timed_out", "connection_lost", "stopped"];

fn read_result<T>(outcome: &Result<T, ReadError>) -> usize {
    match outcome {
        Ok(_) => 0,
        Err(ReadError::NoLeader | ReadError::NotLeader(_)) => 1,
        Err(ReadError::Busy { .. }) => 2,
        Err(ReadError::TimedOut(_)) => 3,
        Err(ReadError::Stopped(_)) => 5,
        Err(_) => 4,
    }
}

/// A queue of the node, for its length and its limit.
#[derive(Clone, Copy)]
pub(crate) enum Queue {
    /// Requests of this node's user that the raft loop has not taken yet.
    LocalRequests,
    /// Requests of other nodes and remote clients that the raft loop has not taken yet.
    ServerRequests,
    /// Proposals that wait for their reply.
    Proposals,
    /// Reads that wait.
    Reads,
    /// Turns that wait for the log writer; the core bounds them.
    LogWriter,
    /// Batches that wait for the state machine; the core bounds them.
    Applier,
}

const QUEUES: [(Queue, &str); 6] = [
    (Queue::LocalRequests, "local_requests"),
    (Queue::ServerRequests, "server_requests"),
    (Queue::Proposals, "proposals"),
    (Queue::Reads, "reads"),
    (Queue::LogWriter, "log_writer"),
    (Queue::Applier, "applier"),
];

/// What is done with a snapshot.
#[derive(Clone, Copy)]
pub(crate) enum SnapshotOperation {
    /// The state is captured and written.
    Taken,
    /// It is sent to a peer, which installs it.
    Sent,
    /// It is received from the leader, and installed.
    Installed,
    /// The state machine reads it.
    Restored,
    /// It is read for a backup.
    BackedUp,
}

const SNAPSHOT_OPERATIONS: [&str; 5] = ["taken", "sent", "installed", "restored", "backed_up"];

struct SnapshotMetrics {
    succeeded: Counter,
    failed: Counter,
    bytes: Counter,
    seconds: Histogram,
}

/// One of the server's counts.
type Count = fn(&RequestCounts) -> u64;

const REQUEST_KINDS: [(&str, Count); 14] = [
    ("message_batch", |counts| counts.message_batches),
    ("snapshot", |counts| counts.snapshots),
    ("stream_requests", |counts| counts.request_streams),
    ("propose", |counts| counts.proposals),
    ("change_membership", |counts| counts.membership_changes),
    ("reserve_node_id", |counts| counts.id_reservations),
    ("transfer_leader", |counts| counts.leadership_transfers),
    ("read_index", |counts| counts.reads),
    ("inspect", |counts| counts.inspections),
    ("identify", |counts| counts.identifications),
    ("make_snapshot", |counts| counts.requested_snapshots),
    ("leave", |counts| counts.leaves),
    ("events", |counts| counts.event_streams),
    ("backup", |counts| counts.backups),
];

/// The handles of one node. All of its parts share them.
pub(crate) struct NodeMetrics {
    labels: Labels,
    running: Gauge,
    roles: [Gauge; 4],
    leader_id: Gauge,
    term: Gauge,
    leader_changes: Counter,
    elections_timeout: Counter,
    elections_transfer: Counter,
    elections_requested: Counter,
    commit_index: Gauge,
    applied_index: Gauge,
    last_index: Gauge,
    durable_index: Gauge,
    snapshot_index: Gauge,
    log_entries: Gauge,
    log_bytes: Gauge,
    log_cache_bytes: Gauge,
    written_entries: Counter,
    written_bytes: Counter,
    members: [Gauge; 4],
    proposals: [Counter; 10],
    reads: [Counter; 6],
    propose_seconds: Histogram,
    commit_seconds: Histogram,
    fsync_seconds: Histogram,
    apply_seconds: Histogram,
    read_seconds: Histogram,
    query_seconds: Histogram,
    write_batch: Histogram,
    apply_batch: Histogram,
    queue_lengths: [Gauge; 6],
    queue_limits: [Gauge; 6],
    server_requests: [Counter; 14],
    server_connections: Gauge,
    refused_handshakes: Counter,
    refused_requests: Counter,
    snapshots: [SnapshotMetrics; 5],
    disk_free: Gauge,
    disk_size: Gauge,
    /// As last measured, for diagnostics.
    disk_space: Mutex<Option<DiskSpace>>,
    /// Locked once for each tick.
    at_last_tick: Mutex<AtLastTick>,
}

#[derive(Default)]
struct AtLastTick {
    followers: BTreeMap<NodeId, Follower>,
    /// Counters of this run of the node. Those of the metrics may be older: a node may run again in one
    /// process.
    elections: Elections,
    requests: RequestCounts,
    refusals: RefusalCounts,
}

struct Follower {
    lag: Gauge,
    active: Gauge,
}

/// The numbers of a node that are recorded once for each tick.
pub(crate) struct Figures<'a> {
    pub(crate) inspection: &'a Inspection,
    pub(crate) elections: Elections,
    pub(crate) log_bytes: u64,
    pub(crate) requests: RequestCounts,
    pub(crate) refusals: RefusalCounts,
    pub(crate) connections: usize,
}

impl NodeMetrics {
    /// Registers the metrics of a node with the recorder that is installed now.
    pub(crate) fn new(node: NodeId) -> NodeMetrics {
        ALL.iter().for_each(Metric::describe);
        let node = Labels::of_node(node);
        let elections = |reason: &'static str| node.and("reason", reason).counter(ELECTIONS);
        let snapshots = SNAPSHOT_OPERATIONS.map(|operation| {
            let of = node.and("operation", operation);
            SnapshotMetrics {
                succeeded: of.and("result", "succeeded").counter(SNAPSHOTS),
                failed: of.and("result", "failed").counter(SNAPSHOTS),
                bytes: of.counter(SNAPSHOT_BYTES),
                seconds: of.histogram(SNAPSHOT_SECONDS),
            }
        });
        NodeMetrics {
            running: node.gauge(RUNNING),
            roles: ROLES.map(|(_, role)| node.and("role", role).gauge(ROLE)),
            leader_id: node.gauge(LEADER_ID),
            term: node.gauge(TERM),
            leader_changes: node.counter(LEADER_CHANGES),
            elections_timeout: elections("timeout"),
            elections_transfer: elections("transfer"),
            elections_requested: elections("requested"),
            commit_index: node.gauge(COMMIT_INDEX),
            applied_index: node.gauge(APPLIED_INDEX),
            last_index: node.gauge(LAST_INDEX),
            durable_index: node.gauge(DURABLE_INDEX),
            snapshot_index: node.gauge(SNAPSHOT_INDEX),
            log_entries: node.gauge(LOG_ENTRIES),
            log_bytes: node.gauge(LOG_BYTES),
            log_cache_bytes: node.gauge(LOG_CACHE_BYTES),
            written_entries: node.counter(LOG_WRITTEN_ENTRIES),
            written_bytes: node.counter(LOG_WRITTEN_BYTES),
            members: MEMBER_ROLES.map(|(_, role)| node.and("role", role).gauge(MEMBERS)),
            proposals: PROPOSAL_RESULTS.map(|result| node.and("result", result).counter(PROPOSALS)),
            reads: READ_RESULTS.map(|result| node.and("result", result).counter(READS)),
            propose_seconds: node.histogram(PROPOSE_SECONDS),
            commit_seconds: node.histogram(COMMIT_SECONDS),
            fsync_seconds: node.histogram(FSYNC_SECONDS),
            apply_seconds: node.histogram(APPLY_SECONDS),
            read_seconds: node.histogram(READ_SECONDS),
            query_seconds: node.histogram(QUERY_SECONDS),
            write_batch: node.histogram(WRITE_BATCH),
            apply_batch: node.histogram(APPLY_BATCH),
            queue_lengths: QUEUES.map(|(_, queue)| node.and("queue", queue).gauge(QUEUE_LENGTH)),
            queue_limits: QUEUES.map(|(_, queue)| node.and("queue", queue).gauge(QUEUE_LIMIT)),
            server_requests: REQUEST_KINDS.map(|(kind, _)| node.and("kind", kind).counter(SERVER_REQUESTS)),
            server_connections: node.gauge(SERVER_CONNECTIONS),
            refused_handshakes: node.counter(SERVER_REFUSED_HANDSHAKES),
            refused_requests: node.counter(SERVER_REFUSED_REQUESTS),
            snapshots,
            disk_free: node.gauge(DISK_FREE),
            disk_size: node.gauge(DISK_SIZE),
            disk_space: Mutex::default(),
            at_last_tick: Mutex::default(),
            labels: node,
        }
    }

    /// For the parts of a node that has no id yet: nothing is recorded.
    pub(crate) fn unrecorded() -> NodeMetrics {
        with_local_recorder(&NoopRecorder, || NodeMetrics::new(NodeId::FIRST))
    }

    // --- For each proposal or read ---

    /// A proposal of a caller of this node was answered. An applied one took this long.
    pub(crate) fn proposed<T>(&self, outcome: &Result<T, ProposeError>, took: Duration) {
        self.proposals[proposal_result(outcome)].increment(1);
        if outcome.is_ok() {
            self.propose_seconds.record(took);
        }
    }

    /// A linearizable read of a caller of this node was answered. A confirmed one took this long.
    pub(crate) fn read<T>(&self, outcome: &Result<T, ReadError>, took: Duration) {
        self.reads[read_result(outcome)].increment(1);
        if outcome.is_ok() {
            self.read_seconds.record(took);
        }
    }

    /// A query has its result.
    pub(crate) fn queried(&self, took: Duration) {
        self.query_seconds.record(took);
    }

    // --- For each batch ---

    /// One durable write of the log.
    pub(crate) fn written(&self, entries: u64, bytes: u64, took: Duration) {
        self.fsync_seconds.record(took);
        if entries > 0 {
            self.write_batch.record(entries as f64);
            self.written_entries.increment(entries);
            self.written_bytes.increment(bytes);
        }
    }

    /// The leader has committed a batch of its entries.
    pub(crate) fn committed(&self, took: Duration) {
        self.commit_seconds.record(took);
    }

    /// The state machine has applied one batch.
    pub(crate) fn applied(&self, entries: usize, took: Duration) {
        self.apply_seconds.record(took);
        self.apply_batch.record(entries as f64);
    }

    // --- Snapshots ---

    /// A part of a snapshot was written, sent, received or read.
    pub(crate) fn snapshot_bytes(&self, operation: SnapshotOperation, bytes: u64) {
        self.snapshots[operation as usize].bytes.increment(bytes);
    }

    /// An operation on a snapshot has ended. A successful one took this long.
    pub(crate) fn snapshot_ended(&self, operation: SnapshotOperation, succeeded: bool, took: Duration) {
        let metrics = &self.snapshots[operation as usize];
        if succeeded {
            metrics.succeeded.increment(1);
            metrics.seconds.record(took);
        } else {
            metrics.failed.increment(1);
        }
    }

    // --- For each tick or change of the status ---

    /// The node begins to run, or has stopped: then it has no role, and knows no leader.
    pub(crate) fn runs(&self, runs: bool) {
        self.running.set(f64::from(u8::from(runs)));
        if !runs {
            self.roles.iter().for_each(|role| role.set(0.0));
            self.leader_id.set(0.0);
            self.at_last_tick.lock().followers.values().for_each(Follower::forget);
        }
    }

    /// Another leader, or another term of one.
    pub(crate) fn leader_changed(&self) {
        self.leader_changes.increment(1);
    }

    /// The length of a queue.
    pub(crate) fn queue_length(&self, queue: Queue, length: usize) {
        self.queue_lengths[queue as usize].set(length as f64);
    }

    /// The limit of a queue.
    pub(crate) fn queue_limit(&self, queue: Queue, limit: usize) {
        self.queue_limits[queue as usize].set(limit as f64);
    }

    /// The file system of the data directory.
    pub(crate) fn disk(&self, free_bytes: u64, size_bytes: u64) {
        self.disk_free.set(free_bytes as f64);
        self.disk_size.set(size_bytes as f64);
        *self.disk_space.lock() = Some(DiskSpace { free_bytes, size_bytes });
    }

    /// The file system of the data directory, as last measured.
    pub(crate) fn disk_space(&self) -> Option<DiskSpace> {
        *self.disk_space.lock()
    }

    pub(crate) fn ticked(&self, figures: &Figures<'_>) {
        let Figures { inspection, elections, log_bytes, requests, refusals, connections } = figures;
        let set = |gauge: &Gauge, index: LogIndex| gauge.set(index.0 as f64);
        let Status { role, leader_id, term, commit, applied, last, truncated, snapshot, members, .. } =
            &inspection.status;
        for ((known, _), gauge) in ROLES.iter().zip(&self.roles) {
            gauge.set(f64::from(u8::from(known == role)));
        }
        self.leader_id.set(leader_id.map_or(0.0, |id| id.get() as f64));
        self.term.set(term.0 as f64);
        set(&self.commit_index, *commit);
        set(&self.applied_index, *applied);
        set(&self.last_index, last.index);
        set(&self.durable_index, inspection.durable);
        set(&self.snapshot_index, snapshot.map_or(LogIndex::ZERO, |snapshot| snapshot.index));
        self.log_entries.set(last.index.0.saturating_sub(truncated.index.0) as f64);
        self.log_bytes.set(*log_bytes as f64);
        self.log_cache_bytes.set(inspection.log_cache_bytes as f64);
        for ((role, _), gauge) in MEMBER_ROLES.iter().zip(&self.members) {
            gauge.set(members.iter().filter(|member| member.role == *role).count() as f64);
        }
        self.queue_lengths[Queue::Proposals as usize].set(inspection.proposals_waiting as f64);
        self.queue_lengths[Queue::Reads as usize].set(inspection.reads_waiting as f64);
        self.server_connections.set(*connections as f64);

        let mut last = self.at_last_tick.lock();
        self.elections_timeout.increment(elections.timeout.saturating_sub(last.elections.timeout));
        self.elections_transfer.increment(elections.transfer.saturating_sub(last.elections.transfer));
        self.elections_requested.increment(elections.requested.saturating_sub(last.elections.requested));
        last.elections = *elections;
        for ((_, count), counter) in REQUEST_KINDS.iter().zip(&self.server_requests) {
            counter.increment(count(requests).saturating_sub(count(&last.requests)));
        }
        last.requests = *requests;
        let RefusalCounts { handshakes, requests } = last.refusals;
        self.refused_handshakes.increment(refusals.handshakes.saturating_sub(handshakes));
        self.refused_requests.increment(refusals.requests.saturating_sub(requests));
        last.refusals = *refusals;
        self.follow(&mut last.followers, inspection);
    }

    fn follow(&self, followers: &mut BTreeMap<NodeId, Follower>, inspection: &Inspection) {
        let Inspection { status, progress, .. } = inspection;
        for (_, follower) in followers.iter().filter(|(id, _)| !progress.iter().any(|peer| peer.id == **id)) {
            follower.forget();
        }
        for peer in progress.iter().filter(|peer| peer.id != status.node_id) {
            let follower = followers.entry(peer.id).or_insert_with(|| {
                let labels = self.labels.and("peer", peer.id.to_string());
                Follower { lag: labels.gauge(FOLLOWER_LAG), active: labels.gauge(FOLLOWER_ACTIVE) }
            });
            follower.lag.set(status.last.index.0.saturating_sub(peer.matched.0) as f64);
            follower.active.set(f64::from(u8::from(peer.recently_active)));
        }
    }

    // --- Peers ---

    /// Registers the metrics of a node to which this one sends. Only a member gets them: other nodes could
    /// name any number of ids. Returns whether they were not registered before.
    pub(crate) fn register(&self, peer: &PeerMetrics, member: NodeId) -> bool {
        let register = || {
            let peer = self.labels.and("peer", member.to_string());
            PeerHandles {
                sent_messages: peer.counter(PEER_SENT_MESSAGES),
                sent_bytes: peer.counter(PEER_SENT_BYTES),
                dropped: peer.counter(PEER_DROPPED),
                batch: peer.histogram(PEER_BATCH),
                queue: peer.gauge(PEER_QUEUE_MESSAGES),
                connected: peer.gauge(PEER_CONNECTED),
            }
        };
        let is_new = peer.0.get().is_none();
        peer.0.get_or_init(register);
        is_new
    }

    /// The handles for a member that sends to this node. Only members get them: other senders could name any
    /// number of ids.
    pub(crate) fn received_from(&self, member: NodeId) -> ReceivedMetrics {
        let member = self.labels.and("peer", member.to_string());
        let (messages, bytes) = (member.counter(PEER_RECEIVED_MESSAGES), member.counter(PEER_RECEIVED_BYTES));
        ReceivedMetrics { messages, bytes }
    }
}

impl Follower {
    fn forget(&self) {
        self.lag.set(0.0);
        self.active.set(0.0);
    }
}

/// The metrics of a node to which this one sends. They record nothing until they are
/// [registered](NodeMetrics::register).
#[derive(Clone, Default)]
pub(crate) struct PeerMetrics(Arc<OnceLock<PeerHandles>>);

struct PeerHandles {
    sent_messages: Counter,
    sent_bytes: Counter,
    dropped: Counter,
    batch: Histogram,
    queue: Gauge,
    connected: Gauge,
}

impl PeerMetrics {
    /// A batch was passed to the connection, and this many messages still wait.
    pub(crate) fn sent(&self, messages: usize, bytes: usize, waiting: usize) {
        let Some(handles) = self.0.get() else { return };
        handles.sent_messages.increment(messages as u64);
        handles.sent_bytes.increment(bytes as u64);
        handles.batch.record(messages as f64);
        handles.queue.set(waiting as f64);
    }

    /// The queue was full.
    pub(crate) fn dropped(&self) {
        if let Some(handles) = self.0.get() {
            handles.dropped.increment(1);
        }
    }

    /// This many messages wait.
    pub(crate) fn waiting(&self, messages: usize) {
        if let Some(handles) = self.0.get() {
            handles.queue.set(messages as f64);
        }
    }

    /// Whether the peer is connected.
    pub(crate) fn connected(&self, is_connected: bool) {
        if let Some(handles) = self.0.get() {
            handles.connected.set(f64::from(u8::from(is_connected)));
        }
    }

    /// The peer was removed or has moved, or the node stops: it is neither connected nor missing.
    pub(crate) fn gone(&self) {
        if let Some(handles) = self.0.get() {
            handles.queue.set(0.0);
            handles.connected.set(f64::NAN);
        }
    }
}

/// See [`NodeMetrics::received_from`].
pub(crate) struct ReceivedMetrics {
    messages: Counter,
    bytes: Counter,
}

impl ReceivedMetrics {
    /// A batch has arrived.
    pub(crate) fn received(&self, messages: usize, bytes: usize) {
        self.messages.increment(messages as u64);
        self.bytes.increment(bytes as u64);
    }
}
