//! [`SnapshotStream`]: writes a snapshot, in the form of a snapshot file, to any writer.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use raftify_core::{SnapshotDigest, SnapshotMeta};

use super::encoding::{BLOCK_BYTES_MAX, Blocks, FRAME_BYTES, encode_header, read_block, read_header};

/// Writes the data of one snapshot to any writer, in the form of a snapshot file. What was written is a
/// snapshot file, and so a backup, only after [`finish`](Self::finish).
///
/// # Examples
/// ```
/// use std::io::Write;
///
/// use raftify_core::{ClusterId, LogPosition, Member, Members, NodeId, SnapshotMeta};
/// use raftify_storage::SnapshotStream;
///
/// let members = Members::initial([Member::voter(NodeId::FIRST, "10.0.0.1:60061")])?;
/// let position = LogPosition::new(1, 7);
/// let meta = SnapshotMeta { cluster_id: ClusterId(1), position, members };
/// let mut stream = SnapshotStream::new(Vec::new(), &meta)?;
/// stream.write_all(b"the state")?;
/// let (file, digest) = stream.finish()?;
/// assert!(file.starts_with(b"raftsnap"));
/// assert_eq!(digest.data_bytes, 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SnapshotStream<W> {
    writer: W,
    blocks: Blocks,
    /// A write failed: it is not known how much of it was written.
    failed: bool,
}

impl<W: Write> SnapshotStream<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(mut writer: W, meta: &SnapshotMeta) -> io::Result<SnapshotStream<W>> {
        let (header, header_checksum) = encode_header(meta)?;
        writer.write_all(&header)?;
        Ok(SnapshotStream { writer, blocks: Blocks::new(header_checksum), failed: false })
    }

    /// The digest of the data so far, of which up to 64 KiB are not written yet.
    pub fn digest(&self) -> SnapshotDigest {
        self.blocks.digest_of_all()
    }

    /// Writes the rest of the data and the end mark, and flushes the writer. Returns the writer, and the
    /// digest of all data.
    ///
    /// # Errors
    /// Those of the writer, also of an earlier write.
    pub fn finish(mut self) -> io::Result<(W, SnapshotDigest)> {
        self.check()?;
        self.blocks.write_to(&mut self.writer)?;
        self.writer.write_all(&self.blocks.end())?;
        self.writer.flush()?;
        Ok((self.writer, self.blocks.digest()))
    }

    fn check(&self) -> io::Result<()> {
        if self.failed { Err(io::Error::other("an earlier write of this snapshot failed")) } else { Ok(()) }
    }
}

impl SnapshotStream<File> {
    /// Continues an unfinished file after its last valid block; what follows is cut off. `None` if it does not
    /// begin with a valid header of this version.
    pub(crate) fn resume(file: File) -> io::Result<Option<(SnapshotMeta, SnapshotStream<File>)>> {
        let file_bytes = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(BLOCK_BYTES_MAX, file);
        reader.seek(SeekFrom::Start(0))?;
        let Ok((meta, header_checksum, mut valid_bytes)) = read_header(&mut reader, file_bytes) else {
            return Ok(None);
        };
        let (mut digest, mut checksum, mut block) = (SnapshotDigest::default(), header_checksum, Vec::new());
        while let Ok(Some(next)) = read_block(reader.by_ref(), checksum, &mut block) {
            valid_bytes += (FRAME_BYTES + block.len()) as u64;
            digest = digest.followed_by(&block);
            checksum = next;
        }
        let mut writer = reader.into_inner();
        writer.set_len(valid_bytes)?;
        writer.seek(SeekFrom::Start(valid_bytes))?;
        let blocks = Blocks::after(header_checksum, digest, checksum);
        Ok(Some((meta, SnapshotStream { writer, blocks, failed: false })))
    }

    /// Makes the written part durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.writer.sync_data()
    }
}

impl<W: Write> Write for SnapshotStream<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.check()?;
        let (taken, is_full) = self.blocks.take(data);
        if is_full {
            self.blocks.write_to(&mut self.writer).inspect_err(|_| self.failed = true)?;
        }
        Ok(taken)
    }

    /// Flushes the writer. The last, incomplete block is written by [`finish`](Self::finish).
    fn flush(&mut self) -> io::Result<()> {
        self.check()?;
        self.writer.flush()
    }
}
