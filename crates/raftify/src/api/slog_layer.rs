//! Forwards raftify's log lines to an application that logs through slog.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use slog::{BorrowedKV, Drain, KV, Logger, OwnedKVList, Record, RecordLocation, RecordStatic, Serializer};
use slog_async::{Async, AsyncGuard, OverflowStrategy};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The targets of raftify's crates and of raft-rs begin with this.
const TARGETS: &str = "raft";

/// The maximum number of lines that wait for the logger.
const LINES_MAX: usize = 1024;

/// Waits, when dropped, until all lines have been passed to the logger. Keep it until the end of `main`.
#[must_use = "dropping the guard ends the forwarding of log lines"]
pub struct SlogGuard {
    _guard: AsyncGuard,
}

/// A layer for a `tracing` subscriber that forwards the log lines of raftify and of raft-rs to a slog logger,
/// with their level, target (as the tag), message and key-value pairs. Lines above `level` cost nothing.
///
/// A separate thread calls the logger. A drain that blocks or panics therefore never stops a node: at most 1
/// 024 lines wait, further ones are dropped, and a line reports their number. (A `slog_async::Async` of the
/// application drops lines in the same way by default when its own channel is full.) A drain that blocks
/// forever blocks the drop of the [`SlogGuard`].
///
/// A process has one global subscriber; add other layers for lines of other crates.
///
/// # Examples
/// ```
/// use tracing_subscriber::layer::SubscriberExt;
/// use tracing_subscriber::util::SubscriberInitExt;
///
/// let logger = slog::Logger::root(slog::Discard, slog::o!("program" => "my-store"));
/// let (layer, _guard) = raftify::slog_layer(logger, slog::Level::Info);
/// tracing_subscriber::registry().with(layer).init();
/// ```
pub fn slog_layer<S>(logger: Logger, level: slog::Level) -> (impl Layer<S>, SlogGuard)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let drain = Async::new(Unwinding(logger))
        .chan_size(LINES_MAX)
        .overflow_strategy(OverflowStrategy::DropAndReport)
        .thread_name("slog-layer".to_owned());
    let (drain, guard) = drain.build_with_guard();
    let targets = Targets::new().with_target(TARGETS, filter(level));
    (Forward(drain).with_filter(targets), SlogGuard { _guard: guard })
}

/// Survives a panic of the logger: the line is lost, the next one is attempted again.
struct Unwinding(Logger);

impl Drain for Unwinding {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        // The panic hook has reported it.
        let _ = catch_unwind(AssertUnwindSafe(|| self.0.log(record)));
        Ok(())
    }
}

struct Forward(Async);

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line::default();
        event.record(&mut line);
        let location = RecordLocation {
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
            column: 0,
            function: "",
            module: metadata.module_path().unwrap_or_default(),
        };
        let level = slog_level(*metadata.level());
        let fixed = RecordStatic { location: &location, tag: metadata.target(), level };
        let message = format_args!("{}", line.message);
        let record = Record::new(&fixed, &message, BorrowedKV(&line));
        // This fails only when the guard has ended the thread.
        let _ = self.0.log(&record, &OwnedKVList::from(slog::o!()));
    }
}

