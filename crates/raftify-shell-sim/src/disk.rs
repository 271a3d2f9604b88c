//! A host's disk: outlives the node, loses unsynced writes when the host crashes, is slow, and fails.
//!
//! Owned by the world; a node opens it as its storage, one node at a time. It stores the list of writes, so
//! that an earlier state is a prefix of them.

use std::io::{self, Read};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use raftify::status::LogIndex;
use raftify::storage::{
    Entry, LogReader, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, StableStorage,
    StorageError, StoredState,
};
use raftify::storage::{
    MemoryLogReader, MemorySnapshotReader, MemorySnapshotStore, MemorySnapshotWriter, MemoryStorage, Write,
};
use raftify::{ClusterJoinTicket, LogPosition, simulation};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The current behaviour of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Health {
    /// Each operation takes up to this time.
    Slow(Duration),
    /// Each operation fails with this probability, and takes up to this time.
    Failing(f64, Duration),
}

/// See the module. A clone is the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

struct State {
    /// All writes so far.
    writes: Vec<Write>,
    /// How many of them are durable, and the time from which on all of them are.
    synced: usize,
    all_synced_at: Duration,
    snapshots: MemorySnapshotStore,
    health: Health,
    /// The number of operations, and the time at which the last of them ends.
    operations: u64,
    busy_until: Duration,
    /// The node has seen a failure.
    has_failed: bool,
    /// The node that has it open.
    lock: Weak<()>,
    /// A separate file of the program around the node.
    ticket: Option<ClusterJoinTicket>,
    chance: ChaCha8Rng,
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(chance: ChaCha8Rng) -> Disk {
        Disk(Arc::new(Mutex::new(State {
            writes: Vec::new(),
            synced: 0,
            all_synced_at: Duration::ZERO,
            snapshots: MemorySnapshotStore::default(),
            health: Health::Slow(Duration::ZERO),
            operations: 0,
            busy_until: Duration::ZERO,
            has_failed: false,
            lock: Weak::new(),
            ticket: None,
            chance,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Sets the behaviour from now on.
    pub(crate) fn set_health(&self, health: Health) {
        self.state().health = health;
    }

    /// Whether it has failed since the last call.
    pub(crate) fn take_failure(&self) -> bool {
        std::mem::take(&mut self.state().has_failed)
    }

    /// The number of operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The time that it needs for the pending operations.
    pub(crate) fn busy_for(&self) -> Duration {
        self.state().busy_until.saturating_sub(now())
    }

    /// Whether no node, and no remaining task of a node, has it open.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().lock.strong_count() == 0
    }

    /// The stored ticket.
    pub(crate) fn ticket(&self) -> Option<ClusterJoinTicket> {
        self.state().ticket.clone()
    }

    /// Stores a ticket durably.
    pub(crate) fn keep_ticket(&self, ticket: ClusterJoinTicket) {
        self.state().ticket = Some(ticket);
    }

    /// The host has stopped at `at`: any prefix of the writes that were not durable then remains.
    pub(crate) fn crash(&self, at: Duration) {
        let mut state = self.state();
        if at < state.all_synced_at {
            let (synced, all) = (state.synced, state.writes.len());
            let left = state.chance.random_range(synced..=all);
            state.writes.truncate(left);
        }
        state.synced = state.writes.len();
        state.busy_until = Duration::ZERO;
    }

    /// Opens it as a node's storage.
    ///
    /// # Errors
    /// If it is open already.
    pub(crate) fn open(&self) -> Result<OpenDisk, StorageError> {
        let mut state = self.state();
        if state.lock.strong_count() > 0 {
            return Err(StorageError::InUse { path: "the simulated disk".into() });
        }
        let lock = Arc::new(());
        state.lock = Arc::downgrade(&lock);
        let mut memory = MemoryStorage::default();
        memory.write(&state.writes)?;
        let snapshots = Snapshots { disk: self.clone(), store: state.snapshots.clone(), lock };
        drop(state);
        Ok(OpenDisk { disk: self.clone(), memory, snapshots })
    }

    /// The duration of an operation, and whether it fails.
    fn operate(&self, action: &'static str) -> Result<Duration, StorageError> {
        let mut state = self.state();
        let (failure, most) = match state.health {
            Health::Slow(most) => (0.0, most),
            Health::Failing(failure, most) => (failure, most),
        };
        let takes = if most.is_zero() { most } else { state.chance.random_range(Duration::ZERO..=most) };
        simulation::block_for(takes);
        state.operations += 1;
        state.busy_until = state.busy_until.max(now() + simulation::blocked_so_far());
        if failure > 0.0 && state.chance.random_bool(failure) {
            state.has_failed = true;
            let source = io::Error::other("the simulated disk failed");
            return Err(StorageError::Io { action, path: "the simulated disk".into(), source });
        }
        Ok(takes)
    }
}

/// A disk that a node has open.
pub(crate) struct OpenDisk {
    disk: Disk,
    memory: MemoryStorage,
    snapshots: Snapshots,
}

impl StableStorage for OpenDisk {
    type LogReader = Log;
    type Snapshots = Snapshots;

    fn load(&mut self) -> Result<StoredState, StorageError> {
        self.memory.load()
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let operated = self.disk.operate("write to");
        let mut state = self.disk.state();
        let done = match &operated {
            Ok(_) => writes.len(),
            // Any prefix of them is there.
            Err(_) => state.chance.random_range(0..=writes.len()),
        };
        self.memory.write(&writes[..done])?;
        state.synced = state.writes.len();
        state.writes.extend_from_slice(&writes[..done]);
        state.all_synced_at = now() + operated?;
        Ok(())
    }

    fn log_reader(&self) -> Log {
        Log {
            disk: self.disk.clone(),
            reader: self.memory.log_reader(),
            _lock: Arc::clone(&self.snapshots.lock),
        }
    }

    fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }
}

/// The log of an open disk.
#[derive(Clone)]
pub(crate) struct Log {
    disk: Disk,
    reader: MemoryLogReader,
    _lock: Arc<()>,
}

impl LogReader for Log {
    fn read(&self, from: LogIndex, until: LogIndex, bytes_max: u64) -> Result<Vec<Entry>, StorageError> {
        self.disk.operate("read")?;
        self.reader.read(from, until, bytes_max)
    }
}

/// The snapshots of an open disk. Each is durable when it is finished, and the received part of one at once.
#[derive(Clone)]
pub(crate) struct Snapshots {
    disk: Disk,
    store: MemorySnapshotStore,
    lock: Arc<()>,
}

impl SnapshotStore for Snapshots {
    type Writer = Writer;
    type Reader = Reader;

    fn create(&self, meta: &SnapshotMeta) -> Result<Writer, StorageError> {
        self.disk.operate("create a snapshot on")?;
        let writer = self.store.create(meta)?;
        Ok(Writer { disk: self.disk.clone(), writer, _lock: Arc::clone(&self.lock) })
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Writer, SnapshotDigest), StorageError> {
        self.disk.operate("receive a snapshot on")?;
        let (writer, received) = self.store.receive(meta, announced, is_wanted)?;
        Ok((Writer { disk: self.disk.clone(), writer, _lock: Arc::clone(&self.lock) }, received))
    }

    fn open(&self, position: LogPosition) -> Result<(SnapshotMeta, SnapshotDigest, Reader), StorageError> {
        self.disk.operate("open a snapshot on")?;
        let (meta, digest, reader) = self.store.open(position)?;
        Ok((meta, digest, Reader { disk: self.disk.clone(), reader, _lock: Arc::clone(&self.lock) }))
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        self.disk.operate("delete snapshots from")?;
        self.store.retain(keep)
    }
}

/// A snapshot that is being written.
pub(crate) struct Writer {
    disk: Disk,
    writer: MemorySnapshotWriter,
    _lock: Arc<()>,
}

impl io::Write for Writer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.disk.operate("write a snapshot to").map_err(io::Error::other)?;
        self.writer.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl SnapshotWriter for Writer {
    fn finish(self) -> Result<u64, StorageError> {
        self.disk.operate("finish a snapshot on")?;
        self.writer.finish()
    }

    fn discard(self) {
        self.writer.discard();
    }
}

/// A snapshot that is being read.
pub(crate) struct Reader {
    disk: Disk,
    reader: MemorySnapshotReader,
    _lock: Arc<()>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk.operate("read a snapshot from").map_err(io::Error::other)?;
        self.reader.read(buffer)
    }
}
