//! Whole clusters of cores in one thread, over a simulated network and disks that lose what was not synced. One seed
//! decides everything. After every step, what Raft promises is checked (`Truth`).

#![allow(dead_code, reason = "each test binary uses its own part of the harness")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use raftify_core::config::CheckedConfig;
use raftify_core::error::{
    InstallError, JoinError, MembershipError, ProposeError, ReadError, SnapshotError, StopReason,
    UnknownOutcome,
};
use raftify_core::members::SenderRefusal;
use raftify_core::storage::{MemoryStorage, StoredState, Write};
use raftify_core::{
    ClusterId, Committed, Config, CoreStart, Entry, EntryKind, Forwarding, Identity, Incarnation,
    LeaderRequest, LocalRequestMsg, LogIndex, LogPosition, LogReader, Member, Members, MembershipChange,
    MembershipRequest, NodeId, ProposalReply, RaftMessage, RaftNodeCore, Reservation, Responder, Role, RunId,
    Sender, ServerRequestMsg, SnapshotMeta, SnapshotStore, SnapshotToSend, SnapshotWriter, StableStorage,
    StateKept, Status, Term, Turn, TurnNumber,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);

pub(crate) fn id(number: u64) -> NodeId {
    NodeId::new(number).expect("test ids are not zero")
}

/// What became of a request; filled in exactly once.
pub(crate) type Outcome<T> = Arc<Mutex<Option<T>>>;

pub(crate) fn outcome<T>() -> Outcome<T> {
    Arc::new(Mutex::new(None))
}

pub(crate) fn take<T: Clone>(outcome: &Outcome<T>) -> Option<T> {
    outcome.lock().unwrap().clone()
}

fn set<T: std::fmt::Debug>(outcome: &Outcome<T>, value: T) {
    let mut slot = outcome.lock().unwrap();
    assert!(slot.is_none(), "answered twice: {slot:?}, then {value:?}");
    *slot = Some(value);
}

pub(crate) fn responder<T, E>(outcome: &Outcome<Result<T, E>>) -> Responder<T, E>
where
    T: std::fmt::Debug + Send + 'static,
    E: std::fmt::Debug + From<StopReason> + Send + 'static,
{
    let outcome = Arc::clone(outcome);
    Responder::new(move |answer| set(&outcome, answer))
}

/// Answers a proposal.
#[derive(Debug)]
pub(crate) struct ProposalWaiter {
    outcome: Option<Outcome<Result<LogPosition, ProposeError>>>,
}

impl ProposalWaiter {
    pub(crate) fn new(outcome: &Outcome<Result<LogPosition, ProposeError>>) -> Self {
        ProposalWaiter { outcome: Some(Arc::clone(outcome)) }
    }

    fn answer(mut self, answer: Result<LogPosition, ProposeError>) {
        if let Some(outcome) = self.outcome.take() {
            set(&outcome, answer);
        }
    }
}

impl ProposalReply for ProposalWaiter {
    fn refuse(self, error: ProposeError) {
        self.answer(Err(error));
    }
}

impl Drop for ProposalWaiter {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            set(&outcome, Err(ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped))));
        }
    }
}

pub(crate) type Core = RaftNodeCore<ProposalWaiter>;

/// The replicated state: every proposal's number in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) numbers: Vec<u64>,
    pub(crate) at: LogPosition,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        self.numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn decode(bytes: &[u8], at: LogPosition) -> State {
        let numbers = bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap())).collect();
        State { numbers, at }
    }
}

/// A node: a disk that stays, and while it runs, a core.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) disk: MemoryStorage,
    pub(crate) running: Option<Running>,
    /// Why it stopped by itself, the last time that it did.
    pub(crate) stopped_because: Option<StopReason>,
}

pub(crate) struct Running {
    pub(crate) core: Core,
    pub(crate) state: State,
    pub(crate) members: Members,
    pub(crate) to_write: VecDeque<(TurnNumber, Option<Write>, Vec<RaftMessage>)>,
    pub(crate) to_apply: VecDeque<ToApply>,
    /// A snapshot that is being written.
    captured: Option<(SnapshotMeta, Vec<u8>)>,
    /// The highest that its core has told of.
    commit: LogIndex,
}

pub(crate) enum ToApply {
    Committed(Committed<ProposalWaiter>),
    TakeSnapshot,
    HurrySnapshot,
}

enum Packet {
    Raft {
        sender: Sender,
        receiver: Option<Incarnation>,
        messages: Vec<RaftMessage>,
    },
    Snapshot {
        sender: Sender,
        receiver: Option<Incarnation>,
        sent: SnapshotToSend,
        snapshot: SnapshotMeta,
        data: Vec<u8>,
    },
    Request(LeaderRequest<ProposalWaiter>),
    ReadRound {
        round: u64,
    },
}

enum Event {
    SnapshotSent { from: NodeId, sent: SnapshotToSend, outcome: Result<(), String> },
    ReadRoundAnswered { node: NodeId, round: u64, answer: Result<LogIndex, ReadError> },
}

type Events = Arc<Mutex<VecDeque<Event>>>;

/// What has been seen to be so, for ever: the Raft properties (thesis, figure 3.2) and our own.
#[derive(Default)]
pub(crate) struct Truth {
    leaders: BTreeMap<Term, NodeId>,
    /// Every entry ever written, with the term of the one before it.
    entries: BTreeMap<LogPosition, (Entry, Option<Term>)>,
    committed: BTreeMap<LogIndex, Entry>,
    votes: BTreeMap<(NodeId, Incarnation, Term), NodeId>,
    terms: BTreeMap<(NodeId, Incarnation), Term>,
    members: BTreeMap<LogIndex, Members>,
    /// For each applied index, the place that the membership was as of.
    members_at: BTreeMap<LogIndex, LogIndex>,
    reserved: BTreeSet<NodeId>,
    pub(crate) elections: usize,
    pub(crate) snapshots_installed: usize,
    /// A disk was rolled back and none that knows better is there: nothing is true for ever any more.
    pub(crate) is_void: bool,
}

