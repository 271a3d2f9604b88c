//! Leadership: won by election only, resigned, transferred to another voter, and lost.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::error::{CampaignError, DemoteError, TransferError};
use crate::machines::TransferWaiter;
use crate::members::{MemberRole, Members};
use crate::request::{ProposalReply, Responder};
use crate::status::PeerProgress;
use crate::types::{LogIndex, NodeId, Term};

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn campaign(&mut self, reply: Responder<(), CampaignError>) {
        reply.answer(if self.consensus.is_leader() {
            Err(CampaignError::AlreadyLeader)
        } else if !self.membership.members().is_voter(self.node.id()) {
            Err(CampaignError::NotAVoter)
        } else if !self.is_hearing() && self.consensus.campaign() {
            Ok(())
        } else {
            Err(CampaignError::NotReady)
        });
    }

    pub(super) fn demote(
        &mut self,
        asked: Term,
        successor: Option<NodeId>,
        reply: Responder<(), DemoteError>,
    ) {
        let term = self.consensus.term();
        if !self.consensus.is_leader() || term != asked {
            let role = self.consensus.role().to_string();
            return reply.answer(Err(DemoteError::NotLeaderInTerm { asked, term, role }));
        }
        match successor {
            Some(to) if to == self.node.id() => reply.answer(Err(TransferError::NoSuccessor.into())),
            Some(to) => self.transfer_leader(Some(to), TransferWaiter::Demote(reply)),
            None => {
                self.flush_batch();
                self.consensus.step_down();
                reply.answer(Ok(()));
            }
        }
    }

    // --- Transfer ---

    pub(super) fn transfer_leader(&mut self, to: Option<NodeId>, waiter: TransferWaiter) {
        if self.leadership.is_transferring() {
            return self.leadership.join_transfer(to, waiter);
        }
        if to == Some(self.node.id()) {
            return waiter.answer(Ok(self.node.id()));
        }
        let to = to.map_or_else(|| self.successor(self.membership.members()), Ok);
        match to.and_then(|to| self.begin_transfer(to)) {
            Ok(()) => self.leadership.join_transfer(None, waiter),
            Err(error) => waiter.answer(Err(error)),
        }
    }

    /// Begins to transfer leadership to the best successor that is still a voter `after` the change, unless a
    /// transfer is in progress. A node that also loses its vote by the change would only have to transfer
    /// leadership again.
    pub(super) fn transfer_before(&mut self, after: &Members) -> Result<(), TransferError> {
        if self.leadership.is_transferring() {
            return Ok(());
        }
        let to = self.successor(after)?;
        self.begin_transfer(to)
    }

    /// The most caught-up voter that is alive and is still a voter `after` a change; if possible, one with room
    /// on its disk.
    pub(super) fn successor(&self, after: &Members) -> Result<NodeId, TransferError> {
        let mut candidates = self.consensus.progress();
        let is_voter =
            |members: &Members, id| members.get(id).is_some_and(|member| member.role == MemberRole::Voter);
        candidates.retain(|peer| {
            peer.id != self.node.id()
                && is_voter(self.membership.members(), peer.id)
                && is_voter(after, peer.id)
                && self.is_alive(peer.id)
        });
        let has_room = |peer: &PeerProgress| !self.leadership.storage_room.is_peer_full(peer.id);
        if candidates.iter().any(has_room) {
            candidates.retain(has_room);
        }
        self.leadership.best_successor(&candidates)
    }

    pub(super) fn begin_transfer(&mut self, to: NodeId) -> Result<(), TransferError> {
        if self.membership.members().get(to).is_none_or(|member| member.role != MemberRole::Voter) {
            return Err(TransferError::NotAVoter { id: to });
        }
        if !self.is_alive(to) && !mutated!(TransfersToTheDead) {
            return Err(TransferError::Unreachable { id: to });
        }
        self.flush_batch();
        self.consensus.transfer_leader(to);
        if self.consensus.transferee() != Some(to) {
            return Err(TransferError::NotAVoter { id: to });
        }
        info!(node = %self.node.id(), %to, "transferring leadership");
        // raft-rs cancels the transfer after one election timeout; then a leader must be found.
        let deadline_ticks = self.node.deadline(self.node.config().election_timeout * 4);
        self.leadership.begin_transfer(to, deadline_ticks);
        Ok(())
    }

    // --- Changes of leadership ---

    /// Detects changes of leadership since the last call.
    pub(super) fn look_at_leadership(&mut self) {
        let leads = self.consensus.is_leader().then(|| self.consensus.term());
        if self.leadership.observe(leads) {
            self.reads.leadership_lost();
            self.membership.leadership_lost();
        }
        let (leader, transferee) = (self.consensus.leader(), self.consensus.transferee());
        let (own_id, now) = (self.node.id(), self.node.now());
        let Some(ended) = self.leadership.take_ended(own_id, leader, transferee, now) else { return };
        if let Err(error) = &ended.outcome {
            if self.consensus.is_leader() {
                self.note_failed_transfer(ended.to);
            }
            self.requests.transfer_failed(error);
        }
        ended.answer();
    }

    fn note_failed_transfer(&mut self, to: NodeId) {
        let pause_until_ticks = self.node.deadline(self.node.config().election_timeout * 4);
        let mut others = self.other_voters();
        others.retain(|other| self.is_alive(*other));
        self.leadership.note_failed(to, others.into_iter(), pause_until_ticks);
    }

    /// Steps down as a leader whose disk hangs: its heartbeats would keep it the leader, although it cannot
    /// make progress.
    pub(super) fn step_down_from_hung_disk(&mut self) {
        let limit = self.node.config().disk_stall_timeout;
        warn!(node = %self.node.id(), "stepped down: the disk has not finished a write for {limit:?}");
        self.flush_batch();
        self.consensus.step_down();
    }

    /// Whether the oldest write in progress has taken too long.
    pub(super) fn disk_hangs(&self) -> bool {
        if mutated!(HungDiskKeepsTheLeader) {
            return false;
        }
        let limit = self.node.ticks(self.node.config().disk_stall_timeout);
        self.pipeline.oldest_write_ticks().is_some_and(|issued| self.node.now() - issued > limit)
    }

    // --- A disk that is slower than those of the other nodes ---

    /// Called at every tick.
    pub(super) fn look_at_own_disk(&mut self) {
        let config = self.node.config();
        let tick_interval = config.tick_interval;
        let Some(patience) = config.slow_disk_patience.filter(|_| self.consensus.is_leader()) else {
            return self.leadership.own_disk.reset();
        };
        let (commit, durable) = (self.consensus.commit(), self.consensus.durable());
        let Some(late_by_ticks) =
            self.leadership.own_disk.tick(commit, durable, self.node.now(), patience, config)
        else {
            return;
        };
        let late_by = tick_interval.saturating_mul(u32::try_from(late_by_ticks).unwrap_or(u32::MAX));
        match self.transfer_before(&Arc::clone(self.membership.members())) {
            Ok(()) => warn!(
                node = %self.node.id(),
                "transfers leadership: for {patience:?}, this node's disk has been later than those of a majority, by \
                 about {late_by:?}"
            ),
            Err(error) => warn!(
                node = %self.node.id(),
                "this node leads, and its disk is later than those of a majority by about {late_by:?}; it cannot \
                 transfer leadership: {error}"
            ),
        }
    }

    /// A part of the log has become durable on this node; before, everything up to `commit` was durable on a
    /// majority.
    pub(super) fn has_become_durable(&mut self, commit: LogIndex) {
        if let Some(patience) = self.node.config().slow_disk_patience
            && self.consensus.is_leader()
        {
            let patience_ticks = self.node.ticks(patience);
            let (durable, now) = (self.consensus.durable(), self.node.now());
            self.leadership.own_disk.is_durable(durable, commit, now, patience_ticks);
        }
    }
}
