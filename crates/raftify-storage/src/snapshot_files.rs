//! Snapshot data in files beside the log, each named by its position and checksummed block by block.
//!
//! A file is written under a temporary name, synced, renamed, and the directory synced: under its own name it is
//! whole or not there. What is received of another node's snapshot has a name that says of which one it is, and is gone
//! on with after a restart. `docs/disk-format.md` describes the bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftify_core::{
    ClusterId, LogPosition, Members, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter,
    StorageError, storage,
};

use crate::directory::{self, DirectoryLock};
use crate::files::{FileOperations, LockedDirectory, NewFile};
use crate::format::{Damage, Fields, GROUP_ID, put_number, put_position};
use crate::io_error;

#[cfg(test)]
mod tests;

const DIRECTORY: &str = "snapshots";
const FINISHED: &str = "snapshot";
const UNFINISHED: &str = "partial";
const INCOMING: &str = "incoming";

const MAGIC: [u8; 8] = *b"raftsnap";
const VERSION: u32 = 2;

/// Magic, version, group id, cluster id, position, length of the members.
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 16 + 4;

/// Length and checksum of a block.
const FRAME_BYTES: usize = 8;

/// Most data bytes of a block: large enough that checksums cost nothing, small enough to be read at once.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// A length of zero, the length of the data, the checksum of everything before, that of the data alone, the end mark's
/// own checksum.
const END_BYTES: usize = 4 + 8 + 4 + 4 + 4;

/// So much is written at most before it is synced: a log on the same disk would have to wait for all that is unsynced
/// with each of its own syncs.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// The snapshots of one data directory. Clones share it.
#[derive(Clone)]
pub struct SnapshotFiles {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    operations: Box<dyn FileOperations>,
    unfinished: Mutex<Unfinished>,
    /// Keeps other processes out for as long as anybody could write here.
    lock: DirectoryLock,
}

/// The files that writers of this process are working on.
#[derive(Default)]
struct Unfinished {
    paths: BTreeSet<PathBuf>,
    /// Counts writers, so that two at the same position have files of their own.
    created: u64,
}

impl SnapshotFiles {
    /// Opens `snapshots/` in `data_directory`, and removes what a crash left unfinished, but for the newest that was being
    /// received, if its header is there.
    pub(crate) fn open(data_directory: &Path, lock: DirectoryLock) -> Result<SnapshotFiles, StorageError> {
        let operations = Box::new(LockedDirectory(lock.clone()));
        let files = SnapshotFiles::with_operations(data_directory, lock, operations)?;
        let incoming = incoming_in(&files.shared.directory)?;
        let newest = incoming.into_iter().max_by_key(|incoming| (incoming.position.index, incoming.position));
        files.remove_files(|file| match file {
            Named::Finished(_) => false,
            Named::Unfinished => true,
            Named::Incoming(incoming) => Some(incoming) != newest,
        })?;
        Ok(files)
    }

    fn with_operations(
        data_directory: &Path,
        lock: DirectoryLock,
        operations: Box<dyn FileOperations>,
    ) -> Result<SnapshotFiles, StorageError> {
        let directory = directory_in(data_directory);
        directory::create_durably(&directory)?;
        let shared = Shared { directory, operations, unfinished: Mutex::default(), lock };
        Ok(SnapshotFiles { shared: Arc::new(shared) })
    }

    /// Where the snapshot at `position` is kept.
    pub fn path(&self, position: LogPosition) -> PathBuf {
        path_of(&self.shared.directory, position)
    }

    /// That the snapshot which the metadata record is there, and is what they say.
    pub(crate) fn check_recorded(&self, recorded: &SnapshotMeta) -> Result<(), StorageError> {
        self.shared.lock.reserve().open(|| check_recorded(&self.shared.directory, recorded))
    }

    /// That the snapshots which `writes` record are there: without their data, the log before them must not be cut off.
    pub(crate) fn check_to_be_recorded(&self, writes: &[storage::Write]) -> Result<(), StorageError> {
        for snapshot in writes.iter().filter_map(|write| write.snapshot.as_ref()) {
            let checked = self.check_recorded(snapshot);
            checked.map_err(|error| StorageError::Refused { reason: error.to_string() })?;
        }
        Ok(())
    }

