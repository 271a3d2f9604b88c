//! Measures raftify on this machine. Each result is one JSON line on standard output; what is under way is told on
//! standard error. A figure is worth something only on a machine that does nothing else, and beside the
//! `disk_fdatasync_p50_us` of the same line.

mod cluster;
mod disk;
mod failover;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use raftify::BoxError;
use serde_json::Value;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Proposals of concurrent clients on three nodes in this process
    Cluster {
        /// How many clients propose at once; repeat it for several runs
        #[arg(long, default_values_t = [1, 64, 256])]
        clients: Vec<u64>,
        /// How long each run takes
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Bytes of one entry
        #[arg(long, default_value_t = 64)]
        entry_bytes: usize,
        /// Where the log is kept
        #[arg(long, default_value = "heed")]
        storage: node::Storage,
    },
    /// Resident memory of three nodes in this process after many proposals, with snapshots on
    Memory {
        /// How many proposals
        #[arg(long, default_value_t = 1_000_000)]
        proposals: u64,
    },
    /// From SIGKILL of the leader, a process of its own, to the first accepted proposal, with default settings
    Failover {
        /// How many times
        #[arg(long, default_value_t = 20)]
        times: usize,
    },
    /// One node, for `failover`
    #[command(hide = true)]
    Node {
        #[arg(long)]
        id: u64,
        #[arg(long)]
        directory: PathBuf,
        /// The addresses of all nodes, the first that of node 1
        #[arg(long)]
        address: Vec<String>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let outcome = match Arguments::parse().bench {
        Bench::Cluster { clients, seconds, entry_bytes, storage } => {
            clients.into_iter().try_for_each(|clients| cluster::run(clients, seconds, entry_bytes, storage))
        }
        Bench::Memory { proposals } => cluster::memory(proposals),
        Bench::Failover { times } => failover::run(times),
        Bench::Node { id, directory, address } => node::serve(id, &directory, &address),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raftify-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one result.
fn print(line: &Value) -> Result<(), BoxError> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}
