//! Leader completeness: an entry that is committed in a term is in the log of the leaders of all higher terms
//! (thesis, figure 3.2 and section 3.6.3). Checked both ways: for a new leader, against all earlier commits;
//! and for each commit, against all leaders of higher terms.

use std::collections::BTreeMap;

use raftify_core::{LogIndex, NodeId, Term};

use super::Checked;
use super::committed_entries::CommittedEntries;
use crate::log_picture::LogPicture;

#[derive(Default)]
pub(crate) struct LeaderCompleteness {
    /// The commit index of the leader of each term.
    committed_in: BTreeMap<Term, LogIndex>,
}

impl LeaderCompleteness {
    /// The leader of `term` has committed everything up to `index`.
    pub(crate) fn commits(&mut self, term: Term, index: LogIndex) {
        let committed = self.committed_in.entry(term).or_insert(index);
        *committed = index.max(*committed);
    }

    /// `node` leads in `term`, with this log.
    pub(crate) fn leads(
        &self,
        node: NodeId,
        term: Term,
        log: &LogPicture,
        committed: &CommittedEntries,
    ) -> Checked {
        let Some(last) = self.committed_in.range(..term).map(|(_, index)| *index).max() else {
            return Ok(());
        };
        match committed.at(last) {
            Some(entry) if !log.holds(last, entry.digest) => Err(format!(
                "leader completeness: leader {node} of term {term} lacks entries that were committed before, up to {last}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::storage::Write;
    use raftify_core::{Entry, EntryKind, LogPosition};

    use super::*;
    use crate::log_picture::Digest;

    fn log(terms: &[u64]) -> LogPicture {
        let entry = |(index, term): (u64, &u64)| Entry {
            position: LogPosition::new(*term, index),
            kind: EntryKind::User,
            payload: Default::default(),
        };
        let mut log = LogPicture::beginning_after(LogPosition::new(1, 1), Digest::BEGIN);
        let append = (2..).zip(terms).map(entry).collect();
        log.take(&Write { append, ..Write::default() }, |_| Digest::BEGIN);
        log
    }

    #[test]
    fn a_leader_that_lacks_a_committed_entry_is_rejected() {
        let (node, complete) = (NodeId::FIRST, log(&[2, 2]));
        let mut committed = CommittedEntries::default();
        committed.leader_commits(node, Term(2), LogIndex(3), &complete).unwrap();
        let mut completeness = LeaderCompleteness::default();
        completeness.commits(Term(4), LogIndex(3));
        completeness.leads(node, Term(5), &complete, &committed).unwrap();
        completeness.leads(node, Term(5), &log(&[2]), &committed).unwrap_err();
        completeness.leads(node, Term(5), &log(&[2, 3]), &committed).unwrap_err();
        completeness
            .leads(node, Term(3), &log(&[2, 3]), &committed)
            .expect("it was committed in a later term only");
    }
}
