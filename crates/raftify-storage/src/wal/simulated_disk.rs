//! A disk in memory that keeps a journal of its operations, can be cut off after any of them, and can fail.
//!
//! Data that was not flushed before a power failure may be there afterwards, or missing, or partly there:
//! sector by sector in any combination, and torn within a sector. Names that were not flushed are there or
//! not, in any combination; a rename is atomic. The metadata stands for LMDB: a transaction is atomic.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use raftify_core::StorageError;

use super::metadata::{LogStart, Metadata, MetadataStore};
use crate::files::{NameOperations, SegmentFile, SegmentOperations, Work, io_error};

/// Smaller than on a real disk, so that a small file has more sectors.
const SECTOR_BYTES: u64 = 64;

/// The same numbers for the same seed.
#[derive(Clone, Debug, Default)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    /// A number below `bound` (splitmix64).
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The fate of unflushed data.
#[derive(Clone, Debug)]
pub(super) enum Loss {
    /// All of it is lost.
    All,
    /// None of it is lost.
    Nothing,
    /// This many bytes survive, in the order of writing, and the names.
    AfterBytes(u64),
    /// Any part survives.
    Random(Rng),
}

pub(super) type FileId = usize;

#[derive(Clone, Debug)]
enum Operation {
    Create(PathBuf, FileId),
    Write(FileId, u64, Vec<u8>),
    Sync(FileId),
    /// The system dropped unwritten data, but still shows it.
    FailedSync(FileId),
    Rename(PathBuf, PathBuf, FileId),
    Remove(PathBuf),
    SyncNames,
    Store(Box<Metadata>, LogStart),
}

#[derive(Clone, Debug, Default)]
struct Image {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, FileId>,
    metadata: (Metadata, Option<LogStart>),
}

impl Image {
    fn write(&mut self, file: FileId, offset: u64, data: &[u8]) {
        let content = &mut self.files[file];
        let (offset, end) = (offset as usize, offset as usize + data.len());
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(data);
    }

    fn change_names(&mut self, operation: &Operation) {
        match operation {
            Operation::Create(path, file) => drop(self.names.insert(path.clone(), *file)),
            Operation::Rename(from, to, file) => {
                // If the rename survives and the creation does not, another file may still have the old name.
                if self.names.get(from) == Some(file) {
                    self.names.remove(from);
                }
                self.names.insert(to.clone(), *file);
            }
            Operation::Remove(path) => drop(self.names.remove(path)),
            _ => unreachable!("only names are kept for later"),
        }
    }
}

/// A write that may not be on the disk; `None` for bytes that were overwritten since.
#[derive(Clone)]
struct Pending {
    file: FileId,
    offset: u64,
    data: Vec<Option<u8>>,
    given_up: bool,
}

#[derive(Default)]
struct State {
    /// The content that the process sees.
    live: Image,
    /// The content at the beginning of the journal.
    begin: Image,
    journal: Vec<Operation>,
    /// Counts all operations that can fail.
    asked: u64,
    fail_at: Option<u64>,
    full: bool,
    /// Whether background work is done only when it is waited for; otherwise it is done at once.
    lazy: bool,
    /// The random numbers that the log asks for.
    random: Rng,
}

#[derive(Clone, Default)]
pub(super) struct SimulatedDisk(Arc<Mutex<State>>);

