//! A node's core that receives arbitrary messages, in any order, during its own work.

use bytes::Bytes;
use raftify_core::message::CampaignReason;
use raftify_core::storage::{MemoryStorage, Write};
use raftify_core::{
    ClusterId, Config, CoreStart, Entry, EntryKind, Forwarding, HardState, Identity, Incarnation,
    LeaderRequest, LocalRequestMsg, LogIndex, LogPosition, LogReader as _, Member, Members, NodeId,
    ProposalReply, RaftMessage, RaftMessageBody, RaftNodeCore, Responder, RunId, Sender, ServerRequestMsg,
    SnapshotMeta, StableStorage as _, Started, StateKept, Term, error::ProposeError,
};

const CLUSTER: ClusterId = ClusterId(7);

/// No client waits.
struct NoReply;

impl ProposalReply for NoReply {
    fn refuse(self, _error: ProposeError) {}
}

fn no_reply<T: 'static, E: From<raftify_core::error::StopReason> + 'static>() -> Responder<T, E> {
    Responder::new(|_| {})
}

/// Decodes fields from the front, until no bytes are left.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Mostly a small number, as in short logs.
    fn number(&mut self) -> Option<u64> {
        match self.byte()? {
            small @ ..240 => Some(u64::from(small % 16)),
            240..248 => Some(u64::MAX - u64::from(self.byte()?)),
            _ => {
                let (number, rest) = self.0.split_first_chunk()?;
                self.0 = rest;
                Some(u64::from_le_bytes(*number))
            }
        }
    }

    fn node(&mut self) -> Option<NodeId> {
        NodeId::new(1 + u64::from(self.byte()? % 4))
    }

    fn position(&mut self) -> Option<LogPosition> {
        Some(LogPosition::new(self.number()?, self.number()?))
    }

    fn index(&mut self) -> Option<LogIndex> {
        self.number().map(LogIndex)
    }

    fn round(&mut self) -> Option<Option<u64>> {
        Some(if self.byte()? % 2 == 0 { None } else { Some(self.number()?) })
    }

    fn payload(&mut self) -> Option<Bytes> {
        let length = usize::from(self.byte()? % 24).min(self.0.len());
        let (payload, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(Bytes::copy_from_slice(payload))
    }

    /// Mostly consecutive entries.
    fn entries(&mut self, previous: LogPosition) -> Option<Vec<Entry>> {
        let mut position = previous;
        (0..self.byte()? % 4)
            .map(|_| {
                position.index.0 = position.index.0.wrapping_add(1);
                let shape = self.byte()?;
                if shape % 8 == 7 {
                    position = self.position()?;
                } else if shape % 8 == 6 {
                    position.term = Term(self.number()?);
                }
                let kind = EntryKind::from_number(shape >> 5)?;
                Some(Entry { position, kind, payload: self.payload()? })
            })
            .collect()
    }

    fn body(&mut self) -> Option<RaftMessageBody> {
        Some(match self.byte()? % 10 {
            0 | 1 => {
                let previous = self.position()?;
                RaftMessageBody::Append { previous, commit: self.index()?, entries: self.entries(previous)? }
            }
            2 => RaftMessageBody::AppendResponse {
                index: self.index()?,
                commit: self.index()?,
                rejection: None,
            },
            3 => RaftMessageBody::AppendResponse {
                index: self.index()?,
                commit: self.index()?,
                rejection: Some(self.position()?),
            },
            4 => {
                let transfer = self.byte()? % 2 == 0;
                let reason = if transfer { CampaignReason::Transfer } else { CampaignReason::Timeout };
                RaftMessageBody::RequestVote { last: self.position()?, commit: self.position()?, reason }
            }
            5 => RaftMessageBody::RequestPreVote { last: self.position()?, commit: self.position()? },
            6 => RaftMessageBody::VoteResponse { granted: self.byte()? % 4 != 0, commit: self.position()? },
            7 => {
                RaftMessageBody::PreVoteResponse { granted: self.byte()? % 4 != 0, commit: self.position()? }
            }
            8 => RaftMessageBody::Heartbeat { commit: self.index()?, read_round: self.round()? },
            _ => match self.byte()? % 2 {
                0 => RaftMessageBody::HeartbeatResponse { commit: self.index()?, read_round: self.round()? },
                _ => RaftMessageBody::TimeoutNow,
            },
        })
    }
}

/// A node, one of three voters, with a log of some entries.
struct Node {
    core: RaftNodeCore<NoReply>,
    disk: MemoryStorage,
}

