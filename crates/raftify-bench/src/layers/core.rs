//! Three cores in one thread that exchange their messages: the cost of the core's decisions, without disk,
//! network and threads.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use raftify::membership::Members;
use raftify::status::{ClusterId, Identity, Incarnation, LogIndex};
use raftify::storage::{MemoryStorage, StableStorage};
use raftify::{BoxError, Config, Member, NodeId};
use raftify_core::error::ProposeError;
use raftify_core::{
    CoreStart, LeaderRequest, LocalRequestMsg, ProposalReply, RaftMessage, RaftNodeCore, Responder, RunId,
    ServerRequestMsg, StateKept, Turn,
};

use super::disk;
use crate::Work;
use crate::cluster::NODES;
use crate::line::Line;
use crate::machine::Usage;
use crate::measure::{Measured, repeat};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Core {
    /// Proposals of one batch
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256, 1024])]
    batch: Vec<u64>,
    /// Bytes of one entry
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024])]
    entry_bytes: Vec<usize>,
    /// How long each run takes
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

impl Core {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(self.batch.len() * self.entry_bytes.len())?;
        let probe = disk::probe(&work.directory)?;
        for bytes in &self.entry_bytes {
            for batch in &self.batch {
                work.reporter.step(format!("{batch} entries of {bytes} B at once"))?;
                let mut cores = Cores::start()?;
                let payload = Bytes::from(vec![7; *bytes]);
                let cpu = Usage::of(None)?.cpu_seconds;
                let rounds =
                    repeat(Duration::from_secs_f64(self.seconds), || cores.propose(*batch, &payload))?;
                let cpu = Usage::of(None)?.cpu_seconds - cpu;
                let entries = Measured { count: rounds.count * batch, ..rounds };
                let line = Line {
                    nodes: Some(NODES),
                    clients: Some(*batch),
                    entry_bytes: Some(*bytes as u64),
                    fsync: Some(false),
                    disk_fdatasync_p50_us: Some(probe),
                    ..Line::of("core")
                };
                work.reporter.result(line.measured(&entries).cpu(cpu, entries.count))?;
            }
        }
        Ok(())
    }
}

/// No client waits for the reply of the state machine here.
#[derive(Debug)]
pub(crate) struct NoReply;

impl ProposalReply for NoReply {
    fn refuse(self, _error: ProposeError) {}
}

struct Cores {
    cores: Vec<RaftNodeCore<NoReply>>,
    /// The messages in flight, in their order.
    messages: VecDeque<RaftMessage>,
}

impl Cores {
    /// A cluster whose first node leads.
    fn start() -> Result<Cores, BoxError> {
        let members =
            (1..=NODES).map(|id| Ok(Member::voter(NodeId::try_from(id)?, format!("127.0.0.1:{id}"))));
        let members = Members::initial(members.collect::<Result<Vec<_>, BoxError>>()?)?;
        // No log and no snapshots: only the decisions of the core are measured.
        let config =
            Config { snapshot_entries: None, snapshot_log_bytes: None, ..Config::default() }.check()?;
        let mut cores = Vec::new();
        for id in 1..=NODES {
            let mut storage = MemoryStorage::default();
            let node_id = NodeId::try_from(id)?;
            let start = CoreStart {
                node_id,
                address: format!("127.0.0.1:{id}"),
                config: config.clone(),
                seed: id,
                run: RunId(id),
                stored: storage.load()?,
                state_kept: StateKept::InMemory,
            };
            let mut core = RaftNodeCore::new(start, &storage.log_reader())?;
            let identity = identity(members.derive_cluster_id(), node_id);
            let reply = Responder::new(|_| {});
            core.handle_local_request_msg(LocalRequestMsg::StartCluster {
                identity,
                members: members.clone(),
                reply,
            });
            cores.push(core);
        }
        let mut cores = Cores { cores, messages: VecDeque::new() };
        cores.deliver_all()?;
        cores.cores[0].handle_local_request_msg(LocalRequestMsg::Campaign { reply: Responder::new(|_| {}) });
        cores.deliver_all()?;
        if !cores.cores[0].status().is_leader() {
            return Err("the first core was not elected".into());
        }
        Ok(cores)
    }

    /// Proposes `count` entries at once and continues until all cores have applied them.
    fn propose(&mut self, count: u64, payload: &Bytes) -> Result<(), BoxError> {
        for _ in 0..count {
            let request = LeaderRequest::Propose { payload: payload.clone(), reply: NoReply };
            self.cores[0].handle_local_request_msg(LocalRequestMsg::ForLeader(request));
        }
        let before = self.cores[0].status().applied.0;
        self.deliver_all()?;
        let applied = self.cores[0].status().applied.0 - before;
        if applied != count {
            return Err(format!("of {count} proposals {applied} were applied").into());
        }
        Ok(())
    }

    fn deliver_all(&mut self) -> Result<(), BoxError> {
        loop {
            for place in 0..self.cores.len() {
                while let Some(turn) = self.cores[place].ready() {
                    self.carry_out(place, turn)?;
                }
            }
            let Some((from, to)) = self.messages.front().map(|first| (first.from, first.to)) else {
                return Ok(());
            };
            let alike = self.messages.iter().take_while(|next| (next.from, next.to) == (from, to)).count();
            let messages = self.messages.drain(..alike).collect();
            let sender = self.cores[usize::try_from(from.get())? - 1].sender();
            let sender = sender.ok_or("a core sends a message before its start is durable")?;
            let receiver = &mut self.cores[usize::try_from(to.get())? - 1];
            receiver.handle_server_request_msg(ServerRequestMsg::RaftMessages {
                sender,
                receiver: None,
                messages,
            });
        }
    }

    /// Everything is durable and applied at once.
    fn carry_out(&mut self, place: usize, turn: Turn<NoReply>) -> Result<(), BoxError> {
        if !turn.fetch.is_empty() {
            return Err("a core requested entries that it no longer has in memory".into());
        }
        self.cores[place].written(turn.number);
        self.messages.extend(turn.send_now);
        self.messages.extend(turn.send_after);
        let applied = turn.committed.last().map_or(LogIndex::ZERO, |last| last.position().index);
        self.cores[place].applied(applied);
        Ok(())
    }
}

fn identity(cluster_id: ClusterId, node_id: NodeId) -> Identity {
    Identity { cluster_id, node_id, incarnation: Incarnation(node_id.get()) }
}
