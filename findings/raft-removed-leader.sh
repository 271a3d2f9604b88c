#!/bin/sh
# raft 0.7.0 (crates.io): a leader that applies its own removal keeps leading, and drops every proposal.
#
# Three voters elect node 1, which proposes its own removal; all three nodes apply it. Node 1 stays leader, its
# heartbeats keep nodes 2 and 3 from electing one of them, and each proposal to it fails with `ProposalDropped`.
# No part of the crate ends this: the program must detect the removal and step down, or transfer leadership first.
#
# Seen: after 200 ticks node 1 Leader, node 2 Follower, node 3 Follower; a proposal: Err(ProposalDropped)
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
raft = { version = "=0.7.0", default-features = false, features = ["protobuf-codec"] }
slog = "=2.8.2"
TOML
cat > src/main.rs <<'RUST'
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, EntryType, Message};
use raft::{storage::MemStorage, Config, Error, RawNode, StateRole};

/// Stores and applies all that a node has ready; returns its messages.
fn drive(node: &mut RawNode<MemStorage>, removal: &ConfChangeV2) -> Vec<Message> {
    let mut messages = vec![];
    while node.has_ready() {
        let mut ready = node.ready();
        node.mut_store().wl().append(ready.entries()).unwrap();
        ready.hs().map(|state| node.mut_store().wl().set_hardstate(state.clone()));
        messages.extend(ready.take_messages());
        messages.extend(ready.take_persisted_messages());
        let mut committed = ready.take_committed_entries();
        let mut light = node.advance(ready);
        messages.extend(light.take_messages());
        committed.extend(light.take_committed_entries());
        for entry in committed {
            if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
                let state = node.apply_conf_change(removal).unwrap();
                node.mut_store().wl().set_conf_state(state);
            }
        }
        node.advance_apply();
    }
    messages
}

fn exchange(nodes: &mut [RawNode<MemStorage>], removal: &ConfChangeV2) {
    loop {
        let messages: Vec<_> = nodes.iter_mut().flat_map(|node| drive(node, removal)).collect();
        if messages.is_empty() {
            return;
        }
        for message in messages {
            let _ = nodes[message.to as usize - 1].step(message);
        }
    }
}

fn main() {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut nodes: Vec<_> = (1..=3)
        .map(|id| {
            let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
            RawNode::new(&Config { id, ..Config::default() }, storage, &logger).unwrap()
        })
        .collect();
    let mut single = ConfChangeSingle { node_id: 1, ..Default::default() };
    single.set_change_type(ConfChangeType::RemoveNode);
    let removal = ConfChangeV2 { changes: vec![single].into(), ..Default::default() };
    nodes[0].campaign().unwrap();
    exchange(&mut nodes, &removal);
    nodes[0].propose_conf_change(vec![], removal.clone()).unwrap();
    exchange(&mut nodes, &removal);
    assert!(nodes.iter().all(|node| !node.raft.prs().conf().voters().contains(1)));
    for _ in 0..200 {
        nodes.iter_mut().for_each(|node| _ = node.tick());
        exchange(&mut nodes, &removal);
    }
    let roles: Vec<_> = nodes.iter().map(|node| node.raft.state).collect();
    let proposal = nodes[0].propose(vec![], b"value".to_vec());
    println!("after 200 ticks: {roles:?}; a proposal: {proposal:?}");
    assert_eq!(roles, [StateRole::Leader, StateRole::Follower, StateRole::Follower]);
    assert!(matches!(proposal, Err(Error::ProposalDropped)));
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
