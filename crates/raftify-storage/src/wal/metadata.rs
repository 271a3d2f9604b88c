//! The rarely written part of the stored state: written into the record of the log like everything else, and
//! then copied to LMDB, so that the record can be recycled. This module has its type, its encoding in a
//! record, and its keys in LMDB.

use std::sync::Arc;

use raftify_core::storage::StoredState;
use raftify_core::{Identity, LogPosition, Members, Remembered, SnapshotMeta, StorageError};

use crate::fields::{Damage, Fields, put_number, put_position};
use crate::lmdb::Tables;
use crate::lmdb::values::{self, MetaKey};

/// All fields of [`StoredState`] except log and hard state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) identity: Option<Identity>,
    pub(crate) members: Option<Members>,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) truncated: LogPosition,
    pub(crate) remembered: Arc<Remembered>,
}

const IDENTITY: u8 = 1;
const MEMBERS: u8 = 2;
const SNAPSHOT: u8 = 4;
const REMEMBERED: u8 = 8;

impl Metadata {
    pub(super) fn of(state: &StoredState) -> Metadata {
        Metadata {
            identity: state.identity,
            members: state.members.clone(),
            snapshot: state.snapshot.clone(),
            truncated: state.truncated,
            remembered: Arc::clone(&state.remembered),
        }
    }

    /// Whether both states have the same metadata.
    pub(super) fn same(one: &StoredState, other: &StoredState) -> bool {
        one.truncated == other.truncated
            && one.identity == other.identity
            && one.members == other.members
            && one.snapshot == other.snapshot
            && one.remembered == other.remembered
    }

    /// The whole encoding: flags, truncated position, then the fields that the flags say are present, each
    /// with its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0];
        put_position(&mut out, self.truncated);
        let mut put = |flag: u8, content: Vec<u8>| {
            out[0] |= flag;
            put_number(&mut out, content.len() as u64);
            out.extend_from_slice(&content);
        };
        if let Some(identity) = &self.identity {
            let mut content = Vec::new();
            values::encode_identity(identity, &mut content);
            put(IDENTITY, content);
        }
        if let Some(members) = &self.members {
            put(MEMBERS, members.encode().to_vec());
        }
        if let Some(snapshot) = &self.snapshot {
            let mut content = Vec::new();
            values::encode_snapshot_meta(snapshot, &mut content);
            put(SNAPSHOT, content);
        }
        if *self.remembered != Remembered::default() {
            put(REMEMBERED, self.remembered.encode().to_vec());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Metadata, Damage> {
        let mut fields = Fields(bytes);
        let [flags] = fields.array()?;
        if flags & !(IDENTITY | MEMBERS | SNAPSHOT | REMEMBERED) != 0 {
            return Err(Damage::Content(format!("its metadata have unknown flags {flags:#x}")));
        }
        let truncated = fields.position()?;
        let mut take = |flag: u8| -> Result<Option<&[u8]>, Damage> {
            if flags & flag == 0 {
                return Ok(None);
            }
            let length = fields.number()?;
            let split = usize::try_from(length).ok().and_then(|at| fields.0.split_at_checked(at));
            let (content, rest) =
                split.ok_or_else(|| Damage::Content("its metadata are too short".into()))?;
            fields.0 = rest;
            Ok(Some(content))
        };
        let metadata = Metadata {
            identity: take(IDENTITY)?.map(values::decode_identity).transpose()?,
            members: take(MEMBERS)?.map(Members::decode).transpose()?,
            snapshot: take(SNAPSHOT)?.map(values::decode_snapshot_meta).transpose()?,
            truncated,
            remembered: take(REMEMBERED)?.map(Remembered::decode).transpose()?.unwrap_or_default().into(),
        };
        fields.whole(metadata)
    }
}

/// Where replaying the log begins, and its minimum end. Everything before it is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogStart {
    /// The first segment that is needed.
    pub(super) segment: u64,
    /// The sequence number of its first record.
    pub(super) sequence: u64,
    /// The record that the metadata is from, 0 for none. The log must contain it and all records before it.
    pub(super) as_of: u64,
}

impl LogStart {
    pub(crate) fn decode(content: &[u8]) -> Result<LogStart, Damage> {
        let mut fields = Fields(content);
        let (segment, sequence, as_of) = (fields.number()?, fields.number()?, fields.number()?);
        fields.whole(LogStart { segment, sequence, as_of })
    }
}

/// Keeps metadata and the start of the log together: both change atomically.
pub(crate) trait MetadataStore: Send + 'static {
    /// The stored content. The start is `None` if the log was never created.
    fn load(&self) -> Result<(Metadata, Option<LogStart>), StorageError>;

    /// Durable when it returns.
    fn store(&self, metadata: &Metadata, start: LogStart) -> Result<(), StorageError>;

    /// Checks that the path still leads to the store.
    fn check(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// In LMDB, under the same keys as in `HeedStorage`.
impl MetadataStore for Tables {
    fn load(&self) -> Result<(Metadata, Option<LogStart>), StorageError> {
        self.environment().read(|txn| {
            self.check_meta_keys(txn)?;
            let metadata = Metadata {
                identity: self.meta(txn, MetaKey::Identity, values::decode_identity)?,
                members: self.meta(txn, MetaKey::Members, |content| Ok(Members::decode(content)?))?,
                snapshot: self.meta(txn, MetaKey::Snapshot, values::decode_snapshot_meta)?,
                truncated: self.truncated(txn)?,
                remembered: self.remembered(txn)?,
            };
            let start = self.meta(txn, MetaKey::Log, LogStart::decode)?;
            Ok((metadata, start))
        })
    }

    fn store(&self, metadata: &Metadata, start: LogStart) -> Result<(), StorageError> {
        self.environment().write(|txn| {
            if let Some(identity) = &metadata.identity {
                self.put_meta(txn, MetaKey::Identity, |out| values::encode_identity(identity, out))?;
            }
            if let Some(members) = &metadata.members {
                self.put_meta(txn, MetaKey::Members, |out| out.extend_from_slice(&members.encode()))?;
            }
            if let Some(snapshot) = &metadata.snapshot {
                self.put_meta(txn, MetaKey::Snapshot, |out| values::encode_snapshot_meta(snapshot, out))?;
            }
            if *metadata.remembered != Remembered::default() {
                let encoded = metadata.remembered.encode();
                self.put_meta(txn, MetaKey::Remembered, |out| out.extend_from_slice(&encoded))?;
            }
            self.put_meta(txn, MetaKey::Truncated, |out| put_position(out, metadata.truncated))?;
            self.put_meta(txn, MetaKey::Log, |out| {
                put_number(out, start.segment);
                put_number(out, start.sequence);
                put_number(out, start.as_of);
            })
        })
    }

    fn check(&self) -> Result<(), StorageError> {
        self.environment().check()
    }
}