/// The content of an event.
#[derive(Default)]
struct Line {
    message: String,
    values: Vec<(&'static str, Value)>,
}

enum Value {
    Text(String),
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => self.values.push((name, Value::Text(text))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.values.push((field.name(), Value::Text(value.to_owned())));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.values.push((field.name(), Value::Bool(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.values.push((field.name(), Value::Signed(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.values.push((field.name(), Value::Unsigned(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.values.push((field.name(), Value::Float(value)));
    }
}

impl KV for Line {
    fn serialize(&self, _: &Record<'_>, serializer: &mut dyn Serializer) -> slog::Result {
        self.values.iter().try_for_each(|(key, value)| match value {
            Value::Text(text) => serializer.emit_str(key, text),
            Value::Bool(value) => serializer.emit_bool(key, *value),
            Value::Signed(value) => serializer.emit_i64(key, *value),
            Value::Unsigned(value) => serializer.emit_u64(key, *value),
            Value::Float(value) => serializer.emit_f64(key, *value),
        })
    }
}

fn slog_level(level: Level) -> slog::Level {
    match level {
        Level::ERROR => slog::Level::Error,
        Level::WARN => slog::Level::Warning,
        Level::INFO => slog::Level::Info,
        Level::DEBUG => slog::Level::Debug,
        Level::TRACE => slog::Level::Trace,
    }
}

fn filter(level: slog::Level) -> LevelFilter {
    match level {
        slog::Level::Critical | slog::Level::Error => LevelFilter::ERROR,
        slog::Level::Warning => LevelFilter::WARN,
        slog::Level::Info => LevelFilter::INFO,
        slog::Level::Debug => LevelFilter::DEBUG,
        slog::Level::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex, PoisonError};

    use slog::Key;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps each line as text.
    #[derive(Clone, Default)]
    struct Recording(Arc<Mutex<Vec<String>>>);

    impl Recording {
        fn lines(&self) -> Vec<String> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    struct Values(String);

    impl Serializer for Values {
        fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
            self.0 += &format!(" {key}={value}");
            Ok(())
        }
    }

    impl Drain for Recording {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
            let mut shown = Values(String::new());
            record.kv().serialize(record, &mut shown).unwrap();
            values.serialize(record, &mut shown).unwrap();
            let line = format!("{} {} {}{}", record.level(), record.tag(), record.msg(), shown.0);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            Ok(())
        }
    }

    fn logging(
        drain: impl slog::SendSyncUnwindSafeDrain<Ok = (), Err = slog::Never>
        + slog::SendSyncRefUnwindSafeDrain<Ok = (), Err = slog::Never>
        + 'static,
        lines: impl FnOnce(),
    ) {
        let logger = Logger::root(drain, slog::o!("program" => "test"));
        let (layer, guard) = slog_layer(logger, slog::Level::Info);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), lines);
        drop(guard);
    }

    #[test]
    fn level_target_message_and_values_arrive_and_other_crates_do_not() {
        let recording = Recording::default();
        logging(recording.clone(), || {
            tracing::warn!(node = 3_u64, peer = %"a:1", voter = true, "a peer is {}", "gone");
            tracing::info!(target: "raft::raft", raft_id = 1_i64, "became leader");
            tracing::debug!("not at this level");
            tracing::error!(target: "other", "not of raftify");
        });
        let expected = [
            "WARN raftify::api::slog_layer::tests a peer is gone node=3 peer=a:1 voter=true program=test",
            "INFO raft::raft became leader raft_id=1 program=test",
        ];
        let mut lines = recording.lines();
        lines.iter_mut().for_each(|line| *line = in_order(line));
        assert_eq!(lines, expected.map(in_order));
    }

    /// slog passes values from the last to the first.
    fn in_order(line: &str) -> String {
        let mut words: Vec<&str> = line.split(' ').collect();
        words.sort_unstable();
        words.join(" ")
    }

    #[test]
    fn lines_pass_through_slog_async_as_well() {
        let recording = Recording::default();
        logging(Async::new(recording.clone()).build().ignore_res(), || tracing::info!("one"));
        assert_eq!(recording.lines(), ["INFO raftify::api::slog_layer::tests one program=test"]);
    }

    struct Panicking(Recording);

    impl Drain for Panicking {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
            assert!(record.level() != slog::Level::Error, "as a drain may");
            self.0.log(record, values)
        }
    }

    #[test]
    fn a_drain_that_panics_costs_only_its_line() {
        let recording = Recording::default();
        logging(Panicking(recording.clone()), || {
            tracing::error!("lost");
            tracing::info!("kept");
        });
        assert_eq!(recording.lines(), ["INFO raftify::api::slog_layer::tests kept program=test"]);
    }

    /// Blocks until it may pass lines on.
    struct Blocking(Mutex<Receiver<()>>, Recording);

    impl Drain for Blocking {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
            let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).recv();
            self.1.log(record, values)
        }
    }

    #[test]
    fn a_drain_that_blocks_delays_no_logging_call_and_lines_beyond_the_limit_are_counted() {
        let (go_on, gate): (Sender<()>, _) = channel();
        let recording = Recording::default();
        let count = 3 * LINES_MAX;
        logging(Blocking(Mutex::new(gate), recording.clone()), || {
            for number in 0..count {
                tracing::info!(number, "a line");
            }
            drop(go_on);
        });
        let lines = recording.lines();
        let forwarded = lines.iter().filter(|line| line.contains("a line")).count();
        assert!((LINES_MAX..count).contains(&forwarded), "{forwarded}");
    }
}
