//! The gRPC service: receives the requests of other nodes and of remote clients.
//!
//! It translates and validates (version, group, cluster, receiver, sender, form) and makes no decisions: a
//! valid request goes into the raft loop's bounded queue, and the answer back to the caller. Streams of
//! messages wait for room in the queue, so that a busy node slows its peers down; requests, alone or in the
//! batches of a stream, are answered `Busy` instead. Incoming snapshots go chunk by chunk into the snapshot store and reach the loop
//! when they are complete and durable.

mod abortable;
pub(crate) mod access;
mod backup;
mod connections;
mod context;
mod events;
mod health;
mod install;
mod methods;
mod request_stream;
mod service;
mod snapshot_receiver;

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use raftify_core::{ProposalReply, SnapshotStore};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::debug;

use crate::channels::in_flight::InFlight;
use crate::runtime::endpoint::{
    CONNECTION_WINDOW_BYTES, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW_BYTES, with_sources,
};
use crate::runtime::transport::Listener;
use crate::security::acceptor::Secured;
use crate::wire;
use crate::wire::proto::raft_service_server::RaftServiceServer;
use abortable::Abortable;
use access::Authorised;
use connections::Connections;
pub(crate) use context::ServerContext;
use health::HealthReport;
use service::Service;
use snapshot_receiver::SnapshotReceiver;

/// How long open connections may take to end when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How many requests may be under way on one connection; a client delays further ones.
const STREAMS_MAX: u32 = 1024;

/// The maximum number of requests that their client has reset and that are not processed yet: equal to the
/// limit on requests. A client that opens and resets streams endlessly loses its connection. Nodes and
/// clients of this crate never do that: abandoned calls run to their end.
const RESET_STREAMS_MAX: usize = STREAMS_MAX as usize;

/// A client that sends this many invalid frames on its streams loses its connection.
const LOCAL_ERROR_RESETS_MAX: usize = 1024;

/// Serves until `shutdown` resolves; then accepts no more connections, ends open streams, and lets single
/// requests finish. A connection that has not ended after [`SHUTDOWN_GRACE`], because its other end hangs, is
/// aborted. When this returns, or is dropped, no connection holds any part of the node.
///
/// # Errors
/// If the listener fails.
pub(crate) async fn serve<R: ProposalReply, S: SnapshotStore>(
    listener: Listener,
    context: ServerContext<R, S>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let connections = Arc::new(Connections::new(listener.connections_max(), Arc::clone(&context.counters)));
    let accepting = Arc::clone(&connections);
    let (access, credentials) = (Arc::clone(&context.access), context.dialer.credentials().cloned());
    let authorised = credentials.is_some().then(|| Arc::clone(&access));
    let incoming = listener.incoming()?.filter_map(move |connection| {
        let accepted = connection.map(|connection| {
            let guard = accepting.accept()?;
            let report = access.report(guard.id(), connection.peer_addr().ok());
            Some(Abortable::new(Secured::new(connection, credentials.as_ref(), report), guard))
        });
        ready(accepted.transpose())
    });
    let (close, closing) = watch::channel(false);
    let stops = context.stops.clone();
    let (stopped, mut stopping) = oneshot::channel();
    let snapshots = SnapshotReceiver::new(
        context.snapshots.clone(),
        context.blocking.clone(),
        context.config.snapshot_chunk_timeout,
        Arc::clone(&context.snapshot_bytes_received),
    );
    let snapshots = Arc::new(snapshots);
    let streams = TaskTracker::new();
    let service = Service {
        proposals: InFlight::new(&context.config),
        context: Arc::new(context),
        closing,
        snapshots: Arc::clone(&snapshots),
        streams: streams.clone(),
    };
    let service = RaftServiceServer::new(service).max_decoding_message_size(wire::RECEIVE_BYTES_LIMIT);
    let service = Authorised::new(service, authorised.clone());
    let (health, health_service) = HealthReport::new::<RaftServiceServer<Service<R, S>>>().await;
    let health_service = Authorised::new(health_service, authorised).with_open(health::CHECK);
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS_MAX))
        .add_service(service)
        .add_service(health_service)
        .serve_with_incoming_shutdown(incoming, async move {
            tokio::select! {
                biased;
                () = shutdown => {}
                never = health.follow(stops) => match never {},
            }
            health.end().await;
            close.send_replace(true);
            // The receiver is gone only when serving has ended anyway.
            let _ = stopped.send(());
        });
    tokio::pin!(serving);
    let ended = tokio::select! {
        biased;
        ended = &mut serving => ended,
        never = snapshots.close_unused() => match never {},
        _ = &mut stopping => match timeout(SHUTDOWN_GRACE, &mut serving).await {
            Ok(ended) => ended,
            Err(_) => {
                debug!("aborting connections that their other ends do not close");
                connections.abort();
                timeout(SHUTDOWN_GRACE, &mut serving).await.unwrap_or(Ok(()))
            }
        },
    };
    // Each ended with its connection, or is just ending.
    streams.close();
    let _ = timeout(SHUTDOWN_GRACE, streams.wait()).await;
    ended.map_err(|error| io::Error::other(with_sources(&error)))
}
