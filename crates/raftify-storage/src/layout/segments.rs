//! The paths and the names of the files of the segment log.

use std::path::{Path, PathBuf};

use raftify_core::StorageError;

use crate::files::{ReadOnlySystem, SegmentOperations, io_error};

/// The directory of the segments, in the data directory.
pub(crate) const DIRECTORY: &str = "log";

const FINISHED: &str = "segment";
const UNFINISHED: &str = "partial";

/// The meaning of the name of a file in the directory. Other files are ignored.
pub(crate) enum Name {
    Segment(u64),
    Unfinished,
}

pub(crate) fn name_of(path: &Path) -> Option<Name> {
    match path.extension()?.to_str()? {
        UNFINISHED => Some(Name::Unfinished),
        FINISHED => {
            let stem = path.file_stem()?.to_str()?;
            let number = u64::from_str_radix(stem, 16).ok()?;
            (stem.len() == 16).then_some(Name::Segment(number))
        }
        _ => None,
    }
}

/// The path of segment `number` in the directory of segments.
pub(crate) fn path_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.{FINISHED}"))
}

/// The path of a segment that is being created.
pub(crate) fn unfinished_path_of(directory: &Path, number: u64) -> PathBuf {
    path_of(directory, number).with_extension(UNFINISHED)
}

/// The files of a segment log in `data_directory`, if there are any.
pub(crate) fn list(data_directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let directory = data_directory.join(DIRECTORY);
    let mut paths = ReadOnlySystem.list(&directory).map_err(io_error("list", &directory))?;
    paths.retain(|path| name_of(path).is_some());
    Ok(paths)
}