impl Truth {
    /// Election safety: at most one leader in a term (section 3.4). Leader completeness: a leader has every entry that
    /// was committed in an earlier term (section 3.6.3).
    /// Membership: a leader has at most one change that is not committed (section 4.1).
    fn saw_leader(&mut self, status: &Status, log: &Log, truncated: LogPosition) {
        if self.is_void {
            return;
        }
        let leader = *self.leaders.entry(status.term).or_insert_with(|| {
            self.elections += 1;
            status.node_id
        });
        assert_eq!(leader, status.node_id, "two leaders in term {}", status.term);
        for entry in self.committed.values() {
            let position = entry.position;
            if position.term < status.term && position.index > truncated.index {
                let own = log.get(&position.index).map(|(term, _)| *term);
                assert_eq!(own, Some(position.term), "leader {leader} lacks committed entry {position}");
            }
        }
        let uncommitted = log.range(status.commit.next()..);
        let changes = uncommitted.filter(|(_, (_, kind))| *kind == EntryKind::MembershipChange).count();
        assert!(changes <= 1, "leader {leader} has {changes} changes that are not committed");
    }

    /// Log matching (section 3.5): by induction over the entries, each remembered with the term of its predecessor.
    fn saw_write(&mut self, node: NodeId, incarnation: Incarnation, before: &StoredState, write: &Write) {
        if self.is_void {
            return;
        }
        let mut previous = match (write.reset_log, write.append.first()) {
            (Some(position), _) => Some(position),
            (None, Some(first)) if first.position.index == before.last.index.next() => Some(before.last),
            _ => None,
        };
        for entry in &write.append {
            let previous_term = previous.map(|position| position.term);
            let known = self.entries.entry(entry.position).or_insert_with(|| (entry.clone(), previous_term));
            assert_eq!(known.0, *entry, "two entries at {}", entry.position);
            if let (Some(known), Some(new)) = (known.1, previous_term) {
                assert_eq!(known, new, "the logs differ before {}", entry.position);
            }
            if let Some(committed) = self.committed.get(&entry.position.index)
                && before.term_at(entry.position.index) == Some(committed.position.term)
            {
                let (old, new) = (committed.position, entry.position);
                assert_eq!(new, old, "{node} overwrites a committed entry");
            }
            previous = Some(entry.position);
        }
        if let Some(hard_state) = write.hard_state {
            let term = self.terms.entry((node, incarnation)).or_default();
            assert!(hard_state.term >= *term, "the term of {node} fell from {term} to {}", hard_state.term);
            *term = hard_state.term;
            if let Some(vote) = hard_state.vote {
                let first = *self.votes.entry((node, incarnation, hard_state.term)).or_insert(vote);
                assert_eq!(first, vote, "{node} voted twice in term {}", hard_state.term);
            }
        }
        if let Some(members) = &write.members {
            let first = self.members.entry(members.as_of()).or_insert_with(|| members.clone());
            assert_eq!(first, members, "two memberships as of {}", members.as_of());
        }
    }

    /// Members are equal wherever the applied index is equal.
    fn saw_members(&mut self, node: NodeId, applied: LogIndex, members: &Members) {
        if self.is_void {
            return;
        }
        // While old entries are replayed after a start, the membership is ahead.
        if members.as_of() <= applied {
            let first = *self.members_at.entry(applied).or_insert(members.as_of());
            assert_eq!(first, members.as_of(), "{node} has another membership at {applied}");
        }
    }

    /// A node id is given out once, and never one that a member had.
    fn saw_reservation(&mut self, reserved: NodeId) {
        assert!(self.reserved.insert(reserved), "id {reserved} was given out twice");
    }

    /// State-machine safety (section 3.6.3): no two nodes apply different entries at one index.
    fn saw_applied(&mut self, node: NodeId, entry: Entry) {
        if self.is_void {
            return;
        }
        let index = entry.position.index;
        let first = self.committed.entry(index).or_insert_with(|| entry.clone());
        assert_eq!(*first, entry, "{node} applies another entry at {index}");
    }
}

struct WaitingRead {
    node: NodeId,
    /// What was acknowledged before it began.
    floor: LogIndex,
    outcome: Outcome<Result<LogIndex, ReadError>>,
}

pub(crate) struct Cluster {
    pub(crate) rng: ChaCha8Rng,
    pub(crate) seed: u64,
    pub(crate) config: CheckedConfig,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    links: BTreeMap<(NodeId, NodeId), VecDeque<Packet>>,
    /// Links that deliver nothing.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes that cannot be connected to at their addresses, though messages arrive.
    pub(crate) unreachable: BTreeSet<NodeId>,
    /// Nodes whose disks finish no write.
    pub(crate) hung_disks: BTreeSet<NodeId>,
    /// Nodes whose state machines keep their state on disk, from their next start on; those of all others are in memory.
    pub(crate) on_disk: BTreeSet<NodeId>,
    /// Nodes that do not say whether they believe who asks.
    pub(crate) mute: BTreeSet<NodeId>,
    /// Snapshots stay on their way until [`Cluster::deliver_snapshots`].
    pub(crate) slow_snapshots: bool,
    /// Snapshots are not written to their end before a follower waits for them.
    pub(crate) leisurely_snapshots: bool,
    snapshots_on_their_way: Vec<((NodeId, NodeId), Packet)>,
    /// Of 100 packets, so many are lost.
    pub(crate) loss_percent: u32,
    /// Of 100 packets, so many overtake others, and as many arrive twice.
    pub(crate) disorder_percent: u32,
    /// Of 100 snapshots, so many cannot be taken.
    pub(crate) failing_snapshots_percent: u32,
    /// Nodes whose state machines need ten times as long.
    pub(crate) slow: BTreeSet<NodeId>,
    /// Nodes whose disk was replaced by an empty one: they are of no use any more.
    pub(crate) wiped: BTreeSet<NodeId>,
    events: Events,
    pub(crate) truth: Truth,
    initial: Members,
    next_number: u64,
    next_incarnation: u64,
    next_run: u64,
    pub(crate) acknowledged: Vec<(u64, LogPosition)>,
    proposals: Vec<(u64, Outcome<Result<LogPosition, ProposeError>>)>,
    reads: Vec<WaitingRead>,
    reservations: Vec<Outcome<Result<Reservation, MembershipError>>>,
    /// What happened, in words: equal for equal seeds.
    pub(crate) trace: Vec<String>,
}

