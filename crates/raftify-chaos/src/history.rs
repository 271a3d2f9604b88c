//! The requests and answers of the clients, in memory, by key; and the verdict of the checker.
//!
//! A lane changes its key after some hundred calls, or after a few whose outcome is unknown: that keeps the
//! search for an order short. Refused calls are not recorded, because they had no effect.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use raftify_history::register::{Operation, Outcome, Register};
use raftify_history::{Call, Counterexample, Verdict, check};
use serde_json::{Value, json};

/// A lane changes its key after so many calls.
const CALLS_MAX: usize = 400;

/// And after so many calls whose outcome is unknown, because each may take effect at any later time.
const UNKNOWN_MAX: usize = 6;

/// The number of configurations that the checker visits for one key.
const BUDGET: u64 = 5_000_000;

/// The client numbers of the last reads begin here.
pub(crate) const LAST_READS: u64 = 1 << 40;

pub(crate) type RegisterCall = Call<Operation, Outcome>;

/// One key, and all calls for it.
pub(crate) struct Key {
    pub name: String,
    calls: Mutex<Vec<RegisterCall>>,
    begun: AtomicUsize,
    unknown: AtomicUsize,
    /// A recent value, so that some compare-and-set calls succeed; 0 before there is one.
    last: AtomicU64,
}

impl Key {
    pub(crate) fn last_value(&self) -> Option<u64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|value| *value != 0)
    }

    fn calls(&self) -> MutexGuard<'_, Vec<RegisterCall>> {
        self.calls.lock()
    }

    fn is_worn(&self) -> bool {
        self.begun.load(Ordering::Relaxed) >= CALLS_MAX || self.unknown.load(Ordering::Relaxed) >= UNKNOWN_MAX
    }
}

/// Records the calls of all clients. The clients of one lane share a key.
pub(crate) struct Recorder {
    begin: Instant,
    lanes: Vec<Mutex<Arc<Key>>>,
    keys: Mutex<Vec<Arc<Key>>>,
    values: AtomicU64,
    clients: AtomicU64,
}

impl Recorder {
    pub(crate) fn new(lanes: usize) -> Recorder {
        let keys = Mutex::new(Vec::new());
        let lanes = (0..lanes).map(|lane| Mutex::new(new_key(&keys, lane))).collect();
        Recorder { begin: Instant::now(), lanes, keys, values: AtomicU64::new(1), clients: AtomicU64::new(1) }
    }

    /// The current key of the lane, for one more call.
    pub(crate) fn key(&self, lane: usize) -> Arc<Key> {
        let mut key = self.lanes[lane].lock();
        if key.is_worn() {
            *key = new_key(&self.keys, lane);
        }
        key.begun.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&key)
    }

    /// A value that no client has written before.
    pub(crate) fn new_value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// A number for a client: a new one after each call without an answer, because that call may still be
    /// pending.
    pub(crate) fn new_client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A call with an answer.
    pub(crate) fn answered(
        &self,
        key: &Key,
        client: u64,
        operation: Operation,
        called: u64,
        outcome: Outcome,
    ) {
        let seen = match (operation, outcome) {
            (Operation::Write(value), _) => Some(value),
            (Operation::CompareAndSet { new, .. }, Outcome::Swapped(true)) => Some(new),
            (_, Outcome::Value(value)) => value,
            _ => None,
        };
        if let Some(seen) = seen {
            key.last.store(seen, Ordering::Relaxed);
        }
        let returned = Some((self.now(), outcome));
        key.calls().push(Call { client, operation, called, returned });
    }

    /// A call that may have taken effect.
    pub(crate) fn unknown(&self, key: &Key, client: u64, operation: Operation, called: u64) {
        key.unknown.fetch_add(1, Ordering::Relaxed);
        key.calls().push(Call { client, operation, called, returned: None });
    }

    pub(crate) fn keys(&self) -> Vec<Arc<Key>> {
        self.keys.lock().clone()
    }

    /// Checks the history of every key. No client may record meanwhile.
    pub(crate) fn judge(&self) -> Judgement {
        let keys = self.keys();
        let next = AtomicUsize::new(0);
        let judgement = Mutex::new(Judgement::default());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let calls = key.calls();
                        let verdict = check(&Register, &calls, BUDGET);
                        let mut judgement = judgement.lock();
                        match verdict {
                            Verdict::Linearizable => judgement.linearizable += 1,
                            Verdict::Undecided => judgement.undecided.push(key.name.clone()),
                            Verdict::NotLinearizable(counterexample) => {
                                let at_the_end_only = is_linearizable_without_last_reads(&calls);
                                let key = key.name.clone();
                                judgement.violations.push(Violation { key, counterexample, at_the_end_only });
                            }
                        }
                    }
                });
            }
        });
        judgement.into_inner()
    }

    /// Writes the history of a key, or of all keys, as JSON lines.
    pub(crate) fn write(&self, path: &Path, only: Option<&str>) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for key in self.keys().iter().filter(|key| only.is_none_or(|only| only == key.name)) {
            for call in key.calls().iter() {
                serde_json::to_writer(&mut file, &line(&key.name, call))?;
                file.write_all(b"\n")?;
            }
        }
        file.flush()
    }
}

