//! Runs the workloads, makes the cuts, and judges what is found afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use raftify_core::{
    LogPosition, LogReader, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError,
};
use raftify_storage::{HeedStorage, StorageKind, WalSettings, WalStorage, convert_storage_with};

use super::disk::{Cut, Image, Kept, Remains, chance};
use super::recorder::{self, Recording};
use super::workload::{Content, Step, Workload};

/// The data directory below the recorded one.
pub(super) const NODE: &str = "node";

/// LMDB's table of readers, which it writes through a map: without meaning when nobody has it open.
const READERS: &str = "lock.mdb";

/// Small segments, so that there are many of them.
pub(super) const SETTINGS: WalSettings = WalSettings { segment_bytes: 64 << 10 };

/// A storage, and how it is opened.
pub(super) trait Kind {
    const KIND: StorageKind;
    type Storage: StableStorage;
    fn open(directory: &Path) -> Result<Self::Storage, StorageError>;
}

struct Heed;

impl Kind for Heed {
    const KIND: StorageKind = StorageKind::Heed;
    type Storage = HeedStorage;

    fn open(directory: &Path) -> Result<HeedStorage, StorageError> {
        HeedStorage::open(directory)
    }
}

struct Wal;

impl Kind for Wal {
    const KIND: StorageKind = StorageKind::Wal;
    type Storage = WalStorage;

    fn open(directory: &Path) -> Result<WalStorage, StorageError> {
        WalStorage::open_with(directory, SETTINGS)
    }
}

/// How much is tried.
pub(super) struct Extent {
    seeds: u64,
    pub(super) steps: usize,
    /// Of so many cuts one is made,
    one_of: u64,
    /// with so many remainders by chance,
    by_chance: u64,
    /// and of so many directories one lives on.
    lives_on: u64,
    /// In one of so many operations the process is killed.
    killed: u64,
}

