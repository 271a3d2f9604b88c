//! Makes a new cluster of one node from the directory of a node whose cluster has lost its majority.
//!
//! The new directory is written into [`RECOVERY`], inside the directory, read back and compared. Then the old
//! parts are renamed into [`ORIGINAL`], LMDB's file first, and the new parts to their final names, LMDB's
//! file last: without that file no node can use the directory, and the next recovery continues the renaming.
//!
//! The log keeps all its entries, and ends with the changes that remove all other members: nodes that join
//! later, and read the log from an earlier snapshot on, take the same steps.

use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::members::{LeaveJoint, MemberRecord, MembersDecodeError};
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, Identity, LogIndex, LogPosition, LogReader, MemberChange,
    MemberRole, Members, MembershipChange, NodeId, Remembered, SnapshotMeta, SnapshotStore, SnapshotWriter,
    StableStorage, StorageError, Term,
};

use crate::conversion::{first_difference, write_all};
use crate::files::{NameOperations, OperatingSystem, create_durably, io_error};
use crate::heed_storage::HeedStorage;
use crate::layout::{
    self, DATA_FILE, DirectoryLock, ORIGINAL, QuietLock, READERS_FILE, RECOVERY, StorageKind, segments,
    snapshots,
};
use crate::lmdb::Tables;
use crate::read_only::ReadOnlyStorage;
use crate::snapshot_files::SnapshotFiles;
use crate::wal::{WalSettings, WalStorage};

#[cfg(test)]
mod tests;

/// How many bytes of the log, or of a snapshot, are read at once.
const SLICE_BYTES: u64 = 4 << 20;

/// The parts of a directory besides LMDB's file.
const PARTS: [&str; 2] = [segments::DIRECTORY, snapshots::DIRECTORY];

/// The content of the directory of a stopped node, as far as it matters for a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survivor {
    /// The directory.
    pub directory: PathBuf,
    /// Its storage.
    pub storage: StorageKind,
    /// Its node.
    pub identity: Identity,
    /// The members as of the end of the log: with the changes that are not known to be committed.
    pub members: Members,
    /// Everything else.
    pub state: StoredState,
}

impl Survivor {
    /// Reads the directory of a stopped node, and changes nothing.
    ///
    /// # Errors
    /// - [`RecoverError::NoMember`]: the node is no member of a cluster.
    /// - [`RecoverError::AlreadyRecovered`]: the directory was recovered before.
    /// - [`RecoverError::Storage`]: a node uses the directory, it is damaged, or a recovery was interrupted.
    pub fn read(directory: impl AsRef<Path>) -> Result<Survivor, RecoverError> {
        let directory = directory.as_ref();
        let _lock = QuietLock::take(directory)?;
        layout::check_not_interrupted(directory)?;
        if let Stage::Recovered = stage(directory)? {
            let (path, original) = (directory.to_owned(), directory.join(ORIGINAL));
            return Err(RecoverError::AlreadyRecovered { path, original });
        }
        Survivor::read_from(directory, &ReadOnlyStorage::open(directory)?)
    }

    fn read_from(directory: &Path, storage: &ReadOnlyStorage) -> Result<Survivor, RecoverError> {
        let no_member = |reason: &str| {
            let reason = reason.to_owned();
            Err(RecoverError::NoMember { path: directory.to_owned(), reason })
        };
        let mut state = storage.load()?;
        let Some(identity) = state.identity else {
            return no_member("it was never used");
        };
        let of_snapshot = state.snapshot.as_ref().map(|snapshot| snapshot.members.clone());
        // As a node does when it starts: the last one of two that are equal is that of the metadata.
        let newest = of_snapshot.into_iter().chain(state.members.take()).max_by_key(Members::as_of);
        let Some(newest) = newest.filter(|members| !members.is_empty()) else {
            return no_member("its node has not joined a cluster yet");
        };
        state.members = Some(newest.clone());
        let members = members_at_end(directory, newest, &state, &storage.log_reader())?;
        if members.get(identity.node_id).is_none_or(|own| own.role == MemberRole::Leaving) {
            return no_member("its node was removed from the cluster, or is not yet a member");
        }
        let (directory, storage) = (directory.to_owned(), storage.kind());
        Ok(Survivor { directory, storage, identity, members, state })
    }
}