impl Node {
    fn new() -> Option<Node> {
        let members =
            (1..=3).map(|id| Member::voter(NodeId::new(id)?, format!("node-{id}.example:60061")).into());
        let members = Members::initial(members.collect::<Option<Vec<Member>>>()?).ok()?;
        let identity = Identity { cluster_id: CLUSTER, node_id: NodeId::FIRST, incarnation: Incarnation(1) };
        let entry = |index| Entry {
            position: LogPosition::new(1 + index / 4, index),
            kind: EntryKind::User,
            payload: Bytes::from_static(b"entry"),
        };
        let mut disk = MemoryStorage::default();
        let meta =
            SnapshotMeta { cluster_id: CLUSTER, position: LogPosition::new(1, 1), members: members.clone() };
        disk.load().ok()?;
        disk.write(&[Write {
            identity: Some(identity),
            append: (1..=8).map(entry).collect(),
            hard_state: Some(HardState { term: Term(3), vote: None, commit: LogIndex(5) }),
            members: Some(meta.members),
            ..Write::default()
        }])
        .ok()?;
        let start = CoreStart {
            node_id: NodeId::FIRST,
            address: "node-1:1".to_owned(),
            config: Config::default().check().ok()?,
            seed: 1,
            run: RunId(1),
            stored: disk.load().ok()?,
            state_kept: StateKept::InMemory,
        };
        let mut core = RaftNodeCore::new(start, &disk.log_reader()).ok()?;
        for member in members.iter() {
            core.peer_agrees(member.id);
        }
        Some(Node { core, disk })
    }

    /// One event of the node; `None` when no bytes are left.
    fn happens(&mut self, fields: &mut Fields<'_>) -> Option<()> {
        let request = match fields.byte()? % 16 {
            0..8 => {
                let from = fields.node()?;
                let to = if fields.byte()? % 16 == 0 { fields.node()? } else { NodeId::FIRST };
                let message = RaftMessage { from, to, term: Term(fields.number()?), body: fields.body()? };
                let messages = ServerRequestMsg::RaftMessages {
                    sender: sender(from),
                    receiver: None,
                    messages: vec![message],
                };
                self.core.handle_server_request_msg(messages);
                return Some(());
            }
            8 => {
                let from = fields.node()?;
                let members = self.core.status().members;
                let members =
                    if fields.byte()? % 2 == 0 { Members::clone(&members) } else { Members::none() };
                self.core.handle_server_request_msg(ServerRequestMsg::InstallSnapshot {
                    sender: sender(from),
                    receiver: None,
                    term: Term(fields.number()?),
                    snapshot: SnapshotMeta { cluster_id: CLUSTER, position: fields.position()?, members },
                    reply: no_reply(),
                });
                return Some(());
            }
            9..12 => {
                for _ in 0..fields.byte()? % 32 {
                    self.core.tick();
                }
                return Some(());
            }
            12 => LeaderRequest::Propose { payload: fields.payload()?, reply: NoReply },
            13 => LeaderRequest::TransferLeader { to: Some(fields.node()?), reply: no_reply() },
            14 => {
                self.core.handle_local_request_msg(LocalRequestMsg::ReadIndex { reply: no_reply() });
                return Some(());
            }
            _ => {
                self.core.handle_local_request_msg(LocalRequestMsg::Campaign { reply: no_reply() });
                return Some(());
            }
        };
        self.core.handle_server_request_msg(ServerRequestMsg::ForLeader {
            request,
            forwarding: Forwarding::Allowed,
        });
        Some(())
    }

    /// Carries out the core's work, with a disk and a state machine that keep up.
    fn carry_out(&mut self) {
        while let Some(turn) = self.core.ready() {
            if let Some(write) = turn.write {
                // Every write must be possible, whatever messages arrived.
                self.disk.write(&[write]).expect("a core requests no write that contradicts its log");
            }
            let applied = turn.committed.last().map(|committed| committed.position().index);
            self.core.written(turn.number);
            for fetch in turn.fetch {
                let entries = self.disk.log_reader().read(fetch.from, fetch.until, fetch.bytes_max);
                self.core.fetched(fetch, entries);
            }
            if let Some(index) = applied {
                self.core.applied(index);
            }
        }
    }
}

fn sender(id: NodeId) -> Sender {
    let started = Started::default();
    Sender { id, incarnation: Incarnation(id.get()), members_as_of: LogIndex(1_000_000), started }
}

/// Arbitrary messages, for a node in any role, between ticks and its own requests.
pub fn messages(bytes: &[u8]) {
    let mut node = Node::new().expect("it starts");
    let mut fields = Fields(bytes);
    while node.core.stop_reason().is_none() && node.happens(&mut fields).is_some() {
        node.carry_out();
    }
}
