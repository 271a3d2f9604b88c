//! Carries the logs of raft-rs, which are slog records, to `tracing`.
//!
//! All records have the target `raft::raft`, and contain the id of the node: there may be several nodes in a
//! process. The source location in raft-rs is left out, because it is a path on the machine that built the
//! program.

use std::fmt;

use slog::{Drain, KV, Key, Level, OwnedKVList, Record, Serializer};
use tracing::event;

/// A logger for raft-rs that writes to `tracing`.
pub(super) fn to_tracing() -> slog::Logger {
    slog::Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, logger: &OwnedKVList) -> Result<(), slog::Never> {
        // No text is formatted for a disabled level: raft-rs logs every message at debug level.
        macro_rules! line {
            ($level:ident) => {
                event!(
                    target: "raft::raft",
                    tracing::Level::$level,
                    raft_id = %RaftId(record, logger),
                    "{}",
                    Line(record, logger)
                )
            };
        }
        match record.level() {
            Level::Critical | Level::Error => line!(ERROR),
            Level::Warning => line!(WARN),
            Level::Info => line!(INFO),
            Level::Debug => line!(DEBUG),
            Level::Trace => line!(TRACE),
        }
        Ok(())
    }
}

const RAFT_ID: &str = "raft_id";

/// The message with the values of the record and those of its logger.
struct Line<'a>(&'a Record<'a>, &'a OwnedKVList);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(record, logger) = self;
        write!(f, "{}", record.msg())?;
        let mut separator = ": ";
        for_each(record, logger, |key, value| {
            if key == RAFT_ID {
                return Ok(());
            }
            write!(f, "{}{key}={value}", std::mem::replace(&mut separator, ", "))
        })
    }
}

/// The id of the node, from the logger.
struct RaftId<'a>(&'a Record<'a>, &'a OwnedKVList);

impl fmt::Display for RaftId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for_each(self.0, self.1, |key, value| if key == RAFT_ID { f.write_fmt(*value) } else { Ok(()) })
    }
}

fn for_each(
    record: &Record<'_>,
    logger: &OwnedKVList,
    write: impl FnMut(&str, &fmt::Arguments<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut values = Values(write);
    record.kv().serialize(record, &mut values).map_err(|_| fmt::Error)?;
    logger.serialize(record, &mut values).map_err(|_| fmt::Error)
}

struct Values<F>(F);

impl<F: FnMut(&str, &fmt::Arguments<'_>) -> fmt::Result> Serializer for Values<F> {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        (self.0)(key, value).map_err(slog::Error::Fmt)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Logged(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Logged {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_raft_rs_says_of_which_node_it_is_and_not_where_it_was_built() {
        let logged = Logged::default();
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for id in [1, 2] {
                let logger = to_tracing().new(slog::o!("raft_id" => id));
                slog::warn!(logger, "a message of term {}", 3; "from" => 7, "to" => 8);
                slog::debug!(logger, "not at this level");
            }
        });
        let text = String::from_utf8(logged.0.lock().clone()).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, id) in lines.iter().zip([1, 2]) {
            assert!(line.starts_with("WARN raft::raft: a message of term 3: "), "{line}");
            assert!(line.contains("from=7") && line.contains("to=8"), "{line}");
            assert!(line.ends_with(&format!(" raft_id={id}")), "{line}");
            assert!(!line.contains(".rs") && !line.contains('/'), "{line}");
        }
    }
}
