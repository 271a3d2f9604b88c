#!/bin/sh
# raft 0.7.0 (crates.io): a membership change that is proposed while another one is pending is accepted and lost.
#
# A leader with one voter is asked to add voter 2 and, before that is applied, to add voter 3. Both calls of
# `propose_conf_change` return `Ok`. The log then has the first change and, in place of the second one, a normal entry
# without data and without context. The program cannot distinguish it from a leader's first entry of a term.
#
# Seen: first Ok, second Ok
#       index 1 EntryNormal 0 bytes / index 2 EntryConfChangeV2 with data / index 3 EntryNormal 0 bytes
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
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, EntryType};
use raft::{storage::MemStorage, Config, RawNode, Storage, GetEntriesContext};

fn add(id: u64) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.node_id = id;
    single.set_change_type(ConfChangeType::AddNode);
    let mut change = ConfChangeV2::default();
    change.changes.push(single);
    change
}

fn main() {
    let config = Config { id: 1, ..Config::default() };
    let storage = MemStorage::new_with_conf_state((vec![1], vec![]));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = RawNode::new(&config, storage, &logger).unwrap();
    node.campaign().unwrap();
    // Two changes after each other, the second before the first is committed and applied.
    let first = node.propose_conf_change(b"first".to_vec(), add(2)).is_ok();
    let second = node.propose_conf_change(b"second".to_vec(), add(3)).is_ok();
    println!("first Ok: {first}, second Ok: {second}");
    let ready = node.ready();
    node.mut_store().wl().append(ready.entries()).unwrap();
    let last = node.store().last_index().unwrap();
    let log = node.store().entries(1, last + 1, None, GetEntriesContext::empty(false)).unwrap();
    for entry in &log {
        let (kind, data) = (entry.get_entry_type(), entry.get_data().len());
        println!("index {} {kind:?}, data {data} bytes, context {:?}", entry.index, entry.context);
    }
    assert!(first && second && log.len() == 3);
    assert_eq!((log[1].get_entry_type(), &log[1].context[..]), (EntryType::EntryConfChangeV2, &b"first"[..]));
    assert_eq!(log[2].get_entry_type(), EntryType::EntryNormal);
    assert!(log[2].get_data().is_empty() && log[2].context.is_empty());
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
