//! Log matching: two logs with an entry of the same index and term are the same up to it (thesis, figure 3.2
//! and section 3.5). Logs are compared by their digests, in their durable form: a single voter that forgets
//! its term in a crash may lead in it again, with other entries, as long as no other node saw the first ones.

use std::collections::BTreeMap;

use raftify_core::storage::Write;
use raftify_core::{LogPosition, NodeId};

use super::Checked;
use crate::log_picture::{Digest, LogPicture};

#[derive(Default)]
pub(crate) struct LogMatching {
    digests: BTreeMap<LogPosition, Digest>,
}

impl LogMatching {
    /// The digest of any log up to `position`; it is the same at the beginning of every cluster.
    pub(crate) fn digest(&self, position: LogPosition) -> Digest {
        self.digests.get(&position).copied().unwrap_or(Digest::BEGIN)
    }

    /// `write` is durable on `node`, and its durable log is now `log`.
    pub(crate) fn writes(&mut self, node: NodeId, write: &Write, log: &LogPicture) -> Checked {
        for position in write.append.iter().map(|entry| entry.position) {
            let Some(digest) = log.digest(position.index) else { continue };
            let first = *self.digests.entry(position).or_insert(digest);
            if first != digest {
                return Err(format!(
                    "log matching: {node} has another entry {position} than other nodes, or another entry before it"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::{Entry, EntryKind};

    use super::*;

    fn check(matching: &mut LogMatching, entries: &[(u64, u64, &'static [u8])]) -> Checked {
        let entry = |&(term, index, payload): &(u64, u64, &'static [u8])| Entry {
            position: LogPosition::new(term, index),
            kind: EntryKind::User,
            payload: payload.into(),
        };
        let write = Write { append: entries.iter().map(entry).collect(), ..Write::default() };
        let mut log = LogPicture::default();
        log.take(&write, |_| Digest::BEGIN);
        matching.writes(NodeId::FIRST, &write, &log)
    }

    #[test]
    fn logs_that_differ_before_a_common_entry_are_rejected() {
        let mut matching = LogMatching::default();
        check(&mut matching, &[(1, 1, b"a"), (1, 2, b"b"), (3, 3, b"c")]).unwrap();
        check(&mut matching, &[(1, 1, b"a"), (2, 2, b"x")]).unwrap();
        check(&mut matching, &[(1, 1, b"a"), (2, 2, b"x"), (3, 3, b"c")]).unwrap_err();
    }

    #[test]
    fn two_entries_of_one_index_and_term_are_rejected() {
        let mut matching = LogMatching::default();
        check(&mut matching, &[(1, 1, b"a")]).unwrap();
        check(&mut matching, &[(1, 1, b"b")]).unwrap_err();
    }
}
