//! The members in force, requests that change them, and the state of the members that is not replicated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{MembershipError, StopReason, UnknownOutcome};
use crate::machines::joiners::Joiners;
use crate::machines::pending_replies::PendingReplies;
use crate::machines::reached_peers::ReachedPeers;
use crate::members::{LeaveJoint, MemberRecord, Members, MembershipChange};
use crate::request::{Reservation, Responder};
use crate::types::{LogIndex, LogPosition, NodeId};

/// See the module.
pub(crate) struct Membership {
    members: Arc<Members>,
    /// Requests whose entry is in the log.
    pending: PendingReplies<MembershipWaiter>,
    /// The change that this leader has proposed and that is not yet in force.
    pending_change: Option<LogIndex>,
    /// Requests that wait for a joint configuration to be left, each with its deadline.
    awaiting_leave: Vec<(Responder<Members, MembershipError>, u64)>,
    recording: Recording,
    pub(crate) joiners: Joiners,
    pub(crate) reached: ReachedPeers,
    /// The tick since which this leader, before it promotes joining nodes, waits for the necessary voters to
    /// respond.
    promotes_since_ticks: Option<u64>,
}

/// Records that this leader has proposed.
#[derive(Default)]
struct Recording {
    incarnations: BTreeSet<NodeId>,
    addresses: BTreeSet<(NodeId, String)>,
}

/// The waiter for an entry about members.
#[derive(Debug)]
pub(crate) enum MembershipWaiter {
    Change(Responder<Members, MembershipError>),
    Reservation(Responder<Reservation, MembershipError>),
    /// The leader itself has proposed the entry.
    Leader,
}

impl MembershipWaiter {
    pub(crate) fn refuse(self, error: MembershipError) {
        match self {
            MembershipWaiter::Change(reply) => reply.answer(Err(error)),
            MembershipWaiter::Reservation(reply) => reply.answer(Err(error)),
            MembershipWaiter::Leader => {}
        }
    }
}

impl Membership {
    /// The membership when this node starts.
    pub(crate) fn new(members: Members) -> Membership {
        Membership {
            reached: ReachedPeers::new(members.as_of()),
            members: Arc::new(members),
            pending: PendingReplies::new(),
            pending_change: None,
            awaiting_leave: Vec::new(),
            recording: Recording::default(),
            joiners: Joiners::default(),
            promotes_since_ticks: None,
        }
    }

    // --- The members in force ---

    pub(crate) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// From now on, these members are in force.
    pub(crate) fn put_in_force(&mut self, members: Members) {
        for moved in self.reached.members_change(&self.members, &members) {
            self.joiners.forget_reached(moved);
        }
        self.members = Arc::new(members);
    }

    // --- Requests ---

    /// How many requests wait for their entry.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether a request waits for a joint configuration to be left.
    pub(crate) fn is_leave_awaited(&self) -> bool {
        !self.awaiting_leave.is_empty()
    }

    /// Whether a change that this leader has proposed is not yet in force, or a joint configuration must
    /// still be left.
    pub(crate) fn is_change_pending(&self) -> bool {
        self.pending_change.is_some() || self.members.must_leave_joint()
    }

    /// Whether a change that this leader has proposed is not yet in force.
    pub(crate) fn has_proposed_change(&self) -> bool {
        self.pending_change.is_some()
    }

    /// A change is in the log.
    pub(crate) fn change_proposed(
        &mut self,
        position: LogPosition,
        waiter: MembershipWaiter,
        deadline_ticks: u64,
    ) {
        self.pending_change = Some(position.index);
        self.pending.insert(position, waiter, deadline_ticks);
    }

    /// A record is in the log.
    pub(crate) fn record_proposed(
        &mut self,
        position: LogPosition,
        waiter: MembershipWaiter,
        deadline_ticks: u64,
    ) {
        self.pending.insert(position, waiter, deadline_ticks);
    }

    /// The entry at `position` is delivered. Returns the request that waits for exactly this entry, and
    /// refuses those that wait for another entry at this index.
    pub(crate) fn resolve(&mut self, position: LogPosition) -> MembershipWaiter {
        let resolved = self.pending.resolve(position);
        for waiter in resolved.superseded {
            waiter.refuse(MembershipError::NotApplied { index: position.index });
        }
        resolved.applied.unwrap_or(MembershipWaiter::Leader)
    }

    /// The change at `index` is decided: in force, or refused.
    pub(crate) fn change_decided(&mut self, index: LogIndex) {
        self.pending_change.take_if(|pending| *pending == index);
    }

    /// A change that is in force is answered with success: at once, or when its joint configuration is left.
    pub(crate) fn answer_change(
        &mut self,
        change: &MembershipChange,
        waiter: MembershipWaiter,
        deadline_ticks: u64,
    ) {
        let MembershipWaiter::Change(reply) = waiter else {
            return;
        };
        match change {
            MembershipChange::Steps { leave: LeaveJoint::Automatically, .. } if change.enters_joint() => {
                self.awaiting_leave.push((reply, deadline_ticks));
            }
            _ => reply.answer(Ok(Members::clone(&self.members))),
        }
    }

    /// The joint configuration was left.
    pub(crate) fn answer_joint_left(&mut self) {
        for (reply, _) in self.awaiting_leave.drain(..) {
            reply.answer(Ok(Members::clone(&self.members)));
        }
    }

