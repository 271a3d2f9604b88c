//! The state that the writer and the readers of a log share, and the reading of entries concurrently with the
//! writer: the reader finds the offset of an entry in a table in memory, and the entry in its file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use raftify_core::storage::StoredState;
use raftify_core::{Entry, LogIndex, LogPosition, StorageError};

use super::offsets::EntryOffsets;
use super::record::{self, ENTRY_FRAME_BYTES};
use super::segment::Segment;
use crate::files::{SegmentFile, SegmentOperations, io_error};

/// How many segments stay open for readers. A read from another segment opens it.
const OPEN_FOR_READERS_MAX: usize = 4;

/// The state that the writer and the readers share.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) operations: Arc<dyn SegmentOperations>,
    /// The size of all segments except those for a larger record.
    pub(super) segment_bytes: u64,
    /// `None` before it was loaded. The lock is never held while a file is read or written.
    table: RwLock<Option<Table>>,
    /// Files for readers, by the number of the segment; the most recently used is the last.
    open: Mutex<Vec<(u64, Arc<dyn SegmentFile>)>>,
}

impl Shared {
    pub(super) fn new(
        directory: PathBuf,
        operations: Arc<dyn SegmentOperations>,
        segment_bytes: u64,
    ) -> Shared {
        Shared { directory, operations, segment_bytes, table: RwLock::new(None), open: Mutex::default() }
    }

    /// Makes a valid log visible to the readers.
    pub(super) fn show(&self, state: &StoredState, offsets: EntryOffsets, segments: BTreeMap<u64, Held>) {
        let (truncated, last) = (state.truncated, state.last);
        *self.table_mut() = Some(Table { truncated, last, offsets, segments });
        self.open().clear();
    }

    /// The file of `segment`, for reading.
    fn file_of(&self, segment: &Segment) -> Result<Arc<dyn SegmentFile>, StorageError> {
        let found = {
            let mut open = self.open();
            let at = open.iter().position(|(number, _)| *number == segment.number);
            at.map(|at| open.remove(at).1)
        };
        let file = match found {
            Some(file) => file,
            None => {
                let path = &segment.path;
                Arc::from(self.operations.read_segment(path).map_err(io_error("open", path))?)
            }
        };
        // An open file of a segment that is released meanwhile would keep its disk space.
        let table = self.table();
        if table.as_ref().is_some_and(|table| table.segments.contains_key(&segment.number)) {
            let mut open = self.open();
            if open.len() == OPEN_FOR_READERS_MAX {
                open.remove(0);
            }
            open.push((segment.number, Arc::clone(&file)));
        }
        Ok(file)
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Vec<(u64, Arc<dyn SegmentFile>)>> {
        self.open.lock()
    }

    pub(super) fn table(&self) -> RwLockReadGuard<'_, Option<Table>> {
        self.table.read()
    }

    pub(super) fn table_mut(&self) -> RwLockWriteGuard<'_, Option<Table>> {
        self.table.write()
    }
}

/// The segments and the offsets of entries.
pub(super) struct Table {
    pub(super) truncated: LogPosition,
    pub(super) last: LogPosition,
    pub(super) offsets: EntryOffsets,
    pub(super) segments: BTreeMap<u64, Held>,
}

/// A segment with records that are needed.
#[derive(Clone)]
pub(super) struct Held {
    /// The sequence number of its first record.
    pub(super) first_sequence: u64,
    pub(super) segment: Arc<Segment>,
}

/// Reads entries concurrently with the writer.
#[derive(Clone)]
pub(super) struct SegmentReader {
    pub(super) shared: Arc<Shared>,
}

/// Consecutive entries in one segment.
struct Run {
    segment: Arc<Segment>,
    offset: u64,
    first: LogIndex,
    payload_bytes: Vec<u32>,
    end: u64,
}

impl SegmentReader {
    pub(super) fn directory(&self) -> &PathBuf {
        &self.shared.directory
    }

    pub(super) fn read(
        &self,
        from: LogIndex,
        until: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        for run in self.plan(from, until, bytes_max)? {
            run.read(&self.shared, &mut entries)?;
        }
        Ok(entries)
    }

    /// The files and offsets to read. None of the segments is recycled or deleted until the plan is dropped.
    fn plan(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Run>, StorageError> {
        let table = self.shared.table();
        let Some(table) = &*table else {
            return Err(StorageError::Refused { reason: "the log was not loaded yet".to_owned() });
        };
        let Table { truncated, last, .. } = *table;
        if from <= truncated.index {
            return Err(StorageError::Compacted { index: from, truncated });
        }
        if until > last.index.next() {
            return Err(StorageError::BeyondEnd { index: from.max(last.index.next()), last });
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut bytes = 0;
        for index in (from.0..until.0).map(LogIndex) {
            let frame_at = table.offsets.at(index);
            let held = frame_at.and_then(|frame_at| table.segments.get(&frame_at.segment));
            let (Some(frame_at), Some(held)) = (frame_at, held) else {
                return Err(StorageError::Corrupt {
                    what: format!("{}: entry {index}", self.shared.directory.display()),
                    reason: "it is missing".to_owned(),
                });
            };
            bytes += u64::from(frame_at.payload_bytes) + Entry::OVERHEAD_BYTES;
            if bytes > bytes_max && !runs.is_empty() {
                break;
            }
            let offset = u64::from(frame_at.offset);
            let end = offset + ENTRY_FRAME_BYTES as u64 + u64::from(frame_at.payload_bytes);
            match runs.last_mut() {
                Some(run) if run.segment.number == frame_at.segment && run.end == offset => {
                    run.payload_bytes.push(frame_at.payload_bytes);
                    run.end = end;
                }
                _ => runs.push(Run {
                    segment: Arc::clone(&held.segment),
                    offset,
                    first: index,
                    payload_bytes: vec![frame_at.payload_bytes],
                    end,
                }),
            }
        }
        Ok(runs)
    }
}

impl Run {
    /// Appends its entries. Their payloads share one buffer.
    fn read(self, shared: &Shared, entries: &mut Vec<Entry>) -> Result<(), StorageError> {
        let Segment { generation, path, .. } = &*self.segment;
        let file = shared.file_of(&self.segment)?;
        let mut buffer = vec![0; (self.end - self.offset) as usize];
        file.read_exact_at(&mut buffer, self.offset).map_err(io_error("read", path))?;
        let mut rest = Bytes::from(buffer);
        let mut offset = self.offset;
        for (index, payload_bytes) in (self.first.0..).map(LogIndex).zip(self.payload_bytes) {
            let length = ENTRY_FRAME_BYTES + payload_bytes as usize;
            let frame = rest.split_to(length);
            let entry = record::decode_entry(*generation, index, &frame);
            let what = || format!("{} at offset {offset}: entry {index}", path.display());
            if entry.is_err() && raftify_core::mutated!(DamagedEntriesAreSkipped) {
                continue;
            }
            entries.push(entry.map_err(|damage| damage.of(what()))?);
            offset += length as u64;
        }
        Ok(())
    }
}
