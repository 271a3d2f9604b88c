//! What nodes tell each other to agree: Raft's messages in our own words. Snapshots travel apart, with their data.

use crate::entry::Entry;
use crate::types::{Incarnation, LogIndex, LogPosition, NodeId, RunId, Term};

/// One message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftMessage {
    /// Who says it.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// In which term. Never zero.
    pub term: Term,
    /// What is said.
    pub body: RaftMessageBody,
}

/// What a [`RaftMessage`] says.
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
    /// Follower: the log agrees up to `index` and is durable up to there; or, with a rejection, it does not agree.
    AppendResponse {
        /// The last index that agrees; with a rejection, the index of the refused `previous`.
        index: LogIndex,
        /// The follower's commit index.
        commit: LogIndex,
        /// Where the leader should look for agreement next.
        rejection: Option<LogPosition>,
    },
    /// Candidate: vote for me (thesis, figure 3.1, RequestVote).
    RequestVote {
        /// The candidate's last entry.
        last: LogPosition,
        /// What it knows to be committed.
        commit: LogPosition,
        /// Whether the leader asked for this election, so that nobody refuses because it still hears the leader.
        reason: CampaignReason,
    },
    /// Before a candidacy: would you vote for me? (thesis, section 9.6)
    RequestPreVote {
        /// The last entry of who asks.
        last: LogPosition,
        /// What it knows to be committed.
        commit: LogPosition,
    },
    /// The answer to `RequestVote`.
    VoteResponse {
        /// Whether the vote was given.
        granted: bool,
        /// What the voter knows to be committed; zero with a granted vote.
        commit: LogPosition,
    },
    /// The answer to `RequestPreVote`.
    PreVoteResponse {
        /// Whether the vote would be given.
        granted: bool,
        /// What the voter knows to be committed; zero with a granted vote.
        commit: LogPosition,
    },
    /// Leader: I am still here.
    Heartbeat {
        /// As far as the leader knows the follower's log to agree.
        commit: LogIndex,
        /// The round of reads that waits for this heartbeat's answer (ReadIndex, thesis section 6.4).
        read_round: Option<u64>,
    },
    /// The answer to `Heartbeat`.
    HeartbeatResponse {
        /// The follower's commit index.
        commit: LogIndex,
        /// As in the heartbeat.
        read_round: Option<u64>,
    },
    /// Leader: start an election now, you shall lead (thesis, section 3.10).
    TimeoutNow,
    /// Voter to leader: it has reached these nodes, which do not vote, at their advertised addresses, and they are these
    /// incarnations. Not of raft-rs: by this the leader decides whether a joining node may vote.
    Reached {
        /// At most as many as there are members.
        peers: Vec<(NodeId, Incarnation)>,
    },
    /// To every other member, now and then: what is durable here in this term, so that it is noticed if it is forgotten. Not
    /// of raft-rs.
    Standing {
        /// Whom the sender voted for.
        vote: Option<NodeId>,
        /// Up to where its log is that of the leader of this term.
        index: LogIndex,
    },
    /// Another run of the receiver has spoken to the sender, and was refused: a copy of its directory was started. Not of
    /// raft-rs.
    Twin {
        /// How many starts it counts.
        starts: u64,
        /// Which one.
        run: RunId,
    },
}

/// Why a candidate asks for votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignReason {
    /// It heard of no leader for an election timeout.
    Timeout,
    /// The leader transfers its leadership to it.
    Transfer,
}