    fn remove_files(&self, unwanted: impl Fn(Named) -> bool) -> Result<(), StorageError> {
        let directory = &self.shared.directory;
        for path in self.shared.lock.reserve().open(|| files_in(directory))? {
            // A writer registers its file before it creates it: one of this process is never taken for a left-over.
            if name_of(&path).is_some_and(&unwanted) && !self.shared.unfinished().paths.contains(&path) {
                self.shared.operations.remove(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// A writer that panicked left at most the name of a file that is not removed before the next start.
    fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotStore for SnapshotFiles {
    type Writer = SnapshotFileWriter;
    type Reader = SnapshotFileReader;

    fn create(&self, meta: &SnapshotMeta) -> Result<SnapshotFileWriter, StorageError> {
        SnapshotFileWriter::create(Arc::clone(&self.shared), meta)
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(SnapshotFileWriter, SnapshotDigest), StorageError> {
        let incoming = Incoming { position: meta.position, announced };
        self.remove_files(|file| matches!(file, Named::Incoming(other) if other != incoming))?;
        SnapshotFileWriter::receive(Arc::clone(&self.shared), meta, incoming, is_wanted)
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
        self.shared.lock.reserve().open(|| open_at(&self.shared.directory, position))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        let newest = keep.iter().map(|position| position.index).max();
        self.remove_files(|file| match file {
            Named::Finished(position) => !keep.contains(&position),
            Named::Unfinished => true,
            Named::Incoming(Incoming { position, .. }) => {
                newest.is_some_and(|newest| position.index <= newest)
            }
        })
    }
}

/// That the snapshot which the metadata record is in `directory`, and is what they say.
pub(crate) fn check_recorded(directory: &Path, recorded: &SnapshotMeta) -> Result<(), StorageError> {
    let corrupt = |reason: &str| {
        let what = path_of(directory, recorded.position).display().to_string();
        Err(StorageError::Corrupt { what, reason: reason.to_owned() })
    };
    match open_at(directory, recorded.position) {
        Ok((found, _, _)) if found == *recorded => Ok(()),
        Ok(_) => corrupt("its header says otherwise than the metadata that record it"),
        Err(StorageError::NoSnapshot { .. }) => corrupt("the metadata record it, but the file is missing"),
        Err(error) => Err(error),
    }
}

/// A finished snapshot file, as found in its directory; whether it is whole shows when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Of which position.
    pub position: LogPosition,
    /// Where it lies.
    pub path: PathBuf,
    /// Size of the whole file.
    pub size_bytes: u64,
}

/// The finished snapshot files of a data directory, the newest last.
pub(crate) fn list(data_directory: &Path) -> Result<Vec<SnapshotFile>, StorageError> {
    let directory = directory_in(data_directory);
    let mut found = Vec::new();
    if !directory.exists() {
        return Ok(found);
    }
    for path in files_in(&directory)? {
        let Some(Named::Finished(position)) = name_of(&path) else {
            continue;
        };
        match fs::metadata(&path) {
            Ok(metadata) => found.push(SnapshotFile { position, path, size_bytes: metadata.len() }),
            // The node has just replaced it by a newer one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("open", &path)(error)),
        }
    }
    found.sort_by_key(|file| (file.position.index, file.position.term));
    Ok(found)
}

pub(crate) fn directory_in(data_directory: &Path) -> PathBuf {
    data_directory.join(DIRECTORY)
}

pub(crate) fn path_of(directory: &Path, position: LogPosition) -> PathBuf {
    let LogPosition { term, index } = position;
    directory.join(format!("{:016x}-{:016x}.{FINISHED}", term.0, index.0))
}

/// What the name of a file in the directory says. Other files are left alone.
enum Named {
    Finished(LogPosition),
    Unfinished,
    Incoming(Incoming),
}

/// Which snapshot is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Incoming {
    position: LogPosition,
    /// Of all of its data.
    announced: SnapshotDigest,
}

impl Incoming {
    fn path_in(&self, directory: &Path) -> PathBuf {
        let Incoming { position, announced: SnapshotDigest { data_bytes, crc32c } } = self;
        let LogPosition { term, index } = position;
        directory.join(format!("{:016x}-{:016x}-{data_bytes:016x}-{crc32c:08x}.{INCOMING}", term.0, index.0))
    }

    fn of_stem(stem: &str) -> Option<Incoming> {
        let mut parts = stem.split('-');
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let position = LogPosition::new(number()?, number()?);
        let announced = SnapshotDigest { data_bytes: number()?, crc32c: u32::try_from(number()?).ok()? };
        parts.next().is_none().then_some(Incoming { position, announced })
    }
}

/// The unfinished snapshots of other nodes whose header is there, and fits.
fn incoming_in(directory: &Path) -> Result<Vec<Incoming>, StorageError> {
    let mut found = Vec::new();
    for path in files_in(directory)? {
        let Some(Named::Incoming(incoming)) = name_of(&path) else {
            continue;
        };
        let mut file = BufReader::new(File::open(&path).map_err(io_error("open", &path))?);
        let file_bytes = file.get_ref().metadata().map_err(io_error("open", &path))?.len();
        if read_header(&mut file, file_bytes).is_ok_and(|(meta, ..)| meta.position == incoming.position) {
            found.push(incoming);
        }
    }
    Ok(found)
}

fn name_of(path: &Path) -> Option<Named> {
    match path.extension()?.to_str()? {
        UNFINISHED => Some(Named::Unfinished),
        INCOMING => Incoming::of_stem(path.file_stem()?.to_str()?).map(Named::Incoming),
        FINISHED => {
            let (term, index) = path.file_stem()?.to_str()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some(Named::Finished(LogPosition::new(number(term)?, number(index)?)))
        }
        _ => None,
    }
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    entries.map_err(io_error("list", directory))
}

/// The header with its checksum at the end, and that checksum.
fn encode_header(meta: &SnapshotMeta) -> io::Result<(Vec<u8>, u32)> {
    let members = meta.members.encode();
    let length = u32::try_from(members.len()).map_err(io::Error::other)?;
    let mut header = Vec::with_capacity(HEADER_BYTES + members.len() + 4);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_be_bytes());
    put_number(&mut header, GROUP_ID);
    put_number(&mut header, meta.cluster_id.0);
    put_position(&mut header, meta.position);
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&members);
    let checksum = crc32c::crc32c(&header);
    header.extend_from_slice(&checksum.to_be_bytes());
    Ok((header, checksum))
}

/// The end mark after this data. Its own checksum begins with the header's, so that it fits to no other snapshot.
fn encode_end(header_checksum: u32, digest: SnapshotDigest, checksum: u32) -> [u8; END_BYTES] {
    let mut end = [0; END_BYTES];
    end[4..12].copy_from_slice(&digest.data_bytes.to_be_bytes());
    end[12..16].copy_from_slice(&checksum.to_be_bytes());
    end[16..20].copy_from_slice(&digest.crc32c.to_be_bytes());
    let own = crc32c::crc32c_append(header_checksum, &end[..20]);
    end[20..].copy_from_slice(&own.to_be_bytes());
    end
}

/// Writes one snapshot file. Dropped without [`finish`](SnapshotWriter::finish), it removes what it wrote, unless it
/// [receives](SnapshotStore::receive) the snapshot.
pub struct SnapshotFileWriter {
    position: LogPosition,
    file: Box<dyn NewFile>,
    /// Dropped after the file is closed.
    place: Place,
    /// The frame of the next block, still empty, and its data so far.
    block: Vec<u8>,
    /// Of all blocks before.
    digest: SnapshotDigest,
    unsynced_bytes: u64,
    header_checksum: u32,
    /// Over everything before this block: no block fits into another place or file.
    checksum: u32,
    /// Something could not be written, and what is in the file now is not known.
    failed: bool,
    /// For a snapshot that is received: what was written stays when the writer is dropped.
    stays: bool,
    /// Whether the name of what stays is durable.
    is_name_synced: bool,
}

/// The name of a file until it is finished. No other writer has the same.
struct Place {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Place {
    fn take(shared: Arc<Shared>, path: PathBuf) -> Result<Place, StorageError> {
        if !shared.unfinished().paths.insert(path.clone()) {
            return Err(io_error("open", &path)(io::Error::other("it is being written already")));
        }
        Ok(Place { shared, path })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.unfinished().paths.remove(&self.path);
    }
}

/// The whole and valid part of an unfinished file.
struct Left {
    file_bytes: u64,
    digest: SnapshotDigest,
    checksum: u32,
}

impl Left {
    /// Reads the file, if there is one with this header. What follows the first block that cannot be read, or is
    /// damaged, is left out.
    fn of(
        path: &Path,
        (header, header_checksum): (&[u8], u32),
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> io::Result<Option<Left>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => BufReader::with_capacity(BLOCK_BYTES_MAX, result?),
        };
        let mut found = vec![0; header.len()];
        if file.read_exact(&mut found).is_err() || found != header {
            return Ok(None);
        }
        let (file_bytes, digest) = (header.len() as u64, SnapshotDigest::default());
        let mut left = Left { file_bytes, digest, checksum: header_checksum };
        let mut block = Vec::new();
        while left.digest.data_bytes < announced.data_bytes {
            if !is_wanted() {
                return Err(io::Error::other("it is not wanted any more"));
            }
            let Ok(Some(checksum)) = read_block(&mut file, left.checksum, &mut block) else {
                break;
            };
            left.file_bytes += (FRAME_BYTES + block.len()) as u64;
            left.digest = left.digest.followed_by(&block);
            left.checksum = checksum;
        }
        let is_beginning = left.digest.data_bytes < announced.data_bytes || left.digest == announced;
        Ok(is_beginning.then_some(left))
    }
}

impl SnapshotFileWriter {
    fn create(shared: Arc<Shared>, meta: &SnapshotMeta) -> Result<SnapshotFileWriter, StorageError> {
        let number = {
            let mut unfinished = shared.unfinished();
            unfinished.created += 1;
            unfinished.created
        };
        let path = path_of(&shared.directory, meta.position).with_extension(format!("{number}.{UNFINISHED}"));
        let place = Place::take(shared, path)?;
        let (header, checksum) = encode_header(meta).map_err(io_error("write to", &place.path))?;
        SnapshotFileWriter::begin(place, meta.position, &header, checksum)
    }

    fn receive(
        shared: Arc<Shared>,
        meta: &SnapshotMeta,
        incoming: Incoming,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(SnapshotFileWriter, SnapshotDigest), StorageError> {
        let path = incoming.path_in(&shared.directory);
        let place = Place::take(shared, path)?;
        let (header, checksum) = encode_header(meta).map_err(io_error("write to", &place.path))?;
        let left = Left::of(&place.path, (&header, checksum), incoming.announced, is_wanted);
        let operations = &place.shared.operations;
        let mut writer = match left.map_err(io_error("read", &place.path))? {
            Some(left) => {
                let file = operations.append(&place.path, left.file_bytes);
                let file = file.map_err(io_error("open", &place.path))?;
                let mut writer = SnapshotFileWriter::new(place, meta.position, file, checksum);
                (writer.digest, writer.checksum) = (left.digest, left.checksum);
                writer
            }
            None => match operations.remove(&place.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &place.path)(error));
                }
                _ => SnapshotFileWriter::begin(place, meta.position, &header, checksum)?,
            },
        };
        writer.stays = true;
        let received = writer.digest;
        Ok((writer, received))
    }

