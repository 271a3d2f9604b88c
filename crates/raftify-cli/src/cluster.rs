//! Shows and changes the members of a live cluster.

use std::io::Write;

use raftify::membership::{MemberChange, MemberRole, Members, MembershipChange, MembershipRequest};
use raftify::status::LogIndex;
use raftify::{BoxError, LogEntry, RaftClient, StateMachine};
use serde_json::json;

use crate::arguments::{Addresses, Cluster, Conditions};
use crate::output::{print_json, print_members};

pub(crate) fn run<Entry, FSM>(what: Cluster, output: &mut dyn Write) -> Result<(), BoxError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(carry_out::<Entry, FSM>(what, output))
}

async fn carry_out<Entry, FSM>(what: Cluster, output: &mut dyn Write) -> Result<(), BoxError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let client = |at: &Addresses| -> Result<_, BoxError> {
        let client = RaftClient::<Entry, FSM>::new(at.addresses.clone())?;
        Ok(match at.tls.tls() {
            Some(tls) => client.with_tls(&tls)?,
            None => client,
        })
    };
    match what {
        Cluster::Members { at } => {
            let status = client(&at)?.inspect().await?.status;
            show(&status.members, None, &at, output)
        }
        Cluster::Remove { id, at, conditions } => {
            let change = MembershipChange::one(MemberChange::Remove(id));
            let members = client(&at)?.change_config(request(change, &conditions)).await?;
            show(&members, Some(format!("node {id} is removed")), &at, output)
        }
        Cluster::Promote { id, at, conditions } => {
            let change = MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Voter });
            let members = client(&at)?.change_config(request(change, &conditions)).await?;
            show(&members, Some(format!("node {id} is a voter")), &at, output)
        }
        Cluster::Demote { id, at, conditions } => {
            let change = MembershipChange::one(MemberChange::SetRole { id, role: MemberRole::Learner });
            let members = client(&at)?.change_config(request(change, &conditions)).await?;
            show(&members, Some(format!("node {id} is a learner")), &at, output)
        }
        Cluster::Replace { old, new, at } => {
            let members = client(&at)?.replace(old, new).await?;
            show(&members, Some(format!("node {new} has taken the place of node {old}")), &at, output)
        }
    }
}

fn request(change: MembershipChange, conditions: &Conditions) -> MembershipRequest {
    let request = MembershipRequest::from(change);
    let request = if conditions.force { request.forced() } else { request };
    conditions.expect.map_or(request.clone(), |index| request.expecting(LogIndex(index)))
}

fn show(
    members: &Members,
    done: Option<String>,
    at: &Addresses,
    output: &mut dyn Write,
) -> Result<(), BoxError> {
    if at.json {
        let list: Vec<_> = members
            .iter()
            .map(|member| json!({ "id": member.id, "address": member.address, "role": member.role, "incarnation": member.incarnation }))
            .collect();
        let value = json!({ "as_of": members.as_of(), "joint": members.is_joint(), "members": list });
        return Ok(print_json(output, &value)?);
    }
    if let Some(done) = done {
        writeln!(output, "{done}")?;
    }
    Ok(print_members(output, Some(members), None)?)
}
