//! What a node asks of its storage in its life, drawn from a seed, and what must be there after each step.

use bytes::Bytes;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, LogIndex, LogPosition, Member, Members,
    NodeId, SnapshotMeta, Term,
};

use super::disk::chance;

/// All that is stored but the snapshots' data.
pub(crate) type Content = (StoredState, Vec<Entry>);

pub(crate) enum Step {
    Write(Vec<Write>),
    /// Writes a snapshot with this data and finishes it.
    Snapshot(SnapshotMeta, Vec<u8>),
    /// Receives one with this data, breaks off half way, goes on and finishes it.
    Received(SnapshotMeta, Vec<u8>),
    /// Removes all snapshots but this one.
    Retain(LogPosition),
}

pub(crate) struct Workload {
    pub(crate) steps: Vec<Step>,
    /// What is there at first, and after each single `Write`.
    pub(crate) contents: Vec<Content>,
}

impl Step {
    /// What is written of a snapshot.
    pub(crate) fn snapshot(&self) -> Option<(&SnapshotMeta, &[u8])> {
        match self {
            Step::Snapshot(meta, data) | Step::Received(meta, data) => Some((meta, data)),
            Step::Write(_) | Step::Retain(_) => None,
        }
    }
}

impl Workload {
    pub(crate) fn new(seed: u64, steps: usize) -> Workload {
        let mut draw = Draw { seed, drawn: 0 };
        let mut workload = Workload { steps: Vec::new(), contents: vec![Content::default()] };
        let identity =
            Identity { cluster_id: ClusterId(7), node_id: NodeId::FIRST, incarnation: Incarnation(seed + 1) };
        let first = workload.accept(Write {
            identity: Some(identity),
            members: Some(members(0)),
            ..Write::default()
        });
        workload.step(first.into_iter().collect());
        while workload.steps.len() < steps {
            match draw.below(24) {
                0..3 => workload.take_snapshot(&mut draw),
                3 => workload.install_snapshot(),
                _ => {
                    let mut batch = Vec::new();
                    for _ in 0..=draw.below(3) {
                        let write = workload.write_of(&mut draw);
                        batch.extend(workload.accept(write));
                    }
                    workload.step(batch);
                }
            }
        }
        workload
    }

    /// How many of the `contents` are behind the first `steps`.
    pub(crate) fn writes(&self, steps: usize) -> usize {
        let writes = |step: &Step| if let Step::Write(writes) = step { writes.len() } else { 0 };
        self.steps[..steps].iter().map(writes).sum()
    }

    /// The single write that follows where this is there, and what is there after it; none if it needs a
    /// snapshot's data.
    pub(crate) fn next_after(&self, content: &Content) -> Option<(Step, Content)> {
        let at = self.contents.iter().position(|other| other == content)?;
        let mut writes = self.steps.iter().flat_map(|step| match step {
            Step::Write(writes) => writes.as_slice(),
            Step::Snapshot(..) | Step::Received(..) | Step::Retain(_) => &[],
        });
        let write = writes.nth(at).filter(|write| write.snapshot.is_none())?;
        Some((Step::Write(vec![write.clone()]), self.contents[at + 1].clone()))
    }

    fn now(&self) -> &Content {
        self.contents.last().expect("it begins with one")
    }

    /// Gives the write back if the storage would accept it.
    fn accept(&mut self, write: Write) -> Option<Write> {
        self.contents.push(after(self.now(), &write)?);
        Some(write)
    }

    fn step(&mut self, batch: Vec<Write>) {
        if !batch.is_empty() {
            self.steps.push(Step::Write(batch));
        }
    }