    fn begin(
        place: Place,
        position: LogPosition,
        header: &[u8],
        header_checksum: u32,
    ) -> Result<SnapshotFileWriter, StorageError> {
        let file = place.shared.operations.create(&place.path);
        let file = file.map_err(io_error("create", &place.path))?;
        let mut writer = SnapshotFileWriter::new(place, position, file, header_checksum);
        writer.file.write_all(header).map_err(io_error("write to", &writer.place.path))?;
        Ok(writer)
    }

    fn new(
        place: Place,
        position: LogPosition,
        file: Box<dyn NewFile>,
        header_checksum: u32,
    ) -> SnapshotFileWriter {
        let mut block = Vec::with_capacity(FRAME_BYTES + BLOCK_BYTES_MAX);
        block.resize(FRAME_BYTES, 0);
        SnapshotFileWriter {
            position,
            file,
            place,
            block,
            digest: SnapshotDigest::default(),
            unsynced_bytes: 0,
            header_checksum,
            checksum: header_checksum,
            failed: false,
            stays: false,
            is_name_synced: false,
        }
    }

    fn write_block(&mut self) -> io::Result<()> {
        let length = self.block.len() - FRAME_BYTES;
        if length == 0 {
            return Ok(());
        }
        let length_bytes = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
        let checksum = crc32c::crc32c_append(self.checksum, &length_bytes);
        self.checksum = crc32c::crc32c_append(checksum, &self.block[FRAME_BYTES..]);
        self.block[..4].copy_from_slice(&length_bytes);
        self.block[4..FRAME_BYTES].copy_from_slice(&self.checksum.to_be_bytes());
        self.file.write_all(&self.block)?;
        self.digest = self.digest.followed_by(&self.block[FRAME_BYTES..]);
        self.unsynced_bytes += self.block.len() as u64;
        if self.unsynced_bytes >= UNSYNCED_BYTES_MAX {
            self.file.sync()?;
            self.unsynced_bytes = 0;
            if self.stays && !self.is_name_synced {
                let Shared { directory, operations, .. } = &*self.place.shared;
                operations.sync_directory(directory)?;
                self.is_name_synced = true;
            }
        }
        self.block.truncate(FRAME_BYTES);
        Ok(())
    }

