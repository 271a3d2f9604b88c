//! Reads one snapshot file, and checks it while reading.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, StorageError};

use super::encoding::{END_BYTES, Unreadable, encode_end, read_block, read_end, read_header};
use crate::files::io_error;
use crate::layout::snapshots;

/// Reads the data of one snapshot file. It returns bytes only after it has checked their block, and the end
/// of the data only after it has checked the end mark.
#[derive(Debug)]
pub struct SnapshotFileReader {
    path: PathBuf,
    file: BufReader<File>,
    block: Vec<u8>,
    /// How much of `block` was returned.
    given: usize,
    read_bytes: u64,
    digest: SnapshotDigest,
    header_checksum: u32,
    checksum: u32,
    state: ReadState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadState {
    Reading,
    Ended,
    /// Permanent: data after damage is never returned.
    Failed,
}

pub(crate) fn open_at(
    directory: &Path,
    position: LogPosition,
) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
    let path = snapshots::path_of(directory, position);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StorageError::NoSnapshot { position });
        }
        result => result.map_err(io_error("open", &path))?,
    };
    let (meta, digest, reader) = SnapshotFileReader::check(path, file)?;
    if meta.position != position {
        let what = reader.path.display().to_string();
        let reason = format!("it is of {}, but has the name of {position}", meta.position);
        return Err(StorageError::Corrupt { what, reason });
    }
    Ok((meta, digest, reader))
}

impl SnapshotFileReader {
    /// Opens a snapshot file at any path, for instance a copy; also returns its metadata, and how many bytes
    /// of data it holds.
    ///
    /// # Errors
    /// [`StorageError::Io`] if it cannot be read; [`StorageError::Corrupt`] if it is not a snapshot, damaged
    /// at the front, or truncated; [`StorageError::Version`] if another version wrote it. Damage in
    /// between is detected when it is read.
    pub fn open(path: impl AsRef<Path>) -> Result<(SnapshotMeta, u64, SnapshotFileReader), StorageError> {
        let (meta, digest, reader) = SnapshotFileReader::open_with_digest(path.as_ref())?;
        Ok((meta, digest.data_bytes, reader))
    }

    /// [`open`](Self::open), with the digest of the data, as the end mark records it.
    pub(crate) fn open_with_digest(
        path: &Path,
    ) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        SnapshotFileReader::check(path.to_owned(), file)
    }

    fn check(
        path: PathBuf,
        file: File,
    ) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
        let file_bytes = file.metadata().map_err(io_error("open", &path))?.len();
        let mut file = BufReader::new(file);
        let read = read_header(&mut file, file_bytes).and_then(|(meta, header_checksum, begin)| {
            let digest = read_end(&mut file, file_bytes, header_checksum, begin)?;
            file.seek(SeekFrom::Start(begin))?;
            Ok((meta, header_checksum, digest))
        });
        let (meta, header_checksum, digest) = match read {
            Ok(read) => read,
            Err(Unreadable::Io(error)) => return Err(io_error("read", &path)(error)),
            Err(Unreadable::Damaged(damage)) => return Err(damage.of(path.display().to_string())),
        };
        let reader = SnapshotFileReader {
            path,
            file,
            block: Vec::new(),
            given: 0,
            read_bytes: 0,
            digest,
            header_checksum,
            checksum: header_checksum,
            state: ReadState::Reading,
        };
        Ok((meta, digest, reader))
    }

    fn next_block(&mut self) -> io::Result<()> {
        match read_block(&mut self.file, self.checksum, &mut self.block) {
            Ok(Some(checksum)) => {
                self.checksum = checksum;
                self.given = 0;
                self.read_bytes += self.block.len() as u64;
                Ok(())
            }
            Ok(None) => self.check_end(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(self.damaged(&error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn check_end(&mut self) -> io::Result<()> {
        let mut end = [0; END_BYTES];
        self.file.read_exact(&mut end[4..])?;
        let read = SnapshotDigest { data_bytes: self.read_bytes, ..self.digest };
        if end != encode_end(self.header_checksum, read, self.checksum) {
            return Err(self.damaged("the end mark does not match what was read"));
        }
        if self.file.read(&mut [0])? != 0 {
            return Err(self.damaged("something follows the end mark"));
        }
        self.state = ReadState::Ended;
        Ok(())
    }

    fn damaged(&self, reason: &str) -> io::Error {
        let Self { path, read_bytes, digest, .. } = self;
        let message = format!(
            "snapshot {} is damaged after {read_bytes} of {} bytes: {reason}",
            path.display(),
            digest.data_bytes
        );
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

impl Read for SnapshotFileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.block.len() && self.state == ReadState::Reading {
            self.block.clear();
            self.given = 0;
            if let Err(error) = self.next_block() {
                self.block.clear();
                self.state = ReadState::Failed;
                return Err(match error.kind() {
                    io::ErrorKind::UnexpectedEof => self.damaged("the file ends too early"),
                    _ => error,
                });
            }
        }
        if self.state == ReadState::Failed {
            return Err(self.damaged("this was reported before"));
        }
        let given = (&self.block[self.given..]).read(buffer)?;
        self.given += given;
        Ok(given)
    }
}

/// Checks that the snapshot which the metadata records is in `directory`, and matches the metadata.
pub(crate) fn check_recorded(directory: &Path, recorded: &SnapshotMeta) -> Result<(), StorageError> {
    let corrupt = |reason: &str| {
        let what = snapshots::path_of(directory, recorded.position).display().to_string();
        Err(StorageError::Corrupt { what, reason: reason.to_owned() })
    };
    match open_at(directory, recorded.position) {
        Ok((found, _, _)) if found == *recorded => Ok(()),
        Ok(_) => corrupt("its header says otherwise than the metadata that record it"),
        Err(StorageError::NoSnapshot { .. }) => corrupt("the metadata record it, but the file is missing"),
        Err(error) => Err(error),
    }
}
