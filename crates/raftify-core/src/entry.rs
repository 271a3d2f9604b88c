//! A log entry, in the form that is sent, stored and applied.

use bytes::Bytes;

use crate::types::LogPosition;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The position of the entry in the log.
    pub position: LogPosition,
    /// The kind of the payload.
    pub kind: EntryKind,
    /// Shared: not copied between the encoding of the user and the socket or the disk.
    pub payload: Bytes,
}

impl Entry {
    /// The bytes that [`size_bytes`](Self::size_bytes) counts for each entry in addition to its payload:
    /// about the memory that an entry takes where it is kept.
    pub const OVERHEAD_BYTES: u64 = 128;

    /// The size of this entry in memory and in a message, in bytes: its payload and a fixed overhead.
    pub fn size_bytes(&self) -> u64 {
        self.payload.len() as u64 + Entry::OVERHEAD_BYTES
    }
}

/// The kind of the payload of an [`Entry`]. The numbers are stored and sent, and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// No payload: the first entry of a new leader, with which it commits the entries of earlier leaders
    /// (thesis, section 3.6.2).
    Empty = 0,
    /// A log entry of the user, in the user's encoding.
    User = 1,
    /// A [`MembershipChange`](crate::members::MembershipChange): voters or learners change.
    MembershipChange = 2,
    /// A [`MemberRecord`](crate::members::MemberRecord): a replicated fact about members that changes no
    /// quorum.
    MemberRecord = 3,
}

impl EntryKind {
    /// The kind with this number, if this version supports it.
    pub const fn from_number(number: u8) -> Option<EntryKind> {
        match number {
            0 => Some(EntryKind::Empty),
            1 => Some(EntryKind::User),
            2 => Some(EntryKind::MembershipChange),
            3 => Some(EntryKind::MemberRecord),
            _ => None,
        }
    }

    /// The number that is stored and sent.
    pub const fn number(self) -> u8 {
        self as u8
    }
}
