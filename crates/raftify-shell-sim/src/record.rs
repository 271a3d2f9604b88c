//! The events of a run: the trace, by which two runs are compared; the clients' history; the violations.
//!
//! Shared by all hosts of a world. Events of one moment are ordered by the names of their subjects: the
//! runtimes of the hosts do not define in which order they wake tasks that waited for the same event.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use raftify::LogPosition;
use raftify::status::ClusterId;
use raftify_history::register::{self, Register};
use raftify_history::{Verdict, check_each_key};

use crate::command::{Command, Operation, Outcome};

/// The budget of the checker for a register.
const CONFIGURATIONS_MAX: u64 = 1_000_000;

/// The events that must have happened in one of many worlds: without them, the run covers too little.
pub const HAPPENINGS: &[&str] = &[
    "answered",
    "bootstrapped",
    "disk failed",
    "ended while it expects",
    "expected",
    "hold",
    "isolation",
    "joined",
    "leave",
    "machine lost",
    "one-way cut",
    "process killed",
    "quit",
    "quit dropped",
    "refused",
    "remove",
    "removed",
    "run dropped",
    "slow disk",
    "snapshot requested",
    "snapshot restored",
    "start dropped",
    "stopped",
    "ticket",
    "transfer",
    "unknown",
];

/// An operation of a client, as the client saw it. Times are positions in the order of all events of the run.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The client.
    pub(crate) client: u64,
    /// The key.
    pub(crate) key: u8,
    /// The operation.
    pub(crate) operation: Operation,
    /// The time of the call.
    pub(crate) called: u64,
    /// The time of the outcome; `None` if it is unknown whether it took effect.
    pub(crate) returned: Option<(u64, Outcome)>,
}

/// See the module. A clone is the same record.
#[derive(Clone, Default)]
pub(crate) struct Record(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    trace: Vec<(Duration, String, String)>,
    violations: Vec<String>,
    clock: u64,
    calls: BTreeMap<u64, Call>,
    /// Applied entries by index.
    applied: BTreeMap<u64, (LogPosition, Command)>,
    /// By call: the index.
    applied_at: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    /// The cluster that has begun.
    cluster: Option<ClusterId>,
    happened: BTreeMap<&'static str, u64>,
    values: u64,
}

impl Record {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// An event on a host, now.
    pub(crate) fn event(&self, who: &str, what: impl Display) {
        self.event_at(turmoil::sim_elapsed().unwrap_or_default(), who, what);
    }

    /// An event.
    pub(crate) fn event_at(&self, at: Duration, who: &str, what: impl Display) {
        self.inner().trace.push((at, who.to_owned(), what.to_string()));
    }

    /// A counted event.
    pub(crate) fn count(&self, what: &'static str) {
        *self.inner().happened.entry(what).or_default() += 1;
    }

    /// A violation.
    pub(crate) fn violation(&self, who: &str, what: impl Display) {
        self.event(who, format_args!("VIOLATION: {what}"));
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.inner().violations.push(format!("at {at:?}, {who}: {what}"));
    }

    /// The first violation.
    pub(crate) fn first_violation(&self) -> Option<String> {
        self.inner().violations.first().cloned()
    }

