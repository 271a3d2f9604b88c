//! The commands that change a live cluster: each asks if it is dangerous, shows what it waits for, and says
//! what it did.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use raftify::client::ClientError;
use raftify::error::{MembershipError, MembershipRefusal};
use raftify::membership::{
    LeaveJoint, Member, MemberChange, MemberRole, Members, MembershipChange, MembershipRequest,
};
use raftify::status::LogIndex;
use raftify::{BoxError, ClusterJoinTicket, LogEntry, NodeId, RaftClient, StateMachine};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::arguments::{Addresses, Conditions, Confirmation};
use crate::cluster::confirm::confirm;
use crate::cluster::progress::Progress;
use crate::cluster::survey::{Survey, client};
use crate::failure::{Exit, Failure};
use crate::output::{members_json, print_json, print_members};

/// The limit for one request, which waits for an election or an earlier change.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a node may be without progress while a command waits for it.
const PATIENCE: Duration = Duration::from_secs(600);

/// The pause between two checks of a node's progress.
const PAUSE: Duration = Duration::from_millis(200);

/// A learner counts as caught up if no more entries than this are missing.
const CAUGHT_UP: u64 = 1000;

/// How long a ticket is valid.
const TICKET_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

type Outcome = Result<Members, ClientError<MembershipError>>;

/// One command: its addresses and its client.
pub(crate) struct Change<'a, E, S> {
    at: &'a Addresses,
    survey: Survey,
    client: RaftClient<E, S>,
}

