//! A node: a durable disk, and while it runs, a core with a state machine. Beside them is the simulator's own
//! knowledge of both, for comparison.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raftify_core::error::StopReason;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Committed, DurableState, Incarnation, LeaderRequest, LogIndex, LogPosition, Members, NodeId,
    RaftMessage, RaftNodeCore, Role, SnapshotMeta, SnapshotReason, SnapshotToSend, StateKept, Term,
    TurnNumber,
};

use crate::disk::Disk;
use crate::invariants::deadlines::Deadlines;
use crate::invariants::transfers::Transfers;
use crate::log_picture::LogPicture;
use crate::reply::Reply;
use crate::schedule::Time;
use crate::store::Store;

/// The reason why a disk is unusable, so that its node must be removed from the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Wiped,
    Damaged,
    RolledBack,
    /// It began another cluster: it was started with another list of first members.
    OtherList,
    /// In a script: it alone has acknowledged entries that all others have lost.
    Alone,
}

impl Lost {
    /// Whether the state and the writes of such a node are not checked, and it receives no requests.
    pub(crate) fn is_not_checked(self) -> bool {
        matches!(self, Lost::RolledBack | Lost::OtherList | Lost::Alone)
    }
}

/// A node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) cluster_id: ClusterId,
    /// Its real address.
    pub(crate) address: Arc<str>,
    /// The address that it reports.
    pub(crate) advertised: Arc<str>,
    /// The members with which it begins a cluster when its disk is empty; `None`: it waits for its
    /// admission.
    pub(crate) begins_with: Option<Arc<Members>>,
    pub(crate) disk: Disk,
    pub(crate) state_kept: StateKept,
    /// The position of a durable state machine when its node ended.
    pub(crate) kept: Option<LogPosition>,
    /// The acknowledged durable state.
    pub(crate) durable: Durable,
    /// The pending writes when it stopped: any part of them may be durable as well.
    pub(crate) maybe_durable: Vec<Write>,
    /// The state before its disk was lost. It did count towards quorums.
    pub(crate) held_before: Option<LogPicture>,
    pub(crate) lost: Option<Lost>,
    /// It was removed from the cluster, or refused, and stopped.
    pub(crate) is_gone: bool,
    /// The number of its runs. Events for an earlier run have no effect.
    pub(crate) life: u64,
    pub(crate) running: Option<Running>,
    /// The reason of the last time that it stopped by itself.
    pub(crate) stopped_because: Option<StopReason>,
    /// Between two ticks.
    pub(crate) tick: Time,
    /// The time until which it is paused.
    pub(crate) paused_until: Time,
    pub(crate) disk_hangs: bool,
    /// Less free space than the reserve, which its next start finds as well.
    pub(crate) disk_is_full: bool,
    /// The factor by which it is slower than a healthy disk.
    pub(crate) disk_slowness: u64,
    pub(crate) apply_slowness: u64,
    pub(crate) fails_to: FailsTo,
    /// A copy of the disk to roll back to.
    pub(crate) backup: Option<(Disk, Durable)>,
    /// The nodes that knew forgotten state when this node was rolled back, each with its run.
    pub(crate) known_by: BTreeMap<NodeId, u64>,
    /// Whether it has asked one of those in this run.
    pub(crate) asked_who_knows: bool,
    /// It was rolled back, has asked all reachable nodes, and none of them knew newer state. Its messages
    /// are unreliable from then on, and no node can detect that.
    pub(crate) is_mute: bool,
}

/// The operation in which its state machine fails once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FailsTo {
    pub(crate) apply: bool,
    pub(crate) snapshot: bool,
    pub(crate) restore: bool,
}

/// The durable state.
#[derive(Clone, Default)]
pub(crate) struct Durable {
    pub(crate) state: StoredState,
    pub(crate) log: LogPicture,
}

impl Durable {
    /// The known commit index: a membership that was in force was committed.
    pub(crate) fn commit(&self) -> LogIndex {
        let members = self.state.members.as_ref().map_or(LogIndex::ZERO, Members::as_of);
        self.state.hard_state.commit.max(members)
    }
}

/// A run of a node.
pub(crate) struct Running {
    pub(crate) core: RaftNodeCore<Reply>,
    pub(crate) store: Store,
    pub(crate) members: Members,
    /// The position of the state machine.
    pub(crate) at: LogPosition,
    /// The log, durable or not.
    pub(crate) log: LogPicture,
    pub(crate) to_write: VecDeque<ToWrite>,
    pub(crate) writing: Option<Writing>,
    pub(crate) to_apply: VecDeque<ToApply>,
    pub(crate) is_applying: bool,
    /// The snapshot that is being written.
    pub(crate) captured: Option<Captured>,
    pub(crate) seen: Seen,
    /// Whether its commit index is about to be announced.
    pub(crate) announces_commit: bool,
    /// The newest snapshot when old ones were last deleted.
    pub(crate) retained_for: Option<LogPosition>,
    pub(crate) deadlines: Deadlines,
    pub(crate) transfers: Transfers,
    /// The tick of the last message of each other node.
    pub(crate) heard: BTreeMap<NodeId, u64>,
    /// The tick of the last request that may make it transfer leadership.
    pub(crate) unsettled: Option<u64>,
    /// Its role when it received the stop request, if it did.
    pub(crate) stops_as: Option<Role>,
}

