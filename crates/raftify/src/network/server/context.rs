//! The shared context of the server, and the validation of requests: version, group, cluster, receiver,
//! sender, form.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use raftify_core::error::ProposeError;
use raftify_core::members::SenderRefusal;
use raftify_core::{
    CheckedConfig, ClusterId, Incarnation, Members, NodeId, ProposalReply, Remembered, Sender,
    ServerRequestMsg, Status as NodeStatus,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::channels::backups::BackupCall;
use crate::channels::events::EarlierIncarnation;
use crate::channels::lifecycle::Lifecycle;
use crate::channels::metrics::{NodeMetrics, ReceivedMetrics};
use crate::channels::node_events::NodeEvents;
use crate::channels::request_queue::RequestSender;
use crate::channels::server_counters::ServerCounters;
use crate::network::outbox::Outbox;
use crate::network::server::access::Access;
use crate::network::server::connections::ConnectionId;
use crate::runtime::worker::Blocking;
use crate::security::dialer::Dialer;
use crate::wire::identification::{Identification, Plan};
use crate::wire::{self, RequestRejected, proto};

/// The shared context of the server.
pub(crate) struct ServerContext<R, S> {
    /// The raft loop's queue.
    pub(crate) requests: RequestSender<ServerRequestMsg<R>>,
    /// The identity of this node and the members that it accepts.
    pub(crate) status: watch::Receiver<NodeStatus>,
    /// The remembered starts of other nodes.
    pub(crate) remembered: watch::Receiver<Arc<Remembered>>,
    /// The store for incoming snapshots.
    pub(crate) snapshots: S,
    /// How many bytes have arrived of the most recently begun snapshot.
    pub(crate) snapshot_bytes_received: Arc<AtomicU64>,
    /// Limits and times.
    pub(crate) config: CheckedConfig,
    /// The address at which the others reach this node.
    pub(crate) address: Arc<str>,
    /// The plan with which this node waits to begin a cluster.
    pub(crate) plan: watch::Receiver<Option<Plan>>,
    /// Takes a member's report of this node's earlier incarnation while the node waits.
    pub(crate) earlier_incarnation: watch::Sender<Option<EarlierIncarnation>>,
    /// What certificates permit.
    pub(crate) access: Arc<Access>,
    /// Makes connections to nodes that are to be added; its certificates are also those of the server.
    pub(crate) dialer: Dialer,
    /// The metrics of the node.
    pub(crate) metrics: Arc<NodeMetrics>,
    /// The events of the node, for clients that subscribe.
    pub(crate) events: Arc<NodeEvents>,
    /// Takes requests for backups of the node.
    pub(crate) backups: mpsc::Sender<BackupCall>,
    /// For a client that makes this node leave.
    pub(crate) lifecycle: Lifecycle,
    /// Whether the node stops: it continues to serve until then.
    pub(crate) stops: watch::Receiver<bool>,
    /// The counters of the server.
    pub(crate) counters: Arc<ServerCounters>,
    /// Learns of senders that are not members yet.
    pub(crate) outbox: Outbox,
    /// The threads on which incoming snapshots are written.
    pub(crate) blocking: Blocking,
    /// Makes the reply channel for a proposal that came over the network: the reply in its encoding.
    pub(crate) remote_reply: fn(oneshot::Sender<Result<Bytes, ProposeError>>) -> R,
    /// Why an entry that came over the network must not get into the log: see
    /// [`check_encoded`](crate::application::log_entry::check_encoded).
    pub(crate) check_entry: fn(&[u8]) -> Result<(), String>,
}

/// The sender of a request that passed validation.
pub(super) struct Admitted {
    pub(super) cluster_id: ClusterId,
    pub(super) sender: Sender,
    pub(super) receiver: Option<Incarnation>,
}

impl<R: ProposalReply, S> ServerContext<R, S> {
    /// Validates the sender of consensus messages and snapshots.
    pub(super) fn admit(
        &self,
        connection: Option<&ConnectionId>,
        header: Option<&proto::Header>,
        sender: Option<proto::Sender>,
        receiver: Option<proto::Receiver>,
    ) -> Result<Admitted, RequestRejected> {
        let found = wire::check_header(header)?.ok_or(wire::WireError::Missing { what: "the cluster id" })?;
        let (sender, address) = wire::sender_from_wire(sender)?;
        let (receiver, receiver_incarnation) = wire::receiver_from_wire(receiver)?;

        let status = self.status.borrow();
        let node = status.node_id;
        let Some(identity) = status.identity else {
            if receiver == node
                && let Some(incarnation) = receiver_incarnation
            {
                self.hear_of_earlier_incarnation(found, incarnation, address);
            }
            return Err(RequestRejected::NoCluster { node });
        };
        if found != identity.cluster_id {
            if receiver == node
                && let Some(incarnation) = receiver_incarnation
                && incarnation != identity.incarnation
            {
                // As below, if there is no room.
                let _ = self.requests.try_send(ServerRequestMsg::KnownElsewhere { incarnation });
            }
            return Err(RequestRejected::OtherCluster { node, found, own: identity.cluster_id });
        }
        if receiver != node {
            return Err(RequestRejected::OtherNode { meant: receiver, own: node });
        }
        let members = &status.members;
        self.access.check_sender(connection, sender.id, &address, members, identity.cluster_id)?;
        if let Err(refusal) = members.check_sender(&sender, receiver_incarnation, &identity) {
            if let SenderRefusal::OtherReceiver { .. } = refusal {
                // The core has to learn that this node is not the incarnation that the cluster knows.
                self.tell_core(&sender, receiver_incarnation);
            }
            return Err(refusal.into());
        }
        self.check_started(&status.members, &sender, receiver_incarnation)?;
        let is_at_its_place = status.members.get(sender.id).is_some_and(|member| member.address == address);
        drop(status);
        if !is_at_its_place && self.outbox.hear_of(&sender, &address) {
            // If there is no room in the queue now, the next announcement succeeds.
            let _ = self.requests.try_send(ServerRequestMsg::Announced { sender, address });
        }
        Ok(Admitted { cluster_id: found, sender, receiver: receiver_incarnation })
    }

    /// The metrics for the messages of this sender, if it is a member.
    pub(super) fn received_from(&self, sender: NodeId) -> Option<ReceivedMetrics> {
        let is_member = self.status.borrow().members.get(sender).is_some();
        is_member.then(|| self.metrics.received_from(sender))
    }

    /// The node remembers nothing of a sender that is not a member. The core also has to learn of a sender
    /// that has forgotten data: a copy of a directory may run in parallel with the original.
    fn check_started(
        &self,
        members: &Members,
        sender: &Sender,
        receiver: Option<Incarnation>,
    ) -> Result<(), SenderRefusal> {
        if members.get(sender.id).is_none() {
            return Ok(());
        }
        let checked = self.remembered.borrow().check(sender);
        if checked.is_err() {
            self.tell_core(sender, receiver);
        }
        checked
    }

    /// Lets the core reject a sender as well. If there is no room in the queue now, the next attempt of the
    /// sender succeeds.
    fn tell_core(&self, sender: &Sender, receiver: Option<Incarnation>) {
        let news = ServerRequestMsg::RaftMessages { sender: *sender, receiver, messages: Vec::new() };
        let _ = self.requests.try_send(news);
    }

    /// Which node this is.
    pub(super) fn identify(
        &self,
        request: proto::IdentifyRequest,
    ) -> Result<Identification, RequestRejected> {
        let agrees = self.agrees_with(request)?;
        let status = self.status.borrow();
        Ok(Identification {
            node_id: status.node_id,
            address: self.address.to_string(),
            identity: status.identity,
            members: Members::clone(&status.members),
            leader_id: status.leader_id,
            plan: self.plan.borrow().clone(),
            agrees,
        })
    }

    /// Whether this node has no objection to the requesting node. A member that has forgotten its own reports
    /// is rejected; the messages of all others will be answered.
    fn agrees_with(&self, request: proto::IdentifyRequest) -> Result<bool, RequestRejected> {
        let found = wire::check_header(request.header.as_ref())?;
        let (Some(sender), Some(receiver)) = (request.sender, request.receiver) else {
            return Ok(false);
        };
        let (sender, _) = wire::sender_from_wire(Some(sender))?;
        let (receiver, incarnation) = wire::receiver_from_wire(Some(receiver))?;
        let status = self.status.borrow();
        let Some(identity) = status.identity.filter(|identity| found == Some(identity.cluster_id)) else {
            return Ok(false);
        };
        if sender.id == identity.node_id && sender.incarnation == identity.incarnation {
            // A copy of this node's directory looks for its original.
            self.tell_core(&sender, incarnation);
        }
        if receiver != status.node_id || status.members.check_sender(&sender, incarnation, &identity).is_err()
        {
            return Ok(false);
        }
        self.check_started(&status.members, &sender, incarnation)?;
        drop(status);
        // The sender may have been down until now.
        self.outbox.is_up(sender.id);
        Ok(true)
    }

    /// A member of a cluster knows this node, which waits to begin one. If that is the cluster of its list,
    /// the cluster began long ago.
    fn hear_of_earlier_incarnation(&self, cluster: ClusterId, incarnation: Incarnation, teller: String) {
        let plan = self.plan.borrow();
        if plan.as_ref().is_some_and(|plan| plan.members.derive_cluster_id() == cluster) {
            self.earlier_incarnation.send_replace(Some(EarlierIncarnation { incarnation, teller }));
        }
    }

    /// Checks that this request is for this cluster. For single requests, which any client that knows the
    /// address may make, possibly without the cluster's id.
    pub(super) fn admit_request(&self, header: Option<&proto::Header>) -> Result<(), RequestRejected> {
        let named = wire::check_header(header)?;
        let status = self.status.borrow();
        match (named, status.identity) {
            (Some(found), Some(identity)) if found != identity.cluster_id => {
                Err(RequestRejected::OtherCluster { node: status.node_id, found, own: identity.cluster_id })
            }
            (Some(_), None) => Err(RequestRejected::NoCluster { node: status.node_id }),
            _ => Ok(()),
        }
    }

    pub(super) fn header(&self) -> Option<proto::Header> {
        let status = self.status.borrow();
        let cluster_id = status.identity.map(|identity| identity.cluster_id);
        let members_as_of = Some(status.members.as_of().0);
        Some(proto::Header { members_as_of, ..wire::header(cluster_id) })
    }
}
