//! The commands that describe a directory or a node.

use std::error::Error;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use raftify::client::ClientError;
use raftify::error::ReadError;
use raftify::formatter::{CustomFormatter, hex_and_text};
use raftify::membership::{MemberRecord, Members, MembershipChange};
use raftify::status::{Inspection, LogIndex};
use raftify::storage::{Entry, EntryKind, LogReader, ReadOnlyStorage};
use raftify::tls::Tls;
use raftify::{BoxError, LogEntry, Member, NodeId, RaftClient, StateMachine};
use serde_json::{Value, json};

use crate::arguments::{Describe, Form};
use crate::output::{hex, print_facts, print_json, print_members, table, with_advice};

/// The number of entries in a table without a limit.
const TABLE_ENTRIES: u64 = 100;
/// How much of a log is read at once.
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long a live node may take to describe itself.
const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) fn run<E, FSM>(
    what: Describe,
    formatter: &impl CustomFormatter<E, FSM>,
    output: &mut dyn Write,
) -> Result<(), BoxError>
where
    E: LogEntry,
    FSM: StateMachine<LogEntry = E>,
{
    match what {
        Describe::Logs { path, from, limit, form } => {
            logs(&path, from, limit, form.form(), formatter, output)
        }
        Describe::Metadata { path, form } => metadata(&path, form.form(), output),
        Describe::Snapshot { path, form } => snapshot(&path, form.form(), formatter, output),
        Describe::Node { address, form, tls } => {
            node::<E, FSM>(&address, tls.tls().as_ref(), form.form(), output)
        }
    }
}

fn open(path: &Path) -> Result<ReadOnlyStorage, BoxError> {
    ReadOnlyStorage::open(path).map_err(|error| with_advice(path, error))
}

fn logs<E, FSM>(
    path: &Path,
    from: Option<u64>,
    limit: Option<u64>,
    form: Form,
    formatter: &impl CustomFormatter<E, FSM>,
    output: &mut dyn Write,
) -> Result<(), BoxError>
where
    E: LogEntry,
    FSM: StateMachine<LogEntry = E>,
{
    let storage = open(path)?;
    let stored = storage.load()?;
    let reader = storage.log_reader();
    let first = stored.truncated.index.next();
    let end = stored.last.index.next();
    let from = from.map_or(first, LogIndex);
    if from < first {
        return Err(format!("the log begins at {first}: use --from {first}").into());
    }
    let limit = limit.unwrap_or(if form == Form::Table { TABLE_ENTRIES } else { u64::MAX });
    let until = LogIndex(from.get().saturating_add(limit)).min(end);

    let mut shown = table(["index", "term", "kind", "bytes", "entry"]);
    let mut next = from;
    while next < until {
        for entry in reader.read(next, until, READ_BYTES_MAX)? {
            next = entry.position.index.next();
            let text = || describe_entry(&entry, formatter);
            let (index, term) = (entry.position.index, entry.position.term);
            let (kind, bytes) = (kind(entry.kind), entry.payload.len());
            match form {
                Form::Table => {
                    shown.add_row([
                        index.to_string(),
                        term.to_string(),
                        kind.to_owned(),
                        bytes.to_string(),
                        text(),
                    ]);
                }
                Form::Json => {
                    let line = json!({
                        "index": index, "term": term, "kind": kind, "payload": hex(&entry.payload), "text": text(),
                    });
                    writeln!(output, "{line}")?;
                }
                Form::Raw => {
                    writeln!(output, "{index} {term} {} {}", entry.kind.number(), hex(&entry.payload))?
                }
            }
        }
    }
    if form == Form::Table {
        if !shown.is_empty() {
            writeln!(output, "{shown}")?;
        }
        let count = end.get() - first.get();
        match (count, until < end) {
            (0, _) => writeln!(output, "the log is empty; the next index is {first}")?,
            (_, true) => writeln!(output, "{} more, show them with --from {until}", end.get() - until.get())?,
            (_, false) => writeln!(output, "the log ends at {}", stored.last)?,
        }
    }
    Ok(())
}

fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Empty => "empty",
        EntryKind::User => "user",
        EntryKind::MembershipChange => "membership change",
        EntryKind::MemberRecord => "member record",
    }
}

