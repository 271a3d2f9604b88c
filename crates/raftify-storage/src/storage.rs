//! [`HeedStorage`], the contract of stable storage with everything but snapshots in LMDB.
//!
//! What is compacted away is of no use from the moment on at which the truncated position is durable. Its rows are
//! deleted later, some with each write, so that no write waits for a long one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use heed::{PutFlags, RoTxn, RwTxn, WithoutTls};
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    Entry, LogIndex, LogPosition, LogReader, Members, Remembered, StableStorage, StorageError,
};

use crate::directory::{self, DirectoryLock};
use crate::environment::{DATA_FILE, Environment, Failure};
use crate::format::{self, Damage, EntryView, GROUP_ID, MetaKey, StorageKind, Table};
use crate::io_error;
use crate::snapshot_files::{self, SnapshotFiles};
use crate::{conversion, wal};

#[cfg(test)]
pub(crate) mod tests;

pub(crate) type ReadTxn<'a> = RoTxn<'a, WithoutTls>;

/// How many rows of compacted entries a write deletes at most, besides twice as many as it adds: so few that nobody
/// notices, and more than come in.
// Few in tests, so that all of them meet rows that are left.
const LEFT_ROWS_PER_WRITE: u64 = if cfg!(test) { 2 } else { 512 };

/// The same for loading, when nobody waits for a single write.
const LEFT_ROWS_PER_LOAD: u64 = if cfg!(test) { 3 } else { 1 << 16 };

/// Keeps what must survive a crash in one directory: log and metadata in LMDB, snapshots in files beside it.
///
/// Every [`write`](StableStorage::write) is one transaction, synced to the disk before it returns. The database grows
/// by itself, up to what the disk holds. What is read is checked against checksums; damage is an error and never
/// skipped.
///
/// The directory belongs to this handle, to what [`log_reader`](StableStorage::log_reader) and
/// [`snapshots`](StableStorage::snapshots) gave out, and to nobody else until all of them are dropped.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::HeedStorage;
///
/// let directory = tempfile::tempdir()?;
/// let mut storage = HeedStorage::open(directory.path().join("node-1"))?;
/// let state = storage.load()?;
/// assert!(state.identity.is_none(), "a new directory belongs to nobody");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct HeedStorage {
    log: Arc<Log>,
    snapshots: SnapshotFiles,
    /// As on disk. `None` before it was loaded, and after a write that failed: what is on disk is not known then.
    state: Option<StoredState>,
}

impl HeedStorage {
    /// Opens the storage in `directory`, and makes the directory if it is not there.
    ///
    /// # Errors
    /// - [`StorageError::InUse`]: another process, or another handle of this one, has it open.
    /// - [`StorageError::OtherKind`]: a [`WalStorage`](crate::WalStorage) keeps this directory. Open it with that, or
    ///   [convert](crate::convert_storage) it.
    /// - [`StorageError::Io`]: the system refused, for instance for lack of permission.
    /// - [`StorageError::Corrupt`], [`StorageError::Version`]: this is not what was written, or not by this version.
    ///   Nothing was changed. All of the content is checked by [`load`](StableStorage::load) only.
    pub fn open(directory: impl AsRef<Path>) -> Result<HeedStorage, StorageError> {
        let directory = directory.as_ref();
        directory::create_durably(directory)?;
        let lock = DirectoryLock::take(directory)?;
        if !is_begun(directory)? {
            wal::check_no_segments(directory)?;
        }
        let log = Log::open(directory, lock.clone(), StorageKind::Heed)?;
        conversion::warn_of_left(directory);
        Ok(HeedStorage::new(log, SnapshotFiles::open(directory, lock)?))
    }

    pub(crate) fn new(log: Log, snapshots: SnapshotFiles) -> HeedStorage {
        HeedStorage { log: Arc::new(log), snapshots, state: None }
    }
}

impl StableStorage for HeedStorage {
    type LogReader = HeedLogReader;
    type Snapshots = SnapshotFiles;

