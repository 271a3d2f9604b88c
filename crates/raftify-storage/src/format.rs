//! The values in LMDB, to the byte. Nothing but this file knows them; `docs/disk-format.md` tells them to people.
//!
//! Every value begins with its format version and a checksum over database, key and content, so that a value under
//! the wrong key is noticed as well as one with a flipped bit. All numbers are big-endian.

use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use raftify_core::members::MembersDecodeError;
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, LogIndex, LogPosition, Members, NodeId,
    SnapshotMeta, StorageError, Term,
};

/// Version of every value, and of the set of keys.
const VERSION: u8 = 1;

/// Version byte and checksum.
const FRAME_BYTES: usize = 5;

/// The only group so far. It stands in every key, so that many groups can share one database later.
pub(crate) const GROUP_ID: u64 = 0;

/// One of the two databases, as it stands under every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Entries,
    Meta,
}

impl Table {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Table::Entries => "entries",
            Table::Meta => "meta",
        }
    }
}

/// Which storage keeps a directory. The directory says it of itself.
// The numbers stand on disk, as the content of the layout, and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// [`HeedStorage`](crate::HeedStorage): entries and hard state in LMDB.
    Heed = 0,
    /// [`WalStorage`](crate::WalStorage): entries and hard state in a segment log.
    Wal = 1,
}

impl StorageKind {
    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            StorageKind::Heed => "HeedStorage",
            StorageKind::Wal => "WalStorage",
        }
    }

    /// As the command line tool names it.
    pub const fn short_name(self) -> &'static str {
        match self {
            StorageKind::Heed => "heed",
            StorageKind::Wal => "wal",
        }
    }

    /// The content of the layout. That of the first kind is empty.
    pub(crate) const fn content(self) -> &'static [u8] {
        match self {
            StorageKind::Heed => &[],
            StorageKind::Wal => &[StorageKind::Wal as u8],
        }
    }

    pub(crate) fn decode(content: &[u8]) -> Result<StorageKind, Damage> {
        [StorageKind::Heed, StorageKind::Wal]
            .into_iter()
            .find(|kind| kind.content() == content)
            .ok_or_else(|| Damage::Content(format!("this program knows no storage of kind {content:02x?}")))
    }
}

impl fmt::Display for StorageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is kept besides entries. The numbers stand on disk and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum MetaKey {
    /// Shows that this is a raftify directory, and of which version.
    Layout = 0,
    Identity = 1,
    HardState = 2,
    Members = 3,
    Snapshot = 4,
    Truncated = 5,
    /// Of `WalStorage` only: where replaying the log begins.
    Log = 6,
    Remembered = 7,
}

impl MetaKey {
    pub(crate) fn from_number(number: u64) -> Option<MetaKey> {
        use MetaKey::{HardState, Identity, Layout, Log, Members, Remembered, Snapshot, Truncated};
        [Layout, Identity, HardState, Members, Snapshot, Truncated, Log, Remembered]
            .into_iter()
            .find(|key| *key as u64 == number)
    }

    pub(crate) const fn key(self) -> u128 {
        key(self as u64)
    }
}

/// The key of number `number` in the only group.
const fn key(number: u64) -> u128 {
    (GROUP_ID as u128) << 64 | number as u128
}

/// The key of the entry at `index`.
pub(crate) const fn entry_key(index: LogIndex) -> u128 {
    key(index.0)
}

/// The keys of all entries from `first` to `last`.
pub(crate) const fn entry_keys(first: LogIndex, last: LogIndex) -> RangeInclusive<u128> {
    entry_key(first)..=entry_key(last)
}

/// Group id and number of a key.
pub(crate) const fn split_key(key: u128) -> (u64, u64) {
    ((key >> 64) as u64, key as u64)
}

/// Why a value is not what was written.
#[derive(Debug)]
pub(crate) enum Damage {
    Version { found: u32, known: u32 },
    Content(String),
}

impl Damage {
    /// Says what is damaged.
    pub(crate) fn of(self, what: String) -> StorageError {
        match self {
            Damage::Version { found, known } => StorageError::Version { what, found, known },
            Damage::Content(reason) => StorageError::Corrupt { what, reason },
        }
    }
}

impl From<MembersDecodeError> for Damage {
    fn from(error: MembersDecodeError) -> Damage {
        match error {
            MembersDecodeError::Version { found, known, .. } => {
                Damage::Version { found: found.into(), known: known.into() }
            }
            other => Damage::Content(other.to_string()),
        }
    }
}

fn checksum(table: Table, key: u128, content: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(table.name().as_bytes()), &key.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(place, &[VERSION]), content)
}

/// A value to be stored under `key`: `write` appends its content.
pub(crate) fn frame(table: Table, key: u128, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut value = vec![VERSION, 0, 0, 0, 0];
    write(&mut value);
    let checksum = checksum(table, key, &value[FRAME_BYTES..]);
    value[1..FRAME_BYTES].copy_from_slice(&checksum.to_be_bytes());
    value
}

