//! Every message survives the wire; arbitrary bytes cause no panic.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use raftify_core::error::{MembershipError, ProposeError};
use raftify_core::members::MEMBERS_MAX;
use raftify_core::message::CampaignReason;
use raftify_core::{
    ClusterId, Entry, EntryKind, Identity, Incarnation, LogIndex, LogPosition, Members, NodeId, RaftMessage,
    RaftMessageBody, RunId, Term,
};
use tonic::Status;

use super::*;
use crate::wire::batches::BATCH_REQUESTS_MAX;
use crate::wire::identification::{Identification, Plan};
use crate::wire::limits::{BATCH_BYTES, FRAME_BYTES};
use crate::wire::message::entries_from_wire;
use crate::wire::values::{NUMBER_LIMIT, WireError};

const FROM: NodeId = NodeId::FIRST;

fn to() -> NodeId {
    NodeId::new(2).unwrap()
}

fn position() -> impl Strategy<Value = LogPosition> {
    (0..NUMBER_LIMIT, 0..NUMBER_LIMIT).prop_map(|(term, index)| LogPosition::new(term, index))
}

fn index() -> impl Strategy<Value = LogIndex> {
    (0..NUMBER_LIMIT).prop_map(LogIndex)
}

fn append() -> impl Strategy<Value = RaftMessageBody> {
    let entry = (0..3_u64, 0..4_u8, vec(any::<u8>(), 0..40));
    (0..1000_u64, 0..NUMBER_LIMIT / 2, index(), vec(entry, 0..8)).prop_map(
        |(term, before, commit, entries)| {
            let previous = LogPosition::new(term, before);
            let mut last = previous;
            let entries = entries.into_iter().map(|(later, kind, payload)| {
                last = LogPosition::new((last.term.0 + later).max(1), last.index.0 + 1);
                let kind = EntryKind::from_number(kind).unwrap();
                Entry { position: last, kind, payload: payload.into() }
            });
            RaftMessageBody::Append { previous, commit, entries: entries.collect() }
        },
    )
}

fn message() -> impl Strategy<Value = RaftMessage> {
    let reason = prop_oneof![Just(CampaignReason::Timeout), Just(CampaignReason::Transfer)];
    let body = prop_oneof![
        append(),
        (index(), index(), proptest::option::of(position())).prop_map(|(index, commit, rejection)| {
            RaftMessageBody::AppendResponse { index, commit, rejection }
        }),
        (position(), position(), reason).prop_map(|(last, commit, reason)| RaftMessageBody::RequestVote {
            last,
            commit,
            reason
        }),
        (position(), position()).prop_map(|(last, commit)| RaftMessageBody::RequestPreVote { last, commit }),
        (any::<bool>(), position())
            .prop_map(|(granted, commit)| RaftMessageBody::VoteResponse { granted, commit }),
        (any::<bool>(), position())
            .prop_map(|(granted, commit)| RaftMessageBody::PreVoteResponse { granted, commit }),
        (index(), any::<Option<u64>>())
            .prop_map(|(commit, read_round)| RaftMessageBody::Heartbeat { commit, read_round }),
        (index(), any::<Option<u64>>())
            .prop_map(|(commit, read_round)| RaftMessageBody::HeartbeatResponse { commit, read_round }),
        Just(RaftMessageBody::TimeoutNow),
        Just(RaftMessageBody::StorageFull),
        (any::<u64>(), index())
            .prop_map(|(vote, index)| { RaftMessageBody::DurableState { vote: NodeId::new(vote), index } }),
        (0..NUMBER_LIMIT, any::<u64>())
            .prop_map(|(starts, run)| RaftMessageBody::DuplicateNode { starts, run: RunId(run) }),
        vec((1..u64::MAX, any::<u64>()), 0..MEMBERS_MAX).prop_map(|peers| RaftMessageBody::Reached {
            peers: peers.into_iter().map(|(id, of)| (NodeId::new(id).unwrap(), Incarnation(of))).collect(),
        }),
    ];
    (2000..NUMBER_LIMIT, body).prop_map(|(term, body)| RaftMessage {
        from: FROM,
        to: to(),
        term: Term(term),
        body,
    })
}

