//! The segment log on a disk in memory with power failures, errors, exhausted space and damage: for the
//! simulator. Not for users: it changes without notice.
//!
//! The log is the one of [`WalStorage`](crate::WalStorage). The disk keeps the data that `WalStorage` keeps
//! in LMDB, and its transactions are atomic; there are no snapshots.

use std::path::PathBuf;
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, StorageError};

use super::log::SegmentLog;
use super::reader::SegmentReader;
use super::segment;
use super::simulated_disk::{FileId, Loss, Rng, SimulatedDisk};

/// Small enough that every node uses several segments.
const SEGMENT_BYTES: u64 = 8 << 10;

/// A journal longer than this starts again as soon as everything in it is durable.
const JOURNAL_MAX: usize = 256;

/// The state of an interrupted write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It had not started.
    Before,
    /// It was in progress.
    Within,
    /// It was complete, but not yet reported.
    After,
}

/// A log and its disk. One seed determines all random choices.
pub struct SimulatedLog {
    disk: SimulatedDisk,
    log: SegmentLog<SimulatedDisk>,
    rng: Rng,
    is_full: bool,
    /// The offsets of acknowledged records, in the order in which they were written.
    records: Vec<(FileId, u64, u64)>,
    /// Up to where the journal was searched for them.
    seen: usize,
    journal_max: usize,
}

impl SimulatedLog {
    /// A log on an empty disk.
    pub fn new(seed: u64) -> SimulatedLog {
        let mut rng = Rng(seed);
        let disk = SimulatedDisk::new(rng.below(2) == 0);
        disk.seed_random(rng.below(u64::MAX));
        SimulatedLog {
            log: open(&disk),
            disk,
            rng,
            is_full: false,
            records: Vec::new(),
            seen: 0,
            journal_max: JOURNAL_MAX,
        }
    }

    /// A process starts with the present content.
    ///
    /// # Errors
    /// As for [`StableStorage::load`](raftify_core::StableStorage::load).
    pub fn load(&mut self) -> Result<StoredState, StorageError> {
        let state = self.log.load()?;
        self.find_records(Found::Acknowledged);
        Ok(state)
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// As for [`StableStorage::write`](raftify_core::StableStorage::write).
    pub fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let written = self.log.write(writes);
        self.find_records(if written.is_ok() { Found::Acknowledged } else { Found::Uncertain });
        if self.seen > self.journal_max {
            self.journal_max = match self.disk.forget_journal() {
                true => JOURNAL_MAX,
                false => 2 * self.seen,
            };
            self.seen = self.disk.journal_length();
        }
        written
    }

    /// One of the next operations fails, once, if there are enough of them.
    ///
    /// # Errors
    /// The resulting error.
    pub fn write_and_fail(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        self.disk.fail_at(Some(self.disk.asked() + self.rng.below(5)));
        let written = self.write(writes);
        self.disk.fail_at(None);
        written
    }

    /// Sets whether the disk is full.
    pub fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
        self.disk.set_full(is_full);
    }

    /// Power fails while `under_way` is written, if it is not empty. Any part of the unflushed data may be
    /// lost.
    pub fn lose_power(&mut self, under_way: &[Write]) -> Cut {
        let (length, cut) = self.cut(under_way);
        let loss = match self.rng.below(5) {
            0 => Loss::All,
            1 => Loss::Nothing,
            2 => Loss::AfterBytes(self.rng.below(4000)),
            _ => Loss::Random(Rng(self.rng.below(u64::MAX))),
        };
        self.go_on_with(self.disk.after_power_loss(length, &loss));
        self.seen = 0;
        cut
    }

    /// The process ends while `under_way` is written, if it is not empty. Data that it wrote to the system
    /// stays there, but is not flushed.
    pub fn end_process(&mut self, under_way: &[Write]) -> Cut {
        let (length, cut) = self.cut(under_way);
        self.go_on_with(self.disk.after_process_end(length));
        self.seen = length;
        cut
    }

    /// After how many operations it ends.
    fn cut(&mut self, under_way: &[Write]) -> (usize, Cut) {
        let before = self.disk.journal_length();
        if !under_way.is_empty() {
            // It may fail: then the write stops at that point.
            let _ = self.log.write(under_way);
        }
        let operations = self.disk.journal_length() - before;
        let done = self.rng.below(operations as u64 + 1) as usize;
        self.find_records(Found::Uncertain);
        let cut = match done {
            _ if done == operations => Cut::After,
            0 => Cut::Before,
            _ => Cut::Within,
        };
        (before + done, cut)
    }

    fn go_on_with(&mut self, disk: SimulatedDisk) {
        self.disk = disk;
        self.disk.set_full(self.is_full);
        self.log = open(&self.disk);
    }

    /// Flips a bit of an acknowledged record, but not of the last one: damage of that one looks like a torn
    /// write. Returns whether there was such a record.
    pub fn turn_a_bit(&mut self) -> bool {
        let Some(count) = self.records.len().checked_sub(1).filter(|count| *count > 0) else {
            return false;
        };
        let (file, offset, bytes) = self.records[self.rng.below(count as u64) as usize];
        let at = offset + self.rng.below(bytes);
        self.disk.turn_bit(file, at, 1 << self.rng.below(8));
        true
    }

    /// A second one with the same content.
    pub fn copy(&mut self) -> SimulatedLog {
        let disk = self.disk.after_power_loss(self.disk.journal_length(), &Loss::Nothing);
        SimulatedLog {
            log: open(&disk),
            disk,
            rng: Rng(self.rng.below(u64::MAX)),
            is_full: false,
            records: self.records.clone(),
            seen: 0,
            journal_max: JOURNAL_MAX,
        }
    }

    /// A second view on the log.
    pub fn log_reader(&self) -> SimulatedLogReader {
        SimulatedLogReader(self.log.reader())
    }

    /// Finds the offsets of records in the journal.
    fn find_records(&mut self, found: Found) {
        for (file, offset, bytes) in self.disk.written_since(self.seen) {
            // A new header begins a new generation of the file: its earlier records are of no use any more.
            let is_header = offset < segment::HEADER_BYTES;
            self.records.retain(|record| record.0 != file || (!is_header && record.1 != offset));
            if !is_header && found == Found::Acknowledged {
                self.records.push((file, offset, bytes));
            }
        }
        self.seen = self.disk.journal_length();
    }
}