pub(crate) fn test_config() -> Config {
    Config {
        tick_interval: std::time::Duration::from_millis(10),
        heartbeat_interval: std::time::Duration::from_millis(20),
        election_timeout: std::time::Duration::from_millis(100),
        disk_stall_timeout: std::time::Duration::from_millis(500),
        propose_timeout: std::time::Duration::from_secs(2),
        read_timeout: std::time::Duration::from_secs(2),
        membership_timeout: std::time::Duration::from_secs(3),
        snapshot_entries: Some(40),
        log_entries_kept: 10,
        log_bytes_kept_for_followers: 0,
        log_cache_bytes: 400,
        message_bytes_max: 1024,
        ..Config::default()
    }
}

impl Cluster {
    /// Nodes `1..=voters`, all running.
    pub(crate) fn new(seed: u64, voters: u64, config: Config) -> Cluster {
        let initial =
            Members::initial((1..=voters).map(|n| Member::voter(id(n), format!("node-{n}:1")))).unwrap();
        let mut cluster = Cluster {
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            config: config.check().unwrap(),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            unreachable: BTreeSet::new(),
            hung_disks: BTreeSet::new(),
            on_disk: BTreeSet::new(),
            mute: BTreeSet::new(),
            slow_snapshots: false,
            leisurely_snapshots: false,
            snapshots_on_their_way: Vec::new(),
            loss_percent: 0,
            disorder_percent: 0,
            failing_snapshots_percent: 0,
            slow: BTreeSet::new(),
            wiped: BTreeSet::new(),
            events: Events::default(),
            truth: Truth::default(),
            initial,
            next_number: 0,
            next_incarnation: 0,
            next_run: 0,
            acknowledged: Vec::new(),
            proposals: Vec::new(),
            reads: Vec::new(),
            reservations: Vec::new(),
            trace: Vec::new(),
        };
        for number in 1..=voters {
            cluster.add_node(id(number));
        }
        cluster
    }

    /// A node with an empty disk, running, that belongs to no cluster.
    pub(crate) fn add_node(&mut self, node: NodeId) {
        self.next_incarnation += 1;
        let incarnation = Incarnation(self.next_incarnation);
        let disk = MemoryStorage::default();
        let new = Node { id: node, incarnation, disk, running: None, stopped_because: None };
        self.nodes.insert(node, new);
        self.start(node);
    }

    fn identity(&self, node: NodeId) -> Identity {
        Identity { cluster_id: CLUSTER, node_id: node, incarnation: self.nodes[&node].incarnation }
    }

    pub(crate) fn start_cluster(&mut self, node: NodeId) {
        let (identity, members) = (self.identity(node), self.initial.clone());
        let reply = responder(&outcome());
        self.local(node, LocalRequestMsg::StartCluster { identity, members, reply });
    }

    pub(crate) fn await_cluster(&mut self, node: NodeId) -> Outcome<Result<(), JoinError>> {
        let (identity, answer) = (self.identity(node), outcome());
        self.local(node, LocalRequestMsg::AwaitCluster { identity, reply: responder(&answer) });
        answer
    }

    /// Whether everyone knows which life of `node` to believe, so that the loss of its disk will be noticed.
    pub(crate) fn is_incarnation_known(&mut self, node: NodeId) -> bool {
        self.nodes.values_mut().all(|other| {
            let members = other.disk.load().unwrap().members;
            let known = members.and_then(|members| members.get(node)?.incarnation);
            other.id == node || known.is_some()
        })
    }

    /// Starts a stopped node on what its disk holds.
    pub(crate) fn start(&mut self, node: NodeId) {
        self.next_run += 1;
        let this = self.nodes.get_mut(&node).unwrap();
        let stored = this.disk.load().unwrap();
        let mut state = State::default();
        if let Some(snapshot) = &stored.snapshot {
            let (meta, _, mut reader) = this.disk.snapshots().open(snapshot.position).unwrap();
            assert_eq!(meta, *snapshot);
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            state = State::decode(&data, snapshot.position);
        }
        let members = stored.members.clone().unwrap_or_else(Members::none);
        let start = CoreStart {
            node_id: node,
            address: format!("node-{node}:1"),
            config: self.config.clone(),
            seed: self.seed,
            run: RunId(self.next_run),
            stored,
            state_kept: match self.on_disk.contains(&node) {
                true => StateKept::OnDisk,
                false => StateKept::InMemory,
            },
        };
        let core = RaftNodeCore::new(start, &this.disk.log_reader()).unwrap();
        let is_fresh = this.disk.load().unwrap().identity.is_none();
        this.running = Some(Running {
            core,
            state,
            members,
            to_write: VecDeque::new(),
            to_apply: VecDeque::new(),
            captured: None,
            commit: LogIndex::ZERO,
        });
        if is_fresh && self.initial.get(node).is_some() {
            self.start_cluster(node);
        }
        self.run_turns(node);
        if self.status(node).is_some_and(|status| status.members.len() > 1)
            && !self.hung_disks.contains(&node)
        {
            // It counts its start, and hears what the others know of it, before anything else happens.
            self.complete_write(node);
            self.probe_members(node);
            self.run_turns(node);
        }
    }

    /// The power fails: some of the writes that are under way, the oldest, may still have reached the disk. The rest is
    /// gone, and so is everything in memory.
    pub(crate) fn crash(&mut self, node: NodeId) {
        let queued = self.running(node).map_or(0, |running| running.to_write.len());
        for _ in 0..self.rng.random_range(0..=queued) {
            self.write_queued(node, 1);
        }
        self.lose_unsynced(node);
    }