/// The members after all entries of the log, committed or not.
fn members_at_end(
    directory: &Path,
    mut members: Members,
    state: &StoredState,
    entries: &impl LogReader,
) -> Result<Members, StorageError> {
    let end = state.last.index.next();
    let mut next = members.as_of().max(state.truncated.index).next();
    while next < end {
        for entry in entries.read(next, end, SLICE_BYTES)? {
            let index = entry.position.index;
            next = index.next();
            let corrupt = |error: MembersDecodeError| StorageError::Corrupt {
                what: format!("{}: entry {index}", directory.display()),
                reason: error.to_string(),
            };
            match entry.kind {
                EntryKind::Empty | EntryKind::User => {}
                EntryKind::MembershipChange => {
                    let change = MembershipChange::decode(&entry.payload).map_err(corrupt)?;
                    // Every node skips a change that is not valid.
                    members = members.changed(index, &change).unwrap_or(members);
                }
                EntryKind::MemberRecord => {
                    let record = MemberRecord::decode(&entry.payload).map_err(corrupt)?;
                    members = members.recorded(index, &record);
                }
            }
        }
    }
    Ok(members)
}

/// The survivor whose log an election would prefer: that with the highest term of the last entry, and among
/// these the one with the longest log. Any entry that was acknowledged by a majority with one of the
/// survivors in it is in this log, if it is in any of theirs.
///
/// # Errors
/// - [`RecoverError::TwoClusters`]: they are of different clusters.
/// - [`RecoverError::SameNode`]: two are of one node: a copy must not take part.
/// - [`RecoverError::NoSurvivor`]: there is none.
///
/// # Examples
/// ```no_run
/// use raftify_storage::{Survivor, choose_survivor, recover_directory};
///
/// let survivors = [Survivor::read("node-2")?, Survivor::read("node-3")?];
/// recover_directory(&choose_survivor(&survivors)?.directory)?;
/// # Ok::<(), raftify_storage::RecoverError>(())
/// ```
pub fn choose_survivor(survivors: &[Survivor]) -> Result<&Survivor, RecoverError> {
    for (at, one) in survivors.iter().enumerate() {
        for other in &survivors[..at] {
            let paths = [other.directory.clone(), one.directory.clone()];
            if one.identity.cluster_id != other.identity.cluster_id {
                let clusters = [other.identity.cluster_id, one.identity.cluster_id];
                return Err(RecoverError::TwoClusters { paths, clusters });
            }
            if one.identity.node_id == other.identity.node_id {
                return Err(RecoverError::SameNode { paths, node_id: one.identity.node_id });
            }
        }
    }
    let rank = |survivor: &Survivor| match survivor.state.last {
        LogPosition { index, .. } if raftify_core::mutated!(RecoverPicksByLength) => (Term::ZERO, index),
        LogPosition { term, index } => (term, index),
    };
    // The first of several that are equal.
    survivors.iter().rev().max_by_key(|survivor| rank(survivor)).ok_or(RecoverError::NoSurvivor)
}

/// What a recovery has made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// The node in its former cluster.
    pub from: Identity,
    /// The node in its new cluster.
    pub to: Identity,
    /// Where the directory is kept as it was.
    pub original: PathBuf,
    /// The new content of the directory.
    pub state: StoredState,
    /// Whether this run finished an interrupted one.
    pub resumed: bool,
}

/// Why a directory was not recovered. It is as it was before, unless the variant says otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub enum RecoverError {
    /// The directory could not be read or written. After [`StorageError::Interrupted`] and after an I/O
    /// error, run the recovery again: it continues or starts anew.
    Storage(StorageError),
    /// The directory was recovered before: it belongs to the new cluster.
    AlreadyRecovered {
        /// The directory.
        path: PathBuf,
        /// The directory as it was before that.
        original: PathBuf,
    },
    /// The node of the directory is no member of a cluster.
    NoMember {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The directories are of two clusters.
    TwoClusters {
        /// Two of them.
        paths: [PathBuf; 2],
        /// Their clusters.
        clusters: [ClusterId; 2],
    },
    /// Two directories are of one node.
    SameNode {
        /// Both.
        paths: [PathBuf; 2],
        /// The node.
        node_id: NodeId,
    },
    /// No directory was given.
    NoSurvivor,
    /// A part of the directory is a link to another place: renaming it would break the link.
    Link {
        /// The link.
        path: PathBuf,
    },
    /// Files are in the way that no recovery has made.
    InTheWay {
        /// Their place.
        path: PathBuf,
    },
}

impl From<StorageError> for RecoverError {
    fn from(error: StorageError) -> RecoverError {
        RecoverError::Storage(error)
    }
}

