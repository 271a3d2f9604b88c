//! The ready program. It knows no user's types and shows their entries and snapshots as hex and text.

use std::io::Read;
use std::process::ExitCode;

use bytes::Bytes;
use raftify::{BoxError, LogEntry, LogPosition, Snapshot, StateMachine};
use raftify_cli::cli_handler;

fn main() -> ExitCode {
    cli_handler::<UnknownEntry, UnknownStateMachine>()
}

/// An entry of some program, as bytes.
struct UnknownEntry(Bytes);

impl LogEntry for UnknownEntry {
    fn encode(&self) -> Result<Bytes, BoxError> {
        Ok(self.0.clone())
    }

    fn decode(bytes: &[u8]) -> Result<UnknownEntry, BoxError> {
        Ok(UnknownEntry(Bytes::copy_from_slice(bytes)))
    }
}

/// The state machine of some program. It is never run.
struct UnknownStateMachine;

const UNKNOWN: &str = "the state machine of the directory's program is not known here";

impl StateMachine for UnknownStateMachine {
    type LogEntry = UnknownEntry;
    type Reply = ();

    fn apply(&mut self, _: LogPosition, _: UnknownEntry) -> Result<(), BoxError> {
        Err(UNKNOWN.into())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Err(UNKNOWN.into())
    }

    fn restore(&mut self, _: &mut dyn Read) -> Result<(), BoxError> {
        Err(UNKNOWN.into())
    }
}