impl SimulatedDisk {
    pub(super) fn new(lazy: bool) -> SimulatedDisk {
        let disk = SimulatedDisk::default();
        disk.state().lazy = lazy;
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// How many operations the journal has.
    pub(super) fn journal_length(&self) -> usize {
        self.state().journal.len()
    }

    /// How many operations that could fail were requested.
    pub(super) fn asked(&self) -> u64 {
        self.state().asked
    }

    /// Lets that operation fail, once.
    pub(super) fn fail_at(&self, at: Option<u64>) {
        self.state().fail_at = at;
    }

    pub(super) fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    fn replay(&self, length: usize) -> (Image, Vec<Pending>, Vec<Operation>) {
        let state = self.state();
        let mut image = state.begin.clone();
        let (mut pending, mut names): (Vec<Pending>, Vec<Operation>) = Default::default();
        for operation in &state.journal[..length] {
            match operation {
                Operation::Create(_, file) => {
                    image.files.resize(image.files.len().max(file + 1), Vec::new());
                    names.push(operation.clone());
                }
                Operation::Rename(..) | Operation::Remove(_) => names.push(operation.clone()),
                Operation::SyncNames => names.drain(..).for_each(|name| image.change_names(&name)),
                Operation::Store(metadata, start) => {
                    image.metadata = (Metadata::clone(metadata), Some(*start))
                }
                Operation::Write(file, offset, data) => pending.push(Pending {
                    file: *file,
                    offset: *offset,
                    data: data.iter().copied().map(Some).collect(),
                    given_up: false,
                }),
                Operation::FailedSync(file) => {
                    for write in pending.iter_mut().filter(|write| write.file == *file) {
                        write.given_up = true;
                    }
                }
                Operation::Sync(file) => {
                    let mut left: Vec<Pending> = Vec::new();
                    for write in pending.drain(..) {
                        if write.file != *file || write.given_up {
                            left.push(write);
                            continue;
                        }
                        let data: Vec<u8> = write.data.iter().flatten().copied().collect();
                        image.write(write.file, write.offset, &data);
                        let written = write.offset..write.offset + data.len() as u64;
                        for earlier in left.iter_mut().filter(|left| left.file == *file) {
                            for (at, byte) in (earlier.offset..).zip(&mut earlier.data) {
                                if written.contains(&at) {
                                    *byte = None;
                                }
                            }
                        }
                    }
                    pending = left;
                }
            }
        }
        (image, pending, names)
    }

    /// The disk after a power failure when the first `length` operations had started.
    pub(super) fn after_power_loss(&self, length: usize, loss: &Loss) -> SimulatedDisk {
        let (mut image, pending, names) = self.replay(length);
        let mut left = match loss {
            Loss::AfterBytes(bytes) => *bytes,
            _ => u64::MAX,
        };
        let mut rng = match loss {
            Loss::Random(rng) => rng.clone(),
            _ => Rng(0),
        };
        // The probability of survival is different each time, which gives all mixtures.
        let survive = rng.below(5);
        for Pending { file, offset, data, .. } in pending {
            let mut torn_at = u64::MAX;
            let mut sector = u64::MAX;
            let mut keep = true;
            for (at, byte) in (offset..).zip(data) {
                match loss {
                    Loss::All => keep = false,
                    Loss::Nothing => {}
                    Loss::AfterBytes(_) => {
                        keep = left > 0;
                        left = left.saturating_sub(1);
                    }
                    Loss::Random(_) => {
                        if at / SECTOR_BYTES != sector {
                            sector = at / SECTOR_BYTES;
                            keep = rng.below(4) < survive;
                            torn_at = match rng.below(4) {
                                0 => at + rng.below(SECTOR_BYTES),
                                _ => u64::MAX,
                            };
                        }
                        if at == torn_at {
                            keep = !keep;
                        }
                    }
                }
                if let (true, Some(byte)) = (keep, byte) {
                    image.write(file, at, &[byte]);
                }
            }
        }
        for name in names {
            let keep = match loss {
                Loss::All => false,
                Loss::Nothing | Loss::AfterBytes(_) => true,
                Loss::Random(_) => rng.below(4) < survive,
            };
            if keep {
                image.change_names(&name);
            }
        }
        let state = self.state();
        SimulatedDisk(Arc::new(Mutex::new(State {
            live: image.clone(),
            begin: image,
            lazy: state.lazy,
            random: state.random.clone(),
            ..State::default()
        })))
    }

    /// The disk when the process ended after the first `length` operations: no data is lost, and no further
    /// data is flushed.
    #[cfg(feature = "simulation")]
    pub(super) fn after_process_end(&self, length: usize) -> SimulatedDisk {
        let live = self.after_power_loss(length, &Loss::Nothing).state().live.clone();
        let state = self.state();
        SimulatedDisk(Arc::new(Mutex::new(State {
            live,
            begin: state.begin.clone(),
            journal: state.journal[..length].to_vec(),
            lazy: state.lazy,
            random: state.random.clone(),
            ..State::default()
        })))
    }

    /// Starts a new journal, if everything in it is durable. Returns whether it is.
    #[cfg(feature = "simulation")]
    pub(super) fn forget_journal(&self) -> bool {
        let (image, pending, names) = self.replay(self.journal_length());
        let is_durable = pending.is_empty() && names.is_empty();
        if is_durable {
            let mut state = self.state();
            state.begin = image;
            state.journal.clear();
        }
        is_durable
    }

    /// Flips a bit of this byte of a file everywhere, flushed or not.
    #[cfg(feature = "simulation")]
    pub(super) fn turn_bit(&self, file: FileId, at: u64, mask: u8) {
        let mut state = self.state();
        let State { live, begin, journal, .. } = &mut *state;
        for image in [live, begin] {
            if let Some(byte) = image.files.get_mut(file).and_then(|content| content.get_mut(at as usize)) {
                *byte ^= mask;
            }
        }
        for operation in journal {
            if let Operation::Write(of, offset, data) = operation
                && *of == file
                && let Some(byte) = at.checked_sub(*offset).and_then(|at| data.get_mut(at as usize))
            {
                *byte ^= mask;
            }
        }
    }

    /// The writes after the first `from` operations: the file, the offset, and how many bytes that are not
    /// all zero.
    #[cfg(feature = "simulation")]
    pub(super) fn written_since(&self, from: usize) -> Vec<(FileId, u64, u64)> {
        let state = self.state();
        let written = state.journal.iter().skip(from).filter_map(|operation| match operation {
            Operation::Write(file, offset, data) if data.iter().any(|byte| *byte != 0) => {
                Some((*file, *offset, data.len() as u64))
            }
            _ => None,
        });
        written.collect()
    }

    /// The seed of the random numbers that the log asks for.
    #[cfg(feature = "simulation")]
    pub(super) fn seed_random(&self, seed: u64) {
        self.state().random = Rng(seed);
    }
}

#[cfg(test)]
impl SimulatedDisk {
    /// The paths of the files, as the process sees them.
    pub(super) fn names(&self) -> Vec<PathBuf> {
        self.state().live.names.keys().cloned().collect()
    }

