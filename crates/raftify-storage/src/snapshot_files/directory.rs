//! The directory of the snapshots, and the names in it that writers of this process use.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use raftify_core::StorageError;

use crate::files::{FileOperations, io_error};
use crate::layout::DirectoryLock;

/// The directory of the snapshots, which the store and its writers share.
pub(super) struct SnapshotDirectory {
    pub(super) path: PathBuf,
    pub(super) operations: Box<dyn FileOperations>,
    unfinished: Mutex<Unfinished>,
    /// Excludes other processes as long as any object may write here.
    pub(super) lock: DirectoryLock,
}

/// The files that writers of this process are working on.
#[derive(Default)]
struct Unfinished {
    paths: BTreeSet<PathBuf>,
    /// Counts writers, so that two at the same position use separate files.
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

    /// Whether a writer of this process is writing the file.
    pub(super) fn is_being_written(&self, path: &Path) -> bool {
        self.unfinished().paths.contains(path)
    }

    /// A number that no other writer has.
    pub(super) fn next_writer(&self) -> u64 {
        let mut unfinished = self.unfinished();
        unfinished.created += 1;
        unfinished.created
    }

    fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        self.unfinished.lock()
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
