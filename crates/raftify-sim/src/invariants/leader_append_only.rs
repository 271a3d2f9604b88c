//! Leader append-only: a leader never overwrites or deletes entries of its log (thesis, figure 3.2 and
//! section 3.5).

use raftify_core::storage::Write;
use raftify_core::{LogIndex, NodeId, Term};

use super::Checked;

/// `node`, which has been the leader of `term` since before it decided on this write, has a log up to `last`.
pub(crate) fn writes(node: NodeId, term: Term, last: LogIndex, write: &Write) -> Checked {
    if let Some(position) = write.reset_log {
        return Err(format!(
            "leader append-only: leader {node} of term {term} restarts its log after {position}"
        ));
    }
    match write.append.first() {
        Some(first) if first.position.index <= last => Err(format!(
            "leader append-only: leader {node} of term {term} overwrites entry {}, its log goes to {last}",
            first.position.index
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::{Entry, EntryKind, LogPosition};

    use super::*;

    #[test]
    fn a_leader_that_overwrites_is_rejected() {
        let node = NodeId::new(1).unwrap();
        let write = |index| {
            let position = LogPosition::new(2, index);
            let entry = Entry { position, kind: EntryKind::User, payload: Default::default() };
            Write { append: vec![entry], ..Write::default() }
        };
        writes(node, Term(2), LogIndex(5), &write(6)).unwrap();
        writes(node, Term(2), LogIndex(5), &write(5)).unwrap_err();
        let reset = Write { reset_log: Some(LogPosition::new(2, 9)), ..Write::default() };
        writes(node, Term(2), LogIndex(5), &reset).unwrap_err();
    }
}
