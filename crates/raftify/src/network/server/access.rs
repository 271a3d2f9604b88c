//! With TLS: which requests a certificate permits.
//!
//! A request is refused before its body is read. Three questions are asked here: whether the connection has
//! an identity at all, whether its roles permit the method, and, of a node, whether the certificate is that
//! of the node that sends, forwards or joins. Without TLS, all is permitted.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use parking_lot::Mutex;
use raftify_core::members::MEMBERS_MAX;
use raftify_core::{ClusterId, Members, MembershipCommand, NodeId, Status as NodeStatus};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tracing::warn;

use crate::channels::server_counters::{ServerCounters, count};
use crate::network::server::connections::ConnectionId;
use crate::runtime::log_throttle::LogThrottle;
use crate::security::acceptor::{Peer, Report};
use crate::security::identity::CertificateRole::{self, Admin, Client, Node};
use crate::security::identity::{PeerIdentity, host_of, list};
use crate::verbs::verb::Permission;
use crate::wire::RequestRejected;

/// The roles of which one permits a method. A node may change the membership and the leader only in two
/// cases, which [`Access::check_change`] and [`Access::check_admin`] know.
fn listed_roles(method: &str) -> Option<&'static [CertificateRole]> {
    Some(match method {
        "StreamMessages" | "InstallSnapshot" => &[Node],
        "StreamRequests" | "Propose" | "ReadIndex" => &[Node, Client, Admin],
        "ChangeMembership" | "ReserveNodeId" | "TransferLeader" => &[Node, Admin],
        "MakeSnapshot" | "Backup" | "Leave" => &[Admin],
        "Inspect" | "Identify" | "Events" => &[Node, Client, Admin],
        // Of the health service; its other method is open.
        "Watch" => &[Node, Client, Admin],
        _ => return None,
    })
}

/// A method that is not listed is for administrators.
fn roles_for(method: &str) -> &'static [CertificateRole] {
    listed_roles(method).unwrap_or(&[Admin])
}

/// Refuses requests, counts the refusals, and logs them, at most once a minute.
pub(crate) struct Access {
    address: Arc<str>,
    status: watch::Receiver<NodeStatus>,
    counters: Arc<ServerCounters>,
    warning: Mutex<LogThrottle>,
}

impl Access {
    pub(crate) fn new(
        address: Arc<str>,
        status: watch::Receiver<NodeStatus>,
        counters: Arc<ServerCounters>,
    ) -> Access {
        Access { address, status, counters, warning: Mutex::default() }
    }

    /// Takes the outcome of the handshake of a connection.
    pub(super) fn report(self: &Arc<Self>, connection: ConnectionId, from: Option<SocketAddr>) -> Report {
        let access = Arc::clone(self);
        Box::new(move |outcome| match outcome {
            Ok(peer) => connection.is_from(peer),
            Err(reason) => {
                count(&access.counters.refused_handshakes);
                if access.is_due() {
                    let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.to_string());
                    warn!(
                        "the connection from {from} to node {} at {} is refused: {reason}",
                        access.node(),
                        access.address
                    );
                }
            }
        })
    }

    /// Whether a connection may request a method.
    fn check(&self, connection: Option<&ConnectionId>, method: &str) -> Result<(), RequestRejected> {
        let (node, address) = (self.node(), self.address.to_string());
        let refusal = match connection.and_then(ConnectionId::peer) {
            Some(Peer::Certificate(identity)) if identity.has_any(roles_for(method)) => return Ok(()),
            Some(Peer::Certificate(identity)) => missing(node, address, method, identity, roles_for(method)),
            Some(Peer::WithoutTls) | None => RequestRejected::TlsRequired { node, address },
        };
        Err(self.refused(refusal))
    }

    /// Whether the other end may send messages as this node, whose address the membership has, or which the
    /// message announces.
    pub(super) fn check_sender(
        &self,
        connection: Option<&ConnectionId>,
        sender: NodeId,
        announced: &str,
        members: &Members,
        cluster: ClusterId,
    ) -> Result<(), RequestRejected> {
        let Some(identity) = connection.and_then(ConnectionId::identity) else { return Ok(()) };
        let recorded = members.get(sender).map(|member| member.address.as_str());
        let checked = identity
            .check_ids(Some(sender), Some(cluster))
            .and_then(|()| covers(identity, sender, recorded.unwrap_or(announced)))
            .and_then(|()| covers(identity, sender, announced));
        checked.map_err(|reason| self.other_certificate(identity, reason))
    }

    /// Whether the other end may request a verb: its roles were checked before.
    pub(super) fn check_permission(
        &self,
        connection: Option<&ConnectionId>,
        permission: Permission<'_>,
        forwarded: bool,
    ) -> Result<(), RequestRejected> {
        match permission {
            Permission::ByRole => Ok(()),
            Permission::Administrator { method } => self.check_admin(connection, method, forwarded),
            Permission::Membership(command) => self.check_change(connection, command, forwarded),
        }
    }

    /// Whether the other end may request a change of the membership: an administrator, a member that forwards
    /// it, or a node that asks for its own admission.
    fn check_change(
        &self,
        connection: Option<&ConnectionId>,
        command: &MembershipCommand,
        forwarded: bool,
    ) -> Result<(), RequestRejected> {
        let Some(identity) = connection.and_then(ConnectionId::identity) else { return Ok(()) };
        match command {
            MembershipCommand::Join(joiners) if !forwarded && !identity.has_any(&[Admin]) => {
                let cluster = self.status.borrow().identity.map(|own| own.cluster_id);
                for joiner in joiners {
                    identity
                        .check_ids(Some(joiner.id), cluster)
                        .and_then(|()| covers(identity, joiner.id, &joiner.address))
                        .map_err(|reason| self.other_certificate(identity, reason))?;
                }
                Ok(())
            }
            _ => self.check_admin(connection, "ChangeMembership", forwarded),
        }
    }

    /// Whether the other end is an administrator, or a member that forwards the request of one.
    fn check_admin(
        &self,
        connection: Option<&ConnectionId>,
        method: &str,
        forwarded: bool,
    ) -> Result<(), RequestRejected> {
        let Some(identity) = connection.and_then(ConnectionId::identity) else { return Ok(()) };
        if identity.has_any(&[Admin]) {
            return Ok(());
        }
        if !forwarded {
            let refusal = missing(self.node(), self.address.to_string(), method, identity, &[Admin]);
            return Err(self.refused(refusal));
        }
        let status = self.status.borrow().clone();
        let cluster = status.identity.map(|own| own.cluster_id);
        let is_member = status.members.iter().take(MEMBERS_MAX).any(|member| {
            identity.check_ids(Some(member.id), cluster).is_ok() && identity.covers(&member.address)
        });
        if is_member {
            return Ok(());
        }
        let reason = format!("it forwards {method}, and is for no member of the cluster");
        Err(self.other_certificate(identity, reason))
    }

    fn other_certificate(&self, identity: &PeerIdentity, reason: String) -> RequestRejected {
        let (node, address, sender) = (self.node(), self.address.to_string(), identity.to_string());
        self.refused(RequestRejected::OtherCertificate { node, address, sender, reason })
    }

    fn refused(&self, refusal: RequestRejected) -> RequestRejected {
        count(&self.counters.refused_requests);
        if self.is_due() {
            warn!("a request is refused: {refusal}");
        }
        refusal
    }

    fn node(&self) -> NodeId {
        self.status.borrow().node_id
    }

    fn is_due(&self) -> bool {
        self.warning.lock().is_due()
    }
}

