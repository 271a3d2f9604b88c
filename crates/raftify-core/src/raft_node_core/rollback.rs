//! Which senders this node accepts after their start, and which members it must ask after its own start.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::durable_state::Started;
use crate::members::{Sender, SenderRefusal};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::remembered::Remembered;
use crate::request::ProposalReply;
use crate::status::Role;
use crate::storage::Write;
use crate::types::{Incarnation, NodeId, RunId, Term};

impl<R: ProposalReply> RaftNodeCore<R> {
    /// The identification of this node as a sender, once its start is durable. `None`: it must not send
    /// messages yet.
    pub fn sender(&self) -> Option<Sender> {
        let identity = self.node.identity()?;
        self.rollback_guard.is_start_counted(self.pipeline.written()).then(|| Sender {
            id: self.node.id(),
            incarnation: identity.incarnation,
            members_as_of: self.membership.members().as_of(),
            started: self.rollback_guard.own(),
        })
    }

    /// Counts this start, once, with the next turn. Starts are counted from the moment when the directory
    /// belongs to the node.
    pub(super) fn count_start(&mut self) {
        let remembered = self.rollback_guard.count_start(self.pipeline.next_number());
        self.pipeline.next().write.remembered = Some(remembered);
    }

    /// How this node was started, as it reports to others once that is durable.
    pub fn started(&self) -> Started {
        self.rollback_guard.own()
    }

    // --- Asking the other members ---

    /// After a start as a member: the node first asks the other members for their record of it.
    pub(super) fn begin_to_hear(&mut self) {
        if mutated!(VotesBeforeHearing) {
            return;
        }
        let others = self.membership.members().iter().map(|member| member.id);
        self.rollback_guard.begin_to_hear(others.filter(|id| *id != self.node.id()));
    }

    /// Whether this node still waits for the records that other members have of it. Until then it neither
    /// votes nor acknowledges entries.
    pub fn is_hearing(&self) -> bool {
        self.rollback_guard.is_hearing()
    }

    /// The record of the peer does not contradict this run of this node: it was asked with its
    /// [`sender`](Self::sender).
    pub fn peer_agrees(&mut self, peer: NodeId) {
        self.hear_from(peer);
    }

    /// The peer could not be asked, or does not answer.
    pub fn peer_is_silent(&mut self, peer: NodeId) {
        self.hear_from(peer);
    }

    fn hear_from(&mut self, peer: NodeId) {
        if self.rollback_guard.hear_from(peer) {
            self.campaign_if_alone();
        }
    }

    /// The node waits for members that do not answer no longer than for a leader.
    pub(super) fn tick_rollback_guard(&mut self) {
        let patience_ticks = self.node.ticks(self.node.config().election_timeout);
        if self.is_hearing() && self.node.now() >= patience_ticks {
            let silent: Vec<String> = self.rollback_guard.unheard().iter().map(NodeId::to_string).collect();
            info!(node = %self.node.id(), "continues without an answer from node {}", silent.join(", "));
            self.rollback_guard.stop_hearing();
            self.campaign_if_alone();
        }
        if self.membership.members().is_empty() || self.node.identity().is_none() {
            return;
        }
        self.report_durable_state_if_due();
        self.remember_if_due();
    }

    /// The leader learns from the responses how far a log reaches. All other members get periodic reports,
    /// and the log of the leader itself matters as well.
    fn report_durable_state_if_due(&mut self) {
        let interval_ticks = self.node.ticks(self.node.config().heartbeat_interval);
        if !self.rollback_guard.is_telling_due(self.node.now(), interval_ticks) {
            return;
        }
        let state = self.consensus.hard_state();
        let index = match self.consensus.role() {
            Role::Leader => self.consensus.durable(),
            _ => self.rollback_guard.acknowledged_in(state.term),
        };
        let Some(body) = self.rollback_guard.tell(&state, index, self.node.now()) else { return };
        let (from, term) = (self.node.id(), state.term);
        let others = self.membership.members().iter().map(|member| member.id).filter(|id| *id != from);
        let messages = others.map(|to| RaftMessage { from, to, term, body: body.clone() });
        self.pipeline.next().send_after.extend(messages);
    }

    // --- The record of starts ---

    fn remember_if_due(&mut self) {
        let now = self.node.now();
        if self.rollback_guard.is_writing_due(now, self.node.config()) {
            let members = self.membership.members();
            let remembered = self.rollback_guard.take_to_write(|id| members.get(id).is_some(), now);
            self.pipeline.next().write.remembered = Some(remembered);
        }
    }

    /// The part of the record that is not written yet, for a node that stops in order: to be written after
    /// all turns.
    pub fn last_write(&mut self) -> Option<Write> {
        let remembered = self.rollback_guard.take_last_write()?;
        Some(Write { remembered: Some(remembered), ..Write::default() })
    }

    /// Whether the start that a member reports is consistent with its earlier reports. If it is not, both
    /// runs are notified.
    pub(super) fn check_started(&mut self, sender: &Sender) -> Result<(), SenderRefusal> {
        let outcome = self.rollback_guard.check(sender);
        let is_alive = self.is_alive(sender.id);
        if outcome.is_err() && self.rollback_guard.note_refused(sender, is_alive) {
            let Started { run, found } = sender.started;
            let (from, term) = (self.node.id(), self.consensus.term().max(Term(1)));
            let body = RaftMessageBody::DuplicateNode { starts: found.starts, run };
            self.pipeline.next().send_now.push(RaftMessage { from, to: sender.id, term, body });
        }
        outcome
    }

    /// Another process has identified itself as this node.
    pub(super) fn on_duplicate_node(&self, starts: u64, run: RunId) {
        if run != self.rollback_guard.own().run {
            warn!(
                node = %self.node.id(),
                "another process was started as this node, on a copy of its directory (start {starts}, run {run}), and is \
                 refused: stop it"
            );
        }
    }

    /// Records the state that a member reports in accepted messages.
    pub(super) fn hear_durable_state(&mut self, sender: &Sender, messages: &[RaftMessage]) {
        if self.membership.members().get(sender.id).is_some() {
            self.rollback_guard.hear(sender, messages);
        }
    }

    /// Whether a refusal because of how `run` was started concerns this run of this node.
    pub(super) fn is_own_run(&self, id: NodeId, run: RunId) -> bool {
        id == self.node.id() && run == self.rollback_guard.own().run
    }

    /// The record of starts of this node.
    pub fn remembered(&self) -> &Arc<Remembered> {
        self.rollback_guard.remembered()
    }

    /// As [`check_sender`](Self::check_sender); the state that the sender reported at its start is recorded
    /// from now on.
    pub(super) fn admit(
        &mut self,
        sender: &Sender,
        receiver: Option<Incarnation>,
    ) -> Result<(), SenderRefusal> {
        self.check_sender(sender, receiver)?;
        self.hear_durable_state(sender, &[]);
        Ok(())
    }
}
