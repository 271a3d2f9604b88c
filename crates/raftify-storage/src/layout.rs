//! A data directory: which storage keeps it, which files it has, which process may write there, and what was left behind.
//!
//! This is the only room that knows what both storages put into a directory, because each must notice the other's files:
//! a directory whose database is gone is not a new one. `lock.rs` keeps other processes out, `segments.rs` and
//! `snapshots.rs` have the names of files. Nothing here reads what the files hold.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use raftify_core::StorageError;

use crate::fields::Damage;
use crate::files::{io_error, sync_names};

mod lock;
pub(crate) mod segments;
pub(crate) mod snapshots;

pub(crate) use lock::{DirectoryLock, LockedDirectory};

/// LMDB's file, in which also stands which storage keeps the directory.
pub(crate) const DATA_FILE: &str = "data.mdb";

/// LMDB's table of readers.
pub(crate) const READERS_FILE: &str = "lock.mdb";

/// Where a conversion writes the other storage. It is there from the first step of a conversion to the last: what is
/// found without it was not left behind by one.
pub(crate) const CONVERSION: &str = "conversion.partial";

/// Which storage keeps a directory. The directory says it of itself.
// The numbers stand on disk, as the content of the layout, and never change.
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

    /// As the command line tool names it.
    pub const fn short_name(self) -> &'static str {
        match self {
            StorageKind::Heed => "heed",
            StorageKind::Wal => "wal",
        }
    }

    /// The content of the layout. That of the first kind is empty.
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

/// Whether there is a database, and so a storage, in `directory`. A file that cannot be looked for may be there.
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

/// Checks that a directory without a database has no segments either: there might be acknowledged entries in them.
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

/// Warns of what an interrupted conversion has left: it takes room and is of no use.
pub(crate) fn warn_of_interrupted_conversion(directory: &Path) {
    let unfinished = directory.join(CONVERSION);
    if unfinished.exists() {
        let path = unfinished.display();
        tracing::warn!(%path, "an interrupted conversion has left this: convert again, to either storage, to remove it");
    }
}

/// Removes what a conversion has left in a directory of `kind`, whether it was finished or not.
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
        // It may stand on another disk. What is there besides is not ours.
        let is_link = fs::symlink_metadata(&log).is_ok_and(|metadata| metadata.is_symlink());
        match if is_link { fs::remove_file(&log) } else { fs::remove_dir(&log) } {
            // Another program has files in it.
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
