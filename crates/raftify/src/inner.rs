//! What benches time of this crate's inner parts. Not for users: it changes without notice.

use prost::Message;
use raftify_core::{NodeId, RaftMessage};

use crate::error::BoxError;
use crate::wire::{message_from_wire, message_to_wire, proto};

/// A message as it travels.
pub fn encode_message(message: RaftMessage) -> Vec<u8> {
    message_to_wire(message).encode_to_vec()
}

/// The inverse of [`encode_message`].
///
/// # Errors
/// If the bytes are no message.
pub fn decode_message(bytes: bytes::Bytes, from: NodeId, to: NodeId) -> Result<RaftMessage, BoxError> {
    Ok(message_from_wire(proto::Message::decode(bytes)?, from, to)?)
}