impl<'a, E, S> Change<'a, E, S>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    /// Finds the cluster.
    pub(crate) async fn begin(at: &'a Addresses) -> Result<Self, Failure> {
        let survey = Survey::of_given::<E, S>(at).await?;
        let client = client::<E, S>(at, at.addresses.iter().cloned())?.with_deadline(DEADLINE);
        Ok(Change { at, survey, client })
    }

    pub(crate) async fn remove(
        self,
        id: NodeId,
        conditions: &Conditions,
        confirmation: &Confirmation,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("cannot remove node {id}");
        let member = self.survey.member(&what, id)?;
        let question = format!("removes node {id}, a {} at {}, permanently", member.role, member.address);
        self.confirm(question, conditions.force, confirmation)?;
        let request = request(MembershipChange::one(MemberChange::Remove(id)), conditions);
        let members = self.ask(&what, request).await?;
        self.show(&members, format!("node {id} is removed"), output)
    }

    pub(crate) async fn demote(
        self,
        id: NodeId,
        conditions: &Conditions,
        confirmation: &Confirmation,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("cannot demote node {id}");
        let member = self.survey.member(&what, id)?;
        self.confirm(
            format!("takes the vote of node {id} at {}", member.address),
            conditions.force,
            confirmation,
        )?;
        let change = MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Learner });
        let members = self.ask(&what, request(change, conditions)).await?;
        self.show(&members, format!("node {id} is a learner"), output)
    }

    pub(crate) async fn promote(
        self,
        id: NodeId,
        conditions: &Conditions,
        confirmation: &Confirmation,
        no_wait: bool,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("cannot promote node {id}");
        self.survey.member(&what, id)?;
        if conditions.force {
            let question = format!("makes node {id} a voter, also if it is not caught up or not reached");
            self.confirm(question, true, confirmation)?;
        }
        let change = MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Voter });
        let request = request(change, conditions);
        let members = match no_wait {
            true => self.ask(&what, request).await?,
            false => self.caught_up(id, request).await.map_err(|error| Failure::of(&what, error))?,
        };
        self.show(&members, format!("node {id} is a voter"), output)
    }

    pub(crate) async fn replace(
        self,
        old: NodeId,
        new: NodeId,
        confirmation: &Confirmation,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("cannot replace node {old} by node {new}");
        let (member, other) = (self.survey.member(&what, old)?, self.survey.member(&what, new)?);
        let question = format!(
            "makes node {new} at {} a voter, and removes node {old} at {} permanently",
            other.address, member.address
        );
        self.confirm(question, false, confirmation)?;
        let promotes = MemberChange::SetRole { id: new, role: MemberRole::Voter };
        let change = MembershipChange::Steps {
            steps: vec![promotes, MemberChange::Remove(old)],
            leave: LeaveJoint::Automatically,
        };
        let members = match self.caught_up(new, change.into()).await {
            Err(ClientError::Answer(MembershipError::Refused(MembershipRefusal::HasRole {
                id,
                role: MemberRole::Voter,
            }))) if id == new => {
                self.ask(&what, MembershipChange::one(MemberChange::Remove(old)).into()).await?
            }
            outcome => outcome.map_err(|error| Failure::of(&what, error))?,
        };
        self.show(&members, format!("node {new} has taken the place of node {old}"), output)
    }

    pub(crate) async fn add(
        self,
        address: &str,
        learner: bool,
        ticket_file: Option<PathBuf>,
        wait: bool,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("cannot add a node at {address}");
        raftify::membership::check_address(address)
            .map_err(|error| Failure::failed(format!("{what}: {error}")))?;
        if let Some(holder) = self.survey.members.iter().find(|member| member.address == address) {
            let text = format!("{what}: node {} is a member at this address already", holder.id);
            return Err(Failure::failed(text).into());
        }
        let reserved = self.client.reserve_node_id().await;
        let (cluster_id, reservation) = reserved.map_err(|error| Failure::of(&what, error))?;
        let (id, role) = (reservation.node_id, if learner { MemberRole::Learner } else { MemberRole::Voter });
        let member = Member { id, address: address.to_owned(), role, incarnation: None };
        let members = self.ask(&what, MembershipChange::one(MemberChange::Add(member)).into()).await?;
        let address_of = |id| members.get(id).map(|member: &Member| member.address.clone());
        let ticket = ClusterJoinTicket {
            cluster_id,
            reserved_id: id,
            raft_addr: address.to_owned(),
            leader_id: reservation.leader,
            leader_addr: address_of(reservation.leader).unwrap_or_else(|| self.at.addresses[0].clone()),
            peers: members.iter().filter(|member| member.id != id).cloned().collect(),
            peer_addr: self.at.addresses[0].clone(),
            role,
            expires_at: 0,
        };
        let ticket = serde_json::to_value(ticket.valid_for(TICKET_LIFETIME))?;
        if let Some(file) = &ticket_file {
            let text = format!("{ticket:#}\n");
            let named = |error: std::io::Error| {
                Failure::failed(format!("node {id} is added, but {}: {error}", file.display()))
            };
            fs::write(file, text).map_err(named)?;
        }
        let members = if wait { self.takes_part(id).await? } else { members };
        if self.at.json {
            let mut value = members_json(&members);
            value["id"] = json!(id);
            value["ticket"] = ticket;
            return Ok(print_json(output, &value)?);
        }
        writeln!(output, "node {id} is added at {address}: {}", how_to_start(wait, ticket_file.is_some()))?;
        if !wait && ticket_file.is_none() {
            writeln!(output, "{ticket:#}")?;
        }
        Ok(print_members(output, Some(&members), None)?)
    }

    pub(crate) async fn transfer(self, to: Option<NodeId>, output: &mut dyn Write) -> Result<(), BoxError> {
        let what = match to {
            Some(id) => format!("cannot transfer leadership to node {id}"),
            None => "cannot transfer leadership".to_owned(),
        };
        if let Some(id) = to {
            self.survey.member(&what, id)?;
        }
        let progress = Progress::begin("waits for the new leader");
        let leader = self.client.transfer_leader(to).await.map_err(|error| Failure::of(&what, error))?;
        drop(progress);
        self.say(json!({ "leader": leader }), format!("node {leader} leads"), output)
    }

    pub(crate) async fn snapshot(
        self,
        id: NodeId,
        timeout: Duration,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("cannot take a snapshot of node {id}");
        self.survey.member(&what, id)?;
        let progress = Progress::begin(format!("node {id} takes a snapshot"));
        let taken = self.client.with_deadline(timeout).make_snapshot(id).await;
        let position = taken.map_err(|error| Failure::of(&what, error))?;
        drop(progress);
        let text = format!("node {id} has taken a snapshot at {position}");
        say(self.at, json!({ "node": id, "position": position }), text, output)
    }

    pub(crate) async fn leave(
        self,
        id: NodeId,
        force: bool,
        confirmation: &Confirmation,
        output: &mut dyn Write,
    ) -> Result<(), BoxError> {
        let what = format!("node {id} cannot leave");
        let member = self.survey.member(&what, id)?;
        let question = format!("makes node {id} at {} leave permanently, and stops it", member.address);
        self.confirm(question, force, confirmation)?;
        let progress = Progress::begin(format!("node {id} leaves"));
        self.client.leave(id, force).await.map_err(|error| Failure::of(&what, error))?;
        drop(progress);
        self.say(json!({ "left": id }), format!("node {id} has left, and stops"), output)
    }

    // --- What the commands share ---

    fn confirm(&self, what: String, force: bool, confirmation: &Confirmation) -> Result<(), Failure> {
        let forced = if force { ", even if the cluster stops for good" } else { "" };
        let of = format!("This {what} (cluster {}){forced}", self.survey.cluster_id);
        confirm(&of, confirmation.yes)
    }

    async fn ask(&self, what: &str, request: MembershipRequest) -> Result<Members, Failure> {
        let progress = Progress::begin("waits for the change");
        let outcome = self.client.change_config(request).await;
        drop(progress);
        outcome.map_err(|error| Failure::of(what, error))
    }

    /// Tries a change again and again while its node is not caught up or not reached.
    async fn caught_up(&self, id: NodeId, request: MembershipRequest) -> Outcome {
        let progress = Progress::begin(format!("waits for node {id}"));
        let (mut reached, mut until) = (LogIndex::ZERO, Instant::now() + PATIENCE);
        loop {
            let outcome = self.client.change_config(request.clone()).await;
            match &outcome {
                Err(ClientError::Answer(MembershipError::NotCaughtUp { matched, last, .. })) => {
                    progress.say(format!("node {id} has the log up to {matched} of {last}"));
                    if *matched > reached {
                        (reached, until) = (*matched, Instant::now() + PATIENCE);
                    }
                }
                Err(ClientError::Answer(MembershipError::NotReached { by, voters, .. })) => {
                    progress.say(format!("node {id} is reached by {} of {voters} voters", by.len()));
                }
                _ => return outcome,
            }
            if Instant::now() >= until {
                return outcome;
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits until an added node votes, or, as a learner, is caught up.
    async fn takes_part(&self, id: NodeId) -> Result<Members, Failure> {
        let progress = Progress::begin(format!("waits for node {id} to be started"));
        let (mut reached, mut until) = (0, Instant::now() + PATIENCE);
        loop {
            let survey = Survey::of_all::<E, S>(self.at).await;
            if let Ok(survey) = &survey
                && let Some(member) = survey.members.get(id)
            {
                let leader = survey.leader();
                let peer = leader.and_then(|leader| leader.progress.iter().find(|peer| peer.id == id));
                let last = leader.map_or(0, |leader| leader.status.last.index.get());
                let matched = peer.map_or(0, |peer| peer.matched.get());
                let is_caught_up = matched > 0 && last.saturating_sub(matched) <= CAUGHT_UP;
                if member.role == MemberRole::Voter || (member.role == MemberRole::Learner && is_caught_up) {
                    return Ok(survey.members.clone());
                }
                if matched > reached {
                    (reached, until) = (matched, Instant::now() + PATIENCE);
                    progress.say(format!("node {id} has the log up to {matched} of {last}"));
                }
            }
            if Instant::now() >= until {
                return Err(Failure::new(
                    Exit::Failed,
                    format!(
                        "node {id} is added, and made no progress for {} min: start it with its ticket, or look at \
                         its log",
                        PATIENCE.as_secs() / 60
                    ),
                ));
            }
            sleep(PAUSE).await;
        }
    }

    fn show(&self, members: &Members, done: String, output: &mut dyn Write) -> Result<(), BoxError> {
        show(self.at, members, Some(done), output)
    }

    fn say(&self, value: Value, text: String, output: &mut dyn Write) -> Result<(), BoxError> {
        say(self.at, value, text, output)
    }
}

fn how_to_start(waited: bool, has_file: bool) -> &'static str {
    match (waited, has_file) {
        (true, _) => "it takes part",
        (false, true) => "start it with the ticket",
        (false, false) => "start it with this ticket, or with a member as its peer",
    }
}

fn request(change: MembershipChange, conditions: &Conditions) -> MembershipRequest {
    let request = MembershipRequest::from(change);
    let request = if conditions.force { request.forced() } else { request };
    conditions.expect.map_or(request.clone(), |index| request.expecting(LogIndex(index)))
}

fn say(at: &Addresses, value: Value, text: String, output: &mut dyn Write) -> Result<(), BoxError> {
    match at.json {
        true => Ok(print_json(output, &value)?),
        false => Ok(writeln!(output, "{text}")?),
    }
}

/// What was done, and the members.
pub(crate) fn show(
    at: &Addresses,
    members: &Members,
    done: Option<String>,
    output: &mut dyn Write,
) -> Result<(), BoxError> {
    if at.json {
        return Ok(print_json(output, &members_json(members))?);
    }
    if let Some(done) = done {
        writeln!(output, "{done}")?;
    }
    Ok(print_members(output, Some(members), None)?)
}
