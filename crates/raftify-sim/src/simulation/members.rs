//! The addresses of nodes and the connections between them; and observations of membership changes.

use std::sync::Arc;

use raftify_core::error::MembershipError;
use raftify_core::storage::Write;
use raftify_core::{
    EntryKind, Incarnation, LogIndex, Member, MemberRole, Members, MembershipChange, MembershipRequest,
    NodeId, Role, Sender, ServerRequestMsg, Status,
};

use super::Simulation;
use crate::coverage::Happened;
use crate::draw::Draw;
use crate::event::Event;
use crate::invariants::live_majority::Proposed;
use crate::invariants::{Checked, membership};
use crate::node::Lost;
use crate::schedule::SECOND;
use crate::world::OtherList;

impl Simulation {
    // --- Different lists ---

    /// The list that some nodes are started with instead of the correct one: it differs only in roles.
    pub(super) fn other_list(&self) -> Option<Arc<Members>> {
        let strays = &self.world.joins.strays;
        let stray = strays.first()?;
        let demoted = self.initial.iter().find(|member| !strays.contains(&member.id.get()))?.id;
        let other = self.initial.iter().map(|member| {
            let votes = match self.world.joins.other_list {
                OtherList::OnlyStrayVotes => member.id.get() == *stray,
                OtherList::OneVotesLess => member.role == MemberRole::Voter && member.id != demoted,
            };
            let role = if votes { MemberRole::Voter } else { MemberRole::Learner };
            Member { role, ..member.clone() }
        });
        Members::initial(other).ok().map(Arc::new)
    }

    /// Whether `to` accepts messages of `from`. Nodes that began with different lists are of different
    /// clusters.
    pub(super) fn is_of_one_cluster(&mut self, from: NodeId, to: NodeId) -> Result<bool, String> {
        let (Some(one), Some(other)) = (self.nodes.get(&from), self.nodes.get(&to)) else { return Ok(true) };
        if one.cluster_id != other.cluster_id {
            self.coverage.saw(Happened::OtherClusterRefused);
            return Ok(false);
        }
        let (one, other) = (one.lost == Some(Lost::OtherList), other.lost == Some(Lost::OtherList));
        membership::accepts_message(to, from, one == other)?;
        Ok(true)
    }

    // --- Addresses ---

    /// At intervals, a node connects to every member at its recorded address, and asks which node answers
    /// there.
    pub(super) fn probe_if_due(&mut self, id: NodeId) {
        let interval = self.world.config.ticks(self.world.config.heartbeat_interval).max(1);
        let is_due = self.running(id).is_some_and(|running| running.deadlines.now_ticks() % interval == 0);
        if !is_due {
            return;
        }
        self.probe(id);
        if let Some(node) = self.nodes.get_mut(&id)
            && node.lost == Some(Lost::RolledBack)
            && !node.asked_who_knows
            && !node.is_mute
            && node.running.as_ref().is_some_and(|running| !running.core.is_hearing())
        {
            node.is_mute = true;
            self.coverage.saw(Happened::RollBackUnknown);
        }
    }

    /// Connects to every member, and reports to `id` which of them answer, and whether they believe it.
    pub(crate) fn probe(&mut self, id: NodeId) {
        let Some(status) = self.status(id) else { return };
        for member in status.members.iter().filter(|member| member.id != id) {
            let answer = self.answers_at(id, member);
            if let Some(incarnation) = answer {
                self.invariants.live_majority.reaches(id, member.id, incarnation, &member.address);
            }
            match (self.running(id), answer) {
                (Some(running), Some(incarnation)) => {
                    running.core.peer_reached(member.id, incarnation, member.address.clone())
                }
                (Some(running), None) => running.core.peer_unreached(member.id),
                (None, _) => {}
            }
            self.ask_whether_believed(id, member);
        }
    }

    /// Asks each reachable node whether it believes this one. Other nodes are not waited for.
    fn ask_whether_believed(&mut self, id: NodeId, member: &Member) {
        let is_there = self.answers_at(id, member).is_some();
        if is_there && self.network.undecided.contains(&member.id) {
            return;
        }
        let asks = self.introduction(id, member.id);
        let asked = self.running(member.id).map(|there| &mut there.core).filter(|_| is_there);
        let answer = match (asks, asked) {
            (Some((sender, receiver)), Some(there)) => Some(there.check_sender(&sender, receiver)),
            (None, Some(_)) => return,
            (_, None) => None,
        };
        let life = self.nodes.get(&member.id).map(|there| there.life);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.asked_who_knows |=
            answer.is_some() && life.is_some() && node.known_by.get(&member.id) == life.as_ref();
        let Some(running) = &mut node.running else { return };
        match answer {
            Some(Ok(())) => running.core.peer_agrees(member.id),
            Some(Err(refusal)) => running.core.refused_by(member.id, refusal),
            None => running.core.peer_is_silent(member.id),
        }
    }

    /// The run of `member` that answers `from` at the recorded address.
    fn answers_at(&self, from: NodeId, member: &Member) -> Option<Incarnation> {
        let own = self.nodes.get(&from)?;
        let is_there = |node: &&crate::node::Node| node.is_running() && *node.address == *member.address;
        let there = self.nodes.values().find(is_there)?;
        let is_meant = there.id == member.id
            && there.cluster_id == own.cluster_id
            && member.incarnation.is_none_or(|known| known == there.incarnation);
        let is_heard = there.paused_until <= self.schedule.now()
            && !own.is_mute
            && !there.is_mute
            && self.network.delivers(from, there.id)
            && self.network.delivers(there.id, from);
        (is_meant && is_heard).then_some(there.incarnation)
    }

