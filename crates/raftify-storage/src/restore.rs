//! Restores: makes the directories of a new cluster from a backup, which is a snapshot file.
//!
//! Each directory is written into [`RESTORE`], inside of it, and read back. Then the parts are renamed to
//! their final names, LMDB's file last: without that file, and with [`RESTORE`], no node can use the
//! directory.

use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use raftify_core::members::MembershipRefusal;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, HardState, Identity, Incarnation, Member, Members, SnapshotMeta, SnapshotStore,
    SnapshotWriter, StableStorage, StorageError,
};

use crate::backup::{copy, verify_snapshot_file};
use crate::files::{NameOperations, OperatingSystem, create_durably, io_error, sync_names};
use crate::heed_storage::HeedStorage;
use crate::layout::{DATA_FILE, DirectoryLock, RESTORE, StorageKind, segments, snapshots};
use crate::lmdb::Tables;
use crate::snapshot_files::{SnapshotFileReader, SnapshotFiles};
use crate::wal::{WalSettings, WalStorage};

#[cfg(test)]
mod tests;

/// The files that an interrupted restore may leave, besides [`RESTORE`].
const PARTS: [&str; 2] = [segments::DIRECTORY, snapshots::DIRECTORY];

/// A node of the new cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreInto {
    /// Its directory: missing or empty.
    pub directory: PathBuf,
    /// The node as a member, with the address at which the others will reach it. A voter or a learner.
    pub member: Member,
}

/// A new cluster that was made from a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// The id of the new cluster.
    pub cluster_id: ClusterId,
    /// The snapshot in the file.
    pub from: SnapshotMeta,
    /// The members of the new cluster.
    pub members: Members,
}

/// Why no cluster was restored.
#[derive(Debug)]
#[non_exhaustive]
pub enum RestoreError {
    /// The file or a directory could not be read or written, or the file is damaged.
    Storage(StorageError),
    /// The directory holds something. Nothing in it was changed.
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// A name in it.
        found: PathBuf,
    },
    /// These cannot be the members of a cluster.
    Members(MembershipRefusal),
    /// Two nodes have the same directory.
    SameDirectory {
        /// The directory.
        path: PathBuf,
    },
}

impl From<StorageError> for RestoreError {
    fn from(error: StorageError) -> RestoreError {
        RestoreError::Storage(error)
    }
}

impl std::error::Error for RestoreError {}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Storage(error) => error.fmt(f),
            RestoreError::NotEmpty { path, found } => write!(
                f,
                "{} is not empty, it holds {}: a restore needs an empty directory",
                path.display(),
                found.display()
            ),
            RestoreError::Members(refusal) => {
                write!(f, "these cannot be the members of a cluster: {refusal}")
            }
            RestoreError::SameDirectory { path } => {
                write!(f, "{} is named for two nodes: each needs its own directory", path.display())
            }
        }
    }
}

/// Makes a new cluster with the state of a snapshot file: a [backup], or a file in `snapshots/` of a node.
/// Each of its nodes gets a directory.
///
/// The cluster has a new, random id, so that nodes and clients of the former cluster are refused, and its log
/// begins after the position of the snapshot. The nodes are started like nodes that restart. All directories
/// of a cluster are made by one call; each may then be moved to its machine.
///
/// It may be interrupted at any moment: no node can use an incomplete directory. Run it again, after the
/// directories that were complete have been emptied.
///
/// [backup]: verify_snapshot_file
///
/// # Errors
/// See [`RestoreError`]. The whole file is verified before the first directory is changed.
///
/// # Examples
/// ```no_run
/// use raftify_core::{Member, NodeId};
/// use raftify_storage::{RestoreInto, StorageKind, restore_directories};
///
/// let member = Member::voter(NodeId::FIRST, "10.0.0.1:60061");
/// let into = [RestoreInto { directory: "node-1".into(), member }];
/// let restored = restore_directories("cluster.backup", &into, StorageKind::Wal)?;
/// println!("the new cluster is {}", restored.cluster_id);
/// # Ok::<(), raftify_storage::RestoreError>(())
/// ```
pub fn restore_directories(
    file: impl AsRef<Path>,
    into: &[RestoreInto],
    kind: StorageKind,
) -> Result<Restored, RestoreError> {
    restore_directories_with(file, into, kind, WalSettings::default())
}

/// [`restore_directories`] with the settings for a log in segments.
///
/// # Errors
/// As [`restore_directories`], and [`StorageError::Setting`] if a setting is outside of its range.
pub fn restore_directories_with(
    file: impl AsRef<Path>,
    into: &[RestoreInto],
    kind: StorageKind,
    settings: WalSettings,
) -> Result<Restored, RestoreError> {
    settings.check()?;
    restore(file.as_ref(), into, kind, &settings, &OperatingSystem)
}

fn random() -> u64 {
    RandomState::new().hash_one(())
}

