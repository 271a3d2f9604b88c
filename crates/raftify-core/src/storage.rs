//! What must survive a crash: the contract between the core's decisions and whoever keeps them.
//!
//! [`StableStorage`] keeps identity, hard state, log, membership and the catalogue of snapshots; [`SnapshotStore`]
//! keeps the snapshots' data. Both are owned by the shell: the core only says what to write ([`Write`]) and is told
//! when it is durable. [`MemoryStorage`] implements both for tests. The suite in `conformance` (feature `testing`)
//! holds one case for every sentence of the contracts.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use crate::entry::Entry;
use crate::members::Members;
use crate::remembered::Remembered;
use crate::types::{ClusterId, Identity, LogIndex, LogPosition, NodeId, Term};

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod memory;
mod stored_state;

pub use memory::{
    MemoryLogReader, MemorySnapshotReader, MemorySnapshotStore, MemorySnapshotWriter, MemoryStorage,
};

/// What a voter must never forget (thesis, figure 3.1: `currentTerm` and `votedFor`), and how far the log is
/// known to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term seen.
    pub term: Term,
    /// Whom this node voted for in that term.
    pub vote: Option<NodeId>,
    /// The commit index, as far as it was known when this was written.
    pub commit: LogIndex,
}

/// What is recorded about a snapshot; its data lies in a [`SnapshotStore`] under its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The cluster it is of.
    pub cluster_id: ClusterId,
    /// The last entry that it includes.
    pub position: LogPosition,
    /// The membership at that place.
    pub members: Members,
}

/// By what the data of a snapshot is recognized. Two snapshots at one position may differ in their bytes, when two nodes
/// took one each: the position does not tell them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnapshotDigest {
    /// How many bytes there are.
    pub data_bytes: u64,
    /// CRC32C (Castagnoli) over all of them.
    pub crc32c: u32,
}

impl SnapshotDigest {
    /// Of the same data with `data` after it. [`SnapshotDigest::default`] is that of no data.
    #[must_use]
    pub fn followed_by(self, data: &[u8]) -> SnapshotDigest {
        SnapshotDigest {
            data_bytes: self.data_bytes + data.len() as u64,
            crc32c: crc32c::crc32c_append(self.crc32c, data),
        }
    }
}

/// One step of durable work. All parts of it become durable together or not at all. The parts are carried out in
/// the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// Whose directory this is. Given once in its life.
    pub identity: Option<Identity>,
    /// Forget all entries: the log begins after this position.
    pub reset_log: Option<LogPosition>,
    /// Add these to the log. The first may stand at or before the log's end: everything from its index on is cut
    /// off first, whatever its term. Never empty-handed over a gap, never at or before the truncated position or
    /// the commit index.
    pub append: Vec<Entry>,
    /// Term, vote and commit index. None of them goes back, no vote changes within its term, the term is at least
    /// the last entry's, and the commit index lies within the log.
    pub hard_state: Option<HardState>,
    /// The membership, with the index that it is as of.
    pub members: Option<Members>,
    /// Starts of this node, and what it knows of those of the others.
    pub remembered: Option<Arc<Remembered>>,
    /// The snapshot that is now the newest; its data is durable already.
    pub snapshot: Option<SnapshotMeta>,
    /// Forget all entries up to and including this position; always at or before the newest snapshot.
    pub compact: Option<LogPosition>,
}

impl Write {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Write::default()
    }
}

/// Everything that a [`StableStorage`] knows when it is opened, but the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredState {
    /// `None` for a directory that was never used.
    pub identity: Option<Identity>,
    /// Zero, nobody, zero if it was never written.
    pub hard_state: HardState,
    /// The membership as of its own index.
    pub members: Option<Members>,
    /// Nothing if it was never written.
    pub remembered: Arc<Remembered>,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotMeta>,
    /// The position before the first entry.
    pub truncated: LogPosition,
    /// The last entry, or `truncated` for an empty log.
    pub last: LogPosition,
    /// Every position in the log at which the term differs from that of the entry before. With it, the core knows
    /// the term of every index without reading an entry.
    pub term_starts: Vec<LogPosition>,
}

