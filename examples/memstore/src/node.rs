//! Runs a node and its web server together, and reports in one line why a program ended.

use std::io::{self, IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use clap::Args;
use raftify::error::NodeStartError;
use raftify::start::BootstrapOptions;
use raftify::storage::{StorageError, WalSettings};
use raftify::{BoxError, Config, WalStorage};
use raftify_cli::TlsArguments;
use tokio::sync::watch;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::access::{WebAccess, guard, on_connect};
use crate::web::{Node, routes};
use crate::web_tls::WebTls;
use crate::{Bodies, HashStore, LogEntry, Raft};

/// How long pending requests may take to finish when the node has stopped, in seconds: by then all requests
/// to the node have their answers.
const SHUTDOWN_TIMEOUT_SECONDS: u64 = 2;

/// A worker thread for fewer connections is not worth its descriptors.
const CONNECTIONS_PER_WORKER_MIN: usize = 4;

/// The options of both kinds of nodes, without the members of the cluster.
#[derive(Args)]
pub struct NodeOptions {
    /// The listen address for the other nodes, if it differs from the node's address, such as behind a
    /// proxy: host:port
    #[arg(long)]
    listen_addr: Option<String>,
    /// Addresses of other members for the time without a leader, such as after all have moved: host:port, or
    /// a name of several hosts (repeatable)
    #[arg(long, value_name = "HOST:PORT")]
    discover: Vec<String>,
    /// Address of the web API: host:port
    #[arg(long)]
    web_server: Option<String>,
    /// Serve the calls of the web API that change the cluster (POST) to all addresses, and not to this
    /// machine alone
    #[arg(long)]
    web_admin_from_anywhere: bool,
    #[command(flatten)]
    tls: TlsArguments,
    /// Directory of this node's data [default: one for this node in ./target]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Size of a log file in bytes [default: 16 MiB]
    #[arg(long)]
    log_segment_bytes: Option<u64>,
    /// Take a snapshot after this many entries, and keep at most a quarter of them besides [default: 100000]
    #[arg(long)]
    snapshot_entries: Option<u64>,
    /// Stop when standard input ends, which is when the parent program is gone
    #[arg(long)]
    stop_with_stdin: bool,
}

impl NodeOptions {
    /// Checks that the web API can be served at its address. Must be called first: a node that has joined a
    /// cluster, and ends because of this, is missing there.
    ///
    /// # Errors
    /// The address, and its problem.
    pub fn check_web_address(&self) -> Result<(), String> {
        match &self.web_server {
            Some(address) => {
                TcpListener::bind(address).map(drop).map_err(|error| cannot_bind(address, &error))
            }
            None => Ok(()),
        }
    }

    /// Opens the data directory, or that of this name under `./target`.
    ///
    /// # Errors
    /// Those of [`WalStorage::open`].
    pub fn open_storage(&self, default_dir: impl AsRef<Path>) -> Result<WalStorage, StorageError> {
        let data_dir = self.data_dir.clone().unwrap_or_else(|| Path::new("target").join(default_dir));
        match self.log_segment_bytes {
            Some(segment_bytes) => WalStorage::open_with(data_dir, WalSettings { segment_bytes }),
            None => WalStorage::open(data_dir),
        }
    }

    /// The settings of the node.
    pub fn config(&self) -> Config {
        let config = Config::default();
        match self.snapshot_entries {
            Some(snapshot_entries) => Config {
                snapshot_entries: Some(snapshot_entries),
                log_entries_kept: config.log_entries_kept.min(snapshot_entries / 4),
                ..config
            },
            None => config,
        }
    }

    /// The config for [`Raft::start`].
    pub fn bootstrap_options(&self) -> BootstrapOptions<LogEntry, HashStore> {
        BootstrapOptions {
            listen_addr: self.listen_addr.clone(),
            discover: self.discover.clone(),
            tls: self.tls.tls(),
            ..BootstrapOptions::default()
        }
    }

    /// Listens from now on for stop requests: Ctrl+C, SIGTERM, and, with `--stop-with-stdin`, the end of
    /// standard input. Must be called first: a process with id 1 has no other reaction to signals.
    ///
    /// # Errors
    /// If the signal handlers cannot be installed.
    pub fn listen_for_stop(&self) -> io::Result<StopRequest> {
        let (asked, stop) = watch::channel(false);
        let signalled = asked.clone();
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::spawn(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                signalled.send_replace(true);
            });
        }
        #[cfg(not(unix))]
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                signalled.send_replace(true);
            }
        });
        if self.stop_with_stdin {
            // The program does not wait for this thread: it may read until the process ends.
            thread::spawn(move || {
                let _ = io::copy(&mut io::stdin(), &mut io::sink()); // An unreadable input counts as ended.
                asked.send_replace(true);
            });
        }
        Ok(StopRequest(stop))
    }
}

