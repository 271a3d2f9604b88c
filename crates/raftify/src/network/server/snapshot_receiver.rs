//! Receives snapshots from other nodes, chunk by chunk, and writes them directly to the disk.
//!
//! Called by the server. One snapshot is received at a time, the newest leader's. If its connection breaks,
//! or this node stops, the received part stays in the snapshot store, and the next call continues from there;
//! the part is discarded when any other snapshot begins. A received snapshot is finished only when it is
//! complete and matches its announcement; until then this node's own data is untouched.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use raftify_core::error::InstallError;
use raftify_core::{SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotWriter, Term};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, sleep};
use tonic::Status;
use tracing::{debug, info, warn};

use crate::runtime::endpoint::with_sources;
use crate::runtime::worker::Blocking;
use crate::wire::{RequestRejected, proto};

/// An unfinished snapshot without progress for this many chunk timeouts is closed: a call that continues it
/// has to read it first.
const OPEN_CHUNKS: u32 = 10;

/// The state that all calls of a node share.
pub(crate) struct SnapshotReceiver<S: SnapshotStore> {
    store: S,
    /// The threads on which snapshots are written.
    blocking: Blocking,
    chunk_timeout: Duration,
    /// The call that is being served.
    serving: Mutex<Option<Serving>>,
    /// Locked by the call that writes to it: a second call begins when the first has released it.
    unfinished: Unfinished<S::Writer>,
    /// How many bytes have arrived of the most recently begun snapshot.
    received_bytes: Arc<AtomicU64>,
}

/// The leader of a call. Dropping it ends the call.
struct Serving {
    term: Term,
    end: oneshot::Sender<()>,
}

type Unfinished<W> = Arc<AsyncMutex<Option<Partial<W>>>>;
type Held<W> = OwnedMutexGuard<Option<Partial<W>>>;
type Taken<W> = (Held<W>, Partial<W>);

/// The received part of a snapshot.
struct Partial<W> {
    meta: SnapshotMeta,
    /// The digest of the whole snapshot.
    announced: SnapshotDigest,
    /// The digest of the received part.
    received: SnapshotDigest,
    writer: W,
    last_used: Instant,
}

impl<S: SnapshotStore> SnapshotReceiver<S> {
    pub(crate) fn new(
        store: S,
        blocking: Blocking,
        chunk_timeout: Duration,
        received_bytes: Arc<AtomicU64>,
    ) -> SnapshotReceiver<S> {
        SnapshotReceiver {
            store,
            blocking,
            chunk_timeout,
            serving: Mutex::default(),
            unfinished: Arc::default(),
            received_bytes,
        }
    }

    fn serving(&self) -> MutexGuard<'_, Option<Serving>> {
        self.serving.lock()
    }

    /// Begins to receive a snapshot, or continues it. Ends the previous call: the same leader sends again
    /// only if it has given up the first call, and a newer leader takes precedence.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        term: Term,
        meta: SnapshotMeta,
        announced: SnapshotDigest,
    ) -> Result<Incoming<S>, NotReceived> {
        let mut ended = self.serve(term)?;
        let held = tokio::select! {
            biased;
            held = Arc::clone(&self.unfinished).lock_owned() => held,
            _ = &mut ended => return Err(self.superseded(term)),
        };
        let goes_on =
            held.as_ref().is_some_and(|partial| partial.meta == meta && partial.announced == announced);
        let store = self.store.clone();
        let position = meta.position;
        let opened = self.write(move || {
            let mut held = held;
            if !goes_on {
                // The previous one is closed first: the store deletes it, since there may be no room for
                // both.
                *held = None;
                let receiving = store.receive(&meta, announced, &|| true);
                let (writer, received) = receiving.map_err(|error| with_sources(&error))?;
                *held = Some(Partial { meta, announced, received, writer, last_used: Instant::now() });
            }
            Ok(held)
        });
        let held = opened.await.map_err(|reason| NotReceived::unwritten(position, reason))?;
        let begin_at = held.as_ref().map_or(0, |partial| partial.received.data_bytes);
        self.received_bytes.store(begin_at, Ordering::Relaxed);
        Ok(Incoming { receiver: Arc::clone(self), term, announced, ended, held: Some(held), begin_at })
    }

    /// Registers a call. Resolves, with an error, when the call has to end.
    fn serve(&self, term: Term) -> Result<oneshot::Receiver<()>, NotReceived> {
        let mut serving = self.serving();
        if let Some(current) = serving.as_ref()
            && !current.end.is_closed()
            && current.term > term
        {
            return Err(RequestRejected::StaleSnapshot { term, newer: current.term }.into());
        }
        let (end, ended) = oneshot::channel();
        *serving = Some(Serving { term, end });
        Ok(ended)
    }

    fn superseded(&self, term: Term) -> NotReceived {
        let newer = self.serving().as_ref().map_or(term, |serving| serving.term);
        RequestRejected::StaleSnapshot { term, newer }.into()
    }

    /// Writes on a thread that may wait for the disk.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        self.blocking.start(work).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Closes an unused snapshot, so that the store may delete it once it is outdated. Never ends.
    pub(crate) async fn close_unused(&self) -> Infallible {
        loop {
            sleep(self.chunk_timeout).await;
            let Ok(mut held) = Arc::clone(&self.unfinished).try_lock_owned() else {
                continue;
            };
            let patience = self.chunk_timeout.saturating_mul(OPEN_CHUNKS);
            if let Some(partial) = held.as_ref().filter(|partial| partial.last_used.elapsed() > patience) {
                let SnapshotDigest { data_bytes, .. } = partial.received;
                info!(position = %partial.meta.position, data_bytes, "an unfinished snapshot makes no progress: its file is closed");
                drop(self.blocking.start(move || *held = None));
            }
        }
    }
}