    /// The power fails, and nothing that is under way reaches the disk.
    pub(crate) fn lose_unsynced(&mut self, node: NodeId) {
        self.nodes.get_mut(&node).unwrap().running = None;
        for ((from, _), packets) in &mut self.links {
            if *from == node {
                for packet in packets.drain(..) {
                    lose(packet, *from, &self.events);
                }
            }
        }
        self.trace.push(format!("crash {node}"));
    }

    /// The disk is replaced by an empty one; the node must be stopped.
    pub(crate) fn wipe(&mut self, node: NodeId) {
        self.next_incarnation += 1;
        let this = self.nodes.get_mut(&node).unwrap();
        assert!(this.running.is_none());
        self.wiped.insert(node);
        this.disk = MemoryStorage::default();
        this.incarnation = Incarnation(self.next_incarnation);
    }

    /// A copy of what the disk holds now.
    pub(crate) fn copy_of_disk(&self, node: NodeId) -> MemoryStorage {
        let mut copy = MemoryStorage::default();
        let disk = &self.nodes[&node].disk;
        let state = disk.clone().load().unwrap();
        let (from, until) = (state.truncated.index.next(), state.last.index.next());
        let whole = Write {
            identity: state.identity,
            reset_log: Some(state.truncated),
            append: disk.log_reader().read(from, until, u64::MAX).unwrap(),
            hard_state: Some(state.hard_state),
            members: state.members,
            remembered: Some(state.remembered),
            snapshot: state.snapshot.clone(),
            ..Write::default()
        };
        if let Some(snapshot) = &state.snapshot {
            let (_, _, mut reader) = disk.snapshots().open(snapshot.position).unwrap();
            let mut writer = copy.snapshots().create(snapshot).unwrap();
            std::io::copy(&mut reader, &mut writer).unwrap();
            writer.finish().unwrap();
        }
        copy.write(&[whole]).unwrap();
        copy
    }

    /// The disk of a stopped node is replaced by an older copy of it.
    pub(crate) fn roll_back(&mut self, node: NodeId, copy: MemoryStorage) {
        let this = self.nodes.get_mut(&node).unwrap();
        assert!(this.running.is_none());
        this.disk = copy;
    }

    pub(crate) fn running(&mut self, node: NodeId) -> Option<&mut Running> {
        self.nodes.get_mut(&node)?.running.as_mut()
    }

    pub(crate) fn status(&self, node: NodeId) -> Option<Status> {
        self.nodes[&node].running.as_ref().map(|running| running.core.status())
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let statuses = self.nodes.keys().filter_map(|node| self.status(*node));
        statuses.filter(|status| status.role == Role::Leader).max_by_key(|s| s.term).map(|s| s.node_id)
    }

    /// Asks `node` something, and carries out what follows.
    pub(crate) fn local(&mut self, node: NodeId, message: LocalRequestMsg<ProposalWaiter>) {
        if let Some(running) = self.running(node) {
            running.core.handle_local_request_msg(message);
            self.run_turns(node);
        }
    }

    pub(crate) fn propose(&mut self, node: NodeId) -> Outcome<Result<LogPosition, ProposeError>> {
        self.next_number += 1;
        let number = self.next_number;
        let result = outcome();
        self.proposals.push((number, Arc::clone(&result)));
        let payload = Bytes::copy_from_slice(&number.to_le_bytes());
        let reply = ProposalWaiter::new(&result);
        if self.running(node).is_some() {
            self.local(node, LocalRequestMsg::ForLeader(LeaderRequest::Propose { payload, reply }));
        }
        result
    }

    pub(crate) fn read(&mut self, node: NodeId) -> Outcome<Result<LogIndex, ReadError>> {
        self.collect_acknowledged();
        let floor = self.acknowledged.iter().map(|(_, position)| position.index).max().unwrap_or_default();
        let result = outcome();
        if self.running(node).is_some() {
            self.reads.push(WaitingRead { node, floor, outcome: Arc::clone(&result) });
            self.local(node, LocalRequestMsg::ReadIndex { reply: responder(&result) });
        }
        result
    }

    pub(crate) fn reserve_id(&mut self, node: NodeId) {
        let result = outcome();
        self.reservations.push(Arc::clone(&result));
        let request = LeaderRequest::ReserveNodeId { reply: responder(&result) };
        self.local(node, LocalRequestMsg::ForLeader(request));
    }

    /// Asks for a change without regard to majorities and to how far nodes are behind: what raft itself must stand.
    pub(crate) fn change(
        &mut self,
        node: NodeId,
        change: MembershipChange,
    ) -> Outcome<Result<Members, MembershipError>> {
        self.request(node, MembershipRequest::from(change).forced())
    }

    /// Asks for a change as a user does.
    pub(crate) fn request(
        &mut self,
        node: NodeId,
        request: MembershipRequest,
    ) -> Outcome<Result<Members, MembershipError>> {
        let result = outcome();
        let reply = responder(&result);
        self.local(node, LocalRequestMsg::ForLeader(LeaderRequest::ChangeMembership { request, reply }));
        result
    }

    /// Asks for a change that is to be answered within this time.
    pub(crate) fn request_within(
        &mut self,
        node: NodeId,
        request: MembershipRequest,
        within: std::time::Duration,
    ) -> Outcome<Result<Members, MembershipError>> {
        let result = outcome();
        let request = LeaderRequest::ChangeMembership { request, reply: responder(&result) };
        self.local(node, LocalRequestMsg::ForLeaderWithin { request, within, waits: true });
        result
    }

    pub(crate) fn make_snapshot(&mut self, node: NodeId) -> Outcome<Result<LogPosition, SnapshotError>> {
        let result = outcome();
        self.local(node, LocalRequestMsg::MakeSnapshot { reply: responder(&result) });
        result
    }

    pub(crate) fn tick(&mut self, node: NodeId) {
        self.probe_members(node);
        if let Some(running) = self.running(node) {
            running.core.tick();
            self.run_turns(node);
        }
    }