/// A request to stop the program, now or later.
pub struct StopRequest(watch::Receiver<bool>);

impl StopRequest {
    async fn asked(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await; // There is no source of stop requests any more.
        }
    }

    /// Returns the node that `start` starts; `None` if a stop request arrives before it has started. From
    /// then on, the request stops the node.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn started(
        mut self,
        start: impl Future<Output = Result<Raft, NodeStartError>>,
    ) -> Result<Option<Raft>, NodeStartError> {
        let raft = tokio::select! {
            biased;
            () = self.asked() => {
                info!("stop request while starting");
                return Ok(None);
            }
            started = start => started?,
        };
        let node = raft.clone();
        tokio::spawn(async move {
            self.asked().await;
            node.quit().await;
        });
        Ok(Some(raft))
    }
}

/// Serves the web API, if it has an address, for as long as the node runs; ends both when one ends.
///
/// # Errors
/// Why the node or the web server failed, or that the address of the web server could not be bound. The node
/// is stopped in each case.
pub async fn serve(raft: Raft, options: &NodeOptions) -> Result<(), BoxError> {
    let mut running = tokio::spawn(raft.clone().run());
    let Some(web_address) = &options.web_server else {
        return Ok(running.await??);
    };
    let entry_bytes_max = options.config().entry_bytes_max;
    let node = web::Data::new(Node { raft: raft.clone(), entry_bytes_max, bodies: Bodies::default() });
    // Further clients wait for a connection: the log must have file descriptors left. Each worker needs some
    // as well.
    let connections_max = raftify::RaftServer::connections_max();
    let workers = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(connections_max / CONNECTIONS_PER_WORKER_MIN);
    let tls = options.tls.tls();
    let access = web::Data::new(match &tls {
        Some(_) => WebAccess::Certificates,
        None if options.web_admin_from_anywhere => WebAccess::AdminFromAnywhere,
        None => WebAccess::AdminFromLoopback,
    });
    let app = move || {
        let app = App::new().wrap(from_fn(guard)).app_data(access.clone());
        app.app_data(node.clone()).configure(routes)
    };
    let server = HttpServer::new(app)
        .on_connect(on_connect)
        .disable_signals()
        .workers(workers)
        .max_connections(connections_max / workers)
        .shutdown_timeout(SHUTDOWN_TIMEOUT_SECONDS);
    let bound = |error| BoxError::from(cannot_bind(web_address, &error));
    // It follows the files of the certificates until the server has ended.
    let with = tls.as_ref().map(WebTls::load).transpose();
    let server = with.and_then(|with| match &with {
        None => server.bind(web_address).map(|server| (server, with)).map_err(bound),
        Some(tls) => {
            let config = tls.server_config()?;
            server.bind_rustls_0_23(web_address, config).map(|server| (server, with)).map_err(bound)
        }
    });
    let (server, _tls) = match server {
        Ok((server, tls)) => (server.run(), tls),
        Err(error) => {
            raft.quit().await;
            running.await??;
            return Err(error);
        }
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    info!("the web API is at {scheme}://{web_address}");
    let handle = server.handle();
    let mut web = tokio::spawn(server);
    tokio::select! {
        outcome = &mut running => {
            handle.stop(true).await;
            web.await??;
            Ok(outcome??)
        }
        outcome = &mut web => {
            raft.quit().await;
            running.await??;
            outcome??;
            Err("the web server ended by itself".into())
        }
    }
}

fn cannot_bind(address: &str, error: &io::Error) -> String {
    format!("cannot serve the web API at {address}: {error}; choose another address with --web-server")
}

/// Writes the log to standard error: with the filter in the environment variable `RUST_LOG`, by default from
/// `info` on, and of raft-rs and the web server warnings only.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env();
    // With its colons; without them, `raft` would match raftify, too.
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info,raft::=warn,actix_server=warn"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(io::stderr).init();
}

/// How a program ends: an error is one line, not the output of `Debug`.
pub fn report(outcome: Result<(), BoxError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line on the terminal. If standard output is closed, the program continues.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
