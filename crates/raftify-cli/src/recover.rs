//! Shows what the survivors of a lost majority have, says which one to recover, and recovers it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use raftify::client::ClientError;
use raftify::membership::Members;
use raftify::status::Identity;
use raftify::storage::{RecoverError, Recovery, StorageError, Survivor, choose_survivor, recover_directory};
use raftify::tls::Tls;
use raftify::{BoxError, LogEntry, Member, NodeId, RaftClient, StateMachine};
use tokio::task::JoinSet;

use crate::arguments::Recover;
use crate::output::{print_facts, print_members, with_advice};

/// How long the members may take to answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// The answer of a member's address.
enum Answer {
    /// Nothing of a node.
    None,
    /// The member is alive, or a node that refuses to say who it is.
    Alive,
    /// The same directory, in another cluster: it was recovered and started.
    Recovered(Identity),
}

pub(crate) fn run<Entry, FSM>(what: Recover, output: &mut dyn Write) -> Result<(), BoxError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    if let ([only], true) = (what.directories.as_slice(), what.apply)
        && let Err(RecoverError::Storage(StorageError::Interrupted { .. })) = Survivor::read(only)
    {
        writeln!(output, "a recovery of {} was interrupted: it is continued", only.display())?;
        return applied(&recover_directory(only)?, only, output);
    }
    let mut survivors = Vec::new();
    for directory in &what.directories {
        survivors.push(Survivor::read(directory).map_err(|error| advice(directory, error))?);
    }
    let chosen = choose_survivor(&survivors)?;
    for survivor in &survivors {
        show(survivor, output)?;
    }
    writeln!(output, "{}", reason(chosen, &survivors))?;
    loss(chosen, output)?;
    let alive = look_for_members::<Entry, FSM>(chosen, &survivors, what.tls.tls(), output)?;
    let here: BTreeSet<NodeId> = survivors.iter().map(|survivor| survivor.identity.node_id).collect();
    let present: BTreeSet<NodeId> = alive.union(&here).copied().collect();
    if is_majority(&chosen.members, &present) {
        let nodes: Vec<String> = present.iter().map(NodeId::to_string).collect();
        return Err(format!(
            "the majority is not lost: nodes {} answer, or their directories are here. Start these nodes on \
             their directories instead; nothing was changed",
            nodes.join(", ")
        )
        .into());
    }
    if !what.apply {
        let directory = chosen.directory.display();
        writeln!(output, "nothing was changed; to recover {directory}, add --apply to this command")?;
        return Ok(());
    }
    output.flush()?;
    applied(&recover_directory(&chosen.directory)?, &chosen.directory, output)
}

fn advice(directory: &Path, error: RecoverError) -> BoxError {
    match error {
        RecoverError::Storage(error) => with_advice(directory, error),
        other => other.into(),
    }
}

fn show(survivor: &Survivor, output: &mut dyn Write) -> Result<(), BoxError> {
    let Survivor { directory, storage, identity, members, state, .. } = survivor;
    let hard_state = state.hard_state;
    let snapshot = state.snapshot.as_ref();
    // What a node with a state machine in memory has applied when it starts.
    let applied = snapshot.map_or(state.truncated, |snapshot| snapshot.position);
    print_facts(
        output,
        &[
            ("directory", directory.display().to_string()),
            ("storage", storage.to_string()),
            ("cluster", identity.cluster_id.to_string()),
            ("node", format!("{} (incarnation {})", identity.node_id, identity.incarnation)),
            ("term", hard_state.term.to_string()),
            ("vote", hard_state.vote.map_or("none".to_owned(), |vote| format!("node {vote}"))),
            ("last entry", state.last.to_string()),
            ("known to be committed", hard_state.commit.to_string()),
            ("applied in the snapshot", applied.index.to_string()),
            ("snapshot", snapshot.map_or("none".to_owned(), |snapshot| snapshot.position.to_string())),
        ],
    )?;
    Ok(print_members(output, Some(members), None)?)
}

/// Which survivor to recover, and why.
fn reason(chosen: &Survivor, survivors: &[Survivor]) -> String {
    let (node, directory) = (chosen.identity.node_id, chosen.directory.display());
    let others = survivors.iter().filter(|survivor| survivor.directory != chosen.directory);
    let last = chosen.state.last;
    let best = others.map(|survivor| survivor.state.last).max();
    let why = match best {
        None => "it is the only one here".to_owned(),
        Some(other) if other == last => format!("none has a later last entry than {last}"),
        Some(other) if other.term == last.term => {
            format!("its log is the longest of those that end in term {}: {last}", last.term)
        }
        Some(_) => format!("its last entry has the highest term: {last}"),
    };
    format!("recover node {node}, in {directory}: {why}, as an election would decide")
}

