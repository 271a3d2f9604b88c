//! Marks on the way of proposals, from which it can be told where their time goes: events of `tracing` at trace level
//! with the target `raftify::timing`, one for each step of a batch, never one for each proposal.
//!
//! Whoever wants the times records when the events come; `raftify-bench path` does. While nobody listens, a mark is the
//! reading of one number in memory. The loop, the log writer and the applier set them; nothing here decides.

use raftify_core::{LogIndex, NodeId};
use tracing::trace;

/// Node `node` has come to `step` with the log up to `last`.
#[inline]
pub(crate) fn mark(node: NodeId, step: Step, last: LogIndex) {
    trace!(target: "raftify::timing", node = node.get(), step = step as u64, last = last.0);
}

/// What a batch has come to. The numbers are those of the events' field `step`.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// The loop has woken up for whatever is next; of no index.
    Woken = 0,
    /// Entries are handed to the log writer and, by a leader, to the followers.
    Append = 1,
    /// The log writer begins to write them.
    Write = 2,
    /// They are durable here.
    Durable = 3,
    /// They are committed, as far as this node knows, and handed to the applier.
    Commit = 4,
    /// The state machine is given them.
    Apply = 5,
    /// It has applied them; the replies come next.
    Applied = 6,
}
