//! Who of the nodes that speak to this one may be believed to be what it was, and whether this one is: what is remembered of
//! each member, and whom this node still has to hear from since it started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::RaftNodeCore;
use crate::members::{Sender, SenderRefusal};
use crate::message::{RaftMessage, RaftMessageBody};
use crate::remembered::Remembered;
use crate::request::ProposalReply;
use crate::standing::{PeerStanding, Standing, Started};
use crate::status::Role;
use crate::storage::{StoredState, Write};
use crate::turn::TurnNumber;
use crate::types::{Incarnation, LogIndex, NodeId, RunId, Term};

/// What members tell of their logs while entries flow is made durable this often.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(3);

/// Before any turn makes something durable.
const NEVER: TurnNumber = TurnNumber(u64::MAX);

/// Of so many runs that were refused it is remembered that they were told of.
const REFUSED_MAX: usize = 1024;

/// What is not durable yet of what this node remembers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unwritten {
    Nothing,
    /// How far logs reach.
    Indexes,
    /// A start, a term, a vote, which change seldom.
    Seldom,
}

/// This node's own start, and what it remembers of the others.
pub(super) struct Standings {
    own: Started,
    /// The turn that makes this start durable: before, nothing is said.
    counted_with: TurnNumber,
    remembered: Arc<Remembered>,
    unwritten: Unwritten,
    written_ticks: u64,
    /// The members that have yet to say what they know of this node, before it votes or acknowledges anything.
    unheard: BTreeSet<NodeId>,
    /// Up to where this node has acknowledged the log of the leader of a term.
    acknowledged: (Term, LogIndex),
    /// The last that the other members were told of term, vote and log.
    told: (Term, Option<NodeId>, LogIndex),
    told_ticks: u64,
    /// Runs that were refused, so that each is logged once.
    refused: BTreeSet<RunId>,
}

impl Standings {
    pub(super) fn new(stored: &StoredState, run: RunId) -> Standings {
        let found = Standing {
            starts: stored.remembered.starts,
            term: stored.hard_state.term,
            vote: stored.hard_state.vote,
            index: stored.last.index,
        };
        Standings {
            own: Started { run, found },
            counted_with: NEVER,
            remembered: Arc::clone(&stored.remembered),
            unwritten: Unwritten::Nothing,
            written_ticks: 0,
            unheard: BTreeSet::new(),
            acknowledged: (Term::ZERO, LogIndex::ZERO),
            told: (Term::ZERO, None, LogIndex::ZERO),
            told_ticks: 0,
            refused: BTreeSet::new(),
        }
    }

    /// Takes note of what this node acknowledges.
    pub(super) fn says(&mut self, messages: &[RaftMessage]) {
        for message in messages {
            if let RaftMessageBody::AppendResponse { index, rejection: None, .. } = message.body {
                self.acknowledged = match message.term == self.acknowledged.0 {
                    true => (message.term, self.acknowledged.1.max(index)),
                    false => (message.term, index),
                };
            }
        }
    }
}

/// Term, vote and log that are durable on the sender when it sends this. What says nothing of that: a pre-vote is of a term
/// that nobody is in yet, and the report of who was reached may be of one that is not durable.
fn told_by(message: &RaftMessage) -> Option<(Term, Option<NodeId>, LogIndex)> {
    let (from, to, term) = (message.from, message.to, message.term);
    Some(match message.body {
        RaftMessageBody::Standing { vote, index } => (term, vote, index),
        // Who leads, or wants to, has its own vote.
        RaftMessageBody::Append { .. }
        | RaftMessageBody::Heartbeat { .. }
        | RaftMessageBody::RequestVote { .. } => (term, Some(from), LogIndex::ZERO),
        RaftMessageBody::VoteResponse { granted: true, .. } => (term, Some(to), LogIndex::ZERO),
        RaftMessageBody::AppendResponse { index, rejection: None, .. } => (term, None, index),
        RaftMessageBody::AppendResponse { .. } | RaftMessageBody::HeartbeatResponse { .. } => {
            (term, None, LogIndex::ZERO)
        }
        _ => return None,
    })
}

impl<R: ProposalReply> RaftNodeCore<R> {
    /// How this node introduces itself, once its start is durable. `None`: it must not speak yet.
    pub fn sender(&self) -> Option<Sender> {
        let identity = self.identity.filter(|_| self.written >= self.standings.counted_with)?;
        Some(Sender {
            id: self.node_id,
            incarnation: identity.incarnation,
            members_as_of: self.members.as_of(),
            started: self.standings.own,
        })
    }

