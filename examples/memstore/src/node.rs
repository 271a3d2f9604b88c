//! Runs a node and its web server together, and says in one line why a program ended.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use actix_web::{App, HttpServer, web};
use raftify::BoxError;
use raftify::error::RunError;
use tokio::task::JoinHandle;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::Raft;
use crate::web::{Node, routes};

/// How long requests under way may take to finish when the node has stopped, in seconds: by then all that waited for
/// the node have their answer.
const SHUTDOWN_TIMEOUT_SECONDS: u64 = 2;

/// Serves the web API at `web_address`, if there is one, for as long as the node runs; ends both when one ends.
///
/// `running` is the task of [`Raft::run`]. It alone listens to Ctrl+C.
///
/// # Errors
/// Why the node or the web server failed, or that the address of the web server could not be bound. The node is
/// stopped in each case.
pub async fn serve(
    raft: Raft,
    mut running: JoinHandle<Result<(), RunError>>,
    web_address: Option<String>,
    entry_bytes_max: u64,
) -> Result<(), BoxError> {
    let Some(web_address) = web_address else {
        return Ok(running.await??);
    };
    let node = web::Data::new(Node { raft: raft.clone(), entry_bytes_max });
    let server = HttpServer::new(move || App::new().app_data(node.clone()).configure(routes))
        .disable_signals()
        .shutdown_timeout(SHUTDOWN_TIMEOUT_SECONDS)
        .bind(&web_address);
    let server = match server {
        Ok(server) => server.run(),
        Err(error) => {
            raft.quit().await;
            running.await??;
            return Err(cannot_bind(&web_address, &error).into());
        }
    };
    info!("the web API is at http://{web_address}");
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

/// Writes the log to standard error: as much as the environment variable `RUST_LOG` says, by default from `info` on, and
/// of raft-rs and the web server warnings only.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env();
    // With its colons, or else `raft` would be raftify, too.
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
