//! Functions for benchmarks and fuzzing of records and metadata.

use raftify_core::Entry;

use super::metadata::Metadata;
use super::record::{self, Change};
use super::segment::Generation;

/// The record of a write that appends `entries`, into the empty `out`: for benches.
pub fn encode_record(entries: &[Entry], out: &mut Vec<u8>) {
    let hard_state = raftify_core::HardState::default();
    let change = Change { reset: false, entries: entries.iter().collect(), hard_state, metadata: None };
    change.encode(Generation(1), 1, out);
}

/// Decodes arbitrary bytes as a record: unchanged, and with valid checksums.
pub(crate) fn read_record(bytes: &[u8]) {
    let generation = Generation(1);
    record::read(generation, bytes);
    record::read(generation, &record::with_checksums(generation, bytes));
}

/// Decodes arbitrary bytes as the metadata in a record. Metadata that can be decoded is encoded again, and
/// must be the same.
pub(crate) fn read_metadata(bytes: &[u8]) {
    if let Ok(metadata) = Metadata::decode(bytes) {
        assert_eq!(Metadata::decode(&metadata.encode()).ok(), Some(metadata));
    }
}
