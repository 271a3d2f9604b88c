//! Tests raftify with real processes: nodes of the example `memstore`, each in a network namespace or behind
//! a proxy, clients at full speed, and a nemesis that kills, stops, partitions, fills, corrupts, wipes and
//! replaces nodes, and makes nodes join, leave and move. At the end it checks every history for
//! linearizability, with a last read of every key through every node.
//!
//! This file has the command line; `run.rs` connects the parts and decides the verdict.

/// Prints a line on standard output.
macro_rules! say {
    ($($what:tt)*) => { $crate::say_line(format_args!($($what)*)) };
}

mod bits;
mod burdens;
mod certificates;
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
mod renewal;
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

/// Tests raftify with real processes under a nemesis, and checks the histories of the clients
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How long faults are injected, in minutes
    #[arg(long, default_value = "10", value_parser = minutes)]
    minutes: Duration,
    /// Instead of a time: the number of rounds; each fault happens once in a round
    #[arg(long, conflicts_with = "minutes")]
    rounds: Option<usize>,
    /// Determines the faults, their nodes, and the requests of the clients; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Number of nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// Number of concurrent clients
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Size of the state before the clients begin: every node that joins receives it
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    state_megabytes: u64,
    /// How the nodes reach each other
    #[arg(long, value_enum, default_value_t = Kind::Netns)]
    network: Kind,
    /// Mutual TLS of the nodes, of their web APIs and of all clients [default: decided by the seed]
    #[arg(long, value_enum, value_name = "yes|no", hide_possible_values = true)]
    tls: Option<Choice>,
    /// Only these faults; each of them must happen. The default is all faults that are possible here
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Keep logs, histories and data directories also if there is no violation
    #[arg(long)]
    keep: bool,
    /// Directory of logs and data
    #[arg(long, default_value = "target/chaos")]
    directory: PathBuf,
    /// Directory of the programs of the example [default: that of this program]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Only remove the remains of a killed run: processes, namespaces, disks
    #[arg(long)]
    clean: bool,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    Yes,
    No,
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
    minutes.ok_or_else(|| "not a number of minutes".to_owned())
}

fn clean() -> Result<bool, BoxError> {
    network::check(Kind::Netns)?;
    let _only_one = run::only_one()?;
    let (namespaces, disks) = (network::remove_namespaces()?, node::unmount_all()?);
    say!("{namespaces} namespaces and {disks} disks were removed");
    Ok(true)
}

/// See `say!`. If standard output is closed, the run ends as by Ctrl+C, and cleans up.
fn say_line(line: fmt::Arguments<'_>) {
    static NOBODY_LISTENS: Once = Once::new();
    if writeln!(io::stdout(), "{line}").is_err() {
        NOBODY_LISTENS.call_once(|| {
            let _ = kill_process(getpid(), Signal::TERM); // A process may always signal itself.
        });
    }
}
