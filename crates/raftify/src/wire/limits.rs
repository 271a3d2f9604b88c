//! The size limits of data on the wire.

use bytes::Bytes;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;

use crate::wire::proto::raft_service_client::RaftServiceClient;

/// The largest payload of an entry: the upper end of `entry_bytes_max`.
pub(crate) const PAYLOAD_BYTES_LIMIT: u64 = 64 << 20;

/// The largest message that a node receives. It does not depend on this node's own settings, because then a
/// batch of a node with other settings would be rejected forever: the limit fits the largest possible entry,
/// and every batch.
pub(crate) const RECEIVE_BYTES_LIMIT: usize = PAYLOAD_BYTES_LIMIT as usize + (1 << 20);

/// Messages are gathered into one batch up to this size; only a single entry may be larger, and is sent
/// alone.
pub(crate) const BATCH_BYTES: u64 = 4 << 20;

/// The data of a snapshot is sent in pieces of this size.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 512 << 10;

/// Received data is a slice of its receive buffer, which has at least 8 KiB, and keeps all of it alive. A
/// single payload up to this size is copied; a larger one fills most of its buffer.
pub(crate) const COPIED_BYTES_MAX: usize = 64 << 10;

/// More than the framing of one entry, or of one message, can take.
pub(crate) const FRAME_BYTES: u64 = 64;

/// The generated client with our limits.
pub(crate) fn service<C>(channel: C) -> RaftServiceClient<C>
where
    C: GrpcService<Body>,
    C::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
{
    RaftServiceClient::new(channel).max_decoding_message_size(RECEIVE_BYTES_LIMIT)
}
