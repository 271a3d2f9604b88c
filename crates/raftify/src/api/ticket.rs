//! The ticket with which a node joins a cluster.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftify_core::{ClusterId, Member, MemberRole, NodeId};
use serde::{Deserialize, Serialize};

/// Permission to join a cluster under a reserved id. Plain data that can be passed on in any way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterJoinTicket {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The id under which the holder must be bootstrapped.
    pub reserved_id: NodeId,
    /// The address on which the holder will listen.
    pub raft_addr: String,
    /// The leader when the ticket was written.
    pub leader_id: NodeId,
    /// The address of the leader.
    pub leader_addr: String,
    /// The members when the ticket was written.
    pub peers: Vec<Member>,
    /// The address that was given to [`Raft::request_id`](crate::Raft::request_id), and answered: tried
    /// first.
    #[serde(default)]
    pub peer_addr: String,
    /// The role of the holder: a voter, or a learner that never votes until it is promoted.
    #[serde(default = "voter")]
    pub role: MemberRole,
    /// The Unix time, in seconds, from which on [`join_cluster`](crate::Raft::join_cluster) refuses the
    /// ticket: 24 hours after it was written, unless [`valid_for`](Self::valid_for) sets another time.
    /// Zero: never.
    #[serde(default)]
    pub expires_at: u64,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn voter() -> MemberRole {
    MemberRole::Voter
}

impl ClusterJoinTicket {
    /// How long a new ticket is valid.
    pub(super) const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

    /// The same ticket for a permanent learner.
    #[must_use]
    pub fn as_learner(self) -> ClusterJoinTicket {
        ClusterJoinTicket { role: MemberRole::Learner, ..self }
    }

    /// The same ticket, which expires this long from now.
    #[must_use]
    pub fn valid_for(self, time: Duration) -> ClusterJoinTicket {
        ClusterJoinTicket { expires_at: unix_seconds().saturating_add(time.as_secs()), ..self }
    }

    /// For how long the ticket has expired.
    pub(crate) fn expired_since(&self) -> Option<Duration> {
        let late = unix_seconds().checked_sub(self.expires_at)?;
        (self.expires_at != 0).then(|| Duration::from_secs(late))
    }
}
