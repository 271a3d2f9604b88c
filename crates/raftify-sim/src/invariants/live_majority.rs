//! Changes never strand a cluster: a change that a leader accepts, unless it is forced, leaves a majority of
//! voters, of each half of a joint configuration, that was recently active (etcd's check of reconfigurations;
//! thesis, section 4.2.1). The simulator itself knows which messages arrived. And a node gets a vote only by
//! a promotion: when it has the log, up to the bound of the settings, and a majority of the voters has
//! reached it at its recorded address (section 4.2.1). A learner becomes a voter only on request.

use std::collections::BTreeSet;

use raftify_core::{
    Incarnation, LogIndex, Member, MemberChange, MemberRole, Members, MembershipChange, MembershipCommand,
    MembershipRequest, NodeId,
};

use super::Checked;

#[derive(Default)]
pub(crate) struct LiveMajority {
    /// Which node has reached which other one, as which incarnation, and at which address.
    reached: BTreeSet<(NodeId, NodeId, Incarnation, String)>,
    /// Forced changes of the operator.
    forced: Vec<MembershipChange>,
    /// Nodes that the operator asked to promote.
    asked: BTreeSet<NodeId>,
}

/// A change that a leader appends to its log.
pub(crate) struct Proposed<'a> {
    pub(crate) leader: NodeId,
    pub(crate) change: &'a MembershipChange,
    /// The membership that it changes.
    pub(crate) before: &'a Members,
    /// The newest of any node: a voter may know a new address before the leader does.
    pub(crate) newest: &'a Members,
}

impl LiveMajority {
    /// The operator has requested this.
    pub(crate) fn asked(&mut self, request: &MembershipRequest) {
        let MembershipCommand::Change(change) = &request.command else { return };
        if let MembershipChange::Steps { steps, .. } = change {
            self.asked.extend(steps.iter().filter_map(|step| match step {
                MemberChange::Add(member) if may_vote(member.role) => Some(member.id),
                MemberChange::SetRole { id, role } if may_vote(*role) => Some(*id),
                _ => None,
            }));
        }
        if request.force && !self.forced.contains(change) {
            self.forced.push(change.clone());
        }
    }

    /// `node` has connected to `peer` at `address`.
    pub(crate) fn reaches(&mut self, node: NodeId, peer: NodeId, incarnation: Incarnation, address: &str) {
        self.reached.insert((node, peer, incarnation, address.to_owned()));
    }

    /// A leader proposes a change. `hears`: whether a message of this node has arrived within an election
    /// timeout; `has_log`: whether the node has the leader's log up to the bound.
    pub(crate) fn proposes(
        &self,
        proposed: &Proposed<'_>,
        hears: impl Fn(NodeId) -> bool,
        has_log: impl Fn(NodeId) -> bool,
    ) -> Checked {
        let Proposed { leader, change, before, newest } = proposed;
        if **change == MembershipChange::LeaveJoint {
            // The remaining voters have agreed to everything committed since the joint configuration was
            // entered.
            return Ok(());
        }
        let Ok(after) = before.changed(LogIndex::ZERO, change) else { return Ok(()) };
        let is_forced = self.forced.contains(change);
        for member in after.iter() {
            let was = before.get(member.id);
            let id = member.id;
            if was.is_some_and(|was| was.role == MemberRole::Learner)
                && may_vote(member.role)
                && !self.asked.contains(&id)
            {
                return Err(format!(
                    "live majority: {leader} makes learner {id} a {}, without a request",
                    member.role
                ));
            }
            if member.role != MemberRole::Voter || before.is_voter(id) || is_forced {
                continue;
            }
            let Some(was) = was else {
                return Err(format!("live majority: {leader} adds {id} as a voter before it has the log"));
            };
            if !has_log(id) {
                return Err(format!("live majority: {leader} promotes {id}, which is not caught up"));
            }
            let voters = before.configuration().voters;
            let places: Vec<&Member> = std::iter::once(was).chain(newest.get(id)).collect();
            let has_reached = |voter: &&NodeId| places.iter().any(|member| self.has_reached(**voter, member));
            let by = voters.iter().filter(has_reached).count();
            if by <= voters.len() / 2 {
                return Err(format!(
                    "live majority: {leader} promotes {id}, which {by} of {} voters have reached at {}",
                    voters.len(),
                    was.address
                ));
            }
        }
        let (now, then) = (before.configuration(), after.configuration());
        if is_forced || now.voters == then.voters {
            return Ok(());
        }
        for half in [then.voters, then.voters_outgoing] {
            let live = half.iter().filter(|voter| *voter == leader || hears(**voter)).count();
            if !half.is_empty() && live <= half.len() / 2 {
                return Err(format!(
                    "live majority: {leader} accepts {change}, and {live} of the voters {half:?} are active"
                ));
            }
        }
        Ok(())
    }

    fn has_reached(&self, voter: NodeId, member: &Member) -> bool {
        member.incarnation.is_some_and(|incarnation| {
            self.reached.contains(&(voter, member.id, incarnation, member.address.clone()))
        })
    }
}

/// Whether a node with this role votes, now or later.
fn may_vote(role: MemberRole) -> bool {
    matches!(role, MemberRole::Voter | MemberRole::Joining)
}

#[cfg(test)]
mod tests {
    use raftify_core::members::LeaveJoint;

