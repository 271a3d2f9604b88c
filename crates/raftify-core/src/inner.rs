//! What benches time of this crate's inner parts. Not for users: it changes without notice.

use crate::machines::PendingReplies;
use crate::types::{LogIndex, LogPosition, Term};

/// Has `count` proposals wait for their answers and resolves them in order; returns how many were answered.
pub fn answer_proposals(count: u64) -> usize {
    let mut pending = PendingReplies::new();
    let position = |index| LogPosition { term: Term(1), index: LogIndex(index) };
    for index in 1..=count {
        pending.insert(position(index), index, index);
    }
    (1..=count).filter_map(|index| pending.resolve(position(index)).applied).count()
}
