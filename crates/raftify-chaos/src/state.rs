//! What is in the cluster before the clients begin, so that a node that joins has much to catch up with. It is in no
//! history: at the end every node must still have it.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::http::{Answer, Connection};

/// So many keys, whatever the size: more than a log keeps before its snapshot, so that a joiner needs the snapshot.
const KEYS: u64 = 8_000;

/// How many keys are written at once.
const WRITERS: u64 = 64;

/// At the end one of so many keys is read.
const READ_EVERY: usize = 20;

const DEADLINE: Duration = Duration::from_secs(10);

/// Longer than it takes a node to write out what it has: until then it answers nothing.
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
    /// What was not written or taken in time.
    pub(crate) async fn fill(self, webs: &[String], patience: Duration) -> Result<(), String> {
        let end = Instant::now() + patience;
        let mut writers = JoinSet::new();
        for (writer, web) in (0..WRITERS).zip(webs.iter().cycle()) {
            let mut connection = Connection::new(web.clone());
            writers.spawn(async move {
                for number in (writer..KEYS).step_by(WRITERS as usize) {
                    let (path, value) = (format!("/store/{}", State::key(number)), self.value(number));
                    until_well(&mut connection, "PUT", &path, value.as_bytes(), DEADLINE, end).await?;
                }
                Ok(())
            });
        }
        for web in webs {
            let mut connection = Connection::new(web.clone());
            // The last of the writers has to be done before.
            while let Some(written) = writers.join_next().await {
                written.map_err(|error| error.to_string())??;
            }
            writers.spawn(async move {
                until_well(&mut connection, "POST", "/snapshot", b"", SNAPSHOT_DEADLINE, end).await.map(drop)
            });
        }
        while let Some(taken) = writers.join_next().await {
            taken.map_err(|error| error.to_string())??;
        }
        Ok(())
    }

    /// Reads some of the keys through every node; what one of them does not have, if anything.
    pub(crate) async fn missing(self, webs: &[String], patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        let mut readers = JoinSet::new();
        for web in webs {
            let (web, mut connection) = (web.clone(), Connection::new(web.clone()));
            readers.spawn(async move {
                for number in (0..KEYS).step_by(READ_EVERY) {
                    let key = State::key(number);
                    let path = format!("/store/{key}");
                    let answer = until_well(&mut connection, "GET", &path, b"", DEADLINE, end).await?;
                    let answer: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                    if answer["value"].as_str() != Some(&self.value(number)) {
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

/// Asks until the answer is that all is well.
async fn until_well(
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
                return Err(format!("{method} {path} is answered {told:?}"));
            }
            _ => sleep(PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_as_large_as_was_asked_and_every_value_is_another() {
        let state = State::of(2);
        let bytes: usize = (0..KEYS).map(|number| state.value(number).len()).sum();
        assert!((2 << 20..3 << 20).contains(&bytes), "{bytes}");
        assert_ne!(state.value(1), state.value(11));
    }
}