const SHORT: Extent = Extent { seeds: 1, steps: 40, one_of: 6, by_chance: 2, lives_on: 400, killed: 6 };
const ALL: Extent = Extent { seeds: 3, steps: 100, one_of: 1, by_chance: 6, lives_on: 1_000, killed: 1 };

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[allow(unsafe_code, reason = "Ctrl+C ends the run with its summary")]
fn end_on_interrupt() {
    extern "C" fn interrupted(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    // SAFETY: all that the handler does is to store into an atomic.
    unsafe { libc::signal(libc::SIGINT, interrupted as extern "C" fn(libc::c_int) as libc::sighandler_t) };
}

pub(crate) fn main() -> ExitCode {
    end_on_interrupt();
    let extent = match std::env::var("CRASH_POINTS").as_deref() {
        Err(_) => SHORT,
        Ok("all") => ALL,
        Ok(other) => {
            println!("CRASH_POINTS can only be `all`, it is `{other}`");
            return ExitCode::FAILURE;
        }
    };
    // In memory, if the machine has that: what counts is what was asked, not what a disk does.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let place = tempfile::Builder::new().prefix("crash-points-").tempdir_in(place).unwrap();
    let mut tried = Tried { place: place.path().to_owned(), extent, passed: 0, failed: 0 };
    for seed in 0..tried.extent.seeds {
        tried.life::<Heed>(seed);
        tried.life::<Wal>(seed);
        tried.conversion::<Heed, Wal>(seed);
        tried.conversion::<Wal, Heed>(seed);
        tried.recovery::<Heed>(seed);
        tried.recovery::<Wal>(seed);
        tried.restore::<Heed>(seed);
        tried.restore::<Wal>(seed);
    }
    if tried.failed > 0 {
        println!("what failed is kept in {}", place.keep().display());
    }
    println!("{} passed, {} failed", tried.passed, tried.failed);
    if tried.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(super) struct Tried {
    place: PathBuf,
    pub(super) extent: Extent,
    passed: u64,
    failed: u64,
}

/// Where a cut lies among the steps of a workload.
struct Moment<'w> {
    workload: &'w Workload,
    /// So many writes were behind the directory when its record began,
    before: usize,
    /// and so many are acknowledged, or begun, now.
    acknowledged: usize,
    begun: usize,
    /// Snapshots that must be there.
    snapshots: Vec<LogPosition>,
}

impl Tried {
    /// The life of a node from its first day, cut everywhere.
    fn life<K: Kind>(&mut self, seed: u64) {
        let workload = Workload::new(seed, self.extent.steps);
        let root = self.root("live", &Image::new());
        recorder::start(&root, Image::new());
        let (mut storage, _) = load::<K>(&root.join(NODE)).unwrap();
        let mut returned = vec![recorder::length()];
        for step in &workload.steps {
            carry_out(&mut storage, step).unwrap();
            returned.push(recorder::length());
        }
        drop(storage);
        let recording = stopped(&root);
        let what = format!("a life with {}, seed {seed}", K::KIND);
        let cuts = self.cut_everywhere(&what, seed, &recording, |tried, length, image, case| {
            let acknowledged = returned.iter().filter(|end| **end <= length).count().saturating_sub(1);
            let begun = if length < returned[0] { 0 } else { workload.steps.len().min(acknowledged + 1) };
            let moment = Moment {
                workload: &workload,
                before: 0,
                acknowledged: workload.writes(acknowledged),
                begun: workload.writes(begun),
                snapshots: snapshots(&workload.steps, acknowledged, begun),
            };
            let root = tried.root("cut", image);
            let found = check::<K>(&root.join(NODE), &moment)?;
            if chance(seed, case).is_multiple_of(tried.extent.lives_on) {
                tried.second_life::<K>(seed, image, &workload, found)?;
            }
            Ok(())
        });
        self.report(&what, &recording, cuts);
        let kills = self.killed::<K>(&what, seed, &recording, &workload);
        self.report(&format!("killed in {what}"), &recording, kills);
    }

    /// A process is killed in the midst of an operation, and the system keeps all that it has asked for, but
    /// not yet on the disk. Another one opens the directory, and acknowledges a write. Then the power
    /// goes: what that one has found, it has acted upon.
    fn killed<K: Kind>(
        &mut self,
        what: &str,
        seed: u64,
        recording: &Recording,
        workload: &Workload,
    ) -> usize {
        let mut kills = 0;
        let mut before = Cut::new(&recording.begin, &[]);
        for (at, operation) in recording.journal.iter().enumerate() {
            let mut cut = before.clone();
            before.then(operation);
            if INTERRUPTED.load(Ordering::Relaxed) {
                break;
            }
            if at >= 16 && !chance(seed, at).is_multiple_of(self.extent.killed) {
                continue;
            }
            kills += 1;
            if let Some(in_flight) = operation.unsynced() {
                cut.then(&in_flight);
            }
            let all = Remains { content: Kept::All, names: Kept::All };
            let image = cut.image(all);
            let root = self.root("killed", &image);
            recorder::start(&root, image.clone());
            let opened = load::<K>(&root.join(NODE)).map(|(mut storage, found)| {
                let written = workload.next_after(&found).map(|(write, after)| {
                    carry_out(&mut storage, &write).unwrap();
                    after
                });
                (storage, written.unwrap_or(found))
            });
            let length = recorder::length();
            let found = opened.map(|(storage, found)| {
                drop(storage);
                found
            });
            let journal = recorder::stop().journal;
            for operation in &journal[..length] {
                cut.then(operation);
            }
            for remains in cut.remains(self.extent.by_chance) {
                let image = cut.image(remains);
                let verdict = found.as_ref().map_err(ToString::to_string).and_then(|found| {
                    let root = self.root("cut", &image);
                    let (_, now) = load::<K>(&root.join(NODE)).map_err(|error| error.to_string())?;
                    if now == *found {
                        return Ok(());
                    }
                    Err(format!("what was there is lost: {:?}, now {:?}", found.0, now.0))
                });
                match verdict {
                    Ok(()) => self.passed += 1,
                    Err(reason) => {
                        let what = format!("killed in {what}");
                        self.keep(&what, recording, at + 1, remains, &image, &reason);
                    }
                }
            }
        }
        kills
    }

    /// What a cut has left is opened, lives on, and loses the power again.
    fn second_life<K: Kind>(
        &mut self,
        seed: u64,
        image: &Image,
        workload: &Workload,
        found: usize,
    ) -> Result<(), String> {
        let root = self.root("again", image);
        recorder::start(&root, image.clone());
        let mut storage = match load::<K>(&root.join(NODE)) {
            Ok((storage, _)) => storage,
            Err(error) => {
                recorder::stop();
                return Err(format!("opened twice: {error}"));
            }
        };
        let mut returned = vec![recorder::length()];
        let mut skip = found;
        for step in &workload.steps {
            match step {
                Step::Write(writes) => {
                    for write in writes.get(skip..).unwrap_or_default() {
                        carry_out(&mut storage, &Step::Write(vec![write.clone()])).unwrap();
                        returned.push(recorder::length());
                    }
                    skip = skip.saturating_sub(writes.len());
                }
                Step::Snapshot(..) | Step::Received(..) if skip == 0 => {
                    carry_out(&mut storage, step).unwrap()
                }
                Step::Snapshot(..) | Step::Received(..) | Step::Retain(_) => {}
            }
            if returned.len() > 4 {
                break;
            }
        }
        drop(storage);
        let recording = stopped(&root);
        let what = format!("a second life with {}, seed {seed}", K::KIND);
        self.cut_everywhere(&what, seed, &recording, |tried, length, image, _| {
            let acknowledged = returned.iter().filter(|end| **end <= length).count().saturating_sub(1);
            let begun = if length < returned[0] { 0 } else { acknowledged + 1 };
            let last = workload.contents.len() - 1;
            let moment = Moment {
                workload,
                before: found,
                acknowledged: found + acknowledged,
                begun: last.min(found + begun),
                snapshots: Vec::new(),
            };
            check::<K>(&tried.root("cut again", image).join(NODE), &moment).map(drop)
        });
        Ok(())
    }

    /// A conversion, cut everywhere: the directory is of one kind or the other, whole, and can be converted
    /// again.
    fn conversion<From: Kind, To: Kind>(&mut self, seed: u64) {
        let workload = Workload::new(seed, self.extent.steps);
        let root = self.root("live", &Image::new());
        recorder::start(&root, Image::new());
        let (mut storage, _) = load::<From>(&root.join(NODE)).unwrap();
        for step in &workload.steps {
            carry_out(&mut storage, step).unwrap();
        }
        drop(storage);
        let before = stopped(&root).live;
        recorder::start(&root, before);
        convert_storage_with(root.join(NODE), To::KIND, SETTINGS).unwrap();
        let converted = recorder::length();
        let recording = stopped(&root);
        let whole = workload.writes(workload.steps.len());
        let steps = workload.steps.len();
        let moment = Moment {
            workload: &workload,
            before: whole,
            acknowledged: whole,
            begun: whole,
            snapshots: snapshots(&workload.steps, steps, steps),
        };
        let what = format!("a conversion from {} to {}, seed {seed}", From::KIND, To::KIND);
        let cuts = self.cut_everywhere(&what, seed, &recording, |tried, length, image, _| {
            let directory = tried.root("cut", image).join(NODE);
            match From::open(&directory).map(drop) {
                Ok(()) if length == converted => return Err("it has not changed hands".to_owned()),
                Ok(()) => check::<From>(&directory, &moment).map(drop)?,
                Err(StorageError::OtherKind { .. }) => check::<To>(&directory, &moment).map(drop)?,
                Err(error) => return Err(error.to_string()),
            }
            convert_storage_with(&directory, To::KIND, SETTINGS)
                .map_err(|error| format!("converted again: {error}"))?;
            check::<To>(&directory, &moment).map(drop)
        });
        self.report(&what, &recording, cuts);
    }

    /// Makes the cuts of `recording`, with all that can remain, and has each image judged; says how many
    /// cuts.
    pub(super) fn cut_everywhere(
        &mut self,
        what: &str,
        seed: u64,
        recording: &Recording,
        mut judge: impl FnMut(&mut Tried, usize, &Image, usize) -> Result<(), String>,
    ) -> usize {
        let (mut cuts, mut case) = (0, 0);
        let mut cut = Cut::new(&recording.begin, &[]);
        for length in 0..=recording.journal.len() {
            if let Some(at) = length.checked_sub(1) {
                cut.then(&recording.journal[at]);
            }
            let last = length == recording.journal.len();
            if length > 16 && !last && !chance(seed, length).is_multiple_of(self.extent.one_of) {
                continue;
            }
            cuts += 1;
            for remains in cut.remains(self.extent.by_chance) {
                if INTERRUPTED.load(Ordering::Relaxed) {
                    return cuts;
                }
                case += 1;
                let image = cut.image(remains);
                let verdict = catch_unwind(AssertUnwindSafe(|| judge(self, length, &image, case)))
                    .unwrap_or_else(|_| Err("it panicked".to_owned()));
                match verdict {
                    Ok(()) => self.passed += 1,
                    Err(reason) => self.keep(what, recording, length, remains, &image, &reason),
                }
            }
        }
        cuts
    }

    pub(super) fn report(&self, what: &str, recording: &Recording, cuts: usize) {
        let (operations, passed, failed) = (recording.journal.len(), self.passed, self.failed);
        println!(
            "{what}: {operations} operations, cut after {cuts}; so far {passed} passed, {failed} failed"
        );
    }

    fn keep(
        &mut self,
        what: &str,
        recording: &Recording,
        length: usize,
        remains: Remains,
        image: &Image,
        reason: &str,
    ) {
        self.failed += 1;
        println!("{what}: cut after {length} operations, {remains:?} remains: {reason}");
        for operation in &recording.journal[length.saturating_sub(6)..length] {
            println!("    {operation:?}");
        }
        // The first ones say enough.
        if self.failed <= 5 {
            let kept = self.root(&format!("failed-{}", self.failed), image);
            println!("    kept in {}", kept.display());
        }
    }

    /// A directory with this in it.
    pub(super) fn root(&self, name: &str, image: &Image) -> PathBuf {
        let root = self.place.join(name);
        image.write_to(&root).unwrap();
        root
    }
}

/// Ends the recording, of which nothing may have slipped away.
pub(super) fn stopped(root: &Path) -> Recording {
    let recording = recorder::stop();
    let mut real = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                real.insert(name, None);
                open.push(path);
            } else {
                real.insert(name, Some(fs::read(path).unwrap()));
            }
        }
    }
    let recorded = recording.live.tree();
    let names = |tree: Vec<&PathBuf>| tree.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(names(recorded.keys().collect()), names(real.keys().collect()), "the recorder missed a name");
    for (path, content) in real.iter().filter(|(path, _)| !path.ends_with(READERS)) {
        assert!(content.as_deref() == recorded[path], "the recorder missed a change of {}", path.display());
    }
    recording
}

