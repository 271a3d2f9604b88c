//! Everything of raftify that reads bytes from outside, as functions that take any bytes: none may panic, take memory
//! without bound, or believe what it should not.
//!
//! `fuzz/` feeds them with libFuzzer (`make fuzz`); `tests/corpus.rs` feeds them with what was found worth keeping, in
//! each `make test`. What can be read is also written again, and must be the same.

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

/// All of them.
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

/// Every message of the wire, on through the checks at the door. The first byte says which.
pub fn wire(bytes: &[u8]) {
    raftify::testing::read_wire(bytes);
}

/// Records of the segment log, with checksums that fit, and what is in them.
pub fn record(bytes: &[u8]) {
    raftify_storage::inner::read_record(bytes);
}

/// Values in LMDB, with checksums that fit. The first byte says of which key.
pub fn metadata(bytes: &[u8]) {
    raftify_storage::inner::read_metadata(bytes);
}

/// Members, their changes and records, as they stand in log, metadata, snapshots and messages.
pub fn members(bytes: &[u8]) {
    if let Ok(members) = Members::decode(bytes) {
        let again = Members::decode(&members.encode());
        assert_eq!(again.as_ref(), Ok(&members), "members are read as they were written");
        if let Ok(change) = MembershipChange::decode(bytes) {
            black_box(members.changed(members.as_of().next(), &change).is_ok());
        }
    }
    if let Ok(change) = MembershipChange::decode(bytes) {
        assert_eq!(
            MembershipChange::decode(&change.encode()),
            Ok(change),
            "a change is read as it was written"
        );
    }
    if let Ok(record) = MemberRecord::decode(bytes) {
        assert_eq!(MemberRecord::decode(&record.encode()), Ok(record), "a record is read as it was written");
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
