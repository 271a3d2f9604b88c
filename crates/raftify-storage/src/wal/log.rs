//! The segment log. It has one writer, which appends records, makes them durable, and releases segments that
//! are no longer needed; and any number of readers, which find the offset of an entry in a table in memory
//! and read the entry from its file.
//!
//! Every call of [`write`](SegmentLog::write) is one record. The record alone decides whether the call
//! succeeded; its metadata is copied to LMDB afterwards, before the next record. Segments are prepared in
//! advance, in the background, so that a write never waits for a file to grow.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, StorageError};

use super::metadata::{LogStart, Metadata, MetadataStore};
use super::reader::{SegmentReader, Shared};
use super::record::Change;
use super::recovery::{self, Recovered, Tail};
use super::segment::{OpenSegment, Segment};
use super::writer::Writer;
use crate::files::{SegmentOperations, io_error};

/// The log of one directory, and its metadata.
pub(super) struct SegmentLog<M> {
    shared: Arc<Shared>,
    metadata: M,
    /// `None` before it was loaded, and after a failed write: the state on disk is unknown then.
    writer: Option<Writer>,
    /// Whether the log has reported that the last record is dropped. Loading again finds the same.
    torn_told: bool,
}

impl<M: MetadataStore> SegmentLog<M> {
    /// The log in `directory`, which exists. It reads nothing before [`load`](Self::load).
    pub(super) fn new(
        directory: PathBuf,
        operations: Arc<dyn SegmentOperations>,
        metadata: M,
        segment_bytes: u64,
    ) -> SegmentLog<M> {
        let shared = Shared::new(directory, operations, segment_bytes);
        SegmentLog { shared: Arc::new(shared), metadata, writer: None, torn_told: false }
    }

    /// Reads and checks everything, and changes nothing before all of it was found valid.
    pub(super) fn load(&mut self) -> Result<StoredState, StorageError> {
        // Waits for background work in progress.
        self.writer = None;
        let (metadata, start) = self.metadata.load()?;
        let start = match start {
            Some(start) => start,
            None => self.begin(&metadata)?,
        };
        let Recovered { state, offsets, held, ahead, leftovers, tail, torn, metadata_from } =
            recovery::recover(&self.shared, metadata, start)?;
        if let (Some(torn), false) = (torn, self.torn_told) {
            self.torn_told = true;
            tracing::warn!(
                "{torn}: the last record was not written to its end, so it was never acknowledged: it is dropped"
            );
        }
        let Shared { directory, operations, segment_bytes, .. } = &*self.shared;
        // A name may be only in the cache of the system as well: a failed flush of the directory leaves it
        // there.
        operations.sync_directory(directory).map_err(io_error("sync the directory", directory))?;
        let current = tail.segment.open_to_write(&**operations)?;
        if let Some((offset, record)) = &tail.last_record
            && !raftify_core::mutated!(LastRecordIsNotFlushedAgain)
        {
            // The record may have been read from the cache of the system, where a failed flush leaves data
            // that is not on the disk. It is written and flushed again, before any operation
            // relies on it.
            let OpenSegment { segment, file } = &current;
            let path = &segment.path;
            file.write_all_at(record, *offset).map_err(io_error("write to", path))?;
            file.sync().map_err(io_error("sync", path))?;
        }
        if let Some(as_of) = metadata_from {
            self.metadata.store(&Metadata::of(&state), LogStart { as_of, ..start })?;
        }
        for path in &leftovers {
            operations.remove(path).map_err(io_error("remove", path))?;
        }
        let open_to_write = |segment: Arc<Segment>| segment.open_to_write(&**operations);
        let mut ahead = ahead.into_iter().map(open_to_write).collect::<Result<VecDeque<_>, _>>()?;
        if ahead.is_empty() {
            let number = current.segment.number + 1;
            ahead.push_back(Segment::create(&**operations, directory, number, *segment_bytes)?);
        }
        self.shared.show(&state, offsets, held);
        let Tail { offset, next_sequence, .. } = tail;
        self.writer = Some(Writer::new(state.clone(), current, offset, next_sequence, ahead));
        Ok(state)
    }

