//! Snapshots: taken here, sent to followers, installed from a leader. The data is the shell's; what is recorded, and
//! when the log may be cut, is decided here.

use std::sync::Arc;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::config::CheckedConfig;
use crate::error::{InstallError, MembershipError, ProposeError, SnapshotError, StopReason, UnknownOutcome};
use crate::members::{Members, Sender};
use crate::request::{ProposalReply, Responder};
use crate::snapshot_policy::SnapshotPolicy;
use crate::status::PeerProgress;
use crate::storage::SnapshotMeta;
use crate::turn::{Committed, SnapshotReason, SnapshotToSend, TurnNumber};
use crate::types::{Incarnation, LogIndex, LogPosition, NodeId, Term};

/// The state of all snapshots of one node.
pub(super) struct Snapshots {
    pub(super) policy: SnapshotPolicy,
    /// The newest one that is recorded.
    recorded: Option<SnapshotMeta>,
    /// The state machine's owner is taking one, and why.
    taking: Option<SnapshotReason>,
    /// A follower needs one and there is none.
    wanted: bool,
    /// Who waits for one that is yet to begin.
    replies: Vec<Responder<LogPosition, SnapshotError>>,
    /// Who waits for the one that is being taken or recorded. Who asked later may know of more than is in it.
    replies_to_this: Vec<Responder<LogPosition, SnapshotError>>,
    /// Taken, and being recorded with this turn; the log is cut at the position.
    recording: Option<(TurnNumber, SnapshotMeta, Option<LogPosition>)>,
    /// Received from a leader, and being recorded.
    installing: Option<Installing>,
    /// Recorded, and handed to the state machine, which may not have restored them yet; first the one of the start.
    restoring: Vec<LogPosition>,
    /// On their way to followers.
    sending: Vec<SnapshotToSend>,
    /// How many were ever to be sent.
    attempts: u64,
}

struct Installing {
    /// The turn that records it, once it is known.
    turn: Option<TurnNumber>,
    snapshot: SnapshotMeta,
    reply: Responder<(), InstallError>,
}

impl Snapshots {
    pub(super) fn new(recorded: Option<SnapshotMeta>, config: &CheckedConfig) -> Snapshots {
        let position = recorded.as_ref().map(|snapshot| snapshot.position);
        let begin = position.map_or(LogIndex::ZERO, |position| position.index);
        Snapshots {
            policy: SnapshotPolicy::new(config, begin),
            recorded,
            taking: None,
            wanted: false,
            replies: Vec::new(),
            replies_to_this: Vec::new(),
            recording: None,
            installing: None,
            restoring: Vec::from_iter(position),
            sending: Vec::new(),
            attempts: 0,
        }
    }

    /// The state machine has applied everything up to `index`.
    pub(super) fn applied(&mut self, index: LogIndex) {
        self.restoring.retain(|position| position.index > index);
    }

    /// Whether the state machine has restored the snapshots up to `index`.
    pub(super) fn is_restored(&self, index: LogIndex) -> bool {
        self.restoring.iter().all(|position| position.index > index)
    }

    pub(super) fn newest(&self) -> Option<LogPosition> {
        self.recorded.as_ref().map(|snapshot| snapshot.position)
    }

    /// Whether the log begins after a snapshot that is not durable yet.
    pub(super) fn is_recording_installed(&self) -> bool {
        self.installing.as_ref().is_some_and(|installing| installing.turn.is_some())
    }

    pub(super) fn send(&mut self, (to, term, position): (NodeId, Term, LogPosition)) -> SnapshotToSend {
        self.attempts += 1;
        let send = SnapshotToSend { attempt: self.attempts, to, term, position };
        self.sending.push(send);
        send
    }

    /// The outcome of the one that was being taken.
    fn answer(&mut self, outcome: &Result<LogPosition, SnapshotError>) {
        for reply in self.replies_to_this.drain(..) {
            reply.answer(outcome.clone());
        }
    }

    /// The one that was being taken is of no use any more: who waits for it waits for the next.
    fn supersede(&mut self) {
        self.replies.append(&mut self.replies_to_this);
    }

    pub(super) fn stop(&mut self, reason: &StopReason) {
        self.replies_to_this.append(&mut self.replies);
        self.answer(&Err(reason.clone().into()));
        if let Some(installing) = self.installing.take() {
            installing.reply.answer(Err(reason.clone().into()));
        }
    }
}

impl<R: ProposalReply> RaftNodeCore<R> {
    pub(super) fn make_snapshot(&mut self, reply: Responder<LogPosition, SnapshotError>) {
        if self.members.is_empty() {
            return reply.answer(Err(SnapshotError::NothingApplied));
        }
        self.snapshots.replies.push(reply);
    }

