//! Conversions between the core's types and the messages of `raft_service.proto`, and the refusals that travel back.
//!
//! Whatever comes from the network becomes a core type here, or a [`WireError`]: behind this module nothing is zero
//! that must not be, no entry is out of order, no number is unknown. It panics on no bytes. Called by the server, the
//! outbox and the remote client; it decides nothing about who is believed.

use std::fmt::Display;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raftify_core::error::{
    MembershipError, ProposeError, ReadError, StopReason, TransferError, UnknownOutcome,
};
use raftify_core::members::{AddressProblem, MEMBERS_MAX, MembersDecodeError, SenderRefusal, check_address};
use raftify_core::message::CampaignReason;
use raftify_core::{
    ClusterId, Entry, EntryKind, Identity, Incarnation, LogIndex, LogPosition, Members, NodeId, RaftMessage,
    RaftMessageBody, Reservation, RunId, Sender, SnapshotMeta, Standing, Started, Term,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use crate::identification::{Identification, Plan};

/// The messages of `raft_service.proto`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub(crate) mod proto {
    tonic::include_proto!("raftify.v1");
}

/// The version that this program speaks.
pub(crate) const WIRE_VERSION: u32 = 2;

/// The only group for now.
const GROUP_ID: u64 = 0;

/// The version of the typed details of a refusal. It comes first, because a refusal must be understood even by a
/// sender of another wire version.
const DETAIL_VERSION: u8 = 1;

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
const COPIED_BYTES_MAX: usize = 64 << 10;

/// Terms and indexes from the network stay below this, so that no arithmetic on them can overflow. At a million
/// entries a second, a log gets there in 290 000 years.
const NUMBER_LIMIT: u64 = 1 << 63;

/// More than the framing of one entry, or of one message, can take.
const FRAME_BYTES: u64 = 64;

