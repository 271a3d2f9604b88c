//! The clients of the cluster: through a node's handle, on its host, or through the remote client, on a
//! separate host.
//!
//! Each records its operations and their results. A call that is not answered by its deadline is a violation.

use std::time::Duration;

use raftify::client::ClientError;
use raftify::error::{ProposeError, ReadError};
use raftify::{Raft, RaftClient};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::time::{sleep, timeout};

use crate::command::{Command, Operation, Outcome};
use crate::machine::Registers;
use crate::record::Record;

/// The number of registers.
const KEYS: u8 = 3;

/// The handle of a node.
pub(crate) type Node = Raft<Command, Registers>;

/// The state of one client.
pub(crate) struct Client {
    /// Its name in the record.
    name: String,
    /// Its number in the history.
    number: u64,
    /// Its random numbers.
    chance: ChaCha8Rng,
    /// The number of calls of all clients.
    record: Record,
    /// The longest pause between two calls.
    pause_max: Duration,
    /// The maximum number of additional bytes of some of its entries.
    padding_bytes_max: usize,
    /// The last value it has seen, for compare-and-set.
    seen: Option<u64>,
    /// The number of calls with an outcome.
    pub(crate) successes: u64,
}

/// The result of a call.
enum Answer {
    Outcome(Outcome),
    /// It had no effect and never will.
    Refused(String),
    /// It may have taken effect, or may take effect later.
    Unknown(String),
    /// As `Unknown`, and the node has stopped answering.
    Stopped(String),
}

impl Client {
    /// A client without calls so far; `number` is unique.
    pub(crate) fn new(
        name: String,
        number: u64,
        chance: ChaCha8Rng,
        record: Record,
        pause_max: Duration,
    ) -> Client {
        Client { name, number, chance, record, pause_max, padding_bytes_max: 0, seen: None, successes: 0 }
    }

    /// Some of its entries are large.
    pub(crate) fn with_padding(self, padding_bytes_max: usize) -> Client {
        Client { padding_bytes_max, ..self }
    }

    fn command(&mut self, key: u8, operation: Operation, call: u64) -> Command {
        let mut padding = String::new();
        if self.padding_bytes_max > 0 && self.chance.random_bool(0.3) {
            padding = "x".repeat(self.chance.random_range(0..=self.padding_bytes_max));
            self.record.count("large entry");
        }
        Command { key, operation, call, padding }
    }

    /// `call` must end within `limit` in every case.
    async fn in_time<T>(&self, limit: Duration, what: &str, call: impl Future<Output = T>) -> Option<T> {
        in_time(&self.record, &self.name, limit, what, call).await
    }

    fn draw(&mut self) -> (u8, Operation) {
        let key = self.chance.random_range(0..KEYS);
        let operation = match self.chance.random_range(0..10) {
            0..4 => Operation::Read,
            4..8 => Operation::Write(self.record.fresh_value()),
            _ => Operation::CompareAndSet { expected: self.seen, new: self.record.fresh_value() },
        };
        (key, operation)
    }

    /// Records the result of a call. Returns whether the node still answers.
    fn answered(&mut self, call: u64, answer: Option<Answer>) -> bool {
        let (told, goes_on) = match answer {
            Some(Answer::Outcome(outcome)) => {
                if let Outcome::Value(value) = outcome {
                    self.seen = value;
                }
                self.successes += 1;
                self.record.returned(call, outcome);
                self.record.count("answered");
                (format!("{outcome:?}"), true)
            }
            Some(Answer::Refused(reason)) => {
                self.record.refused(call);
                self.record.count("refused");
                (format!("refused: {reason}"), true)
            }
            Some(Answer::Unknown(reason)) => {
                self.record.count("unknown");
                (format!("unknown: {reason}"), true)
            }
            Some(Answer::Stopped(reason)) => {
                self.record.refused(call);
                self.record.count("stopped");
                (format!("stopped: {reason}"), false)
            }
            None => ("no answer".to_owned(), false),
        };
        self.record.event(&self.name, format_args!("call {call}: {told}"));
        goes_on
    }

    fn call(&mut self) -> (u64, u8, Operation) {
        let (key, operation) = self.draw();
        let call = self.record.called(self.number, key, operation);
        self.record.event(&self.name, format_args!("call {call}: {operation:?} of {key}"));
        (call, key, operation)
    }

    async fn rest(&mut self) {
        let pause = self.chance.random_range(Duration::ZERO..=self.pause_max);
        sleep(pause).await;
    }

    /// One call through a node's handle. Returns whether the node still answers.
    pub(crate) async fn call_node(&mut self, node: &Node, propose: Duration, read: Duration) -> bool {
        let (call, key, operation) = self.call();
        let answer = match operation {
            Operation::Read => {
                let query = node.query(move |registers: &Registers| registers.get(key));
                self.in_time(read, "query", query).await.map(|answer| match answer {
                    Ok(value) => Answer::Outcome(Outcome::Value(value)),
                    // A read has no effect in any case.
                    Err(ReadError::Stopped(reason)) => Answer::Stopped(reason.to_string()),
                    Err(error) => Answer::Refused(error.to_string()),
                })
            }
            _ => {
                let command = self.command(key, operation, call);
                let proposal = node.propose(command);
                self.in_time(propose, "propose", proposal).await.map(proposed)
            }
        };
        self.answered(call, answer)
    }

    /// Uses a node's handle until it no longer answers.
    pub(crate) async fn use_node(mut self, node: Node, propose: Duration, read: Duration) {
        while self.call_node(&node, propose, read).await {
            self.rest().await;
        }
    }

    /// One call through the remote client, reads included.
    async fn call_cluster(&mut self, cluster: &RaftClient<Command, Registers>, deadline: Duration) {
        let (call, key, operation) = self.call();
        let command = self.command(key, operation, call);
        let proposal = cluster.propose(&command);
        let answer = self.in_time(deadline, "propose from afar", proposal).await;
        let answer = answer.map(|answer| match answer {
            Err(ClientError::Answer(error)) => proposed(Err(error)),
            Err(error) => Answer::Refused(error.to_string()),
            Ok(outcome) => Answer::Outcome(outcome),
        });
        self.answered(call, answer);
    }

    /// Uses the remote client forever.
    pub(crate) async fn use_cluster(mut self, cluster: RaftClient<Command, Registers>, deadline: Duration) {
        loop {
            self.call_cluster(&cluster, deadline).await;
            self.rest().await;
        }
    }
}

fn proposed(answer: Result<Outcome, ProposeError>) -> Answer {
    match answer {
        Ok(outcome) => Answer::Outcome(outcome),
        Err(ProposeError::Unknown(reason)) => Answer::Unknown(reason.to_string()),
        Err(error) if !error.nothing_happened() => Answer::Unknown(error.to_string()),
        Err(ProposeError::Stopped(reason)) => Answer::Stopped(reason.to_string()),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// `call` must end within `limit` in every case.
pub(crate) async fn in_time<T>(
    record: &Record,
    who: &str,
    limit: Duration,
    what: &str,
    call: impl Future<Output = T>,
) -> Option<T> {
    let outcome = timeout(limit, call).await.ok();
    if outcome.is_none() {
        record.violation(who, format_args!("{what} hangs: no result within {limit:?}"));
    }
    outcome
}
