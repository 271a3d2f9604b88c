//! Internal functions that the benchmarks measure. Not for users: they change without notice.

use crate::machines::PendingReplies;
use crate::types::{LogIndex, LogPosition, Term};

/// Registers `count` proposals as waiting for their answers and resolves them in order; returns how many were
/// answered.
pub fn answer_proposals(count: u64) -> usize {
    let mut pending = PendingReplies::new();
    let position = |index| LogPosition { term: Term(1), index: LogIndex(index) };
    for index in 1..=count {
        pending.insert(position(index), index, index);
    }
    (1..=count).filter_map(|index| pending.resolve(position(index)).applied).count()
}
