//! [`SnapshotFiles`]: the snapshots of one data directory.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, SnapshotStore, StorageError, storage};

use super::directory::SnapshotDirectory;
use super::encoding::read_header;
use super::reader::{self, SnapshotFileReader};
use super::writer::SnapshotFileWriter;
use crate::files::{FileOperations, create_durably, io_error};
use crate::layout::snapshots::{self, Incoming, Name};
use crate::layout::{DirectoryLock, LockedDirectory};

/// The snapshots of one data directory. Clones share it.
#[derive(Clone)]
pub struct SnapshotFiles {
    directory: Arc<SnapshotDirectory>,
}

impl SnapshotFiles {
    /// Opens `snapshots/` in `data_directory`, and removes files that a crash left unfinished, except the
    /// newest that was being received, if its header is complete.
    pub(crate) fn open(data_directory: &Path, lock: DirectoryLock) -> Result<SnapshotFiles, StorageError> {
        let operations = Box::new(LockedDirectory(lock.clone()));
        let files = SnapshotFiles::with_operations(data_directory, lock, operations)?;
        let incoming = incoming_in(&files.directory.path)?;
        let newest = incoming.into_iter().max_by_key(|incoming| (incoming.position.index, incoming.position));
        files.remove_files(|file| match file {
            Name::Finished(_) => false,
            Name::Unfinished => true,
            Name::Incoming(incoming) => Some(incoming) != newest,
        })?;
        Ok(files)
    }

    pub(super) fn with_operations(
        data_directory: &Path,
        lock: DirectoryLock,
        operations: Box<dyn FileOperations>,
    ) -> Result<SnapshotFiles, StorageError> {
        let path = snapshots::directory_in(data_directory);
        create_durably(&path)?;
        let directory = SnapshotDirectory::new(path, lock, operations);
        Ok(SnapshotFiles { directory: Arc::new(directory) })
    }

    /// The path of the snapshot at `position`.
    pub fn path(&self, position: LogPosition) -> PathBuf {
        snapshots::path_of(&self.directory.path, position)
    }

    /// Checks that the snapshot which the metadata records exists, and matches the metadata.
    pub(crate) fn check_recorded(&self, recorded: &SnapshotMeta) -> Result<(), StorageError> {
        self.directory.lock.reserve().open(|| reader::check_recorded(&self.directory.path, recorded))
    }

    /// Checks that the snapshots which `writes` record exist: without their data, the log before them must
    /// not be compacted.
    pub(crate) fn check_to_be_recorded(&self, writes: &[storage::Write]) -> Result<(), StorageError> {
        for snapshot in writes.iter().filter_map(|write| write.snapshot.as_ref()) {
            let checked = self.check_recorded(snapshot);
            checked.map_err(|error| StorageError::Refused { reason: error.to_string() })?;
        }
        Ok(())
    }

    fn remove_files(&self, unwanted: impl Fn(Name) -> bool) -> Result<(), StorageError> {
        let directory = &self.directory;
        for path in directory.lock.reserve().open(|| snapshots::files_in(&directory.path))? {
            // A writer registers its file before it creates it: a file of this process never counts as left
            // over.
            if snapshots::name_of(&path).is_some_and(&unwanted) && !directory.is_being_written(&path) {
                directory.operations.remove(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

impl SnapshotStore for SnapshotFiles {
    type Writer = SnapshotFileWriter;
    type Reader = SnapshotFileReader;

    fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotFileWriter, StorageError> {
        SnapshotFileWriter::create(Arc::clone(&self.directory), meta)
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(SnapshotFileWriter, SnapshotDigest), StorageError> {
        let incoming = Incoming { position: meta.position, announced };
        self.remove_files(|file| matches!(file, Name::Incoming(other) if other != incoming))?;
        SnapshotFileWriter::receive(Arc::clone(&self.directory), meta, incoming, is_wanted)
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
        self.directory.lock.reserve().open(|| reader::open_at(&self.directory.path, position))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        let newest = keep.iter().map(|position| position.index).max();
        self.remove_files(|file| match file {
            Name::Finished(position) => !keep.contains(&position),
            Name::Unfinished => true,
            Name::Incoming(Incoming { position, .. }) => {
                newest.is_some_and(|newest| position.index <= newest)
            }
        })
    }
}

/// The unfinished snapshots of other nodes whose header is complete and matches.
fn incoming_in(directory: &Path) -> Result<Vec<Incoming>, StorageError> {
    let mut found = Vec::new();
    for path in snapshots::files_in(directory)? {
        let Some(Name::Incoming(incoming)) = snapshots::name_of(&path) else {
            continue;
        };
        let mut file = BufReader::new(File::open(&path).map_err(io_error("open", &path))?);
        let file_bytes = file.get_ref().metadata().map_err(io_error("open", &path))?.len();
        if read_header(&mut file, file_bytes).is_ok_and(|(meta, ..)| meta.position == incoming.position) {
            found.push(incoming);
        }
    }
    Ok(found)
}