    /// Tells `node` which members it can connect to at their addresses.
    fn probe_members(&mut self, node: NodeId) {
        let Some(status) = self.status(node) else { return };
        for member in status.members.iter().filter(|member| member.id != node) {
            let peer = member.id;
            let is_up = self.nodes.get(&peer).is_some_and(|node| node.running.is_some());
            let is_reached = is_up
                && !self.unreachable.contains(&peer)
                && !self.cut.contains(&(node, peer))
                && !self.cut.contains(&(peer, node));
            let incarnation = self.nodes.get(&peer).map(|node| node.incarnation);
            let believed = is_reached.then(|| self.ask_whether_believed(node, peer)).flatten();
            let Some(running) = self.running(node) else { return };
            match incarnation.filter(|_| is_reached) {
                Some(incarnation) => running.core.peer_reached(peer, incarnation, member.address.clone()),
                None => running.core.peer_unreached(peer),
            }
            match believed {
                Some(Ok(())) => running.core.peer_agrees(peer),
                Some(Err(refusal)) => running.core.refused_by(peer, refusal),
                None if is_reached => {}
                None => running.core.peer_is_silent(peer),
            }
            self.stop_if_it_must(node);
        }
    }

    /// What `peer` says to `node`, which asks it before it votes or acknowledges anything; `None` if it is too early.
    fn ask_whether_believed(&mut self, node: NodeId, peer: NodeId) -> Option<Result<(), SenderRefusal>> {
        let (sender, receiver) = self.may_introduce(node, peer).filter(|_| !self.mute.contains(&peer))?;
        Some(self.running(peer)?.core.check_sender(&sender, receiver))
    }

    /// Carries out everything that `node` wants done, up to what takes time.
    pub(crate) fn run_turns(&mut self, node: NodeId) {
        while let Some(turn) = self.running(node).and_then(|running| running.core.ready()) {
            self.run_turn(node, turn);
        }
        let Some(status) = self.status(node) else { return };
        self.check_reads(node);
        let running = self.running(node).unwrap();
        assert!(status.commit >= running.commit, "the commit index of {node} fell from {}", running.commit);
        running.commit = status.commit;
        let this = self.nodes.get_mut(&node).unwrap();
        if status.role == Role::Leader {
            let stored = this.disk.load().unwrap();
            let mut log = read_log(&this.disk, &stored);
            for (_, write, _) in &this.running.as_ref().unwrap().to_write {
                for entry in write.iter().flat_map(|write| &write.append) {
                    log.split_off(&entry.position.index);
                    log.insert(entry.position.index, (entry.position.term, entry.kind));
                }
            }
            self.truth.saw_leader(&status, &log, stored.truncated);
        }
        self.stop_if_it_must(node);
    }

    /// Whoever is answered must find everything that was acknowledged before, and find it applied.
    fn check_reads(&mut self, node: NodeId) {
        let Some(applied) = self.running(node).map(|running| running.state.at.index) else { return };
        for read in self.reads.extract_if(.., |read| read.node == node && take(&read.outcome).is_some()) {
            if let Some(Ok(index)) = take(&read.outcome) {
                let floor = read.floor;
                assert!(index >= floor, "a read at {index} misses what was acknowledged at {floor}");
                assert!(applied >= index, "a read at {index} was answered when only {applied} was applied");
            }
        }
    }

    fn stop_if_it_must(&mut self, node: NodeId) {
        let Some(running) = self.running(node) else { return };
        if let Some(reason) = running.core.stop_reason().cloned() {
            running.core.stop(&reason);
            self.trace.push(format!("{node} stops: {reason}"));
            let this = self.nodes.get_mut(&node).unwrap();
            this.running = None;
            this.stopped_because = Some(reason);
        }
    }

    fn run_turn(&mut self, node: NodeId, turn: Turn<ProposalWaiter>) {
        let reader = self.nodes[&node].disk.log_reader();
        let fetched: Vec<_> =
            turn.fetch.into_iter().map(|f| (f, reader.read(f.from, f.until, f.bytes_max))).collect();
        if self.on_disk.contains(&node) {
            let durable = self.nodes.get_mut(&node).unwrap().disk.load().unwrap().last.index;
            for item in &turn.committed {
                let index = item.position().index;
                assert!(
                    index <= durable || index == LogIndex(1),
                    "{node} may lose {index}, which it applies"
                );
            }
        }
        let running = self.running(node).unwrap();
        if turn.write.is_some() || !turn.send_after.is_empty() {
            running.to_write.push_back((turn.number, turn.write, turn.send_after));
        }
        running.to_apply.extend(turn.committed.into_iter().map(ToApply::Committed));
        if turn.take_snapshot.is_some() {
            running.to_apply.push_back(ToApply::TakeSnapshot);
        }
        if turn.hurry_snapshot {
            running.to_apply.push_back(ToApply::HurrySnapshot);
        }
        for (fetch, result) in fetched {
            running.core.fetched(fetch, result);
        }
        self.send(node, turn.send_now);
        for send in turn.send_snapshots {
            let (snapshot, _, mut reader) = self.nodes[&node].disk.snapshots().open(send.position).unwrap();
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            let (sender, receiver) = self.introduction(node, send.to);
            let packet = Packet::Snapshot { sender, receiver, sent: send, snapshot, data };
            self.snapshots_on_their_way.push(((node, send.to), packet));
        }
        if !self.slow_snapshots {
            self.deliver_snapshots();
        }
        for forward in turn.forward {
            self.links.entry((node, forward.to)).or_default().push_back(Packet::Request(forward.request));
        }
        if let Some(round) = turn.read_round {
            let packet = Packet::ReadRound { round: round.round };
            self.links.entry((node, round.leader)).or_default().push_back(packet);
        }
    }

    /// How many snapshots that were on their way go to the ends of their links.
    pub(crate) fn deliver_snapshots(&mut self) -> usize {
        let snapshots = std::mem::take(&mut self.snapshots_on_their_way);
        let count = snapshots.len();
        for (link, packet) in snapshots {
            self.links.entry(link).or_default().push_back(packet);
        }
        count
    }

    pub(crate) fn is_sending_snapshots(&self) -> bool {
        !self.snapshots_on_their_way.is_empty()
    }

