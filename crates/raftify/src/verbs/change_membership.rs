//! Changes the members of the cluster; also the changes that have their own names, for the handle and for the
//! remote client.

use std::time::Duration;

use futures_util::future::join_all;
use raftify_core::error::{MembershipError, StopReason};
use raftify_core::members::{LeaveJoint, MembershipRefusal};
use raftify_core::{
    Forwarding, LeaderRequest, LogIndex, Member, MemberChange, MemberRole, Members, MembershipChange,
    MembershipCommand, MembershipRequest, NodeId, Responder, Status,
};
use tokio::time::{Instant, sleep};

use crate::security::dialer::Dialer;
use crate::verbs::identify::probe;
use crate::verbs::verb::{
    Asked, Counter, LeaderVerb, Permission, Served, ServingNode, Setting, Verb, ask_leader, messages,
};
use crate::wire::{RequestRejected, proto};

/// How long a change of the membership waits for an answer from the address of a node that it adds.
const ADDED_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause between two checks of whether a node is caught up.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(crate) struct ChangeMembership {
    pub(crate) request: MembershipRequest,
}

impl Verb for ChangeMembership {
    type Answer = Members;
    type Error = MembershipError;

    const REPEATABLE: bool = false;
    const DEADLINE: Setting = |config| config.membership_timeout;
    const COUNTER: Counter = |counters| &counters.membership_changes;

    messages!(
        change_membership: ChangeMembershipRequest => ChangeMembershipReply, change_membership_reply::Members,
        |members: Members| members.encode(),
        |members| Members::decode(&members)?
    );

    fn to_wire(self, header: proto::Header, forwarded: bool) -> Self::Request {
        proto::ChangeMembershipRequest { header: Some(header), request: self.request.encode(), forwarded }
    }

    fn from_wire(request: Self::Request) -> Asked<Self> {
        let proto::ChangeMembershipRequest { header, request, forwarded } = request;
        let verb = MembershipRequest::decode(&request).map(|request| ChangeMembership { request });
        Asked { header, forwarded, verb: verb.map_err(Into::into) }
    }

    fn permission(&self) -> Permission<'_> {
        Permission::Membership(&self.request.command)
    }

    fn payload_bytes(request: &Self::Request) -> usize {
        request.request.len()
    }

    async fn serve<N: ServingNode>(self, node: &N, forwarding: Forwarding) -> Served<Self> {
        // The node that has forwarded it has already checked.
        if forwarding != Forwarding::Never {
            let status = node.status();
            let checked = tokio::select! {
                biased;
                () = node.closed() => return Err(RequestRejected::Stopped(StopReason::Stopped)),
                checked = self.check_added_addresses(node.dialer(), &status) => checked,
            };
            if let Err(refusal) = checked {
                return Ok(Err(refusal.into()));
            }
        }
        ask_leader(node, self, forwarding).await
    }
}

impl LeaderVerb for ChangeMembership {
    type Channel<R> = Responder<Members, MembershipError>;

    fn request<R>(self, reply: Self::Channel<R>) -> LeaderRequest<R> {
        LeaderRequest::ChangeMembership { request: self.request, reply }
    }
}

impl ChangeMembership {
    /// Checks that no member answers at the address of a node that is about to be added. This detects two
    /// spellings of one address (`localhost:1` and `127.0.0.1:1`). An address at which no node answers
    /// passes.
    ///
    /// # Errors
    /// Which member answers there.
    pub(crate) async fn check_added_addresses(
        &self,
        dialer: &Dialer,
        status: &Status,
    ) -> Result<(), MembershipRefusal> {
        let (members, Some(identity)) = (&status.members, status.identity) else { return Ok(()) };
        let added: Vec<&Member> = match &self.request.command {
            MembershipCommand::Join(joiners) => joiners.iter().collect(),
            MembershipCommand::Change(MembershipChange::Steps { steps, .. }) => {
                let members = steps.iter().filter_map(|step| match step {
                    MemberChange::Add(member) => Some(member),
                    _ => None,
                });
                members.collect()
            }
            MembershipCommand::Change(MembershipChange::LeaveJoint) => Vec::new(),
        };
        // A known address was checked before, or is rejected without a check.
        let is_new = |member: &&&Member| members.iter().all(|known| known.address != member.address);
        let looks = added.iter().filter(is_new).map(|member| async move {
            let answer = probe(dialer, &member.address, ADDED_NODE_TIMEOUT).await.ok()?;
            let answers = answer.identity.filter(|found| found.cluster_id == identity.cluster_id)?.node_id;
            let is_other = answers != member.id && members.get(answers).is_some();
            let (id, address) = (member.id, member.address.clone());
            is_other.then_some(MembershipRefusal::AnsweredByOther { id, address, answers })
        });
        join_all(looks).await.into_iter().flatten().next().map_or(Ok(()), Err)
    }
}

pub(crate) fn promotion(id: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Voter })
}

pub(crate) fn demotion(id: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Learner })
}

pub(crate) fn removal(id: NodeId) -> MembershipChange {
    MembershipChange::one(MemberChange::Remove(id))
}

/// Whether a replacement was rejected because the new node votes already.
pub(crate) fn is_voter_already(error: &MembershipError, new: NodeId) -> bool {
    let role = MemberRole::Voter;
    *error == MembershipError::Refused(MembershipRefusal::HasRole { id: new, role })
}

pub(crate) fn replacement(old: NodeId, new: NodeId) -> MembershipChange {
    let promote = MemberChange::SetRole { id: new, role: MemberRole::Voter };
    MembershipChange::Steps {
        steps: vec![promote, MemberChange::Remove(old)],
        leave: LeaveJoint::Automatically,
    }
}

/// Attempts a replacement until the new node is caught up and reached, for as long as it makes progress.
pub(crate) async fn while_catching_up<E, Attempt: Future<Output = Result<Members, E>>>(
    patience: Duration,
    attempt: impl Fn() -> Attempt,
    answer: impl Fn(&E) -> Option<MembershipError>,
) -> Result<Members, E> {
    let mut reached = LogIndex::ZERO;
    let mut until = Instant::now() + patience;
    loop {
        let error = match attempt().await {
            Err(error) => error,
            done => return done,
        };
        match answer(&error) {
            Some(MembershipError::NotCaughtUp { matched, .. }) => {
                if matched > reached {
                    reached = matched;
                    until = Instant::now() + patience;
                }
            }
            Some(MembershipError::NotReached { .. }) => {}
            _ => return Err(error),
        }
        if Instant::now() >= until {
            return Err(error);
        }
        sleep(CATCH_UP_PAUSE).await;
    }
}
