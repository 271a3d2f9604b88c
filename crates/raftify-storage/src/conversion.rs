//! Converts a directory from one storage to the other.
//!
//! The conversion writes the other storage into [`CONVERSION`], inside the directory, reads it back and
//! compares it. Then it renames the parts to their final names, LMDB's file last: that file says to which
//! storage the directory belongs, so that one rename is the commit point. Snapshots stay where they are.
//! Until then the directory is unchanged; afterwards, the remains of the first storage are removed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{HardState, LogIndex, LogReader, StableStorage, StorageError};

use crate::files::{NameOperations, OperatingSystem, create_durably, io_error};
use crate::heed_storage::HeedStorage;
use crate::layout::{self, CONVERSION, DATA_FILE, DirectoryLock, READERS_FILE, StorageKind, segments};
use crate::lmdb::Tables;
use crate::snapshot_files::SnapshotFiles;
use crate::wal::{WalSettings, WalStorage};

#[cfg(test)]
mod tests;

/// How many bytes of the log one write copies.
const SLICE_BYTES: u64 = 4 << 20;

/// The result of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// The storage of the directory before. If it is the same as `to`, there was nothing to do.
    pub from: StorageKind,
    /// The storage of the directory now.
    pub to: StorageKind,
    /// The content, which is the same before and after.
    pub state: StoredState,
}

/// Converts the directory of a node to the storage `to`, with the same identity, members, votes, entries and
/// snapshots.
///
/// No other process may have it open. The disk needs space for a second copy of the log meanwhile. Everything
/// is read back and compared before one rename switches the directory to the new storage. Whenever the
/// conversion is interrupted, the directory is a valid one of the old or of the new storage; the next
/// conversion first removes the remains of the interrupted one.
///
/// # Errors
/// - [`StorageError::Io`]: the directory is missing or empty, or there is no permission or no space.
/// - [`StorageError::InUse`]: a node uses the directory. Stop the node first.
/// - [`StorageError::Corrupt`], [`StorageError::Version`]: the content is not what a node of this version
///   wrote.
///
/// After any of these errors the directory is as valid as before.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::{HeedStorage, StorageKind, WalStorage, convert_storage};
///
/// # let directory = tempfile::tempdir()?;
/// HeedStorage::open(directory.path())?.load()?;
/// convert_storage(directory.path(), StorageKind::Wal)?;
/// WalStorage::open(directory.path())?.load()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn convert_storage(directory: impl AsRef<Path>, to: StorageKind) -> Result<Conversion, StorageError> {
    convert_storage_with(directory, to, WalSettings::default())
}

/// [`convert_storage`] with the settings for a log in segments, which is created or read.
///
/// # Errors
/// As [`convert_storage`], and [`StorageError::Setting`] if a setting is outside of its range.
pub fn convert_storage_with(
    directory: impl AsRef<Path>,
    to: StorageKind,
    settings: WalSettings,
) -> Result<Conversion, StorageError> {
    settings.check()?;
    convert_with(directory.as_ref(), to, settings, &OperatingSystem)
}

fn convert_with(
    directory: &Path,
    to: StorageKind,
    settings: WalSettings,
    operations: &dyn NameOperations,
) -> Result<Conversion, StorageError> {
    let kind = || Tables::open_read_only(directory)?.kind();
    // Before creating files in a directory that may belong to another program.
    kind()?;
    let lock = DirectoryLock::take(directory)?;
    // From here on no other process can change the directory.
    let from = kind()?;
    layout::remove_left_by_conversion(directory, from)?;

    let beside = directory.join(CONVERSION);
    let snapshots = SnapshotFiles::open(directory, lock.clone())?;
    let heed = |place: &Path| {
        let tables = Tables::open(place, lock.clone(), StorageKind::Heed)?;
        Ok(HeedStorage::new(tables, snapshots.clone()))
    };
    let wal = |place: &Path| {
        let metadata = Tables::open(place, lock.clone(), StorageKind::Wal)?;
        WalStorage::new(place, lock.clone(), metadata, snapshots.clone(), settings.segment_bytes)
    };
    let copied = match (from, to) {
        (StorageKind::Heed, StorageKind::Heed) => return done(from, to, heed(directory)?.load()),
        (StorageKind::Wal, StorageKind::Wal) => return done(from, to, wal(directory)?.load()),
        (StorageKind::Heed, StorageKind::Wal) => copy(heed(directory)?, &beside, wal),
        (StorageKind::Wal, StorageKind::Heed) => copy(wal(directory)?, &beside, heed),
    };
    let state = copied.inspect_err(|_| {
        // The disk may be full. If the remains cannot be removed now, the next conversion removes them.
        let _ = layout::remove_left_by_conversion(directory, from);
    })?;
    switch(directory, &beside, to, operations)?;
    layout::remove_left_by_conversion(directory, to)?;
    done(from, to, Ok(state))
}

