//! Operations of nodes that take time: those of their disks and their state machines.

use raftify_core::error::{ProposeError, StopReason, UnknownOutcome};
use raftify_core::{
    Committed, Entry, LogFetch, LogIndex, LogPosition, Members, NodeId, SnapshotMeta, SnapshotReason,
    StorageError, TurnNumber,
};

use super::Simulation;
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::event::Event;
use crate::invariants::Checked;
use crate::node::{Captured, Lost, ToApply, Writing};
use crate::reply::Reply;
use crate::schedule::{MILLISECOND, Time};
use crate::store::Store;

impl Simulation {
    // --- The disk ---

    /// Writes the queue, if no write is pending.
    pub(crate) fn begin_write(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(running) = &mut node.running else { return };
        if running.writing.is_some() {
            return;
        }
        let count = running.to_write.len().min(self.turns_per_write_max);
        let mut turns = running.to_write.drain(..count);
        let Some(first) = turns.next() else { return };
        let writing = turns.fold(Writing::of(first), Writing::with);
        let delay = match writing.writes.is_empty() {
            true => 0,
            false => self.rng.within(self.world.write_delay) * node.disk_slowness,
        };
        running.writing = Some(writing);
        if !node.disk_hangs {
            self.schedule.after(delay, Event::Durable { node: id, life });
        }
    }

    pub(crate) fn becomes_durable(&mut self, id: NodeId, life: u64) -> Checked {
        let hangs = self.nodes.get(&id).is_some_and(|node| node.disk_hangs);
        let Some(node) = self.alive(id, life).filter(|_| !hangs) else { return Ok(()) };
        let Some(writing) = node.running.as_mut().and_then(|running| running.writing.as_mut()) else {
            return Ok(());
        };
        if writing.is_durable {
            return Ok(());
        }
        let writes = std::mem::take(&mut writing.writes);
        writing.is_durable = true;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !writes.is_empty()
            && let Err(error) = node.disk.write(&writes, &mut self.rng)
        {
            if let StorageError::Refused { .. } = error {
                return Err(format!("storage: {id}: {error}"));
            }
            if node.disk.has_segments() && node.disk.write(&writes, &mut self.rng).is_ok() {
                return Err(format!("storage: {id} accepts another write after one that failed: {error}"));
            }
            self.coverage.saw(match node.disk.fault() {
                Some(_) => Happened::DiskFull,
                None => Happened::DiskError,
            });
            node.maybe_durable = writes;
            return self.stop(id, &StopReason::Storage(error.to_string()));
        }
        for write in &writes {
            self.invariants.durable.written(id, node.incarnation, write)?;
            let after = node.durable.state.after(write).map_err(|error| format!("storage: {id}: {error}"))?;
            self.invariants.durable.commits_within_log(id, after.hard_state.commit, after.last.index)?;
            node.durable.state = after;
            node.durable.log.take(write, |position| self.invariants.logs.digest(position));
            // It may lead again in a term that it has forgotten, by late votes: no other node depends on it.
            if !node.lost.is_some_and(Lost::is_not_checked) {
                self.invariants.logs.writes(id, write, &node.durable.log)?;
            }
        }
        if !node.disk.has_flipped() {
            let ends = node.disk.ends().map_err(|error| format!("storage: {id}: {error}"))?;
            self.invariants.durable.log_is(id, ends, &node.durable.log)?;
        }
        if self.rng.percent(self.world.late_percent) && self.healed_at.is_none() {
            self.coverage.saw(Happened::LateCompletion);
            let delay = self.rng.about(200 * MILLISECOND);
            self.schedule.after(delay, Event::Written { node: id, life });
            return Ok(());
        }
        self.write_reported(id, life)
    }

