//! The versioned encoding of memberships, changes and records.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The bytes are not a membership, change or record of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersDecodeError {
    /// The input is empty.
    #[error("the {what} is empty")]
    Empty {
        /// The type to decode.
        what: &'static str,
    },
    /// Another version wrote the bytes.
    #[error(
        "the {what} has format version {found}, this program knows {known}: it was written by a newer version"
    )]
    Version {
        /// The type to decode.
        what: &'static str,
        /// The version in the input.
        found: u8,
        /// The known version.
        known: u8,
    },
    /// The bytes are damaged.
    #[error("the {what} cannot be decoded: {reason}")]
    Malformed {
        /// The type to decode.
        what: &'static str,
        /// The error of the decoder.
        reason: String,
    },
    /// The decoded value is not valid.
    #[error("the membership contradicts itself")]
    Inconsistent,
}

pub(crate) fn encode_versioned<T: Serialize>(version: u8, value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![version]);
    bytes.expect("plain data with known lengths, written to memory, always encodes").into()
}

pub(crate) fn decode_versioned<T: for<'a> Deserialize<'a>>(
    what: &'static str,
    known: u8,
    bytes: &[u8],
) -> Result<T, MembersDecodeError> {
    let (found, rest) = bytes.split_first().ok_or(MembersDecodeError::Empty { what })?;
    if *found != known {
        return Err(MembersDecodeError::Version { what, found: *found, known });
    }
    let (value, rest) = postcard::take_from_bytes(rest)
        .map_err(|error| MembersDecodeError::Malformed { what, reason: error.to_string() })?;
    if !rest.is_empty() {
        let reason = format!("{} bytes follow it", rest.len());
        return Err(MembersDecodeError::Malformed { what, reason });
    }
    Ok(value)
}
