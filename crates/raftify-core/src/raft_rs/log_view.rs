//! The log as raft-rs reads it: the terms of all entries, and the newest entries themselves, in memory.
//!
//! Every entry that is not yet applied is here, so that committing never reads the disk; applied entries stay
//! as long as they fit into the cache. The shell fetches older entries that a slow follower needs: raft-rs
//! waits and asks again when the entries are here.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{Entry as RaftEntry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use super::convert;
use crate::entry::Entry;
use crate::members::Configuration;
use crate::storage::HardState;
use crate::turn::LogFetch;
use crate::types::{LogIndex, LogPosition, Term};

/// The maximum number of requests that wait for one fetch; raft-rs itself asks again for more.
const CONTEXTS_MAX: usize = 64;

/// How many compacted entries are dropped at once, in addition to two for each new one.
const FORGOTTEN_AT_ONCE: usize = 256;

/// The initial log.
pub(crate) struct LogStart {
    pub(crate) hard_state: HardState,
    pub(crate) configuration: Configuration,
    /// The position before the first entry.
    pub(crate) truncated: LogPosition,
    pub(crate) last: LogPosition,
    pub(crate) term_starts: Vec<LogPosition>,
    /// The last applied index: entries after it are in `tail`.
    pub(crate) applied: LogIndex,
    pub(crate) tail: Vec<Entry>,
    pub(crate) snapshot: Option<(LogPosition, Configuration)>,
}

pub(super) struct LogView {
    start: (HardState, Configuration),
    truncated: LogPosition,
    last: LogIndex,
    /// Every position at which the term differs from that of the entry before.
    term_starts: Vec<LogPosition>,
    /// Invariant: the entries up to `last`, without a gap, and at least those that are not applied. Some of
    /// the first may have been compacted away; these are never returned.
    ///
    /// Not raft-rs' entries, which are nearly twice as large (104 bytes each, against 56).
    cache: VecDeque<Entry>,
    cache_bytes: u64,
    cache_bytes_max: u64,
    snapshot: Option<Snapshot>,
    /// A cell, because raft-rs reads through a shared reference.
    asked: RefCell<Asked>,
}

/// Entries that raft-rs asked for and that were not in memory.
#[derive(Default)]
struct Asked {
    wants_snapshot: bool,
    new_fetches: Vec<LogFetch>,
    waiting: Vec<(LogFetch, Vec<GetEntriesContext>)>,
    /// Set only while raft-rs asks again; returned once.
    arrived: Option<(LogFetch, Vec<RaftEntry>)>,
}

impl LogView {
    pub(super) fn new(start: LogStart, cache_bytes_max: u64) -> LogView {
        let mut view = LogView {
            start: (start.hard_state, start.configuration),
            truncated: start.truncated,
            last: start.last.index,
            term_starts: start.term_starts,
            cache: start.tail.into(),
            cache_bytes: 0,
            cache_bytes_max,
            snapshot: None,
            asked: RefCell::default(),
        };
        view.cache_bytes = view.cache.iter().map(Entry::size_bytes).sum();
        if let Some((position, configuration)) = start.snapshot {
            view.set_snapshot(position, &configuration);
        }
        view
    }

    pub(super) fn truncated(&self) -> LogPosition {
        self.truncated
    }

    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    fn first_cached(&self) -> LogIndex {
        LogIndex(self.last.next().0 - self.cache.len() as u64)
    }

    fn term_of(&self, index: LogIndex) -> Term {
        let after = self.term_starts.partition_point(|start| start.index <= index);
        after.checked_sub(1).map_or(self.truncated.term, |run| self.term_starts[run].term)
    }

