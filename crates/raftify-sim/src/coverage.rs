//! Events that happened, as opposed to planned ones: counted where they happen. A run of many seeds in which
//! one of them never happened does not cover it, and is rejected.

use std::fmt;

macro_rules! happenings {
    ($($name:ident = $text:literal,)*) => {
        /// An event that a run must contain.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Happened {
            $(#[doc = $text] $name,)*
        }

        impl Happened {
            /// All events.
            pub(crate) const ALL: &[Happened] = &[$(Happened::$name),*];
        }

        impl fmt::Display for Happened {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Happened::$name => $text,)*
                })
            }
        }
    };
}

happenings! {
    MessageLost = "message lost",
    MessageDuplicated = "message arrived twice",
    MessageLingered = "message arrived again much later",
    MessageOvertaken = "message overtaken by a later one",
    PartitionTwoWay = "partition in both directions",
    PartitionOneWay = "partition in one direction",
    LinksOneByOne = "links stopped one by one and restored in another order",
    ConnectionBroke = "request or answer lost with its connection",
    ClocksDiffered = "clocks of different rates",
    Pause = "pause longer than an election timeout",
    CrashOfOne = "crash of one node",
    CrashOfMajority = "crash of a majority",
    CrashOfAll = "crash of all",
    CrashBeforeWrite = "crash between messages of a turn and its write",
    UnsyncedLost = "pending write lost in a crash",
    UnsyncedKept = "pending write kept by a crash, and never reported",
    TornWrite = "pending write torn by a crash",
    LateCompletion = "write reported late",
    DiskSlow = "slow disk",
    DiskOfLeaderSlow = "slow disk of a leader, for long",
    AheadOfDisk = "entry delivered before it was durable on its node",
    SnapshotAheadOfDisk = "snapshot of entries that were not durable on its node",
    CrashAheadOfDisk = "crash of a node that had applied entries that were not durable there",
    DiskHung = "hung disk",
    DiskAlmostFull = "disks almost full",
    StorageFull = "write refused because disks are full",
    DiskError = "single disk error",
    DiskFull = "full disk",
    BitFlip = "flipped bit detected",
    DiskWiped = "wiped disk",
    WipedRefused = "wiped node refused by the others",
    DiskRolledBack = "disk rolled back to an older copy",
    RollBackRefused = "roll-back refused by a node with newer knowledge",
    RollBackUnknown = "roll-back unknown to all reached nodes",
    RollBackNoticed = "roll-back detected",
    LostMemberRemoved = "member that lost its disk removed",
    LeaderElected = "leader elected",
    LeaderTransferred = "leadership transferred",
    Demoted = "leader demoted",
    Campaigned = "election requested",
    StopAsked = "stop request",
    StoppedInOrder = "node stopped without pending replies",
    LeaderStoppedInOrder = "stopping leader transferred leadership",
    StopCutShort = "node stopped with pending replies",
    IdReserved = "node id reserved",
    MemberAdded = "member added",
    MemberRemoved = "member removed",
    JoinAsked = "join requested",
    JoinerPromoted = "joining node promoted",
    SeveralPromoted = "several joining nodes promoted at once",
    JoinerDied = "joining node died permanently",
    JoinerCleared = "joining node cleared",
    JoinerCameBack = "cleared node admitted again",
    NodeHidden = "unreachable node",
    NodeMoved = "node started at another address",
    AddressAnnounced = "another address announced",
    AddressRecorded = "announced address recorded",
    NotCaughtUp = "promotion of a lagging node refused",
    NotReached = "promotion of an unreachable node refused",
    StrandingChangeRefused = "change without a live majority refused",
    MembershipMoved = "change refused because the membership had changed",
    ChangeForced = "forced change",
    OtherClusterRefused = "message of a node with another list refused",
    JointConfiguration = "joint configuration",
    RemovedNodeStopped = "removed node stopped by itself",
    SnapshotTaken = "snapshot taken",
    SnapshotsInARow = "two snapshots in a row",
    SnapshotFailed = "snapshot failed",
    SnapshotInstalled = "snapshot installed from a leader",
    EarlierSnapshotInstalled = "snapshot installed from before its receiver became a member",
    SnapshotHurried = "snapshot taken faster because a follower waits for it",
    LogCompacted = "log compacted",
    EntriesOverwritten = "entries overwritten by a new leader",
    EntriesFetched = "entries read from disk for a slow follower",
    LateRead = "entries read from disk that arrive late",
    SlowStateMachine = "slow state machine",
    ApplyFailed = "state machine failed to apply",
    RestoreFailed = "state machine failed to restore",
    WriteAcknowledged = "write acknowledged",
    WriteForwarded = "request forwarded to the leader",
    OutcomeUnknown = "outcome of a write unknown to its client",
    Burst = "many proposals at once to one leader",
    ReadAnswered = "linearizable read answered",
    Swapped = "compare-and-set that swapped",
    HealedInPart = "healed with a minority still down",
}

/// The number of occurrences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    counts: [u64; Happened::ALL.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        Coverage { counts: [0; Happened::ALL.len()] }
    }
}

impl Coverage {
    pub(crate) fn saw(&mut self, what: Happened) {
        self.counts[what as usize] += 1;
    }

    /// How often it happened.
    pub(crate) fn count(&self, what: Happened) -> u64 {
        self.counts[what as usize]
    }

    /// The sum of both.
    pub fn add(&mut self, other: &Coverage) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }

    /// The events that never happened.
    pub fn missing(&self) -> Vec<Happened> {
        Happened::ALL.iter().copied().filter(|what| self.count(*what) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in Happened::ALL {
            writeln!(f, "{:>12}  {what}", self.count(*what))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_never_happened_are_reported() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.missing().len(), Happened::ALL.len());
        for what in Happened::ALL {
            coverage.saw(*what);
        }
        assert_eq!(coverage.missing(), []);
        let mut sum = coverage.clone();
        sum.add(&coverage);
        assert_eq!(sum.count(Happened::DiskFull), 2);
    }
}
