//! What the cluster is for: clients that write, read and compare-and-set, each one thing after the other, on any node.
//! Every value is written once. What they asked and learnt is the history that must be linearizable for each key.

use std::collections::BTreeMap;

use raftify_core::error::ReadError;
use raftify_core::{LeaderRequest, LocalRequestMsg, LogIndex, NodeId, Responder};
use raftify_history::Verdict;
use raftify_history::register::{Operation, Outcome, Register};
use rand::RngExt;

use crate::coverage::Happened;
use crate::invariants::Checked;
use crate::network::{Proposed, Reply};
use crate::schedule::{MILLISECOND, Time};
use crate::simulation::{Answered, Event, Simulation};
use crate::store::{Command, Effect};
use crate::world::{Chance, World};

/// What was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    Read,
    Command(Command),
}

/// What was learnt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Learnt {
    Value(Option<u64>),
    Effect(Effect),
}

/// One call of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) key: u64,
    pub(crate) asked: Asked,
    pub(crate) called: u64,
    /// `None`: the outcome is not known.
    pub(crate) returned: Option<(u64, Learnt)>,
}

impl Call {
    fn for_the_checker(&self) -> raftify_history::Call<Operation, Outcome> {
        let operation = match self.asked {
            Asked::Read => Operation::Read,
            Asked::Command(Command::Write { value, .. }) => Operation::Write(value),
            Asked::Command(Command::CompareAndSet { expected, new, .. }) => {
                Operation::CompareAndSet { expected, new }
            }
            Asked::Command(Command::Delete { .. }) => Operation::Delete,
        };
        let returned = self.returned.map(|(moment, learnt)| {
            let outcome = match learnt {
                Learnt::Value(value) => Outcome::Value(value),
                Learnt::Effect(Effect::Done) => Outcome::Done,
                Learnt::Effect(Effect::Swapped(swapped)) => Outcome::Swapped(swapped),
            };
            (moment, outcome)
        });
        raftify_history::Call { client: self.client as u64, operation, called: self.called, returned }
    }
}

/// How many configurations the checker looks at for each key.
const BUDGET: u64 = 200_000;

struct Open {
    call: Call,
    /// What a read must show at least.
    floor: LogIndex,
}

/// All clients.
pub(crate) struct Clients {
    /// What each has last seen under each key.
    known: Vec<BTreeMap<u64, u64>>,
    keys: u64,
    /// Keys that were written once, in bursts.
    lonely_keys: u64,
    open: BTreeMap<u64, Open>,
    history: Vec<Call>,
    values: u64,
    moments: u64,
    /// They ask for nothing more.
    pub(crate) are_done: bool,
}

impl Clients {
    pub(crate) fn new(world: &World) -> Clients {
        Clients {
            // One more for bursts.
            known: vec![BTreeMap::new(); world.clients as usize + 1],
            keys: world.keys,
            lonely_keys: 0,
            open: BTreeMap::new(),
            history: Vec::new(),
            values: 0,
            moments: 0,
            are_done: false,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.known.len() - 1
    }

    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    /// How many calls are in the history.
    pub(crate) fn calls(&self) -> usize {
        self.history.len()
    }

    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// `None`: it definitely had no effect, and counts as not called.
    fn close(&mut self, number: u64, learnt: Option<Learnt>) -> Option<Call> {
        let Open { mut call, .. } = self.open.remove(&number)?;
        let moment = self.moment();
        call.returned = learnt.map(|learnt| (moment, learnt));
        Some(call)
    }

    /// The history of every key is linearizable. How many are so large that it was not decided.
    pub(crate) fn check_histories(&self) -> Result<u64, String> {
        let history = self.history.iter().map(|call| (call.key, call.for_the_checker()));
        let mut undecided = 0;
        for (key, verdict) in raftify_history::check_each_key(&Register, history, BUDGET) {
            match verdict {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::NotLinearizable(example) => {
                    return Err(format!("linearizability: the history of key {key} is not:\n{example}"));
                }
            }
        }
        Ok(undecided)
    }
}

impl Simulation {
    /// It is the turn of a client.
    pub(crate) fn client_acts(&mut self, client: usize) -> Checked {
        if self.clients.are_done {
            return Ok(());
        }
        let key = self.rng.random_range(0..self.clients.keys);
        let asked = match self.rng.random_range(0..100) {
            0..35 => Asked::Read,
            35..70 => Asked::Command(Command::Write { key, value: self.new_value() }),
            70..95 => {
                let expected = match self.rng.percent(90) {
                    true => self.clients.known[client].get(&key).copied(),
                    false => None,
                };
                Asked::Command(Command::CompareAndSet { key, expected, new: self.new_value() })
            }
            _ => Asked::Command(Command::Delete { key }),
        };
        let nodes: Vec<NodeId> =
            self.nodes.values().filter(|node| node.is_running()).map(|node| node.id).collect();
        if nodes.is_empty() {
            self.client_waits(client);
            return Ok(());
        }
        let node = self.rng.one_of(&nodes);
        self.call(client, node, key, asked)
    }

