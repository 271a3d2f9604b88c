//! Sends snapshots to followers: in checksummed chunks, at a bounded rate, to a bounded number of followers
//! at a time.
//!
//! Called by the outbox, which owns the tasks. A transfer whose connection breaks resumes by itself, at the
//! offset that the receiver requests; the raft loop gets exactly one outcome for each. It holds one chunk in
//! memory, and does not decide which follower gets which snapshot.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use raftify_core::error::InstallError;
use raftify_core::members::SenderRefusal;
use raftify_core::{
    CheckedConfig, LogPosition, SnapshotDigest, SnapshotMeta, SnapshotStore, SnapshotToSend, StorageError,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::channels::events::{PeerEvent, PeerEvents, send_event};
use crate::channels::metrics::{NodeMetrics, SnapshotOperation};
use crate::network::outbox::peer_queue::PeerQueue;
use crate::runtime::endpoint;
use crate::runtime::rate_limiter::RateLimiter;
use crate::runtime::worker::Blocking;
use crate::wire::{self, RequestRejected, proto};

/// A receiver makes the whole snapshot durable before it answers: that takes longer than receiving one chunk.
const LAST_ANSWER_CHUNKS: u32 = 10;

/// After this many broken connections in a row, without progress of the receiver, consensus learns of the
/// failure.
const RETRIES_MAX: u32 = 5;

/// The pause after the first broken connection, or before a snapshot is sent to a peer that has just rejected
/// one. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause before a snapshot is sent to a peer that has rejected the previous ones: its disk may be
/// full, and all but the last chunk may have been sent each time.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The part that the receiver already has is read again. After this many bytes, an empty chunk shows that
/// this node is still alive: a receiver that has most of a large snapshot would stop waiting for the rest.
const SKIPPED_BYTES_MAX: u64 = 16 << 20;

type Open = dyn Fn(LogPosition) -> Result<OpenedSnapshot, StorageError> + Send + Sync;
type OpenedSnapshot = (SnapshotMeta, SnapshotDigest, Box<dyn Read + Send>);

/// The state that all transfers of a node share.
pub(crate) struct SnapshotSender {
    open: Box<Open>,
    /// The threads on which snapshots are read.
    blocking: Blocking,
    limiter: RateLimiter,
    /// One permit for each concurrent transfer.
    places: Semaphore,
    chunk_timeout: Duration,
    reconnect_delay_max: Duration,
    events: PeerEvents,
    metrics: Arc<NodeMetrics>,
}

impl SnapshotSender {
    pub(crate) fn new<S: SnapshotStore>(
        config: &CheckedConfig,
        snapshots: S,
        blocking: Blocking,
        events: PeerEvents,
        metrics: Arc<NodeMetrics>,
    ) -> Self {
        let open = move |position| {
            let (meta, digest, reader) = snapshots.open(position)?;
            Ok((meta, digest, Box::new(reader) as Box<dyn Read + Send>))
        };
        SnapshotSender {
            open: Box::new(open),
            blocking,
            limiter: RateLimiter::new(config.snapshot_bytes_per_second_max),
            places: Semaphore::new(config.snapshots_in_flight_max.min(Semaphore::MAX_PERMITS)),
            chunk_timeout: config.snapshot_chunk_timeout,
            reconnect_delay_max: config.reconnect_delay_max,
            events,
            metrics,
        }
    }

    /// Reads the snapshot on a thread that may wait for the disk.
    async fn read<T: Send + 'static, E: ToString + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure> {
        let outcome = self.blocking.start(work).await;
        outcome.map_err(|error| Failure::here(&error))?.map_err(|error| Failure::here(&error))
    }

    /// Reads the data and passes it to the stream, which takes a chunk when the receiver has room for it.
    async fn feed(
        &self,
        mut reader: Box<dyn Read + Send>,
        begin_at: u64,
        data_bytes: u64,
        chunks: mpsc::Sender<proto::SnapshotChunk>,
    ) -> Result<(), Failure> {
        let mut skipped = 0;
        while skipped < begin_at {
            let length = (begin_at - skipped).min(SKIPPED_BYTES_MAX);
            reader = self
                .read(move || {
                    // Read, and so verified, although it is not sent.
                    let read = io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
                    if read < length {
                        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
                    } else {
                        Ok(reader)
                    }
                })
                .await?;
            skipped += length;
            self.send_chunk(&chunks, begin_at, Vec::new()).await?;
        }
        let mut chunk_bytes = self.limiter.piece_bytes(wire::SNAPSHOT_CHUNK_BYTES);
        if raftify_core::mutated!(SnapshotInOneMessage) {
            chunk_bytes = data_bytes as usize;
        }
        let mut offset = begin_at;
        loop {
            let (returned, data) = self
                .read(move || {
                    let mut data = Vec::with_capacity(chunk_bytes);
                    reader.by_ref().take(chunk_bytes as u64).read_to_end(&mut data).map(|_| (reader, data))
                })
                .await?;
            reader = returned;
            if data.is_empty() {
                break;
            }
            self.limiter.pass(data.len()).await;
            let length = data.len() as u64;
            self.send_chunk(&chunks, offset, data).await?;
            offset += length;
            self.metrics.snapshot_bytes(SnapshotOperation::Sent, length);
        }
        if offset == data_bytes {
            return Ok(());
        }
        let reason = format!("the snapshot should hold {data_bytes} bytes, but {offset} were read");
        Err(Failure { reason, kind: Kind::Other })
    }

    /// Passes a chunk to the stream. Never resolves if the call has ended: its answer gives the reason.
    async fn send_chunk(
        &self,
        chunks: &mpsc::Sender<proto::SnapshotChunk>,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), Failure> {
        let data = proto::SnapshotData { offset, crc32c: crc32c::crc32c(&data), data: data.into() };
        let sent = chunks.send(chunk(proto::snapshot_chunk::Part::Data(data)));
        match self.in_time(sent, 1, "took in a chunk").await? {
            Ok(()) => Ok(()),
            Err(_) => std::future::pending().await,
        }
    }

    /// Every wait for the peer has a time limit.
    async fn in_time<T>(
        &self,
        future: impl Future<Output = T>,
        chunks: u32,
        what: &str,
    ) -> Result<T, Failure> {
        let patience = self.chunk_timeout.saturating_mul(chunks);
        let outcome = timeout(patience, future).await;
        outcome.map_err(|_| Failure::broken(format!("within {patience:?}, the peer never {what}")))
    }
}