fn done(
    from: StorageKind,
    to: StorageKind,
    state: Result<StoredState, StorageError>,
) -> Result<Conversion, StorageError> {
    Ok(Conversion { from, to, state: state? })
}

/// Writes the whole content of `source` into a new storage at `beside`, and reads it back. Closes both
/// afterwards.
fn copy<Target: StableStorage>(
    mut source: impl StableStorage,
    beside: &Path,
    open: impl Fn(&Path) -> Result<Target, StorageError>,
) -> Result<StoredState, StorageError> {
    let state = source.load()?;
    let entries = source.log_reader();
    create_durably(beside)?;
    let mut target = open(beside)?;
    target.load()?;
    write_all(&state, &entries, &mut target)?;
    drop(target);

    let mut target = open(beside)?;
    let found = target.load()?;
    let different = |what: String| {
        let reason = format!("{what} is not what was written there");
        Err(io_error("verify", beside)(io::Error::new(io::ErrorKind::InvalidData, reason)))
    };
    if found != state {
        return different("what was read back".to_owned());
    }
    match first_difference(&entries, &target.log_reader(), &state)? {
        Some(next) => different(format!("one of the entries from {next} on")),
        None => Ok(state),
    }
}

/// The index from which on the entries of `state` differ in the two logs, about; `None` if they are the same.
pub(crate) fn first_difference(
    one: &impl LogReader,
    other: &impl LogReader,
    state: &StoredState,
) -> Result<Option<LogIndex>, StorageError> {
    let (mut next, end) = (state.truncated.index.next(), state.last.index.next());
    while next < end {
        let entries = one.read(next, end, SLICE_BYTES)?;
        if entries != other.read(next, end, SLICE_BYTES)? {
            return Ok(Some(next));
        }
        next.0 += entries.len() as u64;
    }
    Ok(None)
}

/// Writes `state` with its `entries` into an empty storage.
pub(crate) fn write_all(
    state: &StoredState,
    entries: &impl LogReader,
    target: &mut impl StableStorage,
) -> Result<(), StorageError> {
    let (mut next, end) = (state.truncated.index.next(), state.last.index.next());
    // The commit index must lie within the log, also while the end of the log is missing.
    let begin = HardState { commit: state.truncated.index, ..state.hard_state };
    target.write(&[Write {
        identity: state.identity,
        reset_log: Some(state.truncated),
        hard_state: Some(begin),
        ..Write::default()
    }])?;
    while next < end {
        let append = entries.read(next, end, SLICE_BYTES)?;
        next.0 += append.len() as u64;
        target.write(&[Write { append, ..Write::default() }])?;
    }
    target.write(&[Write {
        hard_state: Some(state.hard_state),
        members: state.members.clone(),
        remembered: Some(Arc::clone(&state.remembered)),
        snapshot: state.snapshot.clone(),
        ..Write::default()
    }])
}

/// Renames the converted parts to their final names. The last rename switches the directory to the new
/// storage.
fn switch(
    directory: &Path,
    beside: &Path,
    to: StorageKind,
    operations: &dyn NameOperations,
) -> Result<(), StorageError> {
    let rename = |name: &str| {
        let (from, to) = (beside.join(name), directory.join(name));
        operations.rename(&from, &to).map_err(io_error("rename", &from))
    };
    let sync = || operations.sync_directory(directory).map_err(io_error("sync the directory", directory));
    if to == StorageKind::Wal {
        rename(segments::DIRECTORY)?;
        sync()?;
    }
    // If another process still reads the old database, LMDB trusts the number of the newest transaction in
    // this table.
    let readers = directory.join(READERS_FILE);
    match operations.remove(&readers) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &readers)(error));
        }
        _ => sync()?,
    }
    rename(DATA_FILE)?;
    sync()
}
