//! Durable state: the contract between the core and its storage.
//!
//! [`StableStorage`] keeps identity, hard state, log, membership and the catalogue of snapshots;
//! [`SnapshotStore`] keeps the data of snapshots. The shell owns both: the core only says what to write
//! ([`Write`]) and learns when it is durable. [`MemoryStorage`] implements both for tests. The suite in
//! `conformance` (feature `testing`) has one case for every sentence of the contracts.

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

/// The state that a voter must never forget (thesis, figure 3.1: `currentTerm` and `votedFor`), and how far
/// the log is known to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term seen.
    pub term: Term,
    /// The node that this node voted for in that term.
    pub vote: Option<NodeId>,
    /// The commit index, as far as it was known when this was written.
    pub commit: LogIndex,
}

/// The metadata of a snapshot; a [`SnapshotStore`] keeps its data under its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The cluster of the snapshot.
    pub cluster_id: ClusterId,
    /// The last entry that it includes.
    pub position: LogPosition,
    /// The membership at that position.
    pub members: Members,
}

/// Identifies the data of a snapshot. Two snapshots at one position may differ in their bytes when two nodes
/// took one each: the position does not distinguish them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnapshotDigest {
    /// How many bytes there are.
    pub data_bytes: u64,
    /// CRC32C (Castagnoli) over all of them.
    pub crc32c: u32,
}

impl SnapshotDigest {
    /// The digest of the same data followed by `data`. [`SnapshotDigest::default`] is the digest of no data.
    #[must_use]
    pub fn followed_by(self, data: &[u8]) -> SnapshotDigest {
        SnapshotDigest {
            data_bytes: self.data_bytes + data.len() as u64,
            crc32c: crc32c::crc32c_append(self.crc32c, data),
        }
    }
}

/// One step of durable work. All parts of it become durable together or not at all. The parts are carried out
/// in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// The owner of this directory. Written only once.
    pub identity: Option<Identity>,
    /// Drop all entries: the log begins after this position.
    pub reset_log: Option<LogPosition>,
    /// Append these entries to the log. The first may be at or before the end of the log: all entries from
    /// its index on are truncated first, whatever their terms. It never leaves a gap, and is never at or
    /// before the truncated position or the commit index.
    pub append: Vec<Entry>,
    /// Term, vote and commit index. None of them decreases, the vote does not change within a term, the term
    /// is at least that of the last entry, and the commit index lies within the log.
    pub hard_state: Option<HardState>,
    /// The membership, with the index that it is as of.
    pub members: Option<Members>,
    /// The starts of this node, and the starts of the other nodes as far as it knows them.
    pub remembered: Option<Arc<Remembered>>,
    /// The snapshot that becomes the newest; its data is durable already.
    pub snapshot: Option<SnapshotMeta>,
    /// Drop all entries up to and including this position; it is always at or before the newest snapshot.
    pub compact: Option<LogPosition>,
}

impl Write {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Write::default()
    }
}

/// The state of a [`StableStorage`] when it is opened, except the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredState {
    /// `None` for a directory that was never used.
    pub identity: Option<Identity>,
    /// Zero, no vote, zero if it was never written.
    pub hard_state: HardState,
    /// The membership as of its own index.
    pub members: Option<Members>,
    /// Empty if it was never written.
    pub remembered: Arc<Remembered>,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotMeta>,
    /// The position before the first entry.
    pub truncated: LogPosition,
    /// The last entry, or `truncated` for an empty log.
    pub last: LogPosition,
    /// Every position in the log at which the term differs from that of the entry before. With these, the
    /// core knows the term of every index without reading an entry.
    pub term_starts: Vec<LogPosition>,
}