    pub(crate) fn introduction(&self, from: NodeId, to: NodeId) -> (Sender, Option<Incarnation>) {
        self.may_introduce(from, to).expect("its start is durable")
    }

    /// `None` before the start of `from` is durable.
    fn may_introduce(&self, from: NodeId, to: NodeId) -> Option<(Sender, Option<Incarnation>)> {
        let core = &self.nodes[&from].running.as_ref()?.core;
        let receiver = core.status().members.get(to).and_then(|member| member.incarnation);
        Some((core.sender()?, receiver))
    }

    fn send(&mut self, from: NodeId, messages: Vec<RaftMessage>) {
        for message in messages {
            let to = message.to;
            let Some((sender, receiver)) = self.may_introduce(from, to) else { continue };
            let packet = Packet::Raft { sender, receiver, messages: vec![message] };
            self.links.entry((from, to)).or_default().push_back(packet);
        }
    }

    /// The oldest waiting write of `node` becomes durable.
    pub(crate) fn complete_write(&mut self, node: NodeId) -> bool {
        self.complete_writes(node, 1)
    }

    /// The `count` oldest waiting writes of `node` become durable together.
    pub(crate) fn complete_writes(&mut self, node: NodeId, count: usize) -> bool {
        if self.hung_disks.contains(&node) {
            return false;
        }
        let Some((number, send_after)) = self.write_queued(node, count) else {
            return false;
        };
        let core = &mut self.running(node).unwrap().core;
        core.written(number);
        // News that come twice, or of an older write after a newer one, change nothing.
        core.written(number);
        core.written(TurnNumber(number.0.saturating_sub(1)));
        self.send(node, send_after);
        self.run_turns(node);
        true
    }

    /// Writes up to `count` waiting turns as one. The last one's number, and what may be sent now.
    fn write_queued(&mut self, node: NodeId, count: usize) -> Option<(TurnNumber, Vec<RaftMessage>)> {
        let this = self.nodes.get_mut(&node)?;
        let to_write = &mut this.running.as_mut()?.to_write;
        let (mut written, mut writes, mut send_after) = (None, Vec::new(), Vec::new());
        for (number, write, messages) in to_write.drain(..count.min(to_write.len())) {
            written = Some(number);
            writes.extend(write);
            send_after.extend(messages);
        }
        let mut before = this.disk.load().unwrap();
        for write in &writes {
            self.truth.saw_write(node, this.incarnation, &before, write);
            before = before.after(write).unwrap();
            if write.reset_log.is_some() && write.snapshot.is_some() {
                self.truth.snapshots_installed += 1;
            }
        }
        this.disk.write(&writes).unwrap();
        Some((written?, send_after))
    }

    /// The state machine of `node` takes its next item.
    pub(crate) fn apply_one(&mut self, node: NodeId) -> bool {
        let this = self.nodes.get_mut(&node).unwrap();
        let Some(running) = &mut this.running else {
            return false;
        };
        let Some(item) = running.to_apply.pop_front() else {
            return false;
        };
        match item {
            ToApply::TakeSnapshot if self.rng.random_range(0..100) < self.failing_snapshots_percent => {
                running.core.snapshot_taken(Err("the disk is full".to_owned()));
            }
            ToApply::TakeSnapshot => {
                let meta = SnapshotMeta {
                    cluster_id: CLUSTER,
                    position: running.state.at,
                    members: running.members.clone(),
                };
                running.captured = Some((meta, running.state.encode()));
                if !self.leisurely_snapshots {
                    write_out(&this.disk, running);
                }
            }
            ToApply::HurrySnapshot => write_out(&this.disk, running),
            ToApply::Committed(committed) => {
                let position = committed.position();
                match committed {
                    Committed::User { position, payload, reply } => {
                        let number = u64::from_le_bytes(payload.as_ref().try_into().unwrap());
                        assert_eq!(position.index, running.state.at.index.next(), "{node} skips an entry");
                        running.state.numbers.push(number);
                        let entry = Entry { position, kind: EntryKind::User, payload };
                        self.truth.saw_applied(node, entry);
                        if let Some(reply) = reply {
                            reply.answer(Ok(position));
                        }
                    }
                    Committed::Members { members, .. } => running.members = Members::clone(&members),
                    Committed::Nothing { .. } => {}
                    Committed::Install { snapshot } => {
                        let (_, _, mut reader) = this.disk.snapshots().open(snapshot.position).unwrap();
                        let mut data = Vec::new();
                        reader.read_to_end(&mut data).unwrap();
                        running.state = State::decode(&data, snapshot.position);
                        running.members = snapshot.members.clone();
                    }
                }
                assert!(position.index >= running.state.at.index, "{node} goes back");
                running.state.at = position;
                self.truth.saw_members(node, position.index, &running.members);
                running.core.applied(position.index);
            }
        }
        self.run_turns(node);
        true
    }

    fn take_packet(&mut self, from: NodeId, to: NodeId) -> Option<Packet> {
        let packets = self.links.get_mut(&(from, to))?;
        if packets.is_empty() || self.rng.random_range(0..100) >= self.disorder_percent {
            return packets.pop_front();
        }
        let place = self.rng.random_range(0..packets.len());
        let packet = packets.remove(place)?;
        if let Packet::Raft { sender, receiver, messages } = &packet {
            let copy = Packet::Raft { sender: *sender, receiver: *receiver, messages: messages.clone() };
            let place = self.rng.random_range(0..=packets.len());
            packets.insert(place, copy);
        }
        Some(packet)
    }

