//! The commands for a live cluster: they find the leader by themselves, ask before they do what cannot be
//! undone, and say what they did.

mod change;
mod confirm;
mod events;
pub(crate) mod progress;
mod status;
pub(crate) mod survey;

use std::io::Write;
use std::time::Duration;

use raftify::{BoxError, LogEntry, StateMachine};

use self::change::{Change, show};
use self::survey::Survey;
use crate::arguments::{Addresses, Cluster};

pub(crate) fn run<Entry, FSM>(what: Cluster, output: &mut dyn Write) -> Result<(), BoxError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(carry_out::<Entry, FSM>(what, output));
    // A lookup of a name may still block a thread of it.
    runtime.shutdown_background();
    outcome
}

async fn carry_out<E, S>(what: Cluster, output: &mut dyn Write) -> Result<(), BoxError>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    match what {
        Cluster::Status { at } => status::run::<E, S>(&at, output).await,
        Cluster::Members { at } => {
            let survey = Survey::of_given::<E, S>(&at).await?;
            show(&at, &survey.members, None, output)
        }
        Cluster::Add { address, at, learner, ticket, wait } => {
            change::<E, S>(&at).await?.add(&address, learner, ticket, wait, output).await
        }
        Cluster::Remove { id, at, conditions, confirmation } => {
            change::<E, S>(&at).await?.remove(id, &conditions, &confirmation, output).await
        }
        Cluster::Promote { id, at, conditions, confirmation, no_wait } => {
            change::<E, S>(&at).await?.promote(id, &conditions, &confirmation, no_wait, output).await
        }
        Cluster::Demote { id, at, conditions, confirmation } => {
            change::<E, S>(&at).await?.demote(id, &conditions, &confirmation, output).await
        }
        Cluster::Replace { old, new, at, confirmation } => {
            change::<E, S>(&at).await?.replace(old, new, &confirmation, output).await
        }
        Cluster::Transfer { at, to } => change::<E, S>(&at).await?.transfer(to, output).await,
        Cluster::Snapshot { id, at, timeout } => {
            change::<E, S>(&at).await?.snapshot(id, Duration::from_secs(timeout), output).await
        }
        Cluster::Leave { id, at, force, confirmation } => {
            change::<E, S>(&at).await?.leave(id, force, &confirmation, output).await
        }
        Cluster::Events { at, node, count } => events::run::<E, S>(&at, &node, count, output).await,
    }
}

async fn change<E, S>(at: &Addresses) -> Result<Change<'_, E, S>, BoxError>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    Ok(Change::begin(at).await?)
}