    /// Counts this start, once, with the next turn. Starts are counted from when the directory belongs to the node.
    pub(super) fn count_start(&mut self) {
        let turn = self.next_turn();
        let standings = &mut self.standings;
        if standings.counted_with == NEVER {
            let remembered = Arc::make_mut(&mut standings.remembered);
            if !mutated!(StartsAreNotCounted) {
                remembered.starts += 1;
            }
            standings.own.found.starts = remembered.starts;
            standings.counted_with = turn;
        }
        self.next.write.remembered = Some(Arc::clone(&standings.remembered));
    }

    /// How this node was started, as it says to others once that is durable.
    pub fn started(&self) -> Started {
        self.standings.own
    }

    // --- Hearing ---

    /// After a start as a member: what the others know of this node comes first.
    pub(super) fn begin_to_hear(&mut self) {
        if mutated!(VotesBeforeHearing) {
            return;
        }
        let others = self.members.iter().map(|member| member.id).filter(|id| *id != self.node_id);
        self.standings.unheard = others.collect();
    }

    /// Whether this node has yet to hear what other members know of it. Until then it neither votes nor acknowledges.
    pub fn is_hearing(&self) -> bool {
        !self.standings.unheard.is_empty()
    }

    /// The peer knows nothing that speaks against this run of this node: it was asked with its [`sender`](Self::sender).
    pub fn peer_agrees(&mut self, peer: NodeId) {
        self.heard_from(peer);
    }

    /// The peer could not be asked, or does not answer.
    pub fn peer_is_silent(&mut self, peer: NodeId) {
        self.heard_from(peer);
    }

    fn heard_from(&mut self, peer: NodeId) {
        if self.standings.unheard.remove(&peer) && !self.is_hearing() {
            self.has_heard();
        }
    }

    fn has_heard(&mut self) {
        self.standings.unheard.clear();
        self.campaign_if_alone();
    }

    /// Members that do not answer are not waited for longer than for a leader.
    pub(super) fn tick_standings(&mut self) {
        let patience = self.config.ticks(self.config.election_timeout);
        if self.is_hearing() && self.now_ticks >= patience {
            let silent: Vec<String> = self.standings.unheard.iter().map(NodeId::to_string).collect();
            info!(node = %self.node_id, "goes on without having heard from node {}", silent.join(", "));
            self.has_heard();
        }
        if self.members.is_empty() || self.identity.is_none() {
            return;
        }
        self.tell_standing_if_due();
        self.remember_if_due();
    }

    // --- What the others are told ---

    /// The leader knows by the answers how far a log reaches. All others are told now and then, and the log of the leader
    /// itself is of interest as well.
    fn tell_standing_if_due(&mut self) {
        let interval = self.config.ticks(self.config.heartbeat_interval);
        if self.now_ticks - self.standings.told_ticks < interval || self.is_hearing() {
            return;
        }
        let state = self.consensus.hard_state();
        let index = match self.consensus.role() {
            Role::Leader => self.consensus.durable(),
            _ if self.standings.acknowledged.0 == state.term => self.standings.acknowledged.1,
            _ => LogIndex::ZERO,
        };
        let standing = (state.term, state.vote, index);
        if standing == self.standings.told || state.term == Term::ZERO {
            return;
        }
        self.standings.told = standing;
        self.standings.told_ticks = self.now_ticks;
        let (from, term, vote) = (self.node_id, state.term, state.vote);
        let others = self.members.iter().map(|member| member.id).filter(|id| *id != from);
        self.next.send_after.extend(others.map(|to| RaftMessage {
            from,
            to,
            term,
            body: RaftMessageBody::Standing { vote, index },
        }));
    }

    // --- What is remembered ---

    fn remember_if_due(&mut self) {
        let standings = &mut self.standings;
        let is_due = match standings.unwritten {
            Unwritten::Nothing => false,
            Unwritten::Indexes => {
                self.now_ticks - standings.written_ticks >= self.config.ticks(REMEMBER_INTERVAL)
            }
            Unwritten::Seldom => true,
        };
        if is_due {
            self.remember();
        }
    }

