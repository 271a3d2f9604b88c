//! Checks everything in the directory of a stopped node, without changing a byte.
//!
//! Loading a directory stops at the first damage, and reads neither the data of snapshots nor the entries of
//! the segment log. This check reads all of it, verifies each checksum and each relation between the parts,
//! and lists what is wrong. It reads LMDB's file page by page, without LMDB: no damage ends the process.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftify_core::members::{MemberRecord, MembershipChange};
use raftify_core::storage::StoredState;
use raftify_core::{Entry, EntryKind, StorageError};

use crate::files::io_error;
use crate::layout::{self, DATA_FILE, QuietLock, StorageKind};
use crate::wal;

mod relations;
mod snapshots;
mod tables;
#[cfg(test)]
mod tests;

use self::tables::Values;

/// What is wrong, as a kind. Its text is for logs and for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// A file, or a part of one, cannot be read from the disk.
    Unreadable,
    /// The pages of `data.mdb` contradict each other, or the file is missing.
    Database,
    /// A value in `data.mdb` other than an entry is damaged or missing.
    Metadata,
    /// The log is damaged, or a part of it is missing: a segment, a record, or an entry.
    Log,
    /// An entry is what was written, but its payload cannot be decoded.
    Entry,
    /// A snapshot file is damaged.
    Snapshot,
    /// The metadata record a snapshot of which there is no file.
    SnapshotMissing,
    /// The header of the recorded snapshot differs from the metadata.
    SnapshotDiffers,
    /// Another version of this program wrote a part of it.
    Version,
    /// The commit index is outside of the log.
    CommitOutsideLog,
    /// The last entry has a higher term than the hard state.
    TermBehindLog,
    /// The log begins after the end of the newest snapshot: entries between them are missing.
    GapAfterSnapshot,
    /// The newest snapshot includes entries after the end of the log, or one of another term.
    SnapshotBeyondLog,
    /// The membership is as of an index after the end of the log, or after that of its snapshot.
    MembersBeyondLog,
    /// There is a log or a membership, but no identity.
    NoIdentity,
    /// A snapshot is of another cluster than the directory.
    OtherCluster,
}

/// One thing that is wrong in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The kind.
    pub kind: ProblemKind,
    /// The file, key or index.
    pub what: String,
    /// How it shows.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

/// The result of [`check_directory`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// The storage of the directory. `None` if that could not be read.
    pub storage: Option<StorageKind>,
    /// The stored state as far as it could be read. `None` if the log could not be read to its end.
    pub state: Option<StoredState>,
    /// How many bytes were read.
    pub read_bytes: u64,
    /// A record that was started when the machine stopped, and never acknowledged. The next start drops it.
    pub torn: Option<String>,
    /// Files of interrupted operations and obsolete segments. They only take space.
    pub leftovers: Vec<PathBuf>,
    /// What is wrong. Empty for a sound directory.
    pub problems: Vec<Problem>,
}

impl Checked {
    /// Whether no problem was found.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, kind: ProblemKind, what: impl fmt::Display, reason: impl Into<String>) {
        self.problems.push(Problem { kind, what: what.to_string(), reason: reason.into() });
    }

    /// A problem from an error of reading; `kind` is that of damage.
    fn error(&mut self, kind: ProblemKind, error: StorageError) {
        match error {
            StorageError::Corrupt { what, reason } => self.problem(kind, what, reason),
            StorageError::Version { what, found, known } => {
                let reason = format!("it has format version {found}, this program knows {known}");
                self.problem(ProblemKind::Version, what, reason);
            }
            StorageError::Io { action, path, source } => {
                let reason = format!("cannot {action} it: {source}");
                self.problem(ProblemKind::Unreadable, path.display(), reason);
            }
            other => self.problem(kind, "the log", other.to_string()),
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let decoded = match entry.kind {
            EntryKind::Empty | EntryKind::User => return,
            EntryKind::MembershipChange => MembershipChange::decode(&entry.payload).map(drop),
            EntryKind::MemberRecord => MemberRecord::decode(&entry.payload).map(drop),
        };
        if let Err(error) = decoded {
            let what = format!("entry {}", entry.position);
            self.problem(ProblemKind::Entry, what, format!("its payload cannot be decoded: {error}"));
        }
    }
}

