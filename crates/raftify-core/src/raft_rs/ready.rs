//! The work that raft-rs requests, in our types.

use raft::eraftpb::{Message, MessageType};

use super::convert::{self, message_from_raft};
use crate::entry::Entry;
use crate::message::RaftMessage;
use crate::types::{LogIndex, LogPosition, NodeId, Term};

/// The `Ready` of raft-rs, translated.
#[derive(Default)]
pub(crate) struct ConsensusReady {
    pub(crate) number: u64,
    /// Whether term, vote or log changed, so that there is something to write.
    pub(crate) must_sync: bool,
    pub(crate) append: Vec<Entry>,
    /// The snapshot after which the log now starts.
    pub(crate) installed: Option<LogPosition>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) send_now: Vec<RaftMessage>,
    pub(crate) send_after: Vec<RaftMessage>,
    pub(crate) send_snapshots: Vec<(NodeId, Term, LogPosition)>,
    /// Rounds of reads that a quorum confirmed, each with the index to wait for.
    pub(crate) confirmed_reads: Vec<(u64, LogIndex)>,
}

/// Whether a message may leave before the write of its ready is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depends {
    OnNothing,
    OnTheWrite,
}

impl ConsensusReady {
    pub(super) fn take_message(&mut self, message: Message, depends: Depends) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            if let Some(to) = NodeId::new(message.to) {
                let position = convert::snapshot_position(message.get_snapshot());
                self.send_snapshots.push((to, Term(message.term), position));
            }
            return;
        }
        // `None`: a message that raft-rs forwards to the leader. The core forwards requests itself, so that
        // there are none.
        let Some(message) = message_from_raft(message) else {
            return;
        };
        match depends {
            Depends::OnNothing => self.send_now.push(message),
            Depends::OnTheWrite => self.send_after.push(message),
        }
    }
}
