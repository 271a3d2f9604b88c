//! The messages of consensus, and their size on the wire.

use bytes::{Bytes, BytesMut};
use raftify_core::members::MEMBERS_MAX;
use raftify_core::message::CampaignReason;
use raftify_core::{
    Entry, EntryKind, Incarnation, LogPosition, NodeId, RaftMessage, RaftMessageBody, RunId, Term,
};

use crate::wire::limits::{BATCH_BYTES, COPIED_BYTES_MAX, FRAME_BYTES};
use crate::wire::proto;
use crate::wire::values::{
    WireError, in_range, log_index, node_id, nonzero_term, position_from_wire, position_to_wire,
};

/// A message without its sender and receiver, which its batch names.
pub(crate) fn message_to_wire(message: RaftMessage) -> proto::Message {
    use proto::message::Body;
    let body = match message.body {
        RaftMessageBody::Append { previous, commit, entries } => Body::Append(proto::Append {
            previous: position_to_wire(previous),
            commit: commit.0,
            runs: entries_to_wire(entries),
        }),
        RaftMessageBody::AppendResponse { index, commit, rejection } => {
            let rejection = rejection.and_then(position_to_wire);
            Body::AppendResponse(proto::AppendResponse { index: index.0, commit: commit.0, rejection })
        }
        RaftMessageBody::RequestVote { last, commit, reason } => Body::RequestVote(proto::RequestVote {
            last: position_to_wire(last),
            commit: position_to_wire(commit),
            reason: match reason {
                CampaignReason::Timeout => proto::CampaignReason::Timeout.into(),
                CampaignReason::Transfer => proto::CampaignReason::Transfer.into(),
            },
        }),
        RaftMessageBody::RequestPreVote { last, commit } => Body::RequestPreVote(proto::RequestPreVote {
            last: position_to_wire(last),
            commit: position_to_wire(commit),
        }),
        RaftMessageBody::VoteResponse { granted, commit } => {
            Body::VoteResponse(proto::VoteResponse { granted, commit: position_to_wire(commit) })
        }
        RaftMessageBody::PreVoteResponse { granted, commit } => {
            Body::PreVoteResponse(proto::PreVoteResponse { granted, commit: position_to_wire(commit) })
        }
        RaftMessageBody::Heartbeat { commit, read_round } => {
            Body::Heartbeat(proto::Heartbeat { commit: commit.0, read_round })
        }
        RaftMessageBody::HeartbeatResponse { commit, read_round } => {
            Body::HeartbeatResponse(proto::HeartbeatResponse { commit: commit.0, read_round })
        }
        RaftMessageBody::TimeoutNow => Body::TimeoutNow(proto::TimeoutNow {}),
        RaftMessageBody::Reached { peers } => Body::Reached(proto::Reached {
            peers: peers
                .into_iter()
                .map(|(id, incarnation)| proto::ReachedPeer { id: id.get(), incarnation: incarnation.0 })
                .collect(),
        }),
        RaftMessageBody::DurableState { vote, index } => {
            Body::DurableState(proto::DurableState { vote: vote.map_or(0, NodeId::get), index: index.0 })
        }
        RaftMessageBody::StorageFull => Body::StorageFull(proto::StorageFull {}),
        RaftMessageBody::DuplicateNode { starts, run } => {
            Body::DuplicateNode(proto::DuplicateNode { starts, run: run.0 })
        }
    };
    proto::Message { term: message.term.0, body: Some(body) }
}

