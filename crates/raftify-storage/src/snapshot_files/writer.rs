//! Writes one snapshot file, taken on this node or received from another.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, SnapshotWriter, StorageError};

use super::directory::{ClaimedName, SnapshotDirectory};
use super::encoding::{BLOCK_BYTES_MAX, Blocks, FRAME_BYTES, encode_header, read_block};
use crate::files::{NewFile, io_error};
use crate::layout::snapshots::{self, Incoming};

/// How many bytes are written at most before an fsync: each fsync of a log on the same disk would have to
/// wait for all unsynced bytes.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// Writes one snapshot file. Dropped without [`finish`](SnapshotWriter::finish), it removes the written data,
/// unless it [receives](raftify_core::SnapshotStore::receive) the snapshot.
pub struct SnapshotFileWriter {
    position: LogPosition,
    pub(super) file: Box<dyn NewFile>,
    /// Dropped after the file is closed.
    name: ClaimedName,
    pub(super) blocks: Blocks,
    unsynced_bytes: u64,
    /// A write failed, and the present content of the file is unknown.
    failed: bool,
    /// For a snapshot that is received: the written data stays when the writer is dropped.
    stays: bool,
    /// Whether the name of the data that stays is durable.
    is_name_synced: bool,
}

/// The complete and valid part of an unfinished file.
struct Left {
    file_bytes: u64,
    digest: SnapshotDigest,
    checksum: u32,
}

impl Left {
    /// Reads the file, if there is one with this header. The first block that is incomplete or damaged, and
    /// everything after it, is left out.
    fn of(
        path: &Path,
        (header, header_checksum): (&[u8], u32),
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> io::Result<Option<Left>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => BufReader::with_capacity(BLOCK_BYTES_MAX, result?),
        };
        let mut found = vec![0; header.len()];
        if file.read_exact(&mut found).is_err() || found != header {
            return Ok(None);
        }
        let (file_bytes, digest) = (header.len() as u64, SnapshotDigest::default());
        let mut left = Left { file_bytes, digest, checksum: header_checksum };
        let mut block = Vec::new();
        while left.digest.data_bytes < announced.data_bytes {
            if !is_wanted() {
                return Err(io::Error::other("it is not wanted any more"));
            }
            let Ok(Some(checksum)) = read_block(&mut file, left.checksum, &mut block) else {
                break;
            };
            left.file_bytes += (FRAME_BYTES + block.len()) as u64;
            left.digest = left.digest.followed_by(&block);
            left.checksum = checksum;
        }
        let is_beginning = left.digest.data_bytes < announced.data_bytes || left.digest == announced;
        Ok(is_beginning.then_some(left))
    }
}

impl SnapshotFileWriter {
    pub(super) fn create(
        directory: Arc<SnapshotDirectory>,
        meta: &SnapshotMeta,
    ) -> Result<SnapshotFileWriter, StorageError> {
        let path = snapshots::unfinished_path_of(&directory.path, meta.position, directory.next_writer());
        let name = ClaimedName::take(directory, path)?;
        let (header, checksum) = encode_header(meta).map_err(io_error("write to", &name.path))?;
        SnapshotFileWriter::begin(name, meta.position, &header, checksum)
    }

