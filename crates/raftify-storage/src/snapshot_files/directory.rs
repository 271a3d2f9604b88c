//! The directory of the snapshots, and which names in it are taken by writers of this process.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftify_core::StorageError;

use crate::files::{FileOperations, io_error};
use crate::layout::DirectoryLock;

/// The directory of the snapshots, as the store and its writers share it.
pub(super) struct SnapshotDirectory {
    pub(super) path: PathBuf,
    pub(super) operations: Box<dyn FileOperations>,
    unfinished: Mutex<Unfinished>,
    /// Keeps other processes out for as long as anybody could write here.
    pub(super) lock: DirectoryLock,
}

/// The files that writers of this process are working on.
#[derive(Default)]
struct Unfinished {
    paths: BTreeSet<PathBuf>,
    /// Counts writers, so that two at the same position have files of their own.
    created: u64,
}

impl SnapshotDirectory {
    pub(super) fn new(
        path: PathBuf,
        lock: DirectoryLock,
        operations: Box<dyn FileOperations>,
    ) -> SnapshotDirectory {
        SnapshotDirectory { path, operations, unfinished: Mutex::default(), lock }
    }

    /// Whether a writer of this process works on the file.
    pub(super) fn is_being_written(&self, path: &Path) -> bool {
        self.unfinished().paths.contains(path)
    }

    /// A number for a writer that has it alone.
    pub(super) fn next_writer(&self) -> u64 {
        let mut unfinished = self.unfinished();
        unfinished.created += 1;
        unfinished.created
    }

    /// A writer that panicked left at most the name of a file that is not removed before the next start.
    fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a file until it is finished. No other writer has the same.
pub(super) struct ClaimedName {
    pub(super) directory: Arc<SnapshotDirectory>,
    pub(super) path: PathBuf,
}

impl ClaimedName {
    pub(super) fn take(
        directory: Arc<SnapshotDirectory>,
        path: PathBuf,
    ) -> Result<ClaimedName, StorageError> {
        if !directory.unfinished().paths.insert(path.clone()) {
            return Err(io_error("open", &path)(io::Error::other("it is being written already")));
        }
        Ok(ClaimedName { directory, path })
    }
}

impl Drop for ClaimedName {
    fn drop(&mut self) {
        self.directory.unfinished().paths.remove(&self.path);
    }
}
