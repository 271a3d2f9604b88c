//! The snapshots of one node: taken on this node, installed from a leader, sent to followers. It tracks which
//! snapshot is recorded, and which requests wait for which snapshot.

use crate::config::CheckedConfig;
use crate::entry::Entry;
use crate::error::{InstallError, SnapshotError, StopReason};
use crate::machines::snapshot_policy::SnapshotPolicy;
use crate::request::Responder;
use crate::storage::SnapshotMeta;
use crate::turn::{SnapshotReason, SnapshotToSend, TurnNumber};
use crate::types::{LogIndex, LogPosition, NodeId, Term};

/// See the module.
pub(crate) struct Snapshots {
    policy: SnapshotPolicy,
    /// The newest recorded snapshot.
    recorded: Option<SnapshotMeta>,
    /// The owner of the state machine is taking a snapshot, for this reason.
    taking: Option<SnapshotReason>,
    /// A follower needs a snapshot and there is none.
    wanted: bool,
    /// Requests for the next snapshot, which has not begun.
    replies: Vec<Responder<LogPosition, SnapshotError>>,
    /// Requests for the snapshot that is being taken or recorded. A later request may know of entries that
    /// are not in it.
    replies_to_this: Vec<Responder<LogPosition, SnapshotError>>,
    /// Taken, and being recorded.
    recording: Option<Recording>,
    /// Received from a leader, and being recorded.
    installing: Option<Installing>,
    /// In flight to followers.
    sending: Vec<SnapshotToSend>,
    /// How many transfers were requested in total.
    attempts: u64,
}

struct Recording {
    turn: TurnNumber,
    snapshot: SnapshotMeta,
    /// Where the log is compacted once the snapshot is recorded.
    compact: Option<LogPosition>,
}

struct Installing {
    /// The turn that records it, once it is known.
    turn: Option<TurnNumber>,
    snapshot: SnapshotMeta,
    reply: Responder<(), InstallError>,
}

impl Snapshots {
    pub(crate) fn new(recorded: Option<SnapshotMeta>, config: &CheckedConfig) -> Snapshots {
        let begin = recorded.as_ref().map_or(LogIndex::ZERO, |snapshot| snapshot.position.index);
        Snapshots {
            policy: SnapshotPolicy::new(config, begin),
            recorded,
            taking: None,
            wanted: false,
            replies: Vec::new(),
            replies_to_this: Vec::new(),
            recording: None,
            installing: None,
            sending: Vec::new(),
            attempts: 0,
        }
    }

    /// The newest recorded snapshot.
    pub(crate) fn newest(&self) -> Option<LogPosition> {
        self.recorded.as_ref().map(|snapshot| snapshot.position)
    }

    /// The snapshots that are recorded or being recorded.
    pub(crate) fn kept(&self) -> impl Iterator<Item = LogPosition> {
        let recording = self.recording.as_ref().map(|recording| recording.snapshot.position);
        let installing = self.installing.as_ref().map(|installing| installing.snapshot.position);
        [self.newest(), recording, installing].into_iter().flatten()
    }

    // --- Taking a snapshot ---

    /// The entry is delivered to the state machine.
    pub(crate) fn count(&mut self, entry: &Entry) {
        self.policy.count(entry);
    }

    /// A user asks for a snapshot.
    pub(crate) fn request(&mut self, reply: Responder<LogPosition, SnapshotError>) {
        self.replies.push(reply);
    }

    /// Whether a follower needs a snapshot. Returns whether the one that is being taken must be taken faster
    /// from now on.
    pub(crate) fn want(&mut self, is_wanted: bool) -> bool {
        self.wanted |= is_wanted;
        let hurries = self.wanted && self.taking == Some(SnapshotReason::Due);
        if hurries {
            self.taking = Some(SnapshotReason::Awaited);
        }
        hurries
    }

