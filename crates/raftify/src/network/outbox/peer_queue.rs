//! The messages that wait for one peer: bounded by number and by bytes, and taken in batches by the peer's
//! streams.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use prost::Message as _;
use raftify_core::{CheckedConfig, LogPosition, NodeId, RaftMessage, RaftMessageBody, Term};
use tokio_stream::Stream;
use tracing::{info, warn};

use crate::channels::metrics::PeerMetrics;
use crate::wire::{self, proto};

/// The content of a batch besides its messages.
#[derive(Clone)]
pub(crate) struct Introduction {
    pub(crate) header: proto::Header,
    pub(crate) sender: proto::Sender,
    pub(crate) receiver: proto::Receiver,
}

/// The two streams to a peer, each over its own connection: no heartbeat and no vote waits behind entries.
/// Consensus allows messages of the two to overtake each other; entries keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// All messages except entries.
    Signals,
    /// Entries.
    Entries,
}

impl Lane {
    fn of(message: &RaftMessage) -> Lane {
        match message.body {
            RaftMessageBody::Append { .. } => Lane::Entries,
            _ if raftify_core::mutated!(SignalsWaitBehindEntries) => Lane::Entries,
            _ => Lane::Signals,
        }
    }
}

/// The messages that wait for one peer's streams, which take them directly, without a task in between.
pub(crate) struct PeerQueue {
    peer: NodeId,
    messages_max: usize,
    bytes_max: u64,
    metrics: PeerMetrics,
    inner: Mutex<QueueInner>,
}

struct QueueInner {
    introduction: Introduction,
    signals: LaneInner,
    entries: LaneInner,
    /// Whether streams take messages, or will as soon as their connections are made. If not, messages are
    /// dropped.
    open: bool,
    /// The generation of the streams: a broken stream must not take messages of the next one.
    generation: u64,
}

impl QueueInner {
    /// How many messages wait.
    fn waiting(&self) -> usize {
        self.signals.waiting.messages.len() + self.entries.waiting.messages.len()
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneInner {
        match lane {
            Lane::Signals => &mut self.signals,
            Lane::Entries => &mut self.entries,
        }
    }
}

#[derive(Default)]
struct LaneInner {
    waiting: Waiting,
    /// How many messages were dropped since the lane was last emptied, because it was full.
    dropped: u64,
    waker: Option<Waker>,
}

impl LaneInner {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl PeerQueue {
    pub(crate) fn new(
        peer: NodeId,
        introduction: Introduction,
        config: &CheckedConfig,
        metrics: PeerMetrics,
    ) -> PeerQueue {
        let inner = QueueInner {
            introduction,
            signals: LaneInner::default(),
            entries: LaneInner::default(),
            open: true,
            generation: 0,
        };
        let (messages_max, bytes_max) = (config.peer_queue_max, config.peer_queue_bytes_max);
        PeerQueue { peer, messages_max, bytes_max, metrics, inner: Mutex::new(inner) }
    }

    pub(crate) fn introduction(&self) -> Introduction {
        self.inner.lock().introduction.clone()
    }

    pub(crate) fn introduce(&self, introduction: Introduction) {
        self.inner.lock().introduction = introduction;
    }

    pub(crate) fn push(&self, messages: impl Iterator<Item = RaftMessage>) {
        let mut inner = self.inner.lock();
        if !inner.open {
            messages.for_each(drop);
            return;
        }
        for message in messages {
            let lane = inner.lane(Lane::of(&message));
            let message = SizedMessage::new(message);
            if lane.waiting.is_on_its_way(&message) {
                continue;
            }
            if lane.waiting.has_room(&message, self.messages_max, self.bytes_max) {
                lane.waiting.push_back(message);
                continue;
            }
            if lane.dropped == 0 {
                warn!(
                    peer = %self.peer,
                    waiting = lane.waiting.messages.len(),
                    bytes = lane.waiting.bytes,
                    "the peer takes messages too slowly: its queue is full, and further messages are dropped"
                );
            }
            lane.dropped += 1;
            self.metrics.dropped();
        }
        self.metrics.waiting(inner.waiting());
        for lane in [Lane::Signals, Lane::Entries] {
            let lane = inner.lane(lane);
            if !lane.waiting.messages.is_empty() {
                lane.wake();
            }
        }
    }

