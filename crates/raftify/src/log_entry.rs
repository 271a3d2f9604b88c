//! The first of the two traits that a user implements: what is replicated.
//!
//! An entry is encoded once, by the node at which it is proposed, and from then on is bytes for everyone but the state
//! machine. Whatever serde can serialize is a log entry already; who wants another format implements the trait.

use std::cell::RefCell;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BoxError;
use crate::worker::caught;

/// A user's own log entry: one change of the state machine.
///
/// Implemented for everything that is `Serialize + DeserializeOwned`, in the format of [`postcard`], which is stable:
/// what one version of the program wrote, a later one reads, as long as variants are only added at the end of an enum.
/// Fields cannot be added, not even at the end: a variant that needs another one is a new variant. Entries stay in the
/// log until a snapshot covers them, so that after an update of the program, entries of the old one are decoded by the
/// new one. What serde can only decode from a format that describes itself (`#[serde(untagged)]`, `serde_json::Value`)
/// is encoded and never decoded, and so is what leaves fields out (`skip_serializing_if`): entries of that kind are refused
/// when they are proposed, if they have no more than 1 KiB. Implement the trait with another format for them.
///
/// ```
/// use raftify::AbstractLogEntry;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// enum Change {
///     Insert { key: u64, value: String },
/// }
///
/// let change = Change::Insert { key: 1, value: "A".to_owned() };
/// assert_eq!(Change::decode(&change.encode()?)?, change);
/// # Ok::<(), raftify::BoxError>(())
/// ```
pub trait AbstractLogEntry: Sized + Send + 'static {
    /// The bytes that are replicated. Called once for each proposal, on the task of the proposer.
    ///
    /// # Errors
    /// The proposal fails with [`ProposeError::Encode`](crate::error::ProposeError::Encode); nothing is written.
    fn encode(&self) -> Result<Bytes, BoxError>;

    /// The inverse of [`encode`](Self::encode). Called on every node when the entry is committed, and again whenever
    /// a node starts on a log that still holds it; and before that, on the task of the connection, by each node to which
    /// the proposal comes over the network, and on the task of the proposer, if it has no more than 1 KiB.
    ///
    /// # Errors
    /// A proposal that one of them cannot decode fails with
    /// [`ProposeError::Undecodable`](crate::error::ProposeError::Undecodable); nothing is written. A committed entry that
    /// cannot be decoded stops the node: skipping it would let this node's state differ from that of the others without
    /// anybody noticing.
    fn decode(bytes: &[u8]) -> Result<Self, BoxError>;
}

/// A type that encodes what it cannot decode does so with small entries, too. To decode a large one takes time, which a
/// node that refuses most of what it is asked for does not have.
pub(crate) const CHECKED_BYTES_MAX: usize = 1024;

/// Why `payload` cannot be decoded: in the log it would stop every node, again at each start, for good.
pub(crate) fn check_entry<LogEntry: AbstractLogEntry>(payload: &[u8]) -> Result<(), String> {
    // What was decoded is dropped, or the error shown and dropped, in there, too.
    caught(|| LogEntry::decode(payload).map(drop).map_err(|error| error.to_string()))
        .unwrap_or_else(|panic| Err(format!("its decoder {panic}")))
}

/// A larger buffer is not kept for the next entry.
const SCRATCH_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// An entry's length is known only when it is encoded: here it may grow without being moved each time.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<T: Serialize + DeserializeOwned + Send + 'static> AbstractLogEntry for T {
    fn encode(&self) -> Result<Bytes, BoxError> {
        SCRATCH.with(|scratch| {
            // Taken out: the user's own `serialize` may encode an entry as well.
            let mut buffer = scratch.take();
            buffer.clear();
            let buffer = postcard::to_extend(self, buffer)?;
            let encoded = Bytes::copy_from_slice(&buffer);
            if buffer.capacity() <= SCRATCH_BYTES_MAX {
                scratch.replace(buffer);
            }
            Ok(encoded)
        })
    }

    fn decode(bytes: &[u8]) -> Result<T, BoxError> {
        let (entry, rest) = postcard::take_from_bytes(bytes)?;
        if rest.is_empty() { Ok(entry) } else { Err(format!("{} bytes follow the entry", rest.len()).into()) }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::worker::PanicsWhenShown;

    #[derive(Serialize, Deserialize)]
    enum Old {
        Insert { key: u64 },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum WithAnotherVariant {
        Insert { key: u64 },
        Remove { key: u64 },
    }

    #[derive(Debug, Serialize, Deserialize)]
    enum WithAnotherField {
        Insert { key: u64, value: Option<u64> },
    }

    /// As the documentation of [`AbstractLogEntry`] tells who updates a program.
    #[test]
    fn entries_of_an_older_program_are_decoded_if_there_are_more_variants_and_not_if_there_are_more_fields() {
        let old = Old::Insert { key: 7 }.encode().unwrap();
        assert_eq!(WithAnotherVariant::decode(&old).unwrap(), WithAnotherVariant::Insert { key: 7 });
        WithAnotherField::decode(&old).unwrap_err();
    }

    struct Unreadable;

    impl AbstractLogEntry for Unreadable {
        fn encode(&self) -> Result<Bytes, BoxError> {
            Ok(Bytes::new())
        }

        fn decode(_: &[u8]) -> Result<Unreadable, BoxError> {
            Err(PanicsWhenShown.into())
        }
    }

    /// Who proposed it would be told that it may have been applied.
    #[test]
    fn an_entry_whose_error_panics_when_it_is_shown_is_one_that_cannot_be_decoded() {
        assert_eq!(check_entry::<Unreadable>(&[]), Err("its decoder panicked: told to".to_owned()));
    }
}
