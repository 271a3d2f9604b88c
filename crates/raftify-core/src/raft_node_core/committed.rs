//! What follows from committed entries: the membership changes here, the rest goes to the state machine's owner.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use super::membership::MembershipWaiter;
use crate::entry::{Entry, EntryKind};
use crate::error::{MembershipError, ProposeError, StopReason};
use crate::members::{MemberRecord, Members, MembershipChange};
use crate::request::{ProposalReply, Reservation};
use crate::turn::{Committed, StateKept};
use crate::types::LogIndex;

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Hands committed entries out in order, up to a membership change whose turn is not yet durable.
    pub(super) fn hand_out_committed(&mut self) {
        if self.snapshots.is_recording_installed() {
            // Its members are about to be in force: what comes before it is of no use any more.
            return;
        }
        let before = self.handed_out.index;
        let mut bytes = 0;
        while let Some((entry, turn)) = self.held.front() {
            let must_be_durable =
                entry.kind == EntryKind::MembershipChange && entry.position.index > self.members.as_of();
            let must_be_durable = must_be_durable && !mutated!(ChangeInForceBeforeDurable);
            if (must_be_durable && *turn > self.written) || self.stop_reason.is_some() {
                break;
            }
            if let Some((entry, _)) = self.held.pop_front() {
                bytes += entry.size_bytes();
                self.hand_out(entry);
            }
        }
        bytes += self.hand_out_beyond_durable();
        if self.handed_out.index > before {
            self.unapplied.push_back((self.handed_out.index, bytes));
            self.unapplied_bytes += bytes;
        }
    }

    /// Hands out what a majority has durably and this node's own disk does not have yet, if the state machine is in memory
    /// (thesis, section 10.2.1; `docs/decisions/0008`). Only what is a user's: what changes the members waits until raft-rs
    /// gives it out, and so does all that follows it. What raft-rs gives out later, and was handed out here, is skipped.
    /// The bytes of it.
    fn hand_out_beyond_durable(&mut self) -> u64 {
        let waits = self.state_kept == StateKept::OnDisk && !mutated!(OnDiskMachineGetsUnsynced);
        if waits || !self.held.is_empty() {
            return 0;
        }
        let mut bytes = 0;
        for entry in self.consensus.committed_beyond_durable(self.handed_out.index) {
            let is_plain = matches!(entry.kind, EntryKind::User | EntryKind::Empty);
            let is_plain = is_plain || mutated!(HandsOutChangesBeforeDurable);
            if !is_plain || self.stop_reason.is_some() {
                break;
            }
            bytes += entry.size_bytes();
            self.hand_out(entry);
        }
        bytes
    }

    fn hand_out(&mut self, entry: Entry) {
        let position = entry.position;
        self.snapshots.policy.count(&entry);
        let proposal = self.proposals.resolve(position);
        for reply in proposal.superseded {
            reply.refuse(ProposeError::NotApplied { index: position.index });
        }
        let membership = self.membership.resolve(position);
        for waiter in membership.superseded {
            waiter.refuse(MembershipError::NotApplied { index: position.index });
        }
        let waiter = membership.applied.unwrap_or(MembershipWaiter::Nobody);
        let outcome = match entry.kind {
            EntryKind::Empty => Ok(()),
            EntryKind::User => {
                let reply = proposal.applied;
                if reply.is_some() {
                    self.answers_until = position.index;
                }
                self.next.committed.push(Committed::User { position, payload: entry.payload, reply });
                self.handed_out = position;
                return;
            }
            EntryKind::MemberRecord => self.take_record(&entry, waiter),
            EntryKind::MembershipChange => self.take_change(&entry, waiter),
        };
        if let Err(reason) = outcome {
            // Skipping the entry would let this node go on with another membership than the others.
            self.must_stop(StopReason::Internal(format!("entry {position}: {reason}")));
            return;
        }
        self.handed_out = position;
        self.next.committed.push(if self.members.as_of() == position.index {
            Committed::Members { position, members: Arc::clone(&self.members) }
        } else {
            Committed::Nothing { position }
        });
    }

    /// Whether the membership includes the entry already: it was applied before the restart.
    fn is_included(&self, index: LogIndex) -> bool {
        index <= self.members.as_of() && !mutated!(ChangesApplyTwice)
    }

    fn take_record(&mut self, entry: &Entry, waiter: MembershipWaiter) -> Result<(), String> {
        let record = MemberRecord::decode(&entry.payload).map_err(|error| error.to_string())?;
        let index = entry.position.index;
        if self.is_included(index) {
            return Ok(());
        }
        let reserved = self.members.next_node_id();
        self.set_members(self.members.recorded(index, &record));
        self.recorded(&record);
        if let MembershipWaiter::Reservation(reply) = waiter {
            let members = Members::clone(&self.members);
            reply.answer(Ok(Reservation { node_id: reserved, leader: self.node_id, members }));
        }
        Ok(())
    }

    fn take_change(&mut self, entry: &Entry, waiter: MembershipWaiter) -> Result<(), String> {
        let change = MembershipChange::decode(&entry.payload).map_err(|error| error.to_string())?;
        let index = entry.position.index;
        if self.membership_work.pending_change == Some(index) {
            self.membership_work.pending_change = None;
        }
        if self.is_included(index) {
            return Ok(());
        }
        let members = match self.members.changed(index, &change) {
            Ok(members) => members,
            Err(refusal) => {
                // Every node refuses it alike, for the same reason.
                warn!(node = %self.node_id, at = %entry.position, "skipped a membership change: {refusal}");
                waiter.refuse(refusal.into());
                return Ok(());
            }
        };
        let in_force = self.consensus.apply_change(&change)?;
        if in_force != members.configuration() {
            return Err(format!("consensus uses {in_force:?}, the membership is {members:?}"));
        }
        let was_joint = self.members.is_joint();
        let was_member = self.members.get(self.node_id).is_some();
        self.set_members(members);
        info!(node = %self.node_id, at = %entry.position, "the membership changed: {change}");
        self.answer_change(&change, waiter);
        if was_joint && !self.members.is_joint() {
            self.answer_joint_left();
        }
        if mutated!(RemovedLeaderLeads) && self.consensus.is_leader() {
            return Ok(());
        }
        if was_member && self.members.get(self.node_id).is_none() {
            self.retire();
        } else if self.consensus.is_leader() && !self.members.is_voter(self.node_id) {
            // raft-rs would go on as a leader that has no vote, and take a single voter's consent to reads for granted.
            self.consensus.step_down();
        }
        Ok(())
    }

    fn set_members(&mut self, members: Members) {
        self.membership_work.members_change(&self.members, &members);
        self.next.write.members = Some(members.clone());
        self.members = Arc::new(members);
        self.come_back_if_member();
    }
}
