//! Tries raftify with real processes: nodes of the example `memstore`, each in a network namespace of its own or behind a
//! proxy, clients at full speed, and a nemesis that kills, stops, cuts off, fills, damages, wipes and replaces, and lets
//! nodes join, leave and move. At the end every history is checked for linearizability, with a last read of every key through every node.
//!
//! Here is the command line; `run.rs` puts the parts together and decides what a run is worth.

/// Says a line on standard output.
macro_rules! say {
    ($($what:tt)*) => { $crate::say_line(format_args!($($what)*)) };
}

mod bits;
mod burdens;
mod clients;
mod cluster;
mod directories;
mod faults;
mod history;
mod http;
mod joins;
mod links;
mod nemesis;
mod network;
mod node;
mod proxy;
mod recovery;
mod run;
mod state;
#[cfg(target_os = "linux")]
mod switch;

use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Once;
use std::time::Duration;

use clap::Parser;
use raftify::BoxError;
use rustix::process::{Signal, getpid, kill_process};

use crate::faults::Fault;
use crate::network::Kind;

/// Tries raftify with real processes under a nemesis, and checks what the clients saw
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How long faults are dealt, in minutes
    #[arg(long, default_value = "10", value_parser = minutes)]
    minutes: Duration,
    /// Instead of a time: how often each fault happens
    #[arg(long, conflicts_with = "minutes")]
    rounds: Option<usize>,
    /// Decides which faults happen, to whom, and what the clients ask; any number if it is left out
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// How many clients ask at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// How much is in the cluster before the clients begin: every node that joins has to be sent it
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    state_megabytes: u64,
    /// How the nodes reach each other
    #[arg(long, value_enum, default_value_t = Kind::Netns)]
    network: Kind,
    /// Only these faults; each of them must happen. All that are possible here if it is left out
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Keep logs, histories and data directories of a run without a violation, too
    #[arg(long)]
    keep: bool,
    /// Where logs and data are put
    #[arg(long, default_value = "target/chaos")]
    directory: PathBuf,
    /// Where the programs of the example are [default: beside this one]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Only take away what a run that was killed has left: processes, namespaces, disks
    #[arg(long)]
    clean: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Arguments = raftify_console::arguments();
    let outcome = match arguments.clean {
        true => clean(),
        false => run::run(arguments).await,
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes =
        text.parse::<f64>().ok().and_then(|minutes| Duration::try_from_secs_f64(minutes * 60.0).ok());
    minutes.ok_or_else(|| "it is no number of minutes".to_owned())
}

fn clean() -> Result<bool, BoxError> {
    network::check(Kind::Netns)?;
    let _only_one = run::only_one()?;
    let (namespaces, disks) = (network::remove_namespaces()?, node::unmount_all()?);
    say!("{namespaces} namespaces and {disks} disks were taken away");
    Ok(true)
}

/// What `say!` does. Where nobody listens any more, the run ends as by Ctrl+C, and takes everything away.
fn say_line(line: fmt::Arguments<'_>) {
    static NOBODY_LISTENS: Once = Once::new();
    if writeln!(io::stdout(), "{line}").is_err() {
        NOBODY_LISTENS.call_once(|| {
            let _ = kill_process(getpid(), Signal::TERM); // A process may always signal itself.
        });
    }
}
