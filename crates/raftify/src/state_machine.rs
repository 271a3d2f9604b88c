//! The second of the two traits that a user implements: what the entries do.
//!
//! The state machine is owned by the applier, which calls every method, one at a time; nothing else ever sees it, but
//! for the closures of [`RaftNode::query`](crate::RaftNode::query), which run there too.

use std::io::{self, Read, Write};

use raftify_core::LogPosition;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BoxError;
use crate::log_entry::AbstractLogEntry;

/// The state that is replicated.
///
/// # The contract
/// - **Deterministic.** Every node applies the same entries in the same order and must come to the same state and the
///   same reply. No clock, no random numbers, no environment: what is needed of these belongs into the entry.
/// - **At least once over a restart.** A node that starts again restores the newest snapshot and applies the entries
///   after it again. A state machine in memory starts from nothing and needs to know nothing of it; one that keeps
///   its state itself skips positions that it has already.
/// - **Nothing to lose.** No method needs to make anything durable: log and snapshots are.
/// - **One at a time.** All methods are called by one thread, which may block (but see
///   [`is_quick_to_apply`](Self::is_quick_to_apply)). While it does, nothing is applied on this
///   node, replies and reads wait, and entries gather up to
///   [`unapplied_bytes_max`](crate::Config::unapplied_bytes_max); elections and the other nodes are not affected.
/// - **Panics** are caught and treated like a fatal error.
pub trait AbstractStateMachine: Send + 'static {
    /// What is applied.
    type LogEntry: AbstractLogEntry;
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

    /// Captures the state as it is now. It should be quick, since nothing is applied meanwhile: clone what is small,
    /// share what is not, or open a read transaction. The capture is written out on another thread while further
    /// entries are applied.
    ///
    /// # Errors
    /// The snapshot is not taken, the old one stays in use, and the node goes on.
    fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError>;

    /// Replaces the state by that of a snapshot, written by this or another node. Called when the node starts, before
    /// any entry, and whenever the leader sends a snapshot because this node lags too far behind. Build the new state
    /// apart and replace the old one at the end.
    ///
    /// The data is checked while it is read: damage shows as an error of the reader, never as wrong bytes. `reader`
    /// streams; the whole need never be in memory.
    ///
    /// # Errors
    /// Fatal, as for `apply`. The snapshot is restored again when the node starts again; a state that is half old and
    /// half new is never used.
    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError>;
}

type WriteOut = Box<dyn FnOnce(&mut dyn Write) -> Result<(), BoxError> + Send>;

/// A state as it was at one moment, ready to be written out by another thread.
pub struct SnapshotCapture(WriteOut);

impl SnapshotCapture {
    /// A capture in the user's own format. `write_out` is called at most once, on a thread of its own, and may take
    /// its time; the writer is buffered.
    pub fn new(
        write_out: impl FnOnce(&mut dyn Write) -> Result<(), BoxError> + Send + 'static,
    ) -> SnapshotCapture {
        SnapshotCapture(Box::new(write_out))
    }

    /// A value that is written out in the format of `postcard`; [`restore_value`] reads it back.
    pub fn of(value: impl Serialize + Send + 'static) -> SnapshotCapture {
        SnapshotCapture::new(move |writer| Ok(postcard::to_io(&value, writer).map(drop)?))
    }

    /// Writes the capture out.
    ///
    /// # Errors
    /// Those of the user's closure and of the writer.
    pub fn write_to(self, writer: &mut dyn Write) -> Result<(), BoxError> {
        (self.0)(writer)
    }
}

impl std::fmt::Debug for SnapshotCapture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SnapshotCapture")
    }
}

/// Reads back what [`SnapshotCapture::of`] wrote.
///
/// ```
/// use std::collections::BTreeMap;
/// use raftify::{SnapshotCapture, restore_value};
///
/// let state = BTreeMap::from([(1, "one".to_owned())]);
/// let mut bytes = Vec::new();
/// SnapshotCapture::of(state.clone()).write_to(&mut bytes)?;
/// let restored: BTreeMap<i32, String> = restore_value(&mut bytes.as_slice())?;
/// assert_eq!(restored, state);
/// # Ok::<(), raftify::BoxError>(())
/// ```
///
/// # Errors
/// Those of the reader; and if the bytes are not one whole `T`.
pub fn restore_value<T: DeserializeOwned>(reader: &mut dyn Read) -> Result<T, BoxError> {
    let mut data = Vec::new();
    reader.read_to_end(&mut data)?;
    let (value, rest) = postcard::take_from_bytes(&data)?;
    if rest.is_empty() {
        return Ok(value);
    }
    let message = format!("{} bytes follow the value", rest.len());
    Err(io::Error::new(io::ErrorKind::InvalidData, message).into())
}
