//! Numbers, positions and the types built from them: validated once, when they are decoded.

use raftify_core::members::{AddressProblem, MembersDecodeError};
use raftify_core::{ClusterId, LogIndex, LogPosition, Members, NodeId, Reservation, SnapshotMeta, Term};

use crate::wire::proto;

/// Terms and indexes from the network stay below this, so that no arithmetic on them can overflow. At a
/// million entries a second, a log reaches it in 290 000 years.
pub(crate) const NUMBER_LIMIT: u64 = 1 << 63;

/// Why bytes from the network are malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} is zero, which is not possible")]
    Zero { what: &'static str },
    #[error("{what} is {value}, which is more than any log reaches")]
    OutOfRange { what: &'static str, value: u64 },
    #[error("{what} is {count}, and may be {max}")]
    TooMany { what: &'static str, count: u64, max: u64 },
    #[error("{what} {number} is not known to this version")]
    UnknownNumber { what: &'static str, number: i64 },
    #[error("entry {index} is of term {term}, which does not lie between {previous} and {newest}")]
    TermOutOfOrder { index: LogIndex, term: Term, previous: Term, newest: Term },
    #[error(transparent)]
    Members(#[from] MembersDecodeError),
    #[error("the members are as of index {as_of}, the snapshot is at {position}")]
    MembersNewerThanSnapshot { as_of: LogIndex, position: LogPosition },
    #[error(transparent)]
    Address(#[from] AddressProblem),
}

pub(crate) fn position_to_wire(position: LogPosition) -> Option<proto::Position> {
    Some(proto::Position { term: position.term.0, index: position.index.0 })
}

pub(crate) fn position_from_wire(
    what: &'static str,
    position: Option<proto::Position>,
) -> Result<LogPosition, WireError> {
    let position = position.ok_or(WireError::Missing { what })?;
    Ok(LogPosition { term: Term(in_range(what, position.term)?), index: log_index(what, position.index)? })
}

pub(crate) fn node_id(what: &'static str, id: u64) -> Result<NodeId, WireError> {
    NodeId::new(id).ok_or(WireError::Zero { what })
}

pub(crate) fn nonzero_term(what: &'static str, term: u64) -> Result<Term, WireError> {
    if term == 0 { Err(WireError::Zero { what }) } else { in_range(what, term).map(Term) }
}

pub(crate) fn log_index(what: &'static str, index: u64) -> Result<LogIndex, WireError> {
    in_range(what, index).map(LogIndex)
}

pub(crate) fn in_range(what: &'static str, value: u64) -> Result<u64, WireError> {
    if value < NUMBER_LIMIT { Ok(value) } else { Err(WireError::OutOfRange { what, value }) }
}

pub(crate) fn snapshot_from_wire(
    cluster_id: ClusterId,
    position: Option<proto::Position>,
    members: &[u8],
) -> Result<SnapshotMeta, WireError> {
    let position = position_from_wire("the snapshot's position", position)?;
    if position.term == Term::ZERO || position.index == LogIndex::ZERO {
        return Err(WireError::Zero { what: "the snapshot's position" });
    }
    let members = Members::decode(members)?;
    if members.is_empty() {
        return Err(WireError::Missing { what: "the snapshot's membership" });
    }
    if members.as_of() > position.index {
        return Err(WireError::MembersNewerThanSnapshot { as_of: members.as_of(), position });
    }
    Ok(SnapshotMeta { cluster_id, position, members })
}

pub(crate) fn reservation_to_wire(reservation: &Reservation) -> proto::Reservation {
    proto::Reservation {
        node_id: reservation.node_id.get(),
        leader: reservation.leader.get(),
        members: reservation.members.encode(),
    }
}

pub(crate) fn reservation_from_wire(reservation: &proto::Reservation) -> Result<Reservation, WireError> {
    Ok(Reservation {
        node_id: node_id("the reserved id", reservation.node_id)?,
        leader: node_id("the leader's id", reservation.leader)?,
        members: Members::decode(&reservation.members)?,
    })
}
