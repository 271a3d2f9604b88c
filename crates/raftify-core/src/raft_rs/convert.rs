//! Conversion between the types of raft-rs and ours.
//!
//! raft-rs has two types of entries; the kind of our entry is in the context of the raft-rs entry. raft-rs
//! needs its own encoding of a membership change only on the leader that proposes it; our encoding is in the
//! context as well, and only that is stored and sent.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry as RaftEntry,
    EntryType, HardState as RaftHardState, Message, MessageType, Snapshot,
};

use crate::entry::{Entry, EntryKind};
use crate::members::{Configuration, MemberChange, MemberRole, MembershipChange};
use crate::message::{CampaignReason, RaftMessage, RaftMessageBody};
use crate::storage::HardState;
use crate::types::{LogIndex, LogPosition, NodeId, Term};

const USER: &[u8] = &[EntryKind::User.number()];
const MEMBER_RECORD: &[u8] = &[EntryKind::MemberRecord.number()];

pub(super) fn entry_to_raft(entry: Entry) -> RaftEntry {
    let (term, index) = (entry.position.term.0, entry.position.index.0);
    let mut result = RaftEntry { term, index, ..RaftEntry::default() };
    result.set_entry_type(entry_type(entry.kind));
    match entry.kind {
        EntryKind::Empty => {}
        EntryKind::User => {
            result.data = entry.payload;
            result.context = Bytes::from_static(USER);
        }
        EntryKind::MemberRecord => {
            result.data = entry.payload;
            result.context = Bytes::from_static(MEMBER_RECORD);
        }
        EntryKind::MembershipChange => result.context = entry.payload,
    }
    result
}

pub(super) fn entry_of(kind: EntryKind, payload: Bytes) -> RaftEntry {
    entry_to_raft(Entry { position: LogPosition::ZERO, kind, payload })
}

/// The raft-rs type of an entry.
fn entry_type(kind: EntryKind) -> EntryType {
    match kind {
        EntryKind::MembershipChange => EntryType::EntryConfChangeV2,
        EntryKind::Empty | EntryKind::User | EntryKind::MemberRecord => EntryType::EntryNormal,
    }
}

pub(super) fn entry_from_raft(entry: RaftEntry) -> Entry {
    let position = LogPosition::new(entry.term, entry.index);
    let (kind, payload) = if entry.get_entry_type() != EntryType::EntryNormal {
        (EntryKind::MembershipChange, entry.context)
    } else if entry.context == USER {
        (EntryKind::User, entry.data)
    } else if entry.context == MEMBER_RECORD {
        (EntryKind::MemberRecord, entry.data)
    } else {
        (EntryKind::Empty, Bytes::new())
    };
    Entry { position, kind, payload }
}

pub(super) fn hard_state(state: &RaftHardState) -> HardState {
    HardState { term: Term(state.term), vote: NodeId::new(state.vote), commit: LogIndex(state.commit) }
}

pub(super) fn hard_state_to_raft(state: &HardState) -> RaftHardState {
    RaftHardState {
        term: state.term.0,
        vote: state.vote.map_or(0, NodeId::get),
        commit: state.commit.0,
        ..RaftHardState::default()
    }
}

pub(super) fn conf_state(configuration: &Configuration) -> ConfState {
    let ids = |set: &BTreeSet<NodeId>| set.iter().map(|id| id.get()).collect();
    ConfState {
        voters: ids(&configuration.voters),
        voters_outgoing: ids(&configuration.voters_outgoing),
        learners: ids(&configuration.learners),
        learners_next: ids(&configuration.learners_next),
        ..ConfState::default()
    }
}

pub(super) fn configuration(state: &ConfState) -> Configuration {
    let ids = |list: &[u64]| list.iter().copied().filter_map(NodeId::new).collect();
    Configuration {
        voters: ids(&state.voters),
        voters_outgoing: ids(&state.voters_outgoing),
        learners: ids(&state.learners),
        learners_next: ids(&state.learners_next),
    }
}

pub(super) fn snapshot_position(snapshot: &Snapshot) -> LogPosition {
    LogPosition::new(snapshot.get_metadata().term, snapshot.get_metadata().index)
}

pub(super) fn read_round(context: &[u8]) -> Option<u64> {
    context.try_into().ok().map(u64::from_be_bytes)
}

fn read_context(round: Option<u64>) -> Bytes {
    round.map_or_else(Bytes::new, |round| Bytes::copy_from_slice(&round.to_be_bytes()))
}