/// Keeps the durable state. Owned by one caller, the log writer.
///
/// Every method may block. After an error, the state on disk may be the one before or after the call; the
/// caller never tries again, but stops the node. Data that was reported as written before stays intact.
pub trait StableStorage: Send + 'static {
    /// A second view on the log, for other threads.
    type LogReader: LogReader;
    /// Where this storage keeps snapshot data.
    type Snapshots: SnapshotStore;

    /// Reads the stored state. Called once, before any write.
    ///
    /// # Errors
    /// If the data is damaged, of an unknown version, or contradicts itself. The storage repairs nothing
    /// silently, and drops no data that may have been acknowledged.
    fn load(&mut self) -> Result<StoredState, StorageError>;

    /// Carries out all `writes` in order. When it returns `Ok`, all of them survive a power failure; if it
    /// fails or the machine stops meanwhile, some prefix of `writes` is stored, never a part of one.
    ///
    /// # Errors
    /// If the writes could not be made durable, or if a write contradicts the stored state (a gap in the log,
    /// another identity). [`StoredState::after`] decides which writes are refused.
    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError>;

    /// A second view on the log. It sees a write no later than `write` returns.
    fn log_reader(&self) -> Self::LogReader;

    /// The snapshot data that belongs to this log.
    fn snapshots(&self) -> Self::Snapshots;

    /// The directory of the data, for a storage that has one. The node measures how much space its file system
    /// has left, reports it, and takes no proposals while it is less than
    /// [`storage_reserve_bytes`](crate::Config::storage_reserve_bytes). By default, none.
    fn directory(&self) -> Option<PathBuf> {
        None
    }
}

/// Reads entries concurrently with the writer, from any thread.
pub trait LogReader: Clone + Send + Sync + 'static {
    /// The entries of `[from, until)` in order, as many as fit into `bytes_max` ([`Entry::size_bytes`]), but
    /// at least one. No entries if `until` is not after `from`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] if `from` was compacted away; [`StorageError::BeyondEnd`] if the log ends
    /// before `until`, for instance because its end was truncated after the caller looked;
    /// [`StorageError::Corrupt`] if an entry is damaged or missing. The result is never shorter for any
    /// other reason than `bytes_max`.
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError>;
}

/// Keeps the data of snapshots, each under its position.
///
/// Several threads call it at once, and all of them may block. An error leaves the finished snapshots as they
/// were. The node continues, unless it needs the snapshot to restore its state.
pub trait SnapshotStore: Clone + Send + Sync + 'static {
    /// Writes the data of one snapshot.
    type Writer: SnapshotWriter;
    /// Reads the data back. A damaged block is an error of kind `InvalidData`, never wrong bytes.
    type Reader: Read + Send + 'static;

    /// Begins a snapshot. It is not visible under its position before [`SnapshotWriter::finish`].
    ///
    /// # Errors
    /// If there is no space or no permission for it: the node does not take or receive this snapshot, and
    /// tries again later.
    fn create(&self, meta: &SnapshotMeta) -> Result<Self::Writer, StorageError>;

    /// Begins to receive the snapshot of another node, or resumes an unfinished one if it is exactly this
    /// snapshot: of the same cluster, position and members, with the same data. It is not visible under
    /// its position before [`SnapshotWriter::finish`].
    ///
    /// Also returns the digest of the data that is stored already: the next byte to write is the one after
    /// it. The stored data is always a prefix of the written data, whatever happened since. Only the
    /// caller can tell whether the complete data matches `announced`.
    ///
    /// If the writer is dropped, the data that it has written stays, and as far as it is durable by then, it
    /// survives a crash. After a failed write, no data need be left. The store keeps at most one
    /// unfinished snapshot, and deletes the remains of others. It reads and checks the stored data, which
    /// may take long: it calls `is_wanted` repeatedly meanwhile.
    ///
    /// # Errors
    /// As for [`SnapshotStore::create`]; also if another writer is receiving this snapshot, and if it is not
    /// wanted any more: the stored data stays then.
    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Self::Writer, SnapshotDigest), StorageError>;

    /// Opens a finished snapshot; also returns its digest.
    ///
    /// # Errors
    /// [`StorageError::NoSnapshot`] if there is none at this position; `Corrupt` if its header is damaged.
    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, Self::Reader), StorageError>;

    /// Deletes every snapshot, finished or not, except those at `keep` and those being written. The
    /// [received](Self::receive) data of a snapshot that is newer than all at `keep` stays, too.
    ///
    /// # Errors
    /// If not all of them could be deleted. The remaining files only cost space, until the next call.
    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError>;
}