/// Reads and checks everything in the directory of a stopped node: the database page by page, each value,
/// record and entry, all data of each snapshot, and whether they fit together. No file is changed or created.
///
/// It holds the locks of the directory meanwhile, so that its node cannot start. A sound directory is one
/// that its node can load; whether the node may still take part in its cluster, only the other members know.
/// Unused bytes (free pages, the rest of a segment) have no checksums, and are not checked.
///
/// # Errors
/// If the directory could not be checked; that means nothing for its content:
/// - [`StorageError::InUse`]: a node uses it. Stop the node first: its files change while they are read.
/// - [`StorageError::Io`]: the directory is missing, has no file of a node, or there is no permission.
/// - [`StorageError::Interrupted`]: a recovery or a restore was interrupted. Run it again.
///
/// # Examples
/// ```
/// use raftify_core::StableStorage;
/// use raftify_storage::{WalStorage, check_directory};
///
/// # let directory = tempfile::tempdir()?;
/// WalStorage::open(directory.path())?.load()?;
/// let checked = check_directory(directory.path())?;
/// assert!(checked.is_sound(), "{:?}", checked.problems);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_directory(directory: impl AsRef<Path>) -> Result<Checked, StorageError> {
    let directory = directory.as_ref();
    let _lock = QuietLock::take(directory)?;
    layout::check_not_interrupted(directory)?;
    let mut checked = Checked { leftovers: layout::leftovers(directory)?, ..Checked::default() };
    let data_file = directory.join(DATA_FILE);
    if let Err(error) = data_file.metadata() {
        let has_files =
            !layout::segments::list(directory)?.is_empty() || !layout::snapshots::list(directory)?.is_empty();
        if error.kind() != io::ErrorKind::NotFound || !has_files {
            return Err(io_error("open", &data_file)(error));
        }
        let reason = "it is missing, although there are other files of a node";
        checked.problem(ProblemKind::Database, data_file.display(), reason);
        return Ok(checked);
    }
    let (values, heed_log) = tables::check(&data_file, &mut checked);
    let Values { metadata, hard_state, start, kind, log_is_known } = values;
    checked.storage = kind;
    let recorded = metadata.snapshot.clone();
    match kind {
        Some(StorageKind::Heed) => {
            checked.state = heed_log.map(|log| StoredState {
                identity: metadata.identity,
                hard_state: hard_state.unwrap_or_default(),
                members: metadata.members,
                remembered: Arc::clone(&metadata.remembered),
                snapshot: metadata.snapshot,
                truncated: metadata.truncated,
                last: log.last,
                term_starts: log.term_starts,
            });
        }
        Some(StorageKind::Wal) if log_is_known => {
            let mut entries = Checked::default();
            match wal::inspect(directory, metadata, start, &mut |entry| entries.entry(entry)) {
                Ok(inspected) => {
                    checked.read_bytes += 2 * inspected.segment_bytes;
                    checked.torn = inspected.torn;
                    checked.leftovers.extend(inspected.leftovers);
                    for error in inspected.damaged {
                        checked.error(ProblemKind::Log, error);
                    }
                    checked.state = Some(inspected.state);
                }
                Err(error) => checked.error(ProblemKind::Log, error),
            }
            checked.problems.append(&mut entries.problems);
        }
        _ => {}
    }
    if let Some(state) = checked.state.clone() {
        relations::check(directory, &state, &mut checked);
    }
    let recorded = checked.state.as_ref().map_or(recorded, |state| state.snapshot.clone());
    let identity = checked.state.as_ref().and_then(|state| state.identity);
    snapshots::check(directory, recorded.as_ref(), identity.as_ref(), &mut checked)?;
    checked.leftovers.sort();
    Ok(checked)
}
