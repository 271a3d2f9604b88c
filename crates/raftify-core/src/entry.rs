//! A log entry as the whole system sees it: on the wire, on disk, and on its way to the state machine.

use bytes::Bytes;

use crate::types::LogPosition;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub position: LogPosition,
    /// What the payload means.
    pub kind: EntryKind,
    /// Shared, never copied between the user's encoding and the socket or the disk.
    pub payload: Bytes,
}

impl Entry {
    /// What [`size_bytes`](Self::size_bytes) counts for each entry besides its payload: about what one takes in memory
    /// in the places that keep it.
    pub const OVERHEAD_BYTES: u64 = 128;

    /// What this entry costs in memory and in a message, in bytes: its payload and a fixed share for the rest.
    pub fn size_bytes(&self) -> u64 {
        self.payload.len() as u64 + Entry::OVERHEAD_BYTES
    }
}

/// What the payload of an [`Entry`] means. The numbers stand on disk and on the wire and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Nothing: a new leader's first entry, which lets it commit what earlier leaders left (thesis, section 3.6.2).
    Empty = 0,
    /// A user's own log entry, in the user's encoding.
    User = 1,
    /// A [`MembershipChange`](crate::members::MembershipChange): voters or learners change.
    MembershipChange = 2,
    /// A [`MemberRecord`](crate::members::MemberRecord): a replicated fact about members that changes no quorum.
    MemberRecord = 3,
}

impl EntryKind {
    /// The kind with this number, if this version knows it.
    pub const fn from_number(number: u8) -> Option<EntryKind> {
        match number {
            0 => Some(EntryKind::Empty),
            1 => Some(EntryKind::User),
            2 => Some(EntryKind::MembershipChange),
            3 => Some(EntryKind::MemberRecord),
            _ => None,
        }
    }

    /// The number that stands on disk and on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }
}
