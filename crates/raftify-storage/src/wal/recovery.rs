//! Reads a log from its beginning to its end, and distinguishes the end from damage.
//!
//! The log ends at the first offset without a valid record of the expected sequence number. Only the last
//! record can be torn by a crash, because the next one is written only after it was durable. So any proof
//! that a later record was written proves that this offset is damaged: a later record in this or a later
//! segment, or metadata from a later record.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::storage::StoredState;
use raftify_core::{HardState, LogIndex, LogPosition, StorageError};

use super::metadata::{LogStart, Metadata};
use super::offsets::{EntryOffset, EntryOffsets};
use super::reader::{Held, Shared};
use super::record::{self, Content, Header};
use super::segment::{self, Generation, Segment};
use crate::fields::Damage;
use crate::files::io_error;
use crate::layout::segments::{self, Name};

/// A log that was found valid.
pub(super) struct Recovered {
    pub(super) state: StoredState,
    pub(super) offsets: EntryOffsets,
    /// The segments with records, or the one for the first record.
    pub(super) held: BTreeMap<u64, Held>,
    /// The segments after them.
    pub(super) ahead: VecDeque<Arc<Segment>>,
    /// Files that are of no use.
    pub(super) leftovers: Vec<PathBuf>,
    pub(super) tail: Tail,
    /// Where a record was started after the last one.
    pub(super) torn: Option<Torn>,
    /// The record whose metadata has not reached LMDB.
    pub(super) metadata_from: Option<u64>,
}

/// Where the log continues.
pub(super) struct Tail {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) next_sequence: u64,
    /// The last record and its offset in the segment.
    pub(super) last_record: Option<(u64, Vec<u8>)>,
}

/// Checks that no log was ever created here, if LMDB knows of none. Returns the files that a crash left
/// between the creation of the first segments and its record in LMDB.
pub(super) fn check_not_begun(shared: &Shared, metadata: &Metadata) -> Result<Vec<PathBuf>, StorageError> {
    let directory = &shared.directory;
    let paths = shared.operations.list(directory).map_err(io_error("list", directory))?;
    let mut left = Vec::new();
    for path in paths {
        match segments::name_of(&path) {
            Some(Name::Segment(number)) if has_records(shared, number)? => {
                let what = path.display().to_string();
                let reason = "there are records in it, but the metadata know of no log".to_owned();
                return Err(StorageError::Corrupt { what, reason });
            }
            Some(_) => left.push(path),
            None => {}
        }
    }
    if *metadata != Metadata::default() {
        let what = directory.display().to_string();
        let reason = "there are metadata, but not where the log begins".to_owned();
        return Err(StorageError::Corrupt { what, reason });
    }
    Ok(left)
}

/// Whether segment `number` begins with a record. A segment that cannot be read may contain records.
fn has_records(shared: &Shared, number: u64) -> Result<bool, StorageError> {
    let (segment, content) = Segment::read(&*shared.operations, &shared.directory, number, LogIndex(1))?;
    let records = content.get(segment::HEADER_BYTES as usize..).unwrap_or_default();
    Ok(Header::decode(segment.generation, records).is_ok())
}

/// Reads and checks the whole log, and changes nothing.
pub(super) fn recover(
    shared: &Shared,
    metadata: Metadata,
    start: LogStart,
) -> Result<Recovered, StorageError> {
    let recovered = read_log(shared, metadata, start)?;
    match recovered.state.check() {
        Ok(()) => Ok(recovered),
        Err(reason) => Err(StorageError::Corrupt { what: shared.directory.display().to_string(), reason }),
    }
}

/// As [`recover`], and does not check whether hard state, log and snapshot fit together.
pub(super) fn read_log(
    shared: &Shared,
    metadata: Metadata,
    start: LogStart,
) -> Result<Recovered, StorageError> {
    let directory = &shared.directory;
    let mut numbers = BTreeSet::new();
    let mut leftovers = Vec::new();
    let paths = shared.operations.list(directory).map_err(io_error("list", directory))?;
    for path in paths {
        match segments::name_of(&path) {
            Some(Name::Segment(number)) if number >= start.segment => drop(numbers.insert(number)),
            Some(_) => leftovers.push(path),
            None => {}
        }
    }
    let mut replay = Replay {
        expected: start.sequence,
        metadata,
        metadata_from: None,
        hard_state: HardState::default(),
        offsets: EntryOffsets::default(),
        term_starts: Vec::new(),
        held: BTreeMap::new(),
        ahead: VecDeque::new(),
        last_record: None,
        end: End {
            path: segments::path_of(directory, start.segment),
            offset: segment::HEADER_BYTES,
            reason: "it is not there".to_owned(),
        },
        torn: None,
    };
    let last = numbers.last().copied().unwrap_or(start.segment);
    for number in start.segment..=last {
        if !numbers.contains(&number) {
            return Err(replay.missing(shared, number));
        }
        let next = replay.next_index();
        let (segment, content) = Segment::read(&*shared.operations, directory, number, next)?;
        replay.segment(segment, &content)?;
    }
    if start.as_of >= replay.expected {
        let reason = format!("it was written, for the metadata are from record {}", start.as_of);
        return Err(replay.damage(&reason));
    }
    if replay.last_record.is_some() && replay.ahead.is_empty() {
        // Each segment was created before the one before it was used.
        return Err(replay.missing(shared, last + 1));
    }
    replay.finish(shared, start, leftovers)
}

