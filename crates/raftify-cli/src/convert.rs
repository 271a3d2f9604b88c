//! Converts a directory to the other storage, and prints the result.

use std::io::Write;
use std::path::Path;

use raftify::BoxError;
use raftify::storage::{Conversion, StorageKind, convert_storage};

use crate::output::with_advice;

pub(crate) fn run(path: &Path, to: StorageKind, output: &mut dyn Write) -> Result<(), BoxError> {
    let Conversion { from, state, .. } =
        convert_storage(path, to).map_err(|error| with_advice(path, error))?;
    let path = path.display();
    if from == to {
        writeln!(output, "{path} already uses {to}: nothing was changed")?;
        return Ok(());
    }
    let log = match state.last.index.get() - state.truncated.index.get() {
        0 => "an empty log".to_owned(),
        count => format!("{count} entries, the last at {}", state.last),
    };
    let snapshot = state
        .snapshot
        .map_or("no snapshot".to_owned(), |snapshot| format!("the snapshot at {}", snapshot.position));
    writeln!(output, "{path} was converted from {from} to {to}, with {log}, and {snapshot}")?;
    writeln!(output, "start its node with a program that opens {to}")?;
    Ok(())
}
