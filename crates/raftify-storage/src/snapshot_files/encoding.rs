//! The bytes of a snapshot file: header, blocks with chained checksums, end mark.

use std::io::{self, Read, Seek, SeekFrom};

use raftify_core::{ClusterId, Members, SnapshotDigest, SnapshotMeta};

use crate::fields::{Damage, Fields, GROUP_ID, put_number, put_position};

const MAGIC: [u8; 8] = *b"raftsnap";
const VERSION: u32 = 2;

/// Magic, version, group id, cluster id, position, length of the members.
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 16 + 4;

/// Length and checksum of a block.
pub(super) const FRAME_BYTES: usize = 8;

/// The maximum number of data bytes in a block: large enough that the cost of checksums does not matter,
/// small enough to be read at once.
pub(super) const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// A length of zero, the length of the data, the checksum of everything before, that of the data alone, the
/// end mark's own checksum.
pub(super) const END_BYTES: usize = 4 + 8 + 4 + 4 + 4;

/// The header, which ends with its checksum, and that checksum.
pub(super) fn encode_header(meta: &SnapshotMeta) -> io::Result<(Vec<u8>, u32)> {
    let members = meta.members.encode();
    let length = u32::try_from(members.len()).map_err(io::Error::other)?;
    let mut header = Vec::with_capacity(HEADER_BYTES + members.len() + 4);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_be_bytes());
    put_number(&mut header, GROUP_ID);
    put_number(&mut header, meta.cluster_id.0);
    put_position(&mut header, meta.position);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&members);
    let checksum = crc32c::crc32c(&header);
    header.extend_from_slice(&checksum.to_be_bytes());
    Ok((header, checksum))
}

/// The end mark after this data. Its own checksum begins with that of the header, so that it is valid for no
/// other snapshot.
pub(super) fn encode_end(header_checksum: u32, digest: SnapshotDigest, checksum: u32) -> [u8; END_BYTES] {
    let mut end = [0; END_BYTES];
    end[4..12].copy_from_slice(&digest.data_bytes.to_be_bytes());
    end[12..16].copy_from_slice(&checksum.to_be_bytes());
    end[16..20].copy_from_slice(&digest.crc32c.to_be_bytes());
    let own = crc32c::crc32c_append(header_checksum, &end[..20]);
    end[20..].copy_from_slice(&own.to_be_bytes());
    end
}

/// Frames the data of one snapshot in blocks.
pub(super) struct Blocks {
    /// The frame of the next block, not filled in yet, and its data so far.
    block: Vec<u8>,
    /// The digest of all blocks before.
    digest: SnapshotDigest,
    header_checksum: u32,
    /// The checksum of everything before this block: no block is valid at another offset or in another file.
    checksum: u32,
}

impl Blocks {
    /// The blocks after a header with this checksum.
    pub(super) fn new(header_checksum: u32) -> Blocks {
        Blocks::after(header_checksum, SnapshotDigest::default(), header_checksum)
    }

    /// The blocks after those with this digest, of which the last one has this checksum.
    pub(super) fn after(header_checksum: u32, digest: SnapshotDigest, checksum: u32) -> Blocks {
        let mut block = Vec::with_capacity(FRAME_BYTES + BLOCK_BYTES_MAX);
        block.resize(FRAME_BYTES, 0);
        Blocks { block, digest, header_checksum, checksum }
    }

    /// The digest of the data in finished blocks.
    pub(super) fn digest(&self) -> SnapshotDigest {
        self.digest
    }

    /// The digest of all data.
    pub(super) fn digest_of_all(&self) -> SnapshotDigest {
        self.digest.followed_by(&self.block[FRAME_BYTES..])
    }

    /// Takes as much of `data` as the current block has room for. Returns how much that is, and whether the
    /// block is full.
    pub(super) fn take(&mut self, data: &[u8]) -> (usize, bool) {
        let room = FRAME_BYTES + BLOCK_BYTES_MAX - self.block.len();
        let taken = room.min(data.len());
        self.block.extend_from_slice(&data[..taken]);
        (taken, taken == room)
    }

    /// Writes the current block, unless it is empty. Returns how many bytes were written. After an error, no
    /// further block can be written.
    pub(super) fn write_to(&mut self, writer: &mut (impl io::Write + ?Sized)) -> io::Result<u64> {
        let length = self.block.len() - FRAME_BYTES;
        if length == 0 {
            return Ok(0);
        }
        let length_bytes = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
        let checksum = crc32c::crc32c_append(self.checksum, &length_bytes);
        self.checksum = crc32c::crc32c_append(checksum, &self.block[FRAME_BYTES..]);
        self.block[..4].copy_from_slice(&length_bytes);
        self.block[4..FRAME_BYTES].copy_from_slice(&self.checksum.to_be_bytes());
        writer.write_all(&self.block)?;
        self.digest = self.digest.followed_by(&self.block[FRAME_BYTES..]);
        let written = self.block.len() as u64;
        self.block.truncate(FRAME_BYTES);
        Ok(written)
    }

    /// The end mark after all finished blocks.
    pub(super) fn end(&self) -> [u8; END_BYTES] {
        encode_end(self.header_checksum, self.digest, self.checksum)
    }
}