    /// A snapshot covers everything up to `position`.
    pub(crate) fn cover(&mut self, position: LogPosition) {
        for waiter in self.pending.take_covered(position.index) {
            waiter.refuse(MembershipError::Unknown(UnknownOutcome::CoveredBySnapshot));
        }
        if !self.members.is_joint() {
            self.answer_joint_left();
        }
    }

    /// Answers requests whose deadline has passed.
    pub(crate) fn expire(&mut self, now_ticks: u64, timeout: Duration) {
        let late = MembershipError::Unknown(UnknownOutcome::TimedOut(timeout));
        for waiter in self.pending.take_expired(now_ticks) {
            waiter.refuse(late.clone());
        }
        for (reply, _) in self.awaiting_leave.extract_if(.., |(_, deadline)| *deadline <= now_ticks) {
            reply.answer(Err(late.clone()));
        }
    }

    pub(crate) fn stop(&mut self, reason: &StopReason) {
        for waiter in self.pending.take_all() {
            waiter.refuse(reason.clone().into());
        }
        for (reply, _) in self.awaiting_leave.drain(..) {
            reply.answer(Err(reason.clone().into()));
        }
    }

    // --- Automatic changes of a leader ---

    /// Whether this leader has proposed to record the incarnation of this node.
    pub(crate) fn records_incarnation(&self, id: NodeId) -> bool {
        self.recording.incarnations.contains(&id)
    }

    /// Whether this leader has proposed to record this address.
    pub(crate) fn records_address(&self, key: &(NodeId, String)) -> bool {
        self.recording.addresses.contains(key)
    }

    pub(crate) fn incarnation_proposed(&mut self, id: NodeId) {
        self.recording.incarnations.insert(id);
    }

    pub(crate) fn address_proposed(&mut self, key: (NodeId, String)) {
        self.recording.addresses.insert(key);
    }

    /// A record is in force: the same address may be proposed again.
    pub(crate) fn recorded(&mut self, record: &MemberRecord) {
        if let MemberRecord::Address { id, address, .. } = record {
            self.recording.addresses.remove(&(*id, address.clone()));
        }
    }

    /// The tick since which the considered promotion waits for voters: now, if it is new.
    pub(crate) fn promotes_since(&mut self, now_ticks: u64) -> u64 {
        *self.promotes_since_ticks.get_or_insert(now_ticks)
    }

    /// No promotion is considered any more.
    pub(crate) fn promotion_ends(&mut self) {
        self.promotes_since_ticks = None;
    }

    /// The state of a leader is of no use to a follower, or to the leader of another term.
    pub(crate) fn leadership_lost(&mut self) {
        self.promotes_since_ticks = None;
        self.pending_change = None;
        self.recording = Recording::default();
        self.joiners = Joiners::default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::members::{Member, MemberChange, MemberRole};

    fn members() -> Members {
        let member = |id: u64| Member::voter(NodeId::new(id).unwrap(), format!("node-{id}:1"));
        Members::initial([1, 2].map(member)).unwrap()
    }

    fn waiter() -> (MembershipWaiter, Receiver<Result<Members, MembershipError>>) {
        let (answered, answer) = mpsc::channel();
        let reply = Responder::new(move |outcome| answered.send(outcome).unwrap());
        (MembershipWaiter::Change(reply), answer)
    }

    fn two_steps() -> MembershipChange {
        let set = |id| MemberChange::SetRole { id: NodeId::new(id).unwrap(), role: MemberRole::Learner };
        MembershipChange::Steps { steps: vec![set(1), set(2)], leave: LeaveJoint::Automatically }
    }

    #[test]
    fn a_change_of_several_steps_is_answered_when_its_joint_configuration_is_left() {
        let mut membership = Membership::new(members());
        let (waiter, answer) = waiter();
        membership.answer_change(&two_steps(), waiter, 10);
        assert!(membership.is_leave_awaited() && answer.try_recv().is_err());
        membership.answer_joint_left();
        assert_eq!(answer.try_recv(), Ok(Ok(members())));
    }

    #[test]
    fn a_request_is_answered_once_whichever_of_its_waits_ends_late() {
        let timeout = Duration::from_secs(7);
        let late = MembershipError::Unknown(UnknownOutcome::TimedOut(timeout));
        let mut membership = Membership::new(members());
        let (in_the_log, first) = waiter();
        let (in_force, second) = waiter();
        membership.change_proposed(LogPosition::new(1, 2), in_the_log, 7);
        membership.answer_change(&two_steps(), in_force, 8);
        membership.expire(7, timeout);
        assert_eq!(first.try_recv(), Ok(Err(late.clone())));
        assert!(second.try_recv().is_err());
        membership.expire(8, timeout);
        assert_eq!(second.try_recv(), Ok(Err(late)));
        assert!(membership.is_change_pending(), "that it is late does not decide it");
        membership.change_decided(LogIndex(2));
        assert!(!membership.is_change_pending());
    }

    #[test]
    fn a_change_whose_place_was_taken_is_refused() {
        let mut membership = Membership::new(members());
        let (waiter, answer) = waiter();
        membership.change_proposed(LogPosition::new(1, 2), waiter, 7);
        assert!(matches!(membership.resolve(LogPosition::new(2, 2)), MembershipWaiter::Leader));
        assert_eq!(answer.try_recv(), Ok(Err(MembershipError::NotApplied { index: LogIndex(2) })));
    }
}
