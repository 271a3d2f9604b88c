//! Makes, copies and verifies backups, and makes a new cluster from one.

use std::io::Write;
use std::path::Path;

use raftify::client::{BackupOptions, BackupProgress};
use raftify::storage::{
    RestoreInto, Restored, SnapshotMeta, copy_newest_snapshot, restore_directories, verify_snapshot_file,
};
use raftify::{BoxError, LogEntry, Member, NodeId, StateMachine};
use serde_json::json;

use crate::arguments::{Addresses, Backup, BackupCommand, Restore, Save};
use crate::cluster::progress::Progress;
use crate::cluster::survey::client;
use crate::failure::Failure;
use crate::output::{members_json, print_facts, print_json, print_members, with_advice};

pub(crate) fn run<E, S>(what: Backup, output: &mut dyn Write) -> Result<(), BoxError>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    match what {
        Backup { command: Some(BackupCommand::Copy { path, file }), .. } => {
            let copied = copy_newest_snapshot(&path, &file).map_err(|error| with_advice(&path, error));
            let (meta, bytes) = copied?;
            say_made(&file, &meta, bytes, output)
        }
        Backup { command: Some(BackupCommand::Verify { file }), .. } => {
            let (meta, bytes) = verify_snapshot_file(&file)?;
            writeln!(output, "{} is sound", file.display())?;
            show(&meta, bytes, output)
        }
        Backup { command: None, save } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let outcome = runtime.block_on(save_remote::<E, S>(save, output));
            // A lookup of a name may still block a thread of it.
            runtime.shutdown_background();
            outcome
        }
    }
}

async fn save_remote<E, S>(save: Save, output: &mut dyn Write) -> Result<(), BoxError>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let (Some(address), Some(file)) = (save.address, save.file) else {
        return Err("name the address of a member, and the new file".into());
    };
    let at = Addresses { addresses: vec![address.clone()], json: save.json, tls: save.tls };
    let options = BackupOptions { newest: save.newest, resume: save.resume, bytes_per_second_max: save.rate };
    let client = client::<E, S>(&at, [address.clone()])?;
    let progress = Progress::begin(format!("connects to {address}"));
    let saved = client.backup(&file, &options, |step| tell(&progress, &step)).await;
    drop(progress);
    let what = format!("cannot back up the member at {address}");
    let (meta, bytes) = saved.map_err(|error| Failure::of_backup(&what, error))?;
    if !at.json {
        return say_made(&file, &meta, bytes, output);
    }
    let mut value = members_json(&meta.members);
    value["file"] = json!(file);
    value["cluster_id"] = json!(meta.cluster_id);
    value["position"] = json!(meta.position);
    value["data_bytes"] = json!(bytes);
    Ok(print_json(output, &value)?)
}

fn tell(progress: &Progress, step: &BackupProgress) {
    match step {
        BackupProgress::Waiting => progress.say("waits for the snapshot"),
        BackupProgress::Begins { position, bytes: 0, of } => {
            progress.say(format!("copies the snapshot at {position}: {of} bytes"));
        }
        BackupProgress::Begins { position, bytes, of } => {
            progress.note(&format!("continues the snapshot at {position} after {bytes} of {of} bytes"));
        }
        BackupProgress::Copied { bytes, of } => progress.say(format!("{bytes} of {of} bytes")),
        BackupProgress::Interrupted { reason } => progress.note(&format!("tries again: {reason}")),
        BackupProgress::BeginsAgain { discarded, position } => progress.note(&format!(
            "the member no longer has the snapshot at {discarded}: begins again, with the one at {position}"
        )),
        _ => {}
    }
}

fn say_made(file: &Path, meta: &SnapshotMeta, bytes: u64, output: &mut dyn Write) -> Result<(), BoxError> {
    let (file, cluster, position) = (file.display(), meta.cluster_id, meta.position);
    Ok(writeln!(output, "{file} is a backup of cluster {cluster} up to {position}: {bytes} bytes")?)
}

fn show(meta: &SnapshotMeta, bytes: u64, output: &mut dyn Write) -> Result<(), BoxError> {
    print_facts(
        output,
        &[
            ("cluster", meta.cluster_id.to_string()),
            ("up to", meta.position.to_string()),
            ("size", format!("{bytes} bytes")),
        ],
    )?;
    Ok(print_members(output, Some(&meta.members), None)?)
}

pub(crate) fn restore(what: &Restore, output: &mut dyn Write) -> Result<(), BoxError> {
    let (directories, addresses) = (what.directories.len(), what.members.len());
    if directories != addresses {
        return Err(format!(
            "there are {directories} directories and {addresses} addresses in --members: name one address \
             for each directory, in the same order"
        )
        .into());
    }
    let numbers = (1..).filter_map(NodeId::new);
    let nodes = what.directories.iter().zip(&what.members).zip(numbers);
    let into: Vec<RestoreInto> = nodes
        .map(|((directory, address), id)| RestoreInto {
            directory: directory.clone(),
            member: Member::voter(id, address),
        })
        .collect();
    let Restored { cluster_id, from, members, .. } = restore_directories(&what.file, &into, what.to.into())?;
    let (file, former, position) = (what.file.display(), from.cluster_id, from.position);
    writeln!(
        output,
        "{file}, of cluster {former} up to {position}, is restored as the new cluster {cluster_id}"
    )?;
    for RestoreInto { directory, member } in &into {
        writeln!(output, "start node {} at {} on {}", member.id, member.address, directory.display())?;
    }
    Ok(print_members(output, Some(&members), None)?)
}