fn describe_entry<E, FSM>(entry: &Entry, formatter: &impl CustomFormatter<E, FSM>) -> String
where
    E: LogEntry,
    FSM: StateMachine<LogEntry = E>,
{
    let bytes = &entry.payload;
    let undecodable = |error: &dyn Error| format!("cannot be decoded, {error}: {}", hex_and_text(bytes));
    match entry.kind {
        EntryKind::Empty => String::new(),
        EntryKind::User => unless_it_panics(|| {
            E::decode(bytes).map_or_else(
                |error| undecodable(&*error),
                |user_entry| formatter.format_entry(&user_entry, bytes),
            )
        })
        .unwrap_or_else(|| format!("its decoder or formatter panicked: {}", hex_and_text(bytes))),
        EntryKind::MembershipChange => MembershipChange::decode(bytes)
            .map_or_else(|error| undecodable(&error), |change| change.to_string()),
        EntryKind::MemberRecord => match MemberRecord::decode(bytes) {
            Ok(MemberRecord::ReserveNodeId) => "reserve the next node id".to_owned(),
            Ok(MemberRecord::Address { id, address, .. }) => format!("node {id} is at {address}"),
            Ok(MemberRecord::Incarnation { id, incarnation }) => {
                format!("node {id} has incarnation {incarnation}")
            }
            Err(error) => undecodable(&error),
        },
    }
}

/// Calls the user's code. A panic of it has been printed already, and does not end the output.
fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Option<T> {
    // Its panic payload is the user's as well, and may panic when it is dropped.
    catch_unwind(AssertUnwindSafe(work)).map_err(std::mem::forget).ok()
}

fn metadata(path: &Path, form: Form, output: &mut dyn Write) -> Result<(), BoxError> {
    let storage = open(path)?;
    let (kind, stored) = (storage.kind(), storage.load()?);
    let first = stored.truncated.index.next();
    let snapshot = stored.snapshot.as_ref().map(|snapshot| snapshot.position);
    match form {
        Form::Raw => writeln!(output, "{stored:#?}")?,
        Form::Json => print_json(
            output,
            &json!({
                "storage": kind.name(),
                "identity": stored.identity,
                "term": stored.hard_state.term,
                "vote": stored.hard_state.vote,
                "commit": stored.hard_state.commit,
                "log": { "first": first, "last": stored.last },
                "snapshot": snapshot,
                "members": stored.members.as_ref().map(members_json),
            }),
        )?,
        Form::Table => {
            let log = if stored.last.index < first {
                format!("empty; the next index is {first}")
            } else {
                format!("from {first} to {}", stored.last)
            };
            print_facts(
                output,
                &[
                    ("storage", kind.to_string()),
                    (
                        "identity",
                        stored
                            .identity
                            .map_or("none: never used".to_owned(), |identity| identity.to_string()),
                    ),
                    ("term", stored.hard_state.term.to_string()),
                    ("vote", stored.hard_state.vote.map_or("none".to_owned(), |id| format!("node {id}"))),
                    ("commit", stored.hard_state.commit.to_string()),
                    ("log", log),
                    ("snapshot", snapshot.map_or("none".to_owned(), |position| position.to_string())),
                ],
            )?;
            print_members(output, stored.members.as_ref(), None)?;
        }
    }
    Ok(())
}

fn snapshot<E, FSM>(
    path: &Path,
    form: Form,
    formatter: &impl CustomFormatter<E, FSM>,
    output: &mut dyn Write,
) -> Result<(), BoxError>
where
    E: LogEntry,
    FSM: StateMachine<LogEntry = E>,
{
    let storage = open(path)?;
    let Some(newest) = storage.load()?.snapshot else {
        return Err(format!("{}: no snapshot has been taken yet", path.display()).into());
    };
    let (meta, bytes, mut data) = storage.open_snapshot(newest.position)?;
    if form == Form::Raw {
        io::copy(&mut data, output)?;
        return Ok(());
    }
    let text = describe_snapshot(&mut data, formatter)?;
    // Reads also the rest that the formatter left, so that damage anywhere is detected.
    io::copy(&mut data, &mut io::sink())?;
    if form == Form::Json {
        let json = json!({
            "cluster_id": meta.cluster_id,
            "position": meta.position,
            "bytes": bytes,
            "members": members_json(&meta.members),
            "text": text,
        });
        return Ok(print_json(output, &json)?);
    }
    print_facts(
        output,
        &[
            ("cluster", meta.cluster_id.to_string()),
            ("up to", meta.position.to_string()),
            ("size", format!("{bytes} bytes")),
        ],
    )?;
    print_members(output, Some(&meta.members), None)?;
    writeln!(output, "{text}")?;
    Ok(())
}

