//! The data directory: made durably, and owned by one process at a time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use raftify_core::StorageError;

use crate::io_error;

const LOCK_FILE: &str = "lock";

/// Held by everything that may write into the directory. Released when the last one is dropped, also by a crash.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryLock {
    _held: Arc<HeldLock>,
}

#[derive(Debug)]
struct HeldLock(File);

impl Drop for HeldLock {
    /// A child process that was forked, and has not yet begun its own program, holds a copy of the file, and closing
    /// this one alone would leave the directory locked for that moment.
    fn drop(&mut self) {
        // If it fails, closing the file unlocks it.
        let _ = self.0.unlock();
    }
}

impl DirectoryLock {
    /// Takes the directory for this handle alone.
    pub(crate) fn take(directory: &Path) -> Result<DirectoryLock, StorageError> {
        let path = directory.join(LOCK_FILE);
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(io_error("open the lock file", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock { _held: Arc::new(HeldLock(file)) }),
            Err(TryLockError::WouldBlock) => Err(StorageError::InUse { path: directory.to_owned() }),
            Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
        }
    }
}

/// Makes `directory` and those above it where they are missing. Each one's name is durable before the next is made, and
/// that of `directory` also if it is there: who made it may have been killed before its name was durable.
pub(crate) fn create_durably(directory: &Path) -> Result<(), StorageError> {
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        None if directory.has_root() => return Ok(()),
        _ => Path::new("."),
    };
    let is_there = directory.is_dir();
    if !is_there {
        create_durably(parent)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            result => result.map_err(io_error("create the directory", directory))?,
        }
    }
    match sync(parent) {
        // Somebody else made it for this process, in a place that this one may not look at.
        Err(error) if is_there && is_not_for_us(&error) => Ok(()),
        result => result.map_err(io_error("sync the directory", parent)),
    }
}

/// Whether this process may not open the directory, or a file system of this kind cannot sync it.
fn is_not_for_us(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | Unsupported | InvalidInput)
}

/// Makes the names in `directory` durable. A file whose content was synced is lost in a power cut if its name was not.
#[cfg(unix)]
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened as a file; NTFS journals its names by itself.
#[cfg(not(unix))]
pub(crate) fn sync(_directory: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_given_back_is_free_although_a_forked_child_still_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(directory.path()).unwrap();
        // What a child has between fork and exec: another descriptor of the same open file.
        let _of_the_child = lock._held.0.try_clone().unwrap();
        assert!(matches!(DirectoryLock::take(directory.path()), Err(StorageError::InUse { .. })));
        drop(lock);
        DirectoryLock::take(directory.path()).unwrap();
    }
}
