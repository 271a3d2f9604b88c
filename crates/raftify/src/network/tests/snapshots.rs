//! Snapshot transfers: broken connections, full disks, several followers, and the part that is kept of an
//! unfinished one.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use raftify_core::error::InstallError;
use raftify_core::storage::{MemorySnapshotStore, SnapshotDigest};
use raftify_core::{Responder, SnapshotMeta, SnapshotStore, SnapshotToSend, SnapshotWriter, StorageError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::validation::good_batch;
use super::*;
use crate::wire::proto::install_snapshot_reply::Answer;
use crate::wire::proto::snapshot_chunk::Part;
use crate::wire::service;

/// Snapshots in memory, on a disk that may be full, with a record of the written bytes.
#[derive(Clone, Default)]
pub(super) struct TestSnapshots {
    store: MemorySnapshotStore,
    full: Arc<AtomicBool>,
    written_bytes: Arc<AtomicU64>,
    begun: Arc<AtomicU64>,
    /// How many snapshots were finished, or closed.
    ended: Arc<AtomicU64>,
}

impl TestSnapshots {
    fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::SeqCst)
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    fn data(&self, position: LogPosition) -> Vec<u8> {
        let (_, digest, mut reader) = self.store.open(position).unwrap();
        let mut data = Vec::new();
        io::Read::read_to_end(&mut reader, &mut data).unwrap();
        assert_eq!(digest, SnapshotDigest::default().followed_by(&data));
        data
    }
}

pub(super) struct TestWriter {
    /// Taken when the snapshot is finished.
    writer: Option<<MemorySnapshotStore as SnapshotStore>::Writer>,
    disk: TestSnapshots,
}

impl SnapshotStore for TestSnapshots {
    type Writer = TestWriter;
    type Reader = <MemorySnapshotStore as SnapshotStore>::Reader;

    fn create(&self, meta: &SnapshotMeta) -> Result<TestWriter, StorageError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Ok(TestWriter { writer: Some(self.store.create(meta)?), disk: self.clone() })
    }

    fn receive(
        &self,
        meta: &SnapshotMeta,
        announced: SnapshotDigest,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(TestWriter, SnapshotDigest), StorageError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let (writer, received) = self.store.receive(meta, announced, is_wanted)?;
        Ok((TestWriter { writer: Some(writer), disk: self.clone() }, received))
    }

    fn open(
        &self,
        position: LogPosition,
    ) -> Result<(SnapshotMeta, SnapshotDigest, Self::Reader), StorageError> {
        self.store.open(position)
    }

    fn retain(&self, keep: &[LogPosition]) -> Result<(), StorageError> {
        self.store.retain(keep)
    }
}

impl io::Write for TestWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.disk.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = self.writer.as_mut().unwrap().write(data)?;
        self.disk.written_bytes.fetch_add(written as u64, Ordering::SeqCst);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWriter for TestWriter {
    fn finish(mut self) -> Result<u64, StorageError> {
        self.writer.take().unwrap().finish()
    }

    fn discard(mut self) {
        self.writer.take().unwrap().discard();
    }
}

impl Drop for TestWriter {
    fn drop(&mut self) {
        self.disk.ended.fetch_add(1, Ordering::SeqCst);
    }
}

const POSITION: LogPosition = LogPosition::new(1, 9);

impl TestNode {
    fn put_snapshot(&self, data: &[u8], members: &Members) -> SnapshotMeta {
        let meta = SnapshotMeta { cluster_id: CLUSTER, position: POSITION, members: members.clone() };
        let mut writer = self.snapshots.store.create(&meta).unwrap();
        writer.write_all(data).unwrap();
        writer.finish().unwrap();
        meta
    }

    async fn snapshot_outcome(&mut self) -> (u64, Result<(), String>) {
        loop {
            if let PeerEvent::SnapshotSent { sent, outcome } = self.next_event().await {
                return (sent.attempt, outcome);
            }
        }
    }