fn restore(
    file: &Path,
    into: &[RestoreInto],
    kind: StorageKind,
    settings: &WalSettings,
    operations: &dyn NameOperations,
) -> Result<Restored, RestoreError> {
    for (at, node) in into.iter().enumerate() {
        if into[..at].iter().any(|other| other.directory == node.directory) {
            return Err(RestoreError::SameDirectory { path: node.directory.clone() });
        }
    }
    let incarnations: Vec<Incarnation> = into.iter().map(|_| Incarnation(random())).collect();
    let known = |(node, incarnation): (&RestoreInto, &Incarnation)| Member {
        incarnation: Some(*incarnation),
        ..node.member.clone()
    };
    let members =
        Members::initial(into.iter().zip(&incarnations).map(known)).map_err(RestoreError::Members)?;
    let (from, _) = verify_snapshot_file(file)?;
    for node in into {
        check_empty(&node.directory)?;
    }
    let cluster_id = match raftify_core::mutated!(RestoreKeepsClusterId) {
        true => from.cluster_id,
        false => ClusterId(random()),
    };
    let meta = SnapshotMeta { cluster_id, position: from.position, members: members.clone() };
    for (node, incarnation) in into.iter().zip(incarnations) {
        let identity = Identity { cluster_id, node_id: node.member.id, incarnation };
        restore_one(file, &node.directory, identity, &meta, kind, settings, operations)?;
    }
    Ok(Restored { cluster_id, from, members })
}

/// Checks that there is nothing in the directory but what an interrupted restore has left.
fn check_empty(directory: &Path) -> Result<(), RestoreError> {
    let names = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(io_error("list", directory))?,
    };
    let interrupted = directory.join(RESTORE).exists() && !directory.join(DATA_FILE).exists();
    for entry in names {
        let path = entry.map_err(io_error("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_left = name == "lock" || (interrupted && (name == RESTORE || PARTS.contains(&name)));
        if !is_left {
            return Err(RestoreError::NotEmpty { path: directory.to_owned(), found: path });
        }
    }
    Ok(())
}

fn remove_left(directory: &Path) -> Result<(), StorageError> {
    let remove = |name: &str| {
        let path = directory.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    };
    // The mark goes last: as long as it is there, no node uses the rest.
    PARTS.into_iter().try_for_each(remove)?;
    sync_names(directory).map_err(io_error("sync the directory", directory))?;
    remove(RESTORE)
}

fn restore_one(
    file: &Path,
    directory: &Path,
    identity: Identity,
    meta: &SnapshotMeta,
    kind: StorageKind,
    settings: &WalSettings,
    operations: &dyn NameOperations,
) -> Result<(), RestoreError> {
    create_durably(directory)?;
    let lock = DirectoryLock::take(directory)?;
    // From here on no other process can change the directory.
    check_empty(directory)?;
    remove_left(directory)?;
    let beside = directory.join(RESTORE);
    create_durably(&beside)?;
    // Before the snapshot: a snapshot without a database is taken for damage.
    drop(Tables::open(&beside, lock.clone(), kind)?);
    let snapshots = SnapshotFiles::open(&beside, lock.clone())?;
    let (_, announced, mut reader) = SnapshotFileReader::open_with_digest(file)?;
    let mut writer = snapshots.create(meta)?;
    if copy(file, &mut reader, &mut writer)? != announced {
        let reason = "it has changed since it was verified".to_owned();
        return Err(StorageError::Corrupt { what: file.display().to_string(), reason }.into());
    }
    writer.finish()?;
    let position = meta.position;
    let write = Write {
        identity: Some(identity),
        reset_log: Some(position),
        hard_state: Some(HardState { term: position.term, vote: None, commit: position.index }),
        members: Some(meta.members.clone()),
        snapshot: Some(meta.clone()),
        ..Write::default()
    };
    match kind {
        StorageKind::Heed => fill(&beside, &write, || {
            let tables = Tables::open(&beside, lock.clone(), StorageKind::Heed)?;
            Ok(HeedStorage::new(tables, snapshots.clone()))
        }),
        StorageKind::Wal => fill(&beside, &write, || {
            let tables = Tables::open(&beside, lock.clone(), StorageKind::Wal)?;
            WalStorage::new(&beside, lock.clone(), tables, snapshots.clone(), settings.segment_bytes)
        }),
    }?;
    for name in PARTS.into_iter().chain([DATA_FILE]) {
        let from = beside.join(name);
        if !from.exists() {
            continue;
        }
        operations.rename(&from, &directory.join(name)).map_err(io_error("rename", &from))?;
        for place in [directory, &beside] {
            operations.sync_directory(place).map_err(io_error("sync the directory", place))?;
        }
    }
    Ok(fs::remove_dir_all(&beside).map_err(io_error("remove", &beside))?)
}

/// Makes `write` in a new storage, and reads it back.
fn fill<Target: StableStorage>(
    beside: &Path,
    write: &Write,
    open: impl Fn() -> Result<Target, StorageError>,
) -> Result<(), StorageError> {
    let mut target = open()?;
    target.load()?;
    target.write(std::slice::from_ref(write))?;
    drop(target);
    if open()?.load()? == StoredState::default().after(write)? {
        return Ok(());
    }
    let reason = "what was read back is not what was written there";
    Err(io_error("verify", beside)(io::Error::new(io::ErrorKind::InvalidData, reason)))
}
