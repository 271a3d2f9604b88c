//! The second of the two traits that a user implements: what the entries do.
//!
//! The state machine is owned by the applier, which calls every method, one at a time; nothing else ever sees it, but
//! for the closures of [`RaftNode::query`](crate::RaftNode::query), which run there too.

use std::io::Read;

use raftify_core::LogPosition;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::application::log_entry::LogEntry;
use crate::application::snapshot::Snapshot;
use crate::error::BoxError;

/// What [`StateMachine::applied`] says if it is not written: nothing of the state outlives the process.
pub const IN_MEMORY: LogPosition = LogPosition::new(u64::MAX, 0);

/// The state that is replicated.
///
/// # The contract
/// - **Deterministic.** Every node applies the same entries in the same order and must come to the same state and the
///   same reply. No clock, no random numbers, no environment: what is needed of these belongs into the entry.
/// - **At least once over a restart.** A node that starts again restores the newest snapshot and applies the entries
///   after it again. A state machine in memory starts from nothing and needs to know nothing of it; one that keeps
///   its state itself says in [`applied`](Self::applied) what it has already.
/// - **Nothing to lose.** No method needs to make anything durable: log and snapshots are.
/// - **One at a time.** All methods are called by one thread, which may block (but see
///   [`is_quick_to_apply`](Self::is_quick_to_apply)). While it does, nothing is applied on this
///   node, replies and reads wait, and entries gather up to
///   [`unapplied_bytes_max`](crate::Config::unapplied_bytes_max); elections and the other nodes are not affected.
/// - **Panics** are caught and treated like a fatal error.
///
/// # When entries are applied
/// Once they are committed: a majority of the voters has them on disk. This node's own disk need not be among them, if the
/// state is in memory: nothing that a crash leaves here could then be ahead of the log, and a leader whose disk is slow
/// answers as fast as the majority. To a state machine that keeps its state on disk, an entry is given only when it is
/// on this node's disk as well; so its proposals wait for the disk of the leader.
///
/// # State on disk
/// A state machine may keep its state itself, in a database or in files. Then a node that starts again need not restore
/// a snapshot, and applies only what is missing. What it must hold to:
/// - It says so in [`applied`](Self::applied), from the first start on: [`LogPosition::ZERO`] while it has nothing.
/// - The state and the position of the last entry in it become durable in one step, such as one transaction.
/// - They may lag behind what was applied, by as much as is cheap, since the log brings the rest again. They must never
///   run ahead of it, or be those of different moments.
/// - Snapshots are needed all the same: for followers that lag too far behind, and to cut the log. Capture a
///   checkpoint, such as hard links to files that do not change any more, with [`Snapshot::from_directory`], and
///   read it back with [`Snapshot::read_directory`]. The snapshot is a copy of the state on the same disk; where that is much, raise [`snapshot_entries`](crate::Config::snapshot_entries) and
///   [`snapshot_log_bytes`](crate::Config::snapshot_log_bytes).
/// - A snapshot holds the position of its state like the state itself, and restoring replaces both in one step.
///
/// ```
/// use std::fs::{self, File};
/// use std::io::Read;
/// use std::path::PathBuf;
///
/// use raftify::{BoxError, LogPosition, Snapshot, StateMachine};
///
/// /// A sum, in a file together with the position up to which it is the sum.
/// struct SumOnDisk {
///     path: PathBuf,
///     state: (u64, LogPosition),
/// }
///
/// impl SumOnDisk {
///     fn open(path: PathBuf) -> Result<SumOnDisk, BoxError> {
///         let state = match File::open(&path) {
///             Ok(mut file) => Snapshot::read_value(&mut file)?,
///             Err(error) if error.kind() == io::ErrorKind::NotFound => (0, LogPosition::ZERO),
///             Err(error) => return Err(error.into()),
///         };
///         Ok(SumOnDisk { path, state })
///     }
///
///     /// Replaces the file as a whole. (A real one would do so once for many entries: it may lag behind.)
///     fn save(&self) -> Result<(), BoxError> {
///         let new = self.path.with_extension("new");
///         let mut file = File::create(&new)?;
///         Snapshot::from_value(self.state).write_to(&mut file)?;
///         file.sync_all()?;
///         Ok(fs::rename(new, &self.path)?)
///     }
/// }
///
/// impl StateMachine for SumOnDisk {
///     type LogEntry = u64;
///     type Reply = u64;
///
///     fn apply(&mut self, position: LogPosition, add: u64) -> Result<u64, BoxError> {
///         self.state = (self.state.0 + add, position);
///         self.save()?;
///         Ok(self.state.0)
///     }
///
///     fn applied(&self) -> LogPosition {
///         self.state.1
///     }
///
///     fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
///         Ok(Snapshot::from_value(self.state))
///     }
///
///     fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
///         self.state = Snapshot::read_value(reader)?;
///         self.save()
///     }
/// }
/// #
/// # let directory = tempfile::tempdir()?;
/// # let mut sum = SumOnDisk::open(directory.path().join("sum"))?;
/// # assert_eq!(sum.apply(LogPosition::new(1, 2), 40)?, 40);
/// # let mut again = SumOnDisk::open(directory.path().join("sum"))?;
/// # assert_eq!(again.applied(), LogPosition::new(1, 2));
/// # assert_eq!(again.apply(LogPosition::new(1, 3), 2)?, 42);
/// # Ok::<(), BoxError>(())
/// ```
pub trait StateMachine: Send + 'static {
    /// What is applied.
    type LogEntry: LogEntry;
    /// What the proposer gets back. Errors that are the business of the proposer ("no such key", "too little money")
    /// are replies: make this a `Result`.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// Applies one committed entry. Called in log order, each position once in the life of the process.
    ///
    /// # Errors
    /// An error is fatal: it says that this node cannot apply what all the others do. The node stops with
    /// [`StopReason::StateMachine`](crate::error::StopReason::StateMachine), who waits for a reply is told that the
    /// outcome is unknown, and the entry is *not* skipped: it comes again when the node starts again.
    fn apply(&mut self, position: LogPosition, entry: Self::LogEntry) -> Result<Self::Reply, BoxError>;

    /// Applies all entries that are committed at this moment, for state machines that gain by it (one transaction for
    /// many entries). Must do what [`apply`](Self::apply) for one after the other does, and return one reply for each
    /// entry, in order.
    ///
    /// # Errors
    /// As for `apply`. All entries of the batch come again when the node starts again.
    fn apply_batch(
        &mut self,
        entries: Vec<(LogPosition, Self::LogEntry)>,
    ) -> Result<Vec<Self::Reply>, BoxError> {
        entries.into_iter().map(|(position, entry)| self.apply(position, entry)).collect()
    }

    /// Whether [`apply`](Self::apply) is a matter of microseconds and never blocks: no I/O, no lock that is held for
    /// long. While little is going on, entries are then applied on the task that runs the node, which saves two changes
    /// of threads; if it takes long after all, that holds up heartbeats, and a leader may lose its office. Default
    /// false: entries are always applied on a thread of their own.
    fn is_quick_to_apply(&self) -> bool {
        false
    }

    /// The last position that is durably in the state already, for a state machine that keeps its state itself: see
    /// [above](Self#state-on-disk). Called once, at [`bootstrap`](crate::Raft::bootstrap), before everything else. Entries
    /// up to there are not applied again, and a snapshot from before is not restored; one that has nothing yet says
    /// [`LogPosition::ZERO`].
    ///
    /// Default: [`IN_MEMORY`], right for a state of which nothing outlives the process. Entries are then applied
    /// [before they are on this node's disk](Self#when-entries-are-applied). A state machine that keeps its state must never
    /// say that: after a crash, its state could hold what is missing in the log.
    ///
    /// A position that this node's log does not hold is an error of `bootstrap`: the state is that of another node, or
    /// the log has lost entries.
    fn applied(&self) -> LogPosition {
        IN_MEMORY
    }

    /// Captures the state as it is now. It should be quick, since nothing is applied meanwhile: clone what is small,
    /// share what is not, or open a read transaction. The capture is written out on another thread while further
    /// entries are applied.
    ///
    /// # Errors
    /// The snapshot is not taken, the old one stays in use, and the node goes on.
    fn snapshot(&mut self) -> Result<Snapshot, BoxError>;

    /// Replaces the state by that of a snapshot, written by this or another node. Called when the node starts, before
    /// any entry, if the state machine does not have that much [by itself](Self::applied), and whenever the leader sends
    /// a snapshot because this node lags too far behind. Build the new state apart and replace the old one at the end.
    ///
    /// The data is checked while it is read: damage shows as an error of the reader, never as wrong bytes. `reader`
    /// streams; the whole need never be in memory. If the node is to stop meanwhile, it fails at the next read, so that
    /// a large snapshot does not hold up the end.
    ///
    /// # Errors
    /// Fatal, as for `apply`. The snapshot is restored again when the node starts again; a state that is half old and
    /// half new is never used.
    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError>;
}