    /// For the next streams: signals, and entries.
    pub(crate) fn open(self: &Arc<Self>) -> (Batches, Batches) {
        let mut inner = self.inner.lock();
        inner.open = true;
        inner.generation += 1;
        let batches = |lane| Batches { queue: Arc::clone(self), lane, generation: inner.generation };
        (batches(Lane::Signals), batches(Lane::Entries))
    }

    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.open = false;
        inner.generation += 1;
        for lane in [Lane::Signals, Lane::Entries] {
            std::mem::take(inner.lane(lane)).wake();
        }
        self.metrics.waiting(0);
    }
}

/// The queued messages of a lane, batch by batch.
pub(crate) struct Batches {
    queue: Arc<PeerQueue>,
    lane: Lane,
    generation: u64,
}

impl Stream for Batches {
    type Item = proto::MessageBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<proto::MessageBatch>> {
        let mut inner = self.queue.inner.lock();
        if inner.generation != self.generation {
            return Poll::Ready(None);
        }
        let lane = inner.lane(self.lane);
        // The stream has room for more: the previous batch was sent.
        lane.waiting.leaving.clear();
        if lane.waiting.messages.is_empty() {
            lane.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let batch = lane.waiting.gather();
        if lane.waiting.messages.is_empty() && lane.dropped > 0 {
            info!(peer = %self.queue.peer, dropped = lane.dropped, "the peer takes messages again");
            lane.dropped = 0;
        }
        let Introduction { header, sender, receiver } = inner.introduction.clone();
        let waiting = inner.waiting();
        drop(inner);
        let messages = batch.into_iter().map(wire::message_to_wire).collect();
        let batch = proto::MessageBatch {
            header: Some(header),
            sender: Some(sender),
            receiver: Some(receiver),
            messages,
        };
        self.queue.metrics.sent(batch.messages.len(), batch.encoded_len(), waiting);
        Poll::Ready(Some(batch))
    }
}

/// Appends of this size and more are not queued a second time while the first copy is on its way. A second
/// copy of a smaller one costs less than the search in the queue.
const REPEATED_BYTES_MIN: u64 = 64 << 10;

/// A message, and the maximum size of its encoding: it follows from all entries, and is computed once.
struct SizedMessage {
    message: RaftMessage,
    bytes: u64,
}

impl SizedMessage {
    fn new(message: RaftMessage) -> SizedMessage {
        SizedMessage { bytes: wire::message_bytes_max(&message), message }
    }
}

/// Messages in order, and the maximum size of their encoding.
#[derive(Default)]
struct Waiting {
    messages: VecDeque<SizedMessage>,
    bytes: u64,
    /// The appends of the batch being sent.
    leaving: Vec<After>,
}

/// Where the entries of an append begin. A leader's log only grows within a term: two appends of a term after
/// the same position hold the same entries, up to the end of the shorter one.
#[derive(PartialEq, Eq)]
struct After {
    term: Term,
    previous: LogPosition,
}

impl After {
    /// `None`: the message has no entries.
    fn of(message: &RaftMessage) -> Option<After> {
        match &message.body {
            RaftMessageBody::Append { previous, entries, .. } if !entries.is_empty() => {
                Some(After { term: message.term, previous: *previous })
            }
            _ => None,
        }
    }
}

impl Waiting {
    fn has_room(&self, message: &SizedMessage, messages_max: usize, bytes_max: u64) -> bool {
        let bytes = self.bytes + message.bytes;
        self.messages.is_empty() || (self.messages.len() < messages_max && bytes <= bytes_max)
    }

    /// A leader that does not know whether a follower has an entry sends it again after every heartbeat. On a
    /// slow link, one copy takes longer than that, and further ones would delay all later entries. The
    /// answer to the copy that is on its way tells the leader how to continue.
    fn is_on_its_way(&self, message: &SizedMessage) -> bool {
        if message.bytes < REPEATED_BYTES_MIN || raftify_core::mutated!(RepeatsEntriesOnTheirWay) {
            return false;
        }
        let Some(after) = After::of(&message.message) else {
            return false;
        };
        self.leaving.contains(&after)
            || self.messages.iter().any(|waiting| After::of(&waiting.message).as_ref() == Some(&after))
    }

    fn push_back(&mut self, message: SizedMessage) {
        self.bytes += message.bytes;
        self.messages.push_back(message);
    }

