//! The clients: each sends one request after the other, at full speed, to any node, over the web API or over
//! gRPC, and records the answers. After a failure it uses another node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memstore::{HashStore, LogEntry, Reply};
use raftify::RaftClient;
use raftify::client::ClientError;
use raftify::error::ProposeError;
use raftify_history::register::{Operation, Outcome};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::certificates::Certificates;
use crate::history::{Key, Recorder};
use crate::http::{Connection, NoAnswer, Web};

/// How long a client waits for an answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// The pause of a client after a refusal: the other clients need the processor.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(20);

/// Clients that share a key.
pub(crate) const CLIENTS_PER_KEY: usize = 4;

pub(crate) type Client = RaftClient<LogEntry, HashStore>;

/// The endpoints of one node.
#[derive(Clone)]
pub(crate) struct Endpoints {
    pub web: Web,
    pub grpc: Client,
}

/// The result of one call.
#[derive(Debug, PartialEq)]
enum CallResult {
    Outcome(Outcome),
    /// The call had no effect.
    Refused,
    /// The call may have taken effect.
    Unknown,
    /// An answer that is never valid.
    Invalid(String),
}

/// The number of calls by result.
#[derive(Default)]
pub(crate) struct Counts {
    pub web: AtomicU64,
    pub grpc: AtomicU64,
    pub refused: AtomicU64,
    pub unknown: AtomicU64,
}

/// The running clients, until they are stopped.
pub(crate) struct Load {
    pub recorder: Arc<Recorder>,
    pub counts: Arc<Counts>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<Option<String>>,
}

impl Load {
    /// Every third client uses gRPC.
    pub(crate) fn start(clients: usize, endpoints: &watch::Receiver<Vec<Endpoints>>, seed: u64) -> Load {
        let recorder = Arc::new(Recorder::new(clients.div_ceil(CLIENTS_PER_KEY)));
        let counts = Arc::<Counts>::default();
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let client = ClientTask {
                lane: number / CLIENTS_PER_KEY,
                speaks_grpc: number % 3 == 2,
                endpoints: endpoints.clone(),
                recorder: Arc::clone(&recorder),
                counts: Arc::clone(&counts),
                random: ChaCha8Rng::seed_from_u64(seed ^ (number as u64 + 1).rotate_left(32)),
            };
            tasks.spawn(client.run(stop.subscribe()));
        }
        Load { recorder, counts, stop, tasks }
    }

    /// Waits for all pending calls. Returns the invalid answers.
    pub(crate) async fn stop(&mut self) -> Vec<String> {
        self.stop.send_replace(true);
        let mut problems = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(problem) => problems.extend(problem),
                Err(error) => problems.push(format!("a client failed: {error}")),
            }
        }
        problems
    }
}

struct ClientTask {
    lane: usize,
    speaks_grpc: bool,
    /// Those of the current members.
    endpoints: watch::Receiver<Vec<Endpoints>>,
    recorder: Arc<Recorder>,
    counts: Arc<Counts>,
    random: ChaCha8Rng,
}

impl ClientTask {
    async fn run(mut self, stop: watch::Receiver<bool>) -> Option<String> {
        let mut client = self.recorder.new_client();
        while !*stop.borrow() {
            let endpoints = self.endpoints.borrow().choose(&mut self.random).cloned()?;
            let mut connection = Connection::new(endpoints.web);
            for _ in 0..self.random.random_range(50..500) {
                if *stop.borrow() {
                    return None;
                }
                let key = self.recorder.key(self.lane);
                let operation = self.draw(&key);
                let called = self.recorder.now();
                let told = match self.speaks_grpc {
                    true => over_grpc(&endpoints.grpc, &key.name, operation).await,
                    false => over_web(&mut connection, &key.name, operation).await,
                };
                let counter = match told {
                    CallResult::Outcome(outcome) => {
                        self.recorder.answered(&key, client, operation, called, outcome);
                        if self.speaks_grpc { &self.counts.grpc } else { &self.counts.web }
                    }
                    CallResult::Refused => &self.counts.refused,
                    // A read without an answer restricts no order.
                    CallResult::Unknown if operation == Operation::Read => &self.counts.unknown,
                    CallResult::Unknown => {
                        self.recorder.unknown(&key, client, operation, called);
                        client = self.recorder.new_client();
                        &self.counts.unknown
                    }
                    CallResult::Invalid(what) => return Some(what),
                };
                counter.fetch_add(1, Ordering::Relaxed);
                if !matches!(told, CallResult::Outcome(_)) {
                    sleep(PAUSE_AFTER_REFUSAL).await;
                    break;
                }
            }
        }
        None
    }

    fn draw(&mut self, key: &Key) -> Operation {
        match self.random.random_range(0..10) {
            0..4 => Operation::Read,
            4..7 => Operation::Write(self.recorder.new_value()),
            _ => Operation::CompareAndSet { expected: key.last_value(), new: self.recorder.new_value() },
        }
    }
}

async fn over_web(connection: &mut Connection, key: &str, operation: Operation) -> CallResult {
    let (method, path) = request(key, operation);
    match connection.ask(method, &path, b"", DEADLINE).await {
        Ok(answer) => understand(operation, answer.status, &answer.body),
        Err(NoAnswer::NotSent(_)) => CallResult::Refused,
        Err(NoAnswer::Lost(_)) => CallResult::Unknown,
    }
}

