//! Cuts power after every operation of a workload, with every kind of loss of the unflushed data; lets every
//! operation fail once; fills the disk. Afterwards the log contains all acknowledged writes, and no data that
//! was never written.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{Entry, LogIndex, LogReader, StableStorage, StorageError};

use super::log::SegmentLog;
use super::simulated_disk::{Loss, Rng, SimulatedDisk};
use super::storage::WalStorage;
use crate::random_writes::{Step, step, write_of};

pub(super) const SEGMENT_BYTES: u64 = 1024;

/// Workloads that each test runs.
const SEEDS: std::ops::Range<u64> = 0..2;

/// The whole stored content at one time.
pub(super) type Content = (StoredState, Vec<Entry>);

/// Calls of `write`, and the content before the first and after each single `Write`.
pub(super) struct Workload {
    pub(super) batches: Vec<Vec<Write>>,
    /// One more than there are writes.
    pub(super) contents: Vec<Content>,
}

impl Workload {
    /// Different for each seed, and deterministic for one seed.
    pub(super) fn new(seed: u64, batches: usize) -> Workload {
        let mut rng = Rng(seed);
        let mut runner = TestRunner::deterministic();
        let mut content = Content::default();
        let mut workload = Workload { batches: Vec::new(), contents: vec![content.clone()] };
        for _ in 0..rng.below(50) {
            step().new_tree(&mut runner).unwrap();
        }
        while workload.batches.len() < batches {
            let mut batch = Vec::new();
            for _ in 0..=rng.below(3) {
                let step = step().new_tree(&mut runner).unwrap().current();
                let mut write = write_of(&step, &content.0);
                for entry in &mut write.append {
                    let length = match rng.below(40) {
                        0 => 2 * SEGMENT_BYTES,
                        1..6 => 200,
                        _ => 40,
                    };
                    entry.payload =
                        (0..rng.below(length)).map(|at| (at + seed) as u8).collect::<Vec<_>>().into();
                }
                if matches!(step, Step::Reopen) {
                    continue;
                }
                if let Some(next) = after(&content, &write) {
                    content = next;
                    workload.contents.push(content.clone());
                    batch.push(write);
                }
            }
            if !batch.is_empty() {
                workload.batches.push(batch);
            }
        }
        workload
    }

    /// How many writes the first `batches` have.
    pub(super) fn writes(&self, batches: usize) -> usize {
        self.batches[..batches].iter().map(Vec::len).sum()
    }
}

fn after((state, entries): &Content, write: &Write) -> Option<Content> {
    let state = state.after(write).ok()?;
    let mut entries = entries.clone();
    if write.reset_log.is_some() {
        entries.clear();
    }
    if let Some(first) = write.append.first() {
        entries.retain(|entry| entry.position.index < first.position.index);
        entries.extend_from_slice(&write.append);
    }
    entries.retain(|entry| entry.position.index > state.truncated.index);
    Some((state, entries))
}

pub(super) fn open(disk: &SimulatedDisk) -> SegmentLog<SimulatedDisk> {
    let operations = Arc::new(disk.clone());
    SegmentLog::new(PathBuf::from("log"), operations, disk.clone(), SEGMENT_BYTES)
}

fn load(disk: &SimulatedDisk) -> Result<(SegmentLog<SimulatedDisk>, Content), StorageError> {
    let mut log = open(disk);
    let state = log.load()?;
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    let entries = log.reader().read(from, until, u64::MAX)?;
    Ok((log, (state, entries)))
}

/// The possible losses of the unflushed part of the first `length` operations.
fn losses(disk: &SimulatedDisk, length: usize, seeds: u64) -> Vec<Loss> {
    let bytes = disk.unflushed_bytes(length);
    let mut losses = vec![Loss::All, Loss::Nothing];
    let step = (bytes / 6).max(1);
    losses.extend((0..=bytes).step_by(step as usize).map(Loss::AfterBytes));
    losses.extend([1, 63, 64, 65, bytes.saturating_sub(1)].map(Loss::AfterBytes));
    losses.extend((0..seeds).map(|seed| Loss::Random(Rng(seed.wrapping_mul(7919) + length as u64))));
    losses
}