/// Keeps what must survive a crash. Owned by one caller, the log writer.
///
/// Every method may block. An error leaves the state on disk unknown between before and after the call; the caller
/// never tries again, but stops the node, and what was reported as written before stays intact.
pub trait StableStorage: Send + 'static {
    /// A second view on the log, for other threads.
    type LogReader: LogReader;
    /// Where this storage keeps snapshot data.
    type Snapshots: SnapshotStore;

    /// Reads what is there. Called once, before anything is written.
    ///
    /// # Errors
    /// If anything is damaged, of an unknown version, or contradicts itself. Nothing is repaired silently, nothing
    /// that may have been acknowledged is dropped.
    fn load(&mut self) -> Result<StoredState, StorageError>;

    /// Carries out all `writes` in order. When it returns `Ok`, all of them survive a loss of power; if it fails or
    /// the machine stops meanwhile, some prefix of `writes` is there, never a part of one.
    ///
    /// # Errors
    /// If it could not be made durable, or if a write contradicts what is stored (a gap in the log, another
    /// identity): nothing is guessed. [`StoredState::after`] decides which writes are refused.
    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError>;

    /// A second view on the log. It sees a write no later than `write` returns.
    fn log_reader(&self) -> Self::LogReader;

    /// The snapshot data beside this log.
    fn snapshots(&self) -> Self::Snapshots;
}

/// Reads entries beside the writer, from any thread.
pub trait LogReader: Clone + Send + Sync + 'static {
    /// The entries of `[from, until)` in order, as many as fit into `bytes_max` ([`Entry::size_bytes`]), but at
    /// least one. None if `until` is not after `from`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] if `from` was compacted away; [`StorageError::BeyondEnd`] if the log ends before
    /// `until`, for instance because its end was cut off after the caller looked; [`StorageError::Corrupt`] if an
    /// entry is damaged or missing. Never a shorter answer for any other reason than `bytes_max`.
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError>;
}

/// Keeps the data of snapshots, each under its position.
///
/// Called from several threads at once, all of which may block. An error leaves the snapshots that were finished before
/// as they were; the node goes on, but for one that it needs to restore its state from.
pub trait SnapshotStore: Clone + Send + Sync + 'static {
    /// Takes the data of one snapshot.
    type Writer: SnapshotWriter;
    /// Gives it back. A damaged block is an error of kind `InvalidData`, never wrong bytes.
    type Reader: Read + Send + 'static;

    /// Begins a snapshot. Nothing is visible under its position before [`SnapshotWriter::finish`].
    ///
    /// # Errors
    /// If there is no room or no permission for it: this snapshot is not taken or received, and tried again later.
    fn create(&self, meta: &SnapshotMeta) -> Result<Self::Writer, StorageError>;

    /// Begins to receive the snapshot of another node, or goes on with what is left of exactly this one: of the same
    /// cluster, position and members, with the same data. Nothing is visible under its position before
    /// [`SnapshotWriter::finish`].
    ///
    /// Also what the data is recognized by that is there already: the next byte to write is the one after it. That data
    /// is a beginning of what was written, whatever happened since; whether the whole is what was `announced`, only the
    /// caller can tell, when all of it is there.
    ///
    /// What the writer took in stays when it is dropped, and over a crash as far as it is durable by then; nothing need
    /// be left after a write that failed. One unfinished snapshot is kept at most: what is left of others is deleted. What is there is
    /// read to be checked, which may take long: `is_wanted` is asked again and again meanwhile.
    ///
    /// # Errors
    /// As for [`SnapshotStore::create`]; also if another writer is receiving this snapshot, and if it is not wanted any
    /// more: what is there stays then.
    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Self::Writer, SnapshotDigest), StorageError>;

    /// Opens a finished snapshot; also what its data is recognized by.
    ///
    /// # Errors
    /// [`StorageError::NoSnapshot`] if there is none at this position; `Corrupt` if its header is damaged.
    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, Self::Reader), StorageError>;

    /// Deletes every snapshot, finished or not, but those at `keep` and those being written. What was
    /// [received](Self::receive) of one that is newer than all at `keep` stays, too.
    ///
    /// # Errors
    /// If not all of them could be deleted. It costs space until the next call, and nothing else.
    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError>;
}

