//! The encoding of the records of a segment. One record is one call of `write`, and is stored completely or
//! not at all. `docs/disk-format.md` describes it.

use bytes::Bytes;
use raftify_core::{Entry, EntryKind, HardState, LogIndex, LogPosition, NodeId, Term};

use super::metadata::Metadata;
use super::segment::Generation;
use crate::fields::{Damage, Fields, put_number};

/// The size of a record without metadata and entries.
pub(super) const HEADER_BYTES: usize = 64;

/// Records begin at multiples of this many bytes.
pub(super) const ALIGNMENT: u64 = 8;

/// Checksum, length of the payload, kind, term.
pub(super) const ENTRY_FRAME_BYTES: usize = 4 + 4 + 1 + 8;

/// The only flag.
const RESET: u32 = 1;

/// The changes of one call of `write`.
#[derive(Debug)]
pub(super) struct Change<'a> {
    /// All earlier entries are dropped.
    pub(super) reset: bool,
    /// The entries that replace everything from the index of the first one on. Without a gap.
    pub(super) entries: Vec<&'a Entry>,
    /// The hard state after the change.
    pub(super) hard_state: HardState,
    /// The metadata after the change, if it changed.
    pub(super) metadata: Option<Vec<u8>>,
}

impl Change<'_> {
    /// The length of its record, without the padding after it.
    pub(super) fn record_bytes(&self) -> u64 {
        let metadata = self.metadata.as_ref().map_or(0, Vec::len);
        let entries: usize = self.entries.iter().map(|entry| entry_bytes(entry)).sum();
        (HEADER_BYTES + metadata + entries) as u64
    }

    /// Encodes its record into the empty `out`. The caller ensures that its length fits into 32 bits.
    pub(super) fn encode(&self, generation: Generation, sequence: u64, out: &mut Vec<u8>) {
        out.resize(HEADER_BYTES, 0);
        out.extend_from_slice(self.metadata.as_deref().unwrap_or_default());
        for entry in &self.entries {
            let begin = out.len();
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&(entry.payload.len() as u32).to_be_bytes());
            out.push(entry.kind.number());
            put_number(out, entry.position.term.0);
            out.extend_from_slice(&entry.payload);
            let checksum = entry_checksum(generation, entry.position.index, &out[begin + 4..]);
            out[begin..begin + 4].copy_from_slice(&checksum.to_be_bytes());
        }
        let body = generation.checksum(&[&out[HEADER_BYTES..]]);
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&body.to_be_bytes());
        header.extend_from_slice(&((out.len() - HEADER_BYTES) as u32).to_be_bytes());
        header.extend_from_slice(&(self.entries.len() as u32).to_be_bytes());
        put_number(&mut header, sequence);
        put_number(&mut header, self.entries.first().map_or(0, |entry| entry.position.index.0));
        put_number(&mut header, self.hard_state.term.0);
        put_number(&mut header, self.hard_state.vote.map_or(0, NodeId::get));
        put_number(&mut header, self.hard_state.commit.0);
        let metadata = self.metadata.as_ref().map_or(0, Vec::len) as u32;
        header.extend_from_slice(&metadata.to_be_bytes());
        header.extend_from_slice(&(if self.reset { RESET } else { 0 }).to_be_bytes());
        let checksum = generation.checksum(&[&header[4..]]);
        header[..4].copy_from_slice(&checksum.to_be_bytes());
        out[..HEADER_BYTES].copy_from_slice(&header);
    }
}

pub(super) fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_FRAME_BYTES + entry.payload.len()
}

fn entry_checksum(generation: Generation, index: LogIndex, rest: &[u8]) -> u32 {
    generation.checksum(&[&index.0.to_be_bytes(), rest])
}

