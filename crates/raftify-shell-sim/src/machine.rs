//! The state machine of the simulated nodes: a few registers, with snapshots that are large on purpose.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use raftify::{BoxError, LogPosition, Snapshot, StateMachine, simulation};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::command::{Command, Operation, Outcome};
use crate::record::Record;

/// The registers of one node.
pub(crate) struct Registers {
    who: String,
    values: BTreeMap<u8, u64>,
    applied: LogPosition,
    record: Record,
    profile: Profile,
    chance: ChaCha8Rng,
}

/// The behaviour of a node's state machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Whether it declares itself quick to apply, and is.
    pub(crate) quick: bool,
    /// Otherwise, the longest duration of applying an entry.
    pub(crate) slowness: Duration,
    /// The additional size of a snapshot.
    pub(crate) padding_bytes: usize,
}

impl Registers {
    /// An empty one. `who` names the node in the record.
    pub(crate) fn new(who: &str, profile: Profile, record: Record, chance: ChaCha8Rng) -> Registers {
        Registers {
            who: who.to_owned(),
            values: BTreeMap::new(),
            applied: LogPosition::ZERO,
            profile,
            record,
            chance,
        }
    }

    /// The value of a register.
    pub(crate) fn get(&self, key: u8) -> Option<u64> {
        self.values.get(&key).copied()
    }
}

impl StateMachine for Registers {
    type LogEntry = Command;
    type Reply = Outcome;

    fn apply(&mut self, position: LogPosition, command: Command) -> Result<Outcome, BoxError> {
        if position.index <= self.applied.index {
            let applied = self.applied;
            self.record.violation(&self.who, format_args!("{position} is applied after {applied}"));
        }
        self.applied = position;
        self.record.applied(&self.who, position, &command);
        if !self.profile.quick && !self.profile.slowness.is_zero() {
            simulation::block_for(self.chance.random_range(Duration::ZERO..=self.profile.slowness));
        }
        let value = self.get(command.key);
        Ok(match command.operation {
            Operation::Read => Outcome::Value(value),
            Operation::Write(new) => {
                self.values.insert(command.key, new);
                Outcome::Done
            }
            Operation::CompareAndSet { expected, new } => {
                if value == expected {
                    self.values.insert(command.key, new);
                }
                Outcome::Swapped(value == expected)
            }
        })
    }

    fn is_quick_to_apply(&self) -> bool {
        self.profile.quick
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        self.record.event(&self.who, format_args!("captures its state at {}", self.applied));
        let mut padding = vec![0u8; self.profile.padding_bytes];
        self.chance.fill(&mut padding[..]);
        Ok(Snapshot::from_value((self.values.clone(), padding)))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        let (values, _padding): (BTreeMap<u8, u64>, Vec<u8>) = Snapshot::read_value(reader)?;
        self.record.event(&self.who, "restores a snapshot");
        self.record.count("snapshot restored");
        self.values = values;
        Ok(())
    }
}
