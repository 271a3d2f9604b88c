//! Committed entries never change: if one node knows an entry as committed, every node commits it, and no
//! node discards it (thesis, section 3.6.3). Also the record of committed entries that other properties are
//! checked against.

use raftify_core::storage::Write;
use raftify_core::{LogIndex, LogPosition, NodeId, Term};

use super::Checked;
use crate::log_picture::{Digest, LogPicture};

/// The committed entry at one index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommittedEntry {
    pub(crate) term: Term,
    pub(crate) digest: Digest,
    /// The term in which a leader has committed it: that of the entry, or a later one.
    committed_in: Term,
}

#[derive(Default)]
pub(crate) struct CommittedEntries {
    /// From the second index on: every cluster begins as if its log had one entry.
    entries: Vec<CommittedEntry>,
}

impl CommittedEntries {
    /// The last index that any leader has committed.
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.entries.len() as u64 + 1)
    }

    pub(crate) fn at(&self, index: LogIndex) -> Option<CommittedEntry> {
        self.entries.get(usize::try_from(index.0.checked_sub(2)?).ok()?).copied()
    }

    /// The leader of `term`, whose log is `log`, has committed everything up to `index`.
    pub(crate) fn leader_commits(
        &mut self,
        leader: NodeId,
        term: Term,
        index: LogIndex,
        log: &LogPicture,
    ) -> Checked {
        if index > self.last() {
            self.commits(leader, self.last(), log)?;
        }
        while self.last() < index {
            let next = self.last().next();
            let Some(place) = log.at(next) else {
                return Err(format!(
                    "committed entries: leader {leader} commits {next}, which is not in its log"
                ));
            };
            self.entries.push(CommittedEntry { term: place.term, digest: place.digest, committed_in: term });
        }
        self.commits(leader, index, log)
    }

    /// `node` regards everything up to `index` as committed.
    pub(crate) fn commits(&self, node: NodeId, index: LogIndex, log: &LogPicture) -> Checked {
        if index > self.last() {
            return Err(format!(
                "committed entries: {node} regards {index} as committed, no leader has committed it"
            ));
        }
        match self.at(index) {
            Some(CommittedEntry { digest, .. }) if !log.holds(index, digest) => Err(format!(
                "committed entries: the committed entries of {node} up to {index} differ from those of other nodes"
            )),
            _ => Ok(()),
        }
    }

    /// `node`, whose log is `log`, is about to accept `write` in `term`. A node that does not know the leader
    /// that committed an entry may still discard a copy of it in favour of entries of an earlier leader:
    /// no quorum counted that copy.
    pub(crate) fn writes(&self, node: NodeId, term: Term, log: &LogPicture, write: &Write) -> Checked {
        let Some(first) = write.append.first().map(|entry| entry.position.index) else {
            return Ok(());
        };
        if write.reset_log.is_some() || first > log.last() {
            return Ok(());
        }
        match self.at(first) {
            Some(committed)
                if term >= committed.committed_in && log.digest(first) == Some(committed.digest) =>
            {
                Err(format!("committed entries: {node} overwrites entry {first}, which is committed"))
            }
            _ => Ok(()),
        }
    }

    /// Whether `position` is committed.
    pub(crate) fn is_committed(&self, position: LogPosition) -> bool {
        self.at(position.index).is_some_and(|entry| entry.term == position.term)
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::{Entry, EntryKind};

    use super::*;

    fn log(terms: &[u64]) -> LogPicture {
        let begin = LogPosition::new(1, 1);
        let mut log = LogPicture::beginning_after(begin, Digest::BEGIN);
        log.take(&write(2, terms), |_| Digest::BEGIN);
        log
    }

    fn write(first: u64, terms: &[u64]) -> Write {
        let entry = |(index, term): (u64, &u64)| Entry {
            position: LogPosition::new(*term, index),
            kind: EntryKind::User,
            payload: Default::default(),
        };
        Write { append: (first..).zip(terms).map(entry).collect(), ..Write::default() }
    }

    #[test]
    fn another_entry_at_a_committed_index_is_rejected() {
        let node = NodeId::FIRST;
        let mut committed = CommittedEntries::default();
        committed.leader_commits(node, Term(2), LogIndex(3), &log(&[1, 1])).unwrap();
        assert!(committed.is_committed(LogPosition::new(1, 3)));
        assert!(
            !committed.is_committed(LogPosition::new(2, 3))
                && !committed.is_committed(LogPosition::new(1, 4))
        );
        committed.commits(node, LogIndex(3), &log(&[1, 1, 2])).unwrap();
        committed.commits(node, LogIndex(3), &log(&[1, 2])).unwrap_err();
        committed.leader_commits(node, Term(2), LogIndex(4), &log(&[1, 2, 2])).unwrap_err();
    }

    #[test]
    fn a_commit_that_no_leader_has_made_is_rejected() {
        let mut committed = CommittedEntries::default();
        committed.commits(NodeId::FIRST, LogIndex(2), &log(&[1])).unwrap_err();
        committed.leader_commits(NodeId::FIRST, Term(2), LogIndex(3), &log(&[1])).unwrap_err();
    }

    #[test]
    fn overwriting_a_committed_entry_is_rejected() {
        let node = NodeId::FIRST;
        let mut committed = CommittedEntries::default();
        committed.leader_commits(node, Term(2), LogIndex(3), &log(&[1, 1])).unwrap();
        let own = log(&[1, 1, 1]);
        committed.writes(node, Term(2), &own, &write(4, &[2])).unwrap();
        committed.writes(node, Term(2), &own, &write(3, &[2])).unwrap_err();
        committed.writes(node, Term(3), &own, &write(3, &[3])).unwrap_err();
        committed.writes(node, Term(2), &log(&[1, 2]), &write(3, &[1])).unwrap();
    }

    #[test]
    fn a_copy_that_no_quorum_counted_may_be_discarded_for_an_earlier_leader() {
        let mut committed = CommittedEntries::default();
        committed.leader_commits(NodeId::new(2).unwrap(), Term(4), LogIndex(4), &log(&[1, 1, 4])).unwrap();
        committed.writes(NodeId::FIRST, Term(3), &log(&[1, 1]), &write(3, &[3])).unwrap();
    }
}
