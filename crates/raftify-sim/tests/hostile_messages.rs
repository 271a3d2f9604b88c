//! No message, whatever it says, may panic a node: raft-rs asserts what a correct peer would never send, and
//! the seam must refuse it first.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use proptest::prelude::*;
use raftify_core::message::CampaignReason;
use raftify_core::{
    Entry, EntryKind, Incarnation, LogIndex, LogPosition, Members, NodeId, RaftMessage, RaftMessageBody,
    RunId, Sender, ServerRequestMsg, SnapshotMeta, Started, Term,
};
use raftify_sim::script::{Cluster, id, outcome, responder, test_config};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0_u64..12, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 2), 1 => any::<u64>()]
}

fn position() -> impl Strategy<Value = LogPosition> {
    (number(), number()).prop_map(|(term, index)| LogPosition::new(term, index))
}

fn entry() -> impl Strategy<Value = Entry> {
    (position(), 0_u8..4, proptest::collection::vec(any::<u8>(), 0..6)).prop_map(
        |(position, kind, payload)| Entry {
            position,
            kind: EntryKind::from_number(kind).unwrap(),
            payload: Bytes::from(payload),
        },
    )
}

/// Entries that follow each other, so that some get past the first checks.
fn entries_after() -> impl Strategy<Value = (LogPosition, Vec<Entry>)> {
    let consecutive =
        (position(), proptest::collection::vec(entry(), 0..4)).prop_map(|(previous, mut entries)| {
            let mut index = previous.index.0;
            for entry in &mut entries {
                index = index.wrapping_add(1);
                entry.position.index = LogIndex(index);
            }
            (previous, entries)
        });
    prop_oneof![3 => consecutive, 1 => (position(), proptest::collection::vec(entry(), 0..4))]
}

fn body() -> impl Strategy<Value = RaftMessageBody> {
    let index = || number().prop_map(LogIndex);
    let round = || proptest::option::of(any::<u64>());
    prop_oneof![
        4 => (entries_after(), index()).prop_map(|((previous, entries), commit)| RaftMessageBody::Append {
            previous, commit, entries
        }),
        2 => (index(), index(), proptest::option::of(position())).prop_map(|(index, commit, rejection)| {
            RaftMessageBody::AppendResponse { index, commit, rejection }
        }),
        1 => (position(), position(), any::<bool>()).prop_map(|(last, commit, transfer)| {
            let reason = if transfer { CampaignReason::Transfer } else { CampaignReason::Timeout };
            RaftMessageBody::RequestVote { last, commit, reason }
        }),
        1 => (position(), position()).prop_map(|(last, commit)| RaftMessageBody::RequestPreVote { last, commit }),
        1 => (any::<bool>(), position()).prop_map(|(granted, commit)| {
            RaftMessageBody::VoteResponse { granted, commit }
        }),
        1 => (any::<bool>(), position()).prop_map(|(granted, commit)| {
            RaftMessageBody::PreVoteResponse { granted, commit }
        }),
        2 => (index(), round()).prop_map(|(commit, read_round)| RaftMessageBody::Heartbeat { commit, read_round }),
        1 => (index(), round()).prop_map(|(commit, read_round)| {
            RaftMessageBody::HeartbeatResponse { commit, read_round }
        }),
        1 => Just(RaftMessageBody::TimeoutNow),
        1 => Just(RaftMessageBody::StorageFull),
        1 => (number(), index()).prop_map(|(vote, index)| RaftMessageBody::DurableState {
            vote: NodeId::new(vote),
            index
        }),
        1 => (number(), any::<u64>()).prop_map(|(starts, run)| RaftMessageBody::DuplicateNode { starts, run: RunId(run) }),
    ]
}

#[derive(Clone, Debug)]
enum Hostile {
    Message { from: u64, to: u64, term: u64, body: RaftMessageBody },
    Snapshot { from: u64, term: u64, position: LogPosition, with_receiver: bool },
    Tick,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    prop_oneof![
        8 => (1_u64..5, 1_u64..4, number(), body())
            .prop_map(|(from, to, term, body)| Hostile::Message { from, to, term, body }),
        1 => (1_u64..5, number(), position(), any::<bool>()).prop_map(|(from, term, position, with_receiver)| {
            Hostile::Snapshot { from, term, position, with_receiver }
        }),
        2 => Just(Hostile::Tick),
    ]
}

/// One node gets all of it; what it says to others is lost. Its core is stepped past the invariants: what it
/// believes of lies is not judged, only that it does not panic.
fn attack(victim: NodeId, cluster: &mut Cluster, messages: Vec<Hostile>) {
    for message in messages {
        let sender = |from: NodeId, cluster: &mut Cluster| match cluster.is_running(from) {
            true => Sender { members_as_of: LogIndex(1_000_000), ..cluster.introduction(from, victim).0 },
            false => Sender {
                id: from,
                incarnation: Incarnation(99),
                members_as_of: LogIndex(1_000_000),
                started: Started::default(),
            },
        };
        let members = Members::clone(&cluster.core(victim).status().members);
        let request = match message {
            Hostile::Tick => {
                cluster.core(victim).tick();
                if cluster.core(victim).stop_reason().is_some() {
                    return;
                }
                continue;
            }
            Hostile::Message { from, to, term, body } => {
                let from = id(from);
                let message = RaftMessage { from, to: id(to), term: Term(term), body };
                let sender = sender(from, cluster);
                ServerRequestMsg::RaftMessages { sender, receiver: None, messages: vec![message] }
            }
            Hostile::Snapshot { from, term, position, with_receiver } => ServerRequestMsg::InstallSnapshot {
                sender: sender(id(from), cluster),
                receiver: None,
                term: Term(term),
                snapshot: SnapshotMeta {
                    cluster_id: cluster.cluster_id(),
                    position,
                    members: if with_receiver { members } else { Members::none() },
                },
                reply: responder(&outcome()),
            },
        };
        cluster.core(victim).handle_server_request_msg(request);
        while let Some(turn) = cluster.core(victim).ready() {
            // Disk and state machine are of no interest here: the one keeps up, the other does not.
            if turn.write.is_some() || !turn.send_after.is_empty() {
                cluster.core(victim).written(turn.number);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_follower_survives_any_message(messages in proptest::collection::vec(hostile(), 1..40)) {
        let mut cluster = Cluster::new(11, 3, test_config());
        let leader = cluster.until_leader();
        cluster.until_proposed(leader);
        let victim = cluster.ids().into_iter().find(|node| *node != leader).unwrap();
        attack(victim, &mut cluster, messages);
    }

    #[test]
    fn a_leader_survives_any_message(messages in proptest::collection::vec(hostile(), 1..40)) {
        let mut cluster = Cluster::new(11, 3, test_config());
        let leader = cluster.until_leader();
        cluster.until_proposed(leader);
        attack(leader, &mut cluster, messages);
    }
}
