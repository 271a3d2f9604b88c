//! Every decoder of untrusted input in raftify, as functions that accept arbitrary bytes: none may panic, use
//! unbounded memory, or accept malformed data.
//!
//! `fuzz/` runs them with libFuzzer (`make fuzz`); `tests/corpus.rs` runs them with the saved corpus, in each
//! `make test`. Decoded values are encoded again, and must be the same.

mod messages;
mod places;

use std::hint::black_box;

use raftify::{ClusterJoinTicket, Config};
use raftify_core::Members;
use raftify_core::members::{MemberRecord, MembershipChange};

pub use messages::messages;
pub use places::{peers, snapshot_directory, snapshot_file};

/// A function, and the name of the folder of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 10] = [
    ("config", config),
    ("members", members),
    ("messages", messages),
    ("metadata", metadata),
    ("peers", peers),
    ("record", record),
    ("snapshot_directory", snapshot_directory),
    ("snapshot_file", snapshot_file),
    ("ticket", ticket),
    ("wire", wire),
];

/// Every message of the wire, including request validation. The first byte selects the message.
pub fn wire(bytes: &[u8]) {
    raftify::testing::read_wire(bytes);
}

/// Records of the segment log, with correct checksums, and their content.
pub fn record(bytes: &[u8]) {
    raftify_storage::inner::read_record(bytes);
}

/// Values in LMDB, with correct checksums. The first byte selects the key.
pub fn metadata(bytes: &[u8]) {
    raftify_storage::inner::read_metadata(bytes);
}

/// Members, their changes and records, as in log, metadata, snapshots and messages.
pub fn members(bytes: &[u8]) {
    if let Ok(members) = Members::decode(bytes) {
        let again = Members::decode(&members.encode());
        assert_eq!(again.as_ref(), Ok(&members), "members round-trip");
        if let Ok(change) = MembershipChange::decode(bytes) {
            black_box(members.changed(members.as_of().next(), &change).is_ok());
        }
    }
    if let Ok(change) = MembershipChange::decode(bytes) {
        assert_eq!(MembershipChange::decode(&change.encode()), Ok(change), "a change round-trips");
    }
    if let Ok(record) = MemberRecord::decode(bytes) {
        assert_eq!(MemberRecord::decode(&record.encode()), Ok(record), "a record round-trips");
    }
}

/// The settings of a node, as TOML.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match Config::from_toml(text) {
        Ok(config) => drop(black_box(config.check().is_ok())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A ticket to join a cluster, in a text and in a binary format.
pub fn ticket(bytes: &[u8]) {
    if let Ok(ticket) = serde_json::from_slice::<ClusterJoinTicket>(bytes) {
        let text = serde_json::to_vec(&ticket).expect("plain data");
        assert_eq!(serde_json::from_slice::<ClusterJoinTicket>(&text).ok(), Some(ticket));
    }
    if let Ok(ticket) = postcard::from_bytes::<ClusterJoinTicket>(bytes) {
        let bytes = postcard::to_extend(&ticket, Vec::new()).expect("plain data");
        assert_eq!(postcard::from_bytes::<ClusterJoinTicket>(&bytes).ok(), Some(ticket));
    }
}