    /// Why the next snapshot was not installed.
    async fn snapshot_failure(&mut self) -> String {
        self.snapshot_outcome().await.1.unwrap_err()
    }

    async fn next_install(&mut self) -> (Term, SnapshotMeta, Responder<(), InstallError>) {
        match self.next_request().await {
            ServerRequestMsg::InstallSnapshot { term, snapshot, reply, .. } => (term, snapshot, reply),
            _ => panic!("no snapshot, but another request"),
        }
    }
}

fn to_send(attempt: u64, to: u64) -> SnapshotToSend {
    SnapshotToSend { attempt, to: id(to), term: Term(4), position: POSITION }
}

fn some_data(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|n| (n.wrapping_mul(7) >> 3) as u8).collect()
}

/// Waits for a condition that triggers no event.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_larger_than_any_message_is_installed() {
    let unpaced = Config { snapshot_bytes_per_second_max: None, ..config() };
    let (mut a, mut b) = (TestNode::with(1, unpaced, Some(identity(1))), TestNode::start(2));
    let all = members([(1, a.address.as_str()), (2, b.address.as_str())]);
    a.knows(&all);
    b.knows(&all);
    let data = some_data(wire::RECEIVE_BYTES_LIMIT as u32 + 1);
    let meta = a.put_snapshot(&data, &all);
    a.outbox.send_snapshot(to_send(1, 2));
    let (term, snapshot, reply) = b.next_install().await;
    assert_eq!((term, snapshot), (Term(4), meta));
    assert!(b.snapshots.data(POSITION) == data);
    reply.answer(Ok(()));
    assert_eq!(a.snapshot_outcome().await, (1, Ok(())));
}

/// Forwards connections, and cuts all of them on request.
struct Proxy {
    address: String,
    task: JoinHandle<()>,
}

