//! The completions for shells, and the manual pages: both follow from the arguments.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use clap_mangen::{Man, generate_to};
use raftify::BoxError;

use crate::arguments::Arguments;

/// The program may be built into another one, under another name.
fn command() -> clap::Command {
    let program = std::env::args_os().next();
    let name =
        program.as_deref().and_then(|program| Path::new(program).file_stem()).and_then(|name| name.to_str());
    match name {
        // The name lives as long as the process: it is needed once.
        Some(name) => Arguments::command().name(&*name.to_owned().leak()).bin_name(name),
        None => Arguments::command(),
    }
}

/// The script that completes this command line in `shell`.
pub(crate) fn completions(shell: Shell, output: &mut dyn Write) -> Result<(), BoxError> {
    let mut command = command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut command, name, &mut script);
    Ok(output.write_all(&script)?)
}

/// The page of the program; with a directory, a page for each command in there.
pub(crate) fn pages(directory: Option<&Path>, output: &mut dyn Write) -> Result<(), BoxError> {
    match directory {
        Some(directory) => Ok(generate_to(command(), directory)?),
        None => Ok(Man::new(command()).render(output)?),
    }
}