    /// A member introduces itself: `id` is notified if its membership has another address.
    pub(super) fn announce(&mut self, id: NodeId, members: &Members, sender: Sender, address: &str) {
        if members.get(sender.id).is_some_and(|member| member.address != address)
            && let Some(running) = self.running(id)
        {
            let address = address.to_owned();
            running.core.handle_server_request_msg(ServerRequestMsg::Announced { sender, address });
            self.coverage.saw(Happened::AddressAnnounced);
        }
    }

    /// A joining node was cleared, and has stopped: it restarts, and requests to join.
    pub(super) fn join_again(&mut self, id: NodeId) {
        let was_removed = self.invariants.membership.was_removed(id);
        if was_removed || self.nemesis.is_dead(id) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.lost.is_none()) else { return };
        node.is_gone = false;
        self.nemesis.waits(id);
        let delay = self.rng.about(SECOND);
        self.schedule.after(delay, Event::Start(id));
    }

    // --- Observations ---

    /// A leader appends a change that it has accepted, or decided by itself.
    pub(super) fn observe_proposed_changes(&self, id: NodeId, status: &Status, write: &Write) -> Checked {
        let Some(node) = self.nodes.get(&id).filter(|node| node.lost.is_none()) else { return Ok(()) };
        let Some(running) = node.running.as_ref().filter(|_| status.role == Role::Leader) else {
            return Ok(());
        };
        let own = write
            .append
            .iter()
            .filter(|entry| entry.kind == EntryKind::MembershipChange && entry.position.term == status.term);
        let (config, now) = (&self.world.config, running.deadlines.now_ticks());
        let patience = config.ticks(config.election_timeout) + 1;
        let hears = |peer: NodeId| running.heard.get(&peer).is_some_and(|heard| now - heard <= patience);
        // Other changes of the same turn may have been appended after this decision.
        let needed = LogIndex(running.log.last().0.saturating_sub(config.promotion_entries_max));
        let has_log = |joiner: NodeId| {
            let Some(node) = self.nodes.get(&joiner) else { return false };
            let is_not_checked = node.lost.is_some() || node.durable.state.hard_state.term > status.term;
            let digest = running.log.digest(needed);
            is_not_checked
                || (node.durable.log.last() >= needed
                    && digest.is_none_or(|digest| node.holds(needed, digest)))
        };
        for entry in own {
            let Ok(change) = MembershipChange::decode(&entry.payload) else { continue };
            let newest = self.invariants.membership.newest_members().unwrap_or(&status.members);
            let proposed = Proposed { leader: id, change: &change, before: &status.members, newest };
            self.invariants.live_majority.proposes(&proposed, hears, has_log)?;
        }
        Ok(())
    }

    /// A request about members is answered.
    pub(super) fn changed(
        &mut self,
        request: &MembershipRequest,
        answer: Result<Members, MembershipError>,
    ) -> Checked {
        let what = match answer {
            Ok(members) => {
                membership::changed(request, &members)?;
                if let Some(expected) = request.expected {
                    self.invariants.membership.changed_from(request, expected)?;
                }
                request.force.then_some(Happened::ChangeForced)
            }
            Err(MembershipError::WouldLoseMajority { .. }) => Some(Happened::StrandingChangeRefused),
            Err(MembershipError::MembershipMoved { .. }) => Some(Happened::MembershipMoved),
            Err(MembershipError::NotCaughtUp { .. }) => Some(Happened::NotCaughtUp),
            Err(MembershipError::NotReached { .. }) => Some(Happened::NotReached),
            Err(_) => None,
        };
        if let Some(what) = what {
            self.coverage.saw(what);
        }
        Ok(())
    }

    /// The membership `before` is followed by `after`.
    pub(super) fn count_joins(&mut self, before: &Members, after: &Members) {
        let mut promoted = 0;
        let is_there = |member: &Member| {
            self.nodes.get(&member.id).is_some_and(|node| *node.advertised == *member.address)
        };
        let mut recorded = 0;
        for member in before.iter() {
            match after.get(member.id) {
                Some(now) if member.role == MemberRole::Joining && now.role == MemberRole::Voter => {
                    promoted += 1
                }
                Some(now) if member.address != now.address && is_there(now) => recorded += 1,
                None if member.role == MemberRole::Joining && !after.is_removed(member.id) => {
                    self.cleared.insert(member.id);
                    self.coverage.saw(Happened::JoinerCleared);
                }
                _ => {}
            }
        }
        if after.iter().any(|member| before.get(member.id).is_none() && self.cleared.contains(&member.id)) {
            self.coverage.saw(Happened::JoinerCameBack);
        }
        if recorded > 0 {
            self.coverage.saw(Happened::AddressRecorded);
        }
        if promoted > 0 {
            self.coverage.saw(Happened::JoinerPromoted);
        }
        if promoted > 1 {
            self.coverage.saw(Happened::SeveralPromoted);
        }
    }

    /// Records the operator's requests, for the invariants.
    pub(crate) fn observe_asked(&mut self, request: &MembershipRequest) {
        self.invariants.live_majority.asked(request);
    }
}