fn request(key: &str, operation: Operation) -> (&'static str, String) {
    match operation {
        Operation::Write(value) => ("PUT", format!("/store/{key}/{value}")),
        Operation::CompareAndSet { expected: None, new } => ("PUT", format!("/store/{key}/{new}?absent")),
        Operation::CompareAndSet { expected: Some(expected), new } => {
            ("PUT", format!("/store/{key}/{new}?expected={expected}"))
        }
        Operation::Read | Operation::Delete => ("GET", format!("/store/{key}")),
    }
}

fn understand(operation: Operation, status: u16, body: &[u8]) -> CallResult {
    let senseless =
        || CallResult::Invalid(format!("to {operation:?}: {status} {}", String::from_utf8_lossy(body)));
    match (operation, status) {
        (_, 503) => CallResult::Refused,
        // A web server answers 408 if it read the request too late.
        (_, 408 | 504) => CallResult::Unknown,
        (Operation::Read, 404) => CallResult::Outcome(Outcome::Value(None)),
        (Operation::Read, 200) => {
            let value = serde_json::from_slice::<Value>(body).ok();
            let value = value.as_ref().and_then(|answer| answer["value"].as_str()?.parse().ok());
            value.map_or_else(senseless, |value| CallResult::Outcome(Outcome::Value(Some(value))))
        }
        (Operation::Write(_), 200) => CallResult::Outcome(Outcome::Done),
        (Operation::CompareAndSet { .. }, 200) => CallResult::Outcome(Outcome::Swapped(true)),
        (Operation::CompareAndSet { .. }, 412) => CallResult::Outcome(Outcome::Swapped(false)),
        _ => senseless(),
    }
}

async fn over_grpc(client: &Client, key: &str, operation: Operation) -> CallResult {
    let key = key.to_owned();
    let entry = match operation {
        Operation::Write(value) => LogEntry::Insert { key, value: value.to_string() },
        Operation::CompareAndSet { expected, new } => {
            let expected = expected.map(|value| value.to_string());
            LogEntry::CompareAndSet { key, expected, value: new.to_string() }
        }
        Operation::Read | Operation::Delete => LogEntry::Read { key },
    };
    match client.propose(&entry).await {
        Ok(Reply::Inserted { .. }) => CallResult::Outcome(Outcome::Done),
        Ok(Reply::Swapped { .. }) => CallResult::Outcome(Outcome::Swapped(true)),
        Ok(Reply::Differs { .. }) => CallResult::Outcome(Outcome::Swapped(false)),
        Ok(Reply::Value(None)) => CallResult::Outcome(Outcome::Value(None)),
        Ok(Reply::Value(Some(value))) => match value.parse() {
            Ok(value) => CallResult::Outcome(Outcome::Value(Some(value))),
            Err(_) => CallResult::Invalid(format!("to {operation:?}: {value:?}, which no client wrote")),
        },
        Err(ClientError::Answer(error)) if !error.nothing_happened() => CallResult::Unknown,
        Err(ClientError::Answer(error @ (ProposeError::TooLarge { .. } | ProposeError::Encode(_)))) => {
            CallResult::Invalid(format!("to {operation:?}: {error}"))
        }
        Err(_) => CallResult::Refused,
    }
}

/// The client of one node over gRPC.
///
/// # Errors
/// If the address is invalid, or the certificates cannot be used.
pub(crate) fn grpc(
    raft_addr: &str,
    certificates: Option<&Certificates>,
) -> Result<Client, raftify::BoxError> {
    Ok(secured(Client::new([raft_addr])?, certificates)?.with_deadline(DEADLINE))
}

/// The same client with the certificate of this program, if the cluster uses TLS.
pub(crate) fn secured(
    client: Client,
    certificates: Option<&Certificates>,
) -> Result<Client, raftify::BoxError> {
    Ok(match certificates {
        None => client,
        Some(certificates) => client.with_tls(&certificates.tls())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_web_api_are_parsed_or_rejected() {
        let swap = Operation::CompareAndSet { expected: Some(1), new: 2 };
        for (operation, status, body, told) in [
            (Operation::Read, 200, r#"{"value":"7"}"#, CallResult::Outcome(Outcome::Value(Some(7)))),
            (Operation::Read, 404, "{}", CallResult::Outcome(Outcome::Value(None))),
            (Operation::Write(1), 200, "{}", CallResult::Outcome(Outcome::Done)),
            (swap, 200, "{}", CallResult::Outcome(Outcome::Swapped(true))),
            (swap, 412, "{}", CallResult::Outcome(Outcome::Swapped(false))),
            (swap, 503, "{}", CallResult::Refused),
            (swap, 504, "{}", CallResult::Unknown),
            (swap, 408, "", CallResult::Unknown),
        ] {
            assert_eq!(understand(operation, status, body.as_bytes()), told, "{operation:?} {status}");
        }
        for (operation, status, body) in [
            (Operation::Read, 200, r#"{"value":"not mine"}"#),
            (Operation::Read, 200, "nonsense"),
            (Operation::Write(1), 404, "{}"),
            (Operation::Write(1), 500, "{}"),
        ] {
            let told = understand(operation, status, body.as_bytes());
            assert!(matches!(told, CallResult::Invalid(_)), "{operation:?} {status}: {told:?}");
        }
    }

    #[test]
    fn a_compare_and_set_request_names_the_expected_value() {
        let swap = |expected| Operation::CompareAndSet { expected, new: 2 };
        assert_eq!(request("k", swap(None)), ("PUT", "/store/k/2?absent".to_owned()));
        assert_eq!(request("k", swap(Some(1))), ("PUT", "/store/k/2?expected=1".to_owned()));
        assert_eq!(request("k", Operation::Write(3)), ("PUT", "/store/k/3".to_owned()));
        assert_eq!(request("k", Operation::Read), ("GET", "/store/k".to_owned()));
    }
}
