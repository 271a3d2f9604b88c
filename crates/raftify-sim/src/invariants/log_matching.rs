//! Log matching: two logs that hold an entry of the same index and term are the same up to it (thesis, figure 3.2 and
//! section 3.5). Logs are compared by their digests, as they are on disk: a single voter that forgets its term in a crash
//! may lead in it again, with other entries, as long as nobody ever saw the first ones.

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
    /// Of any log up to `position`; every cluster begins with the same.
    pub(crate) fn digest(&self, position: LogPosition) -> Digest {
        self.digests.get(&position).copied().unwrap_or(Digest::BEGIN)
    }

    /// `node` has `write` on its disk, and its log there is `log` now.
    pub(crate) fn writes(&mut self, node: NodeId, write: &Write, log: &LogPicture) -> Checked {
        for position in write.append.iter().map(|entry| entry.position) {
            let Some(digest) = log.digest(position.index) else { continue };
            let first = *self.digests.entry(position).or_insert(digest);
            if first != digest {
                return Err(format!(
                    "log matching: {node} has another entry {position} than others, or another one before it"
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
