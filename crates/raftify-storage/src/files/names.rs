//! Names of files and directories: makes them durable, and checks that they still lead to the same file.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use raftify_core::StorageError;

use super::error::io_error;

/// An open file that no other process can lock, and the path that must lead to it.
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
    /// A forked child process that has not yet executed its own program holds a copy of the descriptor;
    /// closing only this one would leave the file locked for that moment.
    fn drop(&mut self) {
        // If it fails, closing the file unlocks it.
        let _ = self.file.unlock();
    }
}

/// Whether `path` leads to this file.
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

/// On other systems, only the existence of a file can be checked.
#[cfg(not(unix))]
pub(crate) fn leads_to(path: &Path, _file: &File) -> io::Result<bool> {
    path.try_exists()
}

/// Creates `directory` and its missing parents. The name of each is durable before the next is created. The
/// name of `directory` is made durable even if it exists: the process that created it may have been killed
/// before its name was durable.
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
        // Another program created it for this process, in a directory that this process may not read.
        Err(error) if is_there && is_not_for_us(&error) => Ok(()),
        result => result.map_err(io_error("sync the directory", parent)),
    }
}

/// Whether this process may not open the directory, or its file system cannot fsync a directory.
fn is_not_for_us(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | Unsupported | InvalidInput)
}

/// Makes the names in `directory` durable. A file whose content was fsynced is lost in a power failure if its
/// name was not.
#[cfg(unix)]
pub(crate) fn sync_names(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// On other systems, a directory cannot be opened as a file; NTFS journals its names by itself.
#[cfg(not(unix))]
pub(crate) fn sync_names(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// Renames a file to a name that no file has: one that has it is not replaced.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The kernel or the file system does not know this call.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => rename_unless_there(from, to),
        renamed => Ok(renamed?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename_unless_there(from, to)
}

/// Between the two steps, another program may create a file of the new name, which is replaced.
fn rename_unless_there(from: &Path, to: &Path) -> io::Result<()> {
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}
