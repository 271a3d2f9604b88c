//! One file of the log: its header, and its creation. A file with the name of a segment is complete: its
//! header, and its zeros or the bytes of its earlier generation, are durable before it gets the name, and it
//! never grows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::{LogIndex, StorageError};

use crate::fields::{Damage, Fields, GROUP_ID, put_number};
use crate::files::{SegmentFile, SegmentOperations, io_error};
use crate::layout::segments;

const MAGIC: [u8; 8] = *b"raftwlog";

/// Version of the header and of the records.
const VERSION: u32 = 1;

/// The header ends with zeros up to here; the first record follows.
pub(super) const HEADER_BYTES: u64 = 64;

/// How many bytes are zeroed by one write. Linux caches the bytes of one write in pages of up to that size,
/// and syncing a few bytes takes longer if their page is larger.
const ZEROS_BYTES: usize = 16 << 10;

/// A number that is included in every checksum of a segment, generated at random for each generation of its
/// file. A record of an earlier generation, or one that a user has put into a payload, is therefore never
/// valid in this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(pub(super) u64);

impl Generation {
    /// The checksum over `parts`, in this order.
    pub(super) fn checksum(self, parts: &[&[u8]]) -> u32 {
        let salt = crc32c::crc32c(&self.0.to_be_bytes());
        parts.iter().fold(salt, |checksum, part| crc32c::crc32c_append(checksum, part))
    }
}

/// A segment with a valid header. Its file is opened when needed: there may be more segments than files that
/// a process may have open.
pub(super) struct Segment {
    /// Counts all segments that a directory has ever had.
    pub(super) number: u64,
    pub(super) generation: Generation,
    pub(super) size_bytes: u64,
    pub(super) path: PathBuf,
}

/// A segment with its file, open for writing.
pub(super) struct OpenSegment {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Box<dyn SegmentFile>,
}

impl Segment {
    /// Creates a new, zeroed segment, and replaces any that has the number.
    pub(super) fn create(
        operations: &dyn SegmentOperations,
        directory: &Path,
        number: u64,
        size_bytes: u64,
    ) -> Result<OpenSegment, StorageError> {
        let path = segments::path_of(directory, number);
        let partial = segments::unfinished_path_of(directory, number);
        let file = operations.create_segment(&partial).map_err(io_error("create", &partial))?;
        let generation = Generation(operations.random());
        let write = || {
            let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(size_bytes).unwrap_or(ZEROS_BYTES))];
            let mut offset = 0;
            while offset < size_bytes {
                let length = (size_bytes - offset).min(zeros.len() as u64);
                file.write_all_at(&zeros[..length as usize], offset)?;
                offset += length;
            }
            file.write_all_at(&encode_header(number, generation, size_bytes), 0)
        };
        write().map_err(io_error("write to", &partial))?;
        file.sync().map_err(io_error("sync", &partial))?;
        let segment = Segment { number, generation, size_bytes, path: partial };
        let segment = Arc::new(segment.named(operations, directory, path)?);
        Ok(OpenSegment { segment, file })
    }

    /// Makes a new segment from a recyclable one, with its `file`. The old content stays; its checksums are
    /// invalid in the new generation.
    pub(super) fn recycle(
        self,
        file: Box<dyn SegmentFile>,
        operations: &dyn SegmentOperations,
        directory: &Path,
        number: u64,
    ) -> Result<OpenSegment, StorageError> {
        let generation = Generation(operations.random());
        let header = encode_header(number, generation, self.size_bytes);
        file.write_all_at(&header, 0).map_err(io_error("write to", &self.path))?;
        file.sync().map_err(io_error("sync", &self.path))?;
        let segment = Segment { number, generation, ..self };
        let segment = Arc::new(segment.named(operations, directory, segments::path_of(directory, number))?);
        Ok(OpenSegment { segment, file })
    }

    /// Gives the file its name, durably.
    fn named(
        self,
        operations: &dyn SegmentOperations,
        directory: &Path,
        path: PathBuf,
    ) -> Result<Segment, StorageError> {
        operations.rename(&self.path, &path).map_err(io_error("rename", &self.path))?;
        operations.sync_directory(directory).map_err(io_error("sync the directory", directory))?;
        Ok(Segment { path, ..self })
    }

    /// Opens its file for writing.
    pub(super) fn open_to_write(
        self: Arc<Segment>,
        operations: &dyn SegmentOperations,
    ) -> Result<OpenSegment, StorageError> {
        let file = operations.open_segment(&self.path).map_err(io_error("open", &self.path))?;
        Ok(OpenSegment { segment: self, file })
    }

    /// Reads the whole segment `number`. Damage in it concerns the log from `next` on.
    pub(super) fn read(
        operations: &dyn SegmentOperations,
        directory: &Path,
        number: u64,
        next: LogIndex,
    ) -> Result<(Segment, Vec<u8>), StorageError> {
        let path = segments::path_of(directory, number);
        let file = operations.read_segment(&path).map_err(io_error("open", &path))?;
        let length = file.length_bytes().map_err(io_error("read", &path))?;
        let mut content = vec![0; usize::try_from(length).map_err(|_| too_large(&path, length))?];
        file.read_exact_at(&mut content, 0).map_err(io_error("read", &path))?;
        let what = || {
            format!(
                "{} at offset 0: the header of the segment, which goes on about entry {next},",
                path.display()
            )
        };
        let generation = decode_header(&content, number).map_err(|damage| damage.of(what()))?;
        let segment = Segment { number, generation, size_bytes: length, path };
        Ok((segment, content))
    }
}

fn too_large(path: &Path, length: u64) -> StorageError {
    StorageError::Corrupt {
        what: path.display().to_string(),
        reason: format!("it has {length} bytes, more than this machine can address"),
    }
}

fn encode_header(number: u64, generation: Generation, size_bytes: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_be_bytes());
    put_number(&mut header, GROUP_ID);
    put_number(&mut header, number);
    put_number(&mut header, generation.0);
    put_number(&mut header, size_bytes);
    let checksum = crc32c::crc32c(&header);
    header.extend_from_slice(&checksum.to_be_bytes());
    header.resize(HEADER_BYTES as usize, 0);
    header
}

fn decode_header(content: &[u8], expected_number: u64) -> Result<Generation, Damage> {
    let mut fields = Fields(content);
    if fields.array()? != MAGIC {
        return Err(Damage::Content("it does not begin as a segment does".into()));
    }
    let version = u32::from_be_bytes(fields.array()?);
    if version != VERSION {
        return Err(Damage::Version { found: version, known: VERSION });
    }
    let [group_id, number, generation, size_bytes] =
        [fields.number()?, fields.number()?, fields.number()?, fields.number()?];
    let computed = crc32c::crc32c(&content[..content.len() - fields.0.len()]);
    let stored = u32::from_be_bytes(fields.array()?);
    let found = content.len() as u64;
    let reason = if stored != computed {
        format!("its checksum is {computed:08x}, recorded is {stored:08x}")
    } else if group_id != GROUP_ID {
        format!("it is of group {group_id}")
    } else if number != expected_number {
        format!("it is of segment {number}, where {expected_number} is expected")
    } else if found != size_bytes {
        format!("the file has {found} bytes, but was made with {size_bytes}")
    } else {
        return Ok(Generation(generation));
    };
    Err(Damage::Content(reason))
}
