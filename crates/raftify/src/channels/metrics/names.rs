//! The name, the unit and the description of every metric, and the registration of its handles.

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, SharedString, Unit, with_recorder,
};
use raftify_core::NodeId;

/// Upper limits of the buckets for histograms of durations, in seconds: from 0.1 ms to 10 s. Pass them to the
/// exporter for all names that end in `_seconds`; without buckets, the Prometheus exporter makes summaries of
/// them, which cannot be added up over nodes.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper limits of the buckets for histograms of batch sizes: powers of two from 1 to 65536. Pass them to the
/// exporter for all names that end in `_entries` and `_messages`.
pub const SIZE_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32768.0, 65536.0,
];

const METADATA: Metadata<'static> = Metadata::new("raftify", Level::INFO, Some("raftify"));

enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(super) struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    about: &'static str,
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal, $unit:ident, $about:literal;)*) => {
        $(pub(super) const $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, unit: Unit::$unit, about: $about };)*
        /// All of them.
        pub(super) const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    RUNNING: Gauge "raftify_running", Count, "1 while the node runs, 0 once it has stopped.";
    ROLE: Gauge "raftify_role", Count, "1 for the role that the node has, 0 for the others.";
    LEADER_ID: Gauge "raftify_leader_id", Count,
        "The id of the leader, as far as the node knows; 0 without one.";
    TERM: Gauge "raftify_term", Count, "The term of the node.";
    LEADER_CHANGES: Counter "raftify_leader_changes_total", Count,
        "How often the node has learned of a new leader or term of a leader.";
    ELECTIONS: Counter "raftify_elections_total", Count, "Elections that this node has started, by reason.";
    COMMIT_INDEX: Gauge "raftify_commit_index", Count, "The last index known to be committed.";
    APPLIED_INDEX: Gauge "raftify_applied_index", Count, "The last index that the state machine has applied.";
    LAST_INDEX: Gauge "raftify_last_index", Count, "The last index of the log, durable or not.";
    DURABLE_INDEX: Gauge "raftify_durable_index", Count, "The last index that is durable on this node.";
    SNAPSHOT_INDEX: Gauge "raftify_snapshot_index", Count, "The index of the newest snapshot; 0 without one.";
    LOG_ENTRIES: Gauge "raftify_log_entries", Count, "Entries in the log.";
    LOG_BYTES: Gauge "raftify_log_bytes", Bytes,
        "Bytes of the applied entries since the newest snapshot began.";
    LOG_CACHE_BYTES: Gauge "raftify_log_cache_bytes", Bytes,
        "Bytes of entries that the node holds in memory.";
    LOG_WRITTEN_ENTRIES: Counter "raftify_log_written_entries_total", Count,
        "Entries written to the log, durably.";
    LOG_WRITTEN_BYTES: Counter "raftify_log_written_bytes_total", Bytes,
        "Bytes of entries written to the log, durably.";
    MEMBERS: Gauge "raftify_members", Count, "Members of the cluster by role, as far as applied here.";
    PROPOSALS: Counter "raftify_proposals_total", Count,
        "Proposals that callers of this node got an answer to, by result.";
    READS: Counter "raftify_reads_total", Count,
        "Linearizable reads of callers of this node that were answered, by result.";
    PROPOSE_SECONDS: Histogram "raftify_propose_seconds", Seconds,
        "From the call of a proposal to its reply, for applied proposals.";
    COMMIT_SECONDS: Histogram "raftify_commit_seconds", Seconds,
        "On the leader, from the append of a batch to its commit.";
    FSYNC_SECONDS: Histogram "raftify_fsync_seconds", Seconds, "One durable write of the log.";
    APPLY_SECONDS: Histogram "raftify_apply_seconds", Seconds, "The state machine applies one batch.";
    READ_SECONDS: Histogram "raftify_read_seconds", Seconds,
        "From the call of a linearizable read to the confirmed and applied index.";
    QUERY_SECONDS: Histogram "raftify_query_seconds", Seconds,
        "From the call of a query to its result, with the read before it.";
    WRITE_BATCH: Histogram "raftify_write_batch_entries", Count, "Entries in one durable write of the log.";
    APPLY_BATCH: Histogram "raftify_apply_batch_entries", Count,
        "Entries in one batch for the state machine.";
    QUEUE_LENGTH: Gauge "raftify_queue_length", Count, "What waits in a queue of the node.";
    QUEUE_LIMIT: Gauge "raftify_queue_limit", Count,
        "The limit of a queue of the node, in the same unit as its length.";
    SERVER_REQUESTS: Counter "raftify_server_requests_total", Count,
        "Requests that the gRPC server has received, by kind.";
    SERVER_CONNECTIONS: Gauge "raftify_server_connections", Count, "Open connections to the gRPC server.";
    SERVER_REFUSED_HANDSHAKES: Counter "raftify_server_refused_handshakes_total", Count,
        "Connections that were refused during the TLS handshake.";
    SERVER_REFUSED_REQUESTS: Counter "raftify_server_refused_requests_total", Count,
        "Requests that were refused because the certificate does not permit them, or without TLS.";
    PEER_SENT_MESSAGES: Counter "raftify_peer_sent_messages_total", Count, "Raft messages sent to a peer.";
    PEER_SENT_BYTES: Counter "raftify_peer_sent_bytes_total", Bytes,
        "Encoded bytes of Raft messages sent to a peer.";
    PEER_DROPPED: Counter "raftify_peer_dropped_messages_total", Count,
        "Raft messages dropped because the queue of the peer was full.";
    PEER_RECEIVED_MESSAGES: Counter "raftify_peer_received_messages_total", Count,
        "Raft messages received from a member.";
    PEER_RECEIVED_BYTES: Counter "raftify_peer_received_bytes_total", Bytes,
        "Encoded bytes of Raft messages received from a member.";
    PEER_BATCH: Histogram "raftify_peer_batch_messages", Count, "Raft messages in one batch to a peer.";
    PEER_QUEUE_MESSAGES: Gauge "raftify_peer_queue_messages", Count, "Raft messages that wait for a peer.";
    PEER_CONNECTED: Gauge "raftify_peer_connected", Count,
        "1 while the peer is connected and has identified itself; NaN once it was removed.";
    FOLLOWER_LAG: Gauge "raftify_follower_lag_entries", Count,
        "On the leader, entries of its log that a member does not have durably; 0 on other nodes.";
    FOLLOWER_ACTIVE: Gauge "raftify_follower_active", Count,
        "On the leader, 1 if the member answered within an election timeout; 0 on other nodes.";
    SNAPSHOTS: Counter "raftify_snapshots_total", Count, "Snapshots by operation and result.";
    SNAPSHOT_BYTES: Counter "raftify_snapshot_bytes_total", Bytes, "Bytes of snapshot data by operation.";
    SNAPSHOT_SECONDS: Histogram "raftify_snapshot_seconds", Seconds,
        "The duration of a successful operation on a snapshot.";
    DISK_FREE: Gauge "raftify_disk_free_bytes", Bytes,
        "Free space for this process on the file system of the data directory.";
    DISK_SIZE: Gauge "raftify_disk_size_bytes", Bytes, "Size of the file system of the data directory.";
}

