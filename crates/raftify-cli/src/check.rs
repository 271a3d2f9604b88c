//! Checks the directory of a stopped node, and prints what is wrong and where the documentation helps.

use std::io::Write;
use std::process::ExitCode;

use raftify::BoxError;
use raftify::storage::{Checked, Problem, ProblemKind, check_directory};
use serde_json::json;

use crate::arguments::Check;
use crate::output::{is_broken_pipe, print_json, with_advice};

/// There are problems.
const PROBLEMS: u8 = 1;
/// The directory could not be checked.
const NOT_CHECKED: u8 = 2;

pub(crate) fn run(what: &Check, output: &mut dyn Write) -> ExitCode {
    match check(what, output) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(PROBLEMS),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(NOT_CHECKED)
        }
    }
}

fn check(what: &Check, output: &mut dyn Write) -> Result<bool, BoxError> {
    let checked = check_directory(&what.path).map_err(|error| with_advice(&what.path, error))?;
    let printed = match what.json {
        true => print_as_json(&checked, output),
        false => print(what, &checked, output),
    };
    match printed.and_then(|()| Ok(output.flush()?)) {
        Err(error) if !is_broken_pipe(&*error) => Err(error),
        _ => Ok(checked.is_sound()),
    }
}

fn print(what: &Check, checked: &Checked, output: &mut dyn Write) -> Result<(), BoxError> {
    let path = what.path.display();
    let content = content(checked);
    let read = checked.read_bytes.div_ceil(1 << 20);
    match checked.problems.len() {
        0 => writeln!(output, "{path} is sound: {content}")?,
        1 => writeln!(output, "{path} has a problem: {content}")?,
        count => writeln!(output, "{path} has {count} problems: {content}")?,
    }
    for problem in &checked.problems {
        writeln!(output, "problem: {problem}")?;
        writeln!(output, "    see {}", section(problem))?;
    }
    if let Some(torn) = &checked.torn {
        writeln!(output, "note: {torn}: it was never acknowledged, and the next start drops it")?;
    }
    for leftover in &checked.leftovers {
        writeln!(output, "note: {} is not needed, and only takes space", leftover.display())?;
    }
    writeln!(output, "{read} MiB were read, nothing was changed")?;
    Ok(())
}

/// What the directory holds, as far as it could be read.
fn content(checked: &Checked) -> String {
    let storage = checked.storage.map_or("of an unknown storage", |storage| storage.name());
    let Some(state) = &checked.state else {
        return format!("{storage}, the log could not be read");
    };
    let owner = state.identity.map_or("never used".to_owned(), |identity| identity.to_string());
    let log = match state.last.index.get() - state.truncated.index.get() {
        0 => "an empty log".to_owned(),
        _ => format!("entries {} to {}", state.truncated.index.next(), state.last),
    };
    let snapshot = state.snapshot.as_ref();
    let snapshot = snapshot.map_or("no snapshot".to_owned(), |it| format!("the snapshot at {}", it.position));
    format!("{storage}, {owner}, {log}, {snapshot}")
}

fn print_as_json(checked: &Checked, output: &mut dyn Write) -> Result<(), BoxError> {
    let problems: Vec<_> = checked
        .problems
        .iter()
        .map(|problem| {
            json!({
                "kind": format!("{:?}", problem.kind), "what": problem.what, "reason": problem.reason,
                "see": section(problem),
            })
        })
        .collect();
    let value = json!({
        "sound": checked.is_sound(),
        "storage": checked.storage.map(|storage| storage.name()),
        "identity": checked.state.as_ref().and_then(|state| state.identity),
        "last": checked.state.as_ref().map(|state| state.last),
        "problems": problems,
        "torn": checked.torn,
        "leftovers": checked.leftovers,
        "read_bytes": checked.read_bytes,
    });
    Ok(print_json(output, &value)?)
}

/// The section of the documentation that helps.
fn section(problem: &Problem) -> &'static str {
    match problem.kind {
        ProblemKind::Version => "docs/operations/check.md#another-version",
        ProblemKind::Unreadable => "docs/operations/check.md#unreadable",
        ProblemKind::Snapshot | ProblemKind::SnapshotMissing | ProblemKind::SnapshotDiffers => {
            "docs/operations/check.md#snapshots"
        }
        ProblemKind::OtherCluster => "docs/operations/check.md#files-of-another-directory",
        _ => "docs/operations.md#a-damaged-log",
    }
}
