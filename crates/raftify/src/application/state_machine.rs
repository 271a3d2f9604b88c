//! The second of the two traits that an application implements: the effect of the entries.
//!
//! The applier owns the state machine and calls every method, one at a time; no other code accesses it,
//! except for the closures of [`RaftNode::query`](crate::RaftNode::query), which run there too.

use std::io::Read;

use raftify_core::LogPosition;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::application::log_entry::LogEntry;
use crate::application::snapshot::Snapshot;
use crate::error::BoxError;

/// The default of [`StateMachine::applied`]: no part of the state outlives the process.
pub const IN_MEMORY: LogPosition = LogPosition::new(u64::MAX, 0);

/// The state that is replicated.
///
/// # The contract
/// - **Deterministic.** Every node applies the same entries in the same order and must reach the same state
///   and the same reply. Use no clock, no random numbers, no environment: put the values that you need of
///   these into the entry.
/// - **At least once over a restart.** A restarted node restores the newest snapshot and applies the entries
///   after it again. A state machine in memory starts empty and needs no special handling; a state machine
///   that keeps its own state reports in [`applied`](Self::applied) the entries that it has already.
/// - **No durability required.** No method needs to make anything durable: log and snapshots are durable.
/// - **One at a time.** One thread calls all methods, and may block (but see
///   [`is_quick_to_apply`](Self::is_quick_to_apply)). While it blocks, nothing is applied on this node,
///   replies and reads wait, and entries accumulate up to
///   [`unapplied_bytes_max`](crate::Config::unapplied_bytes_max); elections and the other nodes are not
///   affected.
/// - **Panics** are caught and treated like a fatal error.
///
/// # When entries are applied
/// An entry is applied once it is committed: it is durable on a majority of the voters. If the state is in
/// memory, the entry need not be durable on this node: after a crash, no state remains that could be ahead of
/// the log, and a leader with a slow disk answers as fast as the majority. A state machine that keeps its
/// state on disk gets an entry only when it is durable on this node as well; so its proposals wait for the
/// disk of the leader.
///
/// # State on disk
/// A state machine may keep its own state, in a database or in files. Then a restarted node need not restore
/// a snapshot, and applies only the missing entries. The requirements:
/// - It reports its position in [`applied`](Self::applied), from the first start on: [`LogPosition::ZERO`]
///   while it is empty.
/// - The state and the position of the last entry in it become durable in one step, such as one transaction.
/// - The durable state may lag behind the applied entries by any convenient amount, since the log replays the
///   rest. State and position must never be ahead of the applied entries, or come from different moments.
/// - Snapshots are still needed: for followers that lag too far behind, and to truncate the log. Capture a
///   checkpoint, such as hard links to files that no longer change, with [`Snapshot::from_directory`], and
///   read it back with [`Snapshot::read_directory`]. The snapshot is a copy of the state on the same disk; if
///   the state is large, raise [`snapshot_entries`](crate::Config::snapshot_entries) and
///   [`snapshot_log_bytes`](crate::Config::snapshot_log_bytes).
/// - A snapshot contains the position of its state like the state itself, and restoring replaces both in one
///   step.
///
/// ```
/// use std::fs::{self, File};
/// use std::io::{ErrorKind, Read};
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
///             Err(error) if error.kind() == ErrorKind::NotFound => (0, LogPosition::ZERO),
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
    /// The type of the entries.
    type LogEntry: LogEntry;
    /// The reply to the proposer. Errors that concern the proposer ("no such key", "too little money") are
    /// replies: make this a `Result`.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// Applies one committed entry. Called in log order, each position once per process.
    ///
    /// # Errors
    /// An error is fatal: this node cannot apply an entry that all other nodes apply. The node stops with
    /// [`StopReason::StateMachine`](crate::error::StopReason::StateMachine), callers that wait for a reply
    /// get an unknown outcome, and the entry is *not* skipped: it is applied again when the node
    /// restarts.
    fn apply(&mut self, position: LogPosition, entry: Self::LogEntry) -> Result<Self::Reply, BoxError>;

    /// Applies all entries that are committed at this moment, for state machines that benefit from batches
    /// (one transaction for many entries). Must have the same effect as [`apply`](Self::apply) for each
    /// entry in turn, and return one reply for each entry, in order.
    ///
    /// # Errors
    /// As for `apply`. All entries of the batch are applied again when the node restarts.
    fn apply_batch(
        &mut self,
        entries: Vec<(LogPosition, Self::LogEntry)>,
    ) -> Result<Vec<Self::Reply>, BoxError> {
        entries.into_iter().map(|(position, entry)| self.apply(position, entry)).collect()
    }

    /// Whether [`apply`](Self::apply) takes only microseconds and never blocks: no I/O, no lock that is held
    /// for long. Under low load, entries are then applied on the task that runs the node, which saves two
    /// thread switches; an `apply` that takes long nevertheless delays heartbeats, and a leader may step
    /// down. Default false: entries are always applied on a separate thread.
    fn is_quick_to_apply(&self) -> bool {
        false
    }

    /// The last position that is durably in the state already, for a state machine that keeps its own state:
    /// see [above](Self#state-on-disk). Called once, at [`bootstrap`](crate::Raft::bootstrap), before
    /// everything else. Entries up to this position are not applied again, and an older snapshot is not
    /// restored; an empty state machine returns [`LogPosition::ZERO`].
    ///
    /// Default: [`IN_MEMORY`], for a state that does not outlive the process. Entries are then applied
    /// [before they are durable on this node](Self#when-entries-are-applied). A state machine that keeps
    /// its own state must never return this value: after a crash, its state could contain entries that
    /// are missing in the log.
    ///
    /// `bootstrap` fails for a position that this node's log does not contain: the state belongs to another
    /// node, or the log has lost entries.
    fn applied(&self) -> LogPosition {
        IN_MEMORY
    }

    /// Captures the current state. The call should be quick, since nothing is applied meanwhile: clone small
    /// data, share the rest, or open a read transaction. Another thread writes the capture while further
    /// entries are applied.
    ///
    /// # Errors
    /// The snapshot is not taken, the old one stays in use, and the node continues.
    fn snapshot(&mut self) -> Result<Snapshot, BoxError>;

    /// Replaces the state by that of a snapshot, written by this or another node. Called when the node
    /// starts, before any entry, if the state machine has not [already applied](Self::applied) that much,
    /// and whenever the leader sends a snapshot because this node lags too far behind. Build the new
    /// state separately and replace the old one at the end.
    ///
    /// The data is checked while it is read: damage causes an error of the reader, never wrong bytes.
    /// `reader` streams; the whole snapshot need never be in memory. If the node is about to stop, the
    /// next read fails, so that a large snapshot does not delay shutdown.
    ///
    /// # Errors
    /// Fatal, as for `apply`. The snapshot is restored again when the node restarts; a partly restored state
    /// is never used.
    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError>;
}