    /// The next packet on a link arrives, or is lost.
    pub(crate) fn deliver(&mut self, from: NodeId, to: NodeId) -> bool {
        let Some(packet) = self.take_packet(from, to) else {
            return false;
        };
        let lost = self.cut.contains(&(from, to)) || self.rng.random_range(0..100) < self.loss_percent;
        let up = self.nodes.get(&to).is_some_and(|node| node.running.is_some());
        if lost || !up {
            lose(packet, from, &self.events);
            if let Some(running) = self.running(from) {
                running.core.report_unreachable(to);
                self.run_turns(from);
            }
            return true;
        }
        if let Packet::Raft { sender, receiver, .. } | Packet::Snapshot { sender, receiver, .. } = &packet
            && let status = self.status(to).unwrap()
            && let Some(identity) = &status.identity
        {
            let (sender, receiver, identity) = (*sender, *receiver, *identity);
            let believed = status
                .members
                .check_sender(&sender, receiver, &identity)
                .and_then(|()| self.running(to).unwrap().core.remembered().check(&sender));
            if let Err(refusal) = believed {
                lose(packet, from, &self.events);
                if !matches!(refusal, SenderRefusal::Fenced { .. } | SenderRefusal::NotAMember { .. })
                    && let Some(running) = self.running(to)
                {
                    let news = ServerRequestMsg::RaftMessages { sender, receiver, messages: Vec::new() };
                    running.core.handle_server_request_msg(news);
                    self.stop_if_it_must(to);
                }
                if let Some(running) = self.running(from) {
                    running.core.refused_by(to, refusal);
                    self.stop_if_it_must(from);
                }
                return true;
            }
        }
        let events = Arc::clone(&self.events);
        let message = match packet {
            Packet::Raft { sender, receiver, messages } => {
                ServerRequestMsg::RaftMessages { sender, receiver, messages }
            }
            Packet::Snapshot { sender, receiver, sent, snapshot, data } => {
                let store = self.nodes[&to].disk.snapshots();
                let mut writer = store.create(&snapshot).unwrap();
                writer.write_all(&data).unwrap();
                writer.finish().unwrap();
                let reply = Responder::new(move |answer: Result<(), InstallError>| {
                    let outcome = answer.map_err(|error| error.to_string());
                    events.lock().unwrap().push_back(Event::SnapshotSent { from, sent, outcome });
                });
                let term = sent.term;
                ServerRequestMsg::InstallSnapshot { sender, receiver, term, snapshot, reply }
            }
            Packet::Request(request) => {
                ServerRequestMsg::ForLeader { request, forwarding: Forwarding::Never }
            }
            Packet::ReadRound { round } => {
                let reply = Responder::new(move |answer| {
                    let event = Event::ReadRoundAnswered { node: from, round, answer };
                    events.lock().unwrap().push_back(event);
                });
                ServerRequestMsg::ConfirmReadIndex { reply }
            }
        };
        self.running(to).unwrap().core.handle_server_request_msg(message);
        self.run_turns(to);
        true
    }

