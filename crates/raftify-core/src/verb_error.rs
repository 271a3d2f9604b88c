//! What a missing answer means, for the error of each verb.

use std::fmt::{Debug, Display};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{
    CampaignError, DemoteError, JoinError, LeaderHint, MembershipError, ProposeError, ReadError,
    SnapshotError, StopReason, TransferError, UnknownOutcome,
};

/// Where a request may be sent after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again<'a> {
    /// Another attempt would not help, or could do harm.
    Never,
    /// A little later, to this or another node.
    Later,
    /// To this node, at once.
    At(&'a LeaderHint),
}

/// The error of a verb: what it means for this verb that a request was not served, or not answered.
///
/// The defaults say it through [`StopReason`], for a verb whose error has no variant for it: one that only
/// the node of its caller serves.
pub trait VerbError:
    From<StopReason> + PartialEq + Debug + Display + Serialize + DeserializeOwned + Send + 'static
{
    // --- Nothing happened ---

    /// The queue of the node is full. `None`: such requests are rare enough to wait for room.
    fn busy(_waiting: u64) -> Option<Self> {
        None
    }

    /// No leader is known.
    fn no_leader() -> Self {
        StopReason::Stopping.into()
    }

    /// The node does not lead, and may not forward the request.
    fn not_leader(_leader: LeaderHint) -> Self {
        Self::no_leader()
    }

    /// No node received the request.
    fn not_sent(_reason: String) -> Self {
        Self::no_leader()
    }

    /// The queue of another node is full. A verb whose requests wait for room cannot wait for it there.
    fn busy_there(waiting: u64) -> Self {
        let full = || format!("the queue there is full: {waiting} requests are waiting");
        Self::busy(waiting).unwrap_or_else(|| Self::lost(full()))
    }

    // --- The outcome is unknown ---

    /// The request was sent to another node, and the connection broke before the answer.
    fn lost(_reason: String) -> Self {
        Self::late(Duration::ZERO)
    }

    /// The request was sent to another node, which did not answer in time.
    fn timed_out(after: Duration) -> Self {
        Self::late(after)
    }

    /// The node of the caller has accepted the request and did not answer, although its own deadline has
    /// passed.
    fn late(within: Duration) -> Self {
        StopReason::NoAnswer(within).into()
    }

    // --- What an error says ---

    /// Whether and where the same request may be sent again: only if this error says that nothing happened.
    fn again(&self) -> Again<'_> {
        Again::Never
    }

    /// Whether no leader is known.
    fn is_no_leader(&self) -> bool {
        *self == Self::no_leader()
    }

    /// Whether nothing happened because the node does not lead, or knows no leader.
    fn leadership_moved(&self) -> bool {
        matches!(self.again(), Again::At(_)) || self.is_no_leader()
    }

    /// Why the node that gave this answer has stopped, if that is its answer.
    fn stopped(&self) -> Option<&StopReason> {
        None
    }

    /// The meaning of another node's answer on this node.
    fn of_another(self) -> Self {
        self
    }

    /// Fills in why the node has stopped: a request that is dropped with its queue carries no reason.
    fn explained(self, reason: impl FnOnce() -> StopReason) -> Self {
        if self == StopReason::Stopped.into() { reason().into() } else { self }
    }
}

/// A reason for which the error of every verb has an answer.
pub trait Refusal {
    /// The error of this verb.
    fn error<E: VerbError>(self) -> E;
}

impl VerbError for ProposeError {
    fn busy(waiting: u64) -> Option<Self> {
        Some(ProposeError::Busy { waiting })
    }

    fn no_leader() -> Self {
        ProposeError::NoLeader
    }

    fn not_leader(leader: LeaderHint) -> Self {
        ProposeError::NotLeader(leader)
    }

    fn lost(reason: String) -> Self {
        ProposeError::Unknown(UnknownOutcome::ConnectionLost(reason))
    }

    fn late(within: Duration) -> Self {
        ProposeError::Unknown(UnknownOutcome::TimedOut(within))
    }

    fn again(&self) -> Again<'_> {
        match self {
            ProposeError::NotLeader(leader) => Again::At(leader),
            ProposeError::NoLeader | ProposeError::Busy { .. } | ProposeError::NotApplied { .. } => {
                Again::Later
            }
            ProposeError::Stopped(reason) => reason.again(),
            _ => Again::Never,
        }
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            ProposeError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }

    /// Earlier versions also gave this answer for requests that they had accepted.
    fn of_another(self) -> Self {
        match self {
            ProposeError::Stopped(reason) if !reason.nothing_happened() => {
                ProposeError::Unknown(UnknownOutcome::NodeStopped(reason))
            }
            error => error,
        }
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
}

impl VerbError for MembershipError {
    fn busy(waiting: u64) -> Option<Self> {
        Some(MembershipError::Busy { waiting })
    }

    fn no_leader() -> Self {
        MembershipError::NoLeader
    }

    fn not_leader(leader: LeaderHint) -> Self {
        MembershipError::NotLeader(leader)
    }

    fn lost(reason: String) -> Self {
        MembershipError::Unknown(UnknownOutcome::ConnectionLost(reason))
    }