fn describe_snapshot<E, FSM>(
    data: &mut dyn Read,
    formatter: &impl CustomFormatter<E, FSM>,
) -> Result<String, BoxError>
where
    E: LogEntry,
    FSM: StateMachine<LogEntry = E>,
{
    let text = unless_it_panics(|| formatter.format_snapshot(data));
    Ok(text.ok_or("the formatter panicked on the snapshot: show its bytes with --raw")??)
}

fn node<E, FSM>(address: &str, tls: Option<&Tls>, form: Form, output: &mut dyn Write) -> Result<(), BoxError>
where
    E: LogEntry,
    FSM: StateMachine<LogEntry = E>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = RaftClient::<E, FSM>::new([address])?.with_deadline(DEADLINE);
    let client = match tls {
        Some(tls) => client.with_tls(tls)?,
        None => client,
    };
    let inspection = runtime.block_on(client.inspect()).map_err(|error| {
        let reason = match error {
            ClientError::Answer(ReadError::ConnectionLost(reason)) => reason,
            ClientError::Answer(ReadError::TimedOut(after)) => {
                format!("no answer within {} s", after.as_secs())
            }
            error => return BoxError::from(error),
        };
        format!("{address} does not answer as a node of raftify: {reason}").into()
    })?;
    let Inspection { status, progress, .. } = &inspection;
    match form {
        Form::Raw => writeln!(output, "{inspection:#?}")?,
        Form::Json => {
            let mut json = serde_json::to_value(&inspection)?;
            json["status"]["members"] = members_json(&status.members);
            print_json(output, &json)?;
        }
        Form::Table => {
            let leader = match (status.leader_hint(), status.leader_id) {
                (Some(leader), _) => format!("node {} at {}", leader.id, leader.address),
                (None, Some(id)) => format!("node {id}"),
                (None, None) => "none known".to_owned(),
            };
            print_facts(
                output,
                &[
                    ("node", status.node_id.to_string()),
                    (
                        "identity",
                        status.identity.map_or("none yet".to_owned(), |identity| identity.to_string()),
                    ),
                    ("role", status.role.to_string()),
                    ("term", status.term.to_string()),
                    ("leader", leader),
                    ("committed", status.commit.to_string()),
                    ("applied", status.applied.to_string()),
                    ("on disk", inspection.durable.to_string()),
                    ("log", format!("from {} to {}", status.truncated.index.next(), status.last)),
                    ("snapshot", status.snapshot.map_or("none".to_owned(), |position| position.to_string())),
                    ("proposals waiting", inspection.proposals_waiting.to_string()),
                    ("reads waiting", inspection.reads_waiting.to_string()),
                    ("entries in memory", format!("{} bytes", inspection.log_cache_bytes)),
                    ("full disks", full_disks(&inspection.storage_full)),
                ],
            )?;
            print_members(output, Some(&status.members), Some(progress))?;
        }
    }
    Ok(())
}

fn full_disks(full: &[NodeId]) -> String {
    match full {
        [] => "none known".to_owned(),
        full => format!("of node {}", full.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn members_json(members: &Members) -> Value {
    let list: Vec<&Member> = members.iter().collect();
    json!({ "as_of": members.as_of(), "joint": members.is_joint(), "list": list })
}

#[cfg(test)]
mod tests {
    use raftify::{LogPosition, Snapshot};

    use super::*;

    struct Nothing;

    impl StateMachine for Nothing {
        type LogEntry = u8;
        type Reply = ();

        fn apply(&mut self, _: LogPosition, _: u8) -> Result<(), BoxError> {
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
            Ok(Snapshot::from_value(()))
        }

        fn restore(&mut self, _: &mut dyn Read) -> Result<(), BoxError> {
            Ok(())
        }
    }

    struct Panics;

    impl CustomFormatter<u8, Nothing> for Panics {
        fn format_entry(&self, _: &u8, _: &[u8]) -> String {
            panic!("on purpose")
        }

        fn format_snapshot(&self, _: &mut dyn Read) -> io::Result<String> {
            panic!("on purpose")
        }
    }

    #[test]
    fn what_a_formatter_panics_on_is_shown_as_bytes_or_is_an_error() {
        let payload = 7_u8.encode().unwrap();
        let entry = Entry { position: LogPosition::new(1, 1), kind: EntryKind::User, payload };
        assert_eq!(describe_entry(&entry, &Panics), "its decoder or formatter panicked: 07  |.|");
        let error = describe_snapshot(&mut io::empty(), &Panics).unwrap_err().to_string();
        assert_eq!(error, "the formatter panicked on the snapshot: show its bytes with --raw");
    }
}
