//! The methods of the gRPC service, one for each message that it answers.

use std::future::ready;

use futures_util::stream::{self, BoxStream, StreamExt};
use raftify_core::error::{MembershipError, ReadError, StopReason, TransferError};
use raftify_core::{
    Forwarding, Inspection, LeaderRequest, Members, MembershipRequest, ProposalReply, ServerRequestMsg,
    SnapshotStore,
};
use tonic::{Request, Response, Status, Streaming};

use crate::channels::server_counters::count;
use crate::network::server::connections::ConnectionId;
use crate::network::server::context::Admitted;
use crate::network::server::install::{IncomingSnapshot, installed};
use crate::network::server::service::Service;
use crate::wire::identification::Identification;
use crate::wire::proto::raft_service_server::RaftService;
use crate::wire::{self, RequestRejected, proto};

fn forwarding(forwarded: bool, header: Option<&proto::Header>) -> Forwarding {
    match header {
        _ if forwarded => Forwarding::Never,
        Some(header) if header.without_waiting => Forwarding::IfLeaderIsKnown,
        _ => Forwarding::Allowed,
    }
}

#[tonic::async_trait]
impl<R: ProposalReply, S: SnapshotStore> RaftService for Service<R, S> {
    async fn stream_messages(
        &self,
        request: Request<Streaming<proto::MessageBatch>>,
    ) -> Result<Response<proto::StreamMessagesReply>, Status> {
        let connection = ConnectionId::of(&request);
        let mut is_known = false;
        let mut stream = request.into_inner();
        while let Some(batch) = self.next(&mut stream).await? {
            count(&self.context.counters.message_batches);
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

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        count(&self.context.counters.proposals);
        use proto::propose_reply::Outcome;
        let connection = ConnectionId::of(&request);
        let request = request.into_inner();
        self.context.admit_request(request.header.as_ref())?;
        if let (true, Some(connection)) = (request.forwarded, connection) {
            connection.is_members();
        }
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let outcome = match self.propose_here(request.payload, forwarding).await? {
            Ok(reply) => Outcome::Reply(reply),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ProposeReply { header: self.context.header(), outcome: Some(outcome) }))
    }

    async fn change_membership(
        &self,
        request: Request<proto::ChangeMembershipRequest>,
    ) -> Result<Response<proto::ChangeMembershipReply>, Status> {
        count(&self.context.counters.membership_changes);
        use proto::change_membership_reply::Outcome;
        let connection = ConnectionId::of(&request);
        let request = request.into_inner();
        self.context.admit_request(request.header.as_ref())?;
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let request = MembershipRequest::decode(&request.request).map_err(wire::WireError::from);
        let request = request.map_err(RequestRejected::from)?;
        let forwarded = matches!(forwarding, Forwarding::Never);
        self.context.access.check_change(connection.as_ref(), &request.command, forwarded)?;
        // The node that has forwarded it has already checked.
        let checked = match forwarding {
            Forwarding::Allowed | Forwarding::IfLeaderIsKnown => self.check_added_addresses(&request).await?,
            Forwarding::Never => Ok(()),
        };
        let changed = match checked {
            Err(refusal) => Err(MembershipError::Refused(refusal)),
            Ok(()) => {
                let ask = |reply| {
                    let request = LeaderRequest::ChangeMembership { request, reply };
                    ServerRequestMsg::ForLeader { request, forwarding }
                };
                self.ask::<_, MembershipError, MembershipError>(self.context.config.membership_timeout, ask)
                    .await?
            }
        };
        let outcome = match changed {
            Ok(members) => Outcome::Members(members.encode()),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ChangeMembershipReply {
            header: self.context.header(),
            outcome: Some(outcome),
        }))
    }

    async fn reserve_node_id(
        &self,
        request: Request<proto::ReserveNodeIdRequest>,
    ) -> Result<Response<proto::ReserveNodeIdReply>, Status> {
        count(&self.context.counters.id_reservations);
        use proto::reserve_node_id_reply::Outcome;
        let request = request.into_inner();
        self.context.admit_request(request.header.as_ref())?;
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let reserved = self.ask::<_, MembershipError, MembershipError>(
            self.context.config.membership_timeout,
            |reply| {
                let request = LeaderRequest::ReserveNodeId { reply };
                ServerRequestMsg::ForLeader { request, forwarding }
            },
        );
        let outcome = match reserved.await? {
            Ok(reservation) => Outcome::Reservation(wire::reservation_to_wire(&reservation)),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ReserveNodeIdReply { header: self.context.header(), outcome: Some(outcome) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderReply>, Status> {
        count(&self.context.counters.leadership_transfers);
        use proto::transfer_leader_reply::Outcome;
        let connection = ConnectionId::of(&request);
        let request = request.into_inner();
        self.context.admit_request(request.header.as_ref())?;
        self.context.access.check_admin(connection.as_ref(), "TransferLeader", request.forwarded)?;
        let to = request.to.map(|id| wire::node_id("the new leader's id", id)).transpose();
        let to = to.map_err(RequestRejected::from)?;
        let forwarding = forwarding(request.forwarded, request.header.as_ref());
        let transferred =
            self.ask::<_, TransferError, TransferError>(self.context.config.membership_timeout, |reply| {
                let request = LeaderRequest::TransferLeader { to, reply };
                ServerRequestMsg::ForLeader { request, forwarding }
            });
        let outcome = match transferred.await? {
            Ok(leader) => Outcome::Leader(leader.get()),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::TransferLeaderReply {
            header: self.context.header(),
            outcome: Some(outcome),
        }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexReply>, Status> {
        count(&self.context.counters.reads);
        use proto::read_index_reply::Outcome;
        self.context.admit_request(request.into_inner().header.as_ref())?;
        let confirmed = self.ask::<_, ReadError, ReadError>(self.context.config.read_timeout, |reply| {
            ServerRequestMsg::ConfirmReadIndex { reply }
        });
        let outcome = match confirmed.await? {
            Ok(index) => Outcome::Index(index.0),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::ReadIndexReply { header: self.context.header(), outcome: Some(outcome) }))
    }

    async fn inspect(
        &self,
        request: Request<proto::InspectRequest>,
    ) -> Result<Response<proto::InspectReply>, Status> {
        count(&self.context.counters.inspections);
        use proto::inspect_reply::Outcome;
        self.context.admit_request(request.into_inner().header.as_ref())?;
        let inspected = self
            .ask::<Inspection, StopReason, ReadError>(self.context.config.read_timeout, |reply| {
                ServerRequestMsg::Inspect { reply }
            });
        let outcome = match inspected.await? {
            Ok(inspection) => Outcome::Inspection(wire::encode_detail(&inspection)),
            Err(error) => Outcome::Refusal(wire::refusal_to_wire(&error)),
        };
        Ok(Response::new(proto::InspectReply { header: self.context.header(), outcome: Some(outcome) }))
    }

    async fn identify(
        &self,
        request: Request<proto::IdentifyRequest>,
    ) -> Result<Response<proto::IdentifyReply>, Status> {
        count(&self.context.counters.identifications);
        let agrees = self.context.agrees_with(request.into_inner())?;
        let header = self.context.header();
        let status = self.context.status.borrow().clone();
        let identification = Identification {
            node_id: status.node_id,
            address: self.context.address.to_string(),
            identity: status.identity,
            members: Members::clone(&status.members),
            leader_id: status.leader_id,
            plan: self.context.plan.borrow().clone(),
            agrees,
        };
        Ok(Response::new(wire::identification_to_wire(header, identification)))
    }
}