    /// The bytes of the entries since the newest snapshot began.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.policy.bytes()
    }

    /// Whether the policy, a user or a follower wants a snapshot, and none is being taken, recorded or
    /// installed.
    pub(crate) fn is_due(&self, now_ticks: u64) -> bool {
        let is_busy = self.taking.is_some() || self.recording.is_some() || self.installing.is_some();
        (self.wanted || self.policy.is_due(now_ticks) || !self.replies.is_empty()) && !is_busy
    }

    /// Begins a snapshot of the state at `delivered` for the waiting requests, unless the newest one is of
    /// that state already.
    pub(crate) fn begin(&mut self, delivered: LogPosition, now_ticks: u64) -> Option<SnapshotReason> {
        let reason = match std::mem::take(&mut self.wanted) {
            true => SnapshotReason::Awaited,
            false => SnapshotReason::Due,
        };
        self.replies_to_this = std::mem::take(&mut self.replies);
        if self.newest() == Some(delivered) {
            self.answer(&Ok(delivered));
            return None;
        }
        self.policy.begin(now_ticks);
        self.taking = Some(reason);
        Some(reason)
    }

    /// The snapshot that was being taken is durable in the snapshot store, or could not be taken. Returns
    /// `None` if it is not to be recorded.
    pub(crate) fn taken(&mut self, outcome: Result<SnapshotMeta, String>) -> Option<SnapshotMeta> {
        self.taking = None;
        match outcome {
            Ok(snapshot) => {
                let installing = self.installing.as_ref().map(|installing| installing.snapshot.position);
                let newest = self.newest().max(installing);
                if newest.is_some_and(|newest| newest.index >= snapshot.position.index) {
                    // A newer snapshot arrived from the leader meanwhile.
                    self.supersede();
                    return None;
                }
                Some(snapshot)
            }
            Err(reason) => {
                self.answer(&Err(SnapshotError::Failed(reason)));
                None
            }
        }
    }

    /// How far the log may be compacted once a snapshot at `snapshot` is recorded: see
    /// [`SnapshotPolicy::compact_to`].
    pub(crate) fn compact_to(&self, snapshot: LogIndex, needed: Option<LogIndex>) -> LogIndex {
        self.policy.compact_to(snapshot, needed)
    }

    /// `turn` records the snapshot, and compacts the log.
    pub(crate) fn record(&mut self, turn: TurnNumber, snapshot: SnapshotMeta, compact: Option<LogPosition>) {
        self.recording = Some(Recording { turn, snapshot, compact });
    }

    /// The snapshot that is recorded once all turns up to `written` are durable, and where the log is
    /// compacted then.
    pub(crate) fn take_recorded(
        &mut self,
        written: TurnNumber,
    ) -> Option<(SnapshotMeta, Option<LogPosition>)> {
        let recording = self.recording.take_if(|recording| recording.turn <= written)?;
        Some((recording.snapshot, recording.compact))
    }

    /// The snapshot can be sent to followers. A request of a follower that arrived meanwhile was made because
    /// this snapshot was missing: if it does not suffice, raft-rs asks again.
    pub(crate) fn recorded(&mut self, snapshot: SnapshotMeta) {
        self.wanted = false;
        self.answer(&Ok(snapshot.position));
        self.recorded = Some(snapshot);
    }

    /// Answers with the outcome of the snapshot that was being taken.
    fn answer(&mut self, outcome: &Result<LogPosition, SnapshotError>) {
        for reply in self.replies_to_this.drain(..) {
            reply.answer(outcome.clone());
        }
    }

    /// The snapshot that was being taken is of no use any more: its requests wait for the next one.
    fn supersede(&mut self) {
        self.replies.append(&mut self.replies_to_this);
    }

    // --- Installing a snapshot ---

    pub(crate) fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Whether the log begins after a snapshot that is not durable yet.
    pub(crate) fn is_recording_installed(&self) -> bool {
        self.installing.as_ref().is_some_and(|installing| installing.turn.is_some())
    }

    /// A leader has sent this snapshot, and consensus has accepted it.
    pub(crate) fn install(&mut self, snapshot: SnapshotMeta, reply: Responder<(), InstallError>) {
        self.installing = Some(Installing { turn: None, snapshot, reply });
    }

    /// `turn` records the snapshot that is being installed, and starts the log again after it. Returns that
    /// snapshot, and a snapshot taken on this node that it replaces.
    pub(crate) fn write_installed(
        &mut self,
        position: LogPosition,
        turn: TurnNumber,
    ) -> Option<(SnapshotMeta, Option<LogPosition>)> {
        let installing = self.installing.as_mut()?;
        debug_assert_eq!(installing.snapshot.position, position, "only one snapshot is installed at a time");
        installing.turn = Some(turn);
        let snapshot = installing.snapshot.clone();
        let superseded = self.recording.take().map(|recording| recording.snapshot.position);
        if superseded.is_some() {
            // Its requests are answered once the new one is recorded.
            self.supersede();
        }
        Some((snapshot, superseded))
    }

    /// The snapshot that is installed once all turns up to `written` are durable.
    pub(crate) fn take_installed(
        &mut self,
        written: TurnNumber,
    ) -> Option<(SnapshotMeta, Responder<(), InstallError>)> {
        let is_written = |installing: &mut Installing| installing.turn.is_some_and(|turn| turn <= written);
        let installing = self.installing.take_if(is_written)?;
        Some((installing.snapshot, installing.reply))
    }

    /// The installed snapshot is recorded.
    pub(crate) fn installed(&mut self, snapshot: SnapshotMeta, now_ticks: u64) {
        self.policy.install(snapshot.position.index, now_ticks);
        self.recorded = Some(snapshot);
    }

    // --- Sending a snapshot ---

    pub(crate) fn send(&mut self, (to, term, position): (NodeId, Term, LogPosition)) -> SnapshotToSend {
        self.attempts += 1;
        let send = SnapshotToSend { attempt: self.attempts, to, term, position };
        self.sending.push(send);
        send
    }

    /// The snapshots in flight to followers.
    pub(crate) fn sending(&self) -> &[SnapshotToSend] {
        &self.sending
    }

    /// The transfer of a snapshot has succeeded or failed. Returns whether no later one is in flight to that
    /// follower.
    pub(crate) fn sent(&mut self, sent: SnapshotToSend) -> bool {
        self.sending.retain(|other| *other != sent);
        !self.sending.iter().any(|other| other.to == sent.to && other.attempt > sent.attempt)
    }

    pub(crate) fn stop(&mut self, reason: &StopReason) {
        self.replies_to_this.append(&mut self.replies);
        self.answer(&Err(reason.clone().into()));
        if let Some(installing) = self.installing.take() {
            installing.reply.answer(Err(reason.clone().into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::config::Config;
    use crate::members::Members;
    use crate::types::ClusterId;

    fn snapshots() -> Snapshots {
        Snapshots::new(None, &Config::default().check().unwrap())
    }

    fn meta(index: u64) -> SnapshotMeta {
        let position = LogPosition::new(1, index);
        SnapshotMeta { cluster_id: ClusterId(1), position, members: Members::none() }
    }

    fn request(snapshots: &mut Snapshots) -> Receiver<Result<LogPosition, SnapshotError>> {
        let (answered, answer) = mpsc::channel();
        // A request that still waits when the test ends is answered as well.
        snapshots.request(Responder::new(move |outcome| drop(answered.send(outcome))));
        answer
    }

    #[test]
    fn a_request_is_answered_by_the_snapshot_that_begins_after_it() {
        let mut snapshots = snapshots();
        let first = request(&mut snapshots);
        assert!(snapshots.is_due(0));
        assert_eq!(snapshots.begin(LogPosition::new(1, 5), 0), Some(SnapshotReason::Due));
        let second = request(&mut snapshots);
        assert!(!snapshots.is_due(0), "one is being taken");
        let taken = snapshots.taken(Ok(meta(5))).unwrap();
        snapshots.record(TurnNumber(3), taken, None);
        assert!(snapshots.take_recorded(TurnNumber(2)).is_none());
        let (recorded, _) = snapshots.take_recorded(TurnNumber(3)).unwrap();
        snapshots.recorded(recorded);
        assert_eq!(first.try_recv(), Ok(Ok(LogPosition::new(1, 5))));
        assert!(second.try_recv().is_err());

        assert_eq!(snapshots.begin(LogPosition::new(1, 5), 0), None, "the newest is of that state");
        assert_eq!(second.try_recv(), Ok(Ok(LogPosition::new(1, 5))));
    }

    #[test]
    fn a_snapshot_that_is_only_due_hurries_when_a_follower_needs_it() {
        let mut snapshots = snapshots();
        let _answer = request(&mut snapshots);
        assert_eq!(snapshots.begin(LogPosition::new(1, 5), 0), Some(SnapshotReason::Due));
        assert!(!snapshots.want(false) && snapshots.want(true) && !snapshots.want(true));
    }

    #[test]
    fn a_snapshot_of_a_leader_takes_the_place_of_an_older_one() {
        let mut snapshots = snapshots();
        let answer = request(&mut snapshots);
        snapshots.begin(LogPosition::new(1, 5), 0);
        let taken = snapshots.taken(Ok(meta(5))).unwrap();
        snapshots.record(TurnNumber(3), taken, None);
        let (installed, outcome) = mpsc::channel();
        snapshots.install(meta(9), Responder::new(move |outcome| installed.send(outcome).unwrap()));
        let (_, superseded) = snapshots.write_installed(LogPosition::new(1, 9), TurnNumber(4)).unwrap();
        assert_eq!(superseded, Some(LogPosition::new(1, 5)));
        assert!(snapshots.is_recording_installed() && snapshots.take_recorded(TurnNumber(4)).is_none());
        let (snapshot, reply) = snapshots.take_installed(TurnNumber(4)).unwrap();
        snapshots.installed(snapshot, 0);
        reply.answer(Ok(()));
        assert!(outcome.try_recv().unwrap().is_ok());
        assert!(snapshots.taken(Ok(meta(5))).is_none(), "it is older than the newest");
        assert!(answer.try_recv().is_err() && snapshots.is_due(0), "the request waits for the next one");
    }

    #[test]
    fn only_the_last_snapshot_that_was_sent_to_a_follower_counts() {
        let mut snapshots = snapshots();
        let mut send = |to| snapshots.send((NodeId::new(to).unwrap(), Term(1), LogPosition::new(1, 5)));
        let [first, second, other] = [2, 2, 3].map(&mut send);
        assert!(!snapshots.sent(first));
        assert!(snapshots.sent(second) && snapshots.sent(other));
        assert!(snapshots.sending().is_empty());
    }
}
