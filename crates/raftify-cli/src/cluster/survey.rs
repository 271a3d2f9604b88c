//! Asks the nodes of a cluster for their diagnostics, all at once and with a time limit.

use std::time::Duration;

use futures_util::future::join_all;
use raftify::client::{ClientError, UnreachableNode};
use raftify::error::ReadError;
use raftify::membership::{Member, Members};
use raftify::status::{ClusterId, Inspection, Role};
use raftify::{LogEntry, NodeId, RaftClient, StateMachine};
use tokio::time::timeout;

use crate::arguments::Addresses;
use crate::failure::Failure;

/// How long one node may take to answer.
pub(crate) const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client for nodes at these addresses, with the certificate of the command line.
pub(crate) fn client<E, S>(
    at: &Addresses,
    addresses: impl IntoIterator<Item = String>,
) -> Result<RaftClient<E, S>, Failure>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let client = RaftClient::<E, S>::new(addresses).map_err(|error| Failure::failed(error.to_string()))?;
    match at.tls.tls() {
        Some(tls) => client.with_tls(&tls).map_err(|error| Failure::failed(error.to_string())),
        None => Ok(client),
    }
}

/// What a node answered, or why it did not.
pub(crate) struct Seen {
    pub(crate) address: String,
    pub(crate) answer: Result<Inspection, String>,
}

/// A cluster, as the nodes that were asked know it.
pub(crate) struct Survey {
    pub(crate) cluster_id: ClusterId,
    /// The newest membership among the answers.
    pub(crate) members: Members,
    pub(crate) seen: Vec<Seen>,
}

impl Survey {
    /// Asks the given nodes.
    ///
    /// # Errors
    /// No node answered, none is a member, or the nodes belong to two clusters.
    pub(crate) async fn of_given<E, S>(at: &Addresses) -> Result<Survey, Failure>
    where
        E: LogEntry,
        S: StateMachine<LogEntry = E>,
    {
        let seen = ask_all::<E, S>(at, at.addresses.iter().cloned()).await?;
        let members: Vec<(&str, NodeId, ClusterId, &Members)> = seen
            .iter()
            .filter_map(|seen| {
                let status = &seen.answer.as_ref().ok()?.status;
                let cluster_id = status.identity.filter(|_| !status.members.is_empty())?.cluster_id;
                Some((&*seen.address, status.node_id, cluster_id, &*status.members))
            })
            .collect();
        let Some((address, id, cluster_id, _)) = members.first() else { return Err(no_member(&seen)) };
        if let Some((other, other_id, other_cluster, _)) =
            members.iter().find(|(_, _, cluster, _)| cluster != cluster_id)
        {
            return Err(Failure::failed(format!(
                "the addresses belong to two clusters: at {address} is node {id} of cluster {cluster_id}, at \
                 {other} node {other_id} of cluster {other_cluster}: give the addresses of one of them"
            )));
        }
        let cluster_id = *cluster_id;
        let newest = members.iter().map(|(_, _, _, members)| *members).max_by_key(|members| members.as_of());
        let members = newest.cloned().unwrap_or_else(Members::none);
        Ok(Survey { cluster_id, members, seen })
    }

    /// Asks the given nodes, and then all other members.
    ///
    /// # Errors
    /// As for [`of_given`](Self::of_given).
    pub(crate) async fn of_all<E, S>(at: &Addresses) -> Result<Survey, Failure>
    where
        E: LogEntry,
        S: StateMachine<LogEntry = E>,
    {
        let mut survey = Survey::of_given::<E, S>(at).await?;
        let is_new = |member: &&Member| {
            survey.answer_of(member.id).is_none()
                && survey.seen.iter().all(|seen| seen.address != member.address)
        };
        let missing: Vec<String> =
            survey.members.iter().filter(is_new).map(|member| member.address.clone()).collect();
        let others = ask_all::<E, S>(at, missing).await?;
        for answer in others.iter().filter_map(|seen| seen.answer.as_ref().ok()) {
            let members = &answer.status.members;
            let is_own = answer.status.identity.is_some_and(|own| own.cluster_id == survey.cluster_id);
            if is_own && members.as_of() > survey.members.as_of() {
                survey.members = Members::clone(members);
            }
        }
        survey.seen.extend(others);
        Ok(survey)
    }