    /// Hands on what other nodes answered.
    pub(crate) fn handle_events(&mut self) {
        loop {
            let Some(event) = self.events.lock().unwrap().pop_front() else {
                return;
            };
            let node = match event {
                Event::SnapshotSent { from, sent, outcome } => {
                    if let Some(running) = self.running(from) {
                        running.core.snapshot_sent(sent, outcome);
                    }
                    from
                }
                Event::ReadRoundAnswered { node, round, answer } => {
                    if let Some(running) = self.running(node) {
                        running.core.read_round_answered(round, answer);
                    }
                    node
                }
            };
            self.run_turns(node);
        }
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// How many packets are under way on a link.
    pub(crate) fn packets(&self, from: NodeId, to: NodeId) -> usize {
        self.links.get(&(from, to)).map_or(0, VecDeque::len)
    }

    fn busy_links(&self) -> Vec<(NodeId, NodeId)> {
        self.links.iter().filter(|(_, packets)| !packets.is_empty()).map(|(link, _)| *link).collect()
    }

    /// Everything that is under way, in a random order, until nothing is.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.handle_events();
            let mut choices: Vec<Choice> =
                self.busy_links().into_iter().map(|(a, b)| Choice::Deliver(a, b)).collect();
            for (node, this) in &self.nodes {
                if let Some(running) = &this.running {
                    if !running.to_write.is_empty() && !self.hung_disks.contains(node) {
                        choices.push(Choice::Write(*node));
                    }
                    if !running.to_apply.is_empty() {
                        choices.push(Choice::Apply(*node));
                    }
                }
            }
            if choices.is_empty() {
                return;
            }
            let choice = choices[self.rng.random_range(0..choices.len())];
            self.carry_out(choice);
        }
        panic!("the cluster never comes to rest");
    }

    fn carry_out(&mut self, choice: Choice) {
        match choice {
            Choice::Deliver(from, to) => self.deliver(from, to),
            Choice::Write(node) => self.complete_write(node),
            Choice::Apply(node) => self.apply_one(node),
        };
    }

    /// A few random deliveries, writes and applications: work stays under way.
    pub(crate) fn jostle(&mut self, steps: usize) {
        let nodes = self.ids();
        for _ in 0..steps {
            self.handle_events();
            let node = nodes[self.rng.random_range(0..nodes.len())];
            let links = self.busy_links();
            match self.rng.random_range(0..4) {
                0 => {
                    let count = self.rng.random_range(1..4);
                    self.complete_writes(node, count);
                }
                1 if !self.slow.contains(&node) || self.rng.random_bool(0.1) => {
                    self.apply_one(node);
                }
                _ if !links.is_empty() => {
                    let (from, to) = links[self.rng.random_range(0..links.len())];
                    self.deliver(from, to);
                }
                _ => {}
            }
        }
    }

    /// Lets time pass for all, settling after each tick.
    pub(crate) fn pass_ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for node in self.ids() {
                self.tick(node);
            }
            self.settle();
        }
    }

    /// Lets time pass until `condition` holds.
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Cluster) -> bool) {
        for _ in 0..2000 {
            if condition(self) {
                return;
            }
            self.pass_ticks(1);
        }
        let statuses: Vec<String> = self.ids().into_iter().map(|node| self.summary(node)).collect();
        panic!(
            "never came true: {what} (seed {})\n{}\n{}",
            self.seed,
            self.trace.join("\n"),
            statuses.join("\n")
        );
    }

    fn summary(&mut self, node: NodeId) -> String {
        let report = outcome();
        self.local(node, LocalRequestMsg::Inspect { reply: responder(&report) });
        let progress = take(&report).and_then(Result::ok).map(|report| report.progress);
        let Some(status) = self.status(node) else {
            return format!("{node}: stopped");
        };
        let members: Vec<String> =
            status.members.iter().map(|m| format!("{}:{}:{:?}", m.id, m.role, m.incarnation)).collect();
        format!(
            "{node}: {} of term {}, leader {:?}, commit {}, applied {}, last {}, log after {}, members {members:?} as of {} joint {} snapshot {:?} {progress:?}",
            status.role,
            status.term,
            status.leader_id,
            status.commit,
            status.applied,
            status.last,
            status.truncated,
            status.members.as_of(),
            status.members.is_joint(),
            status.snapshot,
        )
    }

    pub(crate) fn until_leader(&mut self) -> NodeId {
        self.until("there is a leader that all running members follow", |cluster| {
            let Some(leader) = cluster.leader() else {
                return false;
            };
            let status = cluster.status(leader).unwrap();
            status.members.iter().all(|member| {
                let known = cluster.nodes.get(&member.id).and_then(|_| cluster.status(member.id));
                known.is_none_or(|other| other.leader_id == Some(leader) && other.term == status.term)
            })
        });
        self.leader().unwrap()
    }

    /// Proposes on `node`, and then on whoever leads, until one proposal is applied.
    pub(crate) fn until_proposed(&mut self, node: NodeId) -> LogPosition {
        let mut result = self.propose(node);
        let mut position = None;
        self.until("a proposal is applied", |cluster| {
            match take(&result) {
                Some(Ok(applied)) => position = Some(applied),
                // It may have been removed meanwhile.
                Some(Err(_)) => result = cluster.propose(cluster.leader().unwrap_or(node)),
                None => {}
            }
            position.is_some()
        });
        position.unwrap()
    }

    fn collect_acknowledged(&mut self) {
        let answered = self.proposals.extract_if(.., |(_, outcome)| outcome.lock().unwrap().is_some());
        for (number, outcome) in answered.collect::<Vec<_>>() {
            if let Some(Ok(position)) = take(&outcome) {
                self.acknowledged.push((number, position));
            }
        }
    }

    /// Everything is repaired: the cluster must become live, all members equal, and nothing acknowledged missing.
    pub(crate) fn check_recovery(&mut self) {
        self.cut.clear();
        self.hung_disks.clear();
        self.mute.clear();
        self.loss_percent = 0;
        self.disorder_percent = 0;
        self.failing_snapshots_percent = 0;
        self.slow.clear();
        for node in self.ids() {
            if self.nodes[&node].running.is_none() && !self.wiped.contains(&node) {
                self.start(node);
            }
        }
        let leader = self.until_leader();
        self.until_proposed(leader);
        self.until("all members have applied everything", |cluster| {
            let Some(leader) = cluster.leader() else {
                return false;
            };
            let status = cluster.status(leader).unwrap();
            status.members.iter().all(|member| {
                let Some(node) = cluster.nodes.get(&member.id) else {
                    return true;
                };
                let Some(running) = node.running.as_ref() else {
                    return true;
                };
                running.state.at.index == status.last.index && status.applied == status.last.index
            })
        });
        self.pass_ticks(400);
        self.collect_acknowledged();
        let leader = self.leader().unwrap();
        let state = self.running(leader).unwrap().state.clone();
        for (number, position) in &self.acknowledged {
            let times = state.numbers.iter().filter(|applied| *applied == number).count();
            assert_eq!(times, 1, "acknowledged proposal {number} at {position} was applied {times} times");
        }
        let members = self.status(leader).unwrap().members;
        for member in members.iter() {
            if let Some(running) = self.running(member.id) {
                assert_eq!(running.state, state, "{} differs from the leader {leader}", member.id);
            }
        }
        let unanswered: Vec<u64> = self.proposals.iter().map(|(number, _)| *number).collect();
        assert!(unanswered.is_empty(), "never answered: {unanswered:?}");
        assert!(self.reads.iter().all(|read| take(&read.outcome).is_some()), "a read was never answered");
        for reservation in std::mem::take(&mut self.reservations) {
            if let Ok(reservation) = take(&reservation).expect("every reservation is answered") {
                self.truth.saw_reservation(reservation.node_id);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Choice {
    Deliver(NodeId, NodeId),
    Write(NodeId),
    Apply(NodeId),
}

/// Term and kind of each entry.
type Log = BTreeMap<LogIndex, (Term, EntryKind)>;

fn read_log(disk: &MemoryStorage, stored: &StoredState) -> Log {
    let first = stored.truncated.index.next();
    if first > stored.last.index {
        return Log::new();
    }
    let entries = disk.log_reader().read(first, stored.last.index.next(), u64::MAX).unwrap();
    entries.into_iter().map(|entry| (entry.position.index, (entry.position.term, entry.kind))).collect()
}

/// The snapshot that was captured is written to its end.
fn write_out(disk: &MemoryStorage, running: &mut Running) {
    let Some((meta, data)) = running.captured.take() else { return };
    let mut writer = disk.snapshots().create(&meta).unwrap();
    writer.write_all(&data).unwrap();
    writer.finish().unwrap();
    running.core.snapshot_taken(Ok(meta));
}

/// A packet does not arrive: whoever sent it learns what a broken connection tells.
fn lose(packet: Packet, from: NodeId, events: &Events) {
    let lost = || "the connection broke".to_owned();
    match packet {
        Packet::Raft { .. } => {}
        Packet::Snapshot { sent, .. } => {
            events.lock().unwrap().push_back(Event::SnapshotSent { from, sent, outcome: Err(lost()) });
        }
        Packet::Request(LeaderRequest::Propose { reply, .. }) => {
            reply.refuse(ProposeError::Unknown(UnknownOutcome::ConnectionLost(lost())));
        }
        Packet::Request(_) => {}
        Packet::ReadRound { round } => {
            let answer = Err(ReadError::ConnectionLost(lost()));
            events.lock().unwrap().push_back(Event::ReadRoundAnswered { node: from, round, answer });
        }
    }
}
