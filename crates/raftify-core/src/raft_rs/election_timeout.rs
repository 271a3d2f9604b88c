//! Election timeouts that depend on the seed only.

use raft::{Raft, StateRole, Storage};

use crate::types::NodeId;

/// raft-rs draws election timeouts from the random numbers of the thread. To make them depend on the seed
/// only, the timeout is set again after each step, to a value that is a function of seed, node, term, role
/// and candidacies.
pub(super) struct ElectionTimeout {
    node_id: NodeId,
    seed: u64,
    /// How often this node has become a candidate; varies the timeouts within one term.
    candidacies: u64,
    min_ticks: usize,
    max_ticks: usize,
}

impl ElectionTimeout {
    pub(super) fn new(node_id: NodeId, seed: u64, min_ticks: usize, max_ticks: usize) -> ElectionTimeout {
        ElectionTimeout { node_id, seed, candidacies: 0, min_ticks, max_ticks }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// The caller calls it after each step.
    pub(super) fn pin<S: Storage>(&mut self, raft: &mut Raft<S>) {
        if matches!(raft.state, StateRole::PreCandidate | StateRole::Candidate) && raft.election_elapsed == 0
        {
            self.candidacies = self.candidacies.wrapping_add(1);
        }
        let mut hash = self.seed;
        for word in [self.node_id.get(), raft.term, raft.state as u64, self.candidacies] {
            hash = scramble(hash ^ word);
        }
        let span = (self.max_ticks - self.min_ticks) as u64;
        let offset = usize::try_from(hash % span).unwrap_or(0);
        raft.set_randomized_election_timeout(self.min_ticks + offset);
    }
}

/// splitmix64: distributes neighbouring numbers.
fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