impl Running {
    /// A request that only a leader can serve; a proposal may wait for this many ticks.
    pub(crate) fn is_asked(&mut self, request: &mut LeaderRequest<Reply>, most_ticks: u64) {
        match request {
            LeaderRequest::Propose { reply, .. } => {
                reply.waits = Some(self.deadlines.asked("a proposal", most_ticks));
            }
            LeaderRequest::TransferLeader { .. } | LeaderRequest::ChangeMembership { .. } => {
                self.unsettled = Some(self.deadlines.now_ticks());
            }
            LeaderRequest::ReserveNodeId { .. } => {}
        }
    }

    pub(crate) fn snapshot_reported(&mut self, sent: SnapshotToSend, outcome: Result<(), String>) {
        self.transfers.ends(sent);
        self.core.snapshot_sent(sent, outcome);
    }

    /// The tick of the oldest write that is not known to be durable.
    pub(crate) fn oldest_write(&self) -> Option<u64> {
        let under_way = self.writing.as_ref().and_then(|writing| writing.asked_ticks);
        let waiting = self.to_write.iter().filter(|turn| turn.write.is_some());
        under_way.or_else(|| waiting.map(|turn| turn.asked_ticks).next())
    }
}

/// A turn that is to be made durable.
pub(crate) struct ToWrite {
    pub(crate) number: TurnNumber,
    pub(crate) asked_ticks: u64,
    pub(crate) write: Option<Write>,
    pub(crate) send_after: Vec<RaftMessage>,
}

/// Turns that are being made durable together.
pub(crate) struct Writing {
    pub(crate) number: TurnNumber,
    /// The start time of the first of them; `None` if there is nothing to write.
    pub(crate) asked_ticks: Option<u64>,
    pub(crate) writes: Vec<Write>,
    pub(crate) send_after: Vec<RaftMessage>,
    pub(crate) is_durable: bool,
}

impl Writing {
    pub(crate) fn of(first: ToWrite) -> Writing {
        let nothing = Writing {
            number: first.number,
            asked_ticks: None,
            writes: Vec::new(),
            send_after: Vec::new(),
            is_durable: false,
        };
        nothing.with(first)
    }

    /// It makes `turn` durable as well.
    #[must_use]
    pub(crate) fn with(mut self, turn: ToWrite) -> Writing {
        self.number = turn.number;
        if turn.write.is_some() {
            self.asked_ticks.get_or_insert(turn.asked_ticks);
        }
        self.writes.extend(turn.write);
        self.send_after.extend(turn.send_after);
        self
    }
}

/// Work for the state machine.
pub(crate) enum ToApply {
    Committed(Committed<Reply>),
    TakeSnapshot(SnapshotReason),
}

/// The last observed state of a core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) commit: LogIndex,
    pub(crate) members_as_of: LogIndex,
    /// The members that were in force at the end of the last step; zero before the first one.
    pub(crate) in_force: LogIndex,
}

/// A snapshot that is being written.
pub(crate) struct Captured {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: Vec<u8>,
    pub(crate) reason: SnapshotReason,
}

impl Node {
    /// Records the nodes that know what this node would forget if it started on this copy of its disk.
    pub(crate) fn is_rolled_back_to(
        &self,
        copy: &StoredState,
        others: &BTreeMap<NodeId, Node>,
    ) -> BTreeMap<NodeId, u64> {
        let found = DurableState {
            starts: copy.remembered.starts + 1,
            term: copy.hard_state.term,
            vote: copy.hard_state.vote,
            index: copy.last.index,
        };
        let knows = |other: &&Node| {
            let running = other.running.as_ref();
            let told = running.and_then(|running| running.core.remembered().peers.get(&self.id));
            told.is_some_and(|peer| peer.incarnation == self.incarnation && found.is_behind(&peer.told))
        };
        others.values().filter(knows).map(|other| (other.id, other.life)).collect()
    }

    /// Whether it takes part in the current events.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// It ends, with its state machine at `at`.
    pub(crate) fn keeps_state_at(&mut self, at: LogPosition) {
        // The beginning of a cluster is no entry.
        self.kept = (self.state_kept == StateKept::OnDisk && at.index > LogIndex(1)).then_some(at);
    }

    /// Whether a log of it that counts towards a quorum has this entry.
    pub(crate) fn holds(&self, index: LogIndex, digest: crate::log_picture::Digest) -> bool {
        self.durable.log.holds(index, digest)
            || self.held_before.as_ref().is_some_and(|log| log.holds(index, digest))
    }
}