/// `None` for the kinds that raft-rs does not have.
pub(super) fn message_to_raft(message: RaftMessage) -> Option<Message> {
    let (from, to, term) = (message.from.get(), message.to.get(), message.term.0);
    let mut result = Message { from, to, term, ..Message::default() };
    let kind = match message.body {
        RaftMessageBody::Append { previous, commit, entries } => {
            result.index = previous.index.0;
            result.log_term = previous.term.0;
            result.commit = commit.0;
            result.entries = entries.into_iter().map(entry_to_raft).collect::<Vec<_>>().into();
            MessageType::MsgAppend
        }
        RaftMessageBody::AppendResponse { index, commit, rejection } => {
            result.index = index.0;
            result.commit = commit.0;
            if let Some(hint) = rejection
                && !mutated!(RejectionAcknowledges)
            {
                result.reject = true;
                result.reject_hint = hint.index.0;
                result.log_term = hint.term.0;
            }
            MessageType::MsgAppendResponse
        }
        RaftMessageBody::RequestVote { last, commit, reason } => {
            put_vote(&mut result, last, commit);
            if reason == CampaignReason::Transfer {
                result.context = Bytes::from_static(raft::CAMPAIGN_TRANSFER);
            }
            MessageType::MsgRequestVote
        }
        RaftMessageBody::RequestPreVote { last, commit } => {
            put_vote(&mut result, last, commit);
            MessageType::MsgRequestPreVote
        }
        RaftMessageBody::VoteResponse { granted, commit } => {
            put_vote_response(&mut result, granted, commit);
            MessageType::MsgRequestVoteResponse
        }
        RaftMessageBody::PreVoteResponse { granted, commit } => {
            put_vote_response(&mut result, granted, commit);
            MessageType::MsgRequestPreVoteResponse
        }
        RaftMessageBody::Heartbeat { commit, read_round } => {
            result.commit = commit.0;
            result.context = read_context(read_round);
            MessageType::MsgHeartbeat
        }
        RaftMessageBody::HeartbeatResponse { commit, read_round } => {
            result.commit = commit.0;
            result.context = read_context(read_round);
            MessageType::MsgHeartbeatResponse
        }
        RaftMessageBody::TimeoutNow => MessageType::MsgTimeoutNow,
        RaftMessageBody::Reached { .. }
        | RaftMessageBody::DurableState { .. }
        | RaftMessageBody::StorageFull
        | RaftMessageBody::DuplicateNode { .. } => {
            return None;
        }
    };
    result.set_msg_type(kind);
    Some(result)
}

fn put_vote(message: &mut Message, last: LogPosition, commit: LogPosition) {
    message.index = last.index.0;
    message.log_term = last.term.0;
    message.commit = commit.index.0;
    message.commit_term = commit.term.0;
}

fn put_vote_response(message: &mut Message, granted: bool, commit: LogPosition) {
    message.reject = !granted;
    message.commit = commit.index.0;
    message.commit_term = commit.term.0;
}

/// `None` for the kinds that are sent in another way or not at all.
pub(super) fn message_from_raft(mut message: Message) -> Option<RaftMessage> {
    let last = LogPosition::new(message.log_term, message.index);
    let commit = LogPosition::new(message.commit_term, message.commit);
    let body = match message.get_msg_type() {
        MessageType::MsgAppend => RaftMessageBody::Append {
            previous: last,
            commit: commit.index,
            entries: message.take_entries().into_iter().map(entry_from_raft).collect(),
        },
        MessageType::MsgAppendResponse => RaftMessageBody::AppendResponse {
            index: last.index,
            commit: commit.index,
            rejection: message.reject.then(|| LogPosition::new(message.log_term, message.reject_hint)),
        },
        MessageType::MsgRequestVote => {
            let transfer = message.context == raft::CAMPAIGN_TRANSFER;
            let reason = if transfer { CampaignReason::Transfer } else { CampaignReason::Timeout };
            RaftMessageBody::RequestVote { last, commit, reason }
        }
        MessageType::MsgRequestPreVote => RaftMessageBody::RequestPreVote { last, commit },
        MessageType::MsgRequestVoteResponse => {
            RaftMessageBody::VoteResponse { granted: !message.reject, commit }
        }
        MessageType::MsgRequestPreVoteResponse => {
            RaftMessageBody::PreVoteResponse { granted: !message.reject, commit }
        }
        MessageType::MsgHeartbeat => {
            RaftMessageBody::Heartbeat { commit: commit.index, read_round: read_round(&message.context) }
        }
        MessageType::MsgHeartbeatResponse => RaftMessageBody::HeartbeatResponse {
            commit: commit.index,
            read_round: read_round(&message.context),
        },
        MessageType::MsgTimeoutNow => RaftMessageBody::TimeoutNow,
        _ => return None,
    };
    Some(RaftMessage {
        from: NodeId::new(message.from)?,
        to: NodeId::new(message.to)?,
        term: Term(message.term),
        body,
    })
}

pub(super) fn conf_change(change: &MembershipChange) -> ConfChangeV2 {
    let mut result = ConfChangeV2::default();
    let MembershipChange::Steps { steps, .. } = change else {
        // An empty change leaves the joint configuration.
        return result;
    };
    if change.enters_joint() {
        // Explicit: the core decides when to leave, and every later leader decides in the same way.
        result.set_transition(ConfChangeTransition::Explicit);
    }
    for step in steps {
        let mut single = ConfChangeSingle::default();
        let (id, kind) = match step {
            MemberChange::Add(member) if member.role == MemberRole::Voter => {
                (member.id, ConfChangeType::AddNode)
            }
            MemberChange::Add(member) => (member.id, ConfChangeType::AddLearnerNode),
            MemberChange::SetRole { id, role: MemberRole::Voter } => (*id, ConfChangeType::AddNode),
            MemberChange::SetRole { id, .. } => (*id, ConfChangeType::AddLearnerNode),
            MemberChange::Remove(id) | MemberChange::ClearJoiner(id) => (*id, ConfChangeType::RemoveNode),
        };
        single.node_id = id.get();
        single.set_change_type(kind);
        result.changes.push(single);
    }
    result
}
