#!/bin/sh
# raft 0.7.0 (crates.io): a snapshot from before its receiver was a member is accepted and discarded, without an
# error.
#
# A node that was just added needs a snapshot. If the leader's newest one was taken before, its `ConfState` does not
# contain that node: `step` returns `Ok`, no snapshot becomes ready, and the answer is that of a node that accepts
# messages, but has no entries yet. A program must make sure that the snapshot was taken after the addition of its
# receiver.
# Seen: ConfState of 1: step Ok, no snapshot, answer MsgAppendResponse index 0, not rejected
#       ConfState of 1 and 2: step Ok, snapshot at index 10
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
use raft::eraftpb::{Message, MessageType, Snapshot};
use raft::{storage::MemStorage, Config, RawNode};

/// Sends node 2, which is empty, a snapshot of a cluster of `voters`. Its index if it was taken in, and the answers.
fn restore(voters: &[u64]) -> (u64, Vec<Message>) {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = RawNode::new(&Config { id: 2, ..Config::default() }, MemStorage::new(), &logger).unwrap();
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = 10;
    snapshot.mut_metadata().term = 1;
    snapshot.mut_metadata().mut_conf_state().voters = voters.to_vec();
    let mut message = Message { from: 1, to: 2, term: 1, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    node.step(message).expect("a snapshot is never refused with an error");
    let mut ready = node.ready();
    let index = ready.snapshot().get_metadata().index;
    let mut answers = ready.take_messages();
    answers.extend(ready.take_persisted_messages());
    (index, answers)
}

fn main() {
    for (voters, taken) in [(&[1][..], 0), (&[1, 2][..], 10)] {
        let (index, answers) = restore(voters);
        let answer = &answers[0];
        let kind = answer.get_msg_type();
        println!("ConfState of {voters:?}: snapshot {index}, answer {kind:?} {} {}", answer.index, answer.reject);
        assert_eq!((index, answers.len()), (taken, 1));
        assert_eq!((kind, answer.index, answer.reject), (MessageType::MsgAppendResponse, taken, false));
    }
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