/// The loop gets one report for every snapshot to send. Dropped without an outcome, because the task was
/// ended, it reports that: consensus would wait forever otherwise.
pub(crate) struct SnapshotReport {
    sent: SnapshotToSend,
    owed: Option<PeerEvents>,
}

impl SnapshotReport {
    pub(crate) fn new(sent: SnapshotToSend, events: PeerEvents) -> SnapshotReport {
        SnapshotReport { sent, owed: Some(events) }
    }

    pub(crate) fn failed(mut self, reason: String) {
        self.tell(Err(reason));
    }

    fn tell(&mut self, outcome: Result<(), String>) {
        if let Some(events) = self.owed.take() {
            send_event(&events, PeerEvent::SnapshotSent { sent: self.sent, outcome });
        }
    }
}

impl Drop for SnapshotReport {
    fn drop(&mut self) {
        self.tell(Err(
            "sending was ended: another one is sent there, the peer was removed or has moved, or this node is stopping"
                .to_owned(),
        ));
    }
}

/// How many snapshots in a row a peer did not install.
pub(crate) type Failures = Arc<AtomicU32>;

/// One snapshot under way to one peer.
pub(crate) struct SnapshotTransfer {
    pub(crate) snapshot: SnapshotToSend,
    pub(crate) sender: Arc<SnapshotSender>,
    /// Has the introduction of this node to the peer.
    pub(crate) queue: Arc<PeerQueue>,
    pub(crate) channel: Channel,
    pub(crate) failures: Failures,
}