    /// What this node remembers and has not written yet, for one that stops in order: to be written after all turns.
    pub fn last_write(&mut self) -> Option<Write> {
        if self.standings.unwritten == Unwritten::Nothing {
            return None;
        }
        self.standings.unwritten = Unwritten::Nothing;
        let remembered = Some(Arc::clone(&self.standings.remembered));
        Some(Write { remembered, ..Write::default() })
    }

    fn remember(&mut self) {
        let standings = &mut self.standings;
        let is_forgotten = |id: &NodeId| self.members.get(*id).is_none();
        if standings.remembered.peers.keys().any(is_forgotten) {
            Arc::make_mut(&mut standings.remembered).peers.retain(|id, _| !is_forgotten(id));
        }
        standings.unwritten = Unwritten::Nothing;
        standings.written_ticks = self.now_ticks;
        self.next.write.remembered = Some(Arc::clone(&standings.remembered));
    }

    /// Whether the start that a member tells of fits to what it told before. Of one that does not, both are told.
    pub(super) fn check_started(&mut self, sender: &Sender) -> Result<(), SenderRefusal> {
        let Err(refusal) = self.standings.remembered.check(sender) else {
            return Ok(());
        };
        let Sender { id, started: Started { run, found }, .. } = *sender;
        let known = self.standings.remembered.peers.get(&id);
        // The last messages of a run that is over may come late.
        let is_earlier = known.is_some_and(|known| found.starts < known.told.starts);
        let refused = &mut self.standings.refused;
        if refused.len() < REFUSED_MAX && refused.insert(run) && self.is_alive(id) && !is_earlier {
            let (from, term) = (self.node_id, self.consensus.term().max(Term(1)));
            let body = RaftMessageBody::Twin { starts: found.starts, run };
            self.next.send_now.push(RaftMessage { from, to: id, term, body });
        }
        Err(refusal)
    }

    /// Another process has presented itself as this node.
    pub(super) fn told_of_twin(&self, starts: u64, run: RunId) {
        if run != self.standings.own.run {
            warn!(
                node = %self.node_id,
                "another process was started as this node, on a copy of its directory (start {starts}, run {run}), and is \
                 refused: stop it"
            );
        }
    }

    /// Remembers what a member tells in messages that are believed.
    pub(super) fn hear_standing(&mut self, sender: &Sender, messages: &[RaftMessage]) {
        let Sender { id, incarnation, started, .. } = *sender;
        if self.members.get(id).is_none() {
            return;
        }
        let standings = &mut self.standings;
        let known = standings.remembered.peers.get(&id).filter(|known| known.incarnation == incarnation);
        let before = known.copied();
        let mut now = before.unwrap_or(PeerStanding {
            incarnation,
            run: started.run,
            told: Standing { starts: started.found.starts, ..Standing::default() },
        });
        if now.run != started.run || now.told.starts != started.found.starts {
            now.run = started.run;
            now.told.starts = started.found.starts;
        }
        now.told.tells(started.found.term, started.found.vote, LogIndex::ZERO);
        for (term, vote, index) in messages.iter().filter(|message| message.from == id).filter_map(told_by) {
            now.told.tells(term, vote, index);
        }
        if before == Some(now) {
            return;
        }
        let only_index = before.is_some_and(|before| {
            let told = Standing { index: now.told.index, ..before.told };
            PeerStanding { told, ..before } == now
        });
        let unwritten = if only_index { Unwritten::Indexes } else { Unwritten::Seldom };
        standings.unwritten = standings.unwritten.max(unwritten);
        Arc::make_mut(&mut standings.remembered).peers.insert(id, now);
    }

    /// Whether a refusal for how `run` started is for this run of this node.
    pub(super) fn is_own_run(&self, id: NodeId, run: RunId) -> bool {
        id == self.node_id && run == self.standings.own.run
    }

    /// What this node remembers of starts.
    pub fn remembered(&self) -> &Arc<Remembered> {
        &self.standings.remembered
    }

    /// As [`check_sender`](Self::check_sender), and what the sender told at its start is remembered from now on.
    pub(super) fn admit(
        &mut self,
        sender: &Sender,
        receiver: Option<Incarnation>,
    ) -> Result<(), SenderRefusal> {
        self.check_sender(sender, receiver)?;
        self.hear_standing(sender, &[]);
        Ok(())
    }
}
