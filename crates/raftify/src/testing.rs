//! For tests (feature `testing`): the suite that checks an implementation of the [storage
//! contract](crate::storage).
//!
//! The hidden functions are for the benches and the fuzz targets of this project.

pub use raftify_core::storage::conformance;

use std::fmt::Debug;

use prost::Message;
use raftify_core::error::InstallError;
use raftify_core::{ClusterId, Identity, Incarnation, Members, NodeId, RaftMessage};

use crate::channels::backups::BackupPart;
use crate::error::{BackupRefused, BoxError};
use crate::verbs::verb::{Answered, NotAnswered, Verb};
use crate::verbs::{
    change_membership::ChangeMembership, identify::Identify, inspect::Inspect, propose::Propose,
    read_index::ReadIndex, reserve_node_id::ReserveNodeId, transfer_leader::TransferLeader,
};
use crate::wire::proto::streamed_reply::Outcome;
use crate::wire::{self, RequestRejected, message_from_wire, message_to_wire, proto};

#[doc(hidden)]
/// A message in its wire encoding.
pub fn encode_message(message: RaftMessage) -> Vec<u8> {
    message_to_wire(message).encode_to_vec()
}

#[doc(hidden)]
/// The inverse of [`encode_message`].
///
/// # Errors
/// If the bytes are not a message.
pub fn decode_message(bytes: bytes::Bytes, from: NodeId, to: NodeId) -> Result<RaftMessage, BoxError> {
    Ok(message_from_wire(proto::Message::decode(bytes)?, from, to)?)
}

#[doc(hidden)]
/// Decodes arbitrary bytes as the message type that the first byte names, with its content, as server and
/// client do. A decoded message is encoded again, and the result must be the same.
pub fn read_wire(bytes: &[u8]) {
    use proto::{install_snapshot_reply, snapshot_chunk};

    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 16 {
        0 => read_batch(bytes),
        1 => {
            let Ok(chunk) = proto::SnapshotChunk::decode(bytes) else { return };
            if let Some(snapshot_chunk::Part::Head(head)) = chunk.part {
                let cluster = wire::check_header(head.header.as_ref());
                let _ = wire::sender_from_wire(head.sender);
                let _ = wire::receiver_from_wire(head.receiver);
                let _ = wire::nonzero_term("the leader's term", head.term);
                let cluster = cluster.ok().flatten().unwrap_or(ClusterId(1));
                let _ = wire::snapshot_from_wire(cluster, head.position, &head.members);
            }
        }
        2 => {
            let Ok(reply) = proto::InstallSnapshotReply::decode(bytes) else { return };
            if let Some(install_snapshot_reply::Answer::Refusal(refusal)) = reply.answer {
                let _ = wire::refusal_from_wire::<InstallError>(&refusal);
            }
        }
        3 => read_request::<Propose>(bytes),
        4 => read_reply::<Propose>(bytes),
        5 => read_request::<ChangeMembership>(bytes),
        6 => read_reply::<ChangeMembership>(bytes),
        7 => read_reply::<ReserveNodeId>(bytes),
        8 => read_reply::<TransferLeader>(bytes),
        9 => read_reply::<ReadIndex>(bytes),
        11 => read_event(bytes),
        10 => read_reply::<Identify>(bytes),
        12 => {
            let Ok(batch) = proto::RequestBatch::decode(bytes) else { return };
            let _ = wire::check_header(batch.header.as_ref());
            round_trips(&batch, batch.is_too_long);
        }
        13 => {
            let Ok(batch) = proto::ReplyBatch::decode(bytes) else { return };
            round_trips(&batch, batch.is_too_long);
            for reply in batch.items {
                read_outcome(reply.outcome);
            }
        }
        15 => read_backup(bytes),
        _ => {
            let _ = wire::decode_detail::<RequestRejected>(bytes);
            read_reply::<Inspect>(bytes);
        }
    }
}

fn round_trips<M: Message + Default + PartialEq>(message: &M, is_too_long: bool) {
    let again = M::decode(&*message.encode_to_vec()).ok();
    assert!(is_too_long || again.as_ref() == Some(message), "a batch is read as it was written");
}

