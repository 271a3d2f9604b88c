//! Orderly shutdown: this node transfers leadership, accepts no new requests, and answers those that it has
//! accepted.

use tracing::info;

use super::RaftNodeCore;
use crate::error::{StopReason, TransferError};
use crate::request::ProposalReply;

impl<R: ProposalReply> RaftNodeCore<R> {
    /// This node will stop soon. A leader transfers leadership to the most caught-up voter that is alive
    /// (thesis, section 3.10). From now on, the node [accepts no new requests](Self::take_nothing_new).
    /// It answers requests that it has accepted before as usual: it continues until
    /// [`is_ready_to_stop`](Self::is_ready_to_stop), or until its caller no longer waits.
    pub fn prepare_to_stop(&mut self) {
        self.take_nothing_new();
        self.announce_commit();
        if let Err(error) = self.transfer_to_stop() {
            info!(node = %self.node.id(), "stops as the leader: {error}");
        }
        if self.consensus.leader().is_none() && !self.leadership.is_transferring() {
            // Other nodes may find a leader earlier.
            self.requests.refuse_what_waits_for_a_leader();
            for read in self.reads.take_all() {
                read.reply.answer(Err(StopReason::Stopping.into()));
            }
        }
    }

    /// From now on, requests of the user of this node and of remote clients are refused with
    /// [`StopReason::Stopping`].
    pub fn take_nothing_new(&mut self) {
        self.lifecycle.take_nothing_new();
    }

    /// Whether this node, which is [preparing to stop](Self::prepare_to_stop), has transferred leadership,
    /// unless there is no other voter to lead, and has answered every request.
    pub fn is_ready_to_stop(&self) -> bool {
        let is_needed = self.leadership.is_transferring()
            || (self.consensus.is_leader()
                && self.successor(self.membership.members()).is_ok()
                && !mutated!(StopsWithoutTransfer));
        self.lifecycle.is_stopping()
            && !is_needed
            && self.requests.len() == 0
            && self.membership.pending() == 0
            && !self.membership.is_leave_awaited()
            && self.reads.len() == 0
            && self.delivery.is_answered()
    }

    /// Also called at every tick: a successor may not have taken over, or this node may have been elected
    /// since.
    pub(super) fn transfer_to_stop(&mut self) -> Result<(), TransferError> {
        if !self.lifecycle.is_stopping()
            || !self.consensus.is_leader()
            || self.leadership.is_transferring()
            || mutated!(StopsWithoutTransfer)
        {
            return Ok(());
        }
        let to = self.successor(self.membership.members())?;
        self.begin_transfer(to)
    }
}