    fn late(within: Duration) -> Self {
        MembershipError::Unknown(UnknownOutcome::TimedOut(within))
    }

    fn again(&self) -> Again<'_> {
        match self {
            MembershipError::NotLeader(leader) => Again::At(leader),
            MembershipError::NoLeader
            | MembershipError::Busy { .. }
            | MembershipError::ChangePending
            | MembershipError::NotApplied { .. } => Again::Later,
            MembershipError::Stopped(reason) => reason.again(),
            _ => Again::Never,
        }
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            MembershipError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }
}

impl VerbError for TransferError {
    fn no_leader() -> Self {
        TransferError::NoLeader
    }

    fn not_leader(leader: LeaderHint) -> Self {
        TransferError::NotLeader(leader)
    }

    fn lost(reason: String) -> Self {
        TransferError::ConnectionLost(reason)
    }

    fn timed_out(after: Duration) -> Self {
        TransferError::ConnectionLost(format!("no answer within {} ms", after.as_millis()))
    }

    fn again(&self) -> Again<'_> {
        match self {
            TransferError::NotLeader(leader) => Again::At(leader),
            TransferError::NoLeader => Again::Later,
            TransferError::Stopped(reason) => reason.again(),
            _ => Again::Never,
        }
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            TransferError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }
}

/// A read changes nothing: it may always be tried again.
impl VerbError for ReadError {
    fn busy(waiting: u64) -> Option<Self> {
        Some(ReadError::Busy { waiting })
    }

    fn no_leader() -> Self {
        ReadError::NoLeader
    }

    fn not_leader(leader: LeaderHint) -> Self {
        ReadError::NotLeader(leader)
    }

    fn not_sent(reason: String) -> Self {
        ReadError::ConnectionLost(reason)
    }

    fn lost(reason: String) -> Self {
        ReadError::ConnectionLost(reason)
    }

    fn late(within: Duration) -> Self {
        ReadError::TimedOut(within)
    }

    fn again(&self) -> Again<'_> {
        match self {
            ReadError::NotLeader(leader) => Again::At(leader),
            _ => Again::Later,
        }
    }

    fn stopped(&self) -> Option<&StopReason> {
        match self {
            ReadError::Stopped(reason) => Some(reason),
            _ => None,
        }
    }
}

impl VerbError for SnapshotError {
    fn not_sent(reason: String) -> Self {
        SnapshotError::Failed(format!("the node was not asked: {reason}"))
    }

    fn busy_there(waiting: u64) -> Self {
        SnapshotError::Failed(format!("the queue of the node is full: {waiting} requests are waiting"))
    }

    fn lost(reason: String) -> Self {
        SnapshotError::Failed(format!("no answer of the node came, and it may still be written: {reason}"))
    }

    fn late(within: Duration) -> Self {
        SnapshotError::Failed(format!("it was not written within {} s; it may still be", within.as_secs()))
    }
}

impl VerbError for StopReason {
    fn again(&self) -> Again<'_> {
        if self.nothing_happened() { Again::Later } else { Again::Never }
    }

    fn stopped(&self) -> Option<&StopReason> {
        Some(self)
    }
}

impl VerbError for CampaignError {}
impl VerbError for DemoteError {}
impl VerbError for JoinError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn a_call_without_an_answer_in_time_reports_that_and_not_a_stopped_node() {
        let within = Duration::from_millis(250);
        let no_answer = StopReason::NoAnswer(within);
        assert_eq!(StopReason::late(within), no_answer);
        assert_eq!(TransferError::late(within), TransferError::Stopped(no_answer.clone()));
        let text = no_answer.to_string();
        assert!(text.starts_with("the node did not answer within 250 ms"), "{text}");
        assert!(!text.contains("stopped"), "{text}");
    }

    #[test]
    fn a_write_is_tried_again_only_after_an_error_that_says_that_nothing_happened() {
        let (after, reason) = (Duration::from_secs(1), || "reason".to_owned());
        let leader = LeaderHint { id: NodeId::FIRST, address: "localhost:1".to_owned() };
        let nothing_happened = [
            ProposeError::busy_there(7),
            ProposeError::no_leader(),
            ProposeError::not_leader(leader.clone()),
            ProposeError::not_sent(reason()),
            StopReason::Stopping.into(),
        ];
        for error in &nothing_happened {
            assert!(error.nothing_happened() && error.again() != Again::Never, "{error}");
        }
        assert_eq!(nothing_happened[2].again(), Again::At(&leader));
        let of_another = ProposeError::from(StopReason::Stopped).of_another();
        let late = ProposeError::late(after);
        for error in [ProposeError::lost(reason()), ProposeError::timed_out(after), late, of_another] {
            assert!(!error.nothing_happened() && error.again() == Again::Never, "{error}");
        }
        for error in [MembershipError::lost(reason()), MembershipError::timed_out(after)] {
            assert_eq!(error.again(), Again::Never, "{error}");
        }
        for error in [TransferError::lost(reason()), TransferError::timed_out(after)] {
            assert_eq!(error.again(), Again::Never, "{error}");
        }
    }
}
