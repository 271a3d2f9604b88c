//! Reads snapshots of this node for backups: at a bounded rate, to a bounded number of callers at a time, one
//! chunk of memory for each.
//!
//! Runs as one task of the node, which owns the tasks of all backups and ends them when the node stops. The
//! snapshot of a backup is pinned: it is not deleted while it is read, nor for a while after its caller was
//! lost, so that the caller can continue. A caller that takes no part in time loses its backup.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::error::SnapshotError;
use raftify_core::{
    CheckedConfig, LocalRequestMsg, LogPosition, ProposalReply, SnapshotDigest, SnapshotStore, Status,
    StorageError,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::apply::snapshots::{Pin, Pinned, TrackedSnapshots};
use crate::channels::backups::{BackupCall, BackupHead, BackupPart, BackupReceived};
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::{NodeMetrics, SnapshotOperation};
use crate::channels::reply::channel;
use crate::channels::request_queue::{Refused as NotQueued, RequestSender};
use crate::error::BackupRefused;
use crate::runtime::rate_limiter::RateLimiter;
use crate::runtime::worker::Blocking;

#[cfg(test)]
mod tests;

/// How many backups are read at the same time. Further requests are refused.
const BACKUPS_MAX: usize = 2;

/// How long the snapshot of an interrupted backup is kept. Only that of the last one is.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// How often a waiting caller gets a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// The size of the parts of the data.
const CHUNK_BYTES: usize = 512 << 10;

/// The lowest rate, in bytes per second, so that no backup takes for ever.
const RATE_MIN: u64 = 64 << 10;

/// How much is verified at once of the data that the caller has already.
const SKIPPED_BYTES: u64 = 16 << 20;

/// How often a newer snapshot is tried, because the one before was replaced meanwhile.
const OPEN_ATTEMPTS: u32 = 10;

/// See the module.
pub(crate) struct Backups<R, S: SnapshotStore> {
    snapshots: TrackedSnapshots<S>,
    status: watch::Receiver<Status>,
    /// The raft loop's queue, for snapshots that have to be taken.
    requests: RequestSender<LocalRequestMsg<R>>,
    config: CheckedConfig,
    blocking: Blocking,
    lifecycle: Lifecycle,
    metrics: Arc<NodeMetrics>,
    places: Arc<Semaphore>,
    /// Dropped to delete the snapshot of the interrupted backup that was kept last.
    kept: Mutex<Option<oneshot::Sender<()>>>,
}

/// Why a backup ended early.
enum Ended {
    /// The caller is told.
    Refused(BackupRefused),
    /// There is no caller any more.
    CallerIsGone,
}

impl From<BackupRefused> for Ended {
    fn from(refused: BackupRefused) -> Ended {
        Ended::Refused(refused)
    }
}

fn unreadable(error: &impl ToString) -> BackupRefused {
    BackupRefused::Unreadable(error.to_string())
}

async fn refuse(parts: &mpsc::Sender<BackupPart>, refused: BackupRefused) {
    // A caller that takes no parts has no interest in this one either.
    let _ = timeout(SIGN_OF_LIFE, parts.send(BackupPart::Refused(refused))).await;
}

impl<R: ProposalReply, S: SnapshotStore> Backups<R, S> {
    pub(crate) fn new(
        snapshots: TrackedSnapshots<S>,
        status: watch::Receiver<Status>,
        requests: RequestSender<LocalRequestMsg<R>>,
        config: CheckedConfig,
        blocking: Blocking,
        lifecycle: Lifecycle,
        metrics: Arc<NodeMetrics>,
    ) -> Backups<R, S> {
        let places = Arc::new(Semaphore::new(BACKUPS_MAX));
        let kept = Mutex::default();
        Backups { snapshots, status, requests, config, blocking, lifecycle, metrics, places, kept }
    }

    /// Serves requests until the node stops.
    pub(crate) async fn run(self, mut calls: mpsc::Receiver<BackupCall>) {
        let (backups, mut tasks) = (Arc::new(self), JoinSet::new());
        let stopping = backups.lifecycle.clone();
        let stopping = stopping.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                biased;
                _ = &mut stopping => break,
                Some(_) = tasks.join_next() => {}
                call = calls.recv() => match call {
                    Some(call) => drop(tasks.spawn(Arc::clone(&backups).serve(call))),
                    None => break,
                },
            }
        }
        tasks.shutdown().await;
    }

    async fn serve(self: Arc<Self>, BackupCall { wanted, parts }: BackupCall) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return refuse(&parts, BackupRefused::Busy { under_way: BACKUPS_MAX as u64 }).await;
        };
        let begin = Instant::now();
        let limit = wanted.bytes_per_second_max.or(self.config.snapshot_bytes_per_second_max);
        let limiter = RateLimiter::new(limit.map(|bytes| bytes.max(RATE_MIN)));
        let mut pin = None;
        let outcome = match self.find(wanted.newest, wanted.received, &parts).await {
            Ok((pinned, begin_at)) => {
                let Pinned { meta, digest, reader, pin: pinned } = pinned.take();
                pin = Some(Held::new(pinned, &self.blocking));
                self.send(reader, BackupHead { meta, digest, begin_at }, &limiter, &parts).await
            }
            Err(ended) => Err(ended),
        };
        drop(place);
        self.metrics.snapshot_ended(SnapshotOperation::BackedUp, outcome.is_ok(), begin.elapsed());
        match outcome {
            Ok(()) => return,
            Err(Ended::CallerIsGone) => info!("a backup was interrupted: its caller is gone"),
            // A snapshot is not read any further when the node stops.
            Err(Ended::Refused(BackupRefused::Unreadable(_))) if self.lifecycle.is_stopping() => {
                return refuse(&parts, self.lifecycle.stop_reason().into()).await;
            }
            Err(Ended::Refused(refused)) => {
                warn!(reason = %refused, "a backup has failed");
                let is_interrupted = matches!(refused, BackupRefused::TooSlow { .. });
                refuse(&parts, refused).await;
                if !is_interrupted {
                    return;
                }
            }
        }
        drop(parts);
        if let Some(pin) = pin {
            self.keep(pin).await;
        }
    }

    /// The snapshot to copy, and how much of it the caller has.
    async fn find(
        &self,
        newest: bool,
        received: Option<BackupReceived>,
        parts: &mpsc::Sender<BackupPart>,
    ) -> Result<(Held<Pinned<S>>, u64), Ended> {
        if let Some(BackupReceived { position, digest }) = received
            && let Some(pinned) = self.open(position).await?
            && digest.data_bytes <= pinned.get().digest.data_bytes
            && let Some(pinned) = self.skip(pinned, digest, parts).await?
        {
            return Ok((pinned, digest.data_bytes));
        }
        let taken = if newest { None } else { Some(self.take(parts).await?) };
        for _ in 0..OPEN_ATTEMPTS {
            let recorded = self.status.borrow().snapshot;
            // The status may not know of the snapshot that was just taken.
            let Some(position) = recorded.max(taken) else { return Err(BackupRefused::NoSnapshot.into()) };
            if let Some(pinned) = self.open(position).await? {
                return Ok((pinned, 0));
            }
            sleep(self.config.tick_interval).await;
        }
        Err(unreadable(&"it was replaced by a newer one again and again").into())
    }

    /// `None`: there is no such snapshot.
    async fn open(&self, position: LogPosition) -> Result<Option<Held<Pinned<S>>>, Ended> {
        let snapshots = self.snapshots.clone();
        let opened = self.blocking.start(move || snapshots.open_pinned(position)).await;
        match opened.map_err(|error| unreadable(&error))? {
            Ok(pinned) => Ok(Some(Held::new(pinned, &self.blocking))),
            Err(StorageError::NoSnapshot { .. }) => Ok(None),
            Err(error) => Err(unreadable(&error).into()),
        }
    }

    /// Takes a snapshot, and returns its position.
    async fn take(&self, parts: &mpsc::Sender<BackupPart>) -> Result<LogPosition, Ended> {
        let (reply, answer) = channel::<LogPosition, SnapshotError>();
        match self.requests.try_send(LocalRequestMsg::MakeSnapshot { reply }) {
            Ok(()) => {}
            Err(NotQueued::Full { waiting, .. }) => {
                return Err(BackupRefused::Busy { under_way: waiting }.into());
            }
            Err(NotQueued::Closed) => {
                return Err(BackupRefused::Stopped(self.lifecycle.stop_reason()).into());
            }
        }
        let within = self.config.snapshot_timeout;
        let taken = self.with_signs_of_life(parts, timeout(within, answer)).await?;
        let late = || SnapshotError::Failed(format!("it was not written within {} s", within.as_secs()));
        let taken = taken.unwrap_or_else(|_| Err(late()));
        taken.map_err(|error| match error {
            SnapshotError::Stopped(reason) => BackupRefused::Stopped(reason).into(),
            error => BackupRefused::Snapshot(error).into(),
        })
    }

    /// Reads the part that the caller has. `None`: the caller has other data.
    async fn skip(
        &self,
        mut pinned: Held<Pinned<S>>,
        received: SnapshotDigest,
        parts: &mpsc::Sender<BackupPart>,
    ) -> Result<Option<Held<Pinned<S>>>, Ended> {
        let mut found = SnapshotDigest::default();
        while found.data_bytes < received.data_bytes {
            let left = (received.data_bytes - found.data_bytes).min(SKIPPED_BYTES);
            let reading = self.blocking.start(move || {
                let mut piece = vec![0; CHUNK_BYTES];
                let mut left = left as usize;
                while left > 0 {
                    let wanted = left.min(piece.len());
                    let length = pinned.get_mut().reader.read(&mut piece[..wanted])?;
                    if length == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    found = found.followed_by(&piece[..length]);
                    left -= length;
                }
                Ok::<_, std::io::Error>((pinned, found))
            });
            let read = self.with_signs_of_life(parts, reading).await?;
            (pinned, found) =
                read.map_err(|error| unreadable(&error))?.map_err(|error| unreadable(&error))?;
        }
        Ok((found == received).then_some(pinned))
    }

    /// The outcome of `work`; meanwhile, the caller gets signs of life, and the work ends with it.
    async fn with_signs_of_life<T>(
        &self,
        parts: &mpsc::Sender<BackupPart>,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        let mut signs = interval(SIGN_OF_LIFE);
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return Ok(outcome),
                () = parts.closed() => return Err(Ended::CallerIsGone),
                // If the caller has not taken the last one, another one is not needed.
                _ = signs.tick() => drop(parts.try_send(BackupPart::Waiting)),
            }
        }
    }

    /// Sends the head and the data.
    async fn send(
        &self,
        mut reader: impl Read + Send + 'static,
        head: BackupHead,
        limiter: &RateLimiter,
        parts: &mpsc::Sender<BackupPart>,
    ) -> Result<(), Ended> {
        let (mut offset, end) = (head.begin_at, head.digest.data_bytes);
        info!(position = %head.meta.position, from = offset, bytes = end, "a backup is read");
        self.pass(parts, BackupPart::Head(head)).await?;
        let chunk_bytes = limiter.piece_bytes(CHUNK_BYTES) as u64;
        loop {
            let reading = self.blocking.start(move || {
                let mut data = Vec::with_capacity(chunk_bytes as usize);
                reader.by_ref().take(chunk_bytes).read_to_end(&mut data).map(|_| (reader, data))
            });
            let data;
            let read = reading.await.map_err(|error| unreadable(&error))?;
            (reader, data) = read.map_err(|error| unreadable(&error))?;
            let length = data.len() as u64;
            if length == 0 {
                break;
            }
            limiter.pass(data.len()).await;
            self.pass(parts, BackupPart::Data { offset, data }).await?;
            offset += length;
            self.metrics.snapshot_bytes(SnapshotOperation::BackedUp, length);
        }
        if offset == end {
            return Ok(());
        }
        let reason = format!("the snapshot should hold {end} bytes, but {offset} were read");
        Err(BackupRefused::Unreadable(reason).into())
    }

    /// Waits for the caller to take the previous part: not for ever.
    async fn pass(&self, parts: &mpsc::Sender<BackupPart>, part: BackupPart) -> Result<(), Ended> {
        let after = self.config.snapshot_chunk_timeout;
        match timeout(after, parts.send(part)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::CallerIsGone),
            Err(_) => Err(BackupRefused::TooSlow { after }.into()),
        }
    }

    /// Keeps the snapshot of an interrupted backup for a while, unless a later one is interrupted.
    async fn keep(&self, pin: Held<Pin<S>>) {
        let (later, superseded) = oneshot::channel();
        *self.kept.lock() = Some(later);
        tokio::select! {
            // An error, since no value is ever sent.
            _ = superseded => {}
            () = sleep(KEPT_FOR) => {}
        }
        drop(pin);
    }
}

/// A value that is dropped on a thread that may wait for the disk.
struct Held<T: Send + 'static> {
    value: Option<T>,
    blocking: Blocking,
}

impl<T: Send + 'static> Held<T> {
    fn new(value: T, blocking: &Blocking) -> Held<T> {
        Held { value: Some(value), blocking: blocking.clone() }
    }

    fn get(&self) -> &T {
        self.value.as_ref().expect("only `take` and `drop` remove it, and they consume this")
    }

    fn get_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("only `take` and `drop` remove it, and they consume this")
    }

    fn take(mut self) -> T {
        self.value.take().expect("only `take` and `drop` remove it, and they consume this")
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        // Without a runtime, the process is ending.
        if let (Some(value), Ok(_runtime)) = (self.value.take(), Handle::try_current()) {
            drop(self.blocking.start(move || drop(value)));
        }
    }
}
