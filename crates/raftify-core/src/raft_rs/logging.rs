//! Carries raft-rs' own logs, which are slog records, to `tracing`.

use slog::{Drain, Level, OwnedKVList, Record};
use tracing_slog::TracingSlogDrain;

/// A logger for raft-rs that writes to `tracing`.
pub(super) fn to_tracing() -> slog::Logger {
    slog::Logger::root(IfEnabled(TracingSlogDrain), slog::o!())
}

/// Looks at the level before anything is formatted: raft-rs logs every message at debug level.
struct IfEnabled<D>(D);

impl<D: Drain<Ok = (), Err = slog::Never>> Drain for IfEnabled<D> {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        if self.is_enabled(record.level()) { self.0.log(record, values) } else { Ok(()) }
    }

    fn is_enabled(&self, level: Level) -> bool {
        let level = match level {
            Level::Critical | Level::Error => tracing::level_filters::LevelFilter::ERROR,
            Level::Warning => tracing::level_filters::LevelFilter::WARN,
            Level::Info => tracing::level_filters::LevelFilter::INFO,
            Level::Debug => tracing::level_filters::LevelFilter::DEBUG,
            Level::Trace => tracing::level_filters::LevelFilter::TRACE,
        };
        level <= tracing::level_filters::LevelFilter::current()
    }
}