    pub(super) fn receive(
        directory: Arc<SnapshotDirectory>,
        meta: &SnapshotMeta,
        incoming: Incoming,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(SnapshotFileWriter, SnapshotDigest), StorageError> {
        let path = incoming.path_in(&directory.path);
        let name = ClaimedName::take(directory, path)?;
        let (header, checksum) = encode_header(meta).map_err(io_error("write to", &name.path))?;
        let left = Left::of(&name.path, (&header, checksum), incoming.announced, is_wanted);
        let operations = &name.directory.operations;
        let mut writer = match left.map_err(io_error("read", &name.path))? {
            Some(left) => {
                let file = operations.append(&name.path, left.file_bytes);
                let file = file.map_err(io_error("open", &name.path))?;
                let blocks = Blocks::after(checksum, left.digest, left.checksum);
                SnapshotFileWriter::new(name, meta.position, file, blocks)
            }
            None => match operations.remove(&name.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &name.path)(error));
                }
                _ => SnapshotFileWriter::begin(name, meta.position, &header, checksum)?,
            },
        };
        writer.stays = true;
        let received = writer.blocks.digest();
        Ok((writer, received))
    }

    fn begin(
        name: ClaimedName,
        position: LogPosition,
        header: &[u8],
        header_checksum: u32,
    ) -> Result<SnapshotFileWriter, StorageError> {
        let file = name.directory.operations.create(&name.path);
        let file = file.map_err(io_error("create", &name.path))?;
        let mut writer = SnapshotFileWriter::new(name, position, file, Blocks::new(header_checksum));
        writer.file.write_all(header).map_err(io_error("write to", &writer.name.path))?;
        Ok(writer)
    }

    fn new(
        name: ClaimedName,
        position: LogPosition,
        file: Box<dyn NewFile>,
        blocks: Blocks,
    ) -> SnapshotFileWriter {
        SnapshotFileWriter {
            position,
            file,
            name,
            blocks,
            unsynced_bytes: 0,
            failed: false,
            stays: false,
            is_name_synced: false,
        }
    }

    fn write_block(&mut self) -> io::Result<()> {
        self.unsynced_bytes += self.blocks.write_to(&mut *self.file)?;
        if self.unsynced_bytes >= UNSYNCED_BYTES_MAX {
            self.file.sync()?;
            self.unsynced_bytes = 0;
            if self.stays && !self.is_name_synced {
                let SnapshotDirectory { path: directory, operations, .. } = &*self.name.directory;
                operations.sync_directory(directory)?;
                self.is_name_synced = true;
            }
        }
        Ok(())
    }

    fn try_finish(&mut self) -> Result<u64, StorageError> {
        if self.failed {
            return Err(io_error("finish", &self.name.path)(io::Error::other("an earlier write failed")));
        }
        self.write_block().map_err(io_error("write to", &self.name.path))?;
        self.file.write_all(&self.blocks.end()).map_err(io_error("write to", &self.name.path))?;
        if !raftify_core::mutated!(SnapshotIsNotSynced) {
            self.file.sync().map_err(io_error("sync", &self.name.path))?;
        }
        let SnapshotDirectory { path: directory, operations, .. } = &*self.name.directory;
        let finished = snapshots::path_of(directory, self.position);
        operations.rename(&self.name.path, &finished).map_err(io_error("rename", &self.name.path))?;
        // Without this, the name may be missing after a power failure, although the metadata already relies
        // on it.
        if !raftify_core::mutated!(DirectoryIsNotSynced) {
            operations.sync_directory(directory).map_err(io_error("sync the directory", directory))?;
        }
        Ok(self.blocks.digest().data_bytes)
    }
}

impl Write for SnapshotFileWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("an earlier write to this snapshot failed"));
        }
        let (taken, is_full) = self.blocks.take(data);
        if is_full {
            self.write_block().inspect_err(|_| self.failed = true)?;
        }
        Ok(taken)
    }

    /// Does nothing: a snapshot is only durable, and only visible, as a whole.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for SnapshotFileWriter {
    fn finish(mut self) -> Result<u64, StorageError> {
        self.try_finish().inspect_err(|_| self.failed = true)
    }

    fn discard(mut self) {
        self.stays = false;
    }
}

impl Drop for SnapshotFileWriter {
    fn drop(&mut self) {
        if self.stays && !self.failed && self.write_block().is_ok() {
            return;
        }
        match self.name.directory.operations.remove(&self.name.path) {
            Ok(()) => {}
            // The file is finished, and has its final name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = self.name.path.display();
                tracing::warn!(%path, %error, "an unfinished snapshot is left until the next start");
            }
        }
    }
}
