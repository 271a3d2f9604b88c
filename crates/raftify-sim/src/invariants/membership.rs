//! Membership: a leader has at most one uncommitted change (thesis, section 4.1); the membership as of one
//! index is the same everywhere, and so is the one in force at one applied index; no node id is reserved
//! twice. Without a joint configuration, one voter changes at a time, and a joint one consists of the voters
//! before and after (sections 4.1, 4.3). No node believes another incarnation of a member than the known one,
//! or accepts messages of a node of another cluster. Of several changes that are made from one membership,
//! one is made.

use std::collections::{BTreeMap, BTreeSet};

use raftify_core::members::LeaveJoint;
use raftify_core::{
    Entry, EntryKind, Incarnation, LogIndex, LogPosition, MemberChange, MemberRole, Members,
    MembershipChange, MembershipCommand, MembershipRequest, NodeId, Term,
};

use super::Checked;
use crate::log_picture::LogPicture;

#[derive(Default)]
pub(crate) struct Membership {
    as_of: BTreeMap<LogIndex, Members>,
    removed: BTreeSet<NodeId>,
    in_force: BTreeMap<LogIndex, LogIndex>,
    reserved: BTreeSet<NodeId>,
    /// Changes in some log that enter a joint configuration which is left automatically.
    automatic: BTreeSet<LogPosition>,
    /// The memberships that conditional changes required to be in force.
    changed_from: BTreeSet<LogIndex>,
}

impl Membership {
    /// A leader has this log, and has committed it up to `commit`.
    pub(crate) fn leads(&self, leader: NodeId, commit: LogIndex, log: &LogPicture) -> Checked {
        let changes = log.changes_after(commit);
        if changes <= 1 {
            return Ok(());
        }
        Err(format!("membership: leader {leader} has {changes} changes after its commit index {commit}"))
    }

    /// `node` has this membership.
    pub(crate) fn has(&mut self, node: NodeId, members: &Members) -> Checked {
        if let Some(newest) = self.newest_members()
            && newest.as_of() < members.as_of()
        {
            let mut gone = Vec::new();
            for member in newest.iter().filter(|member| members.get(member.id).is_none()) {
                // Only a joining node is cleared without being removed permanently.
                match members.is_removed(member.id) {
                    true => gone.push(member.id),
                    false if member.role == MemberRole::Joining => {}
                    false => {
                        return Err(format!("membership: {} is missing, and was not removed", member.id));
                    }
                }
            }
            self.removed.extend(gone);
            if let Some(back) = members.iter().find(|member| self.removed.contains(&member.id)) {
                return Err(format!("membership: {} was removed, and is a member again", back.id));
            }
        }
        if let Some((_, before)) = self.as_of.range(..members.as_of()).next_back() {
            follows(before, members)?;
        }
        let first = self.as_of.entry(members.as_of()).or_insert_with(|| members.clone());
        if first == members {
            return Ok(());
        }
        Err(format!("membership: {node} has another one as of {} than other nodes", members.as_of()))
    }

    /// The state machine of `node` is at `applied`, where this membership is in force.
    pub(crate) fn applied(&mut self, node: NodeId, applied: LogIndex, members: &Members) -> Checked {
        if members.as_of() > applied {
            // During the replay after a start, the membership is ahead.
            return Ok(());
        }
        let first = *self.in_force.entry(applied).or_insert(members.as_of());
        if first == members.as_of() {
            return Ok(());
        }
        let own = members.as_of();
        Err(format!(
            "membership: at {applied}, {node} has the one as of {own}, other nodes the one as of {first}"
        ))
    }

    /// This id was reserved.
    pub(crate) fn reserved(&mut self, id: NodeId) -> Checked {
        if self.reserved.insert(id) { Ok(()) } else { Err(format!("membership: id {id} was reserved twice")) }
    }

    /// Some log has `entry`.
    pub(crate) fn logged(&mut self, entry: &Entry) {
        if entry.kind == EntryKind::MembershipChange
            && let Ok(MembershipChange::Steps { steps, leave: LeaveJoint::Automatically }) =
                MembershipChange::decode(&entry.payload)
            && steps.len() > 1
        {
            self.automatic.insert(entry.position);
        }
    }

