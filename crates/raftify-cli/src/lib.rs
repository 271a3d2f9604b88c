//! The command line of raftify: prints a node's directory and the status of a live node; shows a live cluster,
//! changes its members and follows its events; makes, verifies and restores backups; checks the directory of a
//! stopped node, converts it to the other storage, or makes a new cluster of it after the majority was lost; makes
//! the certificates of a cluster with mutual TLS.
//!
//! The program `raftify-cli` knows no user types and shows entries and snapshots as bytes. A program with its
//! own types passes them to [`cli_handler`], or with a [`CustomFormatter`] to [`cli_handler_with`], and has
//! the same commands:
//!
//! ```no_run
//! # use raftify::{BoxError, LogPosition, Snapshot, StateMachine};
//! # struct Counter(u64);
//! # impl StateMachine for Counter {
//! #     type LogEntry = u64;
//! #     type Reply = u64;
//! #     fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> { self.0 += add; Ok(self.0) }
//! #     fn snapshot(&mut self) -> Result<Snapshot, BoxError> { Ok(Snapshot::from_value(self.0)) }
//! #     fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
//! #         self.0 = Snapshot::read_value(reader)?;
//! #         Ok(())
//! #     }
//! # }
//! use raftify::formatter::CustomFormatter;
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
pub mod authority;
mod backup;
mod certificates;
mod check;
mod cluster;
mod convert;
mod describe;
mod failure;
mod manual;
mod output;
mod recover;
mod tls_arguments;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;
use raftify::formatter::{CustomFormatter, DefaultFormatter};
use raftify::{LogEntry, StateMachine};

use crate::arguments::{Arguments, Command, Storage};
use crate::failure::Failure;
use crate::output::is_broken_pipe;
pub use crate::tls_arguments::TlsArguments;

/// Runs the command line of this process, and shows entries and snapshots as hex and text.
///
/// The exit code is 0 on success, 1 with one line on standard error after a failure, 2 if the command line is
/// invalid, 3 if the outcome of a change is unknown, and 4 if a change was not confirmed; `cluster status`
/// also returns 5 if a member is down, and 6 if no writes are accepted. `check` has its own: 0 for a sound
/// directory, 1 for one with problems, 2 if it could not be checked. A closed standard output, as with `head`,
/// is no error.
pub fn cli_handler<Entry, FSM>() -> ExitCode
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    cli_handler_with::<Entry, FSM>(DefaultFormatter)
}

/// Like [`cli_handler`], with entries and snapshots shown by `formatter`.
pub fn cli_handler_with<Entry, FSM>(formatter: impl CustomFormatter<Entry, FSM>) -> ExitCode
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let arguments = Arguments::parse();
    let mut output = BufWriter::new(io::stdout().lock());
    let outcome = match arguments.command {
        Command::Describe(what) => describe::run(what, &formatter, &mut output),
        Command::Cluster(what) => cluster::run::<Entry, FSM>(what, &mut output),
        Command::Check(what) => return check::run(&what, &mut output),
        Command::Recover(what) => recover::run::<Entry, FSM>(what, &mut output),
        Command::Backup(what) => backup::run::<Entry, FSM>(what, &mut output),
        Command::Restore(what) => backup::restore(&what, &mut output),
        Command::Ca(what) => certificates::run(what, &mut output),
        Command::Completions { shell } => manual::completions(shell, &mut output),
        Command::Man { dir } => manual::pages(dir.as_deref(), &mut output),
        Command::Storage(Storage::Convert { path, to }) => convert::run(&path, to.into(), &mut output),
    };
    match outcome.and_then(|()| Ok(output.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = error.downcast_ref::<Failure>();
            if failure.is_none_or(|failure| failure.text.is_some()) {
                eprintln!("error: {error}");
            }
            failure.map_or(ExitCode::FAILURE, |failure| ExitCode::from(failure.exit as u8))
        }
    }
}
