//! The runs of nodes: how they start on their disks, crash and stop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raftify_core::error::StopReason;
use raftify_core::members::SenderRefusal;
use raftify_core::storage::{StoredState, Write};
use raftify_core::{
    CoreStart, Identity, Incarnation, LocalRequestMsg, LogIndex, LogPosition, Members, NodeId, RaftNodeCore,
    Role, RunId, Status, StorageError, Term,
};
use rand::RngExt;

use super::{Simulation, node_lost};
use crate::coverage::Happened;
use crate::disk::{Disk, Torn};
use crate::draw::Draw;
use crate::event::Event;
use crate::invariants::deadlines::Deadlines;
use crate::invariants::transfers::Transfers;
use crate::invariants::{Checked, durable_state};
use crate::log_picture::{Digest, LogPicture};
use crate::node::{Durable, FailsTo, Lost, Node, Running, Seen};
use crate::schedule::{SECOND, Time};
use crate::store::Store;

impl Simulation {
    pub(crate) fn running(&mut self, node: NodeId) -> Option<&mut Running> {
        self.nodes.get_mut(&node)?.running.as_mut()
    }

    /// Only if this is still the same run.
    pub(super) fn alive(&mut self, node: NodeId, life: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&node).filter(|node| node.life == life && node.is_running())
    }

    pub(crate) fn status(&self, node: NodeId) -> Option<Status> {
        Some(self.nodes.get(&node)?.running.as_ref()?.core.status())
    }

    /// By an exact clock.
    pub(crate) fn tick_interval(&self) -> Time {
        u64::try_from(self.world.config.tick_interval.as_micros()).unwrap_or(Time::MAX)
    }

    /// A node with an empty disk, not yet started.
    pub(crate) fn add_node(&mut self, id: NodeId, begins_with: Option<Arc<Members>>) {
        let spread = self.world.clocks_percent;
        let tick = self.tick_interval() * self.rng.random_range(100 - spread / 2..=100 + spread) / 100;
        let incarnation = self.next_incarnation();
        let address: Arc<str> = format!("node-{id}:1").into();
        let list = begins_with.as_ref().unwrap_or(&self.initial);
        let is_stray = !Arc::ptr_eq(list, &self.initial);
        let node = Node {
            id,
            incarnation,
            cluster_id: list.derive_cluster_id(),
            advertised: Arc::clone(&address),
            address,
            begins_with,
            disk: self.new_disk(),
            state_kept: self.world.state_machines.of(id),
            kept: None,
            durable: Durable::default(),
            maybe_durable: Vec::new(),
            held_before: None,
            lost: is_stray.then_some(Lost::OtherList),
            is_gone: false,
            life: 0,
            running: None,
            stopped_because: None,
            tick,
            paused_until: 0,
            disk_hangs: false,
            disk_is_full: false,
            disk_slowness: 1,
            apply_slowness: 1,
            fails_to: FailsTo::default(),
            backup: None,
            known_by: BTreeMap::new(),
            asked_who_knows: false,
            is_mute: false,
        };
        self.nodes.insert(id, node);
    }

    pub(crate) fn new_disk(&mut self) -> Disk {
        match self.world.quirks.segments {
            true => Disk::with_segments(self.rng.random()),
            false => Disk::with_model(),
        }
    }

    pub(crate) fn next_incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        Incarnation(self.incarnations)
    }

    /// Starts a stopped node on its disk.
    pub(crate) fn start(&mut self, id: NodeId) -> Checked {
        let (seed, run) = (self.rng.random(), RunId(self.rng.random()));
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let is_of_no_use = node.is_gone || (node.lost.is_some_and(|lost| lost == Lost::Damaged));
        if node.is_running() || is_of_no_use {
            return Ok(());
        }
        let stored = match node.disk.load() {
            Ok(stored) => stored,
            Err(error) => return self.cannot_start(id, &error),
        };
        self.compare_with_disk(id, &stored)?;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let mut store = Store::default();
        if let Some(snapshot) = &stored.snapshot {
            let position = snapshot.position;
            if std::mem::take(&mut node.fails_to.restore) {
                self.coverage.saw(Happened::RestoreFailed);
                self.tell(format_args!("{id} cannot restore the snapshot at {position}"));
                let delay = self.rng.about(SECOND);
                self.schedule.after(delay, Event::Start(id));
                return Ok(());
            }
            let data = node.disk.read_snapshot(position).map_err(|error| format!("{id}: {error}"))?;
            store = Store::decode(&data).ok_or_else(|| format!("the snapshot of {id} cannot be decoded"))?;
            if node.lost.is_none() {
                self.invariants.states.is_at(id, position.index, store.digest())?;
            }
        }
        let at = stored.snapshot.as_ref().map_or(stored.truncated, |snapshot| snapshot.position);
        let members =
            stored.snapshot.as_ref().map_or_else(Members::none, |snapshot| snapshot.members.clone());
        if let Some(kept) = node.kept.take().filter(|_| node.lost.is_none()) {
            durable_state::keeps_what_is_in_the_state(id, kept, stored.last, stored.term_at(kept.index))?;
        }
        let is_fresh = stored.identity.is_none();
        let begins_with = node.begins_with.clone();
        let identity = Identity { cluster_id: node.cluster_id, node_id: id, incarnation: node.incarnation };
        let start = CoreStart {
            node_id: id,
            address: node.advertised.to_string(),
            config: self.world.config.clone(),
            seed,
            run,
            stored,
            state_kept: node.state_kept,
        };
        let reader = node.disk.log_reader();
        let mut core =
            RaftNodeCore::new(start, &reader).map_err(|error| format!("{id} cannot start: {error}"))?;
        core.set_storage_full(node.disk_is_full);
        node.life += 1;
        node.asked_who_knows = false;
        let (life, tick) = (node.life, node.tick);
        node.running = Some(Running {
            core,
            store,
            members,
            at,
            log: node.durable.log.clone(),
            to_write: VecDeque::new(),
            writing: None,
            to_apply: VecDeque::new(),
            is_applying: false,
            announces_commit: false,
            seen: Seen {
                role: Role::Follower,
                term: Term::ZERO,
                commit: LogIndex::ZERO,
                members_as_of: LogIndex::ZERO,
                in_force: LogIndex::ZERO,
            },
            retained_for: None,
            deadlines: Deadlines::default(),
            transfers: Transfers::default(),
            captured: None,
            heard: BTreeMap::new(),
            unsettled: None,
            stops_as: None,
        });
        self.tell(format_args!("{id} starts"));
        let delay = self.rng.within((0, tick));
        self.schedule.after(delay, Event::Tick { node: id, life });
        if is_fresh {
            let number = self.invariants.answers.asked(format!("identity of {id}"));
            let reply = self.done(number, None);
            let message = match begins_with {
                Some(list) => {
                    LocalRequestMsg::StartCluster { identity, members: Members::clone(&list), reply }
                }
                None => LocalRequestMsg::AwaitCluster { identity, reply },
            };
            self.take_in_request(id, message)?;
        }
        self.settle(id)
    }

    fn cannot_start(&mut self, id: NodeId, error: &StorageError) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let is_damage = matches!(error, StorageError::Corrupt { .. } | StorageError::Version { .. });
        if is_damage && node.disk.has_flipped() {
            node.lost = Some(Lost::Damaged);
            self.coverage.saw(Happened::BitFlip);
            self.tell(format_args!("{id} cannot start: {error}"));
            return Ok(());
        }
        if node.disk.fault().is_some() && !is_damage {
            self.tell(format_args!("{id} cannot start yet: {error}"));
            let delay = self.rng.about(SECOND);
            self.schedule.after(delay, Event::Start(id));
            return Ok(());
        }
        Err(format!("storage: {id} cannot load its own data: {error}"))
    }

    /// Checks that a disk has exactly the acknowledged writes, and a prefix of the pending ones.
    pub(crate) fn compare_with_disk(&mut self, id: NodeId, found: &StoredState) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let mut durable = node.durable.clone();
        let mut maybe = std::mem::take(&mut node.maybe_durable).into_iter();
        while durable.state != *found {
            let Some(write) = maybe.next() else {
                return Err(format!(
                    "storage: {id} finds {found:?}, which matches neither the acknowledged nor the pending writes: {:?}",
                    node.durable.state
                ));
            };
            durable.state = durable.state.after(&write).map_err(|error| format!("{id}: {error}"))?;
            durable.log.take(&write, |position| self.invariants.logs.digest(position));
            if !node.lost.is_some_and(Lost::is_not_checked) {
                self.invariants.logs.writes(id, &write, &durable.log)?;
            }
            self.invariants.durable.written(id, node.incarnation, &write)?;
        }
        // The log of a node that began another cluster is unique.
        let is_alone = node.lost == Some(Lost::OtherList);
        let own = |position: LogPosition| durable.log.digest(position.index).filter(|_| is_alone);
        let digest_of = |position| own(position).unwrap_or_else(|| self.invariants.logs.digest(position));
        let log = picture_of(&node.disk, found, digest_of)?;
        if log != durable.log {
            return Err(format!("storage: {id} finds other entries in its log than it wrote"));
        }
        self.invariants.durable.has(id, node.incarnation, found.hard_state)?;
        node.durable = durable;
        Ok(())
    }

    /// Reads the log of `id` concurrently with its writer: the result must match the writes.
    pub(crate) fn read_all(&self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let is_alone = node.lost == Some(Lost::OtherList);
        let own = |position: LogPosition| node.durable.log.digest(position.index).filter(|_| is_alone);
        let digest_of = |position| own(position).unwrap_or_else(|| self.invariants.logs.digest(position));
        match picture_of(&node.disk, &node.durable.state, digest_of) {
            Ok(log) if log != node.durable.log => {
                Err(format!("storage: {id} reads other entries than were written"))
            }
            _ => Ok(()),
        }
    }

    /// A power failure of `id`: pending writes may be durable, in part or not at all; the rest is lost.
    pub(crate) fn crash(&mut self, id: NodeId) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(running) = node.running.take() else { return Ok(()) };
        node.paused_until = 0;
        node.keeps_state_at(running.at);
        if running.at.index > node.durable.state.last.index {
            self.coverage.saw(Happened::CrashAheadOfDisk);
        }
        let writes = running.writing.map(|writing| writing.writes).unwrap_or_default();
        if !writes.is_empty() || node.disk.has_segments() {
            let torn = node.disk.lose_power(&writes, &mut self.rng);
            let torn = torn.map_err(|error| format!("{id}: {error}"))?;
            self.coverage.saw(match torn {
                Torn::Lost => Happened::UnsyncedLost,
                Torn::Kept => Happened::UnsyncedKept,
                Torn::InPart => Happened::TornWrite,
            });
            // Earlier uncertain writes remain uncertain if there was no write since.
            node.maybe_durable.extend(writes);
        }
        self.tell(format_args!("{id} crashes"));
        Ok(())
    }

    /// A node with a stop request stops as soon as it has no pending replies.
    pub(super) fn stop_if_ready(&mut self, id: NodeId) -> Checked {
        let Some(running) = self.running(id) else { return Ok(()) };
        let Some(role) = running.stops_as.filter(|_| running.core.is_ready_to_stop()) else { return Ok(()) };
        let leads = running.core.status().role == Role::Leader;
        self.coverage.saw(Happened::StoppedInOrder);
        if role == Role::Leader && !leads {
            self.coverage.saw(Happened::LeaderStoppedInOrder);
        }
        self.stop(id, &StopReason::Stopped)
    }

    /// It stops by itself, or because its storage or state machine has failed.
    pub(crate) fn stop(&mut self, id: NodeId, reason: &StopReason) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(mut running) = node.running.take() else { return Ok(()) };
        node.stopped_because = Some(reason.clone());
        node.keeps_state_at(running.at);
        let own_members = running.core.status().members;
        running.core.stop(reason);
        if let Some(writing) = running.writing.filter(|writing| !writing.is_durable) {
            node.maybe_durable = writing.writes;
            let ended = node.disk.end_process(&node.maybe_durable, &mut self.rng);
            ended.map_err(|error| format!("{id}: {error}"))?;
        }
        self.tell(format_args!("{id} stops: {reason}"));
        match reason {
            StopReason::Internal(_) => return Err(format!("{id} stops: {reason}")),
            StopReason::Removed { as_of } => {
                let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
                node.is_gone = true;
                if node.lost.is_some_and(Lost::is_not_checked) {
                    return Ok(());
                }
                self.coverage.saw(Happened::RemovedNodeStopped);
                let members = self.invariants.membership.between(*as_of, *as_of).next();
                if members.is_none_or(|members| members.get(id).is_some()) {
                    return Err(format!(
                        "{id} stops because it was removed as of {as_of}, though it was not"
                    ));
                }
                self.observe_leaving(id, &own_members)?;
                self.join_again(id);
            }
            StopReason::Refused(refusal) => match node_lost(&self.nodes, id) {
                Some(lost @ (Lost::Wiped | Lost::RolledBack)) => {
                    self.coverage.saw(match (lost, refusal) {
                        (Lost::RolledBack, SenderRefusal::RolledBack { .. }) => Happened::RollBackRefused,
                        (Lost::RolledBack, _) => Happened::RollBackNoticed,
                        _ => Happened::WipedRefused,
                    });
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.is_gone = true;
                    }
                }
                _ => return Err(format!("{id} stops because it is refused: {refusal}")),
            },
            // Nodes that have forgotten data are detected before they do harm.
            StopReason::WritesLost { .. } if node_lost(&self.nodes, id).is_none() => {
                return Err(format!("loss: {id} stops: {reason}"));
            }
            StopReason::WritesLost { .. } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.is_gone = true;
                }
            }
            StopReason::Storage(reason) if reason.contains("had acknowledged are missing") => {
                match node_lost(&self.nodes, id) {
                    Some(lost @ (Lost::RolledBack | Lost::Wiped)) => {
                        self.coverage.saw(match lost {
                            Lost::Wiped => Happened::WipedRefused,
                            _ => Happened::RollBackNoticed,
                        });
                        if let Some(node) = self.nodes.get_mut(&id) {
                            node.is_gone = true;
                        }
                    }
                    _ => return Err(format!("{id} stops: {reason}")),
                }
            }
            _ => {
                let delay = self.rng.about(2 * SECOND);
                self.schedule.after(delay, Event::Start(id));
            }
        }
        Ok(())
    }

    /// `id` stops because it was removed. If it found that out by itself, it has waited for nodes that may
    /// still need its vote.
    fn observe_leaving(&self, id: NodeId, own: &Members) -> Checked {
        if own.is_empty() || own.get(id).is_some() {
            return Ok(());
        }
        let voters = own.configuration().voters;
        let voters: Option<Vec<&Node>> = voters.iter().map(|voter| self.nodes.get(voter)).collect();
        let Some(voters) = voters.filter(|voters| voters.iter().all(|node| node.lost.is_none())) else {
            return Ok(());
        };
        let commits: Vec<LogIndex> = voters.iter().map(|node| node.durable.commit()).collect();
        match self.invariants.membership.removed_after(id).map(LogIndex::next) {
            Some(index) => self.invariants.durable.leaves(id, index, &commits),
            None => Ok(()),
        }
    }
}

/// The log of `disk`.
fn picture_of(
    disk: &Disk,
    state: &StoredState,
    digest_of: impl Fn(LogPosition) -> Digest,
) -> Result<LogPicture, String> {
    let mut picture = LogPicture::beginning_after(state.truncated, digest_of(state.truncated));
    let (from, until) = (state.truncated.index.next(), state.last.index.next());
    let append = disk.read(from, until, u64::MAX).map_err(|error| error.to_string())?;
    picture.take(&Write { append, ..Write::default() }, digest_of);
    Ok(picture)
}
