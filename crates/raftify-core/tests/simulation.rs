//! Random histories: elections, partitions, crashes, slow disks, lagging followers, snapshots, membership changes and
//! transfers at any moment. Safety is checked after every step, liveness after everything is repaired.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cluster;

use cluster::{Cluster, id, responder, test_config};
use raftify_core::{
    LeaderRequest, LocalRequestMsg, Member, MemberChange, MembershipChange, members::LeaveJoint,
};
use rand::RngExt;

/// One history, decided by `seed` alone. Returns its trace.
fn history(seed: u64) -> Vec<String> {
    let voters = 1 + seed % 5;
    let mut cluster = Cluster::new(seed, voters, test_config());
    let mut next_node = voters + 1;
    cluster.loss_percent = if cluster.rng.random_bool(0.5) { 0 } else { cluster.rng.random_range(1..20) };
    cluster.disorder_percent = if cluster.rng.random_bool(0.7) { 0 } else { cluster.rng.random_range(1..15) };
    for _ in 0..300 {
        let nodes = cluster.ids();
        let node = nodes[cluster.rng.random_range(0..nodes.len())];
        let steps = cluster.rng.random_range(0..30);
        cluster.jostle(steps);
        match cluster.rng.random_range(0..100) {
            0..30 => nodes.iter().for_each(|node| cluster.tick(*node)),
            30..38 => (0..3).for_each(|_| cluster.tick(node)),
            38..68 => {
                cluster.propose(node);
            }
            68..76 => {
                cluster.read(node);
            }
            76..80 => cluster.crash(node),
            80..88 => {
                if cluster.nodes[&node].running.is_none() {
                    cluster.start(node);
                    cluster.trace.push(format!("start {node}"));
                }
            }
            88..91 => {
                let other = nodes[cluster.rng.random_range(0..nodes.len())];
                cluster.cut.insert((node, other));
                if cluster.rng.random_bool(0.7) {
                    cluster.cut.insert((other, node));
                }
            }
            91..93 => cluster.cut.clear(),
            93..94 => {
                if !cluster.hung_disks.remove(&node) {
                    cluster.hung_disks.insert(node);
                }
            }
            94..96 => {
                cluster.make_snapshot(node);
            }
            96..98 => {
                let to = Some(nodes[cluster.rng.random_range(0..nodes.len())]);
                let reply = responder(&cluster::outcome());
                cluster.local(node, LocalRequestMsg::ForLeader(LeaderRequest::TransferLeader { to, reply }));
            }
            _ => change_members(&mut cluster, node, &mut next_node),
        }
        if let Some(leader) = cluster.leader() {
            let status = cluster.status(leader).unwrap();
            cluster.trace.push(format!(
                "{leader} leads {} last {} commit {}",
                status.term, status.last, status.commit
            ));
        }
    }
    cluster.check_recovery();
    cluster.trace
}

fn change_members(cluster: &mut Cluster, node: raftify_core::NodeId, next_node: &mut u64) {
    let nodes = cluster.ids();
    let other = nodes[cluster.rng.random_range(0..nodes.len())];
    let joiner = |cluster: &mut Cluster, next_node: &mut u64| {
        let joiner = id(*next_node);
        *next_node += 1;
        cluster.add_node(joiner);
        cluster.await_cluster(joiner);
        while cluster.complete_write(joiner) {}
        Member {
            incarnation: Some(cluster.nodes[&joiner].incarnation),
            ..Member::voter(joiner, format!("node-{joiner}:1"))
        }
    };
    let many = nodes.len() > 6;
    let change = match cluster.rng.random_range(0..5) {
        0 | 1 if !many => MembershipChange::one(MemberChange::Add(joiner(cluster, next_node))),
        2 if !many => {
            let steps = vec![MemberChange::Add(joiner(cluster, next_node)), MemberChange::Remove(other)];
            let leave =
                if cluster.rng.random_bool(0.5) { LeaveJoint::Automatically } else { LeaveJoint::OnRequest };
            MembershipChange::Steps { steps, leave }
        }
        3 => MembershipChange::LeaveJoint,
        _ => MembershipChange::one(MemberChange::Remove(other)),
    };
    cluster.trace.push(format!("{node} is asked for {change:?}"));
    cluster.change(node, change);
}

#[test]
fn what_raft_promises_holds_in_random_histories() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150);
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let run = std::panic::catch_unwind(|| history(seed));
        assert!(run.is_ok(), "seed {seed} failed: run it alone with SEED={seed} SEEDS=1");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [1, 2, 3] {
        assert_eq!(history(seed), history(seed));
    }
}
