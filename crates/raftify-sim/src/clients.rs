//! The clients: they write, read and compare-and-set, each one operation after the other, on any node. Every
//! value is written once. Their calls are the history, which must be linearizable for each key.

use std::collections::BTreeMap;

use raftify_core::LogIndex;
use raftify_history::Verdict;
use raftify_history::register::{Operation, Outcome, Register};

use crate::store::{Command, Effect};

/// The operation of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    Read,
    Command(Command),
}

/// The outcome of a call.
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
    /// `None`: the outcome is unknown.
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

/// The number of configurations that the checker visits for each key.
const BUDGET: u64 = 200_000;

/// A pending call.
pub(crate) struct Open {
    pub(crate) call: Call,
    /// The lowest index that a read must show.
    pub(crate) floor: LogIndex,
}

/// All clients.
pub(crate) struct Clients {
    /// The last value that each client has seen under each key.
    pub(crate) known: Vec<BTreeMap<u64, u64>>,
    keys: u64,
    /// Keys that were written once, in bursts.
    pub(crate) lonely_keys: u64,
    pub(crate) open: BTreeMap<u64, Open>,
    pub(crate) history: Vec<Call>,
    pub(crate) values: u64,
    moments: u64,
    /// The clients send no more requests.
    pub(crate) are_done: bool,
}

impl Clients {
    pub(crate) fn new(clients: u64, keys: u64) -> Clients {
        Clients {
            // One more for bursts.
            known: vec![BTreeMap::new(); clients as usize + 1],
            keys,
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

    /// The number of calls in the history.
    pub(crate) fn calls(&self) -> usize {
        self.history.len()
    }

    pub(crate) fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// `None`: it had no effect for certain, and counts as not called.
    pub(crate) fn close(&mut self, number: u64, learnt: Option<Learnt>) -> Option<Call> {
        let Open { mut call, .. } = self.open.remove(&number)?;
        let moment = self.moment();
        call.returned = learnt.map(|learnt| (moment, learnt));
        Some(call)
    }

    /// Checks that the history of every key is linearizable. Returns the number of histories that were too
    /// large for the budget.
    pub(crate) fn check_histories(&self) -> Result<u64, String> {
        let history = self.history.iter().map(|call| (call.key, call.for_the_checker()));
        let mut undecided = 0;
        for (key, verdict) in raftify_history::check_each_key(&Register, history, BUDGET) {
            match verdict {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::NotLinearizable(example) => {
                    return Err(format!(
                        "linearizability: the history of key {key} is not linearizable:\n{example}"
                    ));
                }
            }
        }
        Ok(undecided)
    }
}