    /// The entries `[from, last]` that are in memory, up to this size, but at least the first.
    pub(super) fn cached(&self, from: LogIndex, last: LogIndex, bytes_max: u64) -> Vec<Entry> {
        let last = last.min(self.last);
        if from <= self.truncated.index || from < self.first_cached() || from > last {
            return Vec::new();
        }
        let skip = usize::try_from(from.0 - self.first_cached().0).unwrap_or(usize::MAX);
        let wanted = usize::try_from(last.0 - from.0 + 1).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            is_first || bytes <= bytes_max
        };
        self.cache.range(skip..).take(wanted).take_while(fits).cloned().collect()
    }

    /// Adds the entries that raft-rs is about to write, so that it can read them from now on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|entry| entry.position.index) else {
            return;
        };
        if first <= self.last {
            self.cut_from(first);
        }
        self.forget_compacted(FORGOTTEN_AT_ONCE + 2 * entries.len());
        self.make_room(entries.len());
        for entry in entries {
            let position = entry.position;
            if self.term_of(self.last) != position.term {
                self.term_starts.push(position);
            }
            self.last = position.index;
            self.cache_bytes += entry.size_bytes();
            self.cache.push_back(entry.clone());
        }
    }

    /// Grows by a quarter, where `VecDeque` would double: unused capacity is not counted.
    fn make_room(&mut self, more: usize) {
        if self.cache.len() + more > self.cache.capacity() {
            self.cache.reserve_exact(more.max(self.cache.len() / 4));
        }
    }

    fn cut_from(&mut self, first: LogIndex) {
        while self.cache.back().is_some_and(|entry| entry.position.index >= first) {
            let cut = self.cache.pop_back();
            self.cache_bytes -= cut.as_ref().map_or(0, Entry::size_bytes);
        }
        self.term_starts.retain(|start| start.index < first);
        self.last = first.previous();
    }

    /// The log now starts after an installed snapshot.
    pub(super) fn reset(&mut self, position: LogPosition, configuration: &Configuration) {
        if mutated!(SnapshotKeepsSuffix) && position.index < self.last {
            self.compact(position);
            return self.set_snapshot(position, configuration);
        }
        self.cache.clear();
        self.cache_bytes = 0;
        self.term_starts.clear();
        self.truncated = position;
        self.last = position.index;
        self.set_snapshot(position, configuration);
        self.asked = RefCell::default();
    }

    pub(super) fn compact(&mut self, position: LogPosition) {
        if position.index <= self.truncated.index || position.index > self.last {
            return;
        }
        self.term_starts.retain(|start| start.index > position.index);
        self.truncated = position;
        self.forget_compacted(FORGOTTEN_AT_ONCE);
    }

    /// Drops compacted entries, at most this many, so that no request waits until all of them are dropped.
    fn forget_compacted(&mut self, count_max: usize) {
        for _ in 0..count_max {
            match self.cache.front() {
                Some(entry) if entry.position.index <= self.truncated.index => {
                    self.cache_bytes -= entry.size_bytes();
                    self.cache.pop_front();
                }
                _ => break,
            }
        }
    }

    /// Drops the oldest applied entries that no longer fit.
    pub(super) fn trim_cache(&mut self, applied: LogIndex) {
        while self.cache_bytes > self.cache_bytes_max
            && self.cache.front().is_some_and(|entry| entry.position.index <= applied)
        {
            let gone = self.cache.pop_front();
            self.cache_bytes -= gone.as_ref().map_or(0, Entry::size_bytes);
        }
    }

    pub(super) fn set_snapshot(&mut self, position: LogPosition, configuration: &Configuration) {
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index.0;
        metadata.term = position.term.0;
        metadata.set_conf_state(convert::conf_state(configuration));
        self.snapshot = Some(snapshot);
    }

    pub(super) fn take_wants_snapshot(&mut self) -> bool {
        std::mem::take(&mut self.asked.get_mut().wants_snapshot)
    }

    pub(super) fn take_fetches(&mut self) -> Vec<LogFetch> {
        std::mem::take(&mut self.asked.get_mut().new_fetches)
    }

    /// Keeps the fetched entries until raft-rs asks for them again, and returns the contexts with which it
    /// will ask. Entries that were truncated or compacted away since are left out.
    pub(super) fn put_fetched(
        &mut self,
        fetch: LogFetch,
        mut entries: Vec<RaftEntry>,
    ) -> Vec<GetEntriesContext> {
        let still_the_log = |entry: &RaftEntry| {
            let index = LogIndex(entry.index);
            if mutated!(FetchedEntriesAreNotCompared) {
                return true;
            }
            index > self.truncated.index && index <= self.last && self.term_of(index).0 == entry.term
        };
        let valid = entries.iter().take_while(|entry| still_the_log(entry)).count();
        entries.truncate(valid);
        let asked = self.asked.get_mut();
        let Some(place) = asked.waiting.iter().position(|(waiting, _)| *waiting == fetch) else {
            return Vec::new();
        };
        let (_, contexts) = asked.waiting.swap_remove(place);
        // Without entries, raft-rs asks once more; if they were compacted away, it then sends a snapshot.
        asked.arrived = (!entries.is_empty()).then_some((fetch, entries));
        contexts
    }

    /// Drops fetched entries that raft-rs did not ask for again: the follower has advanced.
    pub(super) fn forget_fetched(&mut self) {
        self.asked.get_mut().arrived = None;
    }

    /// The entries of `[from, until)` below the cache: fetched already, or to be fetched.
    fn below_cache(&self, fetch: LogFetch, context: GetEntriesContext) -> raft::Result<Vec<RaftEntry>> {
        let mut asked = self.asked.borrow_mut();
        if let Some((_, mut entries)) = asked.arrived.take_if(|(arrived, _)| arrived.from == fetch.from) {
            let wanted = fetch.until.0 - fetch.from.0;
            entries.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            return Ok(entries);
        }
        if !context.can_async() {
            // All entries that raft-rs reads without waiting are after the applied index, and so in the
            // cache.
            debug_assert!(false, "entry {} was read without waiting, but is not in memory", fetch.from);
            return Err(Error::Store(StorageError::Unavailable));
        }
        match asked.waiting.iter_mut().find(|(waiting, _)| waiting.from == fetch.from) {
            Some((_, contexts)) if contexts.len() < CONTEXTS_MAX => contexts.push(context),
            Some(_) => {}
            None => {
                asked.new_fetches.push(fetch);
                asked.waiting.push((fetch, vec![context]));
            }
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let (hard_state, configuration) = &self.start;
        Ok(RaftState::new(convert::hard_state_to_raft(hard_state), convert::conf_state(configuration)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        let (from, until) = (LogIndex(low), LogIndex(high));
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if from <= self.truncated.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if until > self.last.next() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let first_cached = self.first_cached();
        if from < first_cached {
            return self.below_cache(LogFetch { from, until: until.min(first_cached), bytes_max }, context);
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        let skip = usize::try_from(from.0 - first_cached.0).unwrap_or(usize::MAX);
        let wanted = usize::try_from(until.0 - from.0).unwrap_or(usize::MAX);
        for entry in self.cache.iter().skip(skip).take(wanted) {
            bytes += entry.size_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(convert::entry_to_raft(entry.clone()));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let index = LogIndex(index);
        if index < self.truncated.index {
            Err(Error::Store(StorageError::Compacted))
        } else if index > self.last {
            Err(Error::Store(StorageError::Unavailable))
        } else {
            Ok(self.term_of(index).0)
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.index.next().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // This includes a snapshot from before its receiver became a member: the log reaches back to it.
        let fits =
            |snapshot: &&Snapshot| snapshot.get_metadata().index >= request_index.max(self.truncated.index.0);
        self.snapshot.as_ref().filter(fits).cloned().ok_or_else(|| {
            self.asked.borrow_mut().wants_snapshot = true;
            Error::Store(StorageError::SnapshotTemporarilyUnavailable)
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::EntryKind;

    fn entry(term: u64, index: u64) -> Entry {
        Entry { position: LogPosition::new(term, index), kind: EntryKind::User, payload: Bytes::new() }
    }

    fn raft_entry(term: u64, index: u64) -> RaftEntry {
        convert::entry_to_raft(entry(term, index))
    }

    /// Entries of these terms, from index 1 on, all applied and none in memory.
    fn view(terms: &[u64]) -> LogView {
        let start = LogStart {
            hard_state: HardState::default(),
            configuration: Configuration::default(),
            truncated: LogPosition::ZERO,
            last: LogPosition::ZERO,
            term_starts: Vec::new(),
            applied: LogIndex::ZERO,
            tail: Vec::new(),
            snapshot: None,
        };
        let mut view = LogView::new(start, 0);
        append_applied(&mut view, 1, terms);
        view
    }

    fn append_applied(view: &mut LogView, first: u64, terms: &[u64]) {
        let entries: Vec<_> = (first..).zip(terms).map(|(index, term)| entry(*term, index)).collect();
        view.append(&entries);
        view.trim_cache(view.last);
    }

    #[test]
    fn bug_18_entries_that_were_fetched_before_the_log_changed_are_not_given_out() {
        let mut view = view(&[1, 1, 1]);
        let can_wait = || GetEntriesContext::empty(true);
        assert!(view.entries(1, 4, None, can_wait()).is_err());
        let fetch = view.take_fetches()[0];
        append_applied(&mut view, 2, &[2, 2]);
        view.put_fetched(fetch, (1..4).map(|index| raft_entry(1, index)).collect());
        let entries = view.entries(1, 4, None, can_wait()).unwrap();
        assert_eq!(entries, [raft_entry(1, 1)], "only what is still the log");
    }

    #[test]
    fn small_entries_take_at_most_half_more_memory_than_is_counted() {
        // The size that an allocator uses for a payload of 20 bytes, and for its reference count.
        const PAYLOAD_BYTES: u64 = 32 + 32;
        let mut view = view(&[]);
        for batch in 0..1000 {
            let entry = |index| Entry { payload: Bytes::from_static(&[7; 20]), ..entry(1, index) };
            let entries: Vec<_> = (1..=100).map(|number| entry(100 * batch + number)).collect();
            view.append(&entries);
            let slots = (view.cache.capacity() * size_of::<Entry>()) as u64;
            let held = slots + view.cache.len() as u64 * PAYLOAD_BYTES;
            assert!(held <= view.cache_bytes() * 3 / 2, "{held} bytes, {} are counted", view.cache_bytes());
        }
        assert_eq!(view.cache_bytes(), 100_000 * (20 + Entry::OVERHEAD_BYTES));
    }
}
