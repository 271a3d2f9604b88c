#!/bin/sh
# raft 0.7.0 (crates.io): a follower accepts a proposal that its leader then drops, and leadership transfer has no result.
#
# A leader that transfers its leadership drops proposals. A follower forwards a proposal and returns `Ok`, whatever
# its outcome: during a transfer, the proposal is lost, and only the leader's `step` returns an error, to the program
# that delivered the message. If the target of the transfer is down, the leader aborts it after an election timeout
# and accepts proposals again; neither `transfer_leader` nor a later call reports which of the two happened.
#
# Seen: propose on node 3: Ok(()), step on node 1: Err(ProposalDropped); after the election timeout node 1 still leads,
#       a second proposal is in all logs that are up, the first in none
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
use raft::eraftpb::Message;
use raft::{storage::MemStorage, Config, Error, GetEntriesContext, RawNode, StateRole, Storage};

fn drive(node: &mut RawNode<MemStorage>) -> Vec<Message> {
    let mut messages = vec![];
    while node.has_ready() {
        let mut ready = node.ready();
        node.mut_store().wl().append(ready.entries()).unwrap();
        ready.hs().map(|state| node.mut_store().wl().set_hardstate(state.clone()));
        messages.extend(ready.take_messages());
        messages.extend(ready.take_persisted_messages());
        messages.extend(node.advance(ready).take_messages());
        node.advance_apply();
    }
    messages
}

/// Delivers all messages but those to `down`, until there are none; returns the errors of `step`.
fn exchange(nodes: &mut [RawNode<MemStorage>], down: u64) -> Vec<Error> {
    let mut errors = vec![];
    loop {
        let messages: Vec<_> = nodes.iter_mut().flat_map(drive).collect();
        if messages.is_empty() {
            return errors;
        }
        for message in messages.into_iter().filter(|message| message.to != down) {
            errors.extend(nodes[message.to as usize - 1].step(message).err());
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
    nodes[0].campaign().unwrap();
    exchange(&mut nodes, 0);
    nodes[0].transfer_leader(2);
    exchange(&mut nodes, 2);
    let proposed = nodes[2].propose(vec![], b"first".to_vec());
    let errors = exchange(&mut nodes, 2);
    println!("propose on node 3: {proposed:?}, step on node 1: {errors:?}");
    assert!(proposed.is_ok() && matches!(errors[..], [Error::ProposalDropped]));
    for _ in 0..nodes[0].raft.election_timeout() + 1 {
        nodes[0].tick();
        exchange(&mut nodes, 2);
    }
    assert!(nodes[0].raft.state == StateRole::Leader && nodes[0].raft.lead_transferee.is_none());
    nodes[2].propose(vec![], b"second".to_vec()).unwrap();
    assert!(exchange(&mut nodes, 2).is_empty());
    for node in [&nodes[0], &nodes[2]] {
        let last = node.store().last_index().unwrap();
        let log = node.store().entries(1, last + 1, None, GetEntriesContext::empty(false)).unwrap();
        let log: Vec<_> = log.iter().map(|entry| String::from_utf8_lossy(&entry.data)).collect();
        println!("log of node {}: {log:?}", node.raft.id);
        assert_eq!(log, ["", "second"]);
    }
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