/// Takes the data of one snapshot. Dropped without [`finish`](Self::finish), it leaves nothing behind, unless it
/// [receives](SnapshotStore::receive) the snapshot.
pub trait SnapshotWriter: io::Write + Send + 'static {
    /// Makes the whole snapshot durable and visible, and tells how many bytes of data it holds. A snapshot that was
    /// at this position is replaced at once, never half.
    ///
    /// # Errors
    /// As for [`SnapshotStore::create`]. What was written of it is of no use any more.
    fn finish(self) -> Result<u64, StorageError>;

    /// Deletes what was written. What cannot be deleted costs space until the next start, and is gone on with by nothing
    /// but the same snapshot.
    fn discard(self);
}

/// Why storage could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused. A full disk and a lack of permission show up here.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database under the metadata refused.
    #[error("cannot {action} the database in {}: {reason}", path.display())]
    Database {
        /// What was being done.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// What was read is not what was written.
    #[error(
        "{what} is damaged: {reason}. Nothing was changed. Remove the node from the cluster and let it join again with \
         an empty directory; a copy of this directory is only good if the node has not run since"
    )]
    Corrupt {
        /// File, key or index.
        what: String,
        /// How it shows.
        reason: String,
    },
    /// Written by another version of this program.
    #[error(
        "{what} has format version {found}, this program knows {known}: open it with the version that wrote it"
    )]
    Version {
        /// What was read.
        what: String,
        /// The version found.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// The entry was compacted away: it is part of the newest snapshot.
    #[error("entry {index} was compacted away, the log begins after {truncated}")]
    Compacted {
        /// As asked for.
        index: LogIndex,
        /// The position before the first entry.
        truncated: LogPosition,
    },
    /// The log ends before this entry: it was cut off, or never there. Nothing is damaged.
    #[error("there is no entry {index}, the log ends at {last}")]
    BeyondEnd {
        /// The first that is not there.
        index: LogIndex,
        /// The last that is.
        last: LogPosition,
    },
    /// There is no finished snapshot at this position.
    #[error("there is no snapshot at {position}")]
    NoSnapshot {
        /// As asked for.
        position: LogPosition,
    },
    /// Another process, or another handle of this one, has the directory open.
    #[error("{} is in use by another process: stop that one first, or use another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory that is in use was removed, moved, or replaced by another. Nothing is written any more: it
    /// would not be found at the next start, or would damage what is there now. What was acknowledged before is in what was
    /// moved away.
    #[error(
        "{} was removed or replaced while it was in use, and nothing more is written. If it was moved, move it back, and \
         start again; otherwise remove the node from the cluster and let it join again with an empty directory",
        path.display()
    )]
    Replaced {
        /// What is gone, or another one.
        path: PathBuf,
    },
    /// The directory is kept by another kind of storage. Nothing was changed.
    #[error(
        "{path} is kept by {found}, not by {asked}: open it with {found}, or convert it with `raftify-cli storage \
         convert {path} --to {convert_to}`",
        path = path.display()
    )]
    OtherKind {
        /// The directory.
        path: PathBuf,
        /// What keeps it.
        found: &'static str,
        /// What was to open it.
        asked: &'static str,
        /// What was to open it, as the command line tool names it.
        convert_to: &'static str,
    },
    /// A setting of a storage is outside of its range. Nothing was changed.
    #[error("{setting} must be from {min} to {max}, it is {value}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// As given.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A directory that is only looked at was changed by its node again and again while it was read.
    #[error("{} is changed by its node faster than it can be read: try again, or stop the node first", path.display())]
    Changing {
        /// The directory.
        path: PathBuf,
    },
    /// A write does not fit to what is stored. A defect of the caller; nothing was written.
    #[error("refused to write: {reason}")]
    Refused {
        /// What does not fit.
        reason: String,
    },
}
