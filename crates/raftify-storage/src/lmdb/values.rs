//! The encoding of the values in LMDB. Only this file implements it; `docs/disk-format.md` describes it.
//!
//! Every value begins with its format version and a checksum over database, key and content, which detects a
//! value under the wrong key as well as a flipped bit. All numbers are big-endian.

use std::ops::RangeInclusive;

use bytes::Bytes;
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, LogIndex, LogPosition, Members, NodeId,
    SnapshotMeta, Term,
};

use crate::fields::{Damage, Fields, GROUP_ID, put_number, put_position};

/// Version of every value, and of the set of keys.
const VERSION: u8 = 1;

/// Version byte and checksum.
const FRAME_BYTES: usize = 5;

/// One of the two databases, as it is included in every checksum.
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

/// The values other than entries. The numbers are stored and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum MetaKey {
    /// Marks the directory as one of raftify, and its version.
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

/// The key with this number in the only group.
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
