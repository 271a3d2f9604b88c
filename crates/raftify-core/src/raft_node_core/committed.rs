//! Processes committed entries: membership changes are applied here, all others are delivered to the owner of
//! the state machine.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::entry::{Entry, EntryKind};
use crate::error::StopReason;
use crate::machines::MembershipWaiter;
use crate::members::{MemberRecord, Members, MembershipChange};
use crate::request::{ProposalReply, Reservation};
use crate::turn::Committed;
use crate::types::LogIndex;

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Delivers committed entries in order, up to a membership change whose turn is not yet durable.
    pub(super) fn deliver_committed(&mut self) {
        if self.snapshots.is_recording_installed() {
            // Its members are about to be in force: the entries before it are of no use any more.
            return;
        }
        let before = self.delivery.delivered().index;
        let mut bytes = 0;
        while let Some(entry) = self.take_deliverable() {
            bytes += entry.size_bytes();
            self.deliver(entry);
        }
        bytes += self.deliver_beyond_durable();
        self.delivery.count_unapplied(before, bytes);
    }

    fn take_deliverable(&mut self) -> Option<Entry> {
        let (pipeline, as_of) = (&self.pipeline, self.membership.members().as_of());
        let must_stop = self.lifecycle.must_stop();
        self.delivery.take_next(|entry, turn| {
            let must_be_durable = entry.kind == EntryKind::MembershipChange && entry.position.index > as_of;
            let must_be_durable = must_be_durable && !mutated!(ChangeInForceBeforeDurable);
            (!must_be_durable || pipeline.is_written(turn)) && !must_stop
        })
    }

    /// Delivers entries that are durable on a majority and not yet on the disk of this node, if the state
    /// machine is in memory (thesis, section 10.2.1; `docs/decisions/0008`). Only entries of users: a
    /// membership change, and every entry that follows it, waits until raft-rs returns it as committed.
    /// Entries that raft-rs returns later, and that were delivered here, are skipped. Returns the bytes
    /// of the delivered entries.
    fn deliver_beyond_durable(&mut self) -> u64 {
        if !self.delivery.may_go_beyond_durable() {
            return 0;
        }
        let mut bytes = 0;
        for entry in self.consensus.committed_beyond_durable(self.delivery.delivered().index) {
            let is_plain = matches!(entry.kind, EntryKind::User | EntryKind::Empty);
            let is_plain = is_plain || mutated!(DeliversChangesBeforeDurable);
            if !is_plain || self.lifecycle.must_stop() {
                break;
            }
            bytes += entry.size_bytes();
            self.deliver(entry);
        }
        bytes
    }

    fn deliver(&mut self, entry: Entry) {
        let position = entry.position;
        self.snapshots.count(&entry);
        let reply = self.requests.resolve(position);
        let waiter = self.membership.resolve(position);
        let outcome = match entry.kind {
            EntryKind::Empty => Ok(()),
            EntryKind::User => {
                self.delivery.deliver(position, reply.is_some());
                let user = Committed::User { position, payload: entry.payload, reply };
                self.pipeline.next().committed.push(user);
                return;
            }
            EntryKind::MemberRecord => self.take_record(&entry, waiter),
            EntryKind::MembershipChange => self.take_change(&entry, waiter),
        };
        if let Err(reason) = outcome {
            // If this node skipped the entry, it would continue with another membership than the other nodes.
            self.must_stop(StopReason::Internal(format!("entry {position}: {reason}")));
            return;
        }
        self.delivery.deliver(position, false);
        let members = self.membership.members();
        let committed = match members.as_of() == position.index {
            true => Committed::Members { position, members: Arc::clone(members) },
            false => Committed::Nothing { position },
        };
        self.pipeline.next().committed.push(committed);
    }

    /// Whether the membership includes the entry already, because it was applied before the restart.
    fn is_included(&self, index: LogIndex) -> bool {
        index <= self.membership.members().as_of() && !mutated!(ChangesApplyTwice)
    }

    fn take_record(&mut self, entry: &Entry, waiter: MembershipWaiter) -> Result<(), String> {
        let record = MemberRecord::decode(&entry.payload).map_err(|error| error.to_string())?;
        let index = entry.position.index;
        if self.is_included(index) {
            return Ok(());
        }
        let reserved = self.membership.members().next_node_id();
        self.put_in_force(self.membership.members().recorded(index, &record));
        self.membership.recorded(&record);
        if let MembershipWaiter::Reservation(reply) = waiter {
            let members = Members::clone(self.membership.members());
            reply.answer(Ok(Reservation { node_id: reserved, leader: self.node.id(), members }));
        }
        Ok(())
    }

    fn take_change(&mut self, entry: &Entry, waiter: MembershipWaiter) -> Result<(), String> {
        let change = MembershipChange::decode(&entry.payload).map_err(|error| error.to_string())?;
        let index = entry.position.index;
        self.membership.change_decided(index);
        if self.is_included(index) {
            return Ok(());
        }
        let members = match self.membership.members().changed(index, &change) {
            Ok(members) => members,
            Err(refusal) => {
                // Every node refuses it alike, for the same reason.
                warn!(node = %self.node.id(), at = %entry.position, "skipped a membership change: {refusal}");
                waiter.refuse(refusal.into());
                return Ok(());
            }
        };
        let in_force = self.consensus.apply_change(&change)?;
        if in_force != members.configuration() {
            return Err(format!("consensus uses {in_force:?}, the membership is {members:?}"));
        }
        let was_joint = self.membership.members().is_joint();
        let was_member = self.is_member();
        self.put_in_force(members);
        info!(node = %self.node.id(), at = %entry.position, "the membership changed: {change}");
        self.membership.answer_change(&change, waiter, self.membership_deadline());
        if was_joint && !self.membership.members().is_joint() {
            self.membership.answer_joint_left();
        }
        if mutated!(RemovedLeaderLeads) && self.consensus.is_leader() {
            return Ok(());
        }
        if was_member && !self.is_member() {
            self.retire();
        } else if self.consensus.is_leader() && !self.membership.members().is_voter(self.node.id()) {
            // raft-rs would remain a leader without a vote, and would take the consent of a single voter to
            // reads for granted.
            self.consensus.step_down();
        }
        Ok(())
    }

    fn put_in_force(&mut self, members: Members) {
        self.pipeline.next().write.members = Some(members.clone());
        self.membership.put_in_force(members);
        self.lifecycle.retirement.members_changed(self.is_member());
    }
}