    /// Takes as many messages as fit into one batch; at least one. A message that is too large for any batch
    /// is split.
    fn gather(&mut self) -> Vec<RaftMessage> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.messages.pop_front() {
            if bytes + next.bytes <= wire::BATCH_BYTES || raftify_core::mutated!(BatchHasNoLimit) {
                bytes += next.bytes;
                self.bytes -= next.bytes;
                self.leaving.extend(After::of(&next.message));
                batch.push(next.message);
                continue;
            }
            if !batch.is_empty() {
                self.messages.push_front(next);
                break;
            }
            self.bytes -= next.bytes;
            self.leaving.extend(After::of(&next.message));
            let (first, rest) = wire::split_large(next.message);
            batch.push(first);
            if let Some(rest) = rest.map(SizedMessage::new) {
                self.bytes += rest.bytes;
                self.messages.push_front(rest);
            }
            break;
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use raftify_core::{ClusterId, Config, Entry, EntryKind, Incarnation, LogIndex, Sender};
    use tokio::time::timeout;
    use tokio_stream::StreamExt;

    use super::*;

    fn queue() -> Arc<PeerQueue> {
        let peer = NodeId::new(2).unwrap();
        let sender = Sender {
            id: NodeId::FIRST,
            incarnation: Incarnation(1),
            members_as_of: LogIndex::ZERO,
            started: raftify_core::Started::default(),
        };
        let introduction = Introduction {
            header: wire::header(Some(ClusterId(1))),
            sender: wire::sender_to_wire(&sender, "127.0.0.1:1"),
            receiver: wire::receiver_to_wire(peer, None),
        };
        Arc::new(PeerQueue::new(
            peer,
            introduction,
            &Config::default().check().unwrap(),
            PeerMetrics::default(),
        ))
    }

    fn message(body: RaftMessageBody) -> RaftMessage {
        RaftMessage { from: NodeId::FIRST, to: NodeId::new(2).unwrap(), term: Term(1), body }
    }

    fn append(index: u64, bytes: usize) -> RaftMessage {
        let (previous, position) = (LogPosition::new(1, index - 1), LogPosition::new(1, index));
        let entry = Entry { position, kind: EntryKind::User, payload: Bytes::from(vec![7; bytes]) };
        message(RaftMessageBody::Append { previous, commit: LogIndex::ZERO, entries: vec![entry] })
    }

    async fn next(batches: &mut Batches) -> Vec<proto::message::Body> {
        let batch = timeout(Duration::from_secs(1), batches.next()).await.expect("nothing waits").unwrap();
        batch.messages.into_iter().filter_map(|message| message.body).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_and_votes_do_not_wait_behind_entries() {
        let queue = queue();
        let (mut signals, mut entries) = queue.open();
        let heartbeat = message(RaftMessageBody::Heartbeat { commit: LogIndex::ZERO, read_round: None });
        let vote = RaftMessageBody::RequestPreVote { last: LogPosition::ZERO, commit: LogPosition::ZERO };
        queue.push([append(2, 60 << 20), heartbeat, append(3, 1), message(vote)].into_iter());
        use proto::message::Body;
        assert!(matches!(next(&mut signals).await[..], [Body::Heartbeat(_), Body::RequestPreVote(_)]));
        assert!(matches!(&next(&mut entries).await[..], [Body::Append(first)] if indices(first) == [2]));
        assert!(matches!(&next(&mut entries).await[..], [Body::Append(next)] if indices(next) == [3]));
    }

    fn indices(append: &proto::Append) -> Vec<u64> {
        let count = append.runs.iter().map(|run| run.payloads.len()).sum();
        (append.previous.map_or(0, |previous| previous.index) + 1..).take(count).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_entry_that_is_on_its_way_is_not_sent_a_second_time() {
        let queue = queue();
        let (_signals, mut entries) = queue.open();
        let large = || append(2, 8 << 20);
        queue.push([large(), large()].into_iter());
        assert_eq!(next(&mut entries).await.len(), 1);
        // The message is being sent now.
        queue.push([large(), append(3, 1)].into_iter());
        assert!(
            matches!(&next(&mut entries).await[..], [proto::message::Body::Append(next)] if indices(next) == [3])
        );
        // The message was sent, and may have been lost.
        queue.push([large()].into_iter());
        assert_eq!(next(&mut entries).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn entries_that_fit_into_a_batch_are_sent_once_however_many_heartbeats_are_answered_meanwhile() {
        let queue = queue();
        let (_signals, mut entries) = queue.open();
        let probe = || append(2, 2 << 20);
        queue.push([probe(), probe(), append(3, 1), probe()].into_iter());
        // The second probe has more entries: the log has grown.
        let mut longer = probe();
        if let RaftMessageBody::Append { entries, .. } = &mut longer.body {
            let position = LogPosition::new(1, 3);
            entries.push(Entry { position, kind: EntryKind::User, payload: Bytes::from_static(b"3") });
        }
        queue.push([longer.clone()].into_iter());
        let indices = |batch: Vec<proto::message::Body>| -> Vec<Vec<u64>> {
            batch
                .iter()
                .map(|body| match body {
                    proto::message::Body::Append(append) => indices(append),
                    other => panic!("{other:?} is no append"),
                })
                .collect()
        };
        assert_eq!(indices(next(&mut entries).await), [[2], [3]]);
        // The batch is being sent now.
        queue.push([probe(), longer.clone(), append(4, 1)].into_iter());
        assert_eq!(indices(next(&mut entries).await), [[4]]);
        // The batch was sent, and may have been lost. In another term, the entries may be others.
        let other_term = RaftMessage { term: Term(2), ..probe() };
        queue.push([longer, other_term].into_iter());
        assert_eq!(indices(next(&mut entries).await), [vec![2, 3]]);
        assert_eq!(indices(next(&mut entries).await), [[2]]);
    }
}