impl std::error::Error for RecoverError {}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Storage(error) => error.fmt(f),
            RecoverError::AlreadyRecovered { path, original } => write!(
                f,
                "{} was recovered before, and its former content is in {}: start its node. If it is the new \
                 cluster that has lost its majority, move the former content away first",
                path.display(),
                original.display()
            ),
            RecoverError::NoMember { path, reason } => {
                write!(f, "{} cannot be recovered: {reason}", path.display())
            }
            RecoverError::TwoClusters { paths: [one, other], clusters: [first, second] } => write!(
                f,
                "{} is of cluster {first}, {} of cluster {second}: name directories of one cluster only. If \
                 one of them was recovered before, start its node, and let the others join it with empty \
                 directories",
                one.display(),
                other.display()
            ),
            RecoverError::SameNode { paths: [one, other], node_id } => write!(
                f,
                "{} and {} are both of node {node_id}: one is a copy, leave out the older one",
                one.display(),
                other.display()
            ),
            RecoverError::NoSurvivor => f.write_str("name at least one directory"),
            RecoverError::Link { path } => write!(
                f,
                "{} is a link: put a directory in its place, or recover a copy of the whole directory",
                path.display()
            ),
            RecoverError::InTheWay { path } => {
                write!(f, "{} is in the way: move it to another place first", path.display())
            }
        }
    }
}

/// Makes a new cluster from the directory of one node, with this node as its only member, a voter.
///
/// For a cluster that has lost the majority of its voters for good. The new cluster has a new, random id:
/// nodes of the former cluster refuse it, and are refused by it, with the reason. Node id and incarnation
/// stay. All entries of the log stay, also those that may not have been committed: they count as committed
/// from now on. All other members are removed, and their ids are never used again.
///
/// The former content is kept in the directory `before-recovery` inside of it, unchanged. The disk needs
/// space for a second copy of the log and of the newest snapshot. It may be interrupted at any moment: the
/// directory is then one of the former cluster, or one that no node can use; call it again.
///
/// It does not look for other nodes: the caller must know that no majority of the former cluster is alive or
/// will come back, and that no other directory was recovered. Otherwise there are two clusters, with
/// different histories. A state machine with its own storage must be that of this node.
///
/// # Errors
/// See [`RecoverError`].
///
/// # Examples
/// ```no_run
/// let recovery = raftify_storage::recover_directory("node-3")?;
/// println!("{} is now {}", recovery.from, recovery.to);
/// # Ok::<(), raftify_storage::RecoverError>(())
/// ```
pub fn recover_directory(directory: impl AsRef<Path>) -> Result<Recovery, RecoverError> {
    recover_directory_with(directory, WalSettings::default())
}

/// [`recover_directory`] with the settings for a log in segments.
///
/// # Errors
/// As [`recover_directory`], and [`StorageError::Setting`] if a setting is outside of its range.
pub fn recover_directory_with(
    directory: impl AsRef<Path>,
    settings: WalSettings,
) -> Result<Recovery, RecoverError> {
    settings.check()?;
    let cluster_id = ClusterId(RandomState::new().hash_one(()));
    recover(directory.as_ref(), cluster_id, &settings, &OperatingSystem)
}

/// How far an earlier recovery came.
enum Stage {
    /// The directory is that of the former cluster.
    Former,
    /// The renaming has begun.
    Between,
    /// The directory is that of the new cluster.
    Recovered,
}

fn exists(path: &Path) -> Result<bool, StorageError> {
    path.try_exists().map_err(io_error("look for", path))
}

fn stage(directory: &Path) -> Result<Stage, RecoverError> {
    let has_data = |at: &str| exists(&directory.join(at).join(DATA_FILE));
    match (has_data("")?, has_data(ORIGINAL)?, has_data(RECOVERY)?) {
        (true, false, _) => Ok(Stage::Former),
        (true, true, _) => Ok(Stage::Recovered),
        (false, true, true) => Ok(Stage::Between),
        (false, ..) => {
            let path = directory.join(DATA_FILE);
            Err(io_error("open", &path)(io::ErrorKind::NotFound.into()).into())
        }
    }
}