    /// Creates the first two segments of a new directory, and then records in the metadata that there is a
    /// log.
    fn begin(&self, metadata: &Metadata) -> Result<LogStart, StorageError> {
        let Shared { directory, operations, segment_bytes, .. } = &*self.shared;
        for path in recovery::check_not_begun(&self.shared, metadata)? {
            operations.remove(&path).map_err(io_error("remove", &path))?;
        }
        for number in [1, 2] {
            Segment::create(&**operations, directory, number, *segment_bytes)?;
        }
        let start = LogStart { segment: 1, sequence: 1, as_of: 0 };
        self.metadata.store(metadata, start)?;
        Ok(start)
    }

    /// One record, one flush: all of `writes` or nothing. Changed metadata is copied to LMDB afterwards.
    pub(super) fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let Some(mut writer) = self.writer.take() else {
            let reason =
                "the state on disk is not known: load it first, or open it again after a failed write";
            return Err(StorageError::Refused { reason: reason.to_owned() });
        };
        writer.harvest(&self.shared)?;
        let (after, change) = merge(&writer.state, writes)?;
        if change.entries.is_empty()
            && !change.reset
            && change.metadata.is_none()
            && change.hard_state == writer.state.hard_state
        {
            self.writer = Some(writer);
            return Ok(());
        }
        let has_metadata = change.metadata.is_some();
        let segment = writer.current.segment.number;
        let mut written = writer.append(&self.shared, &change, after);
        if written.is_ok() && writer.current.segment.number != segment {
            written = self.metadata.check();
        }
        if let Err(error) = written {
            self.writer = raftify_core::mutated!(WritesAfterAFailure).then_some(writer);
            return Err(error);
        }
        if has_metadata {
            let start = self.start_of_what_is_needed(&writer);
            self.metadata.store(&Metadata::of(&writer.state), start)?;
            // Only now may any part of the log be destroyed.
            writer.release(&self.shared, start.segment);
        }
        writer.prepare_ahead(&self.shared)?;
        self.writer = Some(writer);
        Ok(())
    }

    /// Where replaying must begin after the record that was just written.
    fn start_of_what_is_needed(&self, writer: &Writer) -> LogStart {
        let table = self.shared.table();
        let first = table.as_ref().and_then(|table| {
            let number =
                table.offsets.offsets.front().map_or(writer.current.segment.number, |first| first.segment);
            Some((number, table.segments.get(&number)?.first_sequence))
        });
        let (segment, sequence) =
            first.expect("the table was filled by load, with every segment that has entries");
        LogStart { segment, sequence, as_of: writer.next_sequence - 1 }
    }

    pub(super) fn reader(&self) -> SegmentReader {
        SegmentReader { shared: Arc::clone(&self.shared) }
    }
}

/// The combined effect of `writes`, and the state after them.
fn merge<'a>(before: &StoredState, writes: &'a [Write]) -> Result<(StoredState, Change<'a>), StorageError> {
    let mut state = before.clone();
    let mut reset = false;
    let mut entries: Vec<&Entry> = Vec::new();
    for write in writes {
        state = state.after(write)?;
        if write.reset_log.is_some() {
            reset = true;
            entries.clear();
        }
        if let Some(first) = write.append.first() {
            let begin = entries.first().map_or(first.position.index, |entry| entry.position.index);
            let kept = first.position.index.0.saturating_sub(begin.0);
            entries.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            entries.extend(&write.append);
        }
    }
    let metadata = (reset || !Metadata::same(before, &state)).then(|| Metadata::of(&state).encode());
    let change = Change { reset, entries, hard_state: state.hard_state, metadata };
    Ok((state, change))
}
