//! The record that a node keeps of starts: with it, the cluster detects a directory that was restored from an
//! older copy before its node votes or acknowledges an entry.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::durable_state::{PeerRecord, Started};
use crate::members::{MembersDecodeError, Sender, SenderRefusal, decode_versioned, encode_versioned};
use crate::types::NodeId;

const REMEMBERED_VERSION: u8 = 1;

/// The record of starts that a node must not lose: its own starts, and those of the other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// How many times this node was started on its directory since the directory belongs to it.
    pub starts: u64,
    /// For each other member, the state that it reported to this node.
    pub peers: BTreeMap<NodeId, PeerRecord>,
}

impl Remembered {
    /// Whether the start that a member reports is consistent with its earlier reports.
    ///
    /// # Errors
    /// If the member has lost some of the state that it reported.
    pub fn check(&self, sender: &Sender) -> Result<(), SenderRefusal> {
        let Sender { id, incarnation, started: Started { run, found }, .. } = *sender;
        let known = self.peers.get(&id).filter(|known| known.incarnation == incarnation);
        let Some(PeerRecord { run: known, told, .. }) = known else {
            return Ok(());
        };
        if (*known, told.starts) == (run, found.starts)
            || !found.is_behind(told)
            || mutated!(RolledBackMayVote)
        {
            return Ok(());
        }
        Err(match found.starts == told.starts {
            true => SenderRefusal::StartedTwice { id, run, starts: told.starts },
            false => SenderRefusal::RolledBack { id, run, found, told: *told },
        })
    }

    /// For storage: a version, then the value.
    pub fn encode(&self) -> Bytes {
        encode_versioned(REMEMBERED_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the version is unknown, or the bytes are not such a record.
    pub fn decode(bytes: &[u8]) -> Result<Remembered, MembersDecodeError> {
        decode_versioned("memory of the other nodes", REMEMBERED_VERSION, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable_state::DurableState;
    use crate::types::{Incarnation, LogIndex, RunId, Term};

    #[test]
    fn memory_of_starts_survives_its_encoding() {
        let told = DurableState { starts: 1, term: Term(8), vote: None, index: LogIndex(5) };
        let remembered = Remembered {
            starts: 3,
            peers: [(NodeId::FIRST, PeerRecord { incarnation: Incarnation(1), run: RunId(2), told })].into(),
        };
        assert_eq!(Remembered::decode(&remembered.encode()), Ok(remembered));
    }
}