impl Proxy {
    /// `is_to_cut` is called before each forwarded piece.
    async fn start(to: String, is_to_cut: impl Fn() -> bool + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let is_to_cut = Arc::new(is_to_cut);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                let is_to_cut = Arc::clone(&is_to_cut);
                tokio::spawn(async move {
                    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                        (client.into_split(), server.into_split());
                    let answers = tokio::spawn(async move {
                        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
                    });
                    let mut piece = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = from_client.read(&mut piece).await {
                        if is_to_cut() || to_server.write_all(&piece[..length]).await.is_err() {
                            break;
                        }
                    }
                    answers.abort();
                });
            }
        });
        Proxy { address, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_where_its_connection_broke() {
    const MIB: u64 = 1 << 20;
    let (mut a, mut b) = (TestNode::start(1), TestNode::start(2));
    let cuts = Arc::new(AtomicU64::new(0));
    let proxy = {
        let (disk, cuts) = (b.snapshots.clone(), Arc::clone(&cuts));
        // Three times, each time 10 MiB further: more than may be under way.
        let is_to_cut = move || {
            let done = cuts.load(Ordering::SeqCst);
            let due = done < 3 && disk.written_bytes() >= 4 * MIB + done * 10 * MIB;
            due && cuts.compare_exchange(done, done + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        Proxy::start(b.address.clone(), is_to_cut).await
    };
    let all = members([(1, &*a.address), (2, &*proxy.address)]);
    a.knows(&all);
    b.knows(&all);
    let data = some_data(40 << 20);
    a.put_snapshot(&data, &all);
    a.outbox.send_snapshot(to_send(1, 2));
    let (_, _, reply) = b.next_install().await;
    assert_eq!(cuts.load(Ordering::SeqCst), 3);
    assert_eq!(b.snapshots.written_bytes(), data.len() as u64, "nothing was sent twice and kept");
    assert!(b.snapshots.data(POSITION) == data);
    reply.answer(Ok(()));
    assert_eq!(a.snapshot_outcome().await, (1, Ok(())), "consensus hears of the end only");
}

/// A raw call of the test.
struct RawCall {
    chunks: mpsc::Sender<proto::SnapshotChunk>,
    answers: Streaming<proto::InstallSnapshotReply>,
}

impl RawCall {
    async fn begin(node: &TestNode, first: Option<Part>) -> Result<RawCall, Status> {
        let channel = endpoint(&node.address, Duration::from_secs(5)).unwrap().connect().await.unwrap();
        let (chunks, stream) = mpsc::channel(8);
        match first {
            Some(part) => chunks.send(proto::SnapshotChunk { part: Some(part) }).await.unwrap(),
            None => return RawCall::answers(channel, tokio_stream::empty()).await.map(|_| unreachable!()),
        }
        let answers = RawCall::answers(channel, ReceiverStream::new(stream)).await?;
        Ok(RawCall { chunks, answers })
    }

    async fn answers(
        channel: tonic::transport::Channel,
        stream: impl tokio_stream::Stream<Item = proto::SnapshotChunk> + Send + 'static,
    ) -> Result<Streaming<proto::InstallSnapshotReply>, Status> {
        let call = async move { service(channel).install_snapshot(stream).await };
        within("an answer", call).await.map(tonic::Response::into_inner)
    }

    async fn send(&self, part: Part) {
        // The call may have ended with a rejection, which the test reads later.
        let _ = self.chunks.send(proto::SnapshotChunk { part: Some(part) }).await;
    }

    async fn answer(&mut self) -> Result<Answer, Status> {
        let answer = within("an answer", self.answers.message()).await?;
        Ok(answer.expect("no answer").answer.expect("an empty answer"))
    }

    /// Ends the data, and waits for the answer.
    async fn end(mut self) -> Result<Answer, Status> {
        drop(self.chunks);
        let answer = within("an answer", self.answers.message()).await?;
        Ok(answer.expect("no answer").answer.expect("an empty answer"))
    }
}

fn head_of(all: &Members, data: &[u8]) -> proto::SnapshotHead {
    let batch = good_batch();
    let digest = SnapshotDigest::default().followed_by(data);
    proto::SnapshotHead {
        header: batch.header,
        sender: batch.sender,
        receiver: batch.receiver,
        term: 1,
        position: wire::position_to_wire(POSITION),
        members: all.encode(),
        data_bytes: digest.data_bytes,
        data_crc32c: digest.crc32c,
    }
}

fn head(all: &Members, data: &[u8]) -> Option<Part> {
    Some(Part::Head(head_of(all, data)))
}

fn data(offset: u64, data: &'static [u8]) -> Part {
    Part::Data(proto::SnapshotData { offset, crc32c: crc32c::crc32c(data), data: data.into() })
}

fn is_malformed(answer: &Result<Answer, Status>) -> bool {
    let refusal = answer.as_ref().err().and_then(RequestRejected::from_status);
    matches!(refusal, Some(RequestRejected::Malformed(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_incomplete_snapshots_leave_nothing_behind() {
    let (_a, b, all) = pair();
    let damaged = Part::Data(proto::SnapshotData { offset: 0, crc32c: 1, data: Bytes::from_static(b"abc") });
    let longer = Some(Part::Head(proto::SnapshotHead { data_bytes: 2, ..head_of(&all, b"ab") }));
    let other_checksum = Some(Part::Head(proto::SnapshotHead { data_crc32c: 7, ..head_of(&all, b"abc") }));
    let cases = [
        (head(&all, b"abc"), vec![damaged]),
        (head(&all, b"abc"), vec![data(1, b"abc")]),
        (head(&all, b"abcd"), vec![data(0, b"abc")]),
        (longer, vec![data(0, b"abc")]),
        (head(&all, b"abc"), vec![head(&all, b"abc").unwrap()]),
        (other_checksum, vec![data(0, b"abc")]),
        (Some(data(0, b"abc")), vec![]),
        (None, vec![]),
    ];
    for (case, (first, parts)) in cases.into_iter().enumerate() {
        let answer = match RawCall::begin(&b, first).await {
            Err(status) => Err(status),
            Ok(mut call) => {
                assert!(matches!(call.answer().await, Ok(Answer::BeginAt(0))), "case {case}");
                for part in parts {
                    call.send(part).await;
                }
                call.end().await
            }
        };
        assert!(is_malformed(&answer), "case {case}: {answer:?}");
        assert!(b.snapshots.open(POSITION).is_err(), "case {case}");
    }
    assert!(b.requests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_snapshot_is_gone_on_with_only_by_the_same_snapshot() {
    let (_a, mut b, all) = pair();
    let mut first = RawCall::begin(&b, head(&all, b"abcdef")).await.unwrap();
    assert!(matches!(first.answer().await, Ok(Answer::BeginAt(0))));
    first.send(data(0, b"abc")).await;
    assert!(is_malformed(&first.end().await), "it is not complete");

    let mut second = RawCall::begin(&b, head(&all, b"abcdef")).await.unwrap();
    assert!(matches!(second.answer().await, Ok(Answer::BeginAt(3))));
    second.send(data(3, b"de")).await;
    assert!(is_malformed(&second.end().await));

    // Of the same position and length, but with other bytes: another node took it.
    let mut other = RawCall::begin(&b, head(&all, b"ABCDEF")).await.unwrap();
    assert!(matches!(other.answer().await, Ok(Answer::BeginAt(0))));
    other.send(data(0, b"ABC")).await;
    assert!(is_malformed(&other.end().await));

    let mut again = RawCall::begin(&b, head(&all, b"abcdef")).await.unwrap();
    assert!(matches!(again.answer().await, Ok(Answer::BeginAt(0))), "one is kept, not two");
    again.send(data(0, b"abcdef")).await;
    let answer = tokio::spawn(again.end());
    let (_, _, reply) = b.next_install().await;
    assert_eq!(b.snapshots.data(POSITION), b"abcdef");
    reply.answer(Ok(()));
    assert!(matches!(answer.await.unwrap(), Ok(Answer::Installed(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_snapshot_without_progress_is_closed_and_can_still_be_continued() {
    let config = Config { snapshot_chunk_timeout: Duration::from_millis(20), ..config() };
    let b = TestNode::with(2, config, Some(identity(2)));
    let all = members([(1, &*dead_address()), (2, &*b.address)]);
    b.knows(&all);
    let call = RawCall::begin(&b, head(&all, b"abcdef")).await.unwrap();
    call.send(data(0, b"abc")).await;
    until("it is received", || b.snapshots.written_bytes() == 3).await;
    drop(call);
    until("it is closed", || b.snapshots.ended() == 1).await;
    let mut again = RawCall::begin(&b, head(&all, b"abcdef")).await.unwrap();
    assert!(matches!(again.answer().await, Ok(Answer::BeginAt(3))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_where_the_receiver_was_when_it_ended() {
    let data = some_data(40 << 20);
    let half = data.len() as u64 / 2;
    let unpaced = || Config { snapshot_bytes_per_second_max: None, ..config() };
    let mut a = TestNode::with(1, unpaced(), Some(identity(1)));
    let disk = TestSnapshots::default();
    let mut b = TestNode::on(2, unpaced(), Some(identity(2)), disk.clone());
    let proxy = {
        let disk = disk.clone();
        Proxy::start(b.address.clone(), move || disk.written_bytes() >= half).await
    };
    let first = members([(1, &*a.address), (2, &*proxy.address)]);
    a.knows(&first);
    b.knows(&first);
    a.put_snapshot(&data, &first);
    a.outbox.send_snapshot(to_send(1, 2));
    until("half of it is received", || disk.written_bytes() >= half).await;
    drop(proxy);
    b.stop = None;
    within("the end of the server", &mut b.serving).await.unwrap().unwrap();
    until("it is closed", || disk.ended() == disk.begun()).await;
    let received = disk.written_bytes();
    assert!((half..data.len() as u64).contains(&received), "{received}");

    let mut b = TestNode::on(2, unpaced(), Some(identity(2)), disk.clone());
    let second = members([(1, &*a.address), (2, &*b.address)]);
    a.knows(&second);
    b.knows(&second);
    a.outbox.send_snapshot(to_send(2, 2));
    let (_, _, reply) = b.next_install().await;
    assert_eq!(disk.written_bytes(), data.len() as u64, "nothing was sent twice");
    assert_eq!(b.snapshot_bytes_received.load(Ordering::SeqCst), data.len() as u64);
    assert!(b.snapshots.data(POSITION) == data);
    reply.answer(Ok(()));
    while a.snapshot_outcome().await != (2, Ok(())) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_already_is_not_sent() {
    let (mut a, b, all) = pair();
    a.put_snapshot(&some_data(1 << 20), &all);
    b.status.send_modify(|status| status.commit = POSITION.index);
    a.outbox.send_snapshot(to_send(1, 2));
    assert_eq!(a.snapshot_outcome().await, (1, Ok(())));
    assert_eq!(b.snapshots.written_bytes(), 0);
    assert!(b.requests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_leaders_snapshot_is_received_in_place_of_an_older_ones() {
    let (_a, b, all) = pair();
    let mut old = RawCall::begin(&b, head(&all, b"abcdef")).await.unwrap();
    assert!(matches!(old.answer().await, Ok(Answer::BeginAt(0))));
    let newer = proto::SnapshotHead { term: 3, ..head_of(&all, b"ABCDEF") };
    let mut newer = RawCall::begin(&b, Some(Part::Head(newer))).await.unwrap();
    assert!(matches!(newer.answer().await, Ok(Answer::BeginAt(0))));
    let refusal = old.answer().await.err().and_then(|status| RequestRejected::from_status(&status));
    assert_eq!(refusal, Some(RequestRejected::StaleSnapshot { term: Term(1), newer: Term(3) }));
    let late = RawCall::begin(&b, head(&all, b"abcdef")).await.err();
    let refusal = late.and_then(|status| RequestRejected::from_status(&status));
    assert_eq!(refusal, Some(RequestRejected::StaleSnapshot { term: Term(1), newer: Term(3) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_the_receiver_leaves_what_it_has_in_use() {
    let (mut a, mut b, all) = pair();
    let sent = some_data(5 << 20);
    a.put_snapshot(&sent, &all);
    let earlier = LogPosition::new(1, 3);
    let meta = SnapshotMeta { cluster_id: CLUSTER, position: earlier, members: Members::clone(&all) };
    b.snapshots.store.create(&meta).unwrap().finish().unwrap();

    b.snapshots.full.store(true, Ordering::SeqCst);
    a.outbox.send_snapshot(to_send(1, 2));
    let reason = a.snapshot_failure().await;
    assert!(reason.contains(&io::Error::from(io::ErrorKind::StorageFull).to_string()), "{reason}");
    assert!(b.snapshots.open(POSITION).is_err() && b.snapshots.open(earlier).is_ok());
    assert!(b.requests.is_empty());

    b.snapshots.full.store(false, Ordering::SeqCst);
    a.outbox.send_snapshot(to_send(2, 2));
    let (_, _, reply) = b.next_install().await;
    assert!(b.snapshots.data(POSITION) == sent);
    reply.answer(Ok(()));
    assert_eq!(a.snapshot_outcome().await, (2, Ok(())));
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_wait_for_their_turn_to_be_sent_a_snapshot() {
    let one = Config { snapshots_in_flight_max: 1, ..config() };
    let mut a = TestNode::with(1, one, Some(identity(1)));
    let (mut b, mut c) = (TestNode::start(2), TestNode::start(3));
    let all = members([(1, &*a.address), (2, &*b.address), (3, &*c.address)]);
    for node in [&a, &b, &c] {
        node.knows(&all);
    }
    a.put_snapshot(&some_data(1 << 20), &all);
    a.outbox.send_snapshot(to_send(1, 2));
    let (_, _, reply) = b.next_install().await;
    a.outbox.send_snapshot(to_send(2, 3));
    // The snapshot does not delay messages, and they overtake waiting data.
    a.outbox.send(vec![heartbeat(3, 7)]);
    assert_eq!(commit_of(&c.next_messages().await[0]), 7);
    assert_eq!(c.snapshots.written_bytes(), 0);
    reply.answer(Ok(()));
    assert_eq!(a.snapshot_outcome().await, (1, Ok(())));
    let (_, _, reply) = c.next_install().await;
    reply.answer(Ok(()));
    assert_eq!(a.snapshot_outcome().await, (2, Ok(())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_snapshot_to_the_same_peer_ends_the_earlier_one() {
    let (mut a, mut b, all) = pair();
    a.put_snapshot(&some_data(1 << 20), &all);
    a.outbox.send_snapshot(to_send(1, 2));
    let (_, _, unanswered) = b.next_install().await;
    a.outbox.send_snapshot(to_send(2, 2));
    let (attempt, outcome) = a.snapshot_outcome().await;
    assert_eq!(attempt, 1);
    assert!(outcome.unwrap_err().contains("another one is sent there"));
    let (_, _, reply) = b.next_install().await;
    reply.answer(Ok(()));
    assert_eq!(a.snapshot_outcome().await, (2, Ok(())));
    drop(unanswered);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_that_is_not_installed_is_reported_once() {
    let (mut a, mut b) = (TestNode::start(1), TestNode::start(2));
    let (_listener, silent) = silent_listener();
    let all = members([(1, &*a.address), (2, &*b.address), (3, &*silent), (4, &*dead_address())]);
    a.knows(&all);
    b.knows(&all);
    a.put_snapshot(&vec![7; 8 << 20], &all);

    a.outbox.send_snapshot(to_send(1, 9));
    assert!(a.snapshot_failure().await.contains("node 9 is not known"));

    let unknown = LogPosition::new(1, 77);
    a.outbox.send_snapshot(SnapshotToSend { position: unknown, ..to_send(2, 2) });
    assert!(a.snapshot_failure().await.contains("no snapshot"));

    a.outbox.send_snapshot(to_send(3, 4));
    a.snapshot_failure().await;

    let impatient = Config { snapshot_chunk_timeout: Duration::from_millis(50), ..config() };
    let mut impatient = TestNode::with(5, impatient, Some(identity(5)));
    impatient.knows(&all);
    impatient.put_snapshot(&vec![7; 8 << 20], &all);
    impatient.outbox.send_snapshot(to_send(1, 3));
    assert!(impatient.snapshot_failure().await.contains("the peer never began"));

    a.outbox.send_snapshot(to_send(4, 2));
    let (_, _, reply) = b.next_install().await;
    reply.answer(Err(InstallError::StaleLeader { term: Term(4), newer: Term(5) }));
    assert!(a.snapshot_failure().await.contains("term 5"));

    a.outbox.send_snapshot(to_send(5, 2));
    let (_, _, reply) = b.next_install().await;
    a.knows(&members([(1, &*a.address), (3, &*silent), (4, &*dead_address())]));
    assert!(a.snapshot_failure().await.contains("removed"));
    drop(reply);

    a.outbox.send_snapshot(to_send(6, 3));
    within("the end of the outbox", a.outbox.shutdown()).await;
    a.snapshot_failure().await;
    a.outbox.send_snapshot(to_send(7, 3));
    assert!(a.snapshot_failure().await.contains("stopping"));
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, PeerEvent::SnapshotSent { .. }), "{event:?}");
    }
}
