//! The steps of one proposal and their times: the nodes mark each step with a trace event of the target
//! `raftify::timing`, and this layer combines them for each proposal. All nodes are in this process, so that
//! one clock is enough.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use raftify::{BoxError, NodeId};
use raftify_free_address::free_address;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::disk;
use crate::Work;
use crate::cluster::{NODES, PATIENCE, PAUSE};
use crate::line::Line;
use crate::measure::{Recorder, rounded};
use crate::node::{NodeOptions, Payload, Running, Storage};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Path {
    /// How many clients propose at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 256])]
    clients: Vec<u64>,
    /// Bytes of one entry
    #[arg(long, default_value_t = 64)]
    entry_bytes: usize,
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
    /// How long each run takes
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// The steps of a node, by the number in the field `step` of the events.
#[derive(Clone, Copy)]
enum Step {
    Woken,
    Append,
    Write,
    Durable,
    Commit,
    Applied = 6,
}

const STEPS: usize = 7;

/// The names of the parts of a proposal's time, in order. Their sum is the whole time.
const PARTS: [&str; 9] = [
    "to the leader's loop",
    "leader's core",
    "to the follower's loop",
    "follower's core",
    "to the follower's log writer",
    "follower's durable write",
    "back, until a majority has it",
    "to the state machine, and applying",
    "reply to the client",
];

static MARKS: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

fn marks() -> MutexGuard<'static, Vec<Mark>> {
    MARKS.lock()
}

struct Mark {
    at: Instant,
    node: u64,
    step: u64,
    last: u64,
}

/// Records the time of each mark.
struct Recording;

impl<S: Subscriber> Layer<S> for Recording {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut mark = Mark { at: Instant::now(), node: 0, step: u64::MAX, last: 0 };
        event.record(&mut mark);
        marks().push(mark);
    }
}

impl Visit for Mark {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "node" => self.node = value,
            "step" => self.step = value,
            "last" => self.last = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

/// One proposal, as its client saw it.
struct Proposal {
    sent: Instant,
    answered: Instant,
    index: u64,
}

impl Path {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(self.clients.len())?;
        let timing = Targets::new().with_target("raftify::timing", LevelFilter::TRACE);
        tracing_subscriber::registry().with(Recording.with_filter(timing)).try_init()?;
        for clients in &self.clients {
            work.reporter.step(format!("{clients} clients"))?;
            self.measure(work, *clients)?;
        }
        Ok(())
    }

    fn measure(&self, work: &Work, clients: u64) -> Result<(), BoxError> {
        let directory = tempfile::tempdir_in(&work.directory)?;
        let addresses: Vec<String> = (0..NODES).map(|_| free_address()).collect();
        let options = NodeOptions::of(self.storage);
        let start =
            |id: u64| Running::start(id, &directory.path().join(id.to_string()), &addresses, &options);
        let nodes = (1..=NODES).map(start).collect::<Result<Vec<_>, _>>()?;
        let first = nodes.first().ok_or("there are no nodes")?;
        let leader: NodeId = first.runtime.block_on(first.raft.wait_for_leader())?;
        let node = nodes.iter().find(|node| node.raft.id() == leader).ok_or("the leader is unknown")?;
        let followers_ready = Instant::now();
        while nodes.iter().any(|node| node.raft.leader_id() != Some(leader)) {
            if followers_ready.elapsed() > PATIENCE {
                return Err("the nodes did not agree on a leader".into());
            }
            std::thread::sleep(PAUSE);
        }
        let probe = disk::probe(&work.directory)?;
        let duration = Duration::from_secs_f64(self.seconds);
        propose(node, clients, duration / 4, self.entry_bytes)?;
        marks().clear();
        let proposals = propose(node, clients, duration, self.entry_bytes)?;
        let timeline = Timeline::of(&std::mem::take(&mut *marks()), leader.get());
        let line = self.line(clients, &proposals, &timeline);
        work.reporter.result(Line { disk_fdatasync_p50_us: Some(probe), ..line })?;
        nodes.into_iter().try_for_each(Running::stop)
    }

    fn line(&self, clients: u64, proposals: &[Proposal], timeline: &Timeline) -> Line {
        let mut whole = Recorder::new();
        let mut sums = [Duration::ZERO; PARTS.len()];
        let (mut seen, mut own_write, mut fsync) = (0_u32, Duration::ZERO, Duration::ZERO);
        for proposal in proposals {
            whole.record(proposal.answered - proposal.sent);
            let Some(way) = timeline.way(proposal) else { continue };
            seen += 1;
            for (sum, pair) in sums.iter_mut().zip(way.times.windows(2)) {
                *sum += pair[1].saturating_duration_since(pair[0]);
            }
            own_write += way.own_write;
            fsync += way.follower_write;
        }
        let mean = |sum: Duration| rounded(sum.as_secs_f64() * 1e6 / f64::from(seen.max(1)), 1);
        let total: Duration = sums.iter().sum();
        let parts: Vec<_> =
            PARTS.iter().zip(sums).map(|(part, sum)| json!({ "part": part, "mean_us": mean(sum) })).collect();
        let line = Line {
            storage: Some(self.storage.name().to_owned()),
            nodes: Some(NODES),
            clients: Some(clients),
            entry_bytes: Some(self.entry_bytes as u64),
            fsync: Some(self.storage.is_synced()),
            ..Line::of("path")
        };
        line.measured(&whole.measured(Duration::from_secs_f64(self.seconds)))
            .with("proposals_followed", seen)
            .with("mean_us", mean(total))
            .with("parts", parts)
            .with("leaders_own_write_mean_us", mean(own_write))
            .with("follower_write_call_mean_us", mean(fsync))
    }
}

