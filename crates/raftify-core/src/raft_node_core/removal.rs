//! After the removal of this node: whether the cluster still needs it.

use std::collections::BTreeSet;

use tracing::info;

use super::RaftNodeCore;
use super::cluster_start::CLUSTER_START;
use crate::error::StopReason;
use crate::message::{RaftMessage, RaftMessageBody};
use crate::request::ProposalReply;
use crate::types::{LogIndex, NodeId};

/// For this many election timeouts, a node that is refused as removed, and has no other information, waits
/// for voters that may need its vote. Such voters send it messages, because they campaign.
const REMOVAL_PATIENCE: u32 = 10;

impl<R: ProposalReply> RaftNodeCore<R> {
    /// This node is no longer a member. It neither leads nor campaigns, but answers until a majority of the
    /// members has the removal in force, and so the commit index that covers it is durable on them.
    /// Before that, members that restart may have returned to the old membership, and need the vote of
    /// this node to find out which entries are committed.
    pub(super) fn retire(&mut self) {
        info!(node = %self.node.id(), as_of = %self.membership.members().as_of(), "removed from the cluster");
        if self.consensus.is_leader() {
            // raft-rs would remain a leader that drops every proposal.
            self.consensus.step_down();
        }
        self.lifecycle.retirement.retire();
    }

    /// Whether the change that adds this node is still to come, in the log after its snapshot.
    fn is_yet_to_be_added(&self) -> bool {
        !self.lifecycle.retirement.is_retired() && !self.membership.members().knows(self.node.id())
    }

    /// A member refuses this node because it was removed.
    pub(super) fn told_of_removal(&mut self, by: NodeId, as_of: LogIndex) {
        self.lifecycle.retirement.told(by, as_of, self.node.now());
        self.stop_if_not_needed();
    }

    fn stop_if_not_needed(&mut self) {
        if !self.lifecycle.retirement.is_told() {
            return;
        }
        let patience_ticks = self.node.ticks(self.node.config().election_timeout * REMOVAL_PATIENCE);
        let not_needed = self.lifecycle.retirement.not_needed(
            &self.other_voters(),
            &self.liveness,
            self.is_yet_to_be_added(),
            self.node.now(),
            patience_ticks,
        );
        if let Some(as_of) = not_needed {
            self.must_stop(StopReason::Removed { as_of });
        }
    }

    pub(super) fn other_voters(&self) -> BTreeSet<NodeId> {
        let mut voters = self.membership.members().configuration().voters;
        voters.remove(&self.node.id());
        voters
    }

    /// Nodes that know of a removal send no messages to the removed node, and a learner that was removed
    /// while it was down does not campaign. Such a node sends a message that changes nothing, in order to
    /// be refused. The message has a term for which no node leaves its own.
    pub(super) fn ask_whether_still_needed(&mut self) {
        let members = self.membership.members();
        let is_forgotten = !members.is_voter(self.node.id())
            && !members.is_empty()
            && !members.iter().any(|member| self.is_alive(member.id));
        let retirement = &self.lifecycle.retirement;
        if !retirement.is_retired() && !retirement.is_told() && !is_forgotten {
            return;
        }
        self.stop_if_not_needed();
        let (from, term) = (self.node.id(), CLUSTER_START.term);
        let mut voters = self.other_voters();
        voters.retain(|voter| !self.lifecycle.retirement.was_told_by(*voter));
        self.pipeline.next().send_now.extend(voters.into_iter().map(|to| RaftMessage {
            from,
            to,
            term,
            body: RaftMessageBody::HeartbeatResponse { commit: LogIndex::ZERO, read_round: None },
        }));
    }
}