    /// How many files were ever created.
    pub(super) fn files(&self) -> usize {
        self.state().live.files.len()
    }

    /// Writes, flushes and stored metadata after the first `from` operations.
    pub(super) fn count(&self, from: usize) -> (usize, usize, usize) {
        let state = self.state();
        let of =
            |wanted: fn(&Operation) -> bool| state.journal[from..].iter().filter(|op| wanted(op)).count();
        (
            of(|operation| matches!(operation, Operation::Write(..))),
            of(|operation| matches!(operation, Operation::Sync(..))),
            of(|operation| matches!(operation, Operation::Store(..))),
        )
    }

    /// Bytes that were written but not flushed after `length` operations.
    pub(super) fn unflushed_bytes(&self, length: usize) -> u64 {
        let (_, pending, _) = self.replay(length);
        pending.iter().map(|pending| pending.data.len() as u64).sum()
    }

    /// Changes one byte of a file without the log.
    pub(super) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let file = state.live.names[path];
        change(&mut state.live.files[file]);
    }

    pub(super) fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.live.files[state.live.names[path]].clone()
    }

    pub(super) fn delete(&self, path: &Path) {
        self.state().live.names.remove(path).unwrap();
    }

    /// A second one with the same content and an empty journal.
    pub(super) fn copy(&self) -> SimulatedDisk {
        self.after_power_loss(self.journal_length(), &Loss::Nothing)
    }
}

impl State {
    /// Whether the next operation fails.
    fn fails(&mut self) -> bool {
        self.asked += 1;
        self.fail_at == Some(self.asked - 1)
    }

    fn enter(&mut self) -> io::Result<()> {
        match self.fails() {
            true => Err(io::Error::other("simulated failure")),
            false => Ok(()),
        }
    }

    fn change_names(&mut self, operation: Operation) {
        self.live.change_names(&operation);
        self.journal.push(operation);
    }

