//! The calls of clients: requests to nodes, and their results.

use raftify_core::error::{ProposeError, ReadError};
use raftify_core::{LeaderRequest, LocalRequestMsg, LogIndex, NodeId, Responder};
use rand::RngExt;

use super::Simulation;
use crate::answers::Answered;
use crate::clients::{Asked, Call, Learnt, Open};
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::event::Event;
use crate::invariants::Checked;
use crate::reply::{Proposed, Reply};
use crate::schedule::{MILLISECOND, Time};
use crate::store::{Command, Effect};

impl Simulation {
    /// A client begins its next call.
    pub(super) fn client_acts(&mut self, client: usize) -> Checked {
        if self.clients.are_done {
            return Ok(());
        }
        let key = self.rng.random_range(0..self.clients.keys());
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

    pub(crate) fn new_value(&mut self) -> u64 {
        self.clients.values += 1;
        self.clients.values
    }

    /// Many concurrent writes to `node`, each to a separate key.
    pub(super) fn burst(&mut self, node: NodeId, count: u64) -> Checked {
        for _ in 0..count {
            self.clients.lonely_keys += 1;
            let key = self.clients.keys() + self.clients.lonely_keys;
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

    /// Records a call that begins now. Returns the number of its request.
    pub(crate) fn begin_call(&mut self, client: usize, node: NodeId, key: u64, asked: Asked) -> u64 {
        self.tell(format_args!("client {client} asks {node} for {asked:?} of {key}"));
        let number = self.invariants.answers.asked(format!("{asked:?} of client {client} on {node}"));
        let called = self.clients.moment();
        let call = Call { client, key, asked, called, returned: None };
        let floor = self.invariants.reads.floor();
        self.clients.open.insert(number, Open { call, floor });
        number
    }

    pub(super) fn call(&mut self, client: usize, node: NodeId, key: u64, asked: Asked) -> Checked {
        let number = self.begin_call(client, node, key, asked);
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
    pub(super) fn proposed(&mut self, number: u64, answer: Proposed) -> Checked {
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
            // It was refused and had no effect.
            Err(error) => {
                if let ProposeError::StorageFull { .. } = error {
                    self.coverage.saw(Happened::StorageFull);
                }
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

    /// A read is confirmed: it may read the state of `node`.
    pub(super) fn read(&mut self, number: u64, node: NodeId, answer: Result<LogIndex, ReadError>) -> Checked {
        let Some(Open { call, floor }) = self.clients.open.get(&number) else { return Ok(()) };
        let (call, floor) = (*call, *floor);
        let running = self.nodes.get(&node).and_then(|node| node.running.as_ref());
        let (Ok(index), Some(running)) = (answer, running) else {
            // A read without an answer has no effect and restricts nothing.
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

    /// The longest pause of a client between two operations.
    pub(super) fn think_most(&self) -> Time {
        self.world.think * 8
    }
}