    use super::*;

    fn id(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    /// Voters 1 to 3, and node 4 with `role`.
    fn members(role: MemberRole) -> Members {
        let voters = (1..=3).map(|number| Member::voter(id(number), format!("node-{number}:1")));
        let fourth = Member { role, incarnation: Some(Incarnation(4)), ..Member::voter(id(4), "node-4:1") };
        Members::initial(voters.chain([fourth])).unwrap()
    }

    fn one(step: MemberChange) -> MembershipChange {
        MembershipChange::one(step)
    }

    fn promote() -> MembershipChange {
        one(MemberChange::SetRole { id: id(4), role: MemberRole::Voter })
    }

    /// Node 1 leads, and the nodes `heard` are active.
    fn proposes(judge: &LiveMajority, change: &MembershipChange, before: &Members, heard: &[u64]) -> Checked {
        let proposed = Proposed { leader: id(1), change, before, newest: before };
        judge.proposes(&proposed, |peer| heard.contains(&peer.get()), |_| true)
    }

    #[test]
    fn a_change_that_leaves_no_live_majority_is_rejected() {
        let (judge, before) = (LiveMajority::default(), members(MemberRole::Learner));
        let remove = |number| one(MemberChange::Remove(id(number)));
        proposes(&judge, &remove(2), &before, &[3]).unwrap();
        proposes(&judge, &remove(2), &before, &[2]).unwrap_err();
        proposes(&judge, &remove(4), &before, &[]).expect("it has no vote");
        let demote = one(MemberChange::SetRole { id: id(2), role: MemberRole::Learner });
        proposes(&judge, &demote, &before, &[2]).unwrap_err();
        let several = MembershipChange::Steps {
            steps: vec![MemberChange::Remove(id(2)), MemberChange::Remove(id(3))],
            leave: LeaveJoint::Automatically,
        };
        proposes(&judge, &several, &before, &[2]).unwrap();
        proposes(&judge, &several, &before, &[]).expect_err("the outgoing half has no majority");
    }

    #[test]
    fn a_forced_change_is_not_checked() {
        let (mut judge, before) = (LiveMajority::default(), members(MemberRole::Learner));
        let remove = one(MemberChange::Remove(id(2)));
        judge.asked(&MembershipRequest::from(remove.clone()));
        proposes(&judge, &remove, &before, &[]).unwrap_err();
        judge.asked(&MembershipRequest::from(remove.clone()).forced());
        proposes(&judge, &remove, &before, &[]).unwrap();
    }

    #[test]
    fn a_promotion_of_an_unreachable_node_is_rejected() {
        let (mut judge, before) = (LiveMajority::default(), members(MemberRole::Joining));
        let heard = [2, 3, 4];
        judge.reaches(id(1), id(4), Incarnation(4), "node-4:1");
        proposes(&judge, &promote(), &before, &heard).unwrap_err();
        judge.reaches(id(2), id(4), Incarnation(4), "node-4:2");
        judge.reaches(id(2), id(4), Incarnation(5), "node-4:1");
        judge.reaches(id(4), id(4), Incarnation(4), "node-4:1");
        proposes(&judge, &promote(), &before, &heard).unwrap_err();
        let moved = Member { address: "node-4:2".to_owned(), ..before.get(id(4)).unwrap().clone() };
        let newest = before.changed(LogIndex(2), &one(MemberChange::Add(moved))).unwrap();
        let proposed = Proposed { leader: id(1), change: &promote(), before: &before, newest: &newest };
        judge
            .proposes(&proposed, |_| true, |_| true)
            .expect("node 2 knows of its move before the leader does");
        judge.reaches(id(2), id(4), Incarnation(4), "node-4:1");
        proposes(&judge, &promote(), &before, &heard).unwrap();
    }

    #[test]
    fn a_promotion_of_a_lagging_node_is_rejected() {
        let (mut judge, before) = (LiveMajority::default(), members(MemberRole::Joining));
        (1..=3).for_each(|voter| judge.reaches(id(voter), id(4), Incarnation(4), "node-4:1"));
        let change = promote();
        let proposed = Proposed { leader: id(1), change: &change, before: &before, newest: &before };
        judge.proposes(&proposed, |_| true, |_| true).unwrap();
        judge.proposes(&proposed, |_| true, |_| false).unwrap_err();
        let add = one(MemberChange::Add(Member::voter(id(5), "node-5:1")));
        proposes(&judge, &add, &before, &[2, 3, 5]).expect_err("the node does not join first");
    }

    #[test]
    fn a_learner_that_becomes_a_voter_without_a_request_is_rejected() {
        let (mut judge, before) = (LiveMajority::default(), members(MemberRole::Learner));
        (1..=3).for_each(|voter| judge.reaches(id(voter), id(4), Incarnation(4), "node-4:1"));
        let heard = [2, 3, 4];
        let join = one(MemberChange::SetRole { id: id(4), role: MemberRole::Joining });
        judge.asked(&MembershipRequest::join(vec![Member::voter(id(4), "node-4:1")]));
        proposes(&judge, &promote(), &before, &heard).unwrap_err();
        proposes(&judge, &join, &before, &heard).unwrap_err();
        judge.asked(&promote().into());
        proposes(&judge, &promote(), &before, &heard).unwrap();
        proposes(&judge, &join, &before, &heard).unwrap();
    }
}
