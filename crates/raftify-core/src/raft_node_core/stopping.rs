//! An orderly end: hands leadership over, takes nothing new, and answers what it has taken.

use tracing::info;

use super::RaftNodeCore;
use crate::error::{StopReason, TransferError};
use crate::request::ProposalReply;

impl<R: ProposalReply> RaftNodeCore<R> {
    /// This node is to stop soon. A leader hands leadership to the most caught-up voter that is alive (thesis, section
    /// 3.10). From now on, the node [takes nothing new](Self::take_nothing_new). What it has taken before is answered as
    /// usual: the node goes on until [`is_ready_to_stop`](Self::is_ready_to_stop), or until its caller waits no longer.
    pub fn prepare_to_stop(&mut self) {
        self.take_nothing_new();
        if let Err(error) = self.hand_over_to_stop() {
            info!(node = %self.node_id, "stops as the leader: {error}");
        }
        if self.consensus.leader().is_none() && self.transfer.is_none() {
            // Others may find a leader earlier.
            self.refuse_what_waits_for_a_leader();
            for read in self.reads.take_all() {
                read.reply.answer(Err(StopReason::Stopping.into()));
            }
        }
    }

    /// From now on, requests of this node's user and of remote clients are refused with [`StopReason::Stopping`].
    pub fn take_nothing_new(&mut self) {
        self.is_stopping = true;
    }

    /// Whether this node, which is [to stop](Self::prepare_to_stop), has handed over leadership, unless there is no
    /// other voter to lead, and owes no answer.
    pub fn is_ready_to_stop(&self) -> bool {
        let is_needed = self.transfer.is_some()
            || (self.consensus.is_leader()
                && self.successor(&self.members).is_ok()
                && !mutated!(StopsWithoutTransfer));
        let owed = self.proposals.len() + self.batch.len() + self.membership.len() + self.parked.len();
        self.is_stopping
            && !is_needed
            && owed == 0
            && !self.membership_work.is_awaited()
            && self.reads.len() == 0
            && self.in_state_machine() >= self.answers_until
    }

    /// Also with every tick: a successor may not have taken over, or this node may have been elected since.
    pub(super) fn hand_over_to_stop(&mut self) -> Result<(), TransferError> {
        if !self.is_stopping
            || !self.consensus.is_leader()
            || self.transfer.is_some()
            || mutated!(StopsWithoutTransfer)
        {
            return Ok(());
        }
        let to = self.successor(&self.members)?;
        self.begin_transfer(to).map(drop)
    }
}