    pub(super) fn write_reported(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let Some(Writing { number, send_after, .. }) = running.writing.take_if(|writing| writing.is_durable)
        else {
            return Ok(());
        };
        running.core.written(number);
        // Duplicate reports, or reports of an older write after a newer one, have no effect.
        running.core.written(number);
        running.core.written(TurnNumber(number.0.saturating_sub(1)));
        self.send_messages(id, send_after);
        self.begin_write(id);
        self.settle(id)
    }

    pub(super) fn fetched(
        &mut self,
        id: NodeId,
        life: u64,
        fetch: LogFetch,
        read: Option<Result<Vec<Entry>, StorageError>>,
    ) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        match read.unwrap_or_else(|| node.disk.read(fetch.from, fetch.until, fetch.bytes_max)) {
            Err(error @ StorageError::Corrupt { .. }) if node.disk.has_flipped() => {
                node.lost = Some(Lost::Damaged);
                self.coverage.saw(Happened::BitFlip);
                return self.stop(id, &StopReason::Storage(error.to_string()));
            }
            Err(error @ StorageError::Corrupt { .. }) => return Err(format!("storage: {id}: {error}")),
            result => {
                if let Some(running) = &mut node.running {
                    running.core.fetched(fetch, result);
                }
                self.coverage.saw(Happened::EntriesFetched);
            }
        }
        self.settle(id)
    }

    // --- The state machine ---

    pub(crate) fn begin_apply(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(running) = &mut node.running else { return };
        if running.is_applying || running.to_apply.is_empty() {
            return;
        }
        running.is_applying = true;
        let delay = self.rng.within(self.world.apply_delay) + (node.apply_slowness - 1) * 20 * MILLISECOND;
        self.schedule.after(delay, Event::Apply { node: id, life });
    }

    /// Processes the waiting work, up to a snapshot.
    pub(crate) fn apply(&mut self, id: NodeId, life: u64) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let most = if node.apply_slowness > 1 { 1 } else { 64 };
        if let Some(running) = &mut node.running {
            running.is_applying = false;
        }
        for _ in 0..most {
            let next = self.running(id).and_then(|running| running.to_apply.pop_front());
            match next {
                None => break,
                Some(ToApply::TakeSnapshot(reason)) => {
                    self.take_snapshot(id, reason)?;
                    break;
                }
                Some(ToApply::Committed(item)) => self.apply_item(id, item)?,
            }
        }
        let Some(running) = self.running(id) else { return Ok(()) };
        running.core.applied(running.at.index);
        self.begin_apply(id);
        self.settle(id)
    }

    fn apply_item(&mut self, id: NodeId, item: Committed<Reply>) -> Checked {
        let position = item.position();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let is_lost = node.lost.is_some();
        let Some(running) = &mut node.running else { return Ok(()) };
        match item {
            Committed::User { payload, reply, .. } => {
                if std::mem::take(&mut node.fails_to.apply) {
                    self.coverage.saw(Happened::ApplyFailed);
                    let reason = StopReason::StateMachine("injected failure".to_owned());
                    if let Some(reply) = reply {
                        let unknown = UnknownOutcome::NodeStopped(reason.clone());
                        reply.answer(Err(ProposeError::Unknown(unknown)));
                    }
                    return self.stop(id, &reason);
                }
                self.invariants.durable.applies(id, running.at.index, position.index)?;
                let effect = running.store.apply(&payload)?;
                if let Some(reply) = reply {
                    reply.answer(Ok((position, effect)));
                }
            }
            Committed::Members { members, .. } => {
                running.members = Members::clone(&members);
                if let Some(ToApply::Committed(next @ Committed::Install { .. })) = running.to_apply.front()
                    && next.position() == position
                {
                    // The state follows.
                    return Ok(());
                }
                if position != running.at && position.index > LogIndex(1) {
                    self.invariants.durable.applies(id, running.at.index, position.index)?;
                }
            }
            Committed::Nothing { .. } => {
                self.invariants.durable.applies(id, running.at.index, position.index)?;
            }
            Committed::Install { snapshot } => {
                if std::mem::take(&mut node.fails_to.restore) {
                    self.coverage.saw(Happened::RestoreFailed);
                    let reason = StopReason::StateMachine("injected failure".to_owned());
                    return self.stop(id, &reason);
                }
                let data = node.disk.read_snapshot(position).map_err(|error| format!("{id}: {error}"))?;
                running.store = Store::decode(&data)
                    .ok_or_else(|| format!("{id} cannot decode the snapshot at {position}"))?;
                running.members = snapshot.members.clone();
            }
        }
        running.at = position;
        if !is_lost {
            self.invariants.states.applied(id, position, running.store.digest())?;
            self.invariants.membership.applied(id, position.index, &running.members)?;
            if position.index > LogIndex(1) && !self.invariants.committed.is_committed(position) {
                return Err(format!(
                    "state-machine safety: {id} applies {position}, which no leader has committed"
                ));
            }
        }
        Ok(())
    }

    fn take_snapshot(&mut self, id: NodeId, reason: SnapshotReason) -> Checked {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let life = node.life;
        let Some(running) = &mut node.running else { return Ok(()) };
        if std::mem::take(&mut node.fails_to.snapshot) {
            self.coverage.saw(Happened::SnapshotFailed);
            running.core.snapshot_taken(Err("injected failure".to_owned()));
            return Ok(());
        }
        if running.at.index > node.durable.state.last.index {
            self.coverage.saw(Happened::SnapshotAheadOfDisk);
        }
        if node.lost.is_none() {
            self.invariants.states.snapshot(id, running.at.index, running.store.digest())?;
        }
        let cluster_id = node.cluster_id;
        let meta = SnapshotMeta { cluster_id, position: running.at, members: running.members.clone() };
        let position = meta.position;
        running.captured = Some(Captured { meta, data: running.store.encode(), reason });
        // The rate at which a leisurely snapshot is written limits it more than a slow disk does.
        let leisurely = match reason {
            SnapshotReason::Due => snapshot_time(1) * self.world.joins.leisure,
            SnapshotReason::Awaited => 0,
        };
        let delay = self.rng.about(snapshot_time(node.disk_slowness).max(leisurely));
        self.schedule.after(delay, Event::SnapshotWritten { node: id, life, position });
        Ok(())
    }

    /// A follower waits for the snapshot that is being taken, or is about to be.
    pub(super) fn hurry_snapshot(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(running) = &mut node.running else { return };
        for item in &mut running.to_apply {
            if let ToApply::TakeSnapshot(reason) = item {
                *reason = SnapshotReason::Awaited;
            }
        }
        if let Some(captured) = &mut running.captured {
            captured.reason = SnapshotReason::Awaited;
            self.coverage.saw(Happened::SnapshotHurried);
            let position = captured.meta.position;
            let delay = self.rng.about(snapshot_time(node.disk_slowness));
            self.schedule.after(delay, Event::SnapshotWritten { node: id, life: node.life, position });
        }
    }

    pub(super) fn snapshot_written(&mut self, id: NodeId, life: u64, position: LogPosition) -> Checked {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let Some(running) = &mut node.running else { return Ok(()) };
        let Some(captured) = running.captured.take_if(|captured| captured.meta.position == position) else {
            // The snapshot was sped up.
            return Ok(());
        };
        node.disk.write_snapshot(&captured.meta, &captured.data).map_err(|error| format!("{id}: {error}"))?;
        running.core.snapshot_taken(Ok(captured.meta));
        self.coverage.saw(Happened::SnapshotTaken);
        self.settle(id)
    }
}

/// The mean time that it takes to write a snapshot to such a disk. Its size is of no importance here: on a
/// disk that is thousands of times slower than a healthy one, as that of a leader may be, a small write
/// already takes long enough.
fn snapshot_time(disk_slowness: u64) -> Time {
    5 * MILLISECOND * disk_slowness.min(100)
}
