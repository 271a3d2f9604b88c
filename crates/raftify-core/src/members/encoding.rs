//! Versioned bytes of memberships, changes and records.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes that are no membership, change or record of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersDecodeError {
    /// Nothing at all.
    #[error("the {what} is empty")]
    Empty {
        /// What was to be decoded.
        what: &'static str,
    },
    /// Written by another version.
    #[error(
        "the {what} has format version {found}, this program knows {known}: it was written by a newer version"
    )]
    Version {
        /// What was to be decoded.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The version known.
        known: u8,
    },
    /// Damaged.
    #[error("the {what} cannot be decoded: {reason}")]
    Malformed {
        /// What was to be decoded.
        what: &'static str,
        /// As the decoder says.
        reason: String,
    },
    /// Decoded, but impossible.
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
