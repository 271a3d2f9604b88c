//! `make run`: three nodes of the store on this machine, each a process of its own, until Ctrl+C.
//!
//! It owns the processes and tells, one line each, when the leadership changes and when a node comes or goes. What the
//! nodes log goes into a file beside their data. It does not start a killed node again: that is for the person who
//! killed it, and the command is printed.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::Parser;
use memstore::{HashStore, LogEntry, report};
use raftify::{BoxError, NodeId, RaftClient, Status};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, sleep_until, timeout};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Parser)]
#[command(version, about = "Three nodes of the replicated key-value store on this machine, until Ctrl+C")]
struct Arguments {
    /// The port at which the first node listens for the others; the second and third take the next ones
    #[arg(long, default_value_t = 60061, value_parser = clap::value_parser!(u16).range(1..=65533))]
    raft_port: u16,
    /// The port of the first node's web server; the second and third take the next ones
    #[arg(long, default_value_t = 8001, value_parser = clap::value_parser!(u16).range(1..=65533))]
    web_port: u16,
    /// Where the nodes keep their data; started again on the same, they go on with it
    #[arg(long, default_value = "target/memstore")]
    data_dir: PathBuf,
}