/// Why bytes from the network are no possible message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} is zero, which is not possible")]
    Zero { what: &'static str },
    #[error("{what} is {value}, which is more than any log reaches")]
    OutOfRange { what: &'static str, value: u64 },
    #[error("{what} {number} is not known to this version")]
    UnknownNumber { what: &'static str, number: i64 },
    #[error("entry {found} stands where {expected} is expected")]
    Gap { expected: LogIndex, found: u64 },
    #[error("entry {index} is of term {term}, which does not lie between {previous} and {newest}")]
    TermOutOfOrder { index: LogIndex, term: Term, previous: Term, newest: Term },
    #[error(transparent)]
    Members(#[from] MembersDecodeError),
    #[error("the members are as of index {as_of}, the snapshot is at {position}")]
    MembersNewerThanSnapshot { as_of: LogIndex, position: LogPosition },
    #[error(transparent)]
    Address(#[from] AddressProblem),
}

/// Why a node did not even look at a request: nothing happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DoorRefusal {
    /// The two programs are of versions that do not understand each other.
    #[error(
        "wire version {found} is not spoken here, only version {known}: run versions of raftify that fit together"
    )]
    Version {
        /// Of the request.
        found: u32,
        /// Of the refusing node.
        known: u32,
    },
    /// The request is for a group that does not exist.
    #[error("group {found} is not served here, only group {GROUP_ID} is")]
    Group {
        /// Of the request.
        found: u64,
    },
    /// The request is of another cluster: an address is wrong on one of the two sides.
    #[error(
        "this message is of cluster {found}, node {node} belongs to cluster {own}: one of the two was given an \
         address of the wrong cluster"
    )]
    OtherCluster {
        /// The refusing node.
        node: NodeId,
        /// Of the request.
        found: ClusterId,
        /// Of the refusing node.
        own: ClusterId,
    },
    /// The node waits to be told its cluster.
    #[error("node {node} belongs to no cluster yet: it must begin one or join one first")]
    NoCluster {
        /// The refusing node.
        node: NodeId,
    },
    /// Another node listens at the address that the sender has for the one it means.
    #[error(
        "this message is for node {meant}, but at this address listens node {own}: check the addresses of both"
    )]
    OtherNode {
        /// Whom the sender meant.
        meant: NodeId,
        /// The refusing node.
        own: NodeId,
    },
    /// The sender is not believed.
    #[error(transparent)]
    Sender(#[from] SenderRefusal),
    /// The request is of no possible form.
    #[error("the message makes no sense: {0}")]
    Malformed(String),
    /// A snapshot of a newer leader is being received.
    #[error("a snapshot of term {newer} is being received, this one is of term {term}")]
    StaleSnapshot {
        /// Of the refused one.
        term: Term,
        /// Of the one that is being received.
        newer: Term,
    },
    /// The node has stopped, or is stopping.
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

impl From<WireError> for DoorRefusal {
    fn from(error: WireError) -> DoorRefusal {
        DoorRefusal::Malformed(error.to_string())
    }
}

impl From<DoorRefusal> for Status {
    fn from(refusal: DoorRefusal) -> Status {
        let code = match refusal {
            DoorRefusal::Malformed(_) => Code::InvalidArgument,
            DoorRefusal::Sender(_) => Code::PermissionDenied,
            DoorRefusal::NoCluster { .. } | DoorRefusal::Stopped(_) => Code::Unavailable,
            _ => Code::FailedPrecondition,
        };
        Status::with_details(code, refusal.to_string(), encode_detail(&refusal))
    }
}

impl DoorRefusal {
    /// The typed reason in a status, if it came from a door.
    pub(crate) fn from_status(status: &Status) -> Option<DoorRefusal> {
        decode_detail(status.details())
    }
}

/// The error of a verb that can be asked over the network: what the ways of not getting an answer mean for it.
pub(crate) trait VerbError:
    From<StopReason> + Display + Serialize + DeserializeOwned + Send + 'static
{
    /// Nothing happened: the node's queue is full.
    fn busy(waiting: u64) -> Self;
    /// Nothing happened: no node took the request.
    fn not_sent(reason: String) -> Self;
    /// The request was sent and no answer came back.
    fn lost(reason: String) -> Self;
    /// The request was sent and no answer came back in time.
    fn timed_out(after: Duration) -> Self;
    /// Why the node that answers has stopped, if that is what it says.
    fn stopped(&self) -> Option<&StopReason>;
    /// What another node's answer means here.
    fn of_another(self) -> Self {
        self
    }
}

impl VerbError for ProposeError {
    fn busy(waiting: u64) -> Self {
        ProposeError::Busy { waiting }
    }

    fn not_sent(_reason: String) -> Self {
        ProposeError::NoLeader
    }

    fn lost(reason: String) -> Self {
        ProposeError::Unknown(UnknownOutcome::ConnectionLost(reason))
    }

    fn timed_out(after: Duration) -> Self {
        ProposeError::Unknown(UnknownOutcome::TimedOut(after))
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            ProposeError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }

    /// Earlier versions also said it of what they had taken.
    fn of_another(self) -> Self {
        match self {
            ProposeError::Stopped(reason) if !reason.nothing_happened() => {
                ProposeError::Unknown(UnknownOutcome::NodeStopped(reason))
            }
            error => error,
        }
    }
}

impl VerbError for MembershipError {
    fn busy(waiting: u64) -> Self {
        MembershipError::Busy { waiting }
    }

    fn not_sent(_reason: String) -> Self {
        MembershipError::NoLeader
    }

    fn lost(reason: String) -> Self {
        MembershipError::Unknown(UnknownOutcome::ConnectionLost(reason))
    }

    fn timed_out(after: Duration) -> Self {
        MembershipError::Unknown(UnknownOutcome::TimedOut(after))
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            MembershipError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }
}

impl VerbError for TransferError {
    fn busy(waiting: u64) -> Self {
        TransferError::ConnectionLost(format!(
            "{waiting} requests are waiting there, which is as many as may"
        ))
    }

    fn not_sent(_reason: String) -> Self {
        TransferError::NoLeader
    }

    fn lost(reason: String) -> Self {
        TransferError::ConnectionLost(reason)
    }

    fn timed_out(after: Duration) -> Self {
        TransferError::ConnectionLost(format!("no answer within {} ms", after.as_millis()))
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            TransferError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }
}

impl VerbError for ReadError {
    fn busy(waiting: u64) -> Self {
        ReadError::Busy { waiting }
    }

    fn not_sent(reason: String) -> Self {
        ReadError::ConnectionLost(reason)
    }

    fn lost(reason: String) -> Self {
        ReadError::ConnectionLost(reason)
    }

    fn timed_out(after: Duration) -> Self {
        ReadError::TimedOut(after)
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            ReadError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }
}

/// A refusal, for the reply of its verb.
pub(crate) fn refusal_to_wire<E: Display + Serialize>(error: &E) -> proto::Refusal {
    proto::Refusal { message: error.to_string(), detail: encode_detail(error) }
}

/// The inverse of [`refusal_to_wire`]; `None` for a reason that this version does not know.
pub(crate) fn refusal_from_wire<E: DeserializeOwned>(refusal: &proto::Refusal) -> Option<E> {
    decode_detail(&refusal.detail)
}

pub(crate) fn encode_detail<T: Serialize>(value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![DETAIL_VERSION]);
    bytes.expect("plain data with known lengths, written to memory, always encodes").into()
}