fn new_key(keys: &Mutex<Vec<Arc<Key>>>, lane: usize) -> Arc<Key> {
    let mut keys = keys.lock();
    let key = Arc::new(Key {
        name: format!("lane-{lane}-key-{}", keys.len()),
        calls: Mutex::new(Vec::with_capacity(CALLS_MAX)),
        begun: AtomicUsize::new(0),
        unknown: AtomicUsize::new(0),
        last: AtomicU64::new(0),
    });
    keys.push(Arc::clone(&key));
    key
}

fn is_linearizable_without_last_reads(calls: &[RegisterCall]) -> bool {
    let calls: Vec<RegisterCall> = calls.iter().filter(|call| call.client < LAST_READS).cloned().collect();
    matches!(check(&Register, &calls, BUDGET), Verdict::Linearizable)
}

fn line(key: &str, call: &RegisterCall) -> Value {
    let returned =
        call.returned.map(|(time, outcome)| json!({ "at": time, "outcome": format!("{outcome:?}") }));
    json!({
        "key": key,
        "client": call.client,
        "operation": format!("{:?}", call.operation),
        "called": call.called,
        "returned": returned,
    })
}

/// The verdict of the checker.
#[derive(Default)]
pub(crate) struct Judgement {
    pub linearizable: usize,
    /// Keys whose check exceeded the budget.
    pub undecided: Vec<String>,
    pub violations: Vec<Violation>,
}

/// A key whose history is not linearizable.
pub(crate) struct Violation {
    pub key: String,
    pub counterexample: Counterexample,
    /// Only the last reads do not fit: an acknowledged write is missing, or the nodes differ.
    pub at_the_end_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(recorder: &Recorder, key: &Key, value: u64) {
        let called = recorder.now();
        recorder.answered(key, 1, Operation::Write(value), called, Outcome::Done);
    }

    fn read(recorder: &Recorder, key: &Key, client: u64, value: Option<u64>) {
        let called = recorder.now();
        recorder.answered(key, client, Operation::Read, called, Outcome::Value(value));
    }

    #[test]
    fn a_lane_changes_its_key_after_its_limit_of_calls() {
        let recorder = Recorder::new(2);
        let first = recorder.key(0);
        for _ in 1..CALLS_MAX {
            assert!(Arc::ptr_eq(&first, &recorder.key(0)));
        }
        let second = recorder.key(0);
        assert_ne!(first.name, second.name);
        for _ in 0..UNKNOWN_MAX {
            recorder.unknown(&second, 1, Operation::Write(recorder.new_value()), 0);
        }
        assert_ne!(second.name, recorder.key(0).name);
        assert_eq!(recorder.keys().len(), 4);
    }

    #[test]
    fn a_stale_read_and_a_lost_write_are_distinguished() {
        let recorder = Recorder::new(3);
        let [fine, stale, lost] = [0, 1, 2].map(|lane| recorder.key(lane));
        for key in [&fine, &stale, &lost] {
            write(&recorder, key, 1);
            write(&recorder, key, 2);
        }
        read(&recorder, &fine, 2, Some(2));
        read(&recorder, &stale, 2, Some(1));
        read(&recorder, &lost, LAST_READS, Some(1));
        let judgement = recorder.judge();
        assert_eq!((judgement.linearizable, judgement.undecided.len()), (1, 0));
        let mut found: Vec<(&str, bool)> =
            judgement.violations.iter().map(|found| (found.key.as_str(), found.at_the_end_only)).collect();
        found.sort_unstable();
        assert_eq!(found, [(stale.name.as_str(), false), (lost.name.as_str(), true)]);
    }

    #[test]
    fn a_history_is_written_as_json_lines() {
        let recorder = Recorder::new(2);
        let [kept, other] = [0, 1].map(|lane| recorder.key(lane));
        write(&recorder, &kept, 7);
        recorder.unknown(&kept, 3, Operation::CompareAndSet { expected: None, new: 8 }, 5);
        write(&recorder, &other, 9);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        recorder.write(&path, Some(&kept.name)).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["operation"], "Write(7)");
        assert_eq!(lines[0]["returned"]["outcome"], "Done");
        assert_eq!(lines[1]["returned"], Value::Null);
    }
}
