//! A disk that is almost full: this node takes no proposals, and does not stay the leader if another voter has
//! room.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::error::ProposeError;
use crate::message::{RaftMessage, RaftMessageBody};
use crate::request::ProposalReply;
use crate::types::{NodeId, Term};

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Whether the disk of this node has less free space than its
    /// [reserve](crate::Config::storage_reserve_bytes). While it has, a leader takes no proposals, and
    /// transfers its leadership to a voter that is caught up and has room.
    pub fn set_storage_full(&mut self, is_full: bool) {
        if !self.leadership.storage_room.set_full(is_full) {
            return;
        }
        if is_full {
            warn!(
                node = %self.node.id(),
                "the disk is almost full: this node takes no proposals while its free space is less than \
                 storage_reserve_bytes"
            );
            self.leave_full_disk_if_due();
        } else {
            info!(node = %self.node.id(), "the disk has room again: this node takes proposals");
        }
    }

    /// The members that are known to have no room on their disks, this node included.
    pub(super) fn full_storages(&self) -> Vec<NodeId> {
        let room = &self.leadership.storage_room;
        let own = self.node.id();
        let is_full = |id: NodeId| if id == own { room.is_full() } else { room.is_peer_full(id) };
        self.membership.members().iter().map(|member| member.id).filter(|id| is_full(*id)).collect()
    }

    /// A member has reported that its disk is full.
    pub(super) fn hear_storage_full(&mut self, peer: NodeId) {
        if self.membership.members().get(peer).is_some() {
            let until_ticks = self.node.deadline(self.node.config().election_timeout);
            self.leadership.storage_room.reported(peer, until_ticks);
        }
    }

    /// Called at every tick.
    pub(super) fn tick_storage_room(&mut self) {
        let (now, interval_ticks) = (self.node.now(), self.node.ticks(self.node.config().heartbeat_interval));
        let room = &mut self.leadership.storage_room;
        room.tick(now);
        let (from, term) = (self.node.id(), self.consensus.term());
        // No message is sent in term zero.
        if term > Term::ZERO && room.take_report_due(now, interval_ticks) {
            let others = self.membership.members().iter().map(|member| member.id).filter(|id| *id != from);
            let report = |to| RaftMessage { from, to, term, body: RaftMessageBody::StorageFull };
            // Not before the term is durable: a message shows it to the other nodes.
            self.pipeline.next().send_after.extend(others.map(report));
        }
        self.leave_full_disk_if_due();
    }

    /// Transfers leadership to a voter with room, if this node leads and has none.
    fn leave_full_disk_if_due(&mut self) {
        if !self.consensus.is_leader() || mutated!(FullDiskKeepsTheLeader) {
            return;
        }
        let pause_ticks = self.node.ticks(self.node.config().election_timeout * 4);
        if !self.leadership.storage_room.take_transfer_due(self.node.now(), pause_ticks) {
            return;
        }
        let members = Arc::clone(self.membership.members());
        let has_room = |id| !self.leadership.storage_room.is_peer_full(id);
        if self.successor(&members).is_ok_and(has_room) && self.transfer_before(&members).is_ok() {
            warn!(node = %self.node.id(), "transfers leadership to a node that has room on its disk");
        }
    }

    /// Why this leader takes no proposals, if disks are full.
    pub(super) fn check_storage_room(&self) -> Result<(), ProposeError> {
        let room = &self.leadership.storage_room;
        if room.all_have_room() {
            return Ok(());
        }
        let configuration = self.membership.members().configuration();
        match room.refuses(self.node.id(), &configuration) {
            Some(full) => Err(ProposeError::StorageFull { full }),
            None => Ok(()),
        }
    }
}
