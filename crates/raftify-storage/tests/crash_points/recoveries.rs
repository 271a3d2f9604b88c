//! Recoveries and restores, cut everywhere.

use std::fs;

use raftify_core::storage::StoredState;
use raftify_core::{Member, NodeId, StorageError};
use raftify_storage::{
    RecoverError, RestoreInto, copy_newest_snapshot, recover_directory_with, restore_directories_with,
};

use super::disk::Image;
use super::points::{Kind, NODE, SETTINGS, Tried, carry_out, load, stopped};
use super::recorder;
use super::workload::{Content, Workload};

impl Tried {
    /// A recovery, cut everywhere: the directory is that of the former cluster or that of the new one, whole,
    /// or no node can open it; and the recovery can be run again.
    pub(super) fn recovery<K: Kind>(&mut self, seed: u64) {
        let workload = Workload::new(seed, self.extent.steps);
        let root = self.root("live", &Image::new());
        recorder::start(&root, Image::new());
        let (mut storage, _) = load::<K>(&root.join(NODE)).unwrap();
        for step in &workload.steps {
            carry_out(&mut storage, step).unwrap();
        }
        drop(storage);
        let before = stopped(&root).live;
        recorder::start(&root, before);
        recover_directory_with(root.join(NODE), SETTINGS).unwrap();
        let recovered = recorder::length();
        let recording = stopped(&root);
        let former = workload.contents.last().unwrap();
        let what = format!("a recovery with {}, seed {seed}", K::KIND);
        let cuts = self.cut_everywhere(&what, seed, &recording, |tried, length, image, _| {
            let directory = tried.root("cut", image).join(NODE);
            match load::<K>(&directory).map(|(_, found)| found) {
                Ok(found) if found == *former && length == recovered => {
                    return Err("it was not recovered".to_owned());
                }
                Ok(found) if found == *former => {}
                Ok(found) => is_recovered(former, &found)?,
                Err(StorageError::Interrupted { .. }) if length < recovered => {}
                Err(error) => return Err(error.to_string()),
            }
            match recover_directory_with(&directory, SETTINGS) {
                Ok(_) | Err(RecoverError::AlreadyRecovered { .. }) => {}
                Err(error) => return Err(format!("recovered again: {error}")),
            }
            let found = load::<K>(&directory).map_err(|error| error.to_string())?.1;
            is_recovered(former, &found)?;
            let kept = load::<K>(&directory.join("before-recovery")).map_err(|error| error.to_string())?.1;
            if kept != *former {
                return Err(format!("the former content is not kept: {:?}", kept.0));
            }
            Ok(())
        });
        self.report(&what, &recording, cuts);
    }

    /// A restore, cut everywhere: no node can open the directory, or it is whole, or it was not begun; and
    /// the restore can be run again.
    pub(super) fn restore<K: Kind>(&mut self, seed: u64) {
        let workload = Workload::new(seed, self.extent.steps);
        let root = self.root("live", &Image::new());
        recorder::start(&root, Image::new());
        let (mut storage, _) = load::<K>(&root.join(NODE)).unwrap();
        for step in &workload.steps {
            carry_out(&mut storage, step).unwrap();
        }
        drop(storage);
        stopped(&root);
        let backup = self.root("backup", &Image::new()).join("a.backup");
        let (meta, _) = copy_newest_snapshot(root.join(NODE), &backup).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let into = |directory| {
            [RestoreInto { directory, member: Member::voter(NodeId::FIRST, "new.example:60061") }]
        };

        let root = self.root("live", &Image::new());
        recorder::start(&root, Image::new());
        restore_directories_with(&backup, &into(root.join(NODE)), K::KIND, SETTINGS).unwrap();
        let restored = recorder::length();
        let recording = stopped(&root);
        let what = format!("a restore with {}, seed {seed}", K::KIND);
        let cuts = self.cut_everywhere(&what, seed, &recording, |tried, length, image, _| {
            let directory = tried.root("cut", image).join(NODE);
            let is_whole = |found: &Content| found.0.identity.is_some() && found.0.last == meta.position;
            if directory.join("data.mdb").exists() {
                let found = load::<K>(&directory).map_err(|error| error.to_string())?.1;
                return if is_whole(&found) {
                    Ok(())
                } else {
                    Err(format!("it is not whole: {:?}", found.0))
                };
            }
            if length == restored {
                return Err("it was not restored".to_owned());
            }
            if directory.join("restore.partial").exists() {
                match load::<K>(&directory) {
                    Err(StorageError::Interrupted { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                    Ok((_, found)) => return Err(format!("a node uses the remains: {:?}", found.0)),
                }
            }
            restore_directories_with(&backup, &into(directory.clone()), K::KIND, SETTINGS)
                .map_err(|error| format!("restored again: {error}"))?;
            let found = load::<K>(&directory).map_err(|error| error.to_string())?.1;
            if is_whole(&found) { Ok(()) } else { Err(format!("it is not whole: {:?}", found.0)) }
        });
        self.report(&what, &recording, cuts);
    }
}

/// Whether this is a new cluster of the former node alone, with all its entries.
fn is_recovered((former, entries): &Content, (found, kept): &Content) -> Result<(), String> {
    let alone = found.members.as_ref().is_some_and(|members| members.len() == 1 && !members.is_joint());
    let cluster_id = |state: &StoredState| state.identity.map(|identity| identity.cluster_id);
    let is_new = cluster_id(found).is_some() && cluster_id(found) != cluster_id(former);
    let commit = found.hard_state.commit;
    match alone && is_new && commit == found.last.index && kept.starts_with(entries) {
        true => Ok(()),
        false => Err(format!("it is neither the former cluster nor the new one: {found:?}")),
    }
}