    /// Asks for a snapshot where the policy, the user or a follower wants one.
    pub(super) fn decide_on_snapshot(&mut self) {
        self.snapshots.wanted |= self.consensus.take_wants_snapshot();
        if self.snapshots.wanted && self.snapshots.taking == Some(SnapshotReason::Due) {
            self.snapshots.taking = Some(SnapshotReason::Awaited);
            self.next.hurry_snapshot = !mutated!(DueSnapshotIsNotHurried);
        }
        let wanted = self.snapshots.wanted
            || self.snapshots.policy.is_due(self.now_ticks)
            || !self.snapshots.replies.is_empty();
        // While old entries are replayed after a start, the membership is ahead of the state machine.
        let members_fit = self.handed_out.index >= self.members.as_of();
        let busy = self.snapshots.taking.is_some()
            || self.snapshots.recording.is_some()
            || self.snapshots.installing.is_some();
        if !wanted || busy || !members_fit || self.members.is_empty() || self.stop_reason.is_some() {
            return;
        }
        let reason = match std::mem::take(&mut self.snapshots.wanted) {
            true => SnapshotReason::Awaited,
            false => SnapshotReason::Due,
        };
        self.snapshots.replies_to_this = std::mem::take(&mut self.snapshots.replies);
        if let Some(newest) = self.snapshots.newest()
            && newest == self.handed_out
        {
            return self.snapshots.answer(&Ok(newest));
        }
        self.snapshots.policy.begin(self.now_ticks);
        self.snapshots.taking = Some(reason);
        self.next.take_snapshot = Some(reason);
    }

    /// The snapshot asked for with [`Turn::take_snapshot`](crate::Turn::take_snapshot) is durable in the snapshot
    /// store, or could not be taken, for the reason given.
    pub fn snapshot_taken(&mut self, outcome: Result<SnapshotMeta, String>) {
        self.snapshots.taking = None;
        let snapshot = match outcome {
            Ok(snapshot) => snapshot,
            Err(reason) => {
                warn!(node = %self.node_id, "a snapshot could not be taken, the old one stays in use: {reason}");
                return self.snapshots.answer(&Err(SnapshotError::Failed(reason)));
            }
        };
        let installing = self.snapshots.installing.as_ref().map(|installing| installing.snapshot.position);
        if self
            .snapshots
            .newest()
            .max(installing)
            .is_some_and(|newest| newest.index >= snapshot.position.index)
        {
            // A newer one came from the leader meanwhile; who waits is answered once that one is recorded.
            return self.snapshots.supersede();
        }
        let needed = self.needed_by_followers();
        let mut cut = self.snapshots.policy.compact_to(snapshot.position.index, needed);
        if mutated!(LogWaitsForTheSlowest) {
            cut = self.consensus.progress().iter().map(|peer| peer.matched).min().unwrap_or(cut).min(cut);
        }
        let compact = (cut > self.consensus.truncated().index)
            .then(|| self.consensus.term_at(cut).map(|term| LogPosition { term, index: cut }))
            .flatten();
        self.next.write.snapshot = Some(snapshot.clone());
        self.next.write.compact = compact;
        // The stored commit index may lag behind. It must not fall out of the log when its beginning is cut off.
        self.next.write.hard_state = Some(self.consensus.hard_state());
        self.snapshots.recording = Some((self.next_turn(), snapshot, compact));
    }

    /// After which index this leader's log must stay, so that no follower that can do without a snapshot needs one, and
    /// none that has been sent one needs the next.
    fn needed_by_followers(&self) -> Option<LogIndex> {
        let truncated = self.consensus.truncated().index;
        let has = |peer: &PeerProgress| match peer.matched >= truncated {
            true => peer.matched,
            // It has confirmed nothing yet of what it was sent, or its snapshot has just arrived.
            false => LogIndex(peer.next.0 - 1),
        };
        let progress = self.consensus.progress();
        let alive = progress.iter().filter(|peer| self.is_alive(peer.id)).map(has);
        let sent = self.snapshots.sending.iter().filter(|sent| sent.term == self.consensus.term());
        let sent = sent.map(|sent| sent.position.index);
        alive.filter(|index| *index >= truncated).chain(sent).min()
    }

    /// The outcome of a snapshot that a turn asked to send: installed, or why not. Exactly once for each.
    pub fn snapshot_sent(&mut self, sent: SnapshotToSend, outcome: Result<(), String>) {
        let to = sent.to;
        self.snapshots.sending.retain(|other| *other != sent);
        if let Err(reason) = &outcome {
            warn!(node = %self.node_id, %to, "a snapshot did not arrive: {reason}");
        }
        // What raft-rs waits for is the outcome of the last one that it wanted sent.
        let is_last =
            !self.snapshots.sending.iter().any(|other| other.to == to && other.attempt > sent.attempt);
        if mutated!(SnapshotOutcomeIsLost) {
            return;
        }
        let is_last = is_last || mutated!(EarlierOutcomeCounts);
        if is_last && sent.term == self.consensus.term() {
            self.consensus.report_snapshot(to, outcome.is_ok());
        }
    }