/// Where the records end, and why.
#[derive(Clone)]
struct End {
    path: PathBuf,
    offset: u64,
    reason: String,
}

/// Where a record was started and not completely written.
pub(super) struct Torn {
    end: End,
    next: LogIndex,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Torn { end: End { path, offset, reason }, next } = self;
        write!(f, "{} at offset {offset}, after entry {}: {reason}", path.display(), next.previous())
    }
}

struct Replay {
    /// The sequence number of the next record.
    expected: u64,
    metadata: Metadata,
    metadata_from: Option<u64>,
    hard_state: HardState,
    offsets: EntryOffsets,
    term_starts: Vec<LogPosition>,
    held: BTreeMap<u64, Held>,
    ahead: VecDeque<Arc<Segment>>,
    last_record: Option<(u64, Vec<u8>)>,
    /// After the last record so far.
    end: End,
    /// A record that was started there.
    torn: Option<End>,
}

impl Replay {
    /// Replays the records of one segment, which follows the previous one.
    fn segment(&mut self, segment: Segment, content: &[u8]) -> Result<(), StorageError> {
        let first_sequence = self.expected;
        let mut offset = segment::HEADER_BYTES;
        let mut last_record = None;
        let reason = loop {
            let bytes = content.get(offset as usize..).unwrap_or_default();
            let (header, body) = match record_at(segment.generation, bytes, self.expected) {
                Ok(found) => found,
                Err(reason) => break reason,
            };
            let applied = header
                .content(body)
                .and_then(|content| self.record(&header, content, segment.number, offset));
            applied.map_err(|damage| damage.of(self.what(&segment.path, offset)))?;
            last_record = Some((offset, &bytes[..header.record_bytes() as usize]));
            self.expected += 1;
            offset = (offset + header.record_bytes()).next_multiple_of(record::ALIGNMENT);
        };
        let later = later_record(segment.generation, content, offset, self.expected);
        let begun = content.get(offset as usize..).and_then(Header::sequence_at) == Some(self.expected);
        let end = End { path: segment.path.clone(), offset, reason };
        if begun {
            self.torn = Some(end.clone());
        }
        if let Some((offset, bytes)) = last_record {
            self.last_record = Some((offset, bytes.to_vec()));
            self.torn = begun.then(|| end.clone());
            self.end = end;
            self.ahead.clear();
            let held = Held { first_sequence, segment: Arc::new(segment) };
            self.held.insert(held.segment.number, held);
        } else {
            // If the later record is the first one in this segment, the segment before ends too early;
            // otherwise this one.
            if later.is_some_and(|(at, _)| at > offset) {
                self.end = end;
            }
            self.ahead.push_back(Arc::new(segment));
        }
        match later {
            Some((_, later)) => Err(self.damage(&format!("it was written, for record {later} follows"))),
            None => Ok(()),
        }
    }

    fn record(&mut self, header: &Header, content: Content, segment: u64, offset: u64) -> Result<(), Damage> {
        if content.reset {
            self.offsets.offsets.clear();
            self.term_starts.clear();
        }
        if let Some(metadata) = content.metadata {
            self.metadata = metadata;
            self.metadata_from = Some(self.expected);
        }
        if !content.entries.is_empty() {
            let first = header.first;
            if !self.offsets.offsets.is_empty() && first > self.offsets.end() {
                let reason =
                    format!("it begins with entry {first}, but the log ends before {}", self.offsets.end());
                return Err(Damage::Content(reason));
            }
            self.term_starts.retain(|start| start.index < first);
            for entry in &content.entries {
                let LogPosition { term, index } = entry.position;
                match self.term_starts.last() {
                    Some(start) if start.term == term => {}
                    Some(start) if start.term > term => {
                        return Err(Damage::Content(format!(
                            "the term of entry {index} is {term}, that of the entry before is {}",
                            start.term
                        )));
                    }
                    _ => self.term_starts.push(entry.position),
                }
            }
            let offsets = content.entries.iter().map(|entry| EntryOffset {
                segment,
                offset: (offset + entry.offset as u64) as u32,
                payload_bytes: entry.payload_bytes,
            });
            self.offsets.replace(first, offsets);
        }
        self.hard_state = header.hard_state;
        Ok(())
    }