    fn new_value(&mut self) -> u64 {
        self.clients.values += 1;
        self.clients.values
    }

    /// Many writes at once to `node`, each to a key of its own, which nobody waits for before asking the next.
    pub(crate) fn burst(&mut self, node: NodeId, count: u64) -> Checked {
        for _ in 0..count {
            self.clients.lonely_keys += 1;
            let key = self.clients.keys + self.clients.lonely_keys;
            let asked = Asked::Command(Command::Write { key, value: self.new_value() });
            self.call(self.clients.count(), node, key, asked)?;
        }
        Ok(())
    }

    fn client_waits(&mut self, client: usize) {
        if client == self.clients.count() {
            return;
        }
        let delay = self.rng.about(self.world.think).max(MILLISECOND);
        self.schedule.after(delay, Event::Client(client));
    }

    pub(crate) fn call(&mut self, client: usize, node: NodeId, key: u64, asked: Asked) -> Checked {
        self.tell(format_args!("client {client} asks {node} for {asked:?} of {key}"));
        let number = self.invariants.answers.asked(format!("{asked:?} of client {client} on {node}"));
        let called = self.clients.moment();
        let call = Call { client, key, asked, called, returned: None };
        let floor = self.invariants.reads.floor();
        self.clients.open.insert(number, Open { call, floor });
        let answers = self.answers.clone();
        let message = match asked {
            Asked::Read => {
                let waits = self.awaited_read(node);
                let reply = Responder::new(move |answer| {
                    drop(waits);
                    answers.push(Answered::Read { number, node, answer });
                });
                LocalRequestMsg::ReadIndex { reply }
            }
            Asked::Command(command) => {
                let padding = self.rng.random_range(0..=self.world.padding_bytes_max);
                let reply = Reply::new(move |answer| answers.push(Answered::Proposed { number, answer }));
                let payload = command.encode(padding);
                LocalRequestMsg::ForLeader(LeaderRequest::Propose { payload, reply })
            }
        };
        self.ask(node, message)
    }

    /// A write is answered.
    pub(crate) fn proposed(&mut self, number: u64, answer: Proposed) -> Checked {
        let learnt = match &answer {
            Ok((position, effect)) => {
                self.invariants.answers.acknowledged(*position, &self.invariants.committed)?;
                self.invariants.reads.acknowledged(position.index);
                self.coverage.saw(match effect {
                    Effect::Swapped(true) => Happened::Swapped,
                    _ => Happened::WriteAcknowledged,
                });
                Some(Learnt::Effect(*effect))
            }
            Err(error) if !error.nothing_happened() => {
                self.coverage.saw(Happened::OutcomeUnknown);
                None
            }
            // It was refused: nothing happened.
            Err(_) => {
                if let Some(call) = self.clients.close(number, None) {
                    self.tell(format_args!("client {} is refused: {answer:?}", call.client));
                    self.client_waits(call.client);
                }
                return Ok(());
            }
        };
        let Some(call) = self.clients.close(number, learnt) else { return Ok(()) };
        self.tell(format_args!("client {} learns {answer:?}", call.client));
        if let (Some(_), Asked::Command(Command::Write { key, value: new })) = (learnt, call.asked) {
            self.clients.known[call.client].insert(key, new);
        }
        self.clients.history.push(call);
        self.client_waits(call.client);
        Ok(())
    }

    /// A read is confirmed: the state of `node` may be looked at.
    pub(crate) fn read(&mut self, number: u64, node: NodeId, answer: Result<LogIndex, ReadError>) -> Checked {
        let Some(Open { call, floor }) = self.clients.open.get(&number) else { return Ok(()) };
        let (call, floor) = (*call, *floor);
        let running = self.nodes.get(&node).and_then(|node| node.running.as_ref());
        let (Ok(index), Some(running)) = (answer, running) else {
            // A read without an answer has no effect, and tells nothing.
            self.clients.close(number, None);
            self.tell(format_args!("client {} gets nothing to read", call.client));
            self.client_waits(call.client);
            return Ok(());
        };
        self.invariants.reads.answered(floor, index, running.at.index)?;
        self.invariants.reads.acknowledged(index);
        let value = running.store.get(call.key);
        self.coverage.saw(Happened::ReadAnswered);
        if let Some(call) = self.clients.close(number, Some(Learnt::Value(value))) {
            self.clients.history.push(call);
        }
        let known = &mut self.clients.known[call.client];
        match value {
            Some(value) => known.insert(call.key, value),
            None => known.remove(&call.key),
        };
        self.tell(format_args!("client {} reads {value:?}", call.client));
        self.client_waits(call.client);
        Ok(())
    }

    /// How long a client waits at most between two operations.
    pub(crate) fn think_most(&self) -> Time {
        self.world.think * 8
    }
}
