//! Checks the whole log of a directory that no process writes to: each record, and each entry by its own
//! checksum, which recovery leaves to the reader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::StoredState;
use raftify_core::{Entry, LogIndex, StorageError};

use super::metadata::{LogStart, Metadata};
use super::reader::{SegmentReader, Shared};
use super::recovery::{self, Recovered};
use crate::files::ReadOnlySystem;
use crate::layout::segments;

/// How many bytes of entries are read at once.
const SLICE_BYTES: u64 = 4 << 20;

/// A log that could be read to its end.
pub(crate) struct Inspected {
    pub(crate) state: StoredState,
    /// The record that was started after the last one, if there is one.
    pub(crate) torn: Option<String>,
    /// Files that the next start removes.
    pub(crate) leftovers: Vec<PathBuf>,
    /// The entries that cannot be read.
    pub(crate) damaged: Vec<StorageError>,
    /// The size of all segments.
    pub(crate) segment_bytes: u64,
}

/// Reads the log that begins at `start`, and calls `visit` with each entry. It does not check whether hard
/// state, log and snapshot fit together.
pub(crate) fn inspect(
    data_directory: &Path,
    metadata: Metadata,
    start: Option<LogStart>,
    visit: &mut dyn FnMut(&Entry),
) -> Result<Inspected, StorageError> {
    let shared = Shared::new(data_directory.join(segments::DIRECTORY), Arc::new(ReadOnlySystem), 0);
    let Some(start) = start else {
        let leftovers = recovery::check_not_begun(&shared, &metadata)?;
        let state = StoredState::default();
        return Ok(Inspected { state, torn: None, leftovers, damaged: Vec::new(), segment_bytes: 0 });
    };
    let Recovered { state, offsets, held, ahead, leftovers, torn, .. } =
        recovery::read_log(&shared, metadata, start)?;
    let torn = torn.map(|torn| torn.to_string());
    let segments = held.values().map(|held| &held.segment).chain(&ahead);
    let segment_bytes = segments.map(|segment| segment.size_bytes).sum();
    shared.show(&state, offsets, held);
    let reader = SegmentReader { shared: Arc::new(shared) };
    let mut damaged = Vec::new();
    let (mut next, end) = (state.truncated.index.next(), state.last.index.next());
    while next < end {
        match reader.read(next, end, SLICE_BYTES) {
            Ok(entries) => {
                entries.iter().for_each(&mut *visit);
                next = LogIndex(next.0 + entries.len().max(1) as u64);
            }
            Err(StorageError::Corrupt { .. } | StorageError::Version { .. }) => {
                next = skip_damaged(&reader, next, end, visit, &mut damaged)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Inspected { state, torn, leftovers, damaged, segment_bytes })
}

/// Visits the entries from `next` on one by one, up to the first that is damaged, and returns the index after
/// that one.
fn skip_damaged(
    reader: &SegmentReader,
    mut next: LogIndex,
    end: LogIndex,
    visit: &mut dyn FnMut(&Entry),
    damaged: &mut Vec<StorageError>,
) -> Result<LogIndex, StorageError> {
    while next < end {
        let read = reader.read(next, next.next(), u64::MAX);
        next = next.next();
        match read {
            Ok(entries) => entries.iter().for_each(&mut *visit),
            Err(error @ (StorageError::Corrupt { .. } | StorageError::Version { .. })) => {
                damaged.push(error);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(next)
}