    fn finish(
        mut self,
        shared: &Shared,
        start: LogStart,
        leftovers: Vec<PathBuf>,
    ) -> Result<Recovered, StorageError> {
        let truncated = self.metadata.truncated;
        let first = truncated.index.next();
        let corrupt = |what: String, reason: String| Err(StorageError::Corrupt { what, reason });
        if self.offsets.first > first && !self.offsets.offsets.is_empty() {
            let what = format!("{}: entry {first}", shared.directory.display());
            return corrupt(what, format!("it is missing, {} follows instead", self.offsets.first));
        }
        self.offsets.forget(truncated.index);
        let mut state = StoredState {
            identity: self.metadata.identity,
            hard_state: self.hard_state,
            members: self.metadata.members,
            snapshot: self.metadata.snapshot,
            remembered: self.metadata.remembered,
            truncated,
            last: truncated,
            term_starts: Vec::new(),
        };
        if !self.offsets.offsets.is_empty() {
            // The term of the first entry began at it or before.
            let before = self.term_starts.partition_point(|start| start.index <= first);
            let first_term = before.checked_sub(1).map_or(truncated.term, |at| self.term_starts[at].term);
            if first_term < truncated.term {
                let what = format!("{}: entry {first}", shared.directory.display());
                return corrupt(
                    what,
                    format!("its term is {first_term}, but the log begins after {truncated}"),
                );
            }
            if first_term > truncated.term {
                state.term_starts.push(LogPosition { term: first_term, index: first });
            }
            state.term_starts.extend(&self.term_starts[before..]);
            state.last = LogPosition {
                term: self.term_starts.last().map_or(first_term, |start| start.term),
                index: self.offsets.end().previous(),
            };
        }
        let segment = match self.held.last_key_value() {
            Some((_, held)) => Arc::clone(&held.segment),
            // No record was ever written: the first one is written at the beginning.
            None => {
                let first = self.ahead.pop_front();
                let segment = first.expect("the loop over the segments begins with one, or fails");
                let held = Held { first_sequence: start.sequence, segment: Arc::clone(&segment) };
                self.held.insert(segment.number, held);
                segment
            }
        };
        let next = self.offsets.end();
        let torn = self.torn.map(|end| Torn { next, end });
        Ok(Recovered {
            torn,
            state,
            offsets: self.offsets,
            held: self.held,
            ahead: self.ahead,
            leftovers,
            tail: Tail {
                segment,
                offset: self.end.offset,
                next_sequence: self.expected,
                last_record: self.last_record,
            },
            metadata_from: self.metadata_from.filter(|from| *from > start.as_of),
        })
    }

    /// The index of the next entry.
    fn next_index(&self) -> LogIndex {
        self.offsets.end().max(self.metadata.truncated.index.next())
    }

    fn what(&self, path: &Path, offset: u64) -> String {
        let (sequence, index) = (self.expected, self.next_index());
        format!("{} at offset {offset}: record {sequence}, about entry {index},", path.display())
    }

    /// The record after the last one is damaged.
    fn damage(&self, proof: &str) -> StorageError {
        let End { path, offset, reason } = &self.end;
        StorageError::Corrupt { what: self.what(path, *offset), reason: format!("{reason}; {proof}") }
    }

    fn missing(&self, shared: &Shared, number: u64) -> StorageError {
        StorageError::Corrupt {
            what: self.what(&segments::path_of(&shared.directory, number), 0),
            reason: "the segment is missing".to_owned(),
        }
    }
}

/// The record at the beginning of `bytes`, or why the log ends there.
fn record_at(generation: Generation, bytes: &[u8], expected: u64) -> Result<(Header, &[u8]), String> {
    let read = || -> Result<(Header, &[u8]), Damage> {
        let header = Header::decode(generation, bytes)?;
        if header.sequence != expected {
            let reason = format!("record {} is there, where {expected} is expected", header.sequence);
            return Err(Damage::Content(reason));
        }
        let body = header.body(generation, bytes)?;
        Ok((header, body))
    };
    read().map_err(|damage| match damage {
        Damage::Content(reason) => reason,
        Damage::Version { found, known } => format!("it has version {found}, this program knows {known}"),
    })
}

/// The offset and the sequence number of a record from `offset` on that comes after `expected`, if there is
/// one.
fn later_record(generation: Generation, content: &[u8], offset: u64, expected: u64) -> Option<(u64, u64)> {
    let offsets = (offset as usize..content.len()).step_by(record::ALIGNMENT as usize);
    offsets
        .map(|at| (at, &content[at..]))
        // Few bytes that are not a record look like a number in this range, so that few checksums are
        // calculated.
        .filter(|(_, bytes)| {
            Header::sequence_at(bytes)
                .is_some_and(|sequence| sequence.wrapping_sub(expected + 1) < content.len() as u64)
        })
        .find_map(|(at, bytes)| Some((at as u64, Header::decode(generation, bytes).ok()?.sequence)))
}
