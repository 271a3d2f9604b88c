//! The steps of a proposal, each alone: `cargo bench -p raftify-bench`.

use bytes::Bytes;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use raftify::status::{LogIndex, Term};
use raftify::storage::{Entry, EntryKind};
use raftify::{LogEntry, LogPosition, NodeId};
use raftify_core::{RaftMessage, RaftMessageBody};
use serde::{Deserialize, Serialize};

const BATCHES: [u64; 3] = [1, 64, 256];
const ENTRY_BYTES: usize = 64;

fn main() {
    divan::main();
}

fn entries(count: u64) -> Vec<Entry> {
    let payload = Bytes::from(vec![7; ENTRY_BYTES]);
    let entry = |index| Entry {
        position: LogPosition { term: Term(3), index: LogIndex(index) },
        kind: EntryKind::User,
        payload: payload.clone(),
    };
    (2..2 + count).map(entry).collect()
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).expect("no id here is zero")
}

fn append(count: u64) -> RaftMessage {
    let previous = LogPosition { term: Term(3), index: LogIndex(1) };
    let body = RaftMessageBody::Append { previous, commit: LogIndex(1), entries: entries(count) };
    RaftMessage { from: node(1), to: node(2), term: Term(3), body }
}

#[derive(Serialize, Deserialize)]
struct Insert {
    key: String,
    value: String,
}

/// The first step of `propose` in a user's program, and the last one of the applier.
#[divan::bench]
fn user_entry_encoded_and_decoded(bencher: Bencher) {
    let insert = Insert { key: "k".repeat(16), value: "v".repeat(ENTRY_BYTES - 16) };
    bencher.bench(|| {
        Insert::decode(&black_box(&insert).encode().expect("text can be encoded")).map(|it| it.key)
    });
}

/// Another step of `propose`: the check that the entry round-trips.
#[divan::bench(args = [ENTRY_BYTES, 1 << 10, 1 << 16, 1 << 20])]
fn user_entry_checked(bencher: Bencher, bytes: usize) {
    let insert = Insert { key: "k".repeat(16), value: "v".repeat(bytes - 16) };
    let encoded = insert.encode().expect("text can be encoded");
    bencher.bench(|| black_box(&insert).check_round_trip(black_box(&encoded)).is_ok());
}

/// The part of it that was done before: decoding the entry.
#[divan::bench(args = [ENTRY_BYTES, 1 << 10, 1 << 16, 1 << 20])]
fn user_entry_decoded(bencher: Bencher, bytes: usize) {
    let insert = Insert { key: "k".repeat(16), value: "v".repeat(bytes - 16) };
    let encoded = insert.encode().expect("text can be encoded");
    bencher.bench(|| Insert::decode(black_box(&encoded)).map(|it| it.key));
}

/// From a message of the core to bytes for the socket.
#[divan::bench(args = BATCHES)]
fn append_to_wire(bencher: Bencher, count: u64) {
    let bencher = bencher.counter(ItemsCount::new(count)).with_inputs(|| append(count));
    bencher.bench_values(raftify::testing::encode_message);
}

/// From bytes to a checked message for the core.
#[divan::bench(args = BATCHES)]
fn append_from_wire(bencher: Bencher, count: u64) {
    let bytes = Bytes::from(raftify::testing::encode_message(append(count)));
    bencher
        .counter(ItemsCount::new(count))
        .bench(|| raftify::testing::decode_message(black_box(&bytes).clone(), node(1), node(2)).is_ok());
}

/// The table of pending proposals.
#[divan::bench(args = BATCHES)]
fn proposals_table(bencher: Bencher, count: u64) {
    bencher.counter(ItemsCount::new(count)).bench(|| raftify_core::inner::answer_proposals(black_box(count)));
}

/// The encoding of one write, with all checksums, without the file.
#[divan::bench(args = BATCHES)]
fn log_record(bencher: Bencher, count: u64) {
    let (entries, mut record) = (entries(count), Vec::new());
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        record.clear();
        raftify_storage::inner::encode_record(black_box(&entries), &mut record);
        record.len()
    });
}