fn recover(
    directory: &Path,
    cluster_id: ClusterId,
    settings: &WalSettings,
    operations: &dyn NameOperations,
) -> Result<Recovery, RecoverError> {
    // Before creating files in a directory that may belong to another program.
    stage(directory)?;
    let lock = DirectoryLock::take(directory)?;
    let (beside, original) = (directory.join(RECOVERY), directory.join(ORIGINAL));
    let stage = stage(directory)?;
    match stage {
        Stage::Recovered => {
            remove_all(&beside)?;
            return Err(RecoverError::AlreadyRecovered { path: directory.to_owned(), original });
        }
        Stage::Former => {
            check_in_place(directory, &original)?;
            remove_all(&beside)?;
            let storage = ReadOnlyStorage::open(directory)?;
            let survivor = Survivor::read_from(directory, &storage)?;
            // If the remains cannot be removed now, the next recovery removes them.
            write_new(&survivor, &storage, cluster_id, settings, &lock).inspect_err(|_| {
                let _ = remove_all(&beside);
            })?;
        }
        Stage::Between => {}
    }
    switch(directory, operations)?;
    remove_all(&beside)?;
    let former = ReadOnlyStorage::open(&original)?.load()?;
    let state = ReadOnlyStorage::open(directory)?.load()?;
    let (Some(from), Some(to)) = (former.identity, state.identity) else {
        return Err(RecoverError::NoMember { path: original, reason: "it was never used".to_owned() });
    };
    Ok(Recovery { from, to, original, state, resumed: matches!(stage, Stage::Between) })
}

/// Checks that the parts of the directory can be renamed.
fn check_in_place(directory: &Path, original: &Path) -> Result<(), RecoverError> {
    for name in PARTS {
        let path = directory.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(RecoverError::Link { path });
        }
    }
    match fs::read_dir(original).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(RecoverError::InTheWay { path: original.to_owned() }),
    }
}

fn remove_all(beside: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", beside)(error)),
        _ => Ok(()),
    }
}

/// Writes the new directory, complete and durable, and reads it back.
fn write_new(
    survivor: &Survivor,
    storage: &ReadOnlyStorage,
    cluster_id: ClusterId,
    settings: &WalSettings,
    lock: &DirectoryLock,
) -> Result<(), RecoverError> {
    let Survivor { directory, identity, state, .. } = survivor;
    let beside = directory.join(RECOVERY);
    create_durably(&beside)?;
    // Before the snapshot: a snapshot without a database is taken for damage.
    drop(Tables::open(&beside, lock.clone(), survivor.storage)?);
    let snapshots = SnapshotFiles::open(&beside, lock.clone())?;
    let cluster_id =
        if raftify_core::mutated!(RecoverKeepsClusterId) { identity.cluster_id } else { cluster_id };
    let snapshot = match &state.snapshot {
        Some(former) => Some(copy_snapshot(storage, former, cluster_id, &snapshots)?),
        None => None,
    };
    let starts = state.remembered.starts;
    let begin = StoredState {
        identity: Some(Identity { cluster_id, ..*identity }),
        snapshot,
        // The other members have nothing to say any more.
        remembered: Arc::new(Remembered { starts, ..Remembered::default() }),
        ..state.clone()
    };
    let last = alone(survivor)?;
    let entries = storage.log_reader();
    match survivor.storage {
        StorageKind::Heed => fill(&beside, &begin, &entries, &last, || {
            let tables = Tables::open(&beside, lock.clone(), StorageKind::Heed)?;
            Ok(HeedStorage::new(tables, snapshots.clone()))
        }),
        StorageKind::Wal => fill(&beside, &begin, &entries, &last, || {
            let tables = Tables::open(&beside, lock.clone(), StorageKind::Wal)?;
            WalStorage::new(&beside, lock.clone(), tables, snapshots.clone(), settings.segment_bytes)
        }),
    }?;
    Ok(())
}

/// The snapshot of the former cluster as one of the new cluster.
fn copy_snapshot(
    storage: &ReadOnlyStorage,
    former: &SnapshotMeta,
    cluster_id: ClusterId,
    snapshots: &SnapshotFiles,
) -> Result<SnapshotMeta, StorageError> {
    let (_, _, mut reader) = storage.open_snapshot(former.position)?;
    let meta = SnapshotMeta { cluster_id, ..former.clone() };
    let mut writer = snapshots.create(&meta)?;
    let path = snapshots.path(meta.position);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer).map_err(io_error("read", &path))? {
            0 => break,
            length => writer.write_all(&buffer[..length]).map_err(io_error("write to", &path))?,
        }
    }
    writer.finish()?;
    Ok(meta)
}