    /// The answer of a member of this cluster.
    pub(crate) fn answer_of(&self, id: NodeId) -> Option<&Inspection> {
        let mut answers = self.seen.iter().filter_map(|seen| seen.answer.as_ref().ok());
        answers.find(|answer| {
            let status = &answer.status;
            status.node_id == id && status.identity.is_some_and(|own| own.cluster_id == self.cluster_id)
        })
    }

    /// Why a member did not answer.
    pub(crate) fn silence_of(&self, member: &Member) -> String {
        match self.seen.iter().find(|seen| seen.address == member.address) {
            None => "it was not asked: the membership has changed meanwhile".to_owned(),
            Some(Seen { answer: Err(reason), .. }) => reason.clone(),
            Some(Seen { answer: Ok(answer), .. }) => {
                let other = answer.status.node_id;
                match answer.status.identity {
                    Some(own) => format!("node {other} of cluster {} answers there", own.cluster_id),
                    None => format!("node {other}, which belongs to no cluster yet, answers there"),
                }
            }
        }
    }

    /// The answer of the leader, with the highest term if several nodes consider themselves the leader.
    pub(crate) fn leader(&self) -> Option<&Inspection> {
        let answers = self.members.iter().filter_map(|member| self.answer_of(member.id));
        answers.filter(|answer| answer.status.role == Role::Leader).max_by_key(|answer| answer.status.term)
    }

    /// The member with this id.
    ///
    /// # Errors
    /// `what` cannot be done: there is none.
    pub(crate) fn member(&self, what: &str, id: NodeId) -> Result<&Member, Failure> {
        self.members.get(id).ok_or_else(|| {
            let ids: Vec<String> = self.members.iter().map(|member| member.id.to_string()).collect();
            Failure::failed(format!(
                "{what}: node {id} is no member: the members are {}, see `raftify-cli cluster members`",
                ids.join(", ")
            ))
        })
    }
}

async fn ask_all<E, S>(
    at: &Addresses,
    addresses: impl IntoIterator<Item = String>,
) -> Result<Vec<Seen>, Failure>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let mut asked = Vec::new();
    for address in addresses {
        let client = client::<E, S>(at, [address.clone()])?.with_deadline(NODE_TIMEOUT);
        asked.push(async move {
            let answer = match timeout(NODE_TIMEOUT, client.inspect()).await {
                Ok(answer) => answer.map_err(reason),
                Err(_) => Err(no_answer(NODE_TIMEOUT)),
            };
            Seen { address, answer }
        });
    }
    Ok(join_all(asked).await)
}

fn no_answer(within: Duration) -> String {
    format!("no answer within {} s", within.as_secs())
}

/// Without the address, which stands before it.
pub(crate) fn reason(error: ClientError<ReadError>) -> String {
    match error {
        ClientError::Answer(ReadError::ConnectionLost(reason)) => {
            format!("it does not answer as a node of raftify: {reason}")
        }
        ClientError::Answer(ReadError::TimedOut(within)) => no_answer(within),
        ClientError::Unreachable(nodes) => match &nodes[..] {
            [UnreachableNode::NotConnected { reason, .. }] => format!("it cannot be connected to: {reason}"),
            [UnreachableNode::Unresolved { reason, .. }] => format!("the name cannot be resolved: {reason}"),
            _ => ClientError::<ReadError>::Unreachable(nodes).to_string(),
        },
        error => error.to_string(),
    }
}

/// No node that was asked is a member.
fn no_member(seen: &[Seen]) -> Failure {
    if let Some((address, answer)) =
        seen.iter().find_map(|seen| Some((&seen.address, seen.answer.as_ref().ok()?)))
    {
        return Failure::failed(format!(
            "the node at {address}, node {}, is no member of a cluster yet: give the address of a \
             member, or let the node join",
            answer.status.node_id
        ));
    }
    let reasons: Vec<String> = seen
        .iter()
        .filter_map(|seen| Some(format!("{} ({})", seen.address, seen.answer.as_ref().err()?)))
        .collect();
    Failure::failed(format!(
        "no node of the cluster answers: {}: check the addresses, the certificate, and whether the nodes run",
        reasons.join("; ")
    ))
}
