//! The only writer of a log: appends records, makes them durable, prepares segments in advance, and recycles
//! or deletes segments that are no longer needed.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};

use raftify_core::StorageError;
use raftify_core::storage::StoredState;

use super::offsets::EntryOffset;
use super::reader::{Held, Shared};
use super::record::{self, Change};
use super::segment::{self, OpenSegment, Segment};
use crate::files::{SegmentOperations, Work, io_error};

/// How many segments are ready after the one in use. There must always be one: this is how a missing segment
/// is detected. With the second, switching to the first need not wait.
const AHEAD: usize = 2;

/// How many segments that are no longer needed are kept for recycling; others are deleted.
const RECYCLABLE_MAX: usize = 8;

/// How many are deleted at most before the writer checks whether it must prepare a segment.
const REMOVED_MAX: usize = 4;

/// The buffer of a larger record is not kept for the next one.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// Appends records to the newest segment.
pub(super) struct Writer {
    pub(super) state: StoredState,
    pub(super) current: OpenSegment,
    /// The offset of the next record.
    offset: u64,
    pub(super) next_sequence: u64,
    /// Segments without records, by number. Invariant: never empty when a record is written.
    ahead: VecDeque<OpenSegment>,
    /// To be recycled.
    recyclable: Vec<Segment>,
    /// To be deleted, as soon as no reader uses them.
    to_delete: Vec<Arc<Segment>>,
    helper: Option<Helper>,
    buffer: Vec<u8>,
}

/// Background work on files.
struct Helper {
    wait: Option<Work>,
    made: Receiver<Result<Option<OpenSegment>, StorageError>>,
}

/// The directory stays locked until the work in it is done.
impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(wait) = self.wait.take() {
            wait();
        }
    }
}

impl Writer {
    /// Continues after the record before `offset`, with segments `ahead` that have none.
    pub(super) fn new(
        state: StoredState,
        current: OpenSegment,
        offset: u64,
        next_sequence: u64,
        ahead: VecDeque<OpenSegment>,
    ) -> Writer {
        Writer {
            state,
            current,
            offset,
            next_sequence,
            ahead,
            recyclable: Vec::new(),
            to_delete: Vec::new(),
            helper: None,
            buffer: Vec::new(),
        }
    }

    /// Writes the record of `change` and makes it durable, then makes its entries visible to the readers.
    pub(super) fn append(
        &mut self,
        shared: &Shared,
        change: &Change<'_>,
        after: StoredState,
    ) -> Result<(), StorageError> {
        let length = change.record_bytes();
        let segment_bytes = segment::HEADER_BYTES + length;
        if segment_bytes > u64::from(u32::MAX) {
            let reason = format!("a record of {length} bytes is too large, the most is {}", u32::MAX);
            return Err(StorageError::Refused { reason });
        }
        self.make_room(shared, length)?;
        let OpenSegment { segment, file } = &self.current;
        let Segment { generation, path, .. } = &**segment;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.buffer.reserve_exact(usize::try_from(length).unwrap_or_default());
        change.encode(*generation, self.next_sequence, &mut self.buffer);
        file.write_all_at(&self.buffer, self.offset).map_err(io_error("write to", path))?;
        if !raftify_core::mutated!(SyncIsLeftOut) {
            file.sync().map_err(io_error("sync", path))?;
        }
        // A file that has lost its name is not found at the next start.
        if !file.is_at(path).map_err(io_error("look for", path))? {
            return Err(StorageError::Replaced { path: path.clone() });
        }

        let mut table = shared.table_mut();
        let table = table.as_mut().expect("load fills the table before it makes the writer");
        if change.reset {
            table.offsets.offsets.clear();
        }
        if let Some(first) = change.entries.first() {
            let entries: u64 = change.entries.iter().map(|entry| record::entry_bytes(entry) as u64).sum();
            let mut offset = self.offset + length - entries;
            let segment = self.current.segment.number;
            let offsets = change.entries.iter().map(|entry| {
                let entry_offset =
                    EntryOffset { segment, offset: offset as u32, payload_bytes: entry.payload.len() as u32 };
                offset += record::entry_bytes(entry) as u64;
                entry_offset
            });
            table.offsets.replace(first.position.index, offsets);
        }
        table.offsets.forget(after.truncated.index);
        (table.truncated, table.last) = (after.truncated, after.last);
        let held = || Held { first_sequence: self.next_sequence, segment: Arc::clone(&self.current.segment) };
        table.segments.entry(self.current.segment.number).or_insert_with(held);

        self.offset = (self.offset + length).next_multiple_of(record::ALIGNMENT);
        self.next_sequence += 1;
        self.state = after;
        Ok(())
    }