/// Asserts that a disk after a power failure contains the required content, and nothing else; returns the
/// index of the content.
#[track_caller]
fn assert_recovers(
    disk: &SimulatedDisk,
    workload: &Workload,
    acknowledged: usize,
    begun: usize,
    case: &dyn fmt::Debug,
) -> usize {
    let found = match load(disk) {
        Ok((_, found)) => found,
        Err(error) => panic!("{case:?}: {error}"),
    };
    let allowed = workload.writes(acknowledged)..=workload.writes(begun);
    let at = allowed.clone().find(|at| workload.contents[*at] == found);
    at.unwrap_or_else(|| panic!("{case:?}: found {:?}, none of {allowed:?}", found.0))
}

fn cut_everywhere(seed: u64, lazy: bool) {
    let workload = Workload::new(seed, 30);
    let disk = SimulatedDisk::new(lazy);
    let mut log = open(&disk);
    // Operations until each call returned: the call to `load` first.
    log.load().unwrap();
    let mut returned = vec![disk.journal_length()];
    for batch in &workload.batches {
        log.write(batch).unwrap();
        returned.push(disk.journal_length());
    }
    drop(log);
    for length in 0..=disk.journal_length() {
        // A call that returned after exactly `length` operations may have returned or not; the stricter case
        // is assumed.
        let acknowledged = returned.iter().filter(|end| **end <= length).count().saturating_sub(1);
        let begun = (acknowledged + 1).min(workload.batches.len());
        for loss in losses(&disk, length, 6) {
            let cut = disk.after_power_loss(length, &loss);
            let case = (seed, lazy, length, &loss);
            let at = assert_recovers(&cut, &workload, acknowledged, begun, &case);
            // Recovery can be cut as well, and the content that it found must stay.
            let seldom = if length % 4 == 0 { cut.journal_length() + 1 } else { 0 };
            for again in 0..seldom {
                for loss in [Loss::All, Loss::Random(Rng(again as u64))] {
                    let twice = cut.after_power_loss(again, &loss);
                    let case = (&case, again, &loss);
                    assert_recovers(&twice, &workload, acknowledged, begun, &case);
                }
            }
            // And the log continues from there.
            let go_on: Vec<Write> = workload.batches.iter().flatten().skip(at).take(3).cloned().collect();
            let (mut log, _) = load(&cut).unwrap();
            log.write(&go_on).unwrap();
            drop(log);
            let (_, found) = load(&cut.after_power_loss(cut.journal_length(), &Loss::All)).unwrap();
            assert!(found == workload.contents[at + go_on.len()], "{case:?}: going on");
        }
    }
}

#[test]
fn power_cut_after_any_operation_loses_nothing_that_was_acknowledged() {
    for seed in SEEDS {
        cut_everywhere(seed, false);
    }
}

#[test]
fn power_cut_while_segments_are_prepared_loses_nothing_that_was_acknowledged() {
    for seed in SEEDS {
        cut_everywhere(seed, true);
    }
}

/// Loads, and writes the rest of the workload; returns how many batches are acknowledged, and the error.
fn run(disk: &SimulatedDisk, workload: &Workload, acknowledged: usize) -> (usize, Option<StorageError>) {
    let (mut log, content) = match load(disk) {
        Ok(loaded) => loaded,
        Err(error) => return (acknowledged, Some(error)),
    };
    let found = workload.contents.iter().position(|known| *known == content);
    let begun = (acknowledged + 1).min(workload.batches.len());
    let mut done = (acknowledged..=begun)
        .find(|batches| workload.contents[workload.writes(*batches)] == content)
        .unwrap_or_else(|| panic!("found {found:?}, after {acknowledged} batches"));
    while let Some(batch) = workload.batches.get(done) {
        if let Err(error) = log.write(batch) {
            let more = log.write(&workload.batches[0]);
            assert!(matches!(more, Err(StorageError::Refused { .. })), "{more:?}");
            return (done, Some(error));
        }
        done += 1;
    }
    (done, None)
}