/// How much is known of records in the journal.
#[derive(PartialEq, Eq)]
enum Found {
    Acknowledged,
    Uncertain,
}

fn open(disk: &SimulatedDisk) -> SegmentLog<SimulatedDisk> {
    SegmentLog::new(PathBuf::from("log"), Arc::new(disk.clone()), disk.clone(), SEGMENT_BYTES)
}

/// Reads the log of a [`SimulatedLog`] concurrently with its writer.
#[derive(Clone)]
pub struct SimulatedLogReader(SegmentReader);

impl LogReader for SimulatedLogReader {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.0.read(from, until, bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::{EntryKind, LogPosition};

    use super::*;

    fn append(index: u64) -> Write {
        let position = LogPosition::new(1, index);
        let entry = Entry { position, kind: EntryKind::User, payload: vec![7; 100].into() };
        let hard_state = Some(raftify_core::HardState { term: position.term, ..Default::default() });
        Write { append: vec![entry], hard_state, ..Write::default() }
    }

    #[test]
    fn what_was_acknowledged_survives_what_happens_to_process_and_power() {
        for seed in 0..50 {
            let mut log = SimulatedLog::new(seed);
            log.load().unwrap();
            for index in 1..=200 {
                log.write(&[append(index)]).unwrap();
            }
            log.end_process(&[append(201)]);
            let at_least = log.load().unwrap().last.index;
            assert!(at_least >= LogIndex(200));
            log.lose_power(&[append(at_least.0 + 1)]);
            assert!(log.load().unwrap().last.index >= at_least, "seed {seed}");
        }
    }

    #[test]
    fn bit_that_is_turned_is_noticed() {
        for seed in 0..50 {
            let mut log = SimulatedLog::new(seed);
            log.load().unwrap();
            assert!(!log.turn_a_bit(), "there is no record yet");
            (1..=50).for_each(|index| log.write(&[append(index)]).unwrap());
            assert!(log.copy().load().is_ok());
            assert!(log.turn_a_bit());
            assert!(matches!(log.load(), Err(StorageError::Corrupt { .. })), "seed {seed}");
        }
    }

    #[test]
    fn failures_and_a_full_disk_stop_the_log_until_it_is_loaded_again() {
        for seed in 0..50 {
            let mut log = SimulatedLog::new(seed);
            log.load().unwrap();
            log.write(&[append(1)]).unwrap();
            if log.write_and_fail(&[append(2)]).is_err() {
                assert!(matches!(log.write(&[append(2)]), Err(StorageError::Refused { .. })));
            }
            log.end_process(&[]);
            let mut last = log.load().unwrap().last.index;
            assert!(last >= LogIndex(1));
            log.set_full(true);
            while log.write(&[append(last.0 + 1)]).is_ok() {
                last = last.next();
            }
            log.set_full(false);
            log.end_process(&[]);
            assert!(log.load().unwrap().last.index >= last, "seed {seed}");
        }
    }
}
