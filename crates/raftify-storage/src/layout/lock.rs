//! The lock of a data directory: one process at a time owns it.
//!
//! On Unix the directory itself is locked. Other processes cannot take this lock from its owner by replacing
//! the directory: a process that opens another directory at the same path has another directory. The file
//! `lock` is locked as well, for systems whose directories cannot be locked, and so that a second directory
//! made of hard links to the files of the first counts as the same.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raftify_core::StorageError;

use super::DATA_FILE;
use crate::files::{
    self, FileOperations, LockedFile, NameOperations, NewFile, OperatingSystem, Reserve, SegmentFile,
    SegmentOperations, Work, io_error,
};

const LOCK_FILE: &str = "lock";

/// Held by every object that may write into the directory. Released when the last one is dropped, also by a
/// crash.
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
    /// Locks the directory for this handle.
    pub(crate) fn take(directory: &Path) -> Result<DirectoryLock, StorageError> {
        files::let_writes_fail();
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
            // It cannot be locked, for instance on a network file system: then the file decides.
            Some(Err(TryLockError::Error(_))) | None => None,
            Some(Ok(locked)) => Some(locked),
        };
        let held = Held { lock_file, directory, lock_file_is_missed: AtomicBool::new(false), reserve };
        Ok(DirectoryLock { held: Arc::new(held) })
    }

    /// Checks that the path still leads to the locked directory: before each operation that uses the path.
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
            let path = lock_file.path().display();
            tracing::warn!(%path, "the lock file was removed: the directory is locked without it, leave the file alone");
        }
        Ok(())
    }

    /// Descriptors that are reserved for the files in the directory.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.held.reserve
    }
}

/// Excludes the node of a directory while the directory is read. Taking it changes and creates no file.
#[derive(Debug)]
pub(crate) struct QuietLock {
    _locked: Vec<LockedFile>,
}

impl QuietLock {
    pub(crate) fn take(directory: &Path) -> Result<QuietLock, StorageError> {
        let in_use = || StorageError::InUse { path: directory.to_owned() };
        let mut locked = Vec::new();
        for path in [directory.join(LOCK_FILE), directory.join(DATA_FILE)] {
            // Some network file systems lock only files that are open for writing.
            let opened = File::options().read(true).write(true).open(&path).or_else(|_| File::open(&path));
            let file = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(io_error("open", &path))?,
            };
            match LockedFile::take(file, path.clone()) {
                Ok(file) => locked.push(file),
                Err(TryLockError::WouldBlock) => return Err(in_use()),
                Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
            }
        }
        match lock_directory(directory) {
            Some(Err(TryLockError::WouldBlock)) => return Err(in_use()),
            Some(Ok(directory)) => locked.push(directory),
            // It cannot be locked: then the files decide.
            Some(Err(TryLockError::Error(_))) | None => {}
        }
        Ok(QuietLock { _locked: locked })
    }
}

/// On Windows a file cannot be removed unless it was opened with permission for that.
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

/// On other systems, a directory cannot be opened as a file.
#[cfg(not(unix))]
fn lock_directory(_directory: &Path) -> Option<Result<LockedFile, TryLockError>> {
    None
}

/// The operations of the operating system, in a locked directory: no operation changes files if its path
/// leads elsewhere by now, and there is a descriptor for each file.
pub(crate) struct LockedDirectory(pub(crate) DirectoryLock);

impl LockedDirectory {
    fn check(&self) -> io::Result<()> {
        self.0.check().map_err(io::Error::other)
    }
}

impl NameOperations for LockedDirectory {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        OperatingSystem.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.0.reserve().open(|| OperatingSystem.sync_directory(path))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        OperatingSystem.remove(path)
    }
}

impl FileOperations for LockedDirectory {
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        self.check()?;
        self.0.reserve().open(|| OperatingSystem.create(path))
    }

    fn append(&self, path: &Path, length_bytes: u64) -> io::Result<Box<dyn NewFile>> {
        self.check()?;
        self.0.reserve().open(|| OperatingSystem.append(path, length_bytes))
    }
}

impl SegmentOperations for LockedDirectory {
    fn create_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        self.check()?;
        self.0.reserve().open(|| OperatingSystem.create_segment(path))
    }

    fn open_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        self.check()?;
        self.0.reserve().open(|| OperatingSystem.open_segment(path))
    }

    fn read_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        self.0.reserve().open(|| OperatingSystem.read_segment(path))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.reserve().open(|| OperatingSystem.list(directory))
    }

    fn spawn(&self, work: Work) -> io::Result<Work> {
        OperatingSystem.spawn(work)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_that_was_given_back_is_free_although_a_forked_child_still_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(directory.path()).unwrap();
        // What a child process has between fork and exec: another descriptor of the same open file.
        let _of_the_child = lock.held.lock_file.file().try_clone().unwrap();
        #[cfg(unix)]
        let _directory_of_the_child = lock.held.directory.as_ref().unwrap().file().try_clone().unwrap();
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
        // Another process that creates the directory again holds this lock.
        let _other = DirectoryLock::take(directory.path()).unwrap();
        assert!(matches!(lock.check(), Err(StorageError::Replaced { .. })));
    }
}
