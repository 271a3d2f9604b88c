//! The requests of users. Those that have a method here are checked like the calls of the simulator's
//! clients.

use std::sync::Arc;
use std::time::Duration;

use raftify_core::error::{JoinError, MembershipError, ProposeError, ReadError, SnapshotError, StopReason};
use raftify_core::{
    Identity, LeaderRequest, LocalRequestMsg, LogIndex, LogPosition, Members, MembershipChange,
    MembershipRequest, NodeId, Reservation, Responder,
};

use super::outcome::{Outcome, outcome, responder, set};
use super::{Cluster, Reply};
use crate::answers::Answered;
use crate::clients::Asked;
use crate::store::Command;

/// All requests are those of one client, which has many at once.
const CLIENT: usize = 0;

impl Cluster {
    /// Sends `node` a request, and carries out what follows.
    pub fn local(&mut self, node: NodeId, message: LocalRequestMsg<Reply>) {
        self.step(|sim| sim.take_in_request(node, message));
    }

    /// Carries out everything that the core of `node` wants done, up to what takes time.
    pub fn run_turns(&mut self, node: NodeId) {
        self.step(|sim| sim.settle(node));
    }

    fn identity(&self, node: NodeId) -> Identity {
        Identity { cluster_id: self.cluster_id(), node_id: node, incarnation: self.incarnation(node) }
    }

    /// `node` begins the cluster with the first members.
    pub fn start_cluster(&mut self, node: NodeId) {
        let (identity, members) = (self.identity(node), Members::clone(&self.sim.initial));
        let reply = responder(&outcome());
        self.local(node, LocalRequestMsg::StartCluster { identity, members, reply });
    }

    /// Asks `node` once more to wait for its admission.
    pub fn await_cluster(&mut self, node: NodeId) -> Outcome<Result<(), JoinError>> {
        let (identity, answer) = (self.identity(node), outcome());
        self.local(node, LocalRequestMsg::AwaitCluster { identity, reply: responder(&answer) });
        answer
    }

    /// Writes a new value to a new key.
    pub fn propose(&mut self, node: NodeId) -> Outcome<Result<LogPosition, ProposeError>> {
        let value = self.sim.new_value();
        let command = Command::Write { key: value, value };
        let number = self.sim.begin_call(CLIENT, node, value, Asked::Command(command));
        let (result, answers) = (outcome(), self.sim.answers.clone());
        self.proposals.push(Arc::clone(&result));
        let slot = Arc::clone(&result);
        let reply = Reply::new(move |answer| {
            set(&slot, answer.clone().map(|(position, _)| position));
            answers.push(Answered::Proposed { number, answer });
        });
        let payload = command.encode(0);
        self.local(node, LocalRequestMsg::ForLeader(LeaderRequest::Propose { payload, reply }));
        result
    }

    /// Reads the key of the newest proposal.
    pub fn read(&mut self, node: NodeId) -> Outcome<Result<LogIndex, ReadError>> {
        let key = self.sim.clients.values;
        let number = self.sim.begin_call(CLIENT, node, key, Asked::Read);
        let (result, answers) = (outcome(), self.sim.answers.clone());
        let (slot, waits) = (Arc::clone(&result), self.sim.awaited_read(node));
        let reply = Responder::new(move |answer: Result<LogIndex, ReadError>| {
            drop(waits);
            set(&slot, answer.clone());
            answers.push(Answered::Read { number, node, answer });
        });
        self.local(node, LocalRequestMsg::ReadIndex { reply });
        result
    }

    /// Reserves a node id. No node is added.
    pub fn reserve_id(&mut self, node: NodeId) -> Outcome<Result<Reservation, MembershipError>> {
        let result = outcome();
        let reply = self.tracked(format!("node id on {node}"), &result);
        self.reservations.push(Arc::clone(&result));
        self.local(node, LocalRequestMsg::ForLeader(LeaderRequest::ReserveNodeId { reply }));
        result
    }

    /// Requests a change by force: without regard to majorities, and to how far nodes are behind.
    pub fn change(
        &mut self,
        node: NodeId,
        change: MembershipChange,
    ) -> Outcome<Result<Members, MembershipError>> {
        self.request(node, MembershipRequest::from(change).forced())
    }

    /// Requests a change as a user does.
    pub fn request(
        &mut self,
        node: NodeId,
        request: MembershipRequest,
    ) -> Outcome<Result<Members, MembershipError>> {
        let (request, result) = self.change_request(node, request);
        self.local(node, LocalRequestMsg::ForLeader(request));
        result
    }

    /// Requests a change that must be answered within this time.
    pub fn request_within(
        &mut self,
        node: NodeId,
        request: MembershipRequest,
        within: Duration,
    ) -> Outcome<Result<Members, MembershipError>> {
        let (request, result) = self.change_request(node, request);
        self.local(node, LocalRequestMsg::ForLeaderWithin { request, within, waits: true });
        result
    }

    fn change_request(
        &mut self,
        node: NodeId,
        request: MembershipRequest,
    ) -> (LeaderRequest<Reply>, Outcome<Result<Members, MembershipError>>) {
        self.sim.observe_asked(&request);
        let number = self.sim.invariants.answers.asked(format!("change of members on {node}"));
        let (result, answers, asked) = (outcome(), self.sim.answers.clone(), request.clone());
        let slot = Arc::clone(&result);
        let reply = Responder::new(move |answer: Result<Members, MembershipError>| {
            set(&slot, answer.clone());
            answers.push(Answered::Changed { number, request: asked, answer });
        });
        (LeaderRequest::ChangeMembership { request, reply }, result)
    }

    /// Requests a snapshot of the state machine of `node`.
    pub fn make_snapshot(&mut self, node: NodeId) -> Outcome<Result<LogPosition, SnapshotError>> {
        let result = outcome();
        let reply = self.tracked(format!("snapshot of {node}"), &result);
        self.local(node, LocalRequestMsg::MakeSnapshot { reply });
        result
    }

    /// A reply channel of a request that must get exactly one answer.
    fn tracked<T, E>(&mut self, what: String, outcome: &Outcome<Result<T, E>>) -> Responder<T, E>
    where
        T: std::fmt::Debug + Send + 'static,
        E: std::fmt::Debug + From<StopReason> + Send + 'static,
    {
        let number = self.sim.invariants.answers.asked(what);
        let (slot, answers) = (Arc::clone(outcome), self.sim.answers.clone());
        Responder::new(move |answer: Result<T, E>| {
            let succeeded = answer.is_ok();
            set(&slot, answer);
            answers.push(Answered::Done { number, what: None, succeeded });
        })
    }
}