proptest! {
    #[test]
    fn every_message_survives_the_wire(message in message()) {
        let bytes = message_to_wire(message.clone()).encode_to_vec();
        prop_assert!(bytes.len() as u64 <= message_bytes_max(&message));
        let decoded = proto::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(message_from_wire(decoded, FROM, to()), Ok(message));
    }

    #[test]
    fn no_bytes_make_the_conversions_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = proto::Message::decode(bytes.as_slice()) {
            let _ = message_from_wire(message, FROM, to());
        }
        if let Ok(batch) = proto::MessageBatch::decode(bytes.as_slice()) {
            let _ = check_header(batch.header.as_ref());
            let _ = sender_from_wire(batch.sender);
            let _ = receiver_from_wire(batch.receiver);
        }
        if let Ok(head) = proto::SnapshotHead::decode(bytes.as_slice()) {
            let _ = snapshot_from_wire(ClusterId(1), head.position, &head.members);
        }
        if let Ok(reply) = proto::IdentifyReply::decode(bytes.as_slice()) {
            let _ = identification_from_wire(reply);
        }
        if let Ok(reservation) = proto::Reservation::decode(bytes.as_slice()) {
            let _ = reservation_from_wire(&reservation);
        }
        let _ = decode_detail::<RequestRejected>(&bytes);
        let _ = decode_detail::<MembershipError>(&bytes);
        let _ = decode_detail::<raftify_core::Inspection>(&bytes);
    }

    #[test]
    fn a_damaged_message_is_an_error_or_another_possible_message(
        message in message(), at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let mut bytes = message_to_wire(message).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(damaged) = proto::Message::decode(bytes.as_slice())
            && let Ok(message) = message_from_wire(damaged, FROM, to())
        {
            prop_assert_ne!(message.term, Term::ZERO);
        }
    }
}

#[test]
fn impossible_messages_are_named() {
    let run = |term, kind| proto::EntryRun { term, kind, payloads: vec![Bytes::new()] };
    let append = |runs| {
        let previous = position_to_wire(LogPosition::new(3, 7));
        let append = proto::Append { previous, commit: 0, runs };
        proto::Message { term: 5, body: Some(proto::message::Body::Append(append)) }
    };
    let vote = |reason| {
        let zero = position_to_wire(LogPosition::ZERO);
        let request = proto::RequestVote { last: zero, commit: zero, reason };
        proto::Message { term: 5, body: Some(proto::message::Body::RequestVote(request)) }
    };
    let expected = LogIndex(8);
    let max = BATCH_BYTES / FRAME_BYTES;
    let many = proto::EntryRun { payloads: vec![Bytes::new(); max as usize + 1], ..run(4, 1) };
    let cases = [
        (append(vec![many]), WireError::TooMany { what: "the number of entries", count: max + 1, max }),
        (proto::Message { term: 0, ..vote(1) }, WireError::Zero { what: "the message's term" }),
        (
            proto::Message { term: u64::MAX, ..vote(1) },
            WireError::OutOfRange { what: "the message's term", value: u64::MAX },
        ),
        (proto::Message { term: 5, body: None }, WireError::Missing { what: "what the message says" }),
        (vote(9), WireError::UnknownNumber { what: "campaign reason", number: 9 }),
        (append(vec![run(4, 77)]), WireError::UnknownNumber { what: "entry kind", number: 77 }),
        (append(vec![run(0, 1)]), WireError::Zero { what: "the term of entries" }),
        (
            append(vec![run(2, 1)]),
            WireError::TermOutOfOrder { index: expected, term: Term(2), previous: Term(3), newest: Term(5) },
        ),
        (
            append(vec![run(4, 1), run(3, 1)]),
            WireError::TermOutOfOrder {
                index: expected.next(),
                term: Term(3),
                previous: Term(4),
                newest: Term(5),
            },
        ),
        (
            append(vec![run(6, 1)]),
            WireError::TermOutOfOrder { index: expected, term: Term(6), previous: Term(3), newest: Term(5) },
        ),
    ];
    for (message, error) in cases {
        assert_eq!(message_from_wire(message, FROM, to()), Err(error));
    }
}

#[test]
fn appended_entries_fill_the_buffer_that_they_share_and_none_keeps_the_one_it_came_in() {
    let received = Bytes::from(vec![7; 64 << 10]);
    let payloads = [0, 20, 64, 0, 5000].map(|length| received.slice(100..100 + length));
    let kind = EntryKind::User.number().into();
    let run = proto::EntryRun { term: 1, kind, payloads: payloads.to_vec() };
    let entries = entries_from_wire(vec![run], LogPosition::ZERO, Term(1)).unwrap();
    let mut end = None;
    for (entry, payload) in entries.iter().zip(&payloads) {
        assert_eq!(entry.payload, payload);
        let range = entry.payload.as_ptr_range();
        if !payload.is_empty() {
            assert!(!received.as_ptr_range().contains(&range.start));
            assert_eq!(end.replace(range.end).unwrap_or(range.start), range.start, "there is a gap");
        }
    }
    drop((entries, payloads));
    assert!(received.is_unique());
    drop(owned(received.slice(..64)));
    let kept = owned(received.slice(..64));
    assert!(received.is_unique() && kept.is_unique());
}

