//! The segment log: one writer, who appends, makes durable, and lets go what is not needed any more; any number of
//! readers, who find an entry's place in a table in memory and read it from its file.
//!
//! Every call of [`write`](SegmentLog::write) is one record. The record alone decides whether the call happened; what
//! it says about the metadata is copied to LMDB afterwards, before the next record. Segments are prepared ahead,
//! beside the writer, so that a write never waits for a file to grow.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogPosition, StorageError};

use super::metadata::{LogStart, Metadata, MetadataStore};
use super::record::{self, Change, ENTRY_FRAME_BYTES};
use super::recovery::{self, Recovered};
use super::segment::{self, OpenSegment, Segment};
use crate::files::{SegmentFile, SegmentOperations, Work};
use crate::io_error;

/// How many segments are ready behind the one in use. One must always be: that is how a missing one is noticed. The
/// second is there in time, so that going on to the first need not wait.
const AHEAD: usize = 2;

/// How many segments that are not needed any more are kept to be recycled; others are removed.
const FREE_MAX: usize = 8;

/// How many are removed at most before somebody looks whether a segment has to be prepared.
const REMOVED_MAX: usize = 4;

/// How many segments stay open for readers. Whoever reads one that is not among them opens it.
const OPEN_FOR_READERS_MAX: usize = 4;

/// The log of one directory, and the metadata beside it.
pub(super) struct SegmentLog<M> {
    shared: Arc<Shared>,
    metadata: M,
    /// `None` before it was loaded, and after a write that failed: what is on disk is not known then.
    writer: Option<Writer>,
    /// Whether it was told that the last record is dropped. Loading again finds the same.
    torn_told: bool,
}

/// What the writer and the readers have in common.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) operations: Arc<dyn SegmentOperations>,
    /// The size of all segments but those for a record that is larger.
    pub(super) segment_bytes: u64,
    /// `None` before it was loaded. The lock is never held while a file is read or written.
    table: RwLock<Option<Table>>,
    /// Files for readers, by the number of the segment; the one that was used last is the last.
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

    /// Lets the readers see a log that was found right.
    pub(super) fn show(&self, state: &StoredState, places: Places, segments: BTreeMap<u64, Held>) {
        let (truncated, last) = (state.truncated, state.last);
        *self.table_mut() = Some(Table { truncated, last, places, segments });
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
        // One that is let go meanwhile would keep its room on the disk for as long as it is open.
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

    /// As for the table.
    fn open(&self) -> MutexGuard<'_, Vec<(u64, Arc<dyn SegmentFile>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing that is done under the lock can panic half way: it is as good as never poisoned.
    fn table(&self) -> RwLockReadGuard<'_, Option<Table>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Option<Table>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where everything is.
struct Table {
    truncated: LogPosition,
    last: LogPosition,
    places: Places,
    segments: BTreeMap<u64, Held>,
}

/// A segment with records that are needed.
#[derive(Clone)]
pub(super) struct Held {
    /// The sequence number of its first record.
    pub(super) first_sequence: u64,
    pub(super) segment: Arc<Segment>,
}

/// Where an entry's frame is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) payload_bytes: u32,
}

/// The places of all entries, one for each index from `first` on.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) first: LogIndex,
    pub(super) places: VecDeque<Place>,
}

impl Places {
    /// The index after the last.
    pub(super) fn end(&self) -> LogIndex {
        LogIndex(self.first.0 + self.places.len() as u64)
    }

    /// Puts `places` from `first` on, in place of everything from there on.
    pub(super) fn replace(&mut self, first: LogIndex, places: impl Iterator<Item = Place>) {
        let kept = first.0.saturating_sub(self.first.0);
        self.places.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        if self.places.is_empty() {
            self.first = first;
        }
        self.places.extend(places);
    }

    /// Forgets everything up to `truncated`.
    pub(super) fn forget(&mut self, truncated: LogIndex) {
        let first = truncated.next();
        let gone = (first.0.saturating_sub(self.first.0)).min(self.places.len() as u64);
        self.places.drain(..gone as usize);
        self.first = first;
    }

    fn at(&self, index: LogIndex) -> Option<Place> {
        let at = index.0.checked_sub(self.first.0)?;
        self.places.get(usize::try_from(at).ok()?).copied()
    }
}

/// The one who appends.
struct Writer {
    state: StoredState,
    current: OpenSegment,
    /// Where the next record begins.
    offset: u64,
    next_sequence: u64,
    /// Segments without records, by number. Invariant: never empty when a record is written.
    ahead: VecDeque<OpenSegment>,
    /// To be recycled.
    free: Vec<Segment>,
    /// To be removed, as soon as nobody reads them.
    doomed: Vec<Arc<Segment>>,
    helper: Option<Helper>,
    buffer: Vec<u8>,
}

/// Work on files beside the writer.
struct Helper {
    wait: Option<Work>,
    made: Receiver<Result<Option<OpenSegment>, StorageError>>,
}

/// The directory is not given back while somebody still works in it.
impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(wait) = self.wait.take() {
            wait();
        }
    }
}