    fn write(&mut self, file: FileId, offset: u64, data: &[u8]) {
        self.live.write(file, offset, data);
        self.journal.push(Operation::Write(file, offset, data.to_vec()));
    }
}

impl NameOperations for SimulatedDisk {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter()?;
        let file = *state.live.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(Operation::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter()?;
        state.journal.push(Operation::SyncNames);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter()?;
        if !state.live.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(Operation::Remove(path.to_owned()));
        Ok(())
    }
}

impl SegmentOperations for SimulatedDisk {
    fn create_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let mut state = self.state();
        state.enter()?;
        if state.live.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.live.files.len();
        state.live.files.push(Vec::new());
        state.change_names(Operation::Create(path.to_owned(), file));
        Ok(Box::new(SimulatedFile(self.clone(), file)))
    }

    fn open_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let mut state = self.state();
        state.enter()?;
        let file = state.live.names.get(path).copied();
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimulatedFile(self.clone(), file)))
    }

    fn read_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        self.open_segment(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut state = self.state();
        state.enter()?;
        let names = state.live.names.keys();
        Ok(names.filter(|path| path.parent() == Some(directory)).cloned().collect())
    }

    fn random(&self) -> u64 {
        self.state().random.below(u64::MAX)
    }

    fn spawn(&self, work: Work) -> io::Result<Work> {
        let lazy = self.state().lazy;
        if lazy {
            return Ok(work);
        }
        work();
        Ok(Box::new(|| {}))
    }
}

struct SimulatedFile(SimulatedDisk, FileId);

impl SegmentFile for SimulatedFile {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.state();
        if state.fails() {
            state.write(self.1, offset, &data[..data.len() / 2]);
            return Err(io::Error::other("simulated failure"));
        }
        if state.full && offset + data.len() as u64 > state.live.files[self.1].len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.write(self.1, offset, data);
        Ok(())
    }

    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.state();
        state.enter()?;
        let content = &state.live.files[self.1];
        let range = content.get(offset as usize..offset as usize + data.len());
        data.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn length_bytes(&self) -> io::Result<u64> {
        let mut state = self.0.state();
        state.enter()?;
        Ok(state.live.files[self.1].len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state();
        if state.fails() {
            state.journal.push(Operation::FailedSync(self.1));
            return Err(io::Error::other("simulated failure"));
        }
        state.journal.push(Operation::Sync(self.1));
        Ok(())
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        Ok(self.0.state().live.names.get(path) == Some(&self.1))
    }
}

impl MetadataStore for SimulatedDisk {
    fn load(&self) -> Result<(Metadata, Option<LogStart>), StorageError> {
        Ok(self.state().live.metadata.clone())
    }

    fn store(&self, metadata: &Metadata, start: LogStart) -> Result<(), StorageError> {
        let mut state = self.state();
        let fails = state.fails();
        let full = state.full;
        // A failed transaction may have happened.
        if !full && (!fails || state.asked.is_multiple_of(2)) {
            state.live.metadata = (metadata.clone(), Some(start));
            state.journal.push(Operation::Store(Box::new(metadata.clone()), start));
        }
        match (fails, full) {
            (false, false) => Ok(()),
            _ => Err(io_error("write to", Path::new("metadata"))(io::Error::other("simulated failure"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_that_survives_without_the_creation_gives_its_name_to_no_other_file() {
        let disk = SimulatedDisk::new(false);
        let (partial, finished) = (Path::new("log/partial"), Path::new("log/segment"));
        disk.create_segment(partial).unwrap().write_all_at(b"old", 0).unwrap();
        disk.sync_directory(Path::new("log")).unwrap();
        disk.remove(partial).unwrap();
        let file = disk.create_segment(partial).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        file.sync().unwrap();
        disk.rename(partial, finished).unwrap();
        let losses = (0..1000).map(|seed| Loss::Random(Rng(seed)));
        let survivors: Vec<_> = losses
            .map(|loss| disk.after_power_loss(disk.journal_length(), &loss))
            .filter(|after| after.names().contains(&finished.to_owned()))
            .map(|after| after.content(finished))
            .collect();
        assert!(!survivors.is_empty());
        assert!(survivors.iter().all(|content| content == b"new"));
    }
}