    /// Switches to the next segment if a record of `length` bytes does not fit into this one.
    fn make_room(&mut self, shared: &Shared, length: u64) -> Result<(), StorageError> {
        if self.offset + length <= self.current.segment.size_bytes {
            return Ok(());
        }
        while self.ahead.len() < AHEAD {
            if self.helper.is_none() {
                self.start_helper(shared, true)?;
            }
            self.wait(shared)?;
        }
        let mut next = self.ahead.pop_front().expect("there are as many as the loop above waited for");
        let needed = segment::HEADER_BYTES + length;
        if next.segment.size_bytes < needed {
            // A segment of its own size replaces it, under its number.
            next = Segment::create(&*shared.operations, &shared.directory, next.segment.number, needed)?;
        }
        self.current = next;
        self.offset = segment::HEADER_BYTES;
        Ok(())
    }

    /// Releases the segments before `first`: some are recycled, the others deleted. A segment that is being
    /// read stays until the read is done.
    pub(super) fn release(&mut self, shared: &Shared, first: u64) {
        let released = {
            let mut table = shared.table_mut();
            let table = table.as_mut().expect("load fills the table before it makes the writer");
            let needed = table.segments.split_off(&first);
            std::mem::replace(&mut table.segments, needed)
        };
        shared.open().retain(|(number, _)| *number >= first);
        for Held { segment, .. } in released.into_values() {
            let may_be_of_use =
                segment.size_bytes == shared.segment_bytes && self.recyclable.len() < RECYCLABLE_MAX;
            // Readers get it from the table only: no reader has it now, or will get it.
            match Arc::try_unwrap(segment) {
                Ok(segment) if may_be_of_use => self.recyclable.push(segment),
                Ok(segment) => self.to_delete.push(Arc::new(segment)),
                Err(being_read) => self.to_delete.push(being_read),
            }
        }
    }

    /// Starts work that should be done before its result is needed: in the second half of a segment, it
    /// creates the one after the next.
    pub(super) fn prepare_ahead(&mut self, shared: &Shared) -> Result<(), StorageError> {
        let prepare = self.ahead.len() < AHEAD && self.offset > self.current.segment.size_bytes / 2;
        if self.helper.is_none() && (prepare || self.to_delete.iter().any(is_unread)) {
            self.start_helper(shared, prepare)?;
        }
        Ok(())
    }

    fn start_helper(&mut self, shared: &Shared, prepare: bool) -> Result<(), StorageError> {
        let to_delete: Vec<_> =
            self.to_delete.extract_if(.., |segment| is_unread(segment)).take(REMOVED_MAX).collect();
        let recyclable = if prepare { self.recyclable.pop() } else { None };
        let number = self.ahead.back().unwrap_or(&self.current).segment.number + 1;
        let (operations, directory) = (Arc::clone(&shared.operations), shared.directory.clone());
        let segment_bytes = shared.segment_bytes;
        let (sender, made) = mpsc::channel();
        let work = move || {
            for segment in to_delete {
                remove(&*operations, &segment);
            }
            let recyclable = recyclable.and_then(|segment| match operations.open_segment(&segment.path) {
                Ok(file) => Some((segment, file)),
                // It may have been made read-only, for instance.
                Err(_) => {
                    remove(&*operations, &segment);
                    None
                }
            });
            let segment = match recyclable {
                Some((segment, file)) => segment.recycle(file, &*operations, &directory, number).map(Some),
                None if prepare => Segment::create(&*operations, &directory, number, segment_bytes).map(Some),
                None => Ok(None),
            };
            // The result is not awaited if the storage is being dropped.
            drop(sender.send(segment));
        };
        let wait = shared
            .operations
            .spawn(Box::new(work))
            .map_err(io_error("start a thread for", &shared.directory))?;
        self.helper = Some(Helper { wait: Some(wait), made });
        Ok(())
    }

    fn wait(&mut self, shared: &Shared) -> Result<(), StorageError> {
        if let Some(wait) = self.helper.as_mut().and_then(|helper| helper.wait.take()) {
            wait();
        }
        self.harvest(shared)
    }

    /// Takes the prepared segment, if it is ready.
    pub(super) fn harvest(&mut self, shared: &Shared) -> Result<(), StorageError> {
        let Some(helper) = &self.helper else {
            return Ok(());
        };
        match helper.made.try_recv() {
            Ok(made) => {
                self.helper = None;
                self.ahead.extend(made?);
                Ok(())
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(io_error("prepare a segment in", &shared.directory)(
                io::Error::other("the thread that does it has panicked"),
            )),
        }
    }
}

/// Whether no reader uses this segment, which is no longer in the table.
fn is_unread(segment: &Arc<Segment>) -> bool {
    Arc::strong_count(segment) == 1
}

fn remove(operations: &dyn SegmentOperations, segment: &Segment) {
    if let Err(error) = operations.remove(&segment.path) {
        let path = segment.path.display();
        tracing::warn!(%path, %error, "a segment that is not needed is left until the next start");
    }
}
