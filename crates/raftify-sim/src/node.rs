//! A node: a disk that stays, and while it runs, a core with a state machine. Beside it stands what the simulator knows
//! of both, to compare.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Committed, Incarnation, LeaderRequest, LogIndex, LogPosition, Members, NodeId, RaftMessage,
    RaftNodeCore, Role, SnapshotMeta, SnapshotReason, SnapshotToSend, Standing, StateKept, Term, TurnNumber,
};

use crate::disk::Disk;
use crate::invariants::deadlines::Deadlines;
use crate::invariants::transfers::Transfers;
use crate::log_picture::LogPicture;
use crate::reply::Reply;
use crate::schedule::Time;
use crate::store::Store;

/// What became of a disk, so that its node is of no use any more and is to be removed from the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Wiped,
    Damaged,
    RolledBack,
    /// It began another cluster: it was started with another list of first members.
    OtherList,
}

impl Lost {
    /// What such a node takes itself for, and what it writes, is not judged, and it is asked for nothing.
    pub(crate) fn is_not_judged(self) -> bool {
        matches!(self, Lost::RolledBack | Lost::OtherList)
    }
}

/// A node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) cluster_id: ClusterId,
    /// Where it really is.
    pub(crate) address: Arc<str>,
    /// Where it says that it is.
    pub(crate) advertised: Arc<str>,
    /// The members that it begins a cluster with when its disk is empty; `None`: it waits to be let in.
    pub(crate) begins_with: Option<Arc<Members>>,
    pub(crate) disk: Disk,
    pub(crate) state_kept: StateKept,
    /// Where a state machine that keeps its state was when its node ended.
    pub(crate) kept: Option<LogPosition>,
    /// What is durable on it, as far as it was acknowledged.
    pub(crate) durable: Durable,
    /// What was under way when it stopped: any part of it may be durable as well.
    pub(crate) maybe_durable: Vec<Write>,
    /// What it held before its disk was lost. It did count towards quorums.
    pub(crate) held_before: Option<LogPicture>,
    pub(crate) lost: Option<Lost>,
    /// It was removed from the cluster, or refused, and stopped.
    pub(crate) is_gone: bool,
    /// Counts its starts. What was meant for an earlier life comes to nothing.
    pub(crate) life: u64,
    pub(crate) running: Option<Running>,
    /// Between two ticks.
    pub(crate) tick: Time,
    /// Until when nothing in it moves.
    pub(crate) paused_until: Time,
    pub(crate) disk_hangs: bool,
    /// So many times slower than a healthy one.
    pub(crate) disk_slowness: u64,
    pub(crate) apply_slowness: u64,
    pub(crate) fails_to: FailsTo,
    /// A copy of the disk to roll back to.
    pub(crate) backup: Option<(Disk, Durable)>,
    /// Who knew, when this node was rolled back, of something that it has forgotten, each in the life that it was in.
    pub(crate) known_by: BTreeMap<NodeId, u64>,
    /// Whether it has asked one of those, in this life, what it knows.
    pub(crate) asked_who_knows: bool,
    /// It was rolled back, has asked all that it reached, and none of them knew better. Nothing that it says can be relied on
    /// from then on, and nobody can tell.
    pub(crate) is_mute: bool,
}

/// What its state machine will fail to do, once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FailsTo {
    pub(crate) apply: bool,
    pub(crate) snapshot: bool,
    pub(crate) restore: bool,
}

/// What is durable.
#[derive(Clone, Default)]
pub(crate) struct Durable {
    pub(crate) state: StoredState,
    pub(crate) log: LogPicture,
}

impl Durable {
    /// What is known for certain to be committed: a membership that was in force was.
    pub(crate) fn commit(&self) -> LogIndex {
        let members = self.state.members.as_ref().map_or(LogIndex::ZERO, Members::as_of);
        self.state.hard_state.commit.max(members)
    }
}

