//! The data directory: made durably, and owned by one process at a time.
//!
//! On Unix the directory itself is locked, which nobody can remove from under its owner: a process that opens another
//! directory at the same path has another directory. The file `lock` is locked besides, for systems whose directories
//! cannot be locked, and so that a second directory made of hard links to the files of the first is no other one.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raftify_core::StorageError;

use crate::descriptors::Reserve;
use crate::{file_size, io_error};

const LOCK_FILE: &str = "lock";

/// Held by everything that may write into the directory. Released when the last one is dropped, also by a crash.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryLock {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    lock_file: LockedFile,
    /// `None` where a directory cannot be locked.
    directory: Option<LockedFile>,
    lock_file_is_missed: AtomicBool,
    reserve: Reserve,
}

impl DirectoryLock {
    /// Takes the directory for this handle alone.
    pub(crate) fn take(directory: &Path) -> Result<DirectoryLock, StorageError> {
        file_size::let_writes_fail();
        let path = directory.join(LOCK_FILE);
        let opened = open_lock_file(&path).map_err(io_error("open the lock file", &path))?;
        let reserve = Reserve::of(&opened);
        let in_use = || StorageError::InUse { path: directory.to_owned() };
        let lock_file = match LockedFile::take(opened, path.clone()) {
            Ok(locked) => locked,
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        };
        let directory = match lock_directory(directory) {
            Some(Err(TryLockError::WouldBlock)) => return Err(in_use()),
            // It cannot be locked, on a network file system for instance: then the file decides.
            Some(Err(TryLockError::Error(_))) | None => None,
            Some(Ok(locked)) => Some(locked),
        };
        let held = Held { lock_file, directory, lock_file_is_missed: AtomicBool::new(false), reserve };
        Ok(DirectoryLock { held: Arc::new(held) })
    }

    /// That the path still leads to what is locked. Before anything is done in the directory by its path.
    ///
    /// # Errors
    /// [`StorageError::Replaced`] if it does not.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let Held { lock_file, directory, lock_file_is_missed, .. } = &*self.held;
        let Some(directory) = directory else {
            return lock_file.check();
        };
        directory.check()?;
        if lock_file.check().is_err() && !lock_file_is_missed.swap(true, Ordering::Relaxed) {
            let path = lock_file.path.display();
            tracing::warn!(%path, "the lock file was removed: the directory is locked without it, leave the file alone");
        }
        Ok(())
    }

    /// Descriptors that are kept for the files in the directory.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.held.reserve
    }
}

/// On Windows nobody can remove a file that others may not open for that.
#[cfg(windows)]
fn open_lock_file(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_SHARE_READ_AND_WRITE: u32 = 3;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).share_mode(FILE_SHARE_READ_AND_WRITE);
    options.open(path)
}

#[cfg(not(windows))]
fn open_lock_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

#[cfg(unix)]
fn lock_directory(directory: &Path) -> Option<Result<LockedFile, TryLockError>> {
    let opened = File::open(directory).map_err(TryLockError::Error);
    Some(opened.and_then(|file| LockedFile::take(file, directory.to_owned())))
}

/// Elsewhere a directory cannot be opened as a file.
#[cfg(not(unix))]
fn lock_directory(_directory: &Path) -> Option<Result<LockedFile, TryLockError>> {
    None
}

/// An open file that no other process can lock, and the path that is to lead to it.
#[derive(Debug)]
pub(crate) struct LockedFile {
    file: File,
    path: PathBuf,
}

impl LockedFile {
    pub(crate) fn take(file: File, path: PathBuf) -> Result<LockedFile, TryLockError> {
        file.try_lock()?;
        Ok(LockedFile { file, path })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// That the path still leads to it.
    ///
    /// # Errors
    /// [`StorageError::Replaced`] if it does not.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match leads_to(&self.path, &self.file) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StorageError::Replaced { path: self.path.clone() }),
            Err(source) => Err(io_error("look for", &self.path)(source)),
        }
    }
}

impl Drop for LockedFile {
    /// A child process that was forked, and has not yet begun its own program, holds a copy of the file, and closing
    /// this one alone would leave it locked for that moment.
    fn drop(&mut self) {
        // If it fails, closing the file unlocks it.
        let _ = self.file.unlock();
    }
}

/// Whether what is at `path` is this file.
#[cfg(unix)]
pub(crate) fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(found) => {
            let held = file.metadata()?;
            Ok((found.dev(), found.ino()) == (held.dev(), held.ino()))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Elsewhere the system says no more of a file than whether it is there.
#[cfg(not(unix))]
pub(crate) fn leads_to(path: &Path, _file: &File) -> io::Result<bool> {
    path.try_exists()
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
        let _of_the_child = lock.held.lock_file.file.try_clone().unwrap();
        #[cfg(unix)]
        let _directory_of_the_child = lock.held.directory.as_ref().unwrap().file.try_clone().unwrap();
        assert!(matches!(DirectoryLock::take(directory.path()), Err(StorageError::InUse { .. })));
        drop(lock);
        DirectoryLock::take(directory.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_whose_lock_file_was_removed_is_still_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(directory.path()).unwrap();
        fs::remove_file(directory.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(DirectoryLock::take(directory.path()), Err(StorageError::InUse { .. })));
        lock.check().unwrap();
        drop(lock);
        DirectoryLock::take(directory.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_of_hard_links_to_the_files_of_another_one_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        let _lock = DirectoryLock::take(&one).unwrap();
        fs::hard_link(one.join(LOCK_FILE), other.join(LOCK_FILE)).unwrap();
        assert!(matches!(DirectoryLock::take(&other), Err(StorageError::InUse { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_was_moved_away_or_replaced_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("data"), directory.path().join("elsewhere"));
        fs::create_dir(&path).unwrap();
        let lock = DirectoryLock::take(&path).unwrap();
        let replaced = || match lock.check() {
            Err(StorageError::Replaced { path: named }) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        };
        fs::rename(&path, &elsewhere).unwrap();
        replaced();
        fs::create_dir(&path).unwrap();
        replaced();
        fs::remove_dir(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
        lock.check().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn where_a_directory_cannot_be_locked_a_removed_lock_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let mut lock = DirectoryLock::take(directory.path()).unwrap();
        Arc::get_mut(&mut lock.held).unwrap().directory = None;
        lock.check().unwrap();
        fs::remove_file(directory.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(lock.check(), Err(StorageError::Replaced { .. })));
        // Another process that makes it again has it.
        let _other = DirectoryLock::take(directory.path()).unwrap();
        assert!(matches!(lock.check(), Err(StorageError::Replaced { .. })));
    }
}
