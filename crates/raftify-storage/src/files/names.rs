//! Names of files and directories: made durable, and checked to lead where they led.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use raftify_core::StorageError;

use super::error::io_error;

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

    /// Checks that the path still leads to it.
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
/// that of `directory` also if it is there: the process that made it may have been killed before its name was durable.
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
    match sync_names(parent) {
        // Another program made it for this process, in a place that this process may not read.
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
pub(crate) fn sync_names(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened as a file; NTFS journals its names by itself.
#[cfg(not(unix))]
pub(crate) fn sync_names(_directory: &Path) -> io::Result<()> {
    Ok(())
}