impl Metric {
    fn key(&self, labels: &[(&'static str, SharedString)]) -> Key {
        let labels: Vec<Label> =
            labels.iter().map(|(name, value)| Label::new(*name, value.clone())).collect();
        Key::from_parts(self.name, labels)
    }

    pub(super) fn describe(&self) {
        let (name, unit) = (KeyName::from_const_str(self.name), Some(self.unit));
        with_recorder(|recorder| match self.kind {
            Kind::Counter => recorder.describe_counter(name, unit, self.about.into()),
            Kind::Gauge => recorder.describe_gauge(name, unit, self.about.into()),
            Kind::Histogram => recorder.describe_histogram(name, unit, self.about.into()),
        });
    }
}

/// The labels of one node, or of one of its parts: registers its metrics.
pub(super) struct Labels(Vec<(&'static str, SharedString)>);

impl Labels {
    pub(super) fn of_node(node: NodeId) -> Labels {
        Labels(vec![("node", node.to_string().into())])
    }

    pub(super) fn and(&self, name: &'static str, value: impl Into<SharedString>) -> Labels {
        let mut labels = self.0.clone();
        labels.push((name, value.into()));
        Labels(labels)
    }

    pub(super) fn counter(&self, metric: Metric) -> Counter {
        with_recorder(|recorder| recorder.register_counter(&metric.key(&self.0), &METADATA))
    }

    pub(super) fn gauge(&self, metric: Metric) -> Gauge {
        with_recorder(|recorder| recorder.register_gauge(&metric.key(&self.0), &METADATA))
    }

    pub(super) fn histogram(&self, metric: Metric) -> Histogram {
        with_recorder(|recorder| recorder.register_histogram(&metric.key(&self.0), &METADATA))
    }
}