    /// Reads and checks everything: each entry's checksum and place, all metadata, and the recorded snapshot's file
    /// but for its data, which is checked when it is read.
    fn load(&mut self) -> Result<StoredState, StorageError> {
        let state = self.log.load()?;
        if let Some(snapshot) = &state.snapshot {
            self.snapshots.check_recorded(snapshot)?;
        }
        self.log.delete_all_left(state.truncated.index)?;
        self.state = Some(state.clone());
        Ok(state)
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let Some(before) = self.state.take() else {
            let reason =
                "the state on disk is not known: load it first, or open it again after a failed write";
            return Err(StorageError::Refused { reason: reason.to_owned() });
        };
        self.snapshots.check_to_be_recorded(writes)?;
        let after = self.log.environment.write(|txn| {
            let mut state = before.clone();
            let mut added = 0;
            for write in writes {
                let next = state.after(write)?;
                self.log.carry_out(txn, &state, write, &next)?;
                state = next;
                added += write.append.len() as u64;
            }
            self.log.delete_left(txn, state.truncated.index, LEFT_ROWS_PER_WRITE + 2 * added)?;
            Ok(state)
        })?;
        self.state = Some(after);
        Ok(())
    }

    fn log_reader(&self) -> HeedLogReader {
        HeedLogReader { log: Arc::clone(&self.log) }
    }

    fn snapshots(&self) -> SnapshotFiles {
        self.snapshots.clone()
    }
}

impl fmt::Debug for HeedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeedStorage").field(&self.log.environment.data_file()).finish()
    }
}

/// Reads the log of a [`HeedStorage`] beside its writer.
#[derive(Clone)]
pub struct HeedLogReader {
    log: Arc<Log>,
}

impl LogReader for HeedLogReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.read(from, until, bytes_max)
    }
}

impl fmt::Debug for HeedLogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeedLogReader").field(&self.log.environment.data_file()).finish()
    }
}

fn is_begun(directory: &Path) -> Result<bool, StorageError> {
    let data_file = directory.join(DATA_FILE);
    data_file.try_exists().map_err(io_error("look for", &data_file))
}

/// That a directory without LMDB is new, and has not lost it.
fn check_no_snapshots(directory: &Path) -> Result<(), StorageError> {
    match snapshot_files::list(directory)?.pop() {
        None => Ok(()),
        Some(newest) => Err(StorageError::Corrupt {
            what: directory.display().to_string(),
            reason: format!("there is {}, but no {DATA_FILE}", newest.path.display()),
        }),
    }
}

/// Entries and metadata in their environment. `WalStorage` keeps its metadata in it as well, and no entries.
pub(crate) struct Log {
    /// Dropped before the lock is released.
    environment: Environment,
    _lock: Option<DirectoryLock>,
}

impl Log {
    /// Opens the databases of a directory that belongs to this process. New ones are for `kind`.
    pub(crate) fn open(
        directory: &Path,
        lock: DirectoryLock,
        kind: StorageKind,
    ) -> Result<Log, StorageError> {
        if !is_begun(directory)? {
            check_no_snapshots(directory)?;
        }
        let environment = Environment::open(directory, |meta, txn| {
            let layout = MetaKey::Layout.key();
            let value = format::frame(Table::Meta, layout, |out| out.extend_from_slice(kind.content()));
            Ok(meta.put(txn, &layout, &value)?)
        })?;
        // The names of the database's files must survive as well as their content.
        directory::sync(directory).map_err(io_error("sync the directory", directory))?;
        let log = Log { environment, _lock: Some(lock) };
        let found = log.kind()?;
        if found != kind {
            return Err(StorageError::OtherKind {
                path: directory.to_owned(),
                found: found.name(),
                asked: kind.name(),
                convert_to: kind.short_name(),
            });
        }
        Ok(log)
    }

    /// Opens the databases of a directory for looking at them only, also beside another process.
    pub(crate) fn open_read_only(directory: &Path) -> Result<Log, StorageError> {
        Ok(Log { environment: Environment::open_read_only(directory)?, _lock: None })
    }