/// The header of a record whose checksum matches the generation of the segment.
#[derive(Debug)]
pub(super) struct Header {
    body_checksum: u32,
    body_bytes: u32,
    pub(super) entries: u32,
    pub(super) sequence: u64,
    pub(super) first: LogIndex,
    pub(super) hard_state: HardState,
    metadata_bytes: u32,
    flags: u32,
}

impl Header {
    /// The header at the beginning of `bytes`, or the reason why there is none.
    pub(super) fn decode(generation: Generation, bytes: &[u8]) -> Result<Header, Damage> {
        let header =
            bytes.get(..HEADER_BYTES).ok_or_else(|| Damage::Content("no record fits there".into()))?;
        let mut fields = Fields(header);
        let stored = u32::from_be_bytes(fields.array()?);
        let computed = generation.checksum(&[fields.0]);
        if stored != computed {
            let reason = format!("its header's checksum is {computed:08x}, recorded is {stored:08x}");
            return Err(Damage::Content(reason));
        }
        Ok(Header {
            body_checksum: u32::from_be_bytes(fields.array()?),
            body_bytes: u32::from_be_bytes(fields.array()?),
            entries: u32::from_be_bytes(fields.array()?),
            sequence: fields.number()?,
            first: LogIndex(fields.number()?),
            hard_state: HardState {
                term: Term(fields.number()?),
                vote: NodeId::new(fields.number()?),
                commit: LogIndex(fields.number()?),
            },
            metadata_bytes: u32::from_be_bytes(fields.array()?),
            flags: u32::from_be_bytes(fields.array()?),
        })
    }

    /// The sequence number at its offset in a header, checked or not.
    pub(super) fn sequence_at(bytes: &[u8]) -> Option<u64> {
        bytes.get(16..24).and_then(|field| Fields(field).number().ok())
    }

    /// The length of the record, without the padding after it.
    pub(super) fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.body_bytes)
    }

    /// The body, where `bytes` begin with the record.
    pub(super) fn body<'a>(&self, generation: Generation, bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
        let body = bytes[HEADER_BYTES..].get(..self.body_bytes as usize);
        let body = body.ok_or_else(|| Damage::Content("it is longer than the segment".into()))?;
        let computed = generation.checksum(&[body]);
        let stored = self.body_checksum;
        if stored != computed && !raftify_core::mutated!(TornRecordIsAccepted) {
            let reason = format!("its content's checksum is {computed:08x}, recorded is {stored:08x}");
            return Err(Damage::Content(reason));
        }
        Ok(body)
    }

    /// Decodes a body whose checksum was valid. Any error in it now is not a torn write.
    pub(super) fn content(&self, body: &[u8]) -> Result<Content, Damage> {
        if self.flags & !RESET != 0 {
            return Err(Damage::Content(format!("it has unknown flags {:#x}", self.flags)));
        }
        let split = body.split_at_checked(self.metadata_bytes as usize);
        let (metadata, mut rest) = split.ok_or_else(|| Damage::Content("it is too short".into()))?;
        let metadata = match metadata {
            [] => None,
            bytes => Some(Metadata::decode(bytes)?),
        };
        let end = self.first.0.checked_add(u64::from(self.entries));
        let end = end.ok_or_else(|| Damage::Content(format!("its first index is {}", self.first)))?;
        let mut entries = Vec::new();
        for index in self.first.0..end {
            let offset = HEADER_BYTES + (body.len() - rest.len());
            let (frame, after) = EntryFrame::split(rest)?;
            frame.kind()?;
            entries.push(EntryInRecord {
                position: LogPosition { term: frame.term, index: LogIndex(index) },
                offset,
                payload_bytes: frame.payload_bytes,
            });
            rest = after;
        }
        if !rest.is_empty() {
            return Err(Damage::Content(format!("{} bytes follow its entries", rest.len())));
        }
        Ok(Content { reset: self.flags & RESET != 0, metadata, entries })
    }
}

/// The content of a record, without the payloads.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) reset: bool,
    pub(super) metadata: Option<Metadata>,
    pub(super) entries: Vec<EntryInRecord>,
}

