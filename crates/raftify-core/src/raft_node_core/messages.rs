//! Messages of other nodes: whether this node accepts them, and how it handles them before they reach
//! consensus.

use tracing::{debug, warn};

use super::RaftNodeCore;
use crate::error::StopReason;
use crate::members::{Sender, SenderRefusal};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::request::ProposalReply;
use crate::types::{Identity, Incarnation, LogIndex, LogPosition, NodeId, Term};

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn take_messages(
        &mut self,
        sender: &Sender,
        receiver: Option<Incarnation>,
        messages: Vec<RaftMessage>,
    ) {
        if let Err(refusal) = self.check_sender(sender, receiver) {
            warn!(node = %self.node.id(), from = %sender.id, "refused messages: {refusal}");
            return;
        }
        self.hear_durable_state(sender, &messages);
        self.heard_of(sender);
        for message in messages {
            self.step(sender, message);
        }
    }

    /// Whether this node accepts messages of this sender. `receiver` is the incarnation of this node as far
    /// as the sender knows it.
    ///
    /// # Errors
    /// Why not: sending again does not help. The sender passes the reason to
    /// [`refused_by`](Self::refused_by).
    pub fn check_sender(
        &mut self,
        sender: &Sender,
        receiver: Option<Incarnation>,
    ) -> Result<(), SenderRefusal> {
        let Some(identity) = self.node.identity().filter(|_| !mutated!(IncarnationIsNotChecked)) else {
            return Ok(());
        };
        if let Err(refusal) = self.membership.members().check_sender(sender, receiver, &identity) {
            if let (SenderRefusal::SameId { .. }, true) =
                (&refusal, sender.incarnation == identity.incarnation)
            {
                self.on_duplicate_node(sender.started.found.starts, sender.started.run);
            }
            if let SenderRefusal::OtherReceiver { id, expected: known, actual: presented } = refusal {
                // This node may know none of the members that would refuse it with this error.
                self.must_stop(StopReason::Refused(SenderRefusal::Fenced { id, known, presented }));
            }
            return Err(refusal);
        }
        self.check_started(sender)?;
        // The node remembers only known members; otherwise any sender could fill its memory.
        if self.membership.members().get(sender.id).is_none_or(|member| member.incarnation.is_some()) {
            return Ok(());
        }
        // Until the incarnation of a member is replicated, the first one seen counts.
        let known = self.liveness.note_incarnation(sender.id, sender.incarnation);
        if known != sender.incarnation {
            return Err(SenderRefusal::Fenced { id: sender.id, known, presented: sender.incarnation });
        }
        Ok(())
    }

    /// The first node of a cluster has lost its disk and started another cluster, in which it is alone. It
    /// must not answer requests for the cluster that it has lost.
    pub(super) fn known_elsewhere(&mut self, known: Incarnation) {
        let is_alone =
            self.membership.members().len() == 1 && self.membership.members().get(self.node.id()).is_some();
        if let Some(Identity { incarnation: presented, .. }) = self.node.identity()
            && is_alone
        {
            let id = self.node.id();
            self.must_stop(StopReason::Refused(SenderRefusal::Fenced { id, known, presented }));
        }
    }

    fn step(&mut self, sender: &Sender, message: RaftMessage) {
        let from = sender.id;
        if self.node.identity().is_none() || message.from != from {
            return;
        }
        match message.body {
            // Its content is remembered already.
            RaftMessageBody::DurableState { .. } => return,
            RaftMessageBody::StorageFull => return self.hear_storage_full(from),
            RaftMessageBody::DuplicateNode { starts, run } => return self.on_duplicate_node(starts, run),
            // This node first asks the other nodes for their record of it.
            _ if self.is_hearing() => return,
            _ => {}
        }
        if let RaftMessageBody::Append { entries, .. } = &message.body
            && !entries.is_empty()
            && (self.delivery.unapplied_bytes() > self.node.config().unapplied_bytes_max
                || self.pipeline.unwritten_bytes() > self.node.config().uncommitted_bytes_max)
        {
            // The state machine or the disk is too far behind. The leader sends the message again.
            return;
        }
        if self.consensus.shows_a_loss(&message) {
            // Its votes may be lost as well: it must not continue as the same node.
            return self.must_stop(StopReason::Storage(
                "entries that this node had acknowledged are missing. An older copy of its directory was restored, or \
                 the disk lost what it had synced. Remove the node from the cluster and let it join again with an \
                 empty directory"
                    .to_owned(),
            ));
        }
        if let Some(missing) = self.consensus.shows_lost_writes(&message) {
            return self.writes_lost(from, message.term, missing);
        }
        if let RaftMessageBody::Reached { peers } = message.body {
            return self.told_of_reached(sender, peers);
        }
        self.teach_term(&message);
        let is_vote = matches!(
            message.body,
            RaftMessageBody::VoteResponse { .. } | RaftMessageBody::PreVoteResponse { .. }
        );
        match self.consensus.step(message) {
            Ok(()) => {}
            // The response to a candidacy that is over, or whose log is still being written, occurs in every
            // election.
            Err(reason) if is_vote => debug!(node = %self.node.id(), %from, "dropped a message: {reason}"),
            Err(reason) => warn!(node = %self.node.id(), %from, "dropped a message: {reason}"),
        }
    }

    /// A leader lacks committed entries: from now on, this node would serve other data than the other nodes.
    pub(super) fn writes_lost(&mut self, leader: NodeId, term: Term, missing: LogIndex) {
        let (node, commit) = (self.node.id(), self.consensus.commit());
        self.must_stop(StopReason::WritesLost { node, missing, commit, leader, term });
    }

    /// Tells the term to a candidate of an earlier term (figure 3.1 of the thesis). raft-rs does not answer
    /// it, and a node that does not know of its membership never asks for its vote: without pre-vote, it
    /// could lose every election. Sent as the response to a pre-vote, it is no vote against a later
    /// candidacy.
    fn teach_term(&mut self, message: &RaftMessage) {
        let term = self.consensus.term();
        if matches!(message.body, RaftMessageBody::RequestVote { .. }) && message.term < term {
            let body = RaftMessageBody::PreVoteResponse { granted: false, commit: LogPosition::ZERO };
            self.pipeline.next().send_after.push(RaftMessage {
                from: self.node.id(),
                to: message.from,
                term,
                body,
            });
        }
    }

    pub(super) fn heard_of(&mut self, sender: &Sender) {
        if self.membership.members().get(sender.id).is_some() {
            self.liveness.heard_from(sender.id, self.node.now());
        }
        self.lifecycle.retirement.spoken_to(sender.members_as_of);
    }

    pub(super) fn is_alive(&self, peer: NodeId) -> bool {
        self.liveness.is_alive(peer, self.node.now())
    }

    /// Another node refuses the messages of this node. If the only possible reason is that this node is no
    /// longer part of the cluster, it must stop: see [`stop_reason`](Self::stop_reason).
    pub fn refused_by(&mut self, by: NodeId, refusal: SenderRefusal) {
        let own_incarnation = self.node.incarnation();
        let reason = match &refusal {
            SenderRefusal::Fenced { id, presented, .. }
                if *id == self.node.id() && Some(*presented) == own_incarnation =>
            {
                StopReason::Refused(refusal)
            }
            SenderRefusal::RolledBack { id, run, .. } | SenderRefusal::StartedTwice { id, run, .. }
                if self.is_own_run(*id, *run) =>
            {
                StopReason::Refused(refusal)
            }
            // The refusal concerns an earlier run, or a copy.
            SenderRefusal::RolledBack { .. } | SenderRefusal::StartedTwice { .. } => return,
            SenderRefusal::NotAMember { id, as_of }
                if *id == self.node.id() && *as_of >= self.membership.members().as_of() =>
            {
                return self.told_of_removal(by, *as_of);
            }
            _ => {
                warn!(node = %self.node.id(), by = %by, "messages are refused: {refusal}");
                return;
            }
        };
        self.must_stop(reason);
    }
}