#[test]
fn failure_of_any_operation_stops_the_log_and_loses_nothing() {
    for (seed, lazy) in SEEDS.zip([false, true].into_iter().cycle()) {
        let workload = Workload::new(seed, 30);
        let disk = SimulatedDisk::new(lazy);
        assert!(run(&disk, &workload, 0).1.is_none());
        let mut failures = 0;
        for at in 0..disk.asked() {
            let disk = SimulatedDisk::new(lazy);
            disk.fail_at(Some(at));
            let (acknowledged, error) = run(&disk, &workload, 0);
            failures += u64::from(error.is_some());
            // The power failure may happen right after the failure,
            let length = disk.journal_length();
            for loss in losses(&disk, length, 6) {
                let cut = disk.after_power_loss(length, &loss);
                let begun = (acknowledged + 1).min(workload.batches.len());
                assert_recovers(&cut, &workload, acknowledged, begun, &(seed, at, &loss));
            }
            // or only after the log was opened again, on the content that the system shows, and has
            // continued.
            let (done, error) = run(&disk, &workload, acknowledged);
            assert!(error.is_none(), "{seed}, {at}: {error:?}");
            assert_eq!(done, workload.batches.len());
            let length = disk.journal_length();
            for loss in [Loss::All, Loss::Nothing, Loss::Random(Rng(at)), Loss::Random(Rng(at + 1))] {
                let cut = disk.after_power_loss(length, &loss);
                assert_recovers(&cut, &workload, done, done, &(seed, at, &loss));
            }
        }
        // All others are deletions of recyclable data, and background work during the last writes.
        assert!(failures > disk.asked() * 3 / 4, "of {} failures, {failures} stopped the log", disk.asked());
    }
}

#[test]
fn full_disk_stops_the_log_and_it_goes_on_when_there_is_room() {
    for seed in SEEDS {
        let workload = Workload::new(seed, 60);
        let disk = SimulatedDisk::new(seed % 2 == 0);
        drop(load(&disk).unwrap());
        let mut done = 0;
        while done < workload.batches.len() {
            disk.set_full(true);
            let (acknowledged, error) = run(&disk, &workload, done);
            let full = error.is_some();
            assert!(full || acknowledged == workload.batches.len());
            let begun = (acknowledged + 1).min(workload.batches.len());
            let cut = disk.after_power_loss(disk.journal_length(), &Loss::All);
            cut.set_full(false);
            assert_recovers(&cut, &workload, acknowledged, begun, &(seed, acknowledged));
            disk.set_full(false);
            let (mut log, content) = load(&disk).unwrap();
            done = (acknowledged..=begun)
                .find(|batches| workload.contents[workload.writes(*batches)] == content)
                .unwrap();
            if let Some(batch) = workload.batches.get(done) {
                log.write(batch).unwrap();
                done += 1;
            }
        }
    }
}

#[test]
fn write_of_entries_and_hard_state_is_one_write_and_one_flush() {
    let disk = SimulatedDisk::new(true);
    let (mut log, _) = load(&disk).unwrap();
    let mut state = StoredState::default();
    for round in 0..6 {
        let before = disk.journal_length();
        let step = Step::Append { back: round % 3, count: 2, term: 1 };
        let write = write_of(&step, &state);
        state = state.after(&write).unwrap();
        log.write(&[write, Write::default()]).unwrap();
        assert_eq!(disk.count(before), (1, 1, 0), "writes, flushes, transactions of LMDB");
    }
    let before = disk.journal_length();
    log.write(&[Write::default()]).unwrap();
    log.write(&[]).unwrap();
    assert_eq!(disk.count(before), (0, 0, 0), "nothing to do");
}

/// A log over several segments, with its workload.
fn filled(seed: u64) -> (SimulatedDisk, Workload) {
    let workload = Workload::new(seed, 60);
    let disk = SimulatedDisk::new(false);
    assert!(run(&disk, &workload, 0).1.is_none());
    (disk, workload)
}

