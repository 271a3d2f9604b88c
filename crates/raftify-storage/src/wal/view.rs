//! Reads a segment log while another process writes it, without changing it.
//!
//! Needed data is never destroyed before LMDB records durably that the log begins later. So a pass over the
//! log is valid if the beginning is unchanged when the pass is over. A pass may find the writer half way: in
//! a record, which is then the end, or between segments, which then looks like damage. Damage stays where it
//! is, while the writer continues: if two passes find the same damage, it is real.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use raftify_core::storage::StoredState;
use raftify_core::{Entry, LogIndex, StorageError};

use super::metadata::MetadataStore;
use super::offsets::EntryOffsets;
use super::reader::{SegmentReader, Shared};
use super::recovery::{self, Recovered};
use crate::files::ReadOnlySystem;
use crate::layout::segments;
use crate::lmdb::Tables;

#[cfg(test)]
mod tests;

/// The maximum number of passes.
const LOOKS_MAX: usize = 32;

/// The last observed state of a segment log.
pub(crate) struct SegmentView<M = Tables> {
    reader: SegmentReader,
    metadata: M,
    /// The first segment that was needed then; `None` before the first pass.
    seen_from: Mutex<Option<FirstSegment>>,
}

/// `None` if the log was not created.
type FirstSegment = Option<u64>;

impl SegmentView {
    /// The view of the log in `data_directory`.
    pub(crate) fn new(data_directory: &Path, metadata: Tables) -> SegmentView {
        let shared = Shared::new(data_directory.join(segments::DIRECTORY), Arc::new(ReadOnlySystem), 0);
        SegmentView::of(shared, metadata)
    }
}

impl<M: MetadataStore> SegmentView<M> {
    pub(super) fn of(shared: Shared, metadata: M) -> SegmentView<M> {
        SegmentView {
            reader: SegmentReader { shared: Arc::new(shared) },
            metadata,
            seen_from: Mutex::default(),
        }
    }

    /// Reads and checks everything.
    pub(crate) fn load(&self) -> Result<StoredState, StorageError> {
        // Two passes in two threads would show the readers a mixture of both.
        let mut seen_from = self.seen_from.lock();
        let shared = &self.reader.shared;
        let mut before = None;
        for _ in 0..LOOKS_MAX {
            let (metadata, start) = self.metadata.load()?;
            let first = start.map(|start| start.segment);
            let found = match start {
                Some(start) => recovery::recover(shared, metadata, start)
                    .map(|Recovered { state, offsets, held, .. }| (state, offsets, held)),
                None => recovery::check_not_begun(shared, &metadata)
                    .map(|_| (StoredState::default(), EntryOffsets::default(), BTreeMap::new())),
            };
            if self.first_segment()? != first {
                continue;
            }
            match found {
                Ok((state, offsets, held)) => {
                    shared.show(&state, offsets, held);
                    *seen_from = Some(first);
                    return Ok(state);
                }
                Err(error) => {
                    let text = error.to_string();
                    if before.as_ref() == Some(&text) {
                        return Err(error);
                    }
                    before = Some(text);
                }
            }
        }
        Err(StorageError::Changing { path: shared.directory.clone() })
    }

    /// Reads the log that `load` found, or the present log if that is gone.
    pub(crate) fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        for _ in 0..LOOKS_MAX {
            let seen_from = *self.seen_from.lock();
            let Some(first) = seen_from else {
                self.load()?;
                continue;
            };
            match self.reader.read(from, until, bytes_max) {
                // The segment may be deleted, or part of another generation by now.
                Err(StorageError::Corrupt { .. } | StorageError::Io { .. })
                    if self.first_segment()? != first =>
                {
                    self.load()?;
                }
                result => return result,
            }
        }
        Err(StorageError::Changing { path: self.reader.directory().clone() })
    }

    fn first_segment(&self) -> Result<FirstSegment, StorageError> {
        Ok(self.metadata.load()?.1.map(|start| start.segment))
    }
}
