//! Admission to a cluster: sends the request, and waits for as long as there is progress.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raftify_core::error::{JoinError, MembershipError, ReadError};
use raftify_core::{
    ClusterId, Identity, LocalRequestMsg, LogIndex, LogPosition, Member, MemberRole, Members,
    MembershipRequest, Status,
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use crate::api::raft::Raft;
use crate::api::ticket::ClusterJoinTicket;
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::StateMachine;
use crate::client::cluster_connection::ClusterConnection;
use crate::client::error::ClientError;
use crate::error::JoinClusterError;
use crate::node::begin::SAID_EVERY;
use crate::verbs::change_membership::promotion;

/// The pause between two attempts at admission, and between two checks of whether a learner is caught up.
const PAUSE: Duration = Duration::from_millis(200);

/// The request for admission, and the addresses of the cluster.
pub(crate) struct Admission {
    cluster_id: ClusterId,
    joiners: Vec<Member>,
    /// Tried in this order.
    addresses: Vec<String>,
}

/// The values whose change counts as progress of a joining node.
#[derive(Clone, Copy, PartialEq)]
struct Progress {
    last: LogPosition,
    commit: LogIndex,
    applied: LogIndex,
    members_as_of: LogIndex,
    snapshot_bytes_received: u64,
}

impl<Entry, FSM> Raft<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// Adds this node to the cluster of its ticket, and resolves once it takes part: it votes, or, with a
    /// ticket [for a learner](ClusterJoinTicket::as_learner), it is caught up. The node must be
    /// [running](Self::run) meanwhile. The call has no effect on a node that takes part already: it may
    /// be made at every start. A node that was added as a learner stays a learner.
    ///
    /// Tickets of other nodes may be given as well: these nodes are added in the same change, before they are
    /// started.
    ///
    /// Waits as long as there is progress, and for [`joiner_timeout`](crate::Config::joiner_timeout) without
    /// any. Meanwhile, the log says every ten seconds which step is missing.
    ///
    /// # Errors
    /// See [`JoinClusterError`]; a second call with the same tickets is safe.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the node a member already; a second call is safe.
    pub async fn join_cluster(&self, tickets: Vec<ClusterJoinTicket>) -> Result<(), JoinClusterError> {
        let id = self.id();
        let own = tickets
            .iter()
            .find(|ticket| ticket.reserved_id == id)
            .ok_or(JoinClusterError::NoTicket { id })?;
        if let Some(other) = tickets.iter().find(|ticket| ticket.cluster_id != own.cluster_id) {
            return Err(JoinClusterError::DifferentClusters {
                first: own.cluster_id,
                second: other.cluster_id,
            });
        }
        if *own.raft_addr != *self.raft_addr {
            let (ticket, own) = (own.raft_addr.clone(), self.raft_addr.to_string());
            return Err(JoinClusterError::OtherAddress { id, ticket, own });
        }
        if let Some(since) = own.expired_since().filter(|_| self.own_role().is_none()) {
            return Err(JoinClusterError::TicketExpired { id, since });
        }
        let identity = self.take_on_identity(own.cluster_id).await?;
        let joiners = tickets.iter().map(|ticket| {
            let incarnation = (ticket.reserved_id == id).then_some(identity.incarnation);
            let (id, address, role) = (ticket.reserved_id, ticket.raft_addr.clone(), ticket.role);
            Member { id, address, role, incarnation }
        });
        let peers = own.peers.iter().map(|peer| &peer.address);
        let addresses = [&own.peer_addr, &own.leader_addr].into_iter().chain(peers);
        let admission = self.admission(own.cluster_id, joiners.collect(), addresses.cloned());
        match self.own_role() {
            None => drop(self.ask_to_be_added(&admission).await?),
            Some(MemberRole::Joining) => {}
            Some(_) => return Ok(()),
        }
        self.wait_until_taking_part(&admission).await
    }

    /// The role of this node, as far as applied here.
    pub(crate) fn own_role(&self) -> Option<MemberRole> {
        role(&self.status().borrow())
    }

    /// The request for admission to this cluster, at these addresses and at those that the user has added.
    pub(crate) fn admission(
        &self,
        cluster_id: ClusterId,
        joiners: Vec<Member>,
        addresses: impl Iterator<Item = String>,
    ) -> Admission {
        let known = self.known_addresses.lock().clone();
        let mut seen = BTreeSet::from([self.raft_addr.to_string(), String::new()]);
        let addresses = addresses.chain(known).filter(|address| seen.insert(address.clone())).collect();
        Admission { cluster_id, joiners, addresses }
    }

    /// Records durably that this directory belongs to the cluster, so that the node accepts the cluster's
    /// messages.
    pub(crate) async fn take_on_identity(&self, cluster_id: ClusterId) -> Result<Identity, JoinClusterError> {
        let known = self.status().borrow().identity;
        let incarnation = known.map_or(self.incarnation, |identity| identity.incarnation);
        let identity = Identity { cluster_id, node_id: self.id(), incarnation };
        let request = |reply| LocalRequestMsg::AwaitCluster { identity, reply };
        match self.request(self.config().membership_timeout, request).await {
            Ok(()) => Ok(identity),
            Err(JoinError::AlreadyMember { cluster_id: member_of }) if member_of == cluster_id => {
                Ok(identity)
            }
            Err(JoinError::Stopped(reason)) => Err(JoinClusterError::Stopped(reason)),
            Err(error) => Err(JoinClusterError::Directory(error)),
        }
    }

    /// Requests admission until the cluster agrees, or permanently rejects it, or `patience` is over. Then
    /// waits until this node takes part.
    pub(crate) async fn be_let_in(
        &self,
        admission: &Admission,
        patience: Duration,
    ) -> Result<(), JoinClusterError> {
        let began = Instant::now();
        let mut said: Option<Instant> = None;
        while self.own_role().is_none() {
            let error = match self.ask_to_be_added(admission).await {
                Ok(_) => break,
                Err(error) => error,
            };
            if !may_pass(&error) || began.elapsed() >= patience {
                return Err(error);
            }
            if said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                said = Some(Instant::now());
                info!(node = %self.id(), "waiting to be admitted to cluster {}: {error}", admission.cluster_id);
            }
            tokio::select! {
                biased;
                reason = self.lifecycle().stopping() => return Err(reason.into()),
                () = sleep(PAUSE) => {}
            }
        }
        self.wait_until_taking_part(admission).await
    }

    /// The members when this node was added; `None` if the outcome is unknown: it becomes known when this
    /// node receives messages of the cluster.
    async fn ask_to_be_added(&self, admission: &Admission) -> Result<Option<Members>, JoinClusterError> {
        let Admission { cluster_id, joiners, addresses } = admission;
        let within = self.config().membership_timeout;
        let request = MembershipRequest::join(joiners.clone());
        let added = async {
            let cluster = ClusterConnection::new(addresses, within)?.with_dialer(self.dialer.clone());
            cluster.to(*cluster_id).change_config(&request).await
        };
        let added = tokio::select! {
            biased;
            reason = self.lifecycle().stopping() => return Err(reason.into()),
            added = added => added,
        };
        match added {
            Ok(members) => Ok(Some(members)),
            Err(ClientError::Answer(MembershipError::Unknown(_))) => Ok(None),
            Err(ClientError::Answer(refusal)) => Err(JoinClusterError::Refused(refusal)),
            Err(error) => Err(JoinClusterError::Unreachable(error.to_string())),
        }
    }

    /// Waits until this node votes, or is a learner that is caught up.
    pub(crate) async fn wait_until_taking_part(&self, admission: &Admission) -> Result<(), JoinClusterError> {
        let patience = self.config().joiner_timeout;
        let mut status = self.status();
        let mut progress = self.progress();
        let mut progressed = Instant::now();
        let mut say_at = progressed + SAID_EVERY;
        let mut reason = "the cluster has added it, and it has received nothing yet".to_owned();
        loop {
            let own_role = role(&status.borrow_and_update());
            let is_learner = match own_role {
                None | Some(MemberRole::Joining) => false,
                Some(MemberRole::Learner) => match self.read_index().await {
                    Ok(_) => return Ok(()),
                    Err(ReadError::Stopped(reason)) => return Err(reason.into()),
                    Err(error) => {
                        reason = format!("a learner that is not caught up yet: {error}");
                        true
                    }
                },
                Some(MemberRole::Voter | MemberRole::Leaving) => return Ok(()),
            };
            let now = self.progress();
            if now != progress {
                (progress, progressed) = (now, Instant::now());
            }
            if Instant::now() >= say_at {
                if !is_learner {
                    reason = self.why_not_a_voter(admission).await?;
                }
                info!(node = %self.id(), "joining cluster {}: {reason}", admission.cluster_id);
                say_at = Instant::now() + SAID_EVERY;
            }
            if progressed.elapsed() >= patience {
                let own = self.raft_addr.to_string();
                return Err(JoinClusterError::NoProgress { waited: patience, own, reason });
            }
            let look_at = if is_learner { Instant::now() + PAUSE } else { say_at };
            tokio::select! {
                biased;
                reason = self.lifecycle().stopping() => return Err(reason.into()),
                _ = status.changed(), if !is_learner => {}
                () = sleep_until(look_at.min(progressed + patience)) => {}
            }
        }
    }

    /// The missing condition for this node's vote, as text, as the leader reports it. If the leader has
    /// removed the node meanwhile, it is added again.
    ///
    /// # Errors
    /// The cluster will never admit this node.
    async fn why_not_a_voter(&self, admission: &Admission) -> Result<String, JoinClusterError> {
        let status = self.status().borrow().clone();
        let own = &self.raft_addr;
        if role(&status).is_some() {
            // The leader promotes a joining node by itself, under the same conditions as on request. The node
            // has not recently become a learner by another request, since the membership is still
            // the same.
            let request = MembershipRequest::from(promotion(self.id())).expecting(status.members.as_of());
            return Ok(match self.change_config(request).await {
                Ok(_) => "it was promoted".to_owned(),
                Err(error) => format!("added as a joining node at {own}, and not a voter yet: {error}"),
            });
        }
        Ok(match self.ask_to_be_added(admission).await {
            Ok(_) => match self.progress().snapshot_bytes_received {
                0 => format!(
                    "the cluster has added it, and it has received nothing yet: can the others reach {own}?"
                ),
                bytes => format!("it receives a snapshot, of which {bytes} bytes are there"),
            },
            Err(error) if may_pass(&error) => format!("the cluster does not answer: {error}"),
            Err(error) => return Err(error),
        })
    }

    fn progress(&self) -> Progress {
        let status = self.status();
        let status = status.borrow();
        Progress {
            last: status.last,
            commit: status.commit,
            applied: status.applied,
            members_as_of: status.members.as_of(),
            snapshot_bytes_received: self.lifecycle().snapshot_bytes_received().load(Ordering::Relaxed),
        }
    }
}

fn role(status: &Status) -> Option<MemberRole> {
    status.members.get(status.node_id).map(|member| member.role)
}

/// Whether a retry may help.
fn may_pass(error: &JoinClusterError) -> bool {
    match error {
        JoinClusterError::Refused(MembershipError::Refused(_)) => false,
        JoinClusterError::Refused(_) | JoinClusterError::Unreachable(_) => true,
        _ => false,
    }
}
