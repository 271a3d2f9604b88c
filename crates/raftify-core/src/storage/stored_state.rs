//! The effect of a write on the stored state, as a pure function: this module decides which writes are
//! refused. Every implementation of [`StableStorage`](super::StableStorage) calls it before it writes, and
//! [`check`](StoredState::check) after it has read, so that it accepts no state that it could not load again.

use std::sync::Arc;

use super::{HardState, StorageError, StoredState, Write};
use crate::entry::Entry;
use crate::types::{LogIndex, LogPosition, Term};

impl StoredState {
    /// The term of the entry at `index`, or of the truncated position; `None` outside of the log.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index < self.truncated.index || index > self.last.index {
            return None;
        }
        let starts_before = self.term_starts.partition_point(|start| start.index <= index);
        let start = starts_before.checked_sub(1).map_or(self.truncated, |at| self.term_starts[at]);
        Some(start.term)
    }

    /// The state after `write`.
    ///
    /// # Errors
    /// [`StorageError::Refused`] if the write contradicts the stored state. The storage must not carry it out
    /// then.
    pub fn after(&self, write: &Write) -> Result<StoredState, StorageError> {
        self.try_after(write).map_err(|reason| StorageError::Refused { reason })
    }

    fn try_after(&self, write: &Write) -> Result<StoredState, String> {
        let mut state = self.clone();
        if let Some(identity) = write.identity {
            match state.identity {
                Some(known) if known != identity => {
                    return Err(format!("the directory belongs to {known}, not to {identity}"));
                }
                _ => state.identity = Some(identity),
            }
        }
        if let Some(position) = write.reset_log {
            state.reset_log(position)?;
        }
        state.append(&write.append)?;
        if let Some(hard_state) = write.hard_state {
            state.hard_state.check_followed_by(&hard_state)?;
            let commit = state.hard_state.commit;
            state.hard_state = hard_state;
            if mutated!(CommitIndexIsNotWritten) {
                state.hard_state.commit = commit;
            }
        }
        state.members = write.members.clone().or(state.members);
        if let Some(remembered) = &write.remembered {
            state.remembered = Arc::clone(remembered);
        }
        state.snapshot = write.snapshot.clone().or(state.snapshot);
        if let Some(position) = write.compact {
            state.compact(position)?;
        }
        state.check()?;
        Ok(state)
    }

    fn reset_log(&mut self, position: LogPosition) -> Result<(), String> {
        let commit = self.hard_state.commit;
        if position.index < commit {
            return Err(format!("the log cannot begin after {position}: {commit} is committed"));
        }
        self.truncated = position;
        if mutated!(SnapshotKeepsSuffix) && position.index < self.last.index {
            self.term_starts.retain(|start| start.index > position.index);
            return Ok(());
        }
        self.last = position;
        self.term_starts.clear();
        Ok(())
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), String> {
        let Some(first) = entries.first().map(|entry| entry.position.index) else {
            return Ok(());
        };
        let before = first.previous();
        let (Some(mut term), true) = (self.term_at(before), first > LogIndex::ZERO) else {
            let begin = self.truncated.index.next();
            return Err(format!("entry {first} does not follow: the log has {begin} to {}", self.last.index));
        };
        if first <= self.hard_state.commit {
            let commit = self.hard_state.commit;
            return Err(format!("entry {first} cannot be replaced: {commit} is committed"));
        }
        self.term_starts.truncate(self.term_starts.partition_point(|start| start.index < first));
        let last_before = self.last;
        for (Entry { position, .. }, expected) in entries.iter().zip(first.0..) {
            if position.index.0 != expected {
                return Err(format!("entry {} stands where {expected} is expected", position.index));
            }
            if position.term < term {
                return Err(format!(
                    "the term of entry {position} is lower than {term}, that of the one before"
                ));
            }
            if position.term > term {
                self.term_starts.push(*position);
                term = position.term;
            }
            self.last = *position;
        }
        if mutated!(SuffixIsKept) && last_before.index > self.last.index {
            self.last = last_before;
        }
        Ok(())
    }

    fn compact(&mut self, position: LogPosition) -> Result<(), String> {
        if position.index <= self.truncated.index {
            return Ok(());
        }
        if self.term_at(position.index) != Some(position.term) {
            return Err(format!("cannot compact up to {position}: there is no such entry"));
        }
        if self.snapshot.as_ref().is_none_or(|snapshot| snapshot.position.index < position.index) {
            return Err(format!("cannot compact up to {position}: no snapshot includes it"));
        }
        self.truncated = position;
        self.term_starts.retain(|start| start.index > position.index);
        Ok(())
    }

    /// The invariants of every stored state.
    ///
    /// # Errors
    /// The contradiction.
    pub fn check(&self) -> Result<(), String> {
        let StoredState { hard_state: HardState { term, commit, .. }, truncated, last, .. } = self;
        if *commit < truncated.index || *commit > last.index {
            let truncated = truncated.index;
            return Err(format!(
                "the commit index is {commit}, but the log goes from {truncated} to {}",
                last.index
            ));
        }
        if *term < last.term {
            return Err(format!("the term is {term}, but the last entry is {last}"));
        }
        match &self.snapshot {
            Some(snapshot) if snapshot.position.index < truncated.index => Err(format!(
                "the log begins after {truncated}, but the snapshot ends at {}",
                snapshot.position
            )),
            _ => Ok(()),
        }
    }
}

impl HardState {
    /// Terms and commit index never decrease, and a vote never changes within its term: a node that forgets
    /// one of them could elect two leaders in a term.
    fn check_followed_by(&self, next: &HardState) -> Result<(), String> {
        if next.term < self.term {
            return Err(format!("the term cannot go back from {} to {}", self.term, next.term));
        }
        if next.term == self.term && self.vote.is_some() && next.vote != self.vote {
            return Err(format!(
                "the vote of term {} cannot change from {:?} to {:?}",
                self.term, self.vote, next.vote
            ));
        }
        if next.commit < self.commit {
            return Err(format!("the commit index cannot go back from {} to {}", self.commit, next.commit));
        }
        Ok(())
    }
}