    /// Whether the newest is a joint one that a leader must leave automatically (section 4.3). `term_at`
    /// returns terms of committed entries.
    pub(crate) fn must_leave_joint(&self, term_at: impl Fn(LogIndex) -> Option<Term>) -> bool {
        let joint = self.as_of.values().rev().take_while(|members| members.is_joint());
        let entered = joint.last().map(Members::as_of);
        let position = entered.and_then(|index| Some(LogPosition { term: term_at(index)?, index }));
        position.is_some_and(|position| self.automatic.contains(&position))
    }

    /// A request that required the membership as of `expected` succeeds.
    pub(crate) fn changed_from(&mut self, request: &MembershipRequest, expected: LogIndex) -> Checked {
        match request.command {
            // The request may have been without effect.
            MembershipCommand::Join(_) => Ok(()),
            MembershipCommand::Change(_) if self.changed_from.insert(expected) => Ok(()),
            MembershipCommand::Change(_) => {
                Err(format!("membership: two conditional changes are made from the one as of {expected}"))
            }
        }
    }

    /// Whether `id` was removed permanently.
    pub(crate) fn was_removed(&self, id: NodeId) -> bool {
        self.removed.contains(&id)
    }

    /// The removed nodes.
    pub(crate) fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.removed.iter().copied()
    }

    /// The index of the newest membership that still has `id`.
    pub(crate) fn removed_after(&self, id: NodeId) -> Option<LogIndex> {
        let with = self.as_of.values().rev().find(|members| members.get(id).is_some());
        with.map(Members::as_of)
    }

    /// The newest that any node has.
    pub(crate) fn newest_members(&self) -> Option<&Members> {
        self.as_of.last_key_value().map(|(_, members)| members)
    }

    /// The memberships as of the indexes from `first` to `last`.
    pub(crate) fn between(&self, first: LogIndex, last: LogIndex) -> impl Iterator<Item = &Members> {
        self.as_of.range(first..=last.max(first)).map(|(_, members)| members)
    }
}

/// The membership `before` is followed by `after`.
fn follows(before: &Members, after: &Members) -> Checked {
    if before.is_empty() {
        return Ok(());
    }
    let (old, new) = (before.configuration(), after.configuration());
    let is_right = match (before.is_joint(), after.is_joint()) {
        (false, false) => old.voters.symmetric_difference(&new.voters).count() <= 1,
        (false, true) => new.voters_outgoing == old.voters,
        (true, false) => new.voters == old.voters,
        (true, true) => (new.voters, new.voters_outgoing) == (old.voters, old.voters_outgoing),
    };
    if is_right {
        return Ok(());
    }
    Err(format!("membership: {before:?} cannot be followed by {after:?}"))
}

/// `node` knows a member as the incarnation `known`, and accepts a message of `presented` from it.
pub(crate) fn believes(node: NodeId, known: Option<Incarnation>, presented: Incarnation) -> Checked {
    match known {
        Some(known) if known != presented => {
            Err(format!("membership: {node} accepts {presented}, though it knows that member as {known}"))
        }
        _ => Ok(()),
    }
}

/// `node` accepts a message of `from`; `began_alike`: both began their clusters with the same list.
pub(crate) fn accepts_message(node: NodeId, from: NodeId, began_alike: bool) -> Checked {
    if began_alike {
        return Ok(());
    }
    Err(format!("membership: {node} accepts a message of {from}, which began another cluster"))
}

/// `request` succeeds, and these are the members.
pub(crate) fn changed(request: &MembershipRequest, members: &Members) -> Checked {
    let role = |id: NodeId| members.get(id).map(|member| member.role);
    let is_shown = match &request.command {
        MembershipCommand::Join(joiners) => joiners.iter().all(|joiner| role(joiner.id).is_some()),
        MembershipCommand::Change(MembershipChange::LeaveJoint) => !members.is_joint(),
        MembershipCommand::Change(MembershipChange::Steps { steps, .. }) => {
            steps.iter().all(|step| match step {
                MemberChange::Add(added) => match role(added.id) {
                    // A new voter joins first.
                    Some(MemberRole::Joining) => may_join_first(added.role, request.force),
                    other => other == Some(added.role),
                },
                MemberChange::Remove(id) => role(*id).is_none_or(|role| role == MemberRole::Leaving),
                MemberChange::SetRole { id, role: asked } => role(*id) == Some(*asked),
                MemberChange::ClearJoiner(id) => role(*id).is_none(),
            })
        }
    };
    if is_shown {
        return Ok(());
    }
    Err(format!("membership: {request:?} is reported to be in force, and the members are {members:?}"))
}

