//! The faults, and the order in which the nemesis injects them.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::links::Shape;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL to one node
    KillOne,
    /// SIGKILL to as many nodes as a minority has
    KillMinority,
    /// SIGKILL to one node more than a minority has
    KillMajority,
    /// SIGKILL to all nodes at once
    KillAll,
    /// SIGTERM to one node, which must shut down cleanly
    StopOne,
    /// SIGSTOP to one node, SIGCONT later
    PauseOne,
    /// SIGSTOP to a majority, SIGCONT later
    PauseMajority,
    /// A partition into a majority and a minority
    Halves,
    /// A partition of one node from all others
    Isolated,
    /// One node can send but not receive, or receive but not send
    OneWay,
    /// Two groups that share only one node
    Bridge,
    /// Each node reaches only two neighbours
    Ring,
    /// Packets are lost, between all nodes or around one
    Loss,
    /// Packets are delayed and reordered
    Delay,
    /// Low bandwidth
    SlowLinks,
    /// A full disk
    FullDisk,
    /// A disk with less space than the reserve
    AlmostFullDisk,
    /// Each fsync of a disk is slow, mostly of the leader's
    SlowDisk,
    /// One flipped bit in the log, in LMDB or in a snapshot of a node that is down
    FlippedBit,
    /// A node starts under its id without its data
    WipedDirectory,
    /// A node starts with an older copy of its directory
    RolledBackDirectory,
    /// A member is removed, and another one is added
    ReplacedMember,
    /// Leadership is transferred to another node
    TransferredLeader,
    /// A node with few descriptors and many connections
    FewDescriptors,
    /// Many callers that share a connection cancel their calls
    CancelledCalls,
    /// All certificates are renewed, and then one node restarts; only with TLS
    RenewedCertificates,
    /// A node joins, and leaves later
    Join,
    /// Two nodes join at once, and leave at once
    TwoJoiners,
    /// SIGKILL to a joining node that catches up; it continues from its directory
    KilledJoiner,
    /// A joining node whose address no other node reaches
    UnreachableJoiner,
    /// A member leaves while a node joins
    LeftMember,
    /// A voter is replaced by a new node, in one call
    ReplacedVoter,
    /// SIGKILL to one node, which restarts at another address
    MovedMember,
    /// SIGKILL to all nodes at once, which restart at other addresses
    MovedAll,
}

impl Fault {
    /// All faults, in the order of the summary.
    pub(crate) fn all() -> Vec<Fault> {
        clap::ValueEnum::value_variants().to_vec()
    }

    /// The shape of the partition, if the fault is one.
    pub(crate) fn shape(self) -> Option<Shape> {
        match self {
            Fault::Halves => Some(Shape::Halves),
            Fault::Isolated => Some(Shape::Isolated),
            Fault::OneWay => Some(Shape::OneWay),
            Fault::Bridge => Some(Shape::Bridge),
            Fault::Ring => Some(Shape::Ring),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Draws faults in rounds: each fault comes once in a round.
pub(crate) struct Schedule {
    kinds: Vec<Fault>,
    left: Vec<Fault>,
    dealt: usize,
}

impl Schedule {
    pub(crate) fn new(kinds: Vec<Fault>) -> Schedule {
        Schedule { kinds, left: Vec::new(), dealt: 0 }
    }

    /// The next fault; `None` if there are no kinds.
    pub(crate) fn next(&mut self, random: &mut impl Rng) -> Option<Fault> {
        if self.left.is_empty() {
            self.left = self.kinds.clone();
            self.left.shuffle(random);
        }
        let next = self.left.pop()?;
        self.dealt += 1;
        Some(next)
    }

    /// Whether this kind is drawn.
    pub(crate) fn has(&self, kind: Fault) -> bool {
        self.kinds.contains(&kind)
    }

    /// The number of complete rounds.
    pub(crate) fn rounds(&self) -> usize {
        self.dealt.checked_div(self.kinds.len()).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn dealt(seed: u64, count: usize) -> Vec<Fault> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut schedule = Schedule::new(Fault::all());
        (0..count).filter_map(|_| schedule.next(&mut random)).collect()
    }

    #[test]
    fn every_fault_comes_once_in_each_round_and_a_seed_decides_the_order() {
        let count = Fault::all().len();
        for round in dealt(7, 3 * count).chunks(count) {
            assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), count);
        }
        assert_eq!(dealt(7, 50), dealt(7, 50));
        assert_ne!(dealt(7, 50), dealt(8, 50));
    }

    #[test]
    fn only_complete_rounds_are_counted() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut schedule = Schedule::new(vec![Fault::KillOne, Fault::KillAll]);
        let mut rounds = Vec::new();
        for _ in 0..5 {
            rounds.push(schedule.rounds());
            schedule.next(&mut random);
        }
        assert_eq!(rounds, [0, 0, 1, 1, 2]);
        assert_eq!(Schedule::new(Vec::new()).next(&mut random), None);
    }

    #[test]
    fn fault_names_are_those_of_the_command_line() {
        assert_eq!(Fault::KillOne.name(), "kill-one");
        assert_eq!(Fault::FlippedBit.name(), "flipped-bit");
    }
}
