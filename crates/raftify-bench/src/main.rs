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
mod switches;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use raftify::BoxError;

use arguments::{Arguments, Command, Layer};
use compare::Variant;
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
            let own: Vec<String> = own.collect();
            match comparison(&layer)? {
                Some((variants, rounds)) => runner::compare(&arguments.directory, &own, &variants, rounds),
                None => runner::run(&arguments.directory, &[own], None),
            }
        }
    }
}

/// What a layer is to compare, and how often.
fn comparison(layer: &Layer) -> Result<Option<([Variant; 2], u32)>, BoxError> {
    let this = std::env::current_exe()?;
    let switched = match layer.switches() {
        Some(switches) => switches.compared(&this)?.map(|variants| (variants, switches.rounds)),
        None => None,
    };
    match (layer.against(), switched) {
        (Some(_), Some(_)) => Err("compare two builds, or without and with a part: not both at once".into()),
        (Some((other, rounds)), None) => Ok(Some((Variant::builds(other, &this), rounds))),
        (None, switched) => Ok(switched),
    }
}

/// From standard input.
fn figures() -> Result<Figures, BoxError> {
    Ok(Figures { lines: line::read(std::io::stdin().lock())? })
}