fn read_outcome(outcome: Option<Outcome>) {
    match outcome {
        Some(Outcome::Rejection(refusal)) => {
            let _ = wire::decode_detail::<RequestRejected>(&refusal.detail);
        }
        Some(outcome) => {
            let _ = Propose::from_streamed(outcome.clone());
            let _ = ReadIndex::from_streamed(outcome);
        }
        None => {}
    }
}

fn read_request<V: Verb>(bytes: &[u8]) {
    let Ok(request) = V::Request::decode(bytes) else { return };
    let _ = wire::check_header(V::from_wire(request).header.as_ref());
}

fn read_reply<V: Verb<Answer: Clone + Debug + PartialEq>>(bytes: &[u8]) {
    let Ok(reply) = V::Reply::decode(bytes) else { return };
    match V::from_reply(reply) {
        Ok(Answered { header, answer }) => {
            let again = V::from_reply(V::to_reply(header, Ok(answer.clone())));
            assert_eq!(
                again.ok().map(|again| again.answer),
                Some(answer),
                "an answer is read as it was written"
            );
        }
        Err(NotAnswered::Refusal(refusal)) => drop(wire::refusal_from_wire::<V::Error>(&refusal)),
        Err(NotAnswered::Malformed(_)) => {}
    }
}

fn read_event(bytes: &[u8]) {
    let Ok(reply) = proto::EventsReply::decode(bytes) else { return };
    let Ok(record) = crate::verbs::events::from_wire(reply) else { return };
    let again = crate::verbs::events::to_wire(None, record.clone());
    assert_eq!(
        crate::verbs::events::from_wire(again).ok(),
        Some(record),
        "an event is read as it was written"
    );
}

fn read_backup(bytes: &[u8]) {
    use crate::verbs::backup::{
        ReadPart, reply_from_wire, reply_to_wire, request_from_wire, request_to_wire,
    };
    if let Ok(request) = proto::BackupRequest::decode(bytes)
        && let Ok(wanted) = request_from_wire(&request)
    {
        let again = request_from_wire(&request_to_wire(wire::header(None), &wanted));
        assert_eq!(again.ok(), Some(wanted), "a request is read as it was written");
    }
    let Ok(reply) = proto::BackupReply::decode(bytes) else { return };
    let header = reply.header;
    match reply_from_wire(reply) {
        Ok(ReadPart::Head(head)) => {
            let again = reply_from_wire(reply_to_wire(header, BackupPart::Head(head.clone())));
            assert_eq!(again.ok(), Some(ReadPart::Head(head)), "a head is read as it was written");
        }
        Ok(ReadPart::Data(_) | ReadPart::Waiting) | Err(NotAnswered::Malformed(_)) => {}
        Err(NotAnswered::Refusal(refusal)) => drop(wire::refusal_from_wire::<BackupRefused>(&refusal)),
    }
}

fn read_batch(bytes: &[u8]) {
    let Ok(batch) = proto::MessageBatch::decode(bytes) else { return };
    let _ = wire::check_header(batch.header.as_ref());
    let receiver = wire::receiver_from_wire(batch.receiver).ok().and_then(|(_, incarnation)| incarnation);
    let from = match wire::sender_from_wire(batch.sender) {
        Ok((sender, _)) => {
            let (cluster_id, node_id, incarnation) = (ClusterId(1), NodeId::FIRST, Incarnation(1));
            let own = Identity { cluster_id, node_id, incarnation };
            let _ = Members::none().check_sender(&sender, receiver, &own);
            sender.id
        }
        Err(_) => NodeId::FIRST,
    };
    for message in batch.messages {
        let Ok(message) = message_from_wire(message, from, NodeId::FIRST) else { continue };
        let bytes = encode_message(message.clone());
        assert!(
            bytes.len() as u64 <= wire::message_bytes_max(&message),
            "a message is larger than was reckoned"
        );
        let again = decode_message(bytes.into(), from, NodeId::FIRST).ok();
        assert_eq!(again.as_ref(), Some(&message), "a message is read as it was written");
        let (first, rest) = wire::split_large(message);
        for part in [Some(first), rest].into_iter().flatten() {
            let bytes = encode_message(part);
            assert!(
                decode_message(bytes.into(), from, NodeId::FIRST).is_ok(),
                "a part of a message is a message"
            );
        }
    }
}