fn may_join_first(asked: MemberRole, is_forced: bool) -> bool {
    asked == MemberRole::Joining || (asked == MemberRole::Voter && !is_forced)
}

#[cfg(test)]
mod tests {
    use raftify_core::Member;
    use raftify_core::members::MemberRecord;
    use raftify_core::storage::Write;

    use super::*;
    use crate::log_picture::Digest;

    fn members(count: u64) -> Members {
        let member = |id| Member::voter(NodeId::new(id).unwrap(), format!("node-{id}:1"));
        Members::initial((1..=count).map(member)).unwrap()
    }

    #[test]
    fn two_changes_that_are_not_committed_are_rejected() {
        let entry = |index| Entry {
            position: LogPosition::new(1, index),
            kind: EntryKind::MembershipChange,
            payload: Default::default(),
        };
        let mut log = LogPicture::default();
        log.take(&Write { append: (1..=3).map(entry).collect(), ..Write::default() }, |_| Digest::BEGIN);
        let membership = Membership::default();
        membership.leads(NodeId::FIRST, LogIndex(2), &log).unwrap();
        membership.leads(NodeId::FIRST, LogIndex(1), &log).unwrap_err();
    }

    #[test]
    fn different_memberships_at_one_place_are_rejected() {
        let mut membership = Membership::default();
        membership.has(NodeId::FIRST, &members(3)).unwrap();
        membership.has(NodeId::FIRST, &members(4)).unwrap_err();
        membership.applied(NodeId::FIRST, LogIndex(7), &members(3)).unwrap();
        let later = members(3).recorded(LogIndex(5), &MemberRecord::ReserveNodeId);
        membership.applied(NodeId::FIRST, LogIndex(7), &later).unwrap_err();
        membership.applied(NodeId::FIRST, LogIndex(4), &later).expect("it is ahead");
    }

    #[test]
    fn an_acknowledged_change_that_is_not_made_is_rejected() {
        let remove = |id| MembershipChange::one(MemberChange::Remove(NodeId::new(id).unwrap()));
        changed(&remove(4).into(), &members(3)).unwrap();
        changed(&remove(3).into(), &members(3)).unwrap_err();
        let voter = |id| Member::voter(NodeId::new(id).unwrap(), "node:1");
        let add = |id| MembershipRequest::from(MembershipChange::one(MemberChange::Add(voter(id))));
        changed(&add(3), &members(3)).unwrap();
        changed(&add(4), &members(3)).unwrap_err();
        changed(&MembershipChange::LeaveJoint.into(), &members(3)).unwrap();
        changed(&MembershipRequest::join(vec![voter(3)]), &members(3)).unwrap();
        changed(&MembershipRequest::join(vec![voter(3), voter(4)]), &members(3)).unwrap_err();
        let set =
            |id, role| MembershipChange::one(MemberChange::SetRole { id: NodeId::new(id).unwrap(), role });
        changed(&set(3, MemberRole::Voter).into(), &members(3)).unwrap();
        changed(&set(3, MemberRole::Learner).into(), &members(3)).unwrap_err();
        let joiner = MemberChange::Add(Member { role: MemberRole::Joining, ..voter(4) });
        let joining = members(3).changed(LogIndex(2), &MembershipChange::one(joiner)).unwrap();
        changed(&add(4), &joining).expect("the node joins first");
        changed(&add(4).forced(), &joining).unwrap_err();
        let clear = MembershipChange::one(MemberChange::ClearJoiner(NodeId::new(4).unwrap()));
        changed(&clear.clone().into(), &joining).unwrap_err();
        changed(&clear.into(), &members(3)).unwrap();
    }

    #[test]
    fn two_conditional_changes_of_one_membership_are_rejected() {
        let mut membership = Membership::default();
        let leave = MembershipRequest::from(MembershipChange::LeaveJoint);
        membership.changed_from(&leave, LogIndex(3)).unwrap();
        membership.changed_from(&leave, LogIndex(4)).unwrap();
        membership.changed_from(&MembershipRequest::join(Vec::new()), LogIndex(3)).unwrap();
        membership.changed_from(&leave, LogIndex(3)).unwrap_err();
    }