/// A snapshot that is being received.
pub(crate) struct Incoming<S: SnapshotStore> {
    receiver: Arc<SnapshotReceiver<S>>,
    term: Term,
    announced: SnapshotDigest,
    ended: oneshot::Receiver<()>,
    /// `None` while it is being written to.
    held: Option<Held<S::Writer>>,
    begin_at: u64,
}

impl<S: SnapshotStore> Incoming<S> {
    /// The offset from which the data is needed.
    pub(crate) fn begin_at(&self) -> u64 {
        self.begin_at
    }

    /// Resolves when this call has to end.
    pub(crate) async fn ended(&mut self) -> NotReceived {
        // An error, since no value is ever sent.
        let _ = (&mut self.ended).await;
        self.receiver.superseded(self.term)
    }

    /// Writes the next chunk. An invalid chunk is rejected as a whole.
    pub(crate) async fn write(&mut self, chunk: proto::SnapshotData) -> Result<(), NotReceived> {
        let Some((mut held, mut partial)) = self.take() else {
            return Err(NotReceived::gone());
        };
        let received = partial.received.data_bytes;
        let actual = crc32c::crc32c(&chunk.data);
        let wrong = if chunk.offset != received {
            Some(format!("a chunk is for offset {}, expected is {received}", chunk.offset))
        } else if chunk.crc32c != actual {
            Some(format!(
                "the chunk at offset {received} was damaged on its way: its checksum is {actual:08x}, it should be \
                 {:08x}",
                chunk.crc32c
            ))
        } else if received + chunk.data.len() as u64 > self.announced.data_bytes {
            Some(format!("more data than the {} bytes announced", self.announced.data_bytes))
        } else {
            None
        };
        if let Some(reason) = wrong {
            // No byte of this chunk was written: the part before it is unchanged.
            *held = Some(partial);
            return Err(malformed(reason));
        }
        let position = partial.meta.position;
        let received_bytes = Arc::clone(&self.receiver.received_bytes);
        let written = self.receiver.write(move || match partial.writer.write_all(&chunk.data) {
            Ok(()) => {
                partial.received = partial.received.followed_by(&chunk.data);
                partial.last_used = Instant::now();
                received_bytes.store(partial.received.data_bytes, Ordering::Relaxed);
                *held = Some(partial);
                Ok(held)
            }
            // The content of the file is unknown now: the store discards it.
            Err(error) => Err(error.to_string()),
        });
        self.held = Some(written.await.map_err(|reason| NotReceived::unwritten(position, reason))?);
        Ok(())
    }

    /// Makes it durable and visible, if it is complete.
    pub(crate) async fn finish(mut self) -> Result<SnapshotMeta, NotReceived> {
        let Some((mut held, partial)) = self.take() else {
            return Err(NotReceived::gone());
        };
        let Partial { announced, received, .. } = partial;
        let is_complete = received == announced || raftify_core::mutated!(UnfinishedSnapshotIsInstalled);
        if received.data_bytes < announced.data_bytes && !is_complete {
            *held = Some(partial);
            return Err(malformed(format!(
                "the snapshot ended after {} bytes, {} were announced",
                received.data_bytes, announced.data_bytes
            )));
        }
        let position = partial.meta.position;
        let finished = self.receiver.write(move || {
            // Locked until the file is closed.
            let (_held, Partial { meta, writer, .. }) = (held, partial);
            if !is_complete {
                writer.discard();
                return Ok(None);
            }
            writer.finish().map(|_| Some(meta)).map_err(|error| with_sources(&error))
        });
        match finished.await.map_err(|reason| NotReceived::unwritten(position, reason))? {
            Some(meta) => Ok(meta),
            None => Err(malformed(format!(
                "the checksum over all of the snapshot is {:08x}, it should be {:08x}",
                received.crc32c, announced.crc32c
            ))),
        }
    }

    fn take(&mut self) -> Option<Taken<S::Writer>> {
        let mut held = self.held.take()?;
        let partial = held.take()?;
        Some((held, partial))
    }
}

/// Why a snapshot was not received.
pub(crate) enum NotReceived {
    /// The call is rejected, or the connection broke.
    Status(Status),
    /// This node could not write it.
    Refused(InstallError),
}

impl NotReceived {
    fn unwritten(position: raftify_core::LogPosition, reason: String) -> NotReceived {
        warn!(%position, reason, "the incoming snapshot cannot be written");
        NotReceived::Refused(InstallError::Refused { position, reason })
    }

    /// A thread that wrote it panicked.
    fn gone() -> NotReceived {
        debug!("the incoming snapshot is gone");
        NotReceived::Status(Status::internal("what was received is gone"))
    }
}

impl From<Status> for NotReceived {
    fn from(status: Status) -> NotReceived {
        NotReceived::Status(status)
    }
}

impl From<RequestRejected> for NotReceived {
    fn from(refusal: RequestRejected) -> NotReceived {
        NotReceived::Status(refusal.into())
    }
}

fn malformed(reason: String) -> NotReceived {
    RequestRejected::Malformed(reason).into()
}
