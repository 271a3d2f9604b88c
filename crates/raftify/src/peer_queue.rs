//! The messages that wait for one peer: bounded by number and by bytes, and taken out batch by batch by the peer's stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use raftify_core::{CheckedConfig, NodeId, RaftMessage};
use tokio_stream::Stream;
use tracing::{info, warn};

use crate::outbox::lock;
use crate::wire::{self, proto};

/// What a batch says besides its messages.
#[derive(Clone)]
pub(crate) struct Introduction {
    pub(crate) header: proto::Header,
    pub(crate) sender: proto::Sender,
    pub(crate) receiver: proto::Receiver,
}

/// The messages that wait for one peer's stream, which takes them out itself: no task stands between.
pub(crate) struct PeerQueue {
    peer: NodeId,
    messages_max: usize,
    bytes_max: u64,
    inner: Mutex<QueueInner>,
}

struct QueueInner {
    introduction: Introduction,
    waiting: Waiting,
    /// Whether a stream takes messages out, or will as soon as its connection is made. If not, they are dropped.
    open: bool,
    /// Which stream: a broken one must not take what the next one should send.
    generation: u64,
    /// How many were dropped since the queue was last emptied, because it was full.
    dropped: u64,
    waker: Option<Waker>,
}

impl PeerQueue {
    pub(crate) fn new(peer: NodeId, introduction: Introduction, config: &CheckedConfig) -> PeerQueue {
        let inner = QueueInner {
            introduction,
            waiting: Waiting::default(),
            open: true,
            generation: 0,
            dropped: 0,
            waker: None,
        };
        let (messages_max, bytes_max) = (config.peer_queue_max, config.peer_queue_bytes_max);
        PeerQueue { peer, messages_max, bytes_max, inner: Mutex::new(inner) }
    }

    pub(crate) fn introduction(&self) -> Introduction {
        lock(&self.inner).introduction.clone()
    }

    pub(crate) fn introduce(&self, introduction: Introduction) {
        lock(&self.inner).introduction = introduction;
    }

    pub(crate) fn push(&self, messages: impl Iterator<Item = RaftMessage>) {
        let mut inner = lock(&self.inner);
        if !inner.open {
            messages.for_each(drop);
            return;
        }
        for message in messages {
            if inner.waiting.has_room(&message, self.messages_max, self.bytes_max) {
                inner.waiting.push_back(message);
                continue;
            }
            if inner.dropped == 0 {
                warn!(
                    peer = %self.peer,
                    waiting = inner.waiting.messages.len(),
                    bytes = inner.waiting.bytes,
                    "the peer takes messages too slowly: its queue is full, and further messages are dropped"
                );
            }
            inner.dropped += 1;
        }
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// For the next stream.
    pub(crate) fn open(self: &Arc<Self>) -> Batches {
        let mut inner = lock(&self.inner);
        inner.open = true;
        inner.generation += 1;
        Batches { queue: Arc::clone(self), generation: inner.generation }
    }

    pub(crate) fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.open = false;
        inner.generation += 1;
        inner.waiting = Waiting::default();
        inner.dropped = 0;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }
}

/// Everything that has queued up, batch by batch.
pub(crate) struct Batches {
    queue: Arc<PeerQueue>,
    generation: u64,
}

impl Stream for Batches {
    type Item = proto::MessageBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<proto::MessageBatch>> {
        let mut inner = lock(&self.queue.inner);
        if inner.generation != self.generation {
            return Poll::Ready(None);
        }
        if inner.waiting.messages.is_empty() {
            inner.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let batch = inner.waiting.gather();
        if inner.waiting.messages.is_empty() && inner.dropped > 0 {
            info!(peer = %self.queue.peer, dropped = inner.dropped, "the peer takes messages again");
            inner.dropped = 0;
        }
        let Introduction { header, sender, receiver } = inner.introduction.clone();
        drop(inner);
        let messages = batch.into_iter().map(wire::message_to_wire).collect();
        let batch = proto::MessageBatch {
            header: Some(header),
            sender: Some(sender),
            receiver: Some(receiver),
            messages,
        };
        Poll::Ready(Some(batch))
    }
}

/// Messages in order, and how many bytes they have at most.
#[derive(Default)]
struct Waiting {
    messages: VecDeque<RaftMessage>,
    bytes: u64,
}

impl Waiting {
    fn has_room(&self, message: &RaftMessage, messages_max: usize, bytes_max: u64) -> bool {
        let bytes = self.bytes + wire::message_bytes_max(message);
        self.messages.is_empty() || (self.messages.len() < messages_max && bytes <= bytes_max)
    }

    fn push_back(&mut self, message: RaftMessage) {
        self.bytes += wire::message_bytes_max(&message);
        self.messages.push_back(message);
    }

    /// Takes as many messages as one batch may hold; at least one. A message that is too large for any batch is split.
    fn gather(&mut self) -> Vec<RaftMessage> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(message) = self.messages.pop_front() {
            let message_bytes = wire::message_bytes_max(&message);
            if bytes + message_bytes <= wire::BATCH_BYTES || raftify_core::mutated!(BatchHasNoLimit) {
                bytes += message_bytes;
                self.bytes -= message_bytes;
                batch.push(message);
                continue;
            }
            if !batch.is_empty() {
                self.messages.push_front(message);
                break;
            }
            let (first, rest) = wire::split_large(message);
            batch.push(first);
            self.bytes -= message_bytes;
            if let Some(rest) = rest {
                self.bytes += wire::message_bytes_max(&rest);
                self.messages.push_front(rest);
            }
            break;
        }
        batch
    }
}