fn loss(chosen: &Survivor, output: &mut dyn Write) -> Result<(), BoxError> {
    let state = &chosen.state;
    let unknown = state.last.index.get() - state.hard_state.commit.get().min(state.last.index.get());
    writeln!(
        output,
        "what may be lost: the entries that only the lost nodes may have had cannot be known. Writes that \
         were acknowledged and are not in this log are lost"
    )?;
    if unknown > 0 {
        writeln!(
            output,
            "its last {unknown} entries are not known to be committed: they are kept, and become committed, \
             also if their clients were told nothing"
        )?;
    }
    Ok(())
}

/// Asks all members but those whose directories are here. Returns those that are alive.
fn look_for_members<Entry, FSM>(
    chosen: &Survivor,
    survivors: &[Survivor],
    tls: Option<Tls>,
    output: &mut dyn Write,
) -> Result<BTreeSet<NodeId>, BoxError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = chosen.identity;
    let answers = runtime.block_on(async {
        let mut asked = JoinSet::new();
        for member in chosen.members.iter().cloned() {
            let tls = tls.clone();
            asked.spawn(async move {
                let answer = ask::<Entry, FSM>(&member, cluster, tls.as_ref()).await;
                (member, answer)
            });
        }
        asked.join_all().await
    });
    let mut alive = BTreeSet::new();
    for (member, answer) in answers {
        let Member { id, address, .. } = member;
        match answer? {
            Answer::None => {}
            Answer::Alive => {
                writeln!(output, "node {id} answers at {address}")?;
                alive.insert(id);
            }
            Answer::Recovered(identity) => {
                return Err(format!(
                    "at {address} answers {identity}: node {id} was recovered already, and runs. Let the \
                     other nodes join it with empty directories; nothing was changed"
                )
                .into());
            }
        }
    }
    let here = |id: NodeId| survivors.iter().any(|survivor| survivor.identity.node_id == id);
    let silent: Vec<String> = chosen
        .members
        .iter()
        .filter(|member| !alive.contains(&member.id) && !here(member.id))
        .map(|member| format!("node {} at {}", member.id, member.address))
        .collect();
    if !silent.is_empty() {
        let seconds = DEADLINE.as_secs();
        writeln!(output, "no answer within {seconds} s: {}", silent.join(", "))?;
    }
    Ok(alive)
}

async fn ask<Entry, FSM>(member: &Member, own: Identity, tls: Option<&Tls>) -> Result<Answer, BoxError>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    let client = RaftClient::<Entry, FSM>::new([member.address.clone()])?.with_deadline(DEADLINE);
    let client = match tls {
        Some(tls) => client.with_tls(tls)?,
        None => client,
    };
    let identity = match tokio::time::timeout(DEADLINE, client.inspect()).await {
        Ok(Ok(inspection)) => inspection.status.identity,
        // It listens, and wants a certificate.
        Ok(Err(ClientError::Rejected(_))) => return Ok(Answer::Alive),
        Ok(Err(_)) | Err(_) => None,
    };
    let Some(found) = identity.filter(|found| found.node_id == member.id) else {
        return Ok(Answer::None);
    };
    let is_same_directory = member.incarnation == Some(found.incarnation)
        || (found == Identity { cluster_id: found.cluster_id, ..own });
    Ok(match found.cluster_id == own.cluster_id {
        true => Answer::Alive,
        false if is_same_directory => Answer::Recovered(found),
        false => Answer::None,
    })
}

/// Whether these nodes can elect a leader.
fn is_majority(members: &Members, present: &BTreeSet<NodeId>) -> bool {
    let configuration = members.configuration();
    [configuration.voters, configuration.voters_outgoing]
        .iter()
        .filter(|voters| !voters.is_empty())
        .all(|voters| voters.intersection(present).count() > voters.len() / 2)
}

fn applied(recovery: &Recovery, directory: &Path, output: &mut dyn Write) -> Result<(), BoxError> {
    let Recovery { from, to, original, state, .. } = recovery;
    let path = directory.display();
    writeln!(
        output,
        "{path} is recovered: {from} is now {to}, its only member, with the log up to {}",
        state.last
    )?;
    writeln!(output, "the directory as it was before is kept in {}", original.display())?;
    writeln!(
        output,
        "start node {} on it. Let new nodes join with empty directories; the former members are refused",
        to.node_id
    )?;
    Ok(())
}