    #[test]
    fn an_accepted_message_of_another_cluster_is_rejected() {
        accepts_message(NodeId::FIRST, NodeId::FIRST, true).unwrap();
        accepts_message(NodeId::FIRST, NodeId::FIRST, false).unwrap_err();
    }

    #[test]
    fn a_member_that_vanishes_is_rejected_unless_it_was_joining() {
        let at = |index, change| members(3).changed(LogIndex(index), &MembershipChange::one(change)).unwrap();
        let joiner =
            Member { role: MemberRole::Joining, ..Member::voter(NodeId::new(4).unwrap(), "node-4:1") };
        let (joining, id) = (at(2, MemberChange::Add(joiner.clone())), joiner.id);
        let clear = MembershipChange::one(MemberChange::ClearJoiner(id));
        let cleared = joining.changed(LogIndex(3), &clear).unwrap();
        let mut membership = Membership::default();
        membership.has(NodeId::FIRST, &joining).unwrap();
        membership.has(NodeId::FIRST, &cleared).unwrap();
        let again = MembershipChange::one(MemberChange::Add(joiner));
        membership.has(NodeId::FIRST, &cleared.changed(LogIndex(4), &again).unwrap()).unwrap();

        let mut membership = Membership::default();
        membership.has(NodeId::FIRST, &members(3)).unwrap();
        let vanished = members(2).recorded(LogIndex(5), &MemberRecord::ReserveNodeId);
        membership.has(NodeId::FIRST, &vanished).unwrap_err();
    }

    #[test]
    fn two_voters_that_change_in_one_step_are_rejected() {
        let as_of = |index, count| members(count).recorded(LogIndex(index), &MemberRecord::ReserveNodeId);
        follows(&as_of(1, 3), &as_of(2, 4)).unwrap();
        follows(&as_of(1, 3), &as_of(2, 5)).unwrap_err();
        follows(&as_of(1, 5), &as_of(2, 3)).unwrap_err();
        let add = |id| MemberChange::Add(Member::voter(NodeId::new(id).unwrap(), format!("node-{id}:1")));
        let enter = MembershipChange::Steps { steps: vec![add(4), add(5)], leave: LeaveJoint::Automatically };
        let joint = as_of(1, 3).changed(LogIndex(2), &enter).unwrap();
        follows(&as_of(1, 3), &joint).unwrap();
        follows(&as_of(1, 2), &joint).unwrap_err();
        follows(&joint, &joint.changed(LogIndex(3), &MembershipChange::LeaveJoint).unwrap()).unwrap();
        follows(&joint, &as_of(3, 3)).unwrap_err();

        let mut membership = Membership::default();
        membership.has(NodeId::FIRST, &as_of(1, 3)).unwrap();
        membership.has(NodeId::FIRST, &joint).unwrap();
        assert!(!membership.must_leave_joint(|_| Some(Term(1))));
        membership.logged(&Entry {
            position: LogPosition::new(1, 2),
            kind: EntryKind::MembershipChange,
            payload: enter.encode(),
        });
        assert!(membership.must_leave_joint(|_| Some(Term(1))));
    }

    #[test]
    fn an_accepted_message_of_another_incarnation_is_rejected() {
        believes(NodeId::FIRST, None, Incarnation(1)).unwrap();
        believes(NodeId::FIRST, Some(Incarnation(1)), Incarnation(1)).unwrap();
        believes(NodeId::FIRST, Some(Incarnation(1)), Incarnation(2)).unwrap_err();
    }

    #[test]
    fn a_removed_member_that_returns_is_rejected() {
        let record = MemberRecord::ReserveNodeId;
        let mut membership = Membership::default();
        membership.has(NodeId::FIRST, &members(3)).unwrap();
        let remove = MembershipChange::one(MemberChange::Remove(NodeId::new(3).unwrap()));
        membership.has(NodeId::FIRST, &members(3).changed(LogIndex(5), &remove).unwrap()).unwrap();
        membership.has(NodeId::FIRST, &members(3).recorded(LogIndex(6), &record)).unwrap_err();
    }

    #[test]
    fn an_id_that_is_reserved_twice_is_rejected() {
        let mut membership = Membership::default();
        membership.reserved(NodeId::FIRST).unwrap();
        membership.reserved(NodeId::FIRST).unwrap_err();
    }
}
