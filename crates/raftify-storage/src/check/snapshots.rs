//! The snapshot files: all their data, and the one that the metadata record.

use std::io::{self, Read};
use std::path::Path;

use raftify_core::{Identity, SnapshotDigest, SnapshotMeta, StorageError};

use super::{Checked, ProblemKind};
use crate::layout::snapshots;
use crate::snapshot_files;

/// How much is read at once.
const BUFFER_BYTES: usize = 64 << 10;

pub(super) fn check(
    directory: &Path,
    recorded: Option<&SnapshotMeta>,
    identity: Option<&Identity>,
    checked: &mut Checked,
) -> Result<(), StorageError> {
    let files = snapshots::list(directory)?;
    let folder = snapshots::directory_in(directory);
    if let Some(recorded) = recorded
        && !files.iter().any(|file| file.position == recorded.position)
    {
        let path = snapshots::path_of(&folder, recorded.position);
        let reason = "the metadata record it, but the file is missing";
        checked.problem(ProblemKind::SnapshotMissing, path.display(), reason);
    }
    for file in files {
        let path = file.path.display();
        checked.read_bytes += file.size_bytes;
        if file.path != snapshots::path_of(&folder, file.position) {
            let reason = "its name is not written as that of a snapshot";
            checked.problem(ProblemKind::Snapshot, path, reason);
            continue;
        }
        let (meta, announced, mut reader) = match snapshot_files::open_at(&folder, file.position) {
            Ok(opened) => opened,
            Err(error) => {
                checked.error(ProblemKind::Snapshot, error);
                continue;
            }
        };
        let digest = match raftify_core::mutated!(CheckTrustsSnapshotData) {
            true => Ok(announced),
            false => digest_of(&mut reader),
        };
        match digest {
            Ok(found) if found != announced => {
                let reason = "its data does not have the checksum that its end mark records";
                checked.problem(ProblemKind::Snapshot, &path, reason);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                checked.problem(ProblemKind::Snapshot, &path, error.to_string());
            }
            Err(error) => {
                checked.problem(ProblemKind::Unreadable, &path, format!("cannot read it: {error}"));
            }
        }
        if let Some(identity) = identity
            && meta.cluster_id != identity.cluster_id
        {
            let reason = format!("it is of cluster {}, the directory of {identity}", meta.cluster_id);
            checked.problem(ProblemKind::OtherCluster, &path, reason);
        }
        if recorded.is_some_and(|recorded| recorded.position == meta.position && *recorded != meta) {
            let reason = "its header says otherwise than the metadata that record it";
            checked.problem(ProblemKind::SnapshotDiffers, &path, reason);
        }
    }
    Ok(())
}

/// Reads everything.
fn digest_of(reader: &mut impl Read) -> io::Result<SnapshotDigest> {
    let mut digest = SnapshotDigest::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(digest),
            length => digest = digest.followed_by(&buffer[..length]),
        }
    }
}