fn missing(
    node: NodeId,
    address: String,
    method: &str,
    identity: &PeerIdentity,
    needed: &[CertificateRole],
) -> RequestRejected {
    let (address, method, sender) = (address.into(), method.into(), identity.to_string().into());
    let (roles, needed) = (identity.roles().into(), list(needed.iter().copied()).into());
    RequestRejected::RoleMissing { node, address, method, sender, roles, needed }
}

fn covers(identity: &PeerIdentity, node: NodeId, address: &str) -> Result<(), String> {
    if identity.covers(address) {
        return Ok(());
    }
    Err(format!("it is not for {}, the host of the address of node {node}", host_of(address)))
}

/// A service that only permitted requests reach.
#[derive(Clone)]
pub(super) struct Authorised<S> {
    service: S,
    /// `None` without TLS.
    access: Option<Arc<Access>>,
    /// The path of the method that is permitted to all.
    open: Option<&'static str>,
}

impl<S> Authorised<S> {
    pub(super) fn new(service: S, access: Option<Arc<Access>>) -> Authorised<S> {
        Authorised { service, access, open: None }
    }

    /// The same, with one method that needs no certificate: it must neither reveal nor hold anything.
    pub(super) fn with_open(self, path: &'static str) -> Authorised<S> {
        Authorised { open: Some(path), ..self }
    }
}