    fn try_finish(&mut self) -> Result<u64, StorageError> {
        if self.failed {
            return Err(io_error("finish", &self.place.path)(io::Error::other("an earlier write failed")));
        }
        self.write_block().map_err(io_error("write to", &self.place.path))?;
        let end = encode_end(self.header_checksum, self.digest, self.checksum);
        self.file.write_all(&end).map_err(io_error("write to", &self.place.path))?;
        if !raftify_core::mutated!(SnapshotIsNotSynced) {
            self.file.sync().map_err(io_error("sync", &self.place.path))?;
        }
        let Shared { directory, operations, .. } = &*self.place.shared;
        let name = path_of(directory, self.position);
        operations.rename(&self.place.path, &name).map_err(io_error("rename", &self.place.path))?;
        // Without this, the name may be gone after a loss of power, although the metadata already rely on it.
        if !raftify_core::mutated!(DirectoryIsNotSynced) {
            operations.sync_directory(directory).map_err(io_error("sync the directory", directory))?;
        }
        Ok(self.digest.data_bytes)
    }
}

impl Write for SnapshotFileWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("an earlier write to this snapshot failed"));
        }
        let room = FRAME_BYTES + BLOCK_BYTES_MAX - self.block.len();
        let taken = room.min(data.len());
        self.block.extend_from_slice(&data[..taken]);
        if taken == room {
            self.write_block().inspect_err(|_| self.failed = true)?;
        }
        Ok(taken)
    }

    /// Does nothing: a snapshot is only durable, and only visible, as a whole.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for SnapshotFileWriter {
    fn finish(mut self) -> Result<u64, StorageError> {
        self.try_finish().inspect_err(|_| self.failed = true)
    }

    fn discard(mut self) {
        self.stays = false;
    }
}

