//! Measures raftify on this machine, layer by layer. Each result is one JSON line on standard output; a
//! readable table and the progress go to standard error. A figure is meaningful only on an idle machine, and
//! beside the `disk_fdatasync_p50_us` of the same line. `docs/performance.md` explains each layer.

mod arguments;
mod cluster;
mod compare;
mod figures;
mod goals;
mod layers;
mod line;
mod machine;
mod measure;
mod node;
mod plan;
mod plot;
mod report;
mod runner;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use raftify::BoxError;

use arguments::{Arguments, Command, Layer};
use compare::Against;
use figures::Figures;
use line::Reporter;

/// The context of a layer.
pub(crate) struct Work {
    /// An empty directory on the measured disk.
    pub(crate) directory: PathBuf,
    pub(crate) reporter: Reporter,
}

fn main() -> ExitCode {
    let arguments: Arguments = raftify_console::arguments();
    // That layer subscribes to the trace events itself.
    if !matches!(arguments.command, Command::Layer(Layer::Path(_))) {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    }
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, BoxError> {
    match arguments.command {
        Command::Bench { quick, also_to } => {
            runner::run(&arguments.directory, &plan::all(quick), also_to.as_deref())
        }
        Command::Goals => {
            let goals = goals::check(&figures()?);
            print!("{}", goals::markdown(&goals));
            let missed = goals.iter().any(goals::Goal::is_missed);
            Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Plot { into } => {
            for drawn in plot::draw(&figures()?, &into)? {
                eprintln!("{}", drawn.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Report { document: Some(document) } => {
            report::write(&figures()?, &document).map(|()| ExitCode::SUCCESS)
        }
        Command::Report { document: None } => {
            print!("{}", report::markdown(&figures()?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Node(node) => node::serve(&node).map(|()| ExitCode::SUCCESS),
        Command::Layer(layer) if arguments.worker => {
            runner::end_with_standard_input();
            let work = Work { directory: arguments.directory, reporter: Reporter };
            layer.run(&work).map(|()| ExitCode::SUCCESS)
        }
        Command::Layer(layer) => {
            let own = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
            match layer.against() {
                Some(Against { against: Some(other), rounds }) => {
                    runner::compare(&arguments.directory, &without_against(own), other, *rounds)
                }
                _ => runner::run(&arguments.directory, &[own.collect()], None),
            }
        }
    }
}

/// The arguments of a layer, for both builds: the other one may be older than this option.
fn without_against(mut arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    while let Some(argument) = arguments.next() {
        if ["--against", "--rounds"].contains(&argument.as_str()) {
            arguments.next(); // Its value.
        } else if !argument.starts_with("--against=") && !argument.starts_with("--rounds=") {
            kept.push(argument);
        }
    }
    kept
}

/// From standard input.
fn figures() -> Result<Figures, BoxError> {
    Ok(Figures { lines: line::read(std::io::stdin().lock())? })
}