#[test]
fn a_large_append_is_split_into_parts_that_say_the_same() {
    let entry = |index| Entry {
        position: LogPosition::new(1, index),
        kind: EntryKind::User,
        payload: Bytes::from(vec![0; BATCH_BYTES as usize * 2 / 5]),
    };
    let entries: Vec<Entry> = (1..=7).map(entry).collect();
    let body = RaftMessageBody::Append {
        previous: LogPosition::ZERO,
        commit: LogIndex(3),
        entries: entries.clone(),
    };
    let mut rest = Some(RaftMessage { from: FROM, to: to(), term: Term(1), body });
    let mut joined = Vec::new();
    let mut last = LogPosition::ZERO;
    while let Some(message) = rest {
        let (first, after) = split_large(message);
        assert!(message_bytes_max(&first) <= BATCH_BYTES);
        let RaftMessageBody::Append { previous, commit, entries } = first.body else { panic!("no append") };
        assert_eq!((previous, commit), (last, LogIndex(3)));
        last = entries.last().unwrap().position;
        joined.extend(entries);
        rest = after;
    }
    assert_eq!(joined, entries);
}

#[test]
fn an_identification_survives_the_wire() {
    let (node_id, cluster_id) = (to(), ClusterId(7));
    let members = Members::initial([raftify_core::Member::voter(node_id, "node-2:1")]).unwrap();
    let waits = Identification {
        node_id,
        address: "node-2:1".to_owned(),
        identity: None,
        members: Members::none(),
        leader_id: None,
        plan: Some(Plan { members: members.clone(), expect: 3, nonce: 5 }),
        agrees: false,
    };
    let belongs = Identification {
        identity: Some(Identity { cluster_id, node_id, incarnation: Incarnation(9) }),
        members,
        leader_id: Some(FROM),
        plan: None,
        agrees: true,
        ..waits.clone()
    };
    for (header, node) in [(header(None), waits), (header(Some(cluster_id)), belongs)] {
        let bytes = identification_to_wire(Some(header), node.clone()).encode_to_vec();
        let reply = proto::IdentifyReply::decode(bytes.as_slice()).unwrap();
        assert_eq!(identification_from_wire(reply), Ok(node));
    }
}

#[test]
fn refusals_keep_their_type() {
    let refusal = RequestRejected::Version { found: 9, known: WIRE_VERSION };
    assert_eq!(RequestRejected::from_status(&refusal.clone().into()), Some(refusal));
    let error = ProposeError::Busy { waiting: 3 };
    assert_eq!(refusal_from_wire(&refusal_to_wire(&error)), Some(error));
    assert_eq!(RequestRejected::from_status(&Status::internal("of somebody else")), None);
}

fn streamed(id: u64) -> proto::StreamedRequest {
    let verb = Some(proto::streamed_request::Verb::Propose(Bytes::from_static(b"entry")));
    proto::StreamedRequest {
        id,
        verb,
        forwarded: id.is_multiple_of(2),
        without_waiting: id.is_multiple_of(3),
    }
}

#[test]
fn batches_are_read_as_they_were_written() {
    let requests = proto::RequestBatch {
        header: Some(header(None)),
        items: (0..BATCH_REQUESTS_MAX as u64).map(streamed).collect(),
        ..proto::RequestBatch::default()
    };
    let bytes = requests.encode_to_vec();
    assert_eq!(bytes.len(), requests.encoded_len());
    assert_eq!(proto::RequestBatch::decode(&*bytes), Ok(requests));
    let replies = proto::ReplyBatch { closes: true, ..proto::ReplyBatch::default() };
    assert_eq!(proto::ReplyBatch::decode(&*replies.encode_to_vec()), Ok(replies));
}

/// Two bytes decode to a request of some fifty bytes.
#[test]
fn a_batch_of_millions_of_empty_requests_takes_the_memory_of_the_allowed_number() {
    let empty = [0x12, 0];
    let batch = proto::RequestBatch::decode(&*empty.repeat(4_000_000)).unwrap();
    assert!(batch.is_too_long);
    assert_eq!(batch.items.len(), BATCH_REQUESTS_MAX);
    assert!(batch.items.capacity() <= 2 * BATCH_REQUESTS_MAX);
    let batch = proto::RequestBatch::decode(&*empty.repeat(BATCH_REQUESTS_MAX)).unwrap();
    assert!(!batch.is_too_long);
}
