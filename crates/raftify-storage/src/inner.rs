//! Internal functions for fuzzing. Not for users: they change without notice.

use std::hint::black_box;

use raftify_core::{HardState, LogIndex, LogPosition, Members, SnapshotMeta};

use crate::fields::{Fields, put_position};
use crate::layout::StorageKind;
use crate::lmdb::values::{self, MetaKey, Table};
use crate::{snapshot_files, wal};

pub use crate::wal::encode_record;

/// Decodes arbitrary bytes as a record of the segment log: unchanged, and with valid checksums.
pub fn read_record(bytes: &[u8]) {
    wal::read_record(bytes);
}

/// Decodes arbitrary bytes as a value in LMDB with a valid checksum. The first byte selects the key. A value
/// that can be decoded is encoded again, and must be the same.
pub fn read_metadata(bytes: &[u8]) {
    let Some((which, content)) = bytes.split_first() else { return };
    let index = LogIndex(u64::from(*which));
    black_box(values::decode_entry(index, content).is_ok());
    let value = values::frame(Table::Entries, values::entry_key(index), |out| out.extend_from_slice(content));
    if let Ok(view) = values::decode_entry(index, &value) {
        assert_eq!(values::encode_entry(&view.to_entry()), value, "an entry is read as it was written");
    }
    let mut again = Vec::new();
    let read =
        match MetaKey::from_number(u64::from(*which % 8)) {
            Some(MetaKey::Layout) => {
                StorageKind::decode(content).map(|kind| again.extend_from_slice(kind.content()))
            }
            Some(MetaKey::Identity) => values::decode_identity(content)
                .map(|identity| values::encode_identity(&identity, &mut again)),
            Some(MetaKey::HardState) => values::decode_hard_state(content)
                .map(|state: HardState| values::encode_hard_state(&state, &mut again)),
            Some(MetaKey::Snapshot) => values::decode_snapshot_meta(content).map(|meta: SnapshotMeta| {
                let mut written = Vec::new();
                values::encode_snapshot_meta(&meta, &mut written);
                assert_eq!(values::decode_snapshot_meta(&written).ok(), Some(meta));
                again.extend_from_slice(content);
            }),
            Some(MetaKey::Truncated) => values::decode_position(content)
                .map(|position: LogPosition| put_position(&mut again, position)),
            Some(MetaKey::Members | MetaKey::Log | MetaKey::Remembered) | None => {
                return wal::read_metadata(content);
            }
        };
    if read.is_ok() {
        assert_eq!(again, content, "a value is read as it was written");
    }
}

/// A complete snapshot file made of arbitrary bytes, with its metadata and data; `None` if there are too few
/// bytes.
pub fn snapshot_file(bytes: &[u8]) -> Option<(Vec<u8>, SnapshotMeta, Vec<u8>)> {
    let mut fields = Fields(bytes);
    let meta = SnapshotMeta {
        cluster_id: raftify_core::ClusterId(fields.number().ok()?),
        position: fields.position().ok()?,
        members: Members::none(),
    };
    let [size] = fields.array().ok()?;
    let data = fields.0.to_vec();
    let file = snapshot_files::encode_file(&meta, data.chunks(1 + usize::from(size)))?;
    Some((file, meta, data))
}