/// The content of a value that was found under `key`.
pub(crate) fn unframe(table: Table, key: u128, value: &[u8]) -> Result<&[u8], Damage> {
    let mut reader = Fields(value);
    let [version] = reader.array()?;
    if version != VERSION {
        return Err(Damage::Version { found: version.into(), known: VERSION.into() });
    }
    let stored = u32::from_be_bytes(reader.array()?);
    let computed = checksum(table, key, reader.0);
    if stored != computed {
        return Err(Damage::Content(format!("its checksum is {computed:08x}, recorded is {stored:08x}")));
    }
    Ok(reader.0)
}

/// Takes fields of fixed length off the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (field, rest) =
            self.0.split_first_chunk().ok_or_else(|| Damage::Content("it is too short".into()))?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn position(&mut self) -> Result<LogPosition, Damage> {
        Ok(LogPosition { term: Term(self.number()?), index: LogIndex(self.number()?) })
    }

    /// `value`, if nothing is left.
    pub(crate) fn whole<T>(&self, value: T) -> Result<T, Damage> {
        match self.0.len() {
            0 => Ok(value),
            left => Err(Damage::Content(format!("{left} bytes follow it"))),
        }
    }
}

pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

pub(crate) fn put_position(out: &mut Vec<u8>, position: LogPosition) {
    put_number(out, position.term.0);
    put_number(out, position.index.0);
}

/// The value of `entry`, under [`entry_key`].
pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    frame(Table::Entries, entry_key(entry.position.index), |out| {
        out.reserve_exact(9 + entry.payload.len());
        out.push(entry.kind.number());
        put_number(out, entry.position.term.0);
        out.extend_from_slice(&entry.payload);
    })
}

/// An entry without its payload: its position, its kind, and where the payload is.
pub(crate) struct EntryView<'a> {
    pub(crate) position: LogPosition,
    kind: EntryKind,
    payload: &'a [u8],
}

impl EntryView<'_> {
    pub(crate) fn to_entry(&self) -> Entry {
        Entry { position: self.position, kind: self.kind, payload: Bytes::copy_from_slice(self.payload) }
    }
}

pub(crate) fn decode_entry(index: LogIndex, value: &[u8]) -> Result<EntryView<'_>, Damage> {
    let mut fields = Fields(unframe(Table::Entries, entry_key(index), value)?);
    let [number] = fields.array()?;
    let kind = EntryKind::from_number(number).ok_or_else(|| {
        Damage::Content(format!("it is of kind {number}, which this program does not know"))
    })?;
    let term = Term(fields.number()?);
    Ok(EntryView { position: LogPosition { term, index }, kind, payload: fields.0 })
}

pub(crate) fn encode_identity(identity: &Identity, out: &mut Vec<u8>) {
    put_number(out, identity.cluster_id.0);
    put_number(out, identity.node_id.get());
    put_number(out, identity.incarnation.0);
}

pub(crate) fn decode_identity(content: &[u8]) -> Result<Identity, Damage> {
    let mut fields = Fields(content);
    let cluster_id = ClusterId(fields.number()?);
    let node_id = NodeId::new(fields.number()?).ok_or_else(|| Damage::Content("its node id is 0".into()))?;
    let incarnation = Incarnation(fields.number()?);
    fields.whole(Identity { cluster_id, node_id, incarnation })
}

pub(crate) fn encode_hard_state(state: &HardState, out: &mut Vec<u8>) {
    put_number(out, state.term.0);
    put_number(out, state.vote.map_or(0, NodeId::get));
    put_number(out, state.commit.0);
}

pub(crate) fn decode_hard_state(content: &[u8]) -> Result<HardState, Damage> {
    let mut fields = Fields(content);
    let term = Term(fields.number()?);
    let vote = NodeId::new(fields.number()?);
    let commit = LogIndex(fields.number()?);
    fields.whole(HardState { term, vote, commit })
}

pub(crate) fn decode_position(content: &[u8]) -> Result<LogPosition, Damage> {
    let mut fields = Fields(content);
    let position = fields.position()?;
    fields.whole(position)
}

pub(crate) fn encode_snapshot_meta(meta: &SnapshotMeta, out: &mut Vec<u8>) {
    put_number(out, meta.cluster_id.0);
    put_position(out, meta.position);
    out.extend_from_slice(&meta.members.encode());
}

pub(crate) fn decode_snapshot_meta(content: &[u8]) -> Result<SnapshotMeta, Damage> {
    let mut fields = Fields(content);
    let cluster_id = ClusterId(fields.number()?);
    let position = fields.position()?;
    Ok(SnapshotMeta { cluster_id, position, members: Members::decode(fields.0)? })
}
