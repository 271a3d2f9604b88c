//! The paths and the names of snapshot files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use raftify_core::{LogPosition, SnapshotDigest, StorageError};

use crate::files::io_error;

/// The directory of the snapshots, in the data directory.
pub(crate) const DIRECTORY: &str = "snapshots";
const FINISHED: &str = "snapshot";
const UNFINISHED: &str = "partial";
const INCOMING: &str = "incoming";

/// A finished snapshot file, as found in its directory; opening it checks whether it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// The position of the snapshot.
    pub position: LogPosition,
    /// The path of the file.
    pub path: PathBuf,
    /// The size of the whole file.
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
        let Some(Name::Finished(position)) = name_of(&path) else {
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

/// The path of a file that is being written, by the writer with this number, for the snapshot at `position`.
pub(crate) fn unfinished_path_of(directory: &Path, position: LogPosition, writer: u64) -> PathBuf {
    path_of(directory, position).with_extension(format!("{writer}.{UNFINISHED}"))
}

/// The meaning of the name of a file in the directory. Other files are ignored.
pub(crate) enum Name {
    Finished(LogPosition),
    Unfinished,
    Incoming(Incoming),
}

/// The snapshot that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) position: LogPosition,
    /// The digest of all of its data.
    pub(crate) announced: SnapshotDigest,
}

impl Incoming {
    pub(crate) fn path_in(&self, directory: &Path) -> PathBuf {
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

pub(crate) fn name_of(path: &Path) -> Option<Name> {
    match path.extension()?.to_str()? {
        UNFINISHED => Some(Name::Unfinished),
        INCOMING => Incoming::of_stem(path.file_stem()?.to_str()?).map(Name::Incoming),
        FINISHED => {
            let (term, index) = path.file_stem()?.to_str()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some(Name::Finished(LogPosition::new(number(term)?, number(index)?)))
        }
        _ => None,
    }
}

pub(crate) fn files_in(directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    entries.map_err(io_error("list", directory))
}
