//! Applies load and records the duration of each operation.
//!
//! A closed loop has a fixed number of clients. Each client begins its next operation when the previous one
//! has returned: the measured time is that seen by the client. While the system stalls, such clients send
//! nothing, so that a stall counts once for each of them. An open loop begins operations at a fixed rate,
//! independent of the system, and counts from the moment at which each was due: a stall counts for all
//! operations that were due meanwhile (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::{Mutex, MutexGuard};
use raftify::BoxError;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Longer than any request may take.
const LONGEST: Duration = Duration::from_secs(120);

/// The interval at which an open loop checks for due operations. The operating system wakes a thread up to 60
/// µs late.
const SLICE: Duration = Duration::from_micros(200);

/// The result of an operation that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Refused at once because a queue was full; not recorded as an operation.
    Busy,
    /// Failed or of unknown outcome; only counted.
    Failed,
}

/// The result of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) count: u64,
    pub(crate) busy: u64,
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Measured {
    pub(crate) fn ops_per_second(&self) -> f64 {
        self.count as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// `value` with this many decimal places.
pub(crate) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// Durations, in nanoseconds with three digits.
pub(crate) struct Recorder(Histogram<u64>);

impl Recorder {
    pub(crate) fn new() -> Recorder {
        let longest = u64::try_from(LONGEST.as_nanos()).expect("two minutes are below 2^64 ns");
        Recorder(
            Histogram::new_with_bounds(1, longest, 3).expect("the bounds are in order, 3 digits are allowed"),
        )
    }

    pub(crate) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        rounded(self.0.value_at_quantile(quantile) as f64 / 1e3, 1)
    }

    pub(crate) fn measured(&self, elapsed: Duration) -> Measured {
        Measured {
            count: self.0.len(),
            busy: 0,
            failed: 0,
            seconds: elapsed.as_secs_f64(),
            p50_us: self.quantile_us(0.5),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            max_us: self.quantile_us(1.0),
        }
    }
}

/// Calls `operation` for `duration`, one call after the other.
pub(crate) fn repeat(
    duration: Duration,
    mut operation: impl FnMut() -> Result<(), BoxError>,
) -> Result<Measured, BoxError> {
    let mut recorder = Recorder::new();
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let sent = Instant::now();
        operation()?;
        recorder.record(sent.elapsed());
    }
    Ok(recorder.measured(begin.elapsed()))
}

/// Shared by the clients of one load, which run on one thread: the lock is never contended.
struct Tally {
    recorder: Mutex<Recorder>,
    busy: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    fn new() -> Arc<Tally> {
        Arc::new(Tally {
            recorder: Mutex::new(Recorder::new()),
            busy: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock()
    }

    fn note(&self, outcome: Outcome, since: Instant) {
        match outcome {
            Outcome::Done => self.lock().record(since.elapsed()),
            Outcome::Busy => {
                self.busy.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Failed => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn measured(&self, elapsed: Duration) -> Measured {
        Measured {
            busy: self.busy.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ..self.lock().measured(elapsed)
        }
    }
}

/// Runs `clients` clients, each with one pending operation, for `duration`. Must be called on the runtime
/// that runs them.
pub(crate) async fn closed_loop<F: Future<Output = Result<Outcome, BoxError>> + Send + 'static>(
    clients: u64,
    duration: Duration,
    operation: impl Fn() -> F + Clone + Send + 'static,
) -> Result<Measured, BoxError> {
    let tally = Tally::new();
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (operation, tally) = (operation.clone(), Arc::clone(&tally));
        tasks.spawn(async move {
            loop {
                let sent = Instant::now();
                if sent - begin >= duration {
                    return Ok::<_, BoxError>(());
                }
                let outcome = operation().await?;
                tally.note(outcome, sent);
                if outcome != Outcome::Done {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(tally.measured(begin.elapsed()))
}

/// Runs `per_second` operations for `duration`, each a task on `runtime`, started from a separate thread. An
/// operation that fails ends the load with its error.
pub(crate) fn open_loop<F: Future<Output = Result<Outcome, BoxError>> + Send + 'static>(
    runtime: &Handle,
    per_second: f64,
    duration: Duration,
    operation: impl Fn() -> F,
) -> Result<Measured, BoxError> {
    let tally = Tally::new();
    let failure = Arc::new(Mutex::new(None));
    let begin = Instant::now();
    let mut begun = 0_u64;
    loop {
        let now = begin.elapsed();
        if now >= duration {
            break;
        }
        while (begun as f64) < now.as_secs_f64() * per_second {
            let due = begin + Duration::from_secs_f64(begun as f64 / per_second);
            let (tally, failure, operation) = (Arc::clone(&tally), Arc::clone(&failure), operation());
            runtime.spawn(async move {
                match operation.await {
                    Ok(outcome) => tally.note(outcome, due),
                    Err(error) => *failure.lock() = Some(error),
                }
            });
            begun += 1;
        }
        std::thread::sleep(SLICE);
    }
    // The tasks have the other handles.
    while Arc::strong_count(&tally) > 1 {
        std::thread::sleep(SLICE);
    }
    match failure.lock().take() {
        Some(error) => Err(error),
        None => Ok(tally.measured(begin.elapsed())),
    }
}
