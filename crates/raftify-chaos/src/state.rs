//! The state of the cluster before the clients begin, so that a node that joins has much to catch up with. It
//! is in no history: at the end every node must still have it.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::http::{Answer, Connection, Web};

/// The number of keys for every size: more than a log keeps before its snapshot, so that a joiner needs the
/// snapshot.
const KEYS: u64 = 8_000;

/// The number of concurrent writes.
const WRITERS: u64 = 64;

/// At the end one of this many keys is read.
const READ_EVERY: usize = 20;

const DEADLINE: Duration = Duration::from_secs(10);

/// Longer than a node takes to flush its state: until then it does not answer.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(300);

const PAUSE: Duration = Duration::from_millis(20);

/// Many keys and their values.
#[derive(Clone, Copy)]
pub(crate) struct State {
    value_bytes: usize,
}

impl State {
    pub(crate) fn of(megabytes: u64) -> State {
        State { value_bytes: usize::try_from((megabytes << 20) / KEYS).unwrap_or(usize::MAX) }
    }

    fn key(number: u64) -> String {
        format!("state-{number}")
    }

    fn value(self, number: u64) -> String {
        let word = format!("{number}-");
        word.repeat(self.value_bytes.div_ceil(word.len()))
    }

    /// Writes all keys through all nodes, and has every node take a snapshot.
    ///
    /// # Errors
    /// A write or a snapshot that was not complete in time.
    pub(crate) async fn fill(self, webs: &[Web], patience: Duration) -> Result<(), String> {
        let end = Instant::now() + patience;
        let mut writers = JoinSet::new();
        for (writer, web) in (0..WRITERS).zip(webs.iter().cycle()) {
            let mut connection = Connection::new(web.clone());
            writers.spawn(async move {
                for number in (writer..KEYS).step_by(WRITERS as usize) {
                    let (path, value) = (format!("/store/{}", State::key(number)), self.value(number));
                    until_ok(&mut connection, "PUT", &path, value.as_bytes(), DEADLINE, end).await?;
                }
                Ok(())
            });
        }
        for web in webs {
            let mut connection = Connection::new(web.clone());
            // All writers must have finished.
            while let Some(written) = writers.join_next().await {
                written.map_err(|error| error.to_string())??;
            }
            writers.spawn(async move {
                until_ok(&mut connection, "POST", "/snapshot", b"", SNAPSHOT_DEADLINE, end).await.map(drop)
            });
        }
        while let Some(taken) = writers.join_next().await {
            taken.map_err(|error| error.to_string())??;
        }
        Ok(())
    }

    /// Reads some of the keys through every node. Returns the first key that is wrong on a node, if any.
    pub(crate) async fn missing(self, webs: &[Web], patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        let mut readers = JoinSet::new();
        for web in webs {
            let (web, mut connection) = (web.clone(), Connection::new(web.clone()));
            readers.spawn(async move {
                for number in (0..KEYS).step_by(READ_EVERY) {
                    let key = State::key(number);
                    let path = format!("/store/{key}");
                    let answer = until_ok(&mut connection, "GET", &path, b"", DEADLINE, end).await?;
                    let answer: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                    if answer["value"].as_str() != Some(&self.value(number)) {
                        let web = &web.address;
                        return Err(format!("{key}, which was written at the beginning, is wrong at {web}"));
                    }
                }
                Ok(())
            });
        }
        let read = readers.join_all().await;
        read.into_iter().find_map(Result::err)
    }
}

/// Repeats a request until the answer has the status 200.
async fn until_ok(
    connection: &mut Connection,
    method: &str,
    path: &str,
    body: &[u8],
    deadline: Duration,
    end: Instant,
) -> Result<Answer, String> {
    loop {
        match connection.ask(method, path, body, deadline).await {
            Ok(answer) if answer.status == 200 => return Ok(answer),
            outcome if Instant::now() > end => {
                let told = outcome.map(|answer| answer.status);
                return Err(format!("{method} {path} has the answer {told:?}"));
            }
            _ => sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_has_the_requested_size_and_every_value_differs() {
        let state = State::of(2);
        let bytes: usize = (0..KEYS).map(|number| state.value(number).len()).sum();
        assert!((2 << 20..3 << 20).contains(&bytes), "{bytes}");
        assert_ne!(state.value(1), state.value(11));
    }
}
