//! Durable batches of entries, as the log writer makes them: the cost of one storage alone.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftify::membership::Members;
use raftify::status::{ClusterId, Identity, Incarnation};
use raftify::storage::{
    Entry, EntryKind, HardState, HeedStorage, MemoryStorage, SnapshotMeta, SnapshotStore, SnapshotWriter,
    StableStorage, Write,
};
use raftify::{BoxError, LogPosition, Member, NodeId, WalStorage};

use super::disk;
use crate::Work;
use crate::line::Line;
use crate::machine::Usage;
use crate::measure::{Measured, Recorder};
use crate::node::Storage;

/// The log is compacted as often as in a node with default settings; the time of that is not measured.
const ENTRIES_KEPT: u64 = 100_000;
const BYTES_KEPT: u64 = 64 << 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Log {
    /// Entries of one batch
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    batch: Vec<u64>,
    /// Bytes of one entry
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024])]
    entry_bytes: Vec<usize>,
    /// The storage of the log
    #[arg(long, value_delimiter = ',', default_values = ["wal", "heed"])]
    storage: Vec<Storage>,
    /// How long each run takes
    #[arg(long, default_value_t = 0.8)]
    seconds: f64,
}

impl Log {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(self.batch.len() * self.entry_bytes.len() * self.storage.len())?;
        for storage in &self.storage {
            for bytes in &self.entry_bytes {
                for batch in &self.batch {
                    work.reporter.step(format!("{}, {batch} entries of {bytes} B", storage.name()))?;
                    self.measure(work, *storage, *batch, *bytes)?;
                }
            }
        }
        Ok(())
    }

    fn measure(&self, work: &Work, storage: Storage, batch: u64, entry_bytes: usize) -> Result<(), BoxError> {
        let directory = tempfile::tempdir_in(&work.directory)?;
        let probe = disk::probe(&work.directory)?;
        let duration = Duration::from_secs_f64(self.seconds);
        let path = directory.path();
        let cpu = Usage::of(None)?.cpu_seconds;
        let measured = match storage {
            Storage::Memory => appends(MemoryStorage::default(), path, duration, batch, entry_bytes)?,
            Storage::Wal => appends(WalStorage::open(path)?, path, duration, batch, entry_bytes)?,
            Storage::Heed => appends(HeedStorage::open(path)?, path, duration, batch, entry_bytes)?,
        };
        let cpu = Usage::of(None)?.cpu_seconds - cpu;
        let batches_per_second = measured.ops_per_second();
        let entries = Measured { count: measured.count * batch, ..measured };
        let line = Line {
            storage: Some(storage.name().to_owned()),
            clients: Some(batch),
            entry_bytes: Some(entry_bytes as u64),
            fsync: Some(storage.is_synced()),
            disk_fdatasync_p50_us: Some(probe),
            ..Line::of("log")
        };
        let line = line.measured(&entries).cpu(cpu, entries.count);
        work.reporter.result(line.with("batches_per_second", batches_per_second.round()))
    }
}

/// Appends batches to a new log.
pub(crate) fn appends<S: StableStorage>(
    mut storage: S,
    directory: &Path,
    duration: Duration,
    batch: u64,
    entry_bytes: usize,
) -> Result<Measured, BoxError> {
    let mut log = NewLog::begin(&mut storage, directory)?;
    let payload = Bytes::from(vec![7; entry_bytes]);
    let mut recorder = Recorder::new();
    let (mut busy, mut compacted) = (Duration::ZERO, 0);
    while busy < duration {
        let write = log.next(batch, &payload);
        let begin = Instant::now();
        storage.write(&[write])?;
        let took = begin.elapsed();
        recorder.record(took);
        busy += took;
        let since = log.last.index.0 - compacted;
        if since >= ENTRIES_KEPT || since * entry_bytes as u64 >= BYTES_KEPT {
            log.compact(&mut storage)?;
            compacted = log.last.index.0;
        }
    }
    Ok(recorder.measured(busy))
}

/// A log that is empty at first, and its writes.
pub(crate) struct NewLog {
    cluster_id: ClusterId,
    members: Members,
    pub(crate) last: LogPosition,
}

impl NewLog {
    /// Initializes a new storage with its identity.
    pub(crate) fn begin<S: StableStorage>(storage: &mut S, directory: &Path) -> Result<NewLog, BoxError> {
        if storage.load()?.identity.is_some() {
            return Err(format!("{} is not empty", directory.display()).into());
        }
        let members = Members::initial([Member::voter(NodeId::FIRST, "127.0.0.1:1")])?;
        let (cluster_id, start) = (members.derive_cluster_id(), LogPosition::new(1, 1));
        storage.write(&[Write {
            identity: Some(Identity { cluster_id, node_id: NodeId::FIRST, incarnation: Incarnation(1) }),
            reset_log: Some(start),
            hard_state: Some(HardState { term: start.term, vote: None, commit: start.index }),
            members: Some(members.clone()),
            ..Write::default()
        }])?;
        Ok(NewLog { cluster_id, members, last: start })
    }

    /// Appends `count` entries.
    pub(crate) fn next(&mut self, count: u64, payload: &Bytes) -> Write {
        let entries = (0..count).map(|_| {
            self.last.index = self.last.index.next();
            Entry { position: self.last, kind: EntryKind::User, payload: payload.clone() }
        });
        Write { append: entries.collect(), ..Write::default() }
    }

    /// Replaces all entries by a snapshot.
    fn compact<S: StableStorage>(&self, storage: &mut S) -> Result<(), BoxError> {
        let position = self.last;
        let meta = SnapshotMeta { cluster_id: self.cluster_id, position, members: self.members.clone() };
        let snapshots = storage.snapshots();
        snapshots.create(&meta)?.finish()?;
        storage.write(&[Write {
            hard_state: Some(HardState { term: position.term, vote: None, commit: position.index }),
            snapshot: Some(meta),
            compact: Some(position),
            ..Write::default()
        }])?;
        Ok(snapshots.retain(&[position])?)
    }
}
