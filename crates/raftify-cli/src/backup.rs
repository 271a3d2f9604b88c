//! Copies and verifies backups, and makes a new cluster from one.

use std::io::Write;

use raftify::storage::{
    RestoreInto, Restored, SnapshotMeta, copy_newest_snapshot, restore_directories, verify_snapshot_file,
};
use raftify::{BoxError, Member, NodeId};

use crate::arguments::{Backup, Restore};
use crate::output::{print_facts, print_members, with_advice};

pub(crate) fn run(what: &Backup, output: &mut dyn Write) -> Result<(), BoxError> {
    match what {
        Backup::Copy { path, file } => {
            let (meta, bytes) = copy_newest_snapshot(path, file).map_err(|error| with_advice(path, error))?;
            let (file, position) = (file.display(), meta.position);
            writeln!(
                output,
                "{file} is a backup of cluster {} up to {position}: {bytes} bytes",
                meta.cluster_id
            )?;
        }
        Backup::Verify { file } => {
            let (meta, bytes) = verify_snapshot_file(file)?;
            writeln!(output, "{} is sound", file.display())?;
            show(&meta, bytes, output)?;
        }
    }
    Ok(())
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
