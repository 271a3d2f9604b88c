//! One batch of work for the shell, and in which order it is done (cf. raft-rs' `Ready`).

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

/// One round of work for the shell.
///
/// The order that matters: [`send_after`](Self::send_after) leaves only when this turn's [`write`](Self::write) and
/// those of all turns before it are durable. All else may start at once. When the writes of a turn are durable, the
/// shell says so with [`written`](crate::RaftNodeCore::written), in order; a turn without a write counts as written
/// together with the turns before it.
#[derive(Debug)]
#[must_use = "a turn that is not carried out loses messages and answers"]
pub struct Turn<R> {
    /// For [`written`](crate::RaftNodeCore::written).
    pub number: TurnNumber,
    /// Messages that depend on no write.
    pub send_now: Vec<RaftMessage>,
    /// To be made durable.
    pub write: Option<Write>,
    /// Messages that must not leave before this turn and all before it are durable.
    pub send_after: Vec<RaftMessage>,
    /// Snapshots to send. Each one's outcome must be reported with
    /// [`snapshot_sent`](crate::RaftNodeCore::snapshot_sent), exactly once. A later one to the same follower makes an
    /// earlier one that is still on its way useless.
    pub send_snapshots: Vec<SnapshotToSend>,
    /// For the state machine, in log order. Committed; and durable here, unless the state machine is
    /// [in memory](StateKept::InMemory).
    pub committed: Vec<Committed<R>>,
    /// Requests for the leader, which is another node. The shell sends them and passes on the answers.
    pub forward: Vec<Forward<R>>,
    /// Ask the leader for its confirmed commit index, and report it with
    /// [`read_round_answered`](crate::RaftNodeCore::read_round_answered).
    pub read_round: Option<ReadRound>,
    /// Entries to be read from the log for a follower that lags behind; the answer goes to
    /// [`fetched`](crate::RaftNodeCore::fetched).
    pub fetch: Vec<LogFetch>,
    /// Take a snapshot of the state machine as it is when this reaches it in the order of `committed`, and report it
    /// with [`snapshot_taken`](crate::RaftNodeCore::snapshot_taken).
    pub take_snapshot: Option<SnapshotReason>,
    /// A follower waits by now for the snapshot that is being taken, which was only due: from now on, it is taken as fast as
    /// one that is [awaited](SnapshotReason::Awaited).
    pub hurry_snapshot: bool,
}

/// Where a state machine keeps its state, which decides what may be handed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKept {
    /// In memory: it ends with the process, and begins again with a snapshot that this node has recorded. Entries are
    /// delivered as soon as they are committed: that a majority of the voters has them durably is enough, this node's own
    /// disk need not be among them.
    InMemory,
    /// Where it may outlive the process. What is in it must not be missing in this node's log: entries are delivered once
    /// they are durable there too.
    OnDisk,
}

/// Why a snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// It is due, or a user asked for it: nothing waits for it.
    Due,
    /// A follower needs one, and none that there is will do: it waits.
    Awaited,
}

/// Something for the state machine's owner, in log order.
#[derive(Debug)]
pub enum Committed<R> {
    /// A user's entry.
    User {
        /// Where it stands.
        position: LogPosition,
        /// In the user's encoding.
        payload: Bytes,
        /// Waits for the reply of the state machine, if the entry was proposed on this node.
        reply: Option<R>,
    },
    /// The membership changed.
    Members {
        /// Where the change stands.
        position: LogPosition,
        /// From now on.
        members: Arc<Members>,
    },
    /// Nothing for the state machine, but its place in the log counts as applied.
    Nothing {
        /// Where it stands.
        position: LogPosition,
    },
    /// Replace the state by this snapshot, which is durable.
    Install {
        /// Which one.
        snapshot: Box<SnapshotMeta>,
    },
}

impl<R> Committed<R> {
    /// Where it stands.
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

/// Asks the leader to confirm its commit index for the reads that wait here.
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
    /// Counts what this core wants sent, from 1: the same snapshot may be sent to the same follower twice, and each
    /// time has an outcome of its own.
    pub attempt: u64,
    /// The follower.
    pub to: NodeId,
    /// The leader's term.
    pub term: Term,
    /// Which snapshot.
    pub position: LogPosition,
}

/// Entries to be read from the log: `[from, until)`, up to `bytes_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFetch {
    /// The first index.
    pub from: LogIndex,
    /// The index after the last.
    pub until: LogIndex,
    /// As in [`LogReader::read`](crate::storage::LogReader::read).
    pub bytes_max: u64,
}
