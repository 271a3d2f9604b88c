//! Snapshots: taken on this node, sent to followers, installed from a leader. The shell handles their data.
//! This module decides which snapshots are recorded, and when the log may be compacted.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::error::{InstallError, SnapshotError};
use crate::members::{Members, Sender};
use crate::request::{ProposalReply, Responder};
use crate::status::PeerProgress;
use crate::storage::SnapshotMeta;
use crate::turn::{Committed, SnapshotToSend};
use crate::types::{Incarnation, LogIndex, LogPosition, Term};

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn make_snapshot(&mut self, reply: Responder<LogPosition, SnapshotError>) {
        if self.membership.members().is_empty() {
            return reply.answer(Err(SnapshotError::NothingApplied));
        }
        self.snapshots.request(reply);
    }

    /// Requests a snapshot if the policy, the user or a follower wants one.
    pub(super) fn decide_on_snapshot(&mut self) {
        if self.snapshots.want(self.consensus.take_wants_snapshot()) {
            self.pipeline.next().hurry_snapshot = !mutated!(DueSnapshotIsNotHurried);
        }
        // While old entries are replayed after a start, the membership is ahead of the state machine.
        let members = self.membership.members();
        let members_fit = self.delivery.delivered().index >= members.as_of() && !members.is_empty();
        if members_fit && !self.lifecycle.must_stop() && self.snapshots.is_due(self.node.now()) {
            let reason = self.snapshots.begin(self.delivery.delivered(), self.node.now());
            self.pipeline.next().take_snapshot = reason;
        }
    }

    /// The snapshot requested with [`Turn::take_snapshot`](crate::Turn::take_snapshot) is durable in the
    /// snapshot store, or could not be taken, for the given reason.
    pub fn snapshot_taken(&mut self, outcome: Result<SnapshotMeta, String>) {
        if let Err(reason) = &outcome {
            warn!(node = %self.node.id(), "a snapshot could not be taken, the old one stays in use: {reason}");
        }
        let Some(snapshot) = self.snapshots.taken(outcome) else { return };
        let needed = self.needed_by_followers();
        let mut cut = self.snapshots.compact_to(snapshot.position.index, needed);
        if mutated!(LogWaitsForTheSlowest) {
            cut = self.consensus.progress().iter().map(|peer| peer.matched).min().unwrap_or(cut).min(cut);
        }
        let compact = (cut > self.consensus.truncated().index)
            .then(|| self.consensus.term_at(cut).map(|term| LogPosition { term, index: cut }))
            .flatten();
        let turn = self.pipeline.next_number();
        let write = &mut self.pipeline.next().write;
        write.snapshot = Some(snapshot.clone());
        write.compact = compact;
        // The stored commit index may lag behind. It must stay within the log when the log is compacted.
        write.hard_state = Some(self.consensus.hard_state());
        self.snapshots.record(turn, snapshot, compact);
    }

    /// The index after which the log of this leader must stay, so that no follower that can do without a
    /// snapshot needs one, and no follower that was sent a snapshot needs the next one.
    fn needed_by_followers(&self) -> Option<LogIndex> {
        let truncated = self.consensus.truncated().index;
        let has = |peer: &PeerProgress| match peer.matched >= truncated {
            true => peer.matched,
            // The follower has confirmed no entry yet of those that it was sent, or its snapshot has just
            // arrived.
            false => LogIndex(peer.next.0 - 1),
        };
        let progress = self.consensus.progress();
        let alive = progress.iter().filter(|peer| self.is_alive(peer.id)).map(has);
        let sent = self.snapshots.sending().iter().filter(|sent| sent.term == self.consensus.term());
        let sent = sent.map(|sent| sent.position.index);
        alive.filter(|index| *index >= truncated).chain(sent).min()
    }

    /// The outcome of a snapshot that a turn requested to send: installed, or the reason why not. Called
    /// exactly once for each.
    pub fn snapshot_sent(&mut self, sent: SnapshotToSend, outcome: Result<(), String>) {
        let to = sent.to;
        // raft-rs waits for the outcome of the last snapshot that it requested.
        let is_last = self.snapshots.sent(sent);
        if let Err(reason) = &outcome {
            warn!(node = %self.node.id(), %to, "a snapshot did not arrive: {reason}");
        }
        if mutated!(SnapshotOutcomeIsLost) {
            return;
        }
        let is_last = is_last || mutated!(EarlierOutcomeCounts);
        if is_last && sent.term == self.consensus.term() {
            self.consensus.report_snapshot(to, outcome.is_ok());
        }
    }

    /// The snapshots that must be kept: the newest, those that are being recorded, those that a slow state
    /// machine has yet to restore, and those in flight to a follower.
    pub fn snapshots_in_use(&self) -> Vec<LogPosition> {
        let sending = self.snapshots.sending().iter().map(|sending| sending.position);
        self.snapshots.kept().chain(self.delivery.restoring().iter().copied()).chain(sending).collect()
    }

    pub(super) fn install_snapshot(
        &mut self,
        sender: Sender,
        receiver: Option<Incarnation>,
        term: Term,
        snapshot: SnapshotMeta,
        reply: Responder<(), InstallError>,
    ) {
        let position = snapshot.position;
        let refused = |reason: &str| InstallError::Refused { position, reason: reason.to_owned() };
        if let Err(refusal) = self.admit(&sender, receiver) {
            return reply.answer(Err(refusal.into()));
        }
        if self.is_hearing() {
            return reply.answer(Err(refused("this node has yet to hear what the other members know of it")));
        }
        let Some(identity) = self.node.identity() else {
            return reply.answer(Err(refused("this node does not belong to a cluster yet")));
        };
        if snapshot.cluster_id != identity.cluster_id {
            return reply.answer(Err(refused("it is of another cluster")));
        }
        if self.snapshots.is_installing() {
            return reply.answer(Err(refused("another snapshot is being installed")));
        }
        if term < self.consensus.term() {
            let newer = self.consensus.term();
            return reply.answer(Err(InstallError::StaleLeader { term, newer }));
        }
        if let Some(missing) = self.consensus.snapshot_shows_lost_writes(term, position) {
            self.writes_lost(sender.id, term, missing);
            return reply.answer(Err(refused("this node knows of committed entries that are not in it")));
        }
        self.heard_of(&sender);
        let snapshot = match mutated!(SnapshotKeepsOldMembers) && !self.membership.members().is_empty() {
            true => SnapshotMeta { members: Members::clone(self.membership.members()), ..snapshot },
            false => snapshot,
        };
        match self.consensus.step_snapshot(sender.id, term, &snapshot) {
            Ok(true) => self.snapshots.install(snapshot, reply),
            // The log reaches that far already: the leader learns it from the Raft response.
            Ok(false) => reply.answer(Ok(())),
            Err(reason) => reply.answer(Err(refused(&reason.to_string()))),
        }
    }

    /// The log starts again after the snapshot that is being installed.
    pub(super) fn write_installed(&mut self, position: LogPosition) {
        let turn = self.pipeline.next_number();
        let Some((snapshot, superseded)) = self.snapshots.write_installed(position, turn) else { return };
        let write = &mut self.pipeline.next().write;
        write.reset_log = Some(position);
        write.members = Some(snapshot.members.clone());
        write.snapshot = Some(snapshot);
        write.compact = None;
        write.hard_state = Some(self.consensus.hard_state());
        if let Some(superseded) = superseded {
            info!(node = %self.node.id(), at = %superseded, "a snapshot taken here is superseded");
        }
    }

    /// Continues with snapshots whose turn has become durable.
    pub(super) fn snapshots_written(&mut self) {
        let written = self.pipeline.written();
        if let Some((snapshot, compact)) = self.snapshots.take_recorded(written) {
            info!(node = %self.node.id(), at = %snapshot.position, "snapshot taken");
            self.consensus.set_snapshot(snapshot.position, &snapshot.members);
            self.consensus.take_wants_snapshot();
            if let Some(position) = compact {
                self.consensus.compact(position);
            }
            self.snapshots.recorded(snapshot);
        }
        if let Some((snapshot, reply)) = self.snapshots.take_installed(written) {
            self.installed(snapshot);
            reply.answer(Ok(()));
        }
    }

    /// An installed snapshot is durable: its members are in force, and the state machine must restore it.
    /// Before that, this node must not refuse a removed node: after a crash, this node would return to a
    /// membership that needs the vote of the removed node.
    fn installed(&mut self, snapshot: SnapshotMeta) {
        let position = snapshot.position;
        info!(node = %self.node.id(), at = %position, "snapshot received");
        self.membership.put_in_force(snapshot.members.clone());
        self.lifecycle.retirement.members_changed(self.is_member());
        self.delivery.install(position);
        self.requests.cover(position);
        self.membership.cover(position);
        let members = Arc::clone(self.membership.members());
        let committed = &mut self.pipeline.next().committed;
        committed.push(Committed::Members { position, members });
        committed.push(Committed::Install { snapshot: Box::new(snapshot.clone()) });
        self.snapshots.installed(snapshot, self.node.now());
    }
}
