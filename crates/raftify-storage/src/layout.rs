//! The data directory: its storage, its files, the process that may write to it, and the remains of
//! interrupted operations.
//!
//! Only this module knows the files of both storages in a directory, because each must detect the files of
//! the other: a directory whose database is missing is not a new one. `lock.rs` excludes other processes,
//! `segments.rs` and `snapshots.rs` have the names of files. This module does not read the content of the
//! files.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use raftify_core::StorageError;

use crate::fields::Damage;
use crate::files::{io_error, sync_names};

mod lock;
pub(crate) mod segments;
pub(crate) mod snapshots;

pub(crate) use lock::{DirectoryLock, LockedDirectory, QuietLock};

/// LMDB's file, which also says to which storage the directory belongs.
pub(crate) const DATA_FILE: &str = "data.mdb";

/// LMDB's table of readers.
pub(crate) const READERS_FILE: &str = "lock.mdb";

/// The directory into which a conversion writes the other storage. It exists from the first step of a
/// conversion to the last: without it, no files are remains of a conversion.
pub(crate) const CONVERSION: &str = "conversion.partial";

/// The directory into which a recovery writes the new directory of the node. It exists from the first step of
/// a recovery to the last.
pub(crate) const RECOVERY: &str = "recovery.partial";

/// The directory into which a restore writes the new directory of a node.
pub(crate) const RESTORE: &str = "restore.partial";

/// Where a recovery leaves the directory as it was before.
pub(crate) const ORIGINAL: &str = "before-recovery";

/// Other files and directories that only interrupted operations leave.
const LEFTOVERS: [&str; 5] = [CONVERSION, RECOVERY, RESTORE, "new.partial", "room.partial"];

/// The storage of a directory, as recorded in the directory.
// The numbers are stored, as the content of the layout, and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// [`HeedStorage`](crate::HeedStorage): entries and hard state in LMDB.
    Heed = 0,
    /// [`WalStorage`](crate::WalStorage): entries and hard state in a segment log.
    Wal = 1,
}

impl StorageKind {
    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            StorageKind::Heed => "HeedStorage",
            StorageKind::Wal => "WalStorage",
        }
    }

    /// The name in the command line tool.
    pub const fn short_name(self) -> &'static str {
        match self {
            StorageKind::Heed => "heed",
            StorageKind::Wal => "wal",
        }
    }

    /// The content of the layout. It is empty for the first kind.
    pub(crate) const fn content(self) -> &'static [u8] {
        match self {
            StorageKind::Heed => &[],
            StorageKind::Wal => &[StorageKind::Wal as u8],
        }
    }

    pub(crate) fn decode(content: &[u8]) -> Result<StorageKind, Damage> {
        [StorageKind::Heed, StorageKind::Wal]
            .into_iter()
            .find(|kind| kind.content() == content)
            .ok_or_else(|| Damage::Content(format!("this program knows no storage of kind {content:02x?}")))
    }
}

impl fmt::Display for StorageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether there is a database, and so a storage, in `directory`. An I/O error does not mean that the file is
/// missing.
fn is_begun(directory: &Path) -> Result<bool, StorageError> {
    let data_file = directory.join(DATA_FILE);
    data_file.try_exists().map_err(io_error("look for", &data_file))
}

fn database_is_lost(directory: &Path, found: &Path) -> StorageError {
    StorageError::Corrupt {
        what: directory.display().to_string(),
        reason: format!("there is {}, but no {DATA_FILE}", found.display()),
    }
}

/// Checks that a directory without a database has no segments either: they might contain acknowledged
/// entries.
pub(crate) fn check_no_segments_without_database(directory: &Path) -> Result<(), StorageError> {
    if is_begun(directory)? {
        return Ok(());
    }
    match segments::list(directory)?.first() {
        None => Ok(()),
        Some(path) => Err(database_is_lost(directory, path)),
    }
}

/// Checks that a directory without a database has no snapshots either.
pub(crate) fn check_no_snapshots_without_database(directory: &Path) -> Result<(), StorageError> {
    if is_begun(directory)? {
        return Ok(());
    }
    match snapshots::list(directory)?.pop() {
        None => Ok(()),
        Some(newest) => Err(database_is_lost(directory, &newest.path)),
    }
}

/// Checks that the directory was not left between two states by a recovery or a restore. Without its database
/// it would look like a new one.
pub(crate) fn check_not_interrupted(directory: &Path) -> Result<(), StorageError> {
    for (name, command) in [(RECOVERY, "recover"), (RESTORE, "restore")] {
        let unfinished = directory.join(name);
        let is_there = unfinished.try_exists().map_err(io_error("look for", &unfinished))?;
        if is_there && !is_begun(directory)? {
            return Err(StorageError::Interrupted { path: directory.to_owned(), command });
        }
    }
    Ok(())
}

/// What interrupted operations have left in the directory, besides files of the segment log.
pub(crate) fn leftovers(directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut found: Vec<PathBuf> = LEFTOVERS.iter().map(|name| directory.join(name)).collect();
    found.retain(|path| path.exists());
    let folder = snapshots::directory_in(directory);
    if folder.exists() {
        let files = snapshots::files_in(&folder)?.into_iter();
        let is_unfinished =
            |path: &PathBuf| matches!(snapshots::name_of(path), Some(snapshots::Name::Unfinished));
        found.extend(files.filter(is_unfinished));
    }
    Ok(found)
}

/// Warns about the remains of an interrupted conversion or recovery: they take space and are of no use.
pub(crate) fn warn_of_interruptions(directory: &Path) {
    let unfinished = directory.join(CONVERSION);
    if unfinished.exists() {
        let path = unfinished.display();
        tracing::warn!(%path, "an interrupted conversion has left this: convert again, to either storage, to remove it");
    }
    let unfinished = directory.join(RECOVERY);
    if unfinished.exists() {
        let path = unfinished.display();
        tracing::warn!(%path, "an interrupted recovery has left this: it takes space and is of no use");
    }
}

/// Removes the remains of a conversion in a directory of `kind`, whether the conversion was finished or not.
pub(crate) fn remove_left_by_conversion(directory: &Path, kind: StorageKind) -> Result<(), StorageError> {
    let unfinished = directory.join(CONVERSION);
    if !unfinished.exists() {
        return Ok(());
    }
    if kind == StorageKind::Heed {
        for path in segments::list(directory)? {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        let log = directory.join(segments::DIRECTORY);
        // The log may be on another disk. Other files there do not belong to the storage.
        let is_link = fs::symlink_metadata(&log).is_ok_and(|metadata| metadata.is_symlink());
        match if is_link { fs::remove_file(&log) } else { fs::remove_dir(&log) } {
            // Another program has files in the directory.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &log)(error));
            }
            _ => sync_names(directory).map_err(io_error("sync the directory", directory))?,
        }
    }
    fs::remove_dir_all(&unfinished).map_err(io_error("remove", &unfinished))?;
    sync_names(directory).map_err(io_error("sync the directory", directory))
}
