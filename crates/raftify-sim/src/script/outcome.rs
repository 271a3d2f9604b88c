//! The results of requests.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use raftify_core::error::{MembershipError, ProposeError, StopReason};
use raftify_core::{LogPosition, Reservation, Responder};

use crate::reply::Reply;
use crate::store::Command;

/// The result of a request, once it is answered.
pub type Outcome<T> = Arc<Mutex<Option<T>>>;

pub(super) type Proposal = Outcome<Result<LogPosition, ProposeError>>;
pub(super) type Reserved = Outcome<Result<Reservation, MembershipError>>;

/// Of a request without an answer.
pub fn outcome<T>() -> Outcome<T> {
    Arc::new(Mutex::new(None))
}

/// `None` if there is no answer yet.
pub fn take<T: Clone>(outcome: &Outcome<T>) -> Option<T> {
    outcome.lock().clone()
}

pub(super) fn set<T: Debug>(outcome: &Outcome<T>, value: T) {
    let mut slot = outcome.lock();
    assert!(slot.is_none(), "answers: answered twice: {slot:?}, then {value:?}");
    *slot = Some(value);
}

/// The reply channel of a request. Its answer is the outcome.
pub fn responder<T, E>(outcome: &Outcome<Result<T, E>>) -> Responder<T, E>
where
    T: Debug + Send + 'static,
    E: Debug + From<StopReason> + Send + 'static,
{
    let outcome = Arc::clone(outcome);
    Responder::new(move |answer| set(&outcome, answer))
}

/// The reply channel of a proposal, as [`responder`].
pub fn reply_to(outcome: &Outcome<Result<LogPosition, ProposeError>>) -> Reply {
    let outcome = Arc::clone(outcome);
    Reply::new(move |answer| set(&outcome, answer.map(|(position, _)| position)))
}

/// An entry that the state machines can apply, for proposals that a test makes itself.
pub fn payload() -> Bytes {
    // The keys of `Cluster::propose` count from one.
    Command::Write { key: 0, value: 1 }.encode(0)
}
