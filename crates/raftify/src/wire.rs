//! Conversions between the core's types and the messages of `raft_service.proto`, and the encoding of
//! rejections.
//!
//! Input from the network becomes a core type here, or a [`WireError`]: behind this module no required value
//! is zero, no entry is out of order, and every number is known. It does not panic on arbitrary bytes. Called
//! by the server, the outbox and the remote client; it does not decide which senders are trusted.

pub(crate) mod batches;
mod header;
pub(crate) mod identification;
mod limits;
mod message;
pub(crate) mod proto;
mod rejection;
#[cfg(test)]
mod tests;
mod values;

#[cfg(test)]
pub(crate) use header::WIRE_VERSION;
pub(crate) use header::{
    check_header, header, receiver_from_wire, receiver_to_wire, sender_from_wire, sender_to_wire,
};
pub(crate) use identification::{identification_from_wire, identification_to_wire};
pub(crate) use limits::{
    BATCH_BYTES, PAYLOAD_BYTES_LIMIT, RECEIVE_BYTES_LIMIT, SNAPSHOT_CHUNK_BYTES, service,
};
pub(crate) use message::{message_bytes_max, message_from_wire, message_to_wire, owned, split_large};
pub use rejection::RequestRejected;
pub(crate) use rejection::{decode_detail, encode_detail, refusal_from_wire, refusal_to_wire};
pub(crate) use values::{
    WireError, log_index, node_id, nonzero_term, position_from_wire, position_to_wire, reservation_from_wire,
    reservation_to_wire, snapshot_from_wire,
};
