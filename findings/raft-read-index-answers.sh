#!/bin/sh
# raft 0.7.0 (crates.io): `read_index` returns nothing, and two kinds of reads are dropped silently.
#
# `RawNode::read_index` takes a context, and the answer comes as a `ReadState` with that context. Two reads with the
# same context get one answer. A read that a new leader receives before it has committed an entry of its term gets
# none, not even after that commit. `read_index` returns no error in these cases: a program needs unique contexts and
# deadlines, and must repeat the read.
#
# Seen: before the first commit of the term: 0 answers of 1; contexts "a", "a", "b" afterwards: answers a, b
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
use raft::{storage::MemStorage, Config, RawNode, StateRole};

/// Stores what a node has ready; returns its messages, and the contexts of answered reads.
fn drive(node: &mut RawNode<MemStorage>, answers: &mut Vec<String>) -> Vec<Message> {
    let mut messages = vec![];
    while node.has_ready() {
        let mut ready = node.ready();
        node.mut_store().wl().append(ready.entries()).unwrap();
        ready.hs().map(|state| node.mut_store().wl().set_hardstate(state.clone()));
        messages.extend(ready.take_messages());
        messages.extend(ready.take_persisted_messages());
        let read = ready.take_read_states().into_iter();
        answers.extend(read.map(|state| String::from_utf8(state.request_ctx).unwrap()));
        let mut light = node.advance(ready);
        messages.extend(light.take_messages());
        node.advance_apply();
    }
    messages
}

/// Delivers all messages until there are none, or until node 1 leads.
fn exchange(nodes: &mut [RawNode<MemStorage>], until_elected: bool) -> Vec<String> {
    let mut answers = vec![];
    loop {
        let messages: Vec<_> = nodes.iter_mut().flat_map(|node| drive(node, &mut answers)).collect();
        if messages.is_empty() {
            return answers;
        }
        for message in messages {
            nodes[message.to as usize - 1].step(message).unwrap();
            if until_elected && nodes[0].raft.state == StateRole::Leader {
                return answers;
            }
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
    exchange(&mut nodes, true);
    nodes[0].read_index(b"early".to_vec());
    let early = exchange(&mut nodes, false);
    assert!(nodes[0].raft.raft_log.committed > 0);
    for context in ["a", "a", "b"] {
        nodes[0].read_index(context.into());
    }
    let answers = exchange(&mut nodes, false);
    println!("before the first commit: {early:?}; afterwards: {answers:?}");
    assert!(early.is_empty() && answers == ["a", "b"]);
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
