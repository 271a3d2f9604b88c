//! The server accepts no sender and no bytes without validation.

use super::*;

/// Sends bytes as they are, where a message is expected.
#[derive(Clone, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The status with which a stream of these bytes ends.
async fn stream_raw(node: &TestNode, bytes: Bytes) -> Status {
    let channel = endpoint(&node.address, Duration::from_secs(5)).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/raftify.v1.RaftService/StreamMessages");
    let stream = tokio_stream::once(bytes).chain(tokio_stream::pending());
    let call = client.client_streaming(tonic::Request::new(stream), path, RawCodec);
    within("a refusal", call).await.map(|_| ()).unwrap_err()
}

pub(super) fn good_batch() -> proto::MessageBatch {
    let sender = Sender {
        id: id(1),
        incarnation: identity(1).incarnation,
        members_as_of: LogIndex(1),
        started: Started::default(),
    };
    proto::MessageBatch {
        header: Some(wire::header(Some(CLUSTER))),
        sender: Some(wire::sender_to_wire(&sender, "127.0.0.1:7")),
        receiver: Some(wire::receiver_to_wire(id(2), Some(identity(2).incarnation))),
        messages: vec![wire::message_to_wire(heartbeat(2, 5))],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_believed_is_refused_with_its_reason_and_the_server_lives() {
    let (a, mut b, _) = pair();
    let known = members([(1, &*a.address), (2, &*b.address)]);
    let fenced = {
        let record = MemberRecord::Incarnation { id: id(1), incarnation: identity(1).incarnation };
        known.recorded(LogIndex(2), &record)
    };
    b.knows(&Arc::new(fenced));

    type Change = fn(&mut proto::MessageBatch);
    let cases: [(Change, RequestRejected); 10] = [
        (
            |batch| batch.header.as_mut().unwrap().wire_version = 9,
            RequestRejected::Version { found: 9, known: wire::WIRE_VERSION },
        ),
        (|batch| batch.header.as_mut().unwrap().group_id = 4, RequestRejected::Group { found: 4 }),
        (
            |batch| batch.header.as_mut().unwrap().cluster_id = Some(66),
            RequestRejected::OtherCluster { node: id(2), found: ClusterId(66), own: CLUSTER },
        ),
        (|batch| batch.header = None, RequestRejected::Malformed("the header is missing".into())),
        (
            |batch| batch.receiver.as_mut().unwrap().id = 3,
            RequestRejected::OtherNode { meant: id(3), own: id(2) },
        ),
        (
            |batch| batch.receiver.as_mut().unwrap().incarnation = Some(1),
            RequestRejected::Sender(SenderRefusal::OtherReceiver {
                id: id(2),
                expected: Incarnation(1),
                actual: identity(2).incarnation,
            }),
        ),
        (
            |batch| batch.sender.as_mut().unwrap().id = 9,
            RequestRejected::Sender(SenderRefusal::NotAMember { id: id(9), as_of: LogIndex(2) }),
        ),
        (
            |batch| batch.sender.as_mut().unwrap().id = 2,
            RequestRejected::Sender(SenderRefusal::SameId { id: id(2) }),
        ),
        (
            |batch| batch.sender.as_mut().unwrap().incarnation = 5,
            RequestRejected::Sender(SenderRefusal::Fenced {
                id: id(1),
                known: identity(1).incarnation,
                presented: Incarnation(5),
            }),
        ),
        (
            |batch| batch.messages[0].term = 0,
            RequestRejected::Malformed("the message's term is zero, which is not possible".into()),
        ),
    ];
    for (change, expected) in cases {
        let mut batch = good_batch();
        change(&mut batch);
        let status = stream_raw(&b, batch.encode_to_vec().into()).await;
        assert_eq!(RequestRejected::from_status(&status), Some(expected), "{status:?}");
    }

    let whole = good_batch().encode_to_vec();
    let truncated = Bytes::from(whole[..whole.len() - 3].to_vec());
    assert_eq!(stream_raw(&b, truncated).await.code(), Code::Internal);
    assert_eq!(stream_raw(&b, Bytes::from_static(b"\xff\x00\x13random")).await.code(), Code::Internal);
    let oversized = Bytes::from(vec![0; wire::RECEIVE_BYTES_LIMIT + 1]);
    assert_eq!(stream_raw(&b, oversized).await.code(), Code::OutOfRange);
    let mut socket = std::net::TcpStream::connect(&b.address).unwrap();
    socket.write_all(&[0x5a; 4096]).unwrap();

    assert!(b.next_messages().await.is_empty(), "the core hears that the cluster knows another life of it");
    match b.next_request().await {
        ServerRequestMsg::Announced { sender, address } => {
            assert_eq!((sender.id, &*address), (id(1), "127.0.0.1:7"), "a member is believed where it is");
        }
        _ => panic!("another request came through"),
    }
    assert!(b.requests.is_empty(), "nothing else came through");
    a.outbox.send(vec![heartbeat(2, 1)]);
    assert_eq!(commit_of(&b.next_messages().await[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_refused_is_told_why() {
    let (mut a, b, all) = pair();
    let record = MemberRecord::Incarnation { id: id(1), incarnation: Incarnation(7) };
    b.knows(&Arc::new(all.recorded(LogIndex(2), &record)));
    let refusal = within("a refusal", async {
        loop {
            a.outbox.send(vec![heartbeat(2, 1)]);
            match a.events.try_recv() {
                Ok(PeerEvent::RefusedBy { by, refusal }) => break (by, refusal),
                // The raft loop would count the peer as silent for a moment.
                Ok(PeerEvent::Unreachable(peer)) => {
                    panic!("{peer} is reported as unreachable before its refusal")
                }
                _ => {}
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let presented = identity(1).incarnation;
    assert_eq!(refusal, (id(2), SenderRefusal::Fenced { id: id(1), known: Incarnation(7), presented }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_cluster_refuses_messages_but_can_be_inspected() {
    let mut node = TestNode::with(2, config(), None);
    let status = stream_raw(&node, good_batch().encode_to_vec().into()).await;
    assert_eq!(RequestRejected::from_status(&status), Some(RequestRejected::NoCluster { node: id(2) }));

    let cluster = ClusterConnection::new([node.address.clone()], Duration::from_secs(20)).unwrap();
    let inspecting = tokio::spawn(async move { cluster.inspect().await });
    let ServerRequestMsg::Inspect { reply } = node.next_request().await else { panic!("no inspection") };
    let inspection = raftify_core::Inspection {
        status: node.status.borrow().clone(),
        progress: Vec::new(),
        proposals_waiting: 3,
        reads_waiting: 0,
        log_cache_bytes: 0,
        durable: LogIndex(8),
        storage_full: Vec::new(),
    };
    reply.answer(Ok(inspection.clone()));
    assert_eq!(inspecting.await.unwrap(), Ok(inspection));
}
