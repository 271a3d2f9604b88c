//! The log is bounded: once a snapshot is recorded, the log begins no earlier than the settings allow, even
//! if other nodes are dead or slow (thesis, chapter 5: each server compacts independently of the others).

use raftify_core::{LogIndex, NodeId};

use super::Checked;

/// `node` records a snapshot at `snapshot`; its log now begins after `truncated`, where `kept` entries may
/// stay.
pub(crate) fn records(node: NodeId, snapshot: LogIndex, truncated: LogIndex, kept: u64) -> Checked {
    if truncated.0.saturating_add(kept) >= snapshot.0 {
        return Ok(());
    }
    Err(format!(
        "bounded log: {node} records a snapshot at {snapshot} and may keep {kept} entries, but its log begins after {truncated}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_compacted_is_rejected() {
        records(NodeId::FIRST, LogIndex(20), LogIndex(17), 3).unwrap();
        records(NodeId::FIRST, LogIndex(2), LogIndex(0), 3).unwrap();
        records(NodeId::FIRST, LogIndex(20), LogIndex(16), 3).unwrap_err();
    }
}
