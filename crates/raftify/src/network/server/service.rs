//! The path of a request through validation to the raft loop, and of its answer back, whatever its verb.

use std::sync::Arc;

use bytes::Bytes;
use raftify_core::error::{ProposeError, StopReason};
use raftify_core::{
    CheckedConfig, Forwarding, ProposalReply, ServerRequestMsg, SnapshotStore, Status as NodeStatus,
};
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::channels::in_flight::InFlight;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::NodeMetrics;
use crate::channels::request_queue::RequestSender;
use crate::channels::server_counters::count;
use crate::network::server::connections::ConnectionId;
use crate::network::server::context::ServerContext;
use crate::network::server::snapshot_receiver::SnapshotReceiver;
use crate::security::dialer::Dialer;
use crate::verbs::verb::{Asked, Served, ServingNode, Verb};
use crate::wire::identification::Identification;
use crate::wire::{self, RequestRejected, proto};

pub(super) struct Service<R, S: SnapshotStore> {
    pub(super) context: Arc<ServerContext<R, S>>,
    pub(super) closing: watch::Receiver<bool>,
    pub(super) snapshots: Arc<SnapshotReceiver<S>>,
    /// Proposals that came over the network.
    pub(super) proposals: Arc<InFlight>,
    /// The tasks of the calls with many requests.
    pub(super) streams: TaskTracker,
}

impl<R, S: SnapshotStore> Clone for Service<R, S> {
    fn clone(&self) -> Self {
        Service {
            context: Arc::clone(&self.context),
            closing: self.closing.clone(),
            snapshots: Arc::clone(&self.snapshots),
            proposals: Arc::clone(&self.proposals),
            streams: self.streams.clone(),
        }
    }
}

impl<R: ProposalReply, S: SnapshotStore> Service<R, S> {
    /// Validates a request, serves it on this node, and encodes the answer.
    pub(super) async fn serve<V: Verb>(
        &self,
        request: Request<V::Request>,
    ) -> Result<Response<V::Reply>, Status> {
        count(V::COUNTER(&self.context.counters));
        let connection = ConnectionId::of(&request);
        let Asked { header, forwarded, verb } = V::from_wire(request.into_inner());
        V::admit(self, header.as_ref())?;
        let verb = verb.map_err(RequestRejected::from)?;
        let without_waiting = header.is_some_and(|header| header.without_waiting);
        let outcome = self.serve_admitted(connection.as_ref(), verb, forwarded, without_waiting).await?;
        let outcome = outcome.map_err(|error| wire::refusal_to_wire(&error));
        Ok(Response::new(V::to_reply(self.context.header(), outcome)))
    }

    /// Serves a verb whose header has passed validation.
    pub(super) async fn serve_admitted<V: Verb>(
        &self,
        connection: Option<&ConnectionId>,
        verb: V,
        forwarded: bool,
        without_waiting: bool,
    ) -> Served<V> {
        self.context.access.check_permission(connection, verb.permission(), forwarded)?;
        if let (true, Some(connection)) = (forwarded, connection) {
            connection.is_members();
        }
        let forwarding = match (forwarded, without_waiting) {
            (true, _) => Forwarding::Never,
            (false, true) => Forwarding::IfLeaderIsKnown,
            (false, false) => Forwarding::Allowed,
        };
        verb.serve(self, forwarding).await
    }

    /// The next message of a stream, or the reason for its end.
    pub(super) async fn next<M>(&self, stream: &mut Streaming<M>) -> Result<Option<M>, Status> {
        tokio::select! {
            // First: a stream that never pauses must not keep the server open.
            biased;
            () = self.closed() => Err(RequestRejected::Stopped(StopReason::Stopped).into()),
            message = stream.message() => message,
        }
    }
}

impl<R: ProposalReply, S: SnapshotStore> ServingNode for Service<R, S> {
    type Reply = R;

    fn config(&self) -> &CheckedConfig {
        &self.context.config
    }

    fn dialer(&self) -> &Dialer {
        &self.context.dialer
    }

    fn status(&self) -> NodeStatus {
        self.context.status.borrow().clone()
    }

    fn requests(&self) -> &RequestSender<ServerRequestMsg<R>> {
        &self.context.requests
    }

    fn proposals(&self) -> &Arc<InFlight> {
        &self.proposals
    }

    fn remote_reply(&self, answered: oneshot::Sender<Result<Bytes, ProposeError>>) -> R {
        (self.context.remote_reply)(answered)
    }

    fn check_entry(&self, payload: &[u8]) -> Result<(), String> {
        (self.context.check_entry)(payload)
    }

    fn metrics(&self) -> &NodeMetrics {
        &self.context.metrics
    }

    fn admit(&self, header: Option<&proto::Header>) -> Result<(), RequestRejected> {
        self.context.admit_request(header)
    }

    fn identify(&self, request: proto::IdentifyRequest) -> Result<Identification, RequestRejected> {
        self.context.identify(request)
    }

    fn lifecycle(&self) -> &Lifecycle {
        &self.context.lifecycle
    }

    async fn closed(&self) {
        // An error means that the server has ended.
        let _ = self.closing.clone().wait_for(|closing| *closing).await;
    }
}