/// Why a part of a file could not be read.
pub(super) enum Unreadable {
    Io(io::Error),
    Damaged(Damage),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Unreadable::Damaged(Damage::Content("it is too short".into())),
            _ => Unreadable::Io(error),
        }
    }
}

impl From<Damage> for Unreadable {
    fn from(damage: Damage) -> Unreadable {
        Unreadable::Damaged(damage)
    }
}

fn damaged(reason: impl Into<String>) -> Unreadable {
    Unreadable::Damaged(Damage::Content(reason.into()))
}

/// Reads the block after the one with this chained checksum, and returns the checksum of this one; `None` at
/// an end mark, of which the length is read then. Damage is an error of kind `InvalidData`.
pub(super) fn read_block(file: &mut impl Read, before: u32, block: &mut Vec<u8>) -> io::Result<Option<u32>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut length_bytes = [0; 4];
    file.read_exact(&mut length_bytes)?;
    let length = u32::from_be_bytes(length_bytes) as usize;
    if length == 0 {
        return Ok(None);
    }
    if length > BLOCK_BYTES_MAX {
        return Err(invalid(format!("a block claims to have {length} bytes")));
    }
    let mut stored = [0; 4];
    file.read_exact(&mut stored)?;
    block.resize(length, 0);
    file.read_exact(block)?;
    let mut checksum = crc32c::crc32c_append(crc32c::crc32c_append(before, &length_bytes), block);
    if raftify_core::mutated!(SnapshotChecksumIsNotChecked) {
        checksum = u32::from_be_bytes(stored);
    }
    if u32::from_be_bytes(stored) != checksum {
        return Err(invalid("the checksum of a block does not match".to_owned()));
    }
    Ok(Some(checksum))
}

/// The metadata, the checksum of the header, and the offset of the first block.
pub(super) fn read_header(
    file: &mut impl Read,
    file_bytes: u64,
) -> Result<(SnapshotMeta, u32, u64), Unreadable> {
    let mut header = vec![0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    if fields.array()? != MAGIC {
        return Err(damaged("it is no snapshot file of raftify"));
    }
    let found = u32::from_be_bytes(fields.array()?);
    if found != VERSION {
        return Err(Unreadable::Damaged(Damage::Version { found, known: VERSION }));
    }
    let group_id = fields.number()?;
    let cluster_id = ClusterId(fields.number()?);
    let position = fields.position()?;
    let members_bytes = u32::from_be_bytes(fields.array()?) as usize;
    if members_bytes as u64 > file_bytes {
        return Err(damaged(format!("its header claims {members_bytes} bytes of members")));
    }
    header.resize(HEADER_BYTES + members_bytes + 4, 0);
    file.read_exact(&mut header[HEADER_BYTES..])?;
    let (content, stored) = header.split_at(HEADER_BYTES + members_bytes);
    let checksum = crc32c::crc32c(content);
    if stored != checksum.to_be_bytes() {
        return Err(damaged("the checksum of its header does not match"));
    }
    if group_id != GROUP_ID {
        return Err(damaged(format!("it is of group {group_id}, this program knows only group {GROUP_ID}")));
    }
    let members = Members::decode(&content[HEADER_BYTES..]).map_err(Damage::from)?;
    Ok((SnapshotMeta { cluster_id, position, members }, checksum, header.len() as u64))
}

/// The digest of the data, from the end mark in the last bytes of the file.
pub(super) fn read_end(
    file: &mut (impl Read + Seek),
    file_bytes: u64,
    header_checksum: u32,
    begin: u64,
) -> Result<SnapshotDigest, Unreadable> {
    let cut_off = || damaged("its end mark is missing: the file is cut off or overwritten");
    let at = file_bytes.checked_sub(END_BYTES as u64).filter(|at| *at >= begin).ok_or_else(cut_off)?;
    file.seek(SeekFrom::Start(at))?;
    let mut end = [0; END_BYTES];
    file.read_exact(&mut end)?;
    let mut fields = Fields(&end[4..]);
    let data_bytes = fields.number()?;
    let checksum = u32::from_be_bytes(fields.array()?);
    let digest = SnapshotDigest { data_bytes, crc32c: u32::from_be_bytes(fields.array()?) };
    if end != encode_end(header_checksum, digest, checksum) {
        return Err(cut_off());
    }
    Ok(digest)
}

/// A whole file with these blocks, for fuzzing; `None` if one of them is too large.
#[cfg(feature = "testing")]
pub(crate) fn encode_file<'a>(
    meta: &SnapshotMeta,
    blocks: impl Iterator<Item = &'a [u8]>,
) -> Option<Vec<u8>> {
    let (mut file, header_checksum) = encode_header(meta).ok()?;
    let (mut checksum, mut digest) = (header_checksum, SnapshotDigest::default());
    for block in blocks.filter(|block| !block.is_empty()) {
        let length = u32::try_from(block.len()).ok()?.to_be_bytes();
        checksum = crc32c::crc32c_append(crc32c::crc32c_append(checksum, &length), block);
        digest = digest.followed_by(block);
        file.extend_from_slice(&length);
        file.extend_from_slice(&checksum.to_be_bytes());
        file.extend_from_slice(block);
    }
    file.extend_from_slice(&encode_end(header_checksum, digest, checksum));
    Some(file)
}
