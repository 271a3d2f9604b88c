//! How large a thing may be that travels.

/// The largest payload of an entry: the upper end of `entry_bytes_max`.
pub(crate) const PAYLOAD_BYTES_LIMIT: u64 = 64 << 20;

/// The largest message that is received. It does not follow from this node's own settings, because then a batch of a
/// node with other settings would be refused for ever: it holds the largest possible entry, and every batch.
pub(crate) const RECEIVE_BYTES_LIMIT: usize = PAYLOAD_BYTES_LIMIT as usize + (1 << 20);

/// Messages are gathered into one batch up to this size; only a single entry may be larger, and travels alone.
pub(crate) const BATCH_BYTES: u64 = 4 << 20;

/// The data of a snapshot travels in pieces of this size.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 512 << 10;

/// What comes from the network is a slice of the buffer that it was received in, which has 8 KiB at least, and keeps all
/// of it. A single payload up to this size is copied out; a larger one fills its buffer for the most part.
pub(crate) const COPIED_BYTES_MAX: usize = 64 << 10;

/// More than the framing of one entry, or of one message, can take.
pub(crate) const FRAME_BYTES: u64 = 64;
