//! How a node enters its cluster: it starts one, or waits for the leader of one.

use std::sync::Arc;

use super::RaftNodeCore;
use crate::error::{JoinError, StopReason};
use crate::members::Members;
use crate::raft_rs::LogStart;
use crate::request::{ProposalReply, Responder};
use crate::storage::{HardState, Write};
use crate::turn::Committed;
use crate::types::{Identity, LogPosition};

/// The term and the position at which every new cluster begins, as if the entry that created the first
/// members were there.
pub(super) const CLUSTER_START: LogPosition = LogPosition::new(1, 1);

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Applies an identity and a membership, at the start of the node and when a cluster is started.
    pub(super) fn begin(&mut self) {
        let Some(identity) = self.node.identity() else { return };
        self.liveness.set_own_incarnation(self.node.id(), identity.incarnation);
        let members = Arc::clone(self.membership.members());
        if members.is_empty() {
            return;
        }
        let (is_member, is_known) = (self.is_member(), members.knows(self.node.id()));
        // When this is applied, the snapshot of the start is restored, even if no entry follows it.
        let position = self.delivery.delivered();
        self.pipeline.next().committed.push(Committed::Members { position, members });
        if !is_member && (is_known || mutated!(NotYetMemberMeansRemoved)) {
            return self.retire();
        }
        if !self.is_hearing() {
            self.campaign_if_alone();
        }
    }

    /// A regular election; a single voter has no node to wait for.
    pub(super) fn campaign_if_alone(&mut self) {
        let members = self.membership.members();
        let voters = members.configuration().voters;
        let is_alone = voters.len() == 1 && voters.contains(&self.node.id()) && !members.is_joint();
        if is_alone || mutated!(LeadsByConfiguration) {
            self.consensus.campaign();
        }
    }

    pub(super) fn start_cluster(
        &mut self,
        identity: Identity,
        members: Members,
        reply: Responder<(), JoinError>,
    ) {
        match self.node.identity() {
            // With a log, the write of the membership that belongs to it is in progress.
            Some(stored)
                if !self.membership.members().is_empty() || self.consensus.last() != LogPosition::ZERO =>
            {
                return reply.answer(Err(JoinError::AlreadyMember { cluster_id: stored.cluster_id }));
            }
            Some(stored) if stored != identity => {
                return reply.answer(Err(JoinError::OtherIdentity { stored, asked: identity }));
            }
            _ => {}
        }
        // A node that awaited the cluster may have voted for another node that started it earlier.
        let HardState { term, vote, .. } = self.consensus.hard_state();
        let start = LogStart {
            hard_state: HardState { term: term.max(CLUSTER_START.term), vote, commit: CLUSTER_START.index },
            configuration: members.configuration(),
            truncated: CLUSTER_START,
            last: CLUSTER_START,
            term_starts: Vec::new(),
            applied: CLUSTER_START.index,
            tail: Vec::new(),
            snapshot: None,
        };
        let hard_state = start.hard_state;
        if let Err(reason) = self.consensus.restart(self.node.config(), start) {
            return reply.answer(Err(StopReason::Internal(reason).into()));
        }
        self.pipeline.forget_readies();
        self.membership.put_in_force(members.clone());
        self.delivery.begin_at(CLUSTER_START);
        self.pipeline.next().write = Write {
            identity: Some(identity),
            reset_log: Some(CLUSTER_START),
            hard_state: Some(hard_state),
            members: Some(members),
            ..Write::default()
        };
        self.take_identity(identity, reply);
    }

    pub(super) fn await_cluster(&mut self, identity: Identity, reply: Responder<(), JoinError>) {
        match self.node.identity() {
            // The write of the identity may be in progress.
            Some(stored) if stored == identity => self.node.confirm_identity(reply),
            Some(stored) => reply.answer(Err(JoinError::OtherIdentity { stored, asked: identity })),
            None => {
                self.pipeline.next().write.identity = Some(identity);
                self.take_identity(identity, reply);
            }
        }
    }

    fn take_identity(&mut self, identity: Identity, reply: Responder<(), JoinError>) {
        self.node.take_identity(identity, self.pipeline.next_number(), reply);
        self.count_start();
        self.begin();
    }
}
