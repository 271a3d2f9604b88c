//! The membership changes that have their own names, for the handle and for the remote client.

use std::time::Duration;

use raftify_core::error::MembershipError;
use raftify_core::members::{LeaveJoint, MembershipRefusal};
use raftify_core::{LogIndex, MemberChange, MemberRole, Members, MembershipChange, NodeId};
use tokio::time::{Instant, sleep};

/// The pause between two checks of whether a node is caught up.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn promotion(id: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Voter })
}

pub(crate) fn demotion(id: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Learner })
}

pub(crate) fn removal(id: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::Remove(id))
}

/// Whether a replacement was rejected because the new node votes already.
pub(crate) fn is_voter_already(error: &MembershipError, new: NodeId) -> bool {
    let role = MemberRole::Voter;
    *error == MembershipError::Refused(MembershipRefusal::HasRole { id: new, role })
}

pub(crate) fn replacement(old: NodeId, new: NodeId) -> MembershipChange {
    let promote = MemberChange::SetRole { id: new, role: MemberRole::Voter };
    MembershipChange::Steps {
        steps: vec![promote, MemberChange::Remove(old)],
        leave: LeaveJoint::Automatically,
    }
}

/// Attempts a replacement until the new node is caught up and reached, for as long as it makes progress.
pub(crate) async fn while_catching_up<E, Attempt: Future<Output = Result<Members, E>>>(
    patience: Duration,
    attempt: impl Fn() -> Attempt,
    answer: impl Fn(&E) -> Option<MembershipError>,
) -> Result<Members, E> {
    let mut reached = LogIndex::ZERO;
    let mut until = Instant::now() + patience;
    loop {
        let error = match attempt().await {
            Err(error) => error,
            done => return done,
        };
        match answer(&error) {
            Some(MembershipError::NotCaughtUp { matched, .. }) => {
                if matched > reached {
                    reached = matched;
                    until = Instant::now() + patience;
                }
            }
            Some(MembershipError::NotReached { .. }) => {}
            _ => return Err(error),
        }
        if Instant::now() >= until {
            return Err(error);
        }
        sleep(CATCH_UP_PAUSE).await;
    }
}
