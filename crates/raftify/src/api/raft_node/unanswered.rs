//! The consequence of an unanswered request, for each verb of a node's own user.

use std::time::Duration;

use raftify_core::error::{
    CampaignError, DemoteError, JoinError, MembershipError, ProposeError, ReadError, SnapshotError,
    StopReason, TransferError, UnknownOutcome,
};

/// The error for a caller whose request the raft loop does not accept or does not answer.
pub(crate) trait Unanswered: From<StopReason> + PartialEq + Send + 'static {
    /// The queue in front of the raft loop is full. `None`: such requests are rare enough to wait for a slot.
    fn busy(waiting: u64) -> Option<Self> {
        let _ = waiting;
        None
    }

    /// Whether nothing was done because the contacted node no longer leads, or no leader was found.
    fn leadership_moved(&self) -> bool {
        false
    }

    /// The error for an unknown leader, if the verb needs a leader.
    fn no_leader() -> Option<Self> {
        None
    }

    /// A request that was dropped with its queue carries no reason.
    fn explained(self, reason: impl FnOnce() -> StopReason) -> Self {
        if self == StopReason::Stopped.into() { reason().into() } else { self }
    }

    /// The core's own deadline has passed without an answer of the core.
    fn late(within: Duration) -> Self {
        StopReason::NoAnswer(within).into()
    }
}

impl Unanswered for ProposeError {
    fn leadership_moved(&self) -> bool {
        matches!(self, ProposeError::NotLeader(_) | ProposeError::NoLeader)
    }

    fn no_leader() -> Option<Self> {
        Some(ProposeError::NoLeader)
    }

    /// A request that was not accepted carries its own reason.
    fn explained(self, reason: impl FnOnce() -> StopReason) -> Self {
        match self {
            ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped)) => {
                ProposeError::Unknown(UnknownOutcome::NodeStopped(reason()))
            }
            error => error,
        }
    }

    fn busy(waiting: u64) -> Option<Self> {
        Some(ProposeError::Busy { waiting })
    }

    fn late(within: Duration) -> Self {
        ProposeError::Unknown(UnknownOutcome::TimedOut(within))
    }
}

impl Unanswered for ReadError {
    fn no_leader() -> Option<Self> {
        Some(ReadError::NoLeader)
    }

    fn busy(waiting: u64) -> Option<Self> {
        Some(ReadError::Busy { waiting })
    }

    fn late(within: Duration) -> Self {
        ReadError::TimedOut(within)
    }
}

impl Unanswered for MembershipError {
    fn leadership_moved(&self) -> bool {
        matches!(self, MembershipError::NotLeader(_) | MembershipError::NoLeader)
    }

    fn no_leader() -> Option<Self> {
        Some(MembershipError::NoLeader)
    }

    fn busy(waiting: u64) -> Option<Self> {
        Some(MembershipError::Busy { waiting })
    }

    fn late(within: Duration) -> Self {
        MembershipError::Unknown(UnknownOutcome::TimedOut(within))
    }
}

impl Unanswered for SnapshotError {
    fn late(within: Duration) -> Self {
        SnapshotError::Failed(format!("it was not written within {} s; it may still be", within.as_secs()))
    }
}

impl Unanswered for TransferError {
    fn leadership_moved(&self) -> bool {
        matches!(self, TransferError::NotLeader(_) | TransferError::NoLeader)
    }

    fn no_leader() -> Option<Self> {
        Some(TransferError::NoLeader)
    }
}

impl Unanswered for CampaignError {}
impl Unanswered for DemoteError {}
impl Unanswered for JoinError {}
impl Unanswered for StopReason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_no_answer_in_time_is_told_so_and_not_that_the_node_has_stopped() {
        let within = Duration::from_millis(250);
        let no_answer = StopReason::NoAnswer(within);
        assert_eq!(StopReason::late(within), no_answer);
        assert_eq!(TransferError::late(within), TransferError::Stopped(no_answer.clone()));
        let text = no_answer.to_string();
        assert!(text.starts_with("the node did not answer within 250 ms"), "{text}");
        assert!(!text.contains("stopped"), "{text}");
    }
}