/// The inverse of [`message_to_wire`].
pub(crate) fn message_from_wire(
    message: proto::Message,
    from: NodeId,
    to: NodeId,
) -> Result<RaftMessage, WireError> {
    use proto::message::Body;
    let term = nonzero_term("the message's term", message.term)?;
    let commit_index = |commit| log_index("the commit index", commit);
    let commit_position = |commit| position_from_wire("the commit position", commit);
    let last_position = |last| position_from_wire("the last position", last);
    let body = match message.body.ok_or(WireError::Missing { what: "what the message says" })? {
        Body::Append(append) => {
            let previous = position_from_wire("the previous position", append.previous)?;
            RaftMessageBody::Append {
                previous,
                commit: commit_index(append.commit)?,
                entries: entries_from_wire(append.runs, previous, term)?,
            }
        }
        Body::AppendResponse(response) => RaftMessageBody::AppendResponse {
            index: log_index("the acknowledged index", response.index)?,
            commit: commit_index(response.commit)?,
            rejection: match response.rejection {
                Some(hint) => Some(position_from_wire("the rejection's hint", Some(hint))?),
                None => None,
            },
        },
        Body::RequestVote(request) => RaftMessageBody::RequestVote {
            last: last_position(request.last)?,
            commit: commit_position(request.commit)?,
            reason: match proto::CampaignReason::try_from(request.reason) {
                Ok(proto::CampaignReason::Timeout) => CampaignReason::Timeout,
                Ok(proto::CampaignReason::Transfer) => CampaignReason::Transfer,
                Ok(proto::CampaignReason::Unspecified) | Err(_) => {
                    let number = request.reason.into();
                    return Err(WireError::UnknownNumber { what: "campaign reason", number });
                }
            },
        },
        Body::RequestPreVote(request) => RaftMessageBody::RequestPreVote {
            last: last_position(request.last)?,
            commit: commit_position(request.commit)?,
        },
        Body::VoteResponse(response) => RaftMessageBody::VoteResponse {
            granted: response.granted,
            commit: commit_position(response.commit)?,
        },
        Body::PreVoteResponse(response) => RaftMessageBody::PreVoteResponse {
            granted: response.granted,
            commit: commit_position(response.commit)?,
        },
        Body::Heartbeat(heartbeat) => RaftMessageBody::Heartbeat {
            commit: commit_index(heartbeat.commit)?,
            read_round: heartbeat.read_round,
        },
        Body::HeartbeatResponse(response) => RaftMessageBody::HeartbeatResponse {
            commit: commit_index(response.commit)?,
            read_round: response.read_round,
        },
        Body::TimeoutNow(proto::TimeoutNow {}) => RaftMessageBody::TimeoutNow,
        Body::Reached(proto::Reached { peers }) => {
            if peers.len() > MEMBERS_MAX {
                let (count, max) = (peers.len() as u64, MEMBERS_MAX as u64);
                return Err(WireError::TooMany { what: "the number of peers", count, max });
            }
            let peer = |peer: proto::ReachedPeer| {
                Ok((node_id("a reached peer's id", peer.id)?, Incarnation(peer.incarnation)))
            };
            RaftMessageBody::Reached { peers: peers.into_iter().map(peer).collect::<Result<_, WireError>>()? }
        }
        Body::DurableState(proto::DurableState { vote, index }) => RaftMessageBody::DurableState {
            vote: NodeId::new(vote),
            index: log_index("the index of the sender's log", index)?,
        },
        Body::StorageFull(proto::StorageFull {}) => RaftMessageBody::StorageFull,
        Body::DuplicateNode(proto::DuplicateNode { starts, run }) => RaftMessageBody::DuplicateNode {
            starts: in_range("the count of starts", starts)?,
            run: RunId(run),
        },
    };
    Ok(RaftMessage { from, to, term, body })
}

/// The maximum size of a message on the wire, in bytes.
pub(crate) fn message_bytes_max(message: &RaftMessage) -> u64 {
    let content = match &message.body {
        RaftMessageBody::Append { entries, .. } => entries.iter().map(entry_bytes_max).sum(),
        RaftMessageBody::Reached { peers } => peers.len() as u64 * FRAME_BYTES,
        _ => 0,
    };
    2 * FRAME_BYTES + content
}

fn entry_bytes_max(entry: &Entry) -> u64 {
    FRAME_BYTES + entry.payload.len() as u64
}