fn propose(
    node: &Running,
    clients: u64,
    duration: Duration,
    entry_bytes: usize,
) -> Result<Vec<Proposal>, BoxError> {
    let payload = Payload(Bytes::from(vec![7; entry_bytes]));
    let begin = Instant::now();
    let tasks = (0..clients).map(|_| {
        let (raft, payload) = (node.raft.clone(), payload.clone());
        node.runtime.spawn(async move {
            let mut proposals = Vec::new();
            while begin.elapsed() < duration {
                let sent = Instant::now();
                let index = raft.propose(payload.clone()).await?;
                proposals.push(Proposal { sent, answered: Instant::now(), index });
            }
            Ok::<_, BoxError>(proposals)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(node.runtime.block_on(task)??);
    }
    Ok(all)
}

/// The times at which a node reached a step, and the index of its log there; in order of time.
type Times = Vec<(u64, Instant)>;

/// The marks of all nodes.
struct Timeline {
    /// The leader first.
    nodes: Vec<[Times; STEPS]>,
}

struct Way {
    /// The ends of [`PARTS`], and the beginning of the first.
    times: [Instant; PARTS.len() + 1],
    /// From the turn of the loop until the entry was durable on the leader itself.
    own_write: Duration,
    /// The call that writes and syncs, on the follower.
    follower_write: Duration,
}

impl Timeline {
    fn of(marks: &[Mark], leader: u64) -> Timeline {
        let mut nodes: Vec<[Times; STEPS]> = (0..NODES).map(|_| Default::default()).collect();
        for mark in marks {
            let place = (mark.node + NODES - leader) % NODES;
            let (Ok(place), Ok(step)) = (usize::try_from(place), usize::try_from(mark.step)) else {
                continue;
            };
            if let Some(times) = nodes.get_mut(place).and_then(|steps| steps.get_mut(step)) {
                times.push((mark.last, mark.at));
            }
        }
        for times in nodes.iter_mut().flatten() {
            times.sort_by_key(|(_, at)| *at);
            // A write without entries, or of existing entries, is no progress.
            let mut most = 0;
            times.retain(|(last, _)| {
                let is_forward = *last >= most;
                most = most.max(*last);
                is_forward
            });
        }
        Timeline { nodes }
    }

    /// The time at which `node` first reached `step` with `index`.
    fn first(&self, node: usize, step: Step, index: u64) -> Option<Instant> {
        let times = &self.nodes[node][step as usize];
        times.get(times.partition_point(|(last, _)| *last < index)).map(|(_, at)| *at)
    }

    /// The last time at which `node` woke up before `at`.
    fn woken(&self, node: usize, at: Instant) -> Option<Instant> {
        let times = &self.nodes[node][Step::Woken as usize];
        times.get(times.partition_point(|(_, woken)| *woken <= at).checked_sub(1)?).map(|(_, woken)| *woken)
    }

    fn way(&self, proposal: &Proposal) -> Option<Way> {
        const LEADER: usize = 0;
        let index = proposal.index;
        let append = self.first(LEADER, Step::Append, index)?;
        let commit = self.first(LEADER, Step::Commit, index)?;
        // The majority includes the first follower with a durable entry.
        let durable_at = |follower: &usize| self.first(*follower, Step::Durable, index);
        let follower =
            (1..self.nodes.len()).filter(|follower| durable_at(follower).is_some()).min_by_key(durable_at)?;
        let follower_append = self.first(follower, Step::Append, index)?;
        let follower_write = self.first(follower, Step::Write, index)?;
        let follower_durable = durable_at(&follower)?;
        let times = [
            proposal.sent,
            self.woken(LEADER, append)?.max(proposal.sent),
            append,
            self.woken(follower, follower_append)?.max(append),
            follower_append,
            follower_write,
            follower_durable,
            commit,
            self.first(LEADER, Step::Applied, index)?,
            proposal.answered,
        ];
        Some(Way {
            times,
            own_write: self.first(LEADER, Step::Durable, index)?.saturating_duration_since(append),
            follower_write: follower_durable.saturating_duration_since(follower_write),
        })
    }
}