/// An entry, and the offset of its frame.
#[derive(Debug)]
pub(super) struct EntryInRecord {
    pub(super) position: LogPosition,
    pub(super) offset: usize,
    pub(super) payload_bytes: u32,
}

struct EntryFrame<'a> {
    checksum: u32,
    kind: u8,
    term: Term,
    payload_bytes: u32,
    /// All bytes that the checksum covers.
    checked: &'a [u8],
}

impl EntryFrame<'_> {
    fn split(bytes: &[u8]) -> Result<(EntryFrame<'_>, &[u8]), Damage> {
        let mut fields = Fields(bytes);
        let checksum = u32::from_be_bytes(fields.array()?);
        let checked = fields.0;
        let payload_bytes = u32::from_be_bytes(fields.array()?);
        let [kind] = fields.array()?;
        let term = Term(fields.number()?);
        let split = fields.0.split_at_checked(payload_bytes as usize);
        let (_, rest) = split.ok_or_else(|| Damage::Content("its payload is cut off".into()))?;
        let frame = EntryFrame {
            checksum,
            kind,
            term,
            payload_bytes,
            checked: &checked[..checked.len() - rest.len()],
        };
        Ok((frame, rest))
    }

    fn kind(&self) -> Result<EntryKind, Damage> {
        let number = self.kind;
        EntryKind::from_number(number).ok_or_else(|| {
            Damage::Content(format!("an entry is of kind {number}, which this program does not know"))
        })
    }
}

/// The entry with `index`, whose frame is all of `bytes`. Its payload shares them.
pub(super) fn decode_entry(generation: Generation, index: LogIndex, bytes: &Bytes) -> Result<Entry, Damage> {
    let (frame, rest) = EntryFrame::split(bytes)?;
    let computed = entry_checksum(generation, index, frame.checked);
    let is_damaged = frame.checksum != computed && !raftify_core::mutated!(EntryChecksumIsNotChecked);
    if is_damaged || !rest.is_empty() {
        return Err(Damage::Content(format!(
            "its checksum is {computed:08x}, recorded is {:08x}",
            frame.checksum
        )));
    }
    Ok(Entry {
        position: LogPosition { term: frame.term, index },
        kind: frame.kind()?,
        payload: bytes.slice(ENTRY_FRAME_BYTES..),
    })
}

/// Decodes the whole record: if recovery accepts a record, its entries can be read.
#[cfg(feature = "testing")]
pub(super) fn read(generation: Generation, bytes: &[u8]) {
    let Ok(header) = Header::decode(generation, bytes) else { return };
    let Ok(body) = header.body(generation, bytes) else { return };
    let Ok(content) = header.content(body) else { return };
    let record = Bytes::copy_from_slice(&bytes[..HEADER_BYTES + body.len()]);
    for entry in content.entries {
        let end = entry.offset + ENTRY_FRAME_BYTES + entry.payload_bytes as usize;
        // Its own checksum may be invalid; its offset is valid.
        let _ = decode_entry(generation, entry.position.index, &record.slice(entry.offset..end));
    }
}

/// The same bytes as a record with a valid header and valid checksums, if there are enough of them.
#[cfg(feature = "testing")]
pub(super) fn with_checksums(generation: Generation, bytes: &[u8]) -> Vec<u8> {
    let mut record = bytes.to_vec();
    if record.len() >= HEADER_BYTES {
        let body_bytes = (record.len() - HEADER_BYTES) as u32;
        record[8..12].copy_from_slice(&body_bytes.to_be_bytes());
        let body = generation.checksum(&[&record[HEADER_BYTES..]]);
        record[4..8].copy_from_slice(&body.to_be_bytes());
        let header = generation.checksum(&[&record[4..HEADER_BYTES]]);
        record[..4].copy_from_slice(&header.to_be_bytes());
    }
    record
}
