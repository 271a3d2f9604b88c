//! The command line of raftify: what a node's directory holds, and how a live node is doing; to change the members of a live
//! cluster; and to make the directory of a stopped node one of the other storage.
//!
//! The program `raftify-cli` knows no types and shows entries and snapshots as bytes. A program that knows its own
//! gives them to [`cli_handler`], or with a [`CustomFormatter`] to [`cli_handler_with`], and has the same commands:
//!
//! ```no_run
//! # use raftify::{AbstractStateMachine, BoxError, LogPosition, SnapshotCapture, restore_value};
//! # struct Counter(u64);
//! # impl AbstractStateMachine for Counter {
//! #     type LogEntry = u64;
//! #     type Reply = u64;
//! #     fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> { self.0 += add; Ok(self.0) }
//! #     fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError> { Ok(SnapshotCapture::of(self.0)) }
//! #     fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
//! #         self.0 = restore_value(reader)?;
//! #         Ok(())
//! #     }
//! # }
//! use raftify::CustomFormatter;
//!
//! struct InWords;
//!
//! impl CustomFormatter<u64, Counter> for InWords {
//!     fn format_entry(&self, add: &u64, _encoded: &[u8]) -> String {
//!         format!("add {add}")
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     raftify_cli::cli_handler_with::<u64, Counter>(InWords)
//! }
//! ```

mod arguments;
mod cluster;
mod convert;
mod describe;
mod output;

use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;
use raftify::{AbstractLogEntry, AbstractStateMachine, CustomFormatter, DefaultFormatter};

use crate::arguments::{Arguments, Command, Storage};

/// Carries out the command line of this process, showing entries and snapshots as hex and text.
///
/// The exit code is 0 if it was carried out, 1 with one line on standard error if it could not be, and 2 if the
/// command line makes no sense. A reader of the output that goes away early, as `head` does, is no error.
pub fn cli_handler<LogEntry, FSM>() -> ExitCode
where
    LogEntry: AbstractLogEntry,
    FSM: AbstractStateMachine<LogEntry = LogEntry>,
{
    cli_handler_with::<LogEntry, FSM>(DefaultFormatter)
}

/// The same, with entries and snapshots shown by `formatter`.
pub fn cli_handler_with<LogEntry, FSM>(formatter: impl CustomFormatter<LogEntry, FSM>) -> ExitCode
where
    LogEntry: AbstractLogEntry,
    FSM: AbstractStateMachine<LogEntry = LogEntry>,
{
    let arguments = Arguments::parse();
    let mut output = BufWriter::new(io::stdout().lock());
    let outcome = match arguments.command {
        Command::Describe(what) => describe::run(what, &formatter, &mut output),
        Command::Cluster(what) => cluster::run::<LogEntry, FSM>(what, &mut output),
        Command::Storage(Storage::Convert { path, to }) => convert::run(&path, to.into(), &mut output),
    };
    match outcome.and_then(|()| Ok(output.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let kind = |error: &serde_json::Error| error.io_error_kind();
    let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
    io.or_else(|| error.downcast_ref().and_then(kind)) == Some(io::ErrorKind::BrokenPipe)
}