impl<S: NamedService> NamedService for Authorised<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Authorised<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<http::Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if let Some(access) = &self.access
            && self.open != Some(path)
        {
            let method = path.rsplit('/').next().unwrap_or_default();
            if let Err(refusal) = access.check(request.extensions().get(), method) {
                return Either::Right(ready(Ok(Status::from(refusal).into_http())));
            }
        }
        Either::Left(self.service.call(request))
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::{Identity, Incarnation, Member, MemberChange, MembershipChange, Role, Term};
    use tonic::Request;

    use super::*;
    use crate::network::server::connections::Connections;
    use crate::security::identity::{cluster_uri, node_uri};
    use crate::security::tests::identity;

    const CLUSTER: ClusterId = ClusterId(0xc1);

    fn id(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn members() -> Members {
        Members::initial([Member::voter(id(1), "a.example:1"), Member::voter(id(2), "b.example:1")]).unwrap()
    }

    fn access() -> Access {
        let status = NodeStatus {
            identity: Some(Identity { cluster_id: CLUSTER, node_id: id(1), incarnation: Incarnation(1) }),
            role: Role::Leader,
            term: Term(1),
            members: Arc::new(members()),
            ..NodeStatus::initial(id(1))
        };
        Access::new("a.example:1".into(), watch::Sender::new(status).subscribe(), Arc::default())
    }

    /// A connection from the holder of a certificate.
    fn from(hosts: &[&str], uris: &[String]) -> ConnectionId {
        let guard = Connections::new(1, Arc::default()).accept().unwrap();
        guard.id().is_from(Peer::Certificate(identity(hosts, uris)));
        let mut request = Request::new(());
        request.extensions_mut().insert(guard.id());
        ConnectionId::of(&request).unwrap()
    }

    #[test]
    fn every_method_of_the_service_has_roles() {
        let service = include_str!("../../../proto/raft_service.proto");
        let methods: Vec<&str> = service
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc "))
            .filter_map(|rest| rest.split(['(', ' ']).next())
            .collect();
        assert!(methods.contains(&"Propose") && methods.len() >= 9, "{methods:?}");
        for method in methods {
            assert!(listed_roles(method).is_some(), "{method} is not listed, and so for administrators only");
        }
        assert_eq!(roles_for("Unlisted"), [Admin]);
    }

    #[test]
    fn messages_of_a_node_need_a_certificate_for_the_address_of_the_membership_and_the_announced_one() {
        let access = access();
        let sends = |connection: &ConnectionId, sender, announced| {
            access.check_sender(Some(connection), id(sender), announced, &members(), CLUSTER)
        };
        let second = from(&["b.example", "new.example"], &[Node.uri()]);
        assert_eq!(sends(&second, 2, "b.example:1"), Ok(()));
        assert_eq!(sends(&second, 2, "new.example:1"), Ok(()), "it has moved");
        let stolen = sends(&second, 2, "c.example:1").unwrap_err().to_string();
        assert!(stolen.contains("b.example, new.example") && stolen.contains("c.example"), "{stolen}");
        assert!(stolen.contains("node 1 at a.example:1") && stolen.contains("node 2"), "{stolen}");
        assert!(sends(&second, 1, "b.example:1").is_err(), "the membership has another address for node 1");
        assert!(sends(&from(&["new.example"], &[Node.uri()]), 2, "new.example:1").is_err());
        // A node that is not a member as far as this one knows.
        assert_eq!(sends(&second, 3, "b.example:1"), Ok(()));
        assert!(sends(&second, 3, "c.example:1").is_err());
        assert_eq!(access.counters.refused_requests.load(std::sync::atomic::Ordering::Relaxed), 4);
    }

    #[test]
    fn ids_in_a_certificate_must_be_those_of_the_sender() {
        let access = access();
        let sends = |uris: &[String]| {
            access.check_sender(Some(&from(&["b.example"], uris)), id(2), "b.example:1", &members(), CLUSTER)
        };
        assert_eq!(sends(&[node_uri(id(2)), cluster_uri(CLUSTER)]), Ok(()));
        assert!(sends(&[node_uri(id(3))]).is_err());
        assert!(sends(&[node_uri(id(2)), cluster_uri(ClusterId(0xc2))]).is_err());
    }

    #[test]
    fn a_node_requests_its_own_admission_and_forwards_other_changes_only_as_a_member() {
        let access = access();
        let change = MembershipCommand::Change(MembershipChange::one(MemberChange::Remove(id(2))));
        let join = |hosts: &[&str]| {
            let joiners =
                (3..).zip(hosts).map(|(number, host)| Member::voter(id(number), format!("{host}:1")));
            MembershipCommand::Join(joiners.collect())
        };
        let checked = |connection: &ConnectionId, command: &MembershipCommand, forwarded| {
            access.check_change(Some(connection), command, forwarded).is_ok()
        };
        let (member, stranger) = (from(&["b.example"], &[Node.uri()]), from(&["c.example"], &[Node.uri()]));
        let administrator = from(&[], &[Admin.uri()]);
        assert!(
            checked(&administrator, &change, false) && checked(&administrator, &join(&["c.example"]), false)
        );
        assert!(checked(&member, &change, true) && checked(&member, &join(&["c.example"]), true));
        assert!(!checked(&member, &change, false), "it has the role node, and is not forwarding");
        assert!(checked(&stranger, &join(&["c.example"]), false));
        assert!(!checked(&stranger, &join(&["d.example"]), false));
        assert!(!checked(&stranger, &join(&["c.example", "d.example"]), false));
        assert!(!checked(&stranger, &join(&["d.example"]), true), "it is no member that forwards");
        assert!(!checked(&stranger, &change, true) && !checked(&stranger, &change, false));
        let other_id = from(&["c.example"], &[Node.uri(), node_uri(id(9))]);
        assert!(!checked(&other_id, &join(&["c.example"]), false));
    }

    #[test]
    fn without_tls_nothing_is_checked() {
        let access = access();
        let change = MembershipCommand::Change(MembershipChange::one(MemberChange::Remove(id(2))));
        assert_eq!(access.check_change(None, &change, false), Ok(()));
        assert_eq!(access.check_admin(None, "TransferLeader", false), Ok(()));
        assert_eq!(access.check_sender(None, id(2), "c.example:1", &members(), CLUSTER), Ok(()));
    }
}
