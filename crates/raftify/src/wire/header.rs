//! The header of every message: version, group and cluster, and between nodes also sender and receiver.

use raftify_core::members::check_address;
use raftify_core::{ClusterId, DurableState, Incarnation, NodeId, RunId, Sender, Started, Term};

use crate::wire::proto;
use crate::wire::rejection::{GROUP_ID, RequestRejected};
use crate::wire::values::{WireError, in_range, log_index, node_id};

/// The wire version of this program.
pub(crate) const WIRE_VERSION: u32 = 3;

/// The header of every message.
pub(crate) fn header(cluster_id: Option<ClusterId>) -> proto::Header {
    let cluster_id = cluster_id.map(|id| id.0);
    proto::Header {
        wire_version: WIRE_VERSION,
        group_id: GROUP_ID,
        cluster_id,
        members_as_of: None,
        without_waiting: false,
    }
}

/// Checks version and group; returns the cluster, if it is named.
pub(crate) fn check_header(header: Option<&proto::Header>) -> Result<Option<ClusterId>, RequestRejected> {
    let header = header.ok_or(WireError::Missing { what: "the header" })?;
    if header.wire_version != WIRE_VERSION {
        return Err(RequestRejected::Version { found: header.wire_version, known: WIRE_VERSION });
    }
    if header.group_id != GROUP_ID {
        return Err(RequestRejected::Group { found: header.group_id });
    }
    Ok(header.cluster_id.map(ClusterId))
}

pub(crate) fn sender_to_wire(sender: &Sender, address: &str) -> proto::Sender {
    proto::Sender {
        id: sender.id.get(),
        incarnation: sender.incarnation.0,
        members_as_of: sender.members_as_of.0,
        address: address.to_owned(),
        started: Some(started_to_wire(&sender.started)),
    }
}

fn started_to_wire(Started { run, found }: &Started) -> proto::Started {
    proto::Started {
        run: run.0,
        starts: found.starts,
        term: found.term.0,
        vote: found.vote.map_or(0, NodeId::get),
        index: found.index.0,
    }
}

fn started_from_wire(started: Option<proto::Started>) -> Result<Started, WireError> {
    let started = started.ok_or(WireError::Missing { what: "the sender's start" })?;
    let found = DurableState {
        starts: in_range("the sender's count of starts", started.starts)?,
        term: Term(in_range("the sender's term", started.term)?),
        vote: NodeId::new(started.vote),
        index: log_index("the end of the sender's log", started.index)?,
    };
    Ok(Started { run: RunId(started.run), found })
}

/// The sender of a message, and its address.
pub(crate) fn sender_from_wire(sender: Option<proto::Sender>) -> Result<(Sender, String), WireError> {
    let sender = sender.ok_or(WireError::Missing { what: "the sender" })?;
    check_address(&sender.address)?;
    let known = Sender {
        id: node_id("the sender's id", sender.id)?,
        incarnation: Incarnation(sender.incarnation),
        members_as_of: log_index("the sender's membership index", sender.members_as_of)?,
        started: started_from_wire(sender.started)?,
    };
    Ok((known, sender.address))
}

pub(crate) fn receiver_to_wire(id: NodeId, incarnation: Option<Incarnation>) -> proto::Receiver {
    proto::Receiver { id: id.get(), incarnation: incarnation.map(|incarnation| incarnation.0) }
}

/// The receiver of a message: the node and, as far as the sender knows, its incarnation.
pub(crate) fn receiver_from_wire(
    receiver: Option<proto::Receiver>,
) -> Result<(NodeId, Option<Incarnation>), WireError> {
    let receiver = receiver.ok_or(WireError::Missing { what: "the receiver" })?;
    Ok((node_id("the receiver's id", receiver.id)?, receiver.incarnation.map(Incarnation)))
}
