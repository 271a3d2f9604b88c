//! A leader sends a follower one snapshot at a time: before it knows the outcome of one, it sends another one
//! only if the follower has reached the first one's index meanwhile. (The thesis leaves this open; otherwise
//! many bytes are sent in vain.)

use raftify_core::{LogIndex, NodeId, SnapshotToSend};

use super::Checked;

/// The snapshots that one run of a node has sent, without a known outcome.
#[derive(Default)]
pub(crate) struct Transfers(Vec<SnapshotToSend>);

impl Transfers {
    /// `leader` sends a snapshot, and knows the follower to have its log up to `matched`.
    pub(crate) fn begins(&mut self, leader: NodeId, sent: SnapshotToSend, matched: LogIndex) -> Checked {
        let of_this_follower = |other: &&SnapshotToSend| (other.to, other.term) == (sent.to, sent.term);
        for earlier in self.0.iter().filter(of_this_follower) {
            if earlier.position.index > matched {
                return Err(format!(
                    "transfers: {leader} sends {sent:?}, and does not know yet the outcome of {earlier:?}"
                ));
            }
        }
        self.0.push(sent);
        Ok(())
    }

    /// The leader learns the outcome.
    pub(crate) fn ends(&mut self, sent: SnapshotToSend) {
        self.0.retain(|other| *other != sent);
    }
}

#[cfg(test)]
mod tests {
    use raftify_core::{LogPosition, Term};

    use super::*;

    #[test]
    fn a_second_snapshot_during_the_first_transfer_is_rejected() {
        let sent = |attempt, index| SnapshotToSend {
            attempt,
            to: NodeId::FIRST,
            term: Term(2),
            position: LogPosition::new(1, index),
        };
        let begins = |transfers: &mut Transfers, sent, matched| {
            transfers.begins(NodeId::FIRST, sent, LogIndex(matched))
        };
        let mut transfers = Transfers::default();
        begins(&mut transfers, sent(1, 10), 0).unwrap();
        begins(&mut transfers, sent(2, 20), 9).unwrap_err();
        begins(&mut transfers, sent(2, 20), 10).unwrap();
        begins(&mut transfers, SnapshotToSend { term: Term(3), ..sent(3, 20) }, 0).unwrap();
        transfers.ends(sent(2, 20));
        begins(&mut transfers, sent(4, 30), 10).unwrap();
    }
}