/// A life of a node.
pub(crate) struct Running {
    pub(crate) core: RaftNodeCore<Reply>,
    pub(crate) store: Store,
    pub(crate) members: Members,
    /// Where the state machine is.
    pub(crate) at: LogPosition,
    /// The log, durable or not.
    pub(crate) log: LogPicture,
    pub(crate) to_write: VecDeque<ToWrite>,
    pub(crate) writing: Option<Writing>,
    pub(crate) to_apply: VecDeque<ToApply>,
    pub(crate) is_applying: bool,
    /// The snapshot that is being written out.
    pub(crate) captured: Option<Captured>,
    pub(crate) seen: Seen,
    /// The newest snapshot when old ones were last deleted.
    pub(crate) retained_for: Option<LogPosition>,
    pub(crate) deadlines: Deadlines,
    pub(crate) transfers: Transfers,
    /// The tick at which a message of each other node last arrived.
    pub(crate) heard: BTreeMap<NodeId, u64>,
    /// The tick at which it was last asked for something that may make it hand over leadership.
    pub(crate) unsettled: Option<u64>,
    /// It was told to stop: in which role it was then.
    pub(crate) stops_as: Option<Role>,
}

impl Running {
    /// It is asked for something that only a leader can do; a proposal may wait for so many ticks.
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

    pub(crate) fn hears_of_snapshot(&mut self, sent: SnapshotToSend, outcome: Result<(), String>) {
        self.transfers.ends(sent);
        self.core.snapshot_sent(sent, outcome);
    }

    /// The tick at which the oldest write was asked for that is not known to be durable.
    pub(crate) fn oldest_write(&self) -> Option<u64> {
        let under_way = self.writing.as_ref().and_then(|writing| writing.asked_ticks);
        let waiting = self.to_write.iter().filter(|turn| turn.write.is_some());
        under_way.or_else(|| waiting.map(|turn| turn.asked_ticks).next())
    }
}

/// A turn to be made durable.
pub(crate) struct ToWrite {
    pub(crate) number: TurnNumber,
    pub(crate) asked_ticks: u64,
    pub(crate) write: Option<Write>,
    pub(crate) send_after: Vec<RaftMessage>,
}

/// Turns that are being made durable together.
pub(crate) struct Writing {
    pub(crate) number: TurnNumber,
    /// Of the first of them; `None` if there is nothing to write.
    pub(crate) asked_ticks: Option<u64>,
    pub(crate) writes: Vec<Write>,
    pub(crate) send_after: Vec<RaftMessage>,
    pub(crate) is_durable: bool,
}

/// What waits for the state machine.
pub(crate) enum ToApply {
    Committed(Committed<Reply>),
    TakeSnapshot(SnapshotReason),
}

/// What the simulator last saw of a core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) commit: LogIndex,
    pub(crate) members_as_of: LogIndex,
    /// The members that were in force when the last step was over; zero before the first one.
    pub(crate) in_force: LogIndex,
}

/// A snapshot that is being written out.
pub(crate) struct Captured {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: Vec<u8>,
}

impl Node {
    /// Remembers who knows that this node, if it is started on this copy of its disk, has forgotten something.
    pub(crate) fn is_rolled_back_to(
        &self,
        copy: &StoredState,
        others: &BTreeMap<NodeId, Node>,
    ) -> BTreeMap<NodeId, u64> {
        let found = Standing {
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

    /// Whether it takes part in what happens now.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// It ends, and its state machine has come to `at`.
    pub(crate) fn keeps_state_at(&mut self, at: LogPosition) {
        // The beginning of a cluster is no entry.
        self.kept = (self.state_kept == StateKept::OnDisk && at.index > LogIndex(1)).then_some(at);
    }

    /// What counts towards a quorum.
    pub(crate) fn holds(&self, index: LogIndex, digest: crate::log_picture::Digest) -> bool {
        self.durable.log.holds(index, digest)
            || self.held_before.as_ref().is_some_and(|log| log.holds(index, digest))
    }
}
