//! The log in LMDB: each entry is a row.
//!
//! Compacted entries are of no use from the moment when the truncated position is durable. Their rows are
//! deleted later, some with each write, so that no write waits for a long deletion.

use std::path::PathBuf;

use heed::{PutFlags, RwTxn};
use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogPosition, Members, StorageError};

use crate::fields::put_position;
use crate::lmdb::values::{self, EntryView, MetaKey, Table};
use crate::lmdb::{Failure, ReadTxn, Tables};

/// How many rows of compacted entries a write deletes at most, in addition to twice as many as it adds: too
/// few to delay the write, and more than it adds.
// Few in tests, so that all of them encounter remaining rows.
pub(super) const LEFT_ROWS_PER_WRITE: u64 = if cfg!(test) { 2 } else { 512 };

/// The same for loading, when no write waits.
const LEFT_ROWS_PER_LOAD: u64 = if cfg!(test) { 3 } else { 1 << 16 };

/// Everything that [`HeedStorage`](crate::HeedStorage) keeps in LMDB.
pub(crate) struct HeedLog {
    pub(super) tables: Tables,
}

impl HeedLog {
    pub(crate) fn of(tables: Tables) -> HeedLog {
        HeedLog { tables }
    }

    /// The path of the file, for messages.
    pub(super) fn data_file(&self) -> PathBuf {
        self.tables.environment().data_file()
    }

    /// Carries out `writes` on the state `before`, in one transaction; returns the state after it.
    pub(super) fn write(&self, before: &StoredState, writes: &[Write]) -> Result<StoredState, StorageError> {
        self.tables.environment().write(|txn| {
            let mut state = before.clone();
            let mut added = 0;
            for write in writes {
                let next = state.after(write)?;
                self.carry_out(txn, &state, write, &next)?;
                state = next;
                added += write.append.len() as u64;
            }
            self.delete_left(txn, state.truncated.index, LEFT_ROWS_PER_WRITE + 2 * added)?;
            Ok(state)
        })
    }

    /// The whole content, checked.
    pub(crate) fn load(&self) -> Result<StoredState, StorageError> {
        self.tables.environment().read(|txn| {
            self.tables.check_meta_keys(txn)?;
            let truncated = self.tables.truncated(txn)?;
            let mut state = StoredState {
                identity: self.tables.meta(txn, MetaKey::Identity, values::decode_identity)?,
                hard_state: self
                    .tables
                    .meta(txn, MetaKey::HardState, values::decode_hard_state)?
                    .unwrap_or_default(),
                members: self.tables.meta(txn, MetaKey::Members, |content| Ok(Members::decode(content)?))?,
                snapshot: self.tables.meta(txn, MetaKey::Snapshot, values::decode_snapshot_meta)?,
                remembered: self.tables.remembered(txn)?,
                truncated,
                last: truncated,
                term_starts: Vec::new(),
            };
            // Earlier entries were compacted away, and only their rows remain.
            let first = values::entry_key(truncated.index.next());
            for item in self.tables.environment().table(Table::Entries).range(txn, &(first..))? {
                let (key, value) = item?;
                let expected = state.last.index.next();
                let LogPosition { term, index } = self.entry(key, value, expected)?.position;
                if term < state.last.term {
                    let reason =
                        format!("its term is {term}, that of the entry before is {}", state.last.term);
                    return Err(self.tables.corrupt(Table::Entries, key, reason));
                }
                if term > state.last.term {
                    state.term_starts.push(LogPosition { term, index });
                }
                state.last = LogPosition { term, index };
            }
            state.check().map_err(|reason| {
                let what = self.tables.environment().data_file().display().to_string();
                Failure::Storage(StorageError::Corrupt { what, reason })
            })?;
            Ok(state)
        })
    }

