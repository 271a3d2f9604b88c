//! Trace marks on the path of proposals, which show where their time is spent: events of `tracing` at trace
//! level with the target `raftify::timing`, one for each step of a batch, never one for each proposal.
//!
//! A subscriber that measures the times records when the events arrive; `raftify-bench path` does. Without a
//! subscriber, a mark only reads one number in memory. The loop, the log writer and the applier set the
//! marks; no code here makes decisions.

use raftify_core::{LogIndex, NodeId};
use tracing::trace;

/// Node `node` has reached `step` with the log up to `last`.
#[inline]
pub(crate) fn mark(node: NodeId, step: Step, last: LogIndex) {
    trace!(target: "raftify::timing", node = node.get(), step = step as u64, last = last.0);
}

/// The step that a batch has reached. The numbers are those of the events' field `step`.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// The loop has woken up for its next input; without an index.
    Woken = 0,
    /// Entries are passed to the log writer and, by a leader, to the followers.
    Append = 1,
    /// The log writer begins to write them.
    Write = 2,
    /// They are durable here.
    Durable = 3,
    /// They are committed, as far as this node knows, and passed to the applier.
    Commit = 4,
    /// The state machine gets them.
    Apply = 5,
    /// It has applied them; the replies come next.
    Applied = 6,
}
