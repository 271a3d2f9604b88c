//! The ready-made program. It knows no user types and shows entries and snapshots as hex and text.

use std::io::Read;
use std::process::ExitCode;

use bytes::Bytes;
use raftify::{BoxError, LogEntry, LogPosition, Snapshot, StateMachine};
use raftify_cli::cli_handler;

fn main() -> ExitCode {
    cli_handler::<UnknownEntry, UnknownStateMachine>()
}

/// An entry of an unknown program, as bytes.
struct UnknownEntry(Bytes);

impl LogEntry for UnknownEntry {
    fn encode(&self) -> Result<Bytes, BoxError> {
        Ok(self.0.clone())
    }

    fn decode(bytes: &[u8]) -> Result<UnknownEntry, BoxError> {
        Ok(UnknownEntry(Bytes::copy_from_slice(bytes)))
    }
}

/// The state machine of an unknown program. It never runs.
struct UnknownStateMachine;

const UNKNOWN: &str = "the state machine of the directory's program is unknown to this program";

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
