//! (Signatures only for now.)

use std::io;

use bytes::Bytes;
use raftify_core::error::ProposeError;
use raftify_core::{CheckedConfig, ServerRequestMsg, SnapshotStore, Status};
use tokio::sync::{mpsc, oneshot, watch};

use crate::outbox::{Outbox, RemoteReply};

/// What the server works with.
pub(crate) struct Door<R, S> {
    /// The raft loop's queue.
    pub(crate) requests: mpsc::Sender<ServerRequestMsg<R>>,
    /// Who this node is and whom it believes.
    pub(crate) status: watch::Receiver<Status>,
    /// Where incoming snapshots are put.
    pub(crate) snapshots: S,
    /// Limits and times.
    pub(crate) config: CheckedConfig,
    /// Told of senders that are not members yet.
    pub(crate) outbox: Outbox<R>,
    /// Makes the way back for a proposal that came over the network: the reply in its encoding.
    pub(crate) remote_reply: fn(oneshot::Sender<Result<Bytes, ProposeError>>) -> R,
}

/// Serves until `shutdown` resolves; then ends open streams and returns within a few seconds.
pub(crate) async fn serve<R: RemoteReply, S: SnapshotStore>(
    _listener: std::net::TcpListener,
    _door: Door<R, S>,
    _shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    todo!()
}