    /// The number of each counted event.
    pub(crate) fn happened(&self) -> BTreeMap<&'static str, u64> {
        self.inner().happened.clone()
    }

    /// A unique value in this run.
    pub(crate) fn fresh_value(&self) -> u64 {
        let mut inner = self.inner();
        inner.values += 1;
        inner.values
    }

    /// A client calls. Returns the number of the call.
    pub(crate) fn called(&self, client: u64, key: u8, operation: Operation) -> u64 {
        let mut inner = self.inner();
        inner.clock += 1;
        let called = inner.clock;
        inner.calls.insert(called, Call { client, key, operation, called, returned: None });
        called
    }

    /// The call had this outcome.
    pub(crate) fn returned(&self, call: u64, outcome: Outcome) {
        let mut inner = self.inner();
        inner.clock += 1;
        let clock = inner.clock;
        if let Some(call) = inner.calls.get_mut(&call) {
            call.returned = Some((clock, outcome));
        }
    }

    /// The call had no effect, and never will have.
    pub(crate) fn refused(&self, call: u64) {
        let mut inner = self.inner();
        inner.calls.remove(&call);
        inner.refused.insert(call);
    }

    /// Compares the answers of clients with the applied entries, at the end.
    pub(crate) fn check_answers(&self) {
        let inner = self.inner();
        let refused = inner.refused.iter().filter(|call| inner.applied_at.contains_key(call));
        let mut wrong: Vec<String> =
            refused.map(|call| format!("call {call} was applied, although it was refused")).collect();
        for (number, call) in &inner.calls {
            let changes = matches!(call.returned, Some((_, Outcome::Done | Outcome::Swapped(_))));
            if changes && !inner.applied_at.contains_key(number) {
                wrong.push(format!("{call:?} was acknowledged, and was not applied"));
            }
        }
        drop(inner);
        for wrong in wrong {
            self.violation("the clients", wrong);
        }
    }

    /// Checks that the history of each register is linearizable.
    pub(crate) fn check_history(&self) {
        let calls: Vec<Call> = self.inner().calls.values().cloned().collect();
        let history = calls.into_iter().map(|call| {
            let operation = match call.operation {
                Operation::Read => register::Operation::Read,
                Operation::Write(value) => register::Operation::Write(value),
                Operation::CompareAndSet { expected, new } => {
                    register::Operation::CompareAndSet { expected, new }
                }
            };
            let returned = call.returned.map(|(at, outcome)| {
                let outcome = match outcome {
                    Outcome::Value(value) => register::Outcome::Value(value),
                    Outcome::Done => register::Outcome::Done,
                    Outcome::Swapped(swapped) => register::Outcome::Swapped(swapped),
                };
                (at, outcome)
            });
            (
                call.key,
                raftify_history::Call { client: call.client, operation, called: call.called, returned },
            )
        });
        for (key, verdict) in check_each_key(&Register, history, CONFIGURATIONS_MAX) {
            match verdict {
                Verdict::Linearizable => {}
                Verdict::NotLinearizable(counterexample) => {
                    self.violation("the clients", format_args!("register {key}: {counterexample}"));
                }
                Verdict::Undecided => self.count("history undecided"),
            }
        }
    }

    /// A node is a member of this cluster: no other cluster may ever begin.
    pub(crate) fn has_begun(&self, who: &str, cluster: ClusterId) {
        let first = *self.inner().cluster.get_or_insert(cluster);
        if first != cluster {
            self.violation(who, format_args!("is a member of cluster {cluster}, another node of {first}"));
        }
    }

    /// A node has applied an entry: all other nodes must apply the same one there.
    pub(crate) fn applied(&self, who: &str, position: LogPosition, command: &Command) {
        let mut inner = self.inner();
        let there = inner.applied.entry(position.index.0).or_insert_with(|| (position, command.clone()));
        let there = there.clone();
        let at = *inner.applied_at.entry(command.call).or_insert(position.index.0);
        drop(inner);
        if there != (position, command.clone()) {
            let (position_there, command_there) = there;
            self.violation(
                who,
                format_args!(
                    "applied {command:?} at {position}, another node {command_there:?} at {position_there}"
                ),
            );
        }
        if at != position.index.0 {
            self.violation(who, format_args!("applied {command:?} at {position} and at index {at}"));
        }
    }

    /// The whole trace, one line for each event.
    pub(crate) fn trace(&self) -> String {
        let mut trace = self.inner().trace.clone();
        trace.sort();
        trace.iter().map(|(at, who, what)| format!("{:>11.6} {who}: {what}\n", at.as_secs_f64())).collect()
    }
}