impl Drop for SnapshotFileWriter {
    fn drop(&mut self) {
        if self.stays && !self.failed && self.write_block().is_ok() {
            return;
        }
        match self.place.shared.operations.remove(&self.place.path) {
            Ok(()) => {}
            // It is finished, and has its name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = self.place.path.display();
                tracing::warn!(%path, %error, "an unfinished snapshot is left until the next start");
            }
        }
    }
}

/// A whole file with these blocks, for fuzzing; `None` if one of them is too large.
#[cfg(feature = "testing")]
pub(crate) fn encode_file<'a>(
    meta: &SnapshotMeta,
    blocks: impl Iterator<Item = &'a [u8]>,
) -> Option<Vec<u8>> {
    let (mut file, header_checksum) = encode_header(meta).ok()?;
    let (mut checksum, mut digest) = (header_checksum, SnapshotDigest::default());
    for block in blocks.filter(|block| !block.is_empty()) {
        let length = u32::try_from(block.len()).ok()?.to_be_bytes();
        checksum = crc32c::crc32c_append(crc32c::crc32c_append(checksum, &length), block);
        digest = digest.followed_by(block);
        file.extend_from_slice(&length);
        file.extend_from_slice(&checksum.to_be_bytes());
        file.extend_from_slice(block);
    }
    file.extend_from_slice(&encode_end(header_checksum, digest, checksum));
    Some(file)
}