/// Splits a message that takes more than [`BATCH_BYTES`] into one that does not, or that holds a single
/// entry, and the rest. The core gathers entries without regard to the limits of a transport; two appends,
/// the second of which continues where the first ends, are equivalent to one.
pub(crate) fn split_large(message: RaftMessage) -> (RaftMessage, Option<RaftMessage>) {
    let RaftMessage { from, to, term, body: RaftMessageBody::Append { previous, commit, mut entries } } =
        message
    else {
        return (message, None);
    };
    let mut bytes = 2 * FRAME_BYTES;
    let fitting = entries
        .iter()
        .take_while(|entry| {
            bytes += entry_bytes_max(entry);
            bytes <= BATCH_BYTES
        })
        .count();
    let rest = entries.split_off(fitting.max(1).min(entries.len()));
    let append = |previous, entries| {
        let body = RaftMessageBody::Append { previous, commit, entries };
        RaftMessage { from, to, term, body }
    };
    let rest = entries.last().filter(|_| !rest.is_empty()).map(|last| append(last.position, rest));
    (append(previous, entries), rest)
}

fn entries_to_wire(entries: Vec<Entry>) -> Vec<proto::EntryRun> {
    let mut runs: Vec<proto::EntryRun> = Vec::new();
    let count = entries.len();
    for Entry { position, kind, payload } in entries {
        let (term, kind) = (position.term.0, kind.number().into());
        match runs.last_mut() {
            Some(run) if (run.term, run.kind) == (term, kind) => run.payloads.push(payload),
            _ => {
                let mut payloads = Vec::with_capacity(if runs.is_empty() { count } else { 1 });
                payloads.push(payload);
                runs.push(proto::EntryRun { term, kind, payloads });
            }
        }
    }
    runs
}

/// The same bytes in a buffer with nearly no unused memory.
pub(crate) fn owned(bytes: Bytes) -> Bytes {
    if bytes.len() > COPIED_BYTES_MAX { bytes } else { Bytes::copy_from_slice(&bytes) }
}

/// The payloads of one message are copied into one buffer, which they fill: the receive buffer holds other
/// messages, too, and the payloads may be kept for long. Only an entry that was sent alone is not copied.
pub(crate) fn entries_from_wire(
    runs: Vec<proto::EntryRun>,
    previous: LogPosition,
    newest: Term,
) -> Result<Vec<Entry>, WireError> {
    let is_copied = |payload: &Bytes| (1..BATCH_BYTES).contains(&(payload.len() as u64));
    let payloads = || runs.iter().flat_map(|run| &run.payloads);
    let count = payloads().count();
    // Each counts for `FRAME_BYTES` at its sender. An empty one takes two bytes, and many times that here.
    let max = BATCH_BYTES / FRAME_BYTES;
    if count as u64 > max {
        return Err(WireError::TooMany { what: "the number of entries", count: count as u64, max });
    }
    let mut buffer =
        BytesMut::with_capacity(payloads().filter(|&bytes| is_copied(bytes)).map(Bytes::len).sum());
    let mut entries = Vec::with_capacity(count);
    let mut last = previous;
    for proto::EntryRun { term, kind, payloads } in runs {
        let term = nonzero_term("the term of entries", term)?;
        if term < last.term || term > newest {
            let index = last.index.next();
            return Err(WireError::TermOutOfOrder { index, term, previous: last.term, newest });
        }
        let known = u8::try_from(kind).ok().and_then(EntryKind::from_number);
        let kind = known.ok_or(WireError::UnknownNumber { what: "entry kind", number: kind.into() })?;
        for mut payload in payloads {
            last = LogPosition { term, index: log_index("an entry's index", last.index.0 + 1)? };
            if is_copied(&payload) {
                buffer.extend_from_slice(&payload);
                payload = buffer.split().freeze();
            }
            entries.push(Entry { position: last, kind, payload });
        }
    }
    Ok(entries)
}