impl<M: MetadataStore> SegmentLog<M> {
    /// The log in `directory`, which is there. Nothing is read before [`load`](Self::load).
    pub(super) fn new(
        directory: PathBuf,
        operations: Arc<dyn SegmentOperations>,
        metadata: M,
        segment_bytes: u64,
    ) -> SegmentLog<M> {
        let shared = Shared::new(directory, operations, segment_bytes);
        SegmentLog { shared: Arc::new(shared), metadata, writer: None, torn_told: false }
    }

    /// Reads and checks everything, and changes nothing before all of it was found right.
    pub(super) fn load(&mut self) -> Result<StoredState, StorageError> {
        // Waits for what it may still be doing.
        self.writer = None;
        let (metadata, start) = self.metadata.load()?;
        let start = match start {
            Some(start) => start,
            None => self.begin(&metadata)?,
        };
        let Recovered { state, places, held, ahead, leftovers, tail, torn, metadata_from } =
            recovery::recover(&self.shared, metadata, start)?;
        if let (Some(torn), false) = (torn, self.torn_told) {
            self.torn_told = true;
            tracing::warn!(
                "{torn}: the last record was not written to its end, so it was never acknowledged: it is dropped"
            );
        }
        let Shared { directory, operations, segment_bytes, .. } = &*self.shared;
        // A name may be from the system's cache as well: a flush of the directory that failed leaves it there.
        operations.sync_directory(directory).map_err(io_error("sync the directory", directory))?;
        let current = tail.segment.open_to_write(&**operations)?;
        if let Some((offset, record)) = &tail.last_record
            && !raftify_core::mutated!(LastRecordIsNotFlushedAgain)
        {
            // It may have been read from the system's cache, where a failed flush leaves what is not on the disk.
            // Written and flushed once more, it is: before anything that relies on it.
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
        self.shared.show(&state, places, held);
        self.writer = Some(Writer {
            state: state.clone(),
            current,
            offset: tail.offset,
            next_sequence: tail.next_sequence,
            ahead,
            free: Vec::new(),
            doomed: Vec::new(),
            helper: None,
            buffer: Vec::new(),
        });
        Ok(state)
    }

    /// Makes the first two segments of a new directory, and then says in the metadata that there is a log.
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

    /// One record, one flush: all of `writes` or nothing. Metadata that changed go to LMDB as well, afterwards.
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
            // Only now may anything of the log be destroyed.
            writer.free(&self.shared, start.segment);
        }
        writer.prepare_ahead(&self.shared)?;
        self.writer = Some(writer);
        Ok(())
    }

    /// Where replaying has to begin after the record that was just written.
    fn start_of_what_is_needed(&self, writer: &Writer) -> LogStart {
        let table = self.shared.table();
        let first = table.as_ref().and_then(|table| {
            let number =
                table.places.places.front().map_or(writer.current.segment.number, |place| place.segment);
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

/// What `writes` come to, all together, and the state after them.
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

impl Writer {
    /// Writes the record of `change` and makes it durable, then shows its entries to the readers.
    fn append(
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
        let Segment { life, path, .. } = &**segment;
        self.buffer.clear();
        change.encode(*life, self.next_sequence, &mut self.buffer);
        file.write_all_at(&self.buffer, self.offset).map_err(io_error("write to", path))?;
        if !raftify_core::mutated!(SyncIsLeftOut) {
            file.sync().map_err(io_error("sync", path))?;
        }
        // In a file that has lost its name, nothing is found at the next start.
        if !file.is_at(path).map_err(io_error("look for", path))? {
            return Err(StorageError::Replaced { path: path.clone() });
        }

        let mut table = shared.table_mut();
        let table = table.as_mut().expect("load fills the table before it makes the writer");
        if change.reset {
            table.places.places.clear();
        }
        if let Some(first) = change.entries.first() {
            let entries: u64 = change.entries.iter().map(|entry| record::entry_bytes(entry) as u64).sum();
            let mut offset = self.offset + length - entries;
            let segment = self.current.segment.number;
            let places = change.entries.iter().map(|entry| {
                let place =
                    Place { segment, offset: offset as u32, payload_bytes: entry.payload.len() as u32 };
                offset += record::entry_bytes(entry) as u64;
                place
            });
            table.places.replace(first.position.index, places);
        }
        table.places.forget(after.truncated.index);
        (table.truncated, table.last) = (after.truncated, after.last);
        let held = || Held { first_sequence: self.next_sequence, segment: Arc::clone(&self.current.segment) };
        table.segments.entry(self.current.segment.number).or_insert_with(held);

        self.offset = (self.offset + length).next_multiple_of(record::ALIGNMENT);
        self.next_sequence += 1;
        self.state = after;
        Ok(())
    }

    /// Goes on to the next segment if a record of `length` bytes does not fit into this one.
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
            // One of its own size takes its place, under its number.
            next = Segment::create(&*shared.operations, &shared.directory, next.segment.number, needed)?;
        }
        self.current = next;
        self.offset = segment::HEADER_BYTES;
        Ok(())
    }

    /// Lets go the segments before `first`: some to be recycled, the others to be removed. One that is being read stays
    /// until that is done.
    fn free(&mut self, shared: &Shared, first: u64) {
        let freed = {
            let mut table = shared.table_mut();
            let table = table.as_mut().expect("load fills the table before it makes the writer");
            let needed = table.segments.split_off(&first);
            std::mem::replace(&mut table.segments, needed)
        };
        shared.open().retain(|(number, _)| *number >= first);
        for Held { segment, .. } in freed.into_values() {
            let may_be_of_use = segment.size_bytes == shared.segment_bytes && self.free.len() < FREE_MAX;
            // Readers get it from the table only: nobody has it now, nobody will.
            match Arc::try_unwrap(segment) {
                Ok(segment) if may_be_of_use => self.free.push(segment),
                Ok(segment) => self.doomed.push(Arc::new(segment)),
                Err(being_read) => self.doomed.push(being_read),
            }
        }
    }

    /// Starts what is best done before it is needed: in the second half of a segment, the one after the next.
    fn prepare_ahead(&mut self, shared: &Shared) -> Result<(), StorageError> {
        let prepare = self.ahead.len() < AHEAD && self.offset > self.current.segment.size_bytes / 2;
        if self.helper.is_none() && (prepare || self.doomed.iter().any(is_unread)) {
            self.start_helper(shared, prepare)?;
        }
        Ok(())
    }

    fn start_helper(&mut self, shared: &Shared, prepare: bool) -> Result<(), StorageError> {
        let doomed: Vec<_> =
            self.doomed.extract_if(.., |segment| is_unread(segment)).take(REMOVED_MAX).collect();
        let free = if prepare { self.free.pop() } else { None };
        let number = self.ahead.back().unwrap_or(&self.current).segment.number + 1;
        let (operations, directory) = (Arc::clone(&shared.operations), shared.directory.clone());
        let segment_bytes = shared.segment_bytes;
        let (sender, made) = mpsc::channel();
        let work = move || {
            for segment in doomed {
                remove(&*operations, &segment);
            }
            let recyclable = free.and_then(|free| match operations.open_segment(&free.path) {
                Ok(file) => Some((free, file)),
                // It may have been made read-only, for instance.
                Err(_) => {
                    remove(&*operations, &free);
                    None
                }
            });
            let segment = match recyclable {
                Some((free, file)) => free.recycle(file, &*operations, &directory, number).map(Some),
                None if prepare => Segment::create(&*operations, &directory, number, segment_bytes).map(Some),
                None => Ok(None),
            };
            // Nobody waits for it if the storage is being dropped.
            drop(sender.send(segment));
        };
        let wait = shared
            .operations
            .beside(Box::new(work))
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

    /// Takes what was prepared, if it is ready.
    fn harvest(&mut self, shared: &Shared) -> Result<(), StorageError> {
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

/// Whether nobody reads a segment that is not in the table any more.
fn is_unread(segment: &Arc<Segment>) -> bool {
    Arc::strong_count(segment) == 1
}

fn remove(operations: &dyn SegmentOperations, segment: &Segment) {
    if let Err(error) = operations.remove(&segment.path) {
        let path = segment.path.display();
        tracing::warn!(%path, %error, "a segment that is not needed is left until the next start");
    }
}

/// Reads entries beside the writer.
#[derive(Clone)]
pub(super) struct SegmentReader {
    pub(super) shared: Arc<Shared>,
}

/// Entries that stand one after the other in one segment.
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

    /// Where to read. None of the segments is recycled or removed until the plan is dropped.
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
            let place = table.places.at(index);
            let held = place.and_then(|place| table.segments.get(&place.segment));
            let (Some(place), Some(held)) = (place, held) else {
                return Err(StorageError::Corrupt {
                    what: format!("{}: entry {index}", self.shared.directory.display()),
                    reason: "it is missing".to_owned(),
                });
            };
            bytes += u64::from(place.payload_bytes) + Entry::OVERHEAD_BYTES;
            if bytes > bytes_max && !runs.is_empty() {
                break;
            }
            let offset = u64::from(place.offset);
            let end = offset + ENTRY_FRAME_BYTES as u64 + u64::from(place.payload_bytes);
            match runs.last_mut() {
                Some(run) if run.segment.number == place.segment && run.end == offset => {
                    run.payload_bytes.push(place.payload_bytes);
                    run.end = end;
                }
                _ => runs.push(Run {
                    segment: Arc::clone(&held.segment),
                    offset,
                    first: index,
                    payload_bytes: vec![place.payload_bytes],
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
        let Segment { life, path, .. } = &*self.segment;
        let file = shared.file_of(&self.segment)?;
        let mut buffer = vec![0; (self.end - self.offset) as usize];
        file.read_exact_at(&mut buffer, self.offset).map_err(io_error("read", path))?;
        let mut rest = Bytes::from(buffer);
        let mut offset = self.offset;
        for (index, payload_bytes) in (self.first.0..).map(LogIndex).zip(self.payload_bytes) {
            let length = ENTRY_FRAME_BYTES + payload_bytes as usize;
            let frame = rest.split_to(length);
            let entry = record::decode_entry(*life, index, &frame);
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