    /// The entry that was found under `key`, where the entry at `expected` should be.
    fn entry<'a>(&self, key: u128, value: &'a [u8], expected: LogIndex) -> Result<EntryView<'a>, Failure> {
        if key != values::entry_key(expected) {
            let reason = format!("it is missing, {} follows instead", self.tables.what(Table::Entries, key));
            return Err(self.tables.corrupt(Table::Entries, values::entry_key(expected), reason));
        }
        let entry = values::decode_entry(expected, value);
        Ok(entry.map_err(|damage| damage.of(self.tables.what(Table::Entries, key)))?)
    }

    /// As in the contract of [`LogReader::read`].
    pub(crate) fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.tables.environment().read(|txn| self.read_in(txn, from, until, bytes_max))
    }

    fn read_in(
        &self,
        txn: &ReadTxn<'_>,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, Failure> {
        let truncated = self.tables.truncated(txn)?;
        if from <= truncated.index {
            return Err(StorageError::Compacted { index: from, truncated }.into());
        }
        let last = self.last(txn, truncated)?;
        if until > last.index.next() {
            return Err(StorageError::BeyondEnd { index: from.max(last.index.next()), last }.into());
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut expected = from;
        for item in self
            .tables
            .environment()
            .table(Table::Entries)
            .range(txn, &values::entry_keys(from, until.previous()))?
        {
            let (key, value) = item?;
            let entry = self.entry(key, value, expected)?.to_entry();
            bytes += entry.size_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                return Ok(entries);
            }
            entries.push(entry);
            expected = expected.next();
        }
        if expected < until {
            return Err(self.tables.corrupt(Table::Entries, values::entry_key(expected), "it is missing"));
        }
        Ok(entries)
    }

    fn last(&self, txn: &ReadTxn<'_>, truncated: LogPosition) -> Result<LogPosition, Failure> {
        let Some((key, value)) = self.tables.environment().table(Table::Entries).last(txn)? else {
            return Ok(truncated);
        };
        let (_, number) = values::split_key(key);
        if key <= values::entry_key(truncated.index) {
            return Ok(truncated);
        }
        Ok(self.entry(key, value, LogIndex(number))?.position)
    }

    /// Carries out `write`, which leads from `before` to `after`.
    fn carry_out(
        &self,
        txn: &mut RwTxn<'_>,
        before: &StoredState,
        write: &Write,
        after: &StoredState,
    ) -> Result<(), Failure> {
        let entries = self.tables.environment().table(Table::Entries);
        let mut last = before.last.index;
        if let Some(position) = write.reset_log {
            self.delete(txn, position.index.next(), last)?;
            last = position.index;
        }
        if let Some(begin) = write.append.first() {
            self.delete(txn, begin.position.index, last)?;
            for entry in &write.append {
                let key = values::entry_key(entry.position.index);
                // With appends in order, LMDB fills its pages completely instead of splitting them.
                entries.put_with_flags(txn, PutFlags::APPEND, &key, &values::encode_entry(entry))?;
            }
        }
        if let Some(identity) = &write.identity {
            self.tables.put_meta(txn, MetaKey::Identity, |out| values::encode_identity(identity, out))?;
        }
        if let Some(hard_state) = &write.hard_state {
            self.tables
                .put_meta(txn, MetaKey::HardState, |out| values::encode_hard_state(hard_state, out))?;
        }
        if let Some(members) = &write.members {
            self.tables.put_meta(txn, MetaKey::Members, |out| out.extend_from_slice(&members.encode()))?;
        }
        if let Some(remembered) = &write.remembered {
            self.tables
                .put_meta(txn, MetaKey::Remembered, |out| out.extend_from_slice(&remembered.encode()))?;
        }
        if let Some(snapshot) = &write.snapshot {
            self.tables
                .put_meta(txn, MetaKey::Snapshot, |out| values::encode_snapshot_meta(snapshot, out))?;
        }
        if after.truncated != before.truncated {
            self.tables.put_meta(txn, MetaKey::Truncated, |out| put_position(out, after.truncated))?;
        }
        Ok(())
    }

    /// Deletes the entries from `first` to `last`; none if `last` is before `first`.
    fn delete(&self, txn: &mut RwTxn<'_>, first: LogIndex, last: LogIndex) -> Result<(), Failure> {
        if last < first {
            return Ok(());
        }
        let expected = last.0 - first.0 + 1;
        let keys = values::entry_keys(first, last);
        let deleted = self.tables.environment().table(Table::Entries).delete_range(txn, &keys)? as u64;
        if deleted != expected {
            let reason = format!("of the {expected} entries up to {last}, only {deleted} are there");
            return Err(self.tables.corrupt(Table::Entries, values::entry_key(first), reason));
        }
        Ok(())
    }

    /// Deletes rows of entries up to `truncated`, at most `rows_max`; returns whether there were any.
    fn delete_left(&self, txn: &mut RwTxn<'_>, truncated: LogIndex, rows_max: u64) -> Result<bool, Failure> {
        let entries = self.tables.environment().table(Table::Entries);
        let (_, first) = values::split_key(entries.first(txn)?.map_or(u128::MAX, |(key, _)| key));
        if first > truncated.0 {
            return Ok(false);
        }
        let last = truncated.min(LogIndex(first.saturating_add(rows_max - 1)));
        entries.delete_range(txn, &values::entry_keys(LogIndex(first), last))?;
        Ok(true)
    }

    /// Deletes all of them, in parts.
    pub(super) fn delete_all_left(&self, truncated: LogIndex) -> Result<(), StorageError> {
        let mut more = self.tables.environment().read(|txn| {
            let first = self.tables.environment().table(Table::Entries).first(txn)?;
            Ok(first.is_some_and(|(key, _)| key <= values::entry_key(truncated)))
        })?;
        while more {
            more = self
                .tables
                .environment()
                .write(|txn| self.delete_left(txn, truncated, LEFT_ROWS_PER_LOAD))?;
        }
        Ok(())
    }
}