    /// Which snapshots must be kept: the newest, those that are being recorded, those that a slow state machine has yet
    /// to restore, and those on their way to a follower.
    pub fn snapshots_in_use(&self) -> Vec<LogPosition> {
        let snapshots = &self.snapshots;
        let mut all: Vec<LogPosition> = snapshots.newest().into_iter().collect();
        all.extend(snapshots.recording.as_ref().map(|(_, snapshot, _)| snapshot.position));
        all.extend(snapshots.installing.as_ref().map(|installing| installing.snapshot.position));
        all.extend(&snapshots.restoring);
        all.extend(snapshots.sending.iter().map(|sending| sending.position));
        all
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
        let Some(identity) = self.identity else {
            return reply.answer(Err(refused("this node does not belong to a cluster yet")));
        };
        if snapshot.cluster_id != identity.cluster_id {
            return reply.answer(Err(refused("it is of another cluster")));
        }
        if self.snapshots.installing.is_some() {
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
        let snapshot = match mutated!(SnapshotKeepsOldMembers) && !self.members.is_empty() {
            true => SnapshotMeta { members: Members::clone(&self.members), ..snapshot },
            false => snapshot,
        };
        match self.consensus.step_snapshot(sender.id, term, &snapshot) {
            Ok(true) => self.snapshots.installing = Some(Installing { turn: None, snapshot, reply }),
            // The log reaches that far already: the leader learns it from the answer of raft.
            Ok(false) => reply.answer(Ok(())),
            Err(reason) => reply.answer(Err(refused(&reason.to_string()))),
        }
    }

    /// The ready that begins the log anew after the snapshot that is being installed.
    pub(super) fn write_installed(&mut self, position: LogPosition, turn: TurnNumber) {
        let Some(installing) = &mut self.snapshots.installing else {
            return;
        };
        debug_assert_eq!(installing.snapshot.position, position, "only one snapshot is installed at a time");
        installing.turn = Some(turn);
        let snapshot = installing.snapshot.clone();
        let write = &mut self.next.write;
        write.reset_log = Some(position);
        write.members = Some(snapshot.members.clone());
        write.snapshot = Some(snapshot);
        write.compact = None;
        write.hard_state = Some(self.consensus.hard_state());
        if let Some((_, superseded, _)) = self.snapshots.recording.take() {
            // Who waits for it is answered once the new one is recorded.
            self.snapshots.supersede();
            info!(node = %self.node_id, at = %superseded.position, "a snapshot taken here is superseded");
        }
    }

    /// Carries on with snapshots whose turn has become durable.
    pub(super) fn snapshots_written(&mut self) {
        let written = self.written;
        if let Some((_, snapshot, compact)) = self.snapshots.recording.take_if(|(turn, ..)| *turn <= written)
        {
            info!(node = %self.node_id, at = %snapshot.position, "snapshot taken");
            self.consensus.set_snapshot(snapshot.position, &snapshot.members);
            // What was asked for meanwhile was asked for because this one was not there: if it does not do, raft-rs asks
            // again.
            self.snapshots.wanted = false;
            self.consensus.take_wants_snapshot();
            if let Some(position) = compact {
                self.consensus.compact(position);
            }
            self.snapshots.answer(&Ok(snapshot.position));
            self.snapshots.recorded = Some(snapshot);
        }
        let is_written = |installing: &mut Installing| installing.turn.is_some_and(|turn| turn <= written);
        if let Some(installing) = self.snapshots.installing.take_if(is_written) {
            self.installed(installing.snapshot);
            installing.reply.answer(Ok(()));
        }
    }

    /// An installed snapshot is durable: its members are in force, and the state machine is to take it over. Before, who
    /// was removed must not be refused here: in a crash, this node would fall back to a membership that needs its vote.
    fn installed(&mut self, snapshot: SnapshotMeta) {
        let position = snapshot.position;
        info!(node = %self.node_id, at = %position, "snapshot received");
        self.membership_work.members_change(&self.members, &snapshot.members);
        self.members = Arc::new(snapshot.members.clone());
        self.come_back_if_member();
        self.held.retain(|(entry, _)| entry.position.index > position.index);
        for reply in self.proposals.take_covered(position.index) {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::CoveredBySnapshot));
        }
        for waiter in self.membership.take_covered(position.index) {
            waiter.refuse(MembershipError::Unknown(UnknownOutcome::CoveredBySnapshot));
        }
        if !self.members.is_joint() {
            self.answer_joint_left();
        }
        self.snapshots.policy.install(position.index, self.now_ticks);
        self.handed_out = position;
        self.snapshots.restoring.push(position);
        self.next
            .committed
            .push(Committed::Members { position, members: Arc::new(snapshot.members.clone()) });
        self.next.committed.push(Committed::Install { snapshot: Box::new(snapshot.clone()) });
        self.snapshots.recorded = Some(snapshot);
    }
}
