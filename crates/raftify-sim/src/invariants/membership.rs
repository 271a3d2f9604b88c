//! Membership: a leader has at most one change that is not committed (thesis, section 4.1); the membership as of one
//! index is the same everywhere, and so is the one in force at one applied index; no node id is given out twice.

use std::collections::{BTreeMap, BTreeSet};

use raftify_core::{LogIndex, MemberChange, MemberRole, Members, MembershipChange, NodeId};

use super::Checked;
use crate::log_picture::LogPicture;

#[derive(Default)]
pub(crate) struct Membership {
    as_of: BTreeMap<LogIndex, Members>,
    removed: BTreeSet<NodeId>,
    in_force: BTreeMap<LogIndex, LogIndex>,
    reserved: BTreeSet<NodeId>,
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
            let gone = newest.iter().map(|member| member.id).filter(|id| members.get(*id).is_none());
            let gone: Vec<NodeId> = gone.collect();
            self.removed.extend(gone);
            if let Some(back) = members.iter().find(|member| self.removed.contains(&member.id)) {
                return Err(format!("membership: {} was removed, and is a member again", back.id));
            }
        }
        let first = self.as_of.entry(members.as_of()).or_insert_with(|| members.clone());
        if first == members {
            return Ok(());
        }
        Err(format!("membership: {node} has another one as of {} than others", members.as_of()))
    }

    /// The state machine of `node` is at `applied`, and there this membership counts.
    pub(crate) fn applied(&mut self, node: NodeId, applied: LogIndex, members: &Members) -> Checked {
        if members.as_of() > applied {
            // While old entries are replayed after a start, the membership is ahead.
            return Ok(());
        }
        let first = *self.in_force.entry(applied).or_insert(members.as_of());
        if first == members.as_of() {
            return Ok(());
        }
        let own = members.as_of();
        Err(format!("membership: at {applied}, {node} has that as of {own}, others that as of {first}"))
    }

    /// Somebody was given this id.
    pub(crate) fn reserved(&mut self, id: NodeId) -> Checked {
        if self.reserved.insert(id) {
            Ok(())
        } else {
            Err(format!("membership: id {id} was given out twice"))
        }
    }

    /// The newest that anybody has.
    pub(crate) fn newest_members(&self) -> Option<&Members> {
        self.as_of.last_key_value().map(|(_, members)| members)
    }

    /// The memberships as of the indexes from `first` to `last`.
    pub(crate) fn between(&self, first: LogIndex, last: LogIndex) -> impl Iterator<Item = &Members> {
        self.as_of.range(first..=last.max(first)).map(|(_, members)| members)
    }
}

/// `change` is answered with success, and with these members.
pub(crate) fn changed(change: &MembershipChange, members: &Members) -> Checked {
    let is_shown = match change {
        MembershipChange::LeaveJoint => !members.is_joint(),
        MembershipChange::Steps { steps, .. } => steps.iter().all(|step| match step {
            MemberChange::Add(added) => members.get(added.id).is_some_and(|member| member.role == added.role),
            MemberChange::Remove(id) => {
                members.get(*id).is_none_or(|member| member.role == MemberRole::Leaving)
            }
        }),
    };
    if is_shown {
        return Ok(());
    }
    Err(format!("membership: {change:?} is said to be in force, and the members are {members:?}"))
}

#[cfg(test)]
mod tests {
    use raftify_core::storage::Write;
    use raftify_core::{Entry, EntryKind, LogPosition, Member};

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
        let later = members(3).recorded(LogIndex(5), &raftify_core::members::MemberRecord::ReserveNodeId);
        membership.applied(NodeId::FIRST, LogIndex(7), &later).unwrap_err();
        membership.applied(NodeId::FIRST, LogIndex(4), &later).expect("it is ahead");
    }

    #[test]
    fn a_change_that_is_answered_and_not_made_is_rejected() {
        let remove = |id| MembershipChange::one(MemberChange::Remove(NodeId::new(id).unwrap()));
        changed(&remove(4), &members(3)).unwrap();
        changed(&remove(3), &members(3)).unwrap_err();
        let add =
            |id| MembershipChange::one(MemberChange::Add(Member::voter(NodeId::new(id).unwrap(), "node:1")));
        changed(&add(3), &members(3)).unwrap();
        changed(&add(4), &members(3)).unwrap_err();
        changed(&MembershipChange::LeaveJoint, &members(3)).unwrap();
    }

    #[test]
    fn a_removed_member_that_comes_back_is_rejected() {
        let record = raftify_core::members::MemberRecord::ReserveNodeId;
        let mut membership = Membership::default();
        membership.has(NodeId::FIRST, &members(3)).unwrap();
        membership.has(NodeId::FIRST, &members(2).recorded(LogIndex(5), &record)).unwrap();
        membership.has(NodeId::FIRST, &members(3).recorded(LogIndex(6), &record)).unwrap_err();
    }

    #[test]
    fn an_id_that_is_given_out_twice_is_rejected() {
        let mut membership = Membership::default();
        membership.reserved(NodeId::FIRST).unwrap();
        membership.reserved(NodeId::FIRST).unwrap_err();
    }
}
