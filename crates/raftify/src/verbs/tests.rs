//! Every request and every reply is read as it was written.

use std::fmt::Debug;

use raftify_core::error::{LeaderHint, StopReason};
use raftify_core::{
    LogIndex, LogPosition, Member, MemberChange, Members, MembershipChange, NodeId, Reservation, Status,
    Term, VerbError,
};

use super::verb::{Answered, NotAnswered, Verb};
use super::{
    change_membership::ChangeMembership, identify::Identify, inspect::Inspect, leave::Leave,
    make_snapshot::MakeSnapshot, propose::Propose, read_index::ReadIndex, reserve_node_id::ReserveNodeId,
    transfer_leader::TransferLeader,
};
use crate::wire::identification::Identification;
use crate::wire::{self, proto};

/// Returns the request as the server reads it, with whether it was forwarded.
fn passes<V: Verb<Answer: Clone + Debug + PartialEq>>(verb: V, answer: V::Answer) -> (V, bool) {
    let header = wire::header(None);
    let reply = V::to_reply(Some(header), Ok(answer.clone()));
    match V::from_reply(reply) {
        Ok(Answered { answer: read, .. }) => assert_eq!(read, answer),
        Err(_) => panic!("no answer"),
    }
    let asked = V::from_wire(verb.to_wire(header, true));
    assert_eq!(asked.header, Some(header));
    (asked.verb.unwrap(), asked.forwarded)
}

/// A refusal is read as a refusal, never as an answer.
fn refuses<V: Verb>() {
    let leader = LeaderHint { id: NodeId::FIRST, address: "localhost:1".to_owned() };
    for error in [V::Error::not_leader(leader), StopReason::Stopping.into()] {
        let reply = V::to_reply(Some(wire::header(None)), Err(wire::refusal_to_wire(&error)));
        match V::from_reply(reply) {
            Err(NotAnswered::Refusal(refusal)) => {
                assert_eq!(wire::refusal_from_wire::<V::Error>(&refusal), Some(error));
            }
            _ => panic!("{error} was not read as a refusal"),
        }
        assert!(matches!(V::from_reply(V::Reply::default()), Err(NotAnswered::Malformed(_))));
    }
}

fn members() -> Members {
    Members::initial([Member::voter(NodeId::FIRST, "localhost:1")]).unwrap()
}

#[test]
fn requests_and_answers_are_read_as_they_were_written() {
    let (propose, forwarded) = passes(Propose { payload: b"entry"[..].into() }, b"reply"[..].into());
    assert_eq!((&*propose.payload, forwarded), (&b"entry"[..], true));
    let request = MembershipChange::one(MemberChange::Remove(NodeId::FIRST)).into();
    let (change, forwarded) = passes(ChangeMembership { request }, members());
    assert_eq!(change.request, MembershipChange::one(MemberChange::Remove(NodeId::FIRST)).into());
    assert!(forwarded);
    let reservation = Reservation { node_id: NodeId::FIRST, leader: NodeId::FIRST, members: members() };
    assert!(passes(ReserveNodeId, reservation).1);
    for to in [None, Some(NodeId::FIRST)] {
        let (transfer, forwarded) = passes(TransferLeader { to }, NodeId::FIRST);
        assert_eq!((transfer.to, forwarded), (to, true));
    }
    let (snapshot, forwarded) = passes(MakeSnapshot { id: NodeId::FIRST }, LogPosition::new(2, 7));
    assert_eq!((snapshot.id, forwarded), (NodeId::FIRST, false));
    for force in [false, true] {
        let (leave, forwarded) = passes(Leave { id: NodeId::FIRST, force }, ());
        assert_eq!((leave.id, leave.force, forwarded), (NodeId::FIRST, force, false));
    }
    assert!(!passes(ReadIndex, LogIndex(7)).1, "only the leader serves it, and it is never forwarded");
    let status = Status { term: Term(1), members: members().into(), ..Status::initial(NodeId::FIRST) };
    let inspection = raftify_core::Inspection {
        status,
        progress: Vec::new(),
        proposals_waiting: 3,
        reads_waiting: 0,
        log_cache_bytes: 0,
        durable: LogIndex(8),
        storage_full: Vec::new(),
        disk: None,
    };
    passes(Inspect, inspection);
    let identification = Identification {
        node_id: NodeId::FIRST,
        address: "localhost:1".to_owned(),
        identity: None,
        members: members(),
        leader_id: None,
        plan: None,
        agrees: true,
    };
    passes(Identify::anonymous(), identification);
}

#[test]
fn refusals_are_read_as_they_were_written_and_an_empty_reply_is_no_answer() {
    refuses::<Propose>();
    refuses::<ChangeMembership>();
    refuses::<ReserveNodeId>();
    refuses::<TransferLeader>();
    refuses::<ReadIndex>();
    refuses::<Inspect>();
    refuses::<MakeSnapshot>();
    refuses::<Leave>();
}

#[test]
fn a_request_of_malformed_values_is_read_as_malformed() {
    let header = Some(wire::header(None));
    let transfer = proto::TransferLeaderRequest { header, to: Some(0), forwarded: false };
    let malformed = TransferLeader::from_wire(transfer).verb.unwrap_err();
    assert_eq!(malformed.to_string(), "the new leader's id is zero, which is not possible");
    let leave = proto::LeaveRequest { header, node_id: 0, force: true };
    assert_eq!(
        Leave::from_wire(leave).verb.unwrap_err().to_string(),
        "the node's id is zero, which is not possible"
    );
    assert!(MakeSnapshot::from_wire(proto::MakeSnapshotRequest { header, node_id: 0 }).verb.is_err());
    let request = b"no change"[..].into();
    let change = proto::ChangeMembershipRequest { header, request, forwarded: false };
    assert!(ChangeMembership::from_wire(change).verb.is_err());
}
