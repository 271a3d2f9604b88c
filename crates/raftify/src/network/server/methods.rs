//! The methods of the gRPC service: a line for each verb, and the streams.

use std::future::ready;

use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message as _;
use raftify_core::error::StopReason;
use raftify_core::{ProposalReply, ServerRequestMsg, SnapshotStore};
use tonic::{Request, Response, Status, Streaming};

use crate::channels::server_counters::count;
use crate::network::server::backup::Replies;
use crate::network::server::connections::ConnectionId;
use crate::network::server::context::Admitted;
use crate::network::server::install::{IncomingSnapshot, installed};
use crate::network::server::request_stream::{self, ReplyStream};
use crate::network::server::service::Service;
use crate::verbs::verb::{ServingNode, Verb};
use crate::verbs::{
    change_membership::ChangeMembership, identify::Identify, inspect::Inspect, leave::Leave,
    make_snapshot::MakeSnapshot, propose::Propose, read_index::ReadIndex, reserve_node_id::ReserveNodeId,
    transfer_leader::TransferLeader,
};
use crate::wire::proto::raft_service_server::RaftService;
use crate::wire::{self, RequestRejected, proto};

type Requested<V> = Request<<V as Verb>::Request>;
type Replied<V> = Result<Response<<V as Verb>::Reply>, Status>;

#[tonic::async_trait]
impl<R: ProposalReply, S: SnapshotStore> RaftService for Service<R, S> {
    async fn stream_messages(
        &self,
        request: Request<Streaming<proto::MessageBatch>>,
    ) -> Result<Response<proto::StreamMessagesReply>, Status> {
        let connection = ConnectionId::of(&request);
        let mut is_known = false;
        let mut stream = request.into_inner();
        let mut metrics = None;
        while let Some(batch) = self.next(&mut stream).await? {
            count(&self.context.counters.message_batches);
            let (messages, bytes) = (batch.messages.len(), batch.encoded_len());
            let Admitted { sender, receiver, .. } = self.context.admit(
                connection.as_ref(),
                batch.header.as_ref(),
                batch.sender,
                batch.receiver,
            )?;
            if let (false, Some(connection)) = (is_known, &connection) {
                connection.is_members();
            }
            is_known = true;
            // A sender that is not a member yet may become one.
            metrics = metrics.or_else(|| Some(sender.id).zip(self.context.received_from(sender.id)));
            if let Some((_, metrics)) = metrics.as_ref().filter(|(id, _)| *id == sender.id) {
                metrics.received(messages, bytes);
            }
            let own_id = self.context.status.borrow().node_id;
            let messages: Result<Vec<_>, _> = batch
                .messages
                .into_iter()
                .map(|message| wire::message_from_wire(message, sender.id, own_id))
                .collect();
            let messages = messages.map_err(RequestRejected::from)?;
            let queued = tokio::select! {
                biased;
                queued = self.context.requests.send(ServerRequestMsg::RaftMessages { sender, receiver, messages }) => queued,
                () = self.closed() => return Err(RequestRejected::Stopped(StopReason::Stopped).into()),
            };
            queued.map_err(|_| RequestRejected::Stopped(StopReason::Stopped))?;
        }
        Ok(Response::new(proto::StreamMessagesReply { header: self.context.header() }))
    }

    type InstallSnapshotStream = BoxStream<'static, Result<proto::InstallSnapshotReply, Status>>;

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotChunk>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        count(&self.context.counters.snapshots);
        use proto::install_snapshot_reply::Answer;
        let connection = ConnectionId::of(&request);
        let mut chunks = request.into_inner();
        let (incoming, admitted, term) = match self.begin_snapshot(connection.as_ref(), &mut chunks).await? {
            IncomingSnapshot::Begun { incoming, admitted, term } => (incoming, admitted, term),
            IncomingSnapshot::Answered(outcome) => {
                let only = self.snapshot_reply(installed(outcome));
                return Ok(Response::new(stream::once(ready(Ok(only))).boxed()));
            }
        };
        if let Some(connection) = connection {
            connection.is_members();
        }
        let first = self.snapshot_reply(Answer::BeginAt(incoming.begin_at()));
        let service = self.clone();
        // Driven by the connection that reads the answers, and dropped with it.
        let last = async move {
            let outcome = service.complete_snapshot(incoming, admitted, term, chunks).await?;
            Ok(service.snapshot_reply(installed(outcome)))
        };
        Ok(Response::new(stream::iter([Ok(first)]).chain(stream::once(last)).boxed()))
    }

    type StreamRequestsStream = ReplyStream;

    async fn stream_requests(
        &self,
        request: Request<Streaming<proto::RequestBatch>>,
    ) -> Result<Response<ReplyStream>, Status> {
        request_stream::open(self, request).await.map(Response::new)
    }

    async fn propose(&self, request: Requested<Propose>) -> Replied<Propose> {
        self.serve::<Propose>(request).await
    }

    async fn change_membership(&self, request: Requested<ChangeMembership>) -> Replied<ChangeMembership> {
        self.serve::<ChangeMembership>(request).await
    }

    async fn reserve_node_id(&self, request: Requested<ReserveNodeId>) -> Replied<ReserveNodeId> {
        self.serve::<ReserveNodeId>(request).await
    }

    async fn transfer_leader(&self, request: Requested<TransferLeader>) -> Replied<TransferLeader> {
        self.serve::<TransferLeader>(request).await
    }

    async fn read_index(&self, request: Requested<ReadIndex>) -> Replied<ReadIndex> {
        self.serve::<ReadIndex>(request).await
    }

    async fn inspect(&self, request: Requested<Inspect>) -> Replied<Inspect> {
        self.serve::<Inspect>(request).await
    }

    async fn identify(&self, request: Requested<Identify>) -> Replied<Identify> {
        self.serve::<Identify>(request).await
    }

    async fn make_snapshot(&self, request: Requested<MakeSnapshot>) -> Replied<MakeSnapshot> {
        self.serve::<MakeSnapshot>(request).await
    }

    async fn leave(&self, request: Requested<Leave>) -> Replied<Leave> {
        self.serve::<Leave>(request).await
    }

    type EventsStream = BoxStream<'static, Result<proto::EventsReply, Status>>;

    async fn events(
        &self,
        request: Request<proto::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        count(&self.context.counters.event_streams);
        self.context.admit_request(request.get_ref().header.as_ref())?;
        Ok(Response::new(self.event_stream()))
    }

    type BackupStream = Replies;

    async fn backup(&self, request: Request<proto::BackupRequest>) -> Result<Response<Replies>, Status> {
        count(&self.context.counters.backups);
        self.backup_stream(&request).map(Response::new)
    }
}