pub(super) fn carry_out(storage: &mut impl StableStorage, step: &Step) -> Result<(), StorageError> {
    match step {
        Step::Write(writes) => storage.write(writes),
        Step::Snapshot(meta, data) => {
            let mut writer = storage.snapshots().create(meta)?;
            writer.write_all(data).unwrap();
            writer.finish().map(drop)
        }
        Step::Received(meta, data) => {
            let snapshots = storage.snapshots();
            receive(&snapshots, meta, data, data.len() / 2)?;
            receive(&snapshots, meta, data, data.len())?.finish().map(drop)
        }
        Step::Retain(position) => storage.snapshots().retain(&[*position]),
    }
}

/// Goes on with what is left of a snapshot, which must be a beginning of it, and receives all `until` there.
fn receive<S: SnapshotStore>(
    snapshots: &S,
    meta: &SnapshotMeta,
    data: &[u8],
    until: usize,
) -> Result<S::Writer, StorageError> {
    let announced = SnapshotDigest::default().followed_by(data);
    let (mut writer, received) = snapshots.receive(meta, announced, &|| true)?;
    let there = received.data_bytes as usize;
    assert_eq!(received, SnapshotDigest::default().followed_by(&data[..there]));
    writer.write_all(data.get(there..until).unwrap_or_default()).unwrap();
    Ok(writer)
}