#[test]
fn flipped_bit_anywhere_is_noticed_or_changes_nothing_but_the_last_record() {
    for seed in [30, 31] {
        let (disk, workload) = filled(seed);
        let batches = workload.batches.len();
        let contents = [batches - 1, batches].map(|batches| &workload.contents[workload.writes(batches)]);
        let mut noticed = 0;
        for path in disk.names() {
            let length = disk.content(&path).len();
            for at in (0..length).step_by(3) {
                let copy = disk.copy();
                copy.damage(&path, |content| content[at] ^= 1 << (at % 8));
                match load(&copy) {
                    Ok((_, found)) => assert!(contents.contains(&&found), "{path:?} at {at}: {:?}", found.0),
                    Err(StorageError::Corrupt { what, .. } | StorageError::Version { what, .. }) => {
                        assert!(what.contains(".segment at offset "), "{what}");
                        noticed += 1;
                    }
                    Err(other) => panic!("{path:?} at {at}: {other}"),
                }
            }
        }
        assert!(noticed > 100, "{noticed}");
    }
}

#[test]
fn missing_or_cut_off_segment_is_noticed() {
    let (disk, workload) = filled(32);
    let names = disk.names();
    assert!(names.len() > 4, "{names:?}");
    let mut missing = 0;
    for path in &names {
        let copy = disk.copy();
        copy.delete(path);
        match load(&copy) {
            Ok((_, found)) => assert!(found == *workload.contents.last().unwrap(), "{path:?}"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("the segment is missing"), "{error}");
                missing += 1;
            }
        }
        let copy = disk.copy();
        copy.damage(path, |content| content.truncate(content.len() - 1));
        match load(&copy) {
            Ok((_, found)) => assert!(found == *workload.contents.last().unwrap(), "{path:?}"),
            Err(error) => assert!(error.to_string().contains("bytes, but was made with"), "{error}"),
        }
    }
    assert!(missing >= 2, "{missing}");
}

#[test]
fn segments_are_recycled_and_none_is_left_behind() {
    let disk = SimulatedDisk::new(false);
    let (mut log, _) = load(&disk).unwrap();
    let mut state = StoredState::default();
    let mut apply = |step: Step| {
        let write = write_of(&step, &state);
        state = state.after(&write).unwrap();
        log.write(&[write]).unwrap();
    };
    for _ in 0..200 {
        apply(Step::Append { back: 0, count: 5, term: 0 });
        apply(Step::HardState { term: 0, vote: 0, commit: 5 });
        apply(Step::Snapshot { back: 0 });
        apply(Step::Compact { back: 1 });
    }
    drop(log);
    assert!(disk.files() < 20, "{} files were made for 200 rounds", disk.files());
    drop(load(&disk).unwrap());
    assert!(disk.names().len() <= 4, "{:?}", disk.names());
}

#[test]
fn reader_that_holds_an_offset_is_not_disturbed_by_recycling() {
    let directory = tempfile::tempdir().unwrap();
    let mut storage = WalStorage::with_segment_bytes(directory.path(), SEGMENT_BYTES).unwrap();
    let mut state = storage.load().unwrap();
    let reader = storage.log_reader();
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reading = scope.spawn(move || {
            let mut read = 0;
            let mut from = LogIndex(1);
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                match reader.read(from, from.next(), u64::MAX) {
                    Ok(entries) => {
                        let index = entries[0].position.index;
                        assert_eq!(index, from);
                        assert_eq!(entries[0].payload, Bytes::from(vec![index.0 as u8; 100]));
                        read += 1;
                        from = from.next();
                    }
                    Err(StorageError::Compacted { truncated, .. }) => from = truncated.index.next(),
                    Err(StorageError::BeyondEnd { last, .. }) => from = LogIndex(last.index.0.max(1)),
                    Err(other) => panic!("{other}"),
                }
            }
            read
        });
        for _ in 0..300 {
            for step in [
                Step::Append { back: 0, count: 5, term: 0 },
                Step::HardState { term: 0, vote: 0, commit: 5 },
                Step::Snapshot { back: 0 },
                Step::Compact { back: 1 },
            ] {
                let mut write = write_of(&step, &state);
                for entry in &mut write.append {
                    entry.payload = vec![entry.position.index.0 as u8; 100].into();
                }
                state = state.after(&write).unwrap();
                storage.log.write(&[write]).unwrap();
            }
        }
        drop(stop);
        assert!(reading.join().unwrap() > 0);
    });
}