/// The entries after the end of the log that leave this node as the only member, as if it had been elected in
/// the next term, with the hard state and the members after them. Everything is committed then.
fn alone(survivor: &Survivor) -> Result<Write, RecoverError> {
    let Survivor { directory, identity, state, members, .. } = survivor;
    let own = identity.node_id;
    let impossible = |reason: String| RecoverError::NoMember { path: directory.clone(), reason };
    let term = state.hard_state.term.0.checked_add(1).map(Term);
    let term = term.ok_or_else(|| impossible("its term is the highest possible".to_owned()))?;
    let mut members = members.clone();
    let mut append = Vec::new();
    let mut last = state.last;
    let mut take = |members: &mut Members, change: MembershipChange| {
        let index = last.index.next();
        last = LogPosition { term, index };
        append.push(Entry { position: last, kind: EntryKind::MembershipChange, payload: change.encode() });
        *members = members.changed(index, &change).map_err(|refusal| impossible(refusal.to_string()))?;
        Ok::<(), RecoverError>(())
    };
    if members.is_joint() {
        take(&mut members, MembershipChange::LeaveJoint)?;
    }
    let steps: Vec<MemberChange> = members
        .iter()
        .filter_map(|member| match (member.id == own, member.role) {
            (true, MemberRole::Voter) => None,
            (true, _) => Some(MemberChange::SetRole { id: own, role: MemberRole::Voter }),
            (false, _) if raftify_core::mutated!(RecoverKeepsOtherMembers) => None,
            (false, _) => Some(MemberChange::Remove(member.id)),
        })
        .collect();
    if !steps.is_empty() {
        take(&mut members, MembershipChange::Steps { steps, leave: LeaveJoint::Automatically })?;
    }
    if members.is_joint() {
        take(&mut members, MembershipChange::LeaveJoint)?;
    }
    let commit = last.index;
    Ok(Write {
        append,
        hard_state: Some(HardState { term, vote: Some(own), commit }),
        members: Some(members),
        ..Write::default()
    })
}

/// Writes `begin` with its `entries`, and then `last`, into a new storage, and reads all of it back.
fn fill<Target: StableStorage>(
    beside: &Path,
    begin: &StoredState,
    entries: &impl LogReader,
    last: &Write,
    open: impl Fn() -> Result<Target, StorageError>,
) -> Result<(), StorageError> {
    let mut target = open()?;
    target.load()?;
    write_all(begin, entries, &mut target)?;
    target.write(std::slice::from_ref(last))?;
    drop(target);

    let mut target = open()?;
    let found = target.load()?;
    let copied = target.log_reader();
    let end = LogIndex(found.last.index.0.saturating_add(1));
    let is_same = found == begin.after(last)?
        && first_difference(entries, &copied, begin)?.is_none()
        && copied.read(begin.last.index.next(), end, u64::MAX)? == last.append;
    if is_same {
        return Ok(());
    }
    let reason = "what was read back is not what was written there";
    Err(io_error("verify", beside)(io::Error::new(io::ErrorKind::InvalidData, reason)))
}

/// Renames the old parts away and the new ones to their final names, also after some of it was done. Each
/// step is durable before the next one begins.
fn switch(directory: &Path, operations: &dyn NameOperations) -> Result<(), RecoverError> {
    let (beside, original) = (directory.join(RECOVERY), directory.join(ORIGINAL));
    let rename = |from: &Path, to: &Path, name: &str| -> Result<(), StorageError> {
        let path = from.join(name);
        operations.rename(&path, &to.join(name)).map_err(io_error("rename", &path))?;
        for place in [to, from] {
            operations.sync_directory(place).map_err(io_error("sync the directory", place))?;
        }
        Ok(())
    };
    if exists(&directory.join(DATA_FILE))? {
        create_durably(&original)?;
        // From here on the recovery can only be continued.
        rename(directory, &original, DATA_FILE)?;
    }
    for name in PARTS {
        if !exists(&beside.join(name))? {
            continue;
        }
        if exists(&directory.join(name))? {
            if exists(&original.join(name))? {
                return Err(RecoverError::InTheWay { path: directory.join(name) });
            }
            rename(directory, &original, name)?;
        }
        rename(&beside, directory, name)?;
    }
    // If another process still reads the old database, LMDB trusts the number of the newest transaction in
    // this table.
    let readers = directory.join(READERS_FILE);
    match operations.remove(&readers) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &readers)(error).into());
        }
        _ => operations.sync_directory(directory).map_err(io_error("sync the directory", directory))?,
    }
    Ok(rename(&beside, directory, DATA_FILE)?)
}