pub(crate) fn decode_detail<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, rest) = bytes.split_first()?;
    if *version != DETAIL_VERSION {
        return None;
    }
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// What every message starts with.
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
pub(crate) fn check_header(header: Option<&proto::Header>) -> Result<Option<ClusterId>, DoorRefusal> {
    let header = header.ok_or(WireError::Missing { what: "the header" })?;
    if header.wire_version != WIRE_VERSION {
        return Err(DoorRefusal::Version { found: header.wire_version, known: WIRE_VERSION });
    }
    if header.group_id != GROUP_ID {
        return Err(DoorRefusal::Group { found: header.group_id });
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
    let found = Standing {
        starts: in_range("the sender's count of starts", started.starts)?,
        term: Term(in_range("the sender's term", started.term)?),
        vote: NodeId::new(started.vote),
        index: log_index("the end of the sender's log", started.index)?,
    };
    Ok(Started { run: RunId(started.run), found })
}

/// Who sent a message, and where it can be reached.
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

/// For whom a message is: the node and, as far as the sender knows, its incarnation.
pub(crate) fn receiver_from_wire(
    receiver: Option<proto::Receiver>,
) -> Result<(NodeId, Option<Incarnation>), WireError> {
    let receiver = receiver.ok_or(WireError::Missing { what: "the receiver" })?;
    Ok((node_id("the receiver's id", receiver.id)?, receiver.incarnation.map(Incarnation)))
}

/// A message without its sender and receiver, which its batch names.
pub(crate) fn message_to_wire(message: RaftMessage) -> proto::Message {
    use proto::message::Body;
    let body = match message.body {
        RaftMessageBody::Append { previous, commit, entries } => Body::Append(proto::Append {
            previous: position_to_wire(previous),
            commit: commit.0,
            entries: entries.into_iter().map(entry_to_wire).collect(),
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
        RaftMessageBody::Standing { vote, index } => {
            Body::Standing(proto::Standing { vote: vote.map_or(0, NodeId::get), index: index.0 })
        }
        RaftMessageBody::Twin { starts, run } => Body::Twin(proto::Twin { starts, run: run.0 }),
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
                entries: entries_from_wire(append.entries, previous, term)?,
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
                return Err(WireError::OutOfRange { what: "the number of peers", value: peers.len() as u64 });
            }
            let peer = |peer: proto::ReachedPeer| {
                Ok((node_id("a reached peer's id", peer.id)?, Incarnation(peer.incarnation)))
            };
            RaftMessageBody::Reached { peers: peers.into_iter().map(peer).collect::<Result<_, WireError>>()? }
        }
        Body::Standing(proto::Standing { vote, index }) => RaftMessageBody::Standing {
            vote: NodeId::new(vote),
            index: log_index("the index of the sender's log", index)?,
        },
        Body::Twin(proto::Twin { starts, run }) => {
            RaftMessageBody::Twin { starts: in_range("the count of starts", starts)?, run: RunId(run) }
        }
    };
    Ok(RaftMessage { from, to, term, body })
}

/// At most how much a message takes on the wire, in bytes.
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

/// Splits a message that takes more than [`BATCH_BYTES`] into one that does not, or that holds a single entry, and
/// the rest. The core gathers entries without regard to what a transport can take; two appends, the second going on
/// where the first ends, say the same as one.
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

fn entry_to_wire(entry: Entry) -> proto::Entry {
    proto::Entry {
        term: entry.position.term.0,
        index: entry.position.index.0,
        kind: entry.kind.number().into(),
        payload: entry.payload,
    }
}

/// The same bytes, such that they keep no memory but their own, nearly.
pub(crate) fn owned(bytes: Bytes) -> Bytes {
    if bytes.len() > COPIED_BYTES_MAX { bytes } else { Bytes::copy_from_slice(&bytes) }
}

/// The payloads of one message are copied into one buffer, which they fill: what they came in holds other messages, too,
/// and they may be kept for long. Only an entry that has travelled alone stays where it is.
fn entries_from_wire(
    entries: Vec<proto::Entry>,
    previous: LogPosition,
    newest: Term,
) -> Result<Vec<Entry>, WireError> {
    let is_copied = |payload: &Bytes| (1..BATCH_BYTES).contains(&(payload.len() as u64));
    let copied = entries.iter().map(|entry| &entry.payload).filter(|payload| is_copied(payload));
    let mut buffer = BytesMut::with_capacity(copied.map(Bytes::len).sum());
    let mut last = previous;
    let check = |entry: proto::Entry| {
        let term = nonzero_term("an entry's term", entry.term)?;
        let index = log_index("an entry's index", last.index.0 + 1)?;
        if entry.index != index.0 {
            return Err(WireError::Gap { expected: index, found: entry.index });
        }
        if term < last.term || term > newest {
            return Err(WireError::TermOutOfOrder { index, term, previous: last.term, newest });
        }
        let kind = u8::try_from(entry.kind).ok().and_then(EntryKind::from_number);
        let kind = kind.ok_or(WireError::UnknownNumber { what: "entry kind", number: entry.kind.into() })?;
        last = LogPosition { term, index };
        let mut payload = entry.payload;
        if is_copied(&payload) {
            buffer.extend_from_slice(&payload);
            payload = buffer.split().freeze();
        }
        Ok(Entry { position: last, kind, payload })
    };
    entries.into_iter().map(check).collect()
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

pub(crate) fn identification_to_wire(
    header: Option<proto::Header>,
    node: Identification,
) -> proto::IdentifyReply {
    let encoded = |members: &Members| if members.is_empty() { Bytes::new() } else { members.encode() };
    proto::IdentifyReply {
        header,
        node_id: node.node_id.get(),
        address: node.address,
        incarnation: node.identity.map(|identity| identity.incarnation.0),
        members: encoded(&node.members),
        leader_id: node.leader_id.map(NodeId::get),
        plan: node.plan.map(|plan| proto::Plan {
            members: encoded(&plan.members),
            expect: plan.expect,
            nonce: plan.nonce,
        }),
        agrees: node.agrees,
    }
}

/// The inverse of [`identification_to_wire`].
pub(crate) fn identification_from_wire(reply: proto::IdentifyReply) -> Result<Identification, WireError> {
    let header = reply.header.ok_or(WireError::Missing { what: "the header" })?;
    let node_id = node_id("the node's id", reply.node_id)?;
    check_address(&reply.address)?;
    let decoded = |bytes: &[u8]| match bytes {
        [] => Ok(Members::none()),
        bytes => Members::decode(bytes),
    };
    let identity = match (reply.incarnation, header.cluster_id) {
        (None, _) => None,
        (Some(_), None) => return Err(WireError::Missing { what: "the cluster id" }),
        (Some(incarnation), Some(cluster_id)) => Some(Identity {
            cluster_id: ClusterId(cluster_id),
            node_id,
            incarnation: Incarnation(incarnation),
        }),
    };
    let plan = match reply.plan {
        Some(plan) => Some(Plan { members: decoded(&plan.members)?, expect: plan.expect, nonce: plan.nonce }),
        None => None,
    };
    Ok(Identification {
        node_id,
        address: reply.address,
        identity,
        members: decoded(&reply.members)?,
        leader_id: reply.leader_id.and_then(NodeId::new),
        plan,
        agrees: reply.agrees,
    })
}

pub(crate) fn position_to_wire(position: LogPosition) -> Option<proto::Position> {
    Some(proto::Position { term: position.term.0, index: position.index.0 })
}

fn position_from_wire(
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

fn in_range(what: &'static str, value: u64) -> Result<u64, WireError> {
    if value < NUMBER_LIMIT { Ok(value) } else { Err(WireError::OutOfRange { what, value }) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    const FROM: NodeId = NodeId::FIRST;

    fn to() -> NodeId {
        NodeId::new(2).unwrap()
    }

    fn position() -> impl Strategy<Value = LogPosition> {
        (0..NUMBER_LIMIT, 0..NUMBER_LIMIT).prop_map(|(term, index)| LogPosition::new(term, index))
    }

    fn index() -> impl Strategy<Value = LogIndex> {
        (0..NUMBER_LIMIT).prop_map(LogIndex)
    }

    fn append() -> impl Strategy<Value = RaftMessageBody> {
        let entry = (0..3_u64, 0..4_u8, vec(any::<u8>(), 0..40));
        (0..1000_u64, 0..NUMBER_LIMIT / 2, index(), vec(entry, 0..8)).prop_map(
            |(term, before, commit, entries)| {
                let previous = LogPosition::new(term, before);
                let mut last = previous;
                let entries = entries.into_iter().map(|(later, kind, payload)| {
                    last = LogPosition::new((last.term.0 + later).max(1), last.index.0 + 1);
                    let kind = EntryKind::from_number(kind).unwrap();
                    Entry { position: last, kind, payload: payload.into() }
                });
                RaftMessageBody::Append { previous, commit, entries: entries.collect() }
            },
        )
    }

    fn message() -> impl Strategy<Value = RaftMessage> {
        let reason = prop_oneof![Just(CampaignReason::Timeout), Just(CampaignReason::Transfer)];
        let body = prop_oneof![
            append(),
            (index(), index(), proptest::option::of(position())).prop_map(|(index, commit, rejection)| {
                RaftMessageBody::AppendResponse { index, commit, rejection }
            }),
            (position(), position(), reason)
                .prop_map(|(last, commit, reason)| RaftMessageBody::RequestVote { last, commit, reason }),
            (position(), position())
                .prop_map(|(last, commit)| RaftMessageBody::RequestPreVote { last, commit }),
            (any::<bool>(), position())
                .prop_map(|(granted, commit)| RaftMessageBody::VoteResponse { granted, commit }),
            (any::<bool>(), position())
                .prop_map(|(granted, commit)| RaftMessageBody::PreVoteResponse { granted, commit }),
            (index(), any::<Option<u64>>())
                .prop_map(|(commit, read_round)| RaftMessageBody::Heartbeat { commit, read_round }),
            (index(), any::<Option<u64>>())
                .prop_map(|(commit, read_round)| RaftMessageBody::HeartbeatResponse { commit, read_round }),
            Just(RaftMessageBody::TimeoutNow),
            (any::<u64>(), index())
                .prop_map(|(vote, index)| { RaftMessageBody::Standing { vote: NodeId::new(vote), index } }),
            (0..NUMBER_LIMIT, any::<u64>())
                .prop_map(|(starts, run)| RaftMessageBody::Twin { starts, run: RunId(run) }),
            vec((1..u64::MAX, any::<u64>()), 0..MEMBERS_MAX).prop_map(|peers| RaftMessageBody::Reached {
                peers: peers
                    .into_iter()
                    .map(|(id, of)| (NodeId::new(id).unwrap(), Incarnation(of)))
                    .collect(),
            }),
        ];
        (2000..NUMBER_LIMIT, body).prop_map(|(term, body)| RaftMessage {
            from: FROM,
            to: to(),
            term: Term(term),
            body,
        })
    }

    proptest! {
        #[test]
        fn every_message_survives_the_wire(message in message()) {
            let bytes = message_to_wire(message.clone()).encode_to_vec();
            prop_assert!(bytes.len() as u64 <= message_bytes_max(&message));
            let decoded = proto::Message::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(message_from_wire(decoded, FROM, to()), Ok(message));
        }

        #[test]
        fn no_bytes_make_the_conversions_panic(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(message) = proto::Message::decode(bytes.as_slice()) {
                let _ = message_from_wire(message, FROM, to());
            }
            if let Ok(batch) = proto::MessageBatch::decode(bytes.as_slice()) {
                let _ = check_header(batch.header.as_ref());
                let _ = sender_from_wire(batch.sender);
                let _ = receiver_from_wire(batch.receiver);
            }
            if let Ok(head) = proto::SnapshotHead::decode(bytes.as_slice()) {
                let _ = snapshot_from_wire(ClusterId(1), head.position, &head.members);
            }
            if let Ok(reply) = proto::IdentifyReply::decode(bytes.as_slice()) {
                let _ = identification_from_wire(reply);
            }
            if let Ok(reservation) = proto::Reservation::decode(bytes.as_slice()) {
                let _ = reservation_from_wire(&reservation);
            }
            let _ = decode_detail::<DoorRefusal>(&bytes);
            let _ = decode_detail::<MembershipError>(&bytes);
            let _ = decode_detail::<raftify_core::Inspection>(&bytes);
        }

        #[test]
        fn a_damaged_message_is_an_error_or_another_possible_message(
            message in message(), at in any::<prop::sample::Index>(), bit in 0..8_u32,
        ) {
            let mut bytes = message_to_wire(message).encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(damaged) = proto::Message::decode(bytes.as_slice())
                && let Ok(message) = message_from_wire(damaged, FROM, to())
            {
                prop_assert_ne!(message.term, Term::ZERO);
            }
        }
    }

    #[test]
    fn impossible_messages_are_named() {
        let entry = |term, index, kind| proto::Entry { term, index, kind, payload: Bytes::new() };
        let append = |entries| {
            let previous = position_to_wire(LogPosition::new(3, 7));
            let append = proto::Append { previous, commit: 0, entries };
            proto::Message { term: 5, body: Some(proto::message::Body::Append(append)) }
        };
        let vote = |reason| {
            let zero = position_to_wire(LogPosition::ZERO);
            let request = proto::RequestVote { last: zero, commit: zero, reason };
            proto::Message { term: 5, body: Some(proto::message::Body::RequestVote(request)) }
        };
        let expected = LogIndex(8);
        let cases = [
            (proto::Message { term: 0, ..vote(1) }, WireError::Zero { what: "the message's term" }),
            (
                proto::Message { term: u64::MAX, ..vote(1) },
                WireError::OutOfRange { what: "the message's term", value: u64::MAX },
            ),
            (proto::Message { term: 5, body: None }, WireError::Missing { what: "what the message says" }),
            (vote(9), WireError::UnknownNumber { what: "campaign reason", number: 9 }),
            (append(vec![entry(4, 9, 1)]), WireError::Gap { expected, found: 9 }),
            (append(vec![entry(4, 8, 77)]), WireError::UnknownNumber { what: "entry kind", number: 77 }),
            (append(vec![entry(0, 8, 1)]), WireError::Zero { what: "an entry's term" }),
            (
                append(vec![entry(2, 8, 1)]),
                WireError::TermOutOfOrder {
                    index: expected,
                    term: Term(2),
                    previous: Term(3),
                    newest: Term(5),
                },
            ),
            (
                append(vec![entry(6, 8, 1)]),
                WireError::TermOutOfOrder {
                    index: expected,
                    term: Term(6),
                    previous: Term(3),
                    newest: Term(5),
                },
            ),
        ];
        for (message, error) in cases {
            assert_eq!(message_from_wire(message, FROM, to()), Err(error));
        }
    }

    #[test]
    fn appended_entries_fill_the_buffer_that_they_share_and_none_keeps_the_one_it_came_in() {
        let received = Bytes::from(vec![7; 64 << 10]);
        let payloads = [0, 20, 64, 0, 5000].map(|length| received.slice(100..100 + length));
        let entry = |(index, payload): (u64, &Bytes)| {
            let kind = EntryKind::User.number().into();
            proto::Entry { term: 1, index, kind, payload: payload.clone() }
        };
        let entries = (1..).zip(&payloads).map(entry).collect();
        let entries = entries_from_wire(entries, LogPosition::ZERO, Term(1)).unwrap();
        let mut end = None;
        for (entry, payload) in entries.iter().zip(&payloads) {
            assert_eq!(entry.payload, payload);
            let range = entry.payload.as_ptr_range();
            if !payload.is_empty() {
                assert!(!received.as_ptr_range().contains(&range.start));
                assert_eq!(end.replace(range.end).unwrap_or(range.start), range.start, "there is a gap");
            }
        }
        drop((entries, payloads));
        assert!(received.is_unique());
        drop(owned(received.slice(..64)));
        let kept = owned(received.slice(..64));
        assert!(received.is_unique() && kept.is_unique());
    }

    #[test]
    fn a_large_append_is_split_into_parts_that_say_the_same() {
        let entry = |index| Entry {
            position: LogPosition::new(1, index),
            kind: EntryKind::User,
            payload: Bytes::from(vec![0; BATCH_BYTES as usize * 2 / 5]),
        };
        let entries: Vec<Entry> = (1..=7).map(entry).collect();
        let body = RaftMessageBody::Append {
            previous: LogPosition::ZERO,
            commit: LogIndex(3),
            entries: entries.clone(),
        };
        let mut rest = Some(RaftMessage { from: FROM, to: to(), term: Term(1), body });
        let mut joined = Vec::new();
        let mut last = LogPosition::ZERO;
        while let Some(message) = rest {
            let (first, after) = split_large(message);
            assert!(message_bytes_max(&first) <= BATCH_BYTES);
            let RaftMessageBody::Append { previous, commit, entries } = first.body else {
                panic!("no append")
            };
            assert_eq!((previous, commit), (last, LogIndex(3)));
            last = entries.last().unwrap().position;
            joined.extend(entries);
            rest = after;
        }
        assert_eq!(joined, entries);
    }

    #[test]
    fn an_identification_survives_the_wire() {
        let (node_id, cluster_id) = (to(), ClusterId(7));
        let members = Members::initial([raftify_core::Member::voter(node_id, "node-2:1")]).unwrap();
        let waits = Identification {
            node_id,
            address: "node-2:1".to_owned(),
            identity: None,
            members: Members::none(),
            leader_id: None,
            plan: Some(Plan { members: members.clone(), expect: 3, nonce: 5 }),
            agrees: false,
        };
        let belongs = Identification {
            identity: Some(Identity { cluster_id, node_id, incarnation: Incarnation(9) }),
            members,
            leader_id: Some(FROM),
            plan: None,
            agrees: true,
            ..waits.clone()
        };
        for (header, node) in [(header(None), waits), (header(Some(cluster_id)), belongs)] {
            let bytes = identification_to_wire(Some(header), node.clone()).encode_to_vec();
            let reply = proto::IdentifyReply::decode(bytes.as_slice()).unwrap();
            assert_eq!(identification_from_wire(reply), Ok(node));
        }
    }

    #[test]
    fn refusals_keep_their_type() {
        let refusal = DoorRefusal::Version { found: 9, known: WIRE_VERSION };
        assert_eq!(DoorRefusal::from_status(&refusal.clone().into()), Some(refusal));
        let error = ProposeError::Busy { waiting: 3 };
        assert_eq!(refusal_from_wire(&refusal_to_wire(&error)), Some(error));
        assert_eq!(DoorRefusal::from_status(&Status::internal("of somebody else")), None);
    }
}