/// Writes the data of one snapshot. Dropped without [`finish`](Self::finish), it leaves no data behind,
/// unless it [receives](SnapshotStore::receive) the snapshot.
pub trait SnapshotWriter: io::Write + Send + 'static {
    /// Makes the whole snapshot durable and visible, and returns how many bytes of data it holds. It replaces
    /// a snapshot at this position atomically.
    ///
    /// # Errors
    /// As for [`SnapshotStore::create`]. The written data is of no use any more.
    fn finish(self) -> Result<u64, StorageError>;

    /// Deletes the written data. Data that cannot be deleted costs space until the next start; only the same
    /// snapshot can be resumed from it.
    fn discard(self);
}

/// Why a storage operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system returned an error, for instance for a full disk or missing permission.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The failed operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The database that holds the metadata returned an error.
    #[error("cannot {action} the database in {}: {reason}", path.display())]
    Database {
        /// The failed operation.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// The error of the database.
        reason: String,
    },
    /// The data that was read differs from the data that was written.
    #[error(
        "{what} is damaged: {reason}. Nothing was changed. Remove the node from the cluster and let it join again with \
         an empty directory; a copy of this directory is only good if the node has not run since"
    )]
    Corrupt {
        /// The file, key or index.
        what: String,
        /// How the damage shows.
        reason: String,
    },
    /// Another version of this program wrote the data.
    #[error(
        "{what} has format version {found}, this program knows {known}: open it with the version that wrote it"
    )]
    Version {
        /// The data that was read.
        what: String,
        /// The version found.
        found: u32,
        /// The known version.
        known: u32,
    },
    /// The entry was compacted away: it is part of the newest snapshot.
    #[error("entry {index} was compacted away, the log begins after {truncated}")]
    Compacted {
        /// The requested index.
        index: LogIndex,
        /// The position before the first entry.
        truncated: LogPosition,
    },
    /// The log ends before this entry: the entry was truncated, or never existed. No data is damaged.
    #[error("there is no entry {index}, the log ends at {last}")]
    BeyondEnd {
        /// The first missing index.
        index: LogIndex,
        /// The last existing position.
        last: LogPosition,
    },
    /// There is no finished snapshot at this position.
    #[error("there is no snapshot at {position}")]
    NoSnapshot {
        /// The requested position.
        position: LogPosition,
    },
    /// Another process, or another handle of this one, has the directory open.
    #[error("{} is in use by another process: stop that one first, or use another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory that is in use was removed, moved, or replaced by another. The storage stops
    /// writing: the data would not be found at the next start, or would damage the files that are there
    /// now. Data acknowledged before is in the files that were moved away.
    #[error(
        "{} was removed or replaced while it was in use, and nothing more is written. If it was moved, move it back, and \
         start again; otherwise remove the node from the cluster and let it join again with an empty directory",
        path.display()
    )]
    Replaced {
        /// The file or directory that is missing or was replaced.
        path: PathBuf,
    },
    /// The directory belongs to another kind of storage. It is unchanged.
    #[error(
        "{path} is kept by {found}, not by {asked}: open it with {found}, or convert it with `raftify-cli storage \
         convert {path} --to {convert_to}`",
        path = path.display()
    )]
    OtherKind {
        /// The directory.
        path: PathBuf,
        /// The kind of storage that it belongs to.
        found: &'static str,
        /// The kind of storage that was to open it.
        asked: &'static str,
        /// The kind of storage that was to open it, as the command line tool names it.
        convert_to: &'static str,
    },
    /// A setting of a storage is outside of its range. The storage is unchanged.
    #[error("{setting} must be from {min} to {max}, it is {value}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The given value.
        value: u64,
        /// The minimum.
        min: u64,
        /// The maximum.
        max: u64,
    },
    /// A directory that is opened read-only was changed by its node repeatedly while it was read.
    #[error("{} is changed by its node faster than it can be read: try again, or stop the node first", path.display())]
    Changing {
        /// The directory.
        path: PathBuf,
    },
    /// A write contradicts the stored state. This is a bug of the caller; nothing was written.
    #[error("refused to write: {reason}")]
    Refused {
        /// The contradiction.
        reason: String,
    },
}
