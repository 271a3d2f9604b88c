//! The fields that all binary formats of this crate consist of, and the errors for damaged bytes. All numbers
//! are big-endian.

use raftify_core::members::MembersDecodeError;
use raftify_core::{LogIndex, LogPosition, StorageError, Term};

/// The only group so far. Every key and header contains it, so that many groups can share one log later.
pub(crate) const GROUP_ID: u64 = 0;

/// Why a value is damaged.
#[derive(Debug)]
pub(crate) enum Damage {
    Version { found: u32, known: u32 },
    Content(String),
}

impl Damage {
    /// The error for `what`, which is damaged.
    pub(crate) fn of(self, what: String) -> StorageError {
        match self {
            Damage::Version { found, known } => StorageError::Version { what, found, known },
            Damage::Content(reason) => StorageError::Corrupt { what, reason },
        }
    }
}

impl From<MembersDecodeError> for Damage {
    fn from(error: MembersDecodeError) -> Damage {
        match error {
            MembersDecodeError::Version { found, known, .. } => {
                Damage::Version { found: found.into(), known: known.into() }
            }
            other => Damage::Content(other.to_string()),
        }
    }
}

/// Takes fields of fixed length from the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (field, rest) =
            self.0.split_first_chunk().ok_or_else(|| Damage::Content("it is too short".into()))?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn position(&mut self) -> Result<LogPosition, Damage> {
        Ok(LogPosition { term: Term(self.number()?), index: LogIndex(self.number()?) })
    }

    /// Returns `value`, if no bytes are left.
    pub(crate) fn whole<T>(&self, value: T) -> Result<T, Damage> {
        match self.0.len() {
            0 => Ok(value),
            left => Err(Damage::Content(format!("{left} bytes follow it"))),
        }
    }
}

pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

pub(crate) fn put_position(out: &mut Vec<u8>, position: LogPosition) {
    put_number(out, position.term.0);
    put_number(out, position.index.0);
}
