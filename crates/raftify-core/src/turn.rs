//! One batch of work for the shell, and its order (cf. raft-rs' `Ready`).

use std::sync::Arc;

use bytes::Bytes;

use crate::members::Members;
use crate::message::RaftMessage;
use crate::request::LeaderRequest;
use crate::storage::{SnapshotMeta, Write};
use crate::types::{LogIndex, LogPosition, NodeId, Term};

/// Counts the turns of one core, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnNumber(pub u64);

/// One batch of work for the shell.
///
/// The order that matters: [`send_after`](Self::send_after) leaves only when the [`write`](Self::write) of
/// this turn and those of all turns before it are durable. All other work may start at once. When the writes
/// of a turn are durable, the shell calls [`written`](crate::RaftNodeCore::written), in order; a turn without
/// a write counts as written together with the turns before it.
#[derive(Debug)]
#[must_use = "a turn that is not carried out loses messages and answers"]
pub struct Turn<R> {
    /// For [`written`](crate::RaftNodeCore::written).
    pub number: TurnNumber,
    /// Messages that do not depend on a write.
    pub send_now: Vec<RaftMessage>,
    /// The write to make durable.
    pub write: Option<Write>,
    /// Messages that must not leave before this turn and all turns before it are durable.
    pub send_after: Vec<RaftMessage>,
    /// Snapshots to send. The shell reports the outcome of each with
    /// [`snapshot_sent`](crate::RaftNodeCore::snapshot_sent), exactly once. A later snapshot to the same
    /// follower makes an earlier one that is still in flight useless.
    pub send_snapshots: Vec<SnapshotToSend>,
    /// Work for the state machine, in log order. Committed; and durable on this node, unless the state
    /// machine is [in memory](StateKept::InMemory).
    pub committed: Vec<Committed<R>>,
    /// Requests for the leader, which is another node. The shell sends them and returns the answers.
    pub forward: Vec<Forward<R>>,
    /// Ask the leader for its confirmed commit index, and report it with
    /// [`read_round_answered`](crate::RaftNodeCore::read_round_answered).
    pub read_round: Option<ReadRound>,
    /// Entries to read from the log for a follower that lags behind; the shell passes them to
    /// [`fetched`](crate::RaftNodeCore::fetched).
    pub fetch: Vec<LogFetch>,
    /// Take a snapshot of the state machine at this point in the order of `committed`, and report it with
    /// [`snapshot_taken`](crate::RaftNodeCore::snapshot_taken).
    pub take_snapshot: Option<SnapshotReason>,
    /// A follower now waits for the snapshot that is being taken, which was only due: from now on, it is
    /// taken as fast as one that is [awaited](SnapshotReason::Awaited).
    pub hurry_snapshot: bool,
}

/// Where a state machine keeps its state. This decides which entries may be delivered to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKept {
    /// In memory: the state ends with the process, and the next process starts from a snapshot that this node
    /// has recorded. Entries are delivered as soon as they are committed: they are durable on a majority
    /// of the voters, which need not include this node.
    InMemory,
    /// In a place that may outlive the process. An entry in the state must not be missing in the log of this
    /// node: entries are delivered once they are durable on this node, too.
    OnDisk,
}

/// Why the node takes a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// It is due, or a user asked for it: no follower waits for it.
    Due,
    /// A follower waits for a snapshot, and no existing one suffices.
    Awaited,
}

/// Work for the owner of the state machine, in log order.
#[derive(Debug)]
pub enum Committed<R> {
    /// A user's entry.
    User {
        /// The position of the entry.
        position: LogPosition,
        /// In the user's encoding.
        payload: Bytes,
        /// The reply channel for the reply of the state machine, if the entry was proposed on this node.
        reply: Option<R>,
    },
    /// The membership changed.
    Members {
        /// The position of the change.
        position: LogPosition,
        /// The new membership.
        members: Arc<Members>,
    },
    /// No work for the state machine, but the index counts as applied.
    Nothing {
        /// The position of the entry.
        position: LogPosition,
    },
    /// Replace the state by this snapshot, which is durable.
    Install {
        /// The metadata of the snapshot.
        snapshot: Box<SnapshotMeta>,
    },
}

impl<R> Committed<R> {
    /// The position of this item in the log.
    pub fn position(&self) -> LogPosition {
        match self {
            Committed::User { position, .. }
            | Committed::Members { position, .. }
            | Committed::Nothing { position } => *position,
            Committed::Install { snapshot } => snapshot.position,
        }
    }
}

/// A request that only the leader can serve.
#[derive(Debug)]
pub struct Forward<R> {
    /// The leader, as this node knows it.
    pub to: NodeId,
    /// With its reply channel.
    pub request: LeaderRequest<R>,
}

/// Asks the leader to confirm its commit index for the reads that wait on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRound {
    /// The leader, as this node knows it.
    pub leader: NodeId,
    /// For [`read_round_answered`](crate::RaftNodeCore::read_round_answered).
    pub round: u64,
}

/// A snapshot that a follower needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotToSend {
    /// Counts the transfers of this core, from 1: the same snapshot may be sent to the same follower twice,
    /// and each attempt has its own outcome.
    pub attempt: u64,
    /// The follower.
    pub to: NodeId,
    /// The leader's term.
    pub term: Term,
    /// The position of the snapshot.
    pub position: LogPosition,
}

/// Entries to read from the log: `[from, until)`, up to `bytes_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFetch {
    /// The first index.
    pub from: LogIndex,
    /// The index after the last.
    pub until: LogIndex,
    /// As in [`LogReader::read`](crate::storage::LogReader::read).
    pub bytes_max: u64,
}