    fn write_of(&self, draw: &mut Draw) -> Write {
        let (state, _) = self.now();
        let HardState { term, vote, commit } = state.hard_state;
        let term = Term((term.0 + draw.below(4) / 3).max(1));
        // Sometimes in the place of entries that are not committed.
        let last = state.last.index.0
            - draw.below(3).min(state.last.index.0 - commit.0.max(state.truncated.index.0));
        let append = (0..draw.below(4)).map(|at| {
            let length = if draw.below(12) == 0 { draw.below(20_000) } else { draw.below(700) };
            let payload: Vec<u8> = (0..length).map(|byte| (byte * 7 + draw.seed + last) as u8).collect();
            Entry {
                position: LogPosition::new(term.0, last + 1 + at),
                kind: EntryKind::User,
                payload: Bytes::from(payload),
            }
        });
        let append: Vec<Entry> = append.collect();
        let end = append.last().map_or(state.last.index.0, |entry| entry.position.index.0);
        let vote =
            if term == state.hard_state.term && vote.is_some() { vote } else { NodeId::new(draw.below(3)) };
        let commit = LogIndex(commit.0 + draw.below(1 + end.saturating_sub(commit.0).min(4)));
        let members = (draw.below(8) == 0).then(|| members(commit.0));
        let hard_state = Some(HardState { term, vote, commit });
        Write { append, hard_state, members, ..Write::default() }
    }

    /// Of what is committed; then the log is compacted, and the one before removed.
    fn take_snapshot(&mut self, draw: &mut Draw) {
        let (state, entries) = self.now();
        let committed = entries.iter().rev().find(|entry| entry.position.index <= state.hard_state.commit);
        let Some(position) = committed.map(|entry| entry.position) else { return };
        if state.snapshot.as_ref().is_some_and(|snapshot| snapshot.position.index >= position.index) {
            return;
        }
        let until = position.index.0 - draw.below(3);
        let compact =
            entries.iter().find(|entry| entry.position.index.0 == until).map(|entry| entry.position);
        let write = Write { snapshot: Some(meta(position)), compact, ..Write::default() };
        self.record_snapshot(write, Step::Snapshot);
    }

    /// Of another node, beyond the end of the log.
    fn install_snapshot(&mut self) {
        let (state, _) = self.now();
        let term = state.hard_state.term.0.max(1);
        let position = LogPosition::new(term, state.last.index.0 + 3);
        let hard_state = HardState { term: Term(term), commit: position.index, ..state.hard_state };
        let meta = meta(position);
        let write = Write {
            reset_log: Some(position),
            hard_state: Some(hard_state),
            members: Some(meta.members.clone()),
            snapshot: Some(meta),
            ..Write::default()
        };
        self.record_snapshot(write, Step::Received);
    }

    fn record_snapshot(&mut self, write: Write, step: fn(SnapshotMeta, Vec<u8>) -> Step) {
        let Some(meta) = write.snapshot.clone() else { return };
        if let Some(write) = self.accept(write) {
            self.steps.push(step(meta.clone(), data_of(meta.position)));
            self.step(vec![write]);
            self.steps.push(Step::Retain(meta.position));
        }
    }
}

/// The data of the snapshot at `position`: of several blocks, some of them.
fn data_of(position: LogPosition) -> Vec<u8> {
    let length = chance(position.index.0, 0) % 100_000;
    (0..length).map(|byte| (byte + position.index.0) as u8).collect()
}

fn meta(position: LogPosition) -> SnapshotMeta {
    SnapshotMeta { cluster_id: ClusterId(7), position, members: members(position.index.0) }
}

fn members(number: u64) -> Members {
    let member = |id: u64| {
        let id = NodeId::new(id).expect("it is not zero");
        Member::voter(id, format!("node-{id}-{number}.example:60061"))
    };
    Members::initial([member(1), member(2)]).expect("they differ")
}

fn after((state, entries): &Content, write: &Write) -> Option<Content> {
    let state = state.after(write).ok()?;
    let mut entries = entries.clone();
    if write.reset_log.is_some() {
        entries.clear();
    }
    if let Some(first) = write.append.first() {
        entries.retain(|entry| entry.position.index < first.position.index);
        entries.extend_from_slice(&write.append);
    }
    entries.retain(|entry| entry.position.index > state.truncated.index);
    Some((state, entries))
}

struct Draw {
    seed: u64,
    drawn: usize,
}

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        chance(self.seed, self.drawn) % bound
    }
}
