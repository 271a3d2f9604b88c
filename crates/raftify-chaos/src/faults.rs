//! What the nemesis can do, and in which order it does it.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::links::Shape;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL to one node
    KillOne,
    /// SIGKILL to as many as may be missing
    KillMinority,
    /// SIGKILL to one more than may be missing
    KillMajority,
    /// SIGKILL to all at once
    KillAll,
    /// SIGTERM to one node, which must end in order
    StopOne,
    /// SIGSTOP to one, SIGCONT later
    PauseOne,
    /// SIGSTOP to a majority, SIGCONT later
    PauseMajority,
    /// A partition into a majority and the rest
    Halves,
    /// A partition of one from all others
    Isolated,
    /// One that is heard and does not hear, or the other way round
    OneWay,
    /// Two groups that only meet in one node
    Bridge,
    /// Each node reaches two neighbours only
    Ring,
    /// Packets are lost, between all or around one
    Loss,
    /// Packets take long, and overtake each other
    Delay,
    /// Little passes in a second
    SlowLinks,
    /// A disk without room
    FullDisk,
    /// Each sync of a disk takes long, mostly of the leader's
    SlowDisk,
    /// One bit of the log, of LMDB or of a snapshot of a node that is down
    FlippedBit,
    /// A node that comes back under its id without what it knew
    WipedDirectory,
    /// A node that comes back with an older copy of its directory
    RolledBackDirectory,
    /// A member is removed, another one added
    ReplacedMember,
    /// Leadership is handed to another node
    TransferredLeader,
    /// A node that may open few files, and has many connections
    FewDescriptors,
    /// Many callers that share a connection give up
    GivenUpCalls,
    /// A node joins, and leaves later
    Join,
    /// Two nodes join at once, and leave at once
    TwoJoiners,
    /// SIGKILL to a node that catches up; it goes on from its directory
    KilledJoiner,
    /// A node that wants to join, and that no other reaches at the address that it gives
    UnreachableJoiner,
    /// A member leaves while a node joins
    LeftMember,
    /// A voter is replaced by a node that has just come, in one call
    ReplacedVoter,
    /// SIGKILL to one node, which comes back at another address
    MovedMember,
    /// SIGKILL to all at once, which come back at other addresses
    MovedAll,
}

impl Fault {
    /// All, in the order in which the summary shows them.
    pub(crate) fn all() -> Vec<Fault> {
        clap::ValueEnum::value_variants().to_vec()
    }

    /// The partition that it is.
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

/// Deals faults like cards: each comes once before any comes again.
pub(crate) struct Schedule {
    kinds: Vec<Fault>,
    left: Vec<Fault>,
    dealt: usize,
}

impl Schedule {
    pub(crate) fn new(kinds: Vec<Fault>) -> Schedule {
        Schedule { kinds, left: Vec::new(), dealt: 0 }
    }

    /// The next one; none if there are no kinds.
    pub(crate) fn next(&mut self, random: &mut impl Rng) -> Option<Fault> {
        if self.left.is_empty() {
            self.left = self.kinds.clone();
            self.left.shuffle(random);
        }
        let next = self.left.pop()?;
        self.dealt += 1;
        Some(next)
    }

    /// Whether a kind is among those that are dealt.
    pub(crate) fn has(&self, kind: Fault) -> bool {
        self.kinds.contains(&kind)
    }

    /// How often each kind was dealt, at least.
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
    fn rounds_are_counted_when_they_are_over() {
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
    fn names_are_those_of_the_command_line() {
        assert_eq!(Fault::KillOne.name(), "kill-one");
        assert_eq!(Fault::FlippedBit.name(), "flipped-bit");
    }
}