    /// For reading and writing several values in one transaction.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    fn what(&self, table: Table, key: u128) -> String {
        let file = self.environment.data_file();
        let file = file.display();
        let (group_id, number) = format::split_key(key);
        if group_id != GROUP_ID {
            return format!("{file}: key {number} of group {group_id} in {}", table.name());
        }
        match (table, MetaKey::from_number(number)) {
            (Table::Entries, _) => format!("{file}: entry {number}"),
            (Table::Meta, Some(key)) => format!("{file}: metadata {key:?}"),
            (Table::Meta, None) => format!("{file}: metadata with key {number}"),
        }
    }

    fn corrupt(&self, table: Table, key: u128, reason: impl Into<String>) -> Failure {
        Damage::Content(reason.into()).of(self.what(table, key)).into()
    }

    /// That this is a directory of this version, before anything else is believed, and who keeps it.
    pub(crate) fn kind(&self) -> Result<StorageKind, StorageError> {
        self.environment.read(|txn| {
            let kind = self.meta(txn, MetaKey::Layout, StorageKind::decode)?;
            kind.ok_or_else(|| self.corrupt(Table::Meta, MetaKey::Layout.key(), "it is missing"))
        })
    }

    /// That there is no metadata from another version of this program.
    pub(crate) fn check_meta_keys(&self, txn: &ReadTxn<'_>) -> Result<(), Failure> {
        for item in self.environment.table(Table::Meta).iter(txn)? {
            let (key, _) = item?;
            let (group_id, number) = format::split_key(key);
            if group_id != GROUP_ID || MetaKey::from_number(number).is_none() {
                return Err(self.corrupt(Table::Meta, key, "this program knows no such key"));
            }
        }
        Ok(())
    }

    pub(crate) fn meta<T>(
        &self,
        txn: &ReadTxn<'_>,
        key: MetaKey,
        decode: impl FnOnce(&[u8]) -> Result<T, Damage>,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.environment.table(Table::Meta).get(txn, &key.key())? else {
            return Ok(None);
        };
        let decoded = format::unframe(Table::Meta, key.key(), value).and_then(decode);
        Ok(Some(decoded.map_err(|damage| damage.of(self.what(Table::Meta, key.key())))?))
    }

    pub(crate) fn truncated(&self, txn: &ReadTxn<'_>) -> Result<LogPosition, Failure> {
        Ok(self.meta(txn, MetaKey::Truncated, format::decode_position)?.unwrap_or_default())
    }

    pub(crate) fn remembered(&self, txn: &ReadTxn<'_>) -> Result<Arc<Remembered>, Failure> {
        let found = self.meta(txn, MetaKey::Remembered, |content| Ok(Remembered::decode(content)?))?;
        Ok(found.unwrap_or_default().into())
    }

    /// Everything that `HeedStorage` keeps here, checked.
    pub(crate) fn load(&self) -> Result<StoredState, StorageError> {
        self.environment.read(|txn| {
            self.check_meta_keys(txn)?;
            let truncated = self.truncated(txn)?;
            let mut state = StoredState {
                identity: self.meta(txn, MetaKey::Identity, format::decode_identity)?,
                hard_state: self
                    .meta(txn, MetaKey::HardState, format::decode_hard_state)?
                    .unwrap_or_default(),
                members: self.meta(txn, MetaKey::Members, |content| Ok(Members::decode(content)?))?,
                snapshot: self.meta(txn, MetaKey::Snapshot, format::decode_snapshot_meta)?,
                remembered: self.remembered(txn)?,
                truncated,
                last: truncated,
                term_starts: Vec::new(),
            };
            // What is before was compacted away, and only its rows are left.
            let first = format::entry_key(truncated.index.next());
            for item in self.environment.table(Table::Entries).range(txn, &(first..))? {
                let (key, value) = item?;
                let expected = state.last.index.next();
                let LogPosition { term, index } = self.entry(key, value, expected)?.position;
                if term < state.last.term {
                    let reason =
                        format!("its term is {term}, that of the entry before is {}", state.last.term);
                    return Err(self.corrupt(Table::Entries, key, reason));
                }
                if term > state.last.term {
                    state.term_starts.push(LogPosition { term, index });
                }
                state.last = LogPosition { term, index };
            }
            state.check().map_err(|reason| {
                let what = self.environment.data_file().display().to_string();
                Failure::Storage(StorageError::Corrupt { what, reason })
            })?;
            Ok(state)
        })
    }

    /// The entry that was found under `key`, where that of `expected` should be.
    fn entry<'a>(&self, key: u128, value: &'a [u8], expected: LogIndex) -> Result<EntryView<'a>, Failure> {
        if key != format::entry_key(expected) {
            let reason = format!("it is missing, {} follows instead", self.what(Table::Entries, key));
            return Err(self.corrupt(Table::Entries, format::entry_key(expected), reason));
        }
        let entry = format::decode_entry(expected, value);
        Ok(entry.map_err(|damage| damage.of(self.what(Table::Entries, key)))?)
    }

    /// As [`LogReader::read`] has it.
    pub(crate) fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.environment.read(|txn| self.read_in(txn, from, until, bytes_max))
    }

    fn read_in(
        &self,
        txn: &ReadTxn<'_>,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, Failure> {
        let truncated = self.truncated(txn)?;
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
        for item in
            self.environment.table(Table::Entries).range(txn, &format::entry_keys(from, until.previous()))?
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
            return Err(self.corrupt(Table::Entries, format::entry_key(expected), "it is missing"));
        }
        Ok(entries)
    }

    fn last(&self, txn: &ReadTxn<'_>, truncated: LogPosition) -> Result<LogPosition, Failure> {
        let Some((key, value)) = self.environment.table(Table::Entries).last(txn)? else {
            return Ok(truncated);
        };
        let (_, number) = format::split_key(key);
        if key <= format::entry_key(truncated.index) {
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
        let entries = self.environment.table(Table::Entries);
        let mut last = before.last.index;
        if let Some(position) = write.reset_log {
            self.delete(txn, position.index.next(), last)?;
            last = position.index;
        }
        if let Some(begin) = write.append.first() {
            self.delete(txn, begin.position.index, last)?;
            for entry in &write.append {
                let key = format::entry_key(entry.position.index);
                // In order at the end, LMDB fills its pages to the brim instead of splitting them.
                entries.put_with_flags(txn, PutFlags::APPEND, &key, &format::encode_entry(entry))?;
            }
        }
        if let Some(identity) = &write.identity {
            self.put_meta(txn, MetaKey::Identity, |out| format::encode_identity(identity, out))?;
        }
        if let Some(hard_state) = &write.hard_state {
            self.put_meta(txn, MetaKey::HardState, |out| format::encode_hard_state(hard_state, out))?;
        }
        if let Some(members) = &write.members {
            self.put_meta(txn, MetaKey::Members, |out| out.extend_from_slice(&members.encode()))?;
        }
        if let Some(remembered) = &write.remembered {
            self.put_meta(txn, MetaKey::Remembered, |out| out.extend_from_slice(&remembered.encode()))?;
        }
        if let Some(snapshot) = &write.snapshot {
            self.put_meta(txn, MetaKey::Snapshot, |out| format::encode_snapshot_meta(snapshot, out))?;
        }
        if after.truncated != before.truncated {
            self.put_meta(txn, MetaKey::Truncated, |out| format::put_position(out, after.truncated))?;
        }
        Ok(())
    }

    pub(crate) fn put_meta(
        &self,
        txn: &mut RwTxn<'_>,
        key: MetaKey,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Failure> {
        let value = format::frame(Table::Meta, key.key(), encode);
        Ok(self.environment.table(Table::Meta).put(txn, &key.key(), &value)?)
    }

    /// Deletes the entries from `first` to `last`; nothing if `last` is before `first`.
    fn delete(&self, txn: &mut RwTxn<'_>, first: LogIndex, last: LogIndex) -> Result<(), Failure> {
        if last < first {
            return Ok(());
        }
        let expected = last.0 - first.0 + 1;
        let keys = format::entry_keys(first, last);
        let deleted = self.environment.table(Table::Entries).delete_range(txn, &keys)? as u64;
        if deleted != expected {
            let reason = format!("of the {expected} entries up to {last}, only {deleted} are there");
            return Err(self.corrupt(Table::Entries, format::entry_key(first), reason));
        }
        Ok(())
    }

    /// Deletes rows of entries up to `truncated`, at most `rows_max`; whether there were any.
    fn delete_left(&self, txn: &mut RwTxn<'_>, truncated: LogIndex, rows_max: u64) -> Result<bool, Failure> {
        let entries = self.environment.table(Table::Entries);
        let (_, first) = format::split_key(entries.first(txn)?.map_or(u128::MAX, |(key, _)| key));
        if first > truncated.0 {
            return Ok(false);
        }
        let last = truncated.min(LogIndex(first.saturating_add(rows_max - 1)));
        entries.delete_range(txn, &format::entry_keys(LogIndex(first), last))?;
        Ok(true)
    }

    /// Deletes all of them, a part at a time.
    fn delete_all_left(&self, truncated: LogIndex) -> Result<(), StorageError> {
        let mut more = self.environment.read(|txn| {
            let first = self.environment.table(Table::Entries).first(txn)?;
            Ok(first.is_some_and(|(key, _)| key <= format::entry_key(truncated)))
        })?;
        while more {
            more = self.environment.write(|txn| self.delete_left(txn, truncated, LEFT_ROWS_PER_LOAD))?;
        }
        Ok(())
    }
}