impl SnapshotTransfer {
    pub(crate) async fn run(self, mut report: SnapshotReport) {
        let SnapshotToSend { to, position, .. } = self.snapshot;
        let failures = self.failures.load(Ordering::Relaxed);
        if failures > 0 {
            sleep(pause(failures, PAUSE_MAX)).await;
        }
        info!(peer = %to, %position, "sending a snapshot");
        let begin = Instant::now();
        let outcome = self.send().await;
        let metrics = &self.sender.metrics;
        metrics.snapshot_ended(SnapshotOperation::Sent, outcome.is_ok(), begin.elapsed());
        let outcome = match outcome {
            Ok(()) => {
                self.failures.store(0, Ordering::Relaxed);
                info!(peer = %to, %position, "the snapshot is installed");
                Ok(())
            }
            Err(failure) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                warn!(peer = %to, %position, reason = %failure.reason, "the snapshot was not installed");
                if let Kind::NotBelieved(refusal) = failure.kind {
                    send_event(&self.sender.events, PeerEvent::RefusedBy { by: to, refusal });
                }
                Err(failure.reason)
            }
        };
        report.tell(outcome);
    }

    /// Resumes the transfer where a broken connection left it.
    async fn send(&self) -> Result<(), Failure> {
        let SnapshotToSend { to, position, .. } = self.snapshot;
        let mut retries = 0;
        let mut furthest = 0;
        loop {
            let mut begin_at = 0;
            let failure = match self.attempt(&mut begin_at).await {
                Ok(()) => return Ok(()),
                Err(failure) if matches!(failure.kind, Kind::Broken) => failure,
                Err(failure) => return Err(failure),
            };
            if begin_at > furthest {
                furthest = begin_at;
                retries = 0;
            }
            retries += 1;
            if retries > RETRIES_MAX {
                return Err(failure);
            }
            debug!(peer = %to, %position, reason = %failure.reason, "sending the snapshot is taken up again");
            sleep(pause(retries, self.sender.reconnect_delay_max)).await;
        }
    }

    /// One call. `begin_at` is set to the offset that the receiver requested.
    async fn attempt(&self, begin_at: &mut u64) -> Result<(), Failure> {
        let sender = &self.sender;
        let position = self.snapshot.position;
        let _place = sender.places.acquire().await.map_err(|error| Failure::here(&error))?;
        let opening = Arc::clone(sender);
        let (meta, digest, reader) = sender.read(move || (opening.open)(position)).await?;
        let introduction = self.queue.introduction();
        let head = proto::SnapshotHead {
            header: Some(introduction.header),
            sender: Some(introduction.sender),
            receiver: Some(introduction.receiver),
            term: self.snapshot.term.0,
            position: wire::position_to_wire(position),
            members: meta.members.encode(),
            data_bytes: digest.data_bytes,
            data_crc32c: digest.crc32c,
        };

        // One chunk waits while another is under way: the reader for a slow receiver does not run ahead.
        let (chunks, stream) = mpsc::channel(1);
        let mut service = wire::service(self.channel.clone());
        let begun = async {
            // The first chunk: there is room for it.
            let _ = chunks.send(chunk(proto::snapshot_chunk::Part::Head(head))).await;
            let mut answers = service.install_snapshot(ReceiverStream::new(stream)).await?.into_inner();
            Ok::<_, Failure>((next_answer(&mut answers).await?, answers))
        };
        // The receiver may have to end an earlier, unfinished call.
        let (first, mut answers) = sender.in_time(begun, 2, "began to take it in").await??;
        use proto::install_snapshot_reply::Answer;
        *begin_at = match first {
            Answer::BeginAt(begin_at) if begin_at <= digest.data_bytes => begin_at,
            Answer::BeginAt(begin_at) => {
                let reason = format!("the peer wants byte {begin_at} of {}", digest.data_bytes);
                return Err(Failure { reason, kind: Kind::Other });
            }
            Answer::Installed(proto::SnapshotInstalled {}) => return Ok(()),
            Answer::Refusal(refusal) => return Err(Failure::refused(refusal)),
        };
        if *begin_at > 0 {
            info!(peer = %self.snapshot.to, %position, begin_at = *begin_at, of = digest.data_bytes, "a part of it is there");
        }
        let feed = sender.feed(reader, *begin_at, digest.data_bytes, chunks);
        let answer = next_answer(&mut answers);
        tokio::pin!(feed, answer);
        let answer = tokio::select! {
            // The answer first: when the receiver rejects the snapshot, feeding fails too, with a less precise error.
            biased;
            answer = &mut answer => answer?,
            fed = &mut feed => {
                fed?;
                sender.in_time(answer, LAST_ANSWER_CHUNKS, "answered, after all of it was sent,").await??
            }
        };
        match answer {
            Answer::Installed(proto::SnapshotInstalled {}) => Ok(()),
            Answer::Refusal(refusal) => Err(Failure::refused(refusal)),
            Answer::BeginAt(_) => Err(Failure::broken("the peer answered out of order".to_owned())),
        }
    }
}