/// Reads the data of one snapshot file. Bytes are handed out only after their block was checked, and the end only
/// after the end mark was.
#[derive(Debug)]
pub struct SnapshotFileReader {
    path: PathBuf,
    file: BufReader<File>,
    block: Vec<u8>,
    /// How much of `block` was handed out.
    given: usize,
    read_bytes: u64,
    digest: SnapshotDigest,
    header_checksum: u32,
    checksum: u32,
    state: ReadState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadState {
    Reading,
    Ended,
    /// Stays so: what follows damage is never handed out.
    Failed,
}

pub(crate) fn open_at(
    directory: &Path,
    position: LogPosition,
) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
    let path = path_of(directory, position);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StorageError::NoSnapshot { position });
        }
        result => result.map_err(io_error("open", &path))?,
    };
    let (meta, digest, reader) = SnapshotFileReader::check(path, file)?;
    if meta.position != position {
        let what = reader.path.display().to_string();
        let reason = format!("it is of {}, but has the name of {position}", meta.position);
        return Err(StorageError::Corrupt { what, reason });
    }
    Ok((meta, digest, reader))
}

impl SnapshotFileReader {
    /// Opens a snapshot file anywhere, for instance a copy; also what it is of, and how many bytes of data it holds.
    ///
    /// # Errors
    /// [`StorageError::Io`] if it cannot be read; [`StorageError::Corrupt`] if it is no snapshot, damaged at the
    /// front, or cut off; [`StorageError::Version`] if it is of another version. Damage in between shows on reading.
    pub fn open(path: impl AsRef<Path>) -> Result<(SnapshotMeta, u64, SnapshotFileReader), StorageError> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let (meta, digest, reader) = SnapshotFileReader::check(path, file)?;
        Ok((meta, digest.data_bytes, reader))
    }

    fn check(
        path: PathBuf,
        file: File,
    ) -> Result<(SnapshotMeta, SnapshotDigest, SnapshotFileReader), StorageError> {
        let file_bytes = file.metadata().map_err(io_error("open", &path))?.len();
        let mut file = BufReader::new(file);
        let read = read_header(&mut file, file_bytes).and_then(|(meta, header_checksum, begin)| {
            let digest = read_end(&mut file, file_bytes, header_checksum, begin)?;
            file.seek(SeekFrom::Start(begin))?;
            Ok((meta, header_checksum, digest))
        });
        let (meta, header_checksum, digest) = match read {
            Ok(read) => read,
            Err(Unreadable::Io(error)) => return Err(io_error("read", &path)(error)),
            Err(Unreadable::Damaged(damage)) => return Err(damage.of(path.display().to_string())),
        };
        let reader = SnapshotFileReader {
            path,
            file,
            block: Vec::new(),
            given: 0,
            read_bytes: 0,
            digest,
            header_checksum,
            checksum: header_checksum,
            state: ReadState::Reading,
        };
        Ok((meta, digest, reader))
    }

    fn next_block(&mut self) -> io::Result<()> {
        match read_block(&mut self.file, self.checksum, &mut self.block) {
            Ok(Some(checksum)) => {
                self.checksum = checksum;
                self.given = 0;
                self.read_bytes += self.block.len() as u64;
                Ok(())
            }
            Ok(None) => self.check_end(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(self.damaged(&error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn check_end(&mut self) -> io::Result<()> {
        let mut end = [0; END_BYTES];
        self.file.read_exact(&mut end[4..])?;
        let read = SnapshotDigest { data_bytes: self.read_bytes, ..self.digest };
        if end != encode_end(self.header_checksum, read, self.checksum) {
            return Err(self.damaged("the end mark does not match what was read"));
        }
        if self.file.read(&mut [0])? != 0 {
            return Err(self.damaged("something follows the end mark"));
        }
        self.state = ReadState::Ended;
        Ok(())
    }

    fn damaged(&self, reason: &str) -> io::Error {
        let Self { path, read_bytes, digest, .. } = self;
        let message = format!(
            "snapshot {} is damaged after {read_bytes} of {} bytes: {reason}",
            path.display(),
            digest.data_bytes
        );
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

impl Read for SnapshotFileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.block.len() && self.state == ReadState::Reading {
            self.block.clear();
            self.given = 0;
            if let Err(error) = self.next_block() {
                self.block.clear();
                self.state = ReadState::Failed;
                return Err(match error.kind() {
                    io::ErrorKind::UnexpectedEof => self.damaged("the file ends too early"),
                    _ => error,
                });
            }
        }
        if self.state == ReadState::Failed {
            return Err(self.damaged("this was reported before"));
        }
        let given = (&self.block[self.given..]).read(buffer)?;
        self.given += given;
        Ok(given)
    }
}

enum Unreadable {
    Io(io::Error),
    Damaged(Damage),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Unreadable::Damaged(Damage::Content("it is too short".into())),
            _ => Unreadable::Io(error),
        }
    }
}

impl From<Damage> for Unreadable {
    fn from(damage: Damage) -> Unreadable {
        Unreadable::Damaged(damage)
    }
}

fn damaged(reason: impl Into<String>) -> Unreadable {
    Unreadable::Damaged(Damage::Content(reason.into()))
}

/// Reads the block after the one with this chained checksum, and tells the one of this; `None` at an end mark, of which the
/// length is read then. What is damaged is of kind `InvalidData`.
fn read_block(file: &mut impl Read, before: u32, block: &mut Vec<u8>) -> io::Result<Option<u32>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut length_bytes = [0; 4];
    file.read_exact(&mut length_bytes)?;
    let length = u32::from_be_bytes(length_bytes) as usize;
    if length == 0 {
        return Ok(None);
    }
    if length > BLOCK_BYTES_MAX {
        return Err(invalid(format!("a block claims to have {length} bytes")));
    }
    let mut stored = [0; 4];
    file.read_exact(&mut stored)?;
    block.resize(length, 0);
    file.read_exact(block)?;
    let mut checksum = crc32c::crc32c_append(crc32c::crc32c_append(before, &length_bytes), block);
    if raftify_core::mutated!(SnapshotChecksumIsNotChecked) {
        checksum = u32::from_be_bytes(stored);
    }
    if u32::from_be_bytes(stored) != checksum {
        return Err(invalid("the checksum of a block does not match".to_owned()));
    }
    Ok(Some(checksum))
}

/// The metadata, the header's checksum, and where the first block begins.
fn read_header(file: &mut impl Read, file_bytes: u64) -> Result<(SnapshotMeta, u32, u64), Unreadable> {
    let mut header = vec![0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    if fields.array()? != MAGIC {
        return Err(damaged("it is no snapshot file of raftify"));
    }
    let found = u32::from_be_bytes(fields.array()?);
    if found != VERSION {
        return Err(Unreadable::Damaged(Damage::Version { found, known: VERSION }));
    }
    let group_id = fields.number()?;
    let cluster_id = ClusterId(fields.number()?);
    let position = fields.position()?;
    let members_bytes = u32::from_be_bytes(fields.array()?) as usize;
    if members_bytes as u64 > file_bytes {
        return Err(damaged(format!("its header claims {members_bytes} bytes of members")));
    }
    header.resize(HEADER_BYTES + members_bytes + 4, 0);
    file.read_exact(&mut header[HEADER_BYTES..])?;
    let (content, stored) = header.split_at(HEADER_BYTES + members_bytes);
    let checksum = crc32c::crc32c(content);
    if stored != checksum.to_be_bytes() {
        return Err(damaged("the checksum of its header does not match"));
    }
    if group_id != GROUP_ID {
        return Err(damaged(format!("it is of group {group_id}, this program knows only group {GROUP_ID}")));
    }
    let members = Members::decode(&content[HEADER_BYTES..]).map_err(Damage::from)?;
    Ok((SnapshotMeta { cluster_id, position, members }, checksum, header.len() as u64))
}

/// What the data is recognized by, from the end mark in the last bytes of the file.
fn read_end(
    file: &mut (impl Read + Seek),
    file_bytes: u64,
    header_checksum: u32,
    begin: u64,
) -> Result<SnapshotDigest, Unreadable> {
    let cut_off = || damaged("its end mark is missing: the file is cut off or overwritten");
    let at = file_bytes.checked_sub(END_BYTES as u64).filter(|at| *at >= begin).ok_or_else(cut_off)?;
    file.seek(SeekFrom::Start(at))?;
    let mut end = [0; END_BYTES];
    file.read_exact(&mut end)?;
    let mut fields = Fields(&end[4..]);
    let data_bytes = fields.number()?;
    let checksum = u32::from_be_bytes(fields.array()?);
    let digest = SnapshotDigest { data_bytes, crc32c: u32::from_be_bytes(fields.array()?) };
    if end != encode_end(header_checksum, digest, checksum) {
        return Err(cut_off());
    }
    Ok(digest)
}
