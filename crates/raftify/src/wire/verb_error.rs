//! The consequence of each kind of missing answer, for each verb that can be requested over the network.

use std::fmt::Display;
use std::time::Duration;

use raftify_core::error::{
    MembershipError, ProposeError, ReadError, StopReason, TransferError, UnknownOutcome,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The error of a verb that can be requested over the network: the consequence of each kind of missing answer.
pub(crate) trait VerbError:
    From<StopReason> + Display + Serialize + DeserializeOwned + Send + 'static
{
    /// Nothing happened: the node's queue is full.
    fn busy(waiting: u64) -> Self;
    /// Nothing happened: no node accepted the request.
    fn not_sent(reason: String) -> Self;
    /// The request was sent and no answer came back.
    fn lost(reason: String) -> Self;
    /// The request was sent and no answer came back in time.
    fn timed_out(after: Duration) -> Self;
    /// Why the answering node has stopped, if that is its answer.
    fn stopped(&self) -> Option<&StopReason>;
    /// The meaning of another node's answer on this node.
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

    /// Earlier versions also gave this answer for requests that they had accepted.
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
