//! The messages of the Raft protocol, in our own types. Snapshots are sent separately, with their data.

use crate::entry::Entry;
use crate::types::{Incarnation, LogIndex, LogPosition, NodeId, RunId, Term};

/// One message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMessage {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The term of the message. Never zero.
    pub term: Term,
    /// The content.
    pub body: RaftMessageBody,
}

/// The content of a [`RaftMessage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftMessageBody {
    /// Leader: append these entries after `previous` (thesis, figure 3.1, AppendEntries).
    Append {
        /// The entry before the first of `entries`.
        previous: LogPosition,
        /// The leader's commit index.
        commit: LogIndex,
        /// May be empty.
        entries: Vec<Entry>,
    },
    /// Follower: the log agrees up to `index` and is durable up to there; with a rejection, it does not
    /// agree.
    AppendResponse {
        /// The last index that agrees; with a rejection, the index of the refused `previous`.
        index: LogIndex,
        /// The follower's commit index.
        commit: LogIndex,
        /// Where the leader should look for an agreeing entry next.
        rejection: Option<LogPosition>,
    },
    /// Candidate: vote for me (thesis, figure 3.1, RequestVote).
    RequestVote {
        /// The candidate's last entry.
        last: LogPosition,
        /// The last entry that the candidate knows to be committed.
        commit: LogPosition,
        /// Whether the leader asked for this election. If it did, no voter refuses because it still receives
        /// messages from the leader.
        reason: CampaignReason,
    },
    /// Before a candidacy: would you vote for me? (thesis, section 9.6)
    RequestPreVote {
        /// The last entry of the sender.
        last: LogPosition,
        /// The last entry that the sender knows to be committed.
        commit: LogPosition,
    },
    /// The answer to `RequestVote`.
    VoteResponse {
        /// Whether the vote was given.
        granted: bool,
        /// The last entry that the voter knows to be committed; zero with a granted vote.
        commit: LogPosition,
    },
    /// The answer to `RequestPreVote`.
    PreVoteResponse {
        /// Whether the vote would be given.
        granted: bool,
        /// The last entry that the voter knows to be committed; zero with a granted vote.
        commit: LogPosition,
    },
    /// Leader: it is still alive.
    Heartbeat {
        /// The commit index, at most the index up to which the leader knows the follower's log to agree.
        commit: LogIndex,
        /// The round of reads that waits for the response to this heartbeat (ReadIndex, thesis section 6.4).
        read_round: Option<u64>,
    },
    /// The answer to `Heartbeat`.
    HeartbeatResponse {
        /// The follower's commit index.
        commit: LogIndex,
        /// As in the heartbeat.
        read_round: Option<u64>,
    },
    /// Leader: start an election now, to become the leader (thesis, section 3.10).
    TimeoutNow,
    /// Voter to leader: the voter has reached these non-voting nodes at their advertised addresses, and these
    /// are their incarnations. Not a raft-rs message: the leader uses it to decide whether a joining node
    /// may vote.
    Reached {
        /// At most as many as there are members.
        peers: Vec<(NodeId, Incarnation)>,
    },
    /// To every other member, periodically: the state that is durable on this node in this term, so that the
    /// receiver can detect if this node loses it. Not a raft-rs message.
    DurableState {
        /// The node that the sender voted for.
        vote: Option<NodeId>,
        /// Up to here its log agrees with that of the leader of this term.
        index: LogIndex,
    },
    /// To every other member, periodically while it holds: the disk of the sender has less free space than its
    /// [reserve](crate::Config::storage_reserve_bytes). Not a raft-rs message.
    StorageFull,
    /// Another run of the receiver has sent a message to the sender, and was refused: a node was started on a
    /// copy of the receiver's directory. Not a raft-rs message.
    DuplicateNode {
        /// How many starts the other run counts.
        starts: u64,
        /// The id of the other run.
        run: RunId,
    },
}

/// Why a candidate asks for votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignReason {
    /// It received no message from a leader for an election timeout.
    Timeout,
    /// The leader transfers its leadership to this node.
    Transfer,
}