pub(super) fn load<K: Kind>(directory: &Path) -> Result<(K::Storage, Content), StorageError> {
    let mut storage = K::open(directory)?;
    let state = storage.load()?;
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    let entries = storage.log_reader().read(from, until, u64::MAX)?;
    Ok((storage, (state, entries)))
}

/// The snapshots that were finished within the acknowledged steps, and not given up in one that was begun.
fn snapshots(steps: &[Step], acknowledged: usize, begun: usize) -> Vec<LogPosition> {
    let mut there = Vec::new();
    for (at, step) in steps[..begun].iter().enumerate() {
        match step {
            Step::Snapshot(meta, _) | Step::Received(meta, _) if at < acknowledged => {
                there.push(meta.position);
            }
            Step::Retain(kept) => there.retain(|position| position == kept),
            _ => {}
        }
    }
    there
}

/// Opens the directory and judges what is in it; says which of the contents that is.
fn check<K: Kind>(directory: &Path, moment: &Moment<'_>) -> Result<usize, String> {
    let (storage, found) = load::<K>(directory).map_err(|error| error.to_string())?;
    let workload = moment.workload;
    let allowed = moment.acknowledged..=moment.begun;
    let at = allowed.clone().find(|at| workload.contents[*at] == found).ok_or_else(|| {
        let which = workload.contents.iter().position(|content| *content == found);
        format!(
            "found content {which:?}, not one of {allowed:?}, counted from {}: {:?}",
            moment.before, found.0
        )
    })?;

    let mut must = moment.snapshots.clone();
    must.extend(found.0.snapshot.as_ref().map(|snapshot| snapshot.position));
    for step in &workload.steps {
        let Some((meta, data)) = step.snapshot() else { continue };
        match whole(&storage.snapshots(), meta, data) {
            Ok(true) => {}
            Ok(false) if !must.contains(&meta.position) => {}
            Ok(false) => return Err(format!("the snapshot at {} is missing", meta.position)),
            Err(reason) => return Err(format!("the snapshot at {}: {reason}", meta.position)),
        }
    }
    // What was being received can be gone on with, whatever is left of it.
    for step in &workload.steps {
        let Step::Received(meta, data) = step else { continue };
        let snapshots = storage.snapshots();
        let received = receive(&snapshots, meta, data, data.len()).and_then(SnapshotWriter::finish);
        received.map_err(|error| format!("going on with the snapshot at {}: {error}", meta.position))?;
        if whole(&snapshots, meta, data) != Ok(true) {
            return Err(format!("the snapshot at {} is not the parts that were received", meta.position));
        }
    }
    Ok(at)
}

/// Whether the snapshot is there; what is there must be as it was written.
fn whole(snapshots: &impl SnapshotStore, meta: &SnapshotMeta, expected: &[u8]) -> Result<bool, String> {
    let (found, digest, mut reader) = match snapshots.open(meta.position) {
        Ok(opened) => opened,
        Err(StorageError::NoSnapshot { .. }) => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    let mut data = Vec::new();
    reader.read_to_end(&mut data).map_err(|error| error.to_string())?;
    if found != *meta || data != expected || digest.data_bytes != expected.len() as u64 {
        return Err("it is not what was written".to_owned());
    }
    Ok(true)
}
