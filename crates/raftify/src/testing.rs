//! For tests (feature `testing`): the suite that checks an implementation of the [storage contract](crate::storage).
//!
//! The hidden functions are for the benches and the fuzz targets of this project.

pub use raftify_core::storage::conformance;

use prost::Message;
use raftify_core::error::{
    InstallError, MembershipError, ProposeError, ReadError, StopReason, TransferError,
};
use raftify_core::members::MembershipRequest;
use raftify_core::{ClusterId, Identity, Incarnation, Inspection, Members, NodeId, RaftMessage};

use crate::error::BoxError;
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
/// Decodes arbitrary bytes as the message type that the first byte names, with its content, as server and client do. A
/// decoded message is encoded again, and the result must be the same.
pub fn read_wire(bytes: &[u8]) {
    use proto::{
        change_membership_reply, inspect_reply, install_snapshot_reply, propose_reply, read_index_reply,
        reserve_node_id_reply, snapshot_chunk, transfer_leader_reply,
    };

    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 12 {
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
        3 => {
            let Ok(request) = proto::ProposeRequest::decode(bytes) else { return };
            let _ = wire::check_header(request.header.as_ref());
        }
        4 => {
            let Ok(reply) = proto::ProposeReply::decode(bytes) else { return };
            if let Some(propose_reply::Outcome::Refusal(refusal)) = reply.outcome {
                let _ = wire::refusal_from_wire::<ProposeError>(&refusal);
            }
        }
        5 => {
            let Ok(request) = proto::ChangeMembershipRequest::decode(bytes) else { return };
            let _ = MembershipRequest::decode(&request.request);
        }
        6 => {
            let Ok(reply) = proto::ChangeMembershipReply::decode(bytes) else { return };
            match reply.outcome {
                Some(change_membership_reply::Outcome::Members(members)) => drop(Members::decode(&members)),
                Some(change_membership_reply::Outcome::Refusal(refusal)) => {
                    let _ = wire::refusal_from_wire::<MembershipError>(&refusal);
                }
                None => {}
            }
        }
        7 => {
            let Ok(reply) = proto::ReserveNodeIdReply::decode(bytes) else { return };
            if let Some(reserve_node_id_reply::Outcome::Reservation(reservation)) = reply.outcome
                && let Ok(read) = wire::reservation_from_wire(&reservation)
            {
                let again = wire::reservation_from_wire(&wire::reservation_to_wire(&read));
                assert_eq!(again.as_ref(), Ok(&read), "a reservation is read as it was written");
            }
        }
        8 => {
            let Ok(reply) = proto::TransferLeaderReply::decode(bytes) else { return };
            if let Some(transfer_leader_reply::Outcome::Refusal(refusal)) = reply.outcome {
                let _ = wire::refusal_from_wire::<TransferError>(&refusal);
            }
        }
        9 => {
            let Ok(reply) = proto::ReadIndexReply::decode(bytes) else { return };
            match reply.outcome {
                Some(read_index_reply::Outcome::Index(index)) => {
                    let _ = wire::log_index("the index", index);
                }
                Some(read_index_reply::Outcome::Refusal(refusal)) => {
                    let _ = wire::refusal_from_wire::<ReadError>(&refusal);
                }
                None => {}
            }
        }
        10 => {
            let Ok(reply) = proto::IdentifyReply::decode(bytes) else { return };
            let header = reply.header;
            if let Ok(read) = wire::identification_from_wire(reply) {
                let again =
                    wire::identification_from_wire(wire::identification_to_wire(header, read.clone()));
                assert_eq!(again.as_ref(), Ok(&read), "an identification is read as it was written");
            }
        }
        _ => {
            let _ = wire::decode_detail::<RequestRejected>(bytes);
            let Ok(reply) = proto::InspectReply::decode(bytes) else { return };
            match reply.outcome {
                Some(inspect_reply::Outcome::Inspection(inspection)) => {
                    let _ = wire::decode_detail::<Inspection>(&inspection);
                }
                Some(inspect_reply::Outcome::Refusal(refusal)) => {
                    let _ = wire::refusal_from_wire::<StopReason>(&refusal);
                }
                None => {}
            }
        }
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