fn pause(failures: u32, longest: Duration) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(20)).min(longest)
}

fn chunk(part: proto::snapshot_chunk::Part) -> proto::SnapshotChunk {
    proto::SnapshotChunk { part: Some(part) }
}

async fn next_answer(
    answers: &mut Streaming<proto::InstallSnapshotReply>,
) -> Result<proto::install_snapshot_reply::Answer, Failure> {
    let answer =
        answers.message().await?.ok_or_else(|| Failure::broken("the peer gave no answer".to_owned()))?;
    answer.answer.ok_or_else(|| Failure::broken("the peer's answer is empty".to_owned()))
}

struct Failure {
    reason: String,
    kind: Kind,
}

enum Kind {
    /// The connection broke, or the peer was not reached: the transfer is retried.
    Broken,
    /// The peer does not accept this node.
    NotBelieved(SenderRefusal),
    Other,
}

impl Failure {
    fn broken(reason: String) -> Failure {
        Failure { reason, kind: Kind::Broken }
    }

    /// A failure on this node.
    fn here(error: &impl ToString) -> Failure {
        Failure { reason: error.to_string(), kind: Kind::Other }
    }

    fn refused(refusal: proto::Refusal) -> Failure {
        let kind = match wire::refusal_from_wire(&refusal) {
            Some(InstallError::Sender(refusal)) => Kind::NotBelieved(refusal),
            _ => Kind::Other,
        };
        Failure { reason: refusal.message, kind }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let kind = match RequestRejected::from_status(&status) {
            None => Kind::Broken,
            Some(RequestRejected::Sender(refusal)) => Kind::NotBelieved(refusal),
            Some(_) => Kind::Other,
        };
        Failure { reason: endpoint::describe(&status), kind }
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::Config;
    use raftify_core::storage::MemorySnapshotStore;

    use super::*;

    #[tokio::test]
    async fn a_receiver_that_has_much_already_hears_of_its_sender_while_that_is_skipped() {
        let (events, _events) = mpsc::unbounded_channel();
        let config = Config { snapshot_bytes_per_second_max: None, ..Config::default() }.check().unwrap();
        let metrics = Arc::new(NodeMetrics::unrecorded());
        let sender =
            SnapshotSender::new(&config, MemorySnapshotStore::default(), Blocking::new(), events, metrics);
        let (begin_at, all) = (2 * SKIPPED_BYTES_MAX + 1, 2 * SKIPPED_BYTES_MAX + 3);
        let (chunks, mut received) = mpsc::channel(1);
        let feed = sender.feed(Box::new(io::repeat(7).take(all)), begin_at, all, chunks);
        let receive = async {
            let mut parts = Vec::new();
            while let Some(chunk) = received.recv().await {
                let Some(proto::snapshot_chunk::Part::Data(data)) = chunk.part else {
                    panic!("only data are fed");
                };
                assert_eq!(data.crc32c, crc32c::crc32c(&data.data));
                parts.push((data.offset, data.data.to_vec()));
            }
            parts
        };
        let (fed, parts) = tokio::join!(feed, receive);
        assert!(fed.is_ok());
        let empty = (begin_at, Vec::new());
        assert_eq!(parts, [empty.clone(), empty.clone(), empty, (begin_at, vec![7, 7])]);
    }
}
