//! Bugs that can be put back, to see whether the tests would notice. Not for users: only a build with
//! `--cfg raftify_mutants` has any of it (`make mutants`).
//!
//! The environment variable `RAFTIFY_MUTANT` names the one that is on, for the whole process. Each is a variant of
//! [`Mutant`] and one or a few `if mutated!(..)` where the bug would be, in all crates of the workspace.

use std::process;
use std::sync::LazyLock;

/// Names the mutation that is on.
pub const VARIABLE: &str = "RAFTIFY_MUTANT";

/// Each with its number in the catalogue of `docs/testing.md`, or a dash, and the bug.
macro_rules! mutants {
    ($($(#[doc = $bug:literal])+ $name:ident,)+) => {
        /// A bug that can be put back.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[doc = $bug])+ $name,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Mutant::$name => stringify!($name),)+
                }
            }

            fn text(self) -> &'static str {
                match self {
                    $(Mutant::$name => concat!($($bug),+),)+
                }
            }
        }
    };
}

mutants! {
    /// 1: a waiter is matched by its index alone: another leader's entry answers a lost proposal with success
    AnswersByIndexAlone,
    /// 2: an append does not cut what follows it, the last index is kept as a maximum
    SuffixIsKept,
    /// 3: the commit index is handed to the storage and not written
    CommitIndexIsNotWritten,
    /// 4: every node leads when it starts, without votes
    LeadsByConfiguration,
    /// 5: a membership change that is refused is answered with success
    RefusedChangeSucceeds,
    /// 5: a membership change that is refused because one is pending is never answered
    PendingChangeIsNotAnswered,
    /// 8: a snapshot is sent in one message, beyond the transport's limit
    SnapshotInOneMessage,
    /// 9: entries that cannot be decoded are left out of what is read
    DamagedEntriesAreSkipped,
    /// 9: the members are lost over a restart, unless a snapshot has them
    MembersAreLostOverRestart,
    /// 9: a snapshot is taken without the members
    SnapshotWithoutMembers,
    /// 10: two nodes that join get one id
    ReservationsRepeat,
    /// 10: the id of a node that was removed is taken by another one
    RemovedIdsComeBack,
    /// 11: a follower acknowledges before its write is durable
    AcknowledgesBeforeDurable,
    /// 11: the log writer lets messages leave before their write
    MessagesLeaveBeforeTheWrite,
    /// 11: a record of the log is not flushed
    SyncIsLeftOut,
    /// 12: term and vote are written only together with entries
    TermAndVoteAreNotWritten,
    /// 12: a vote leaves before it is durable
    VotesBeforeDurable,
    /// 12: a single voter speaks to its learners before its term is durable
    SpeaksBeforeItsTermIsDurable,
    /// 14: a snapshot that is installed leaves the entries after it in the log
    SnapshotKeepsSuffix,
    /// 15: a snapshot that is installed leaves the old membership in force
    SnapshotKeepsOldMembers,
    /// 16: a rejection counts as an acknowledgement
    RejectionAcknowledges,
    /// 17: a leader commits what is durable on itself alone
    CommitsWithoutQuorum,
    /// 17: a leader commits entries of earlier terms by counting copies
    CommitsEarlierTermsByCounting,
    /// 18: entries that were fetched for a follower are not compared with the log that may have changed since
    FetchedEntriesAreNotCompared,
    /// 19: a leader whose disk hangs stays in office
    HungDiskKeepsTheLeader,
    /// 19: the only thread of a runtime waits for the disk
    OnlyThreadWaitsForTheDisk,
    /// 20: leadership is handed to a node that is dead
    TransfersToTheDead,
    /// 21: a refused pre-vote does not teach the higher term
    RefusedPreVoteTeachesNothing,
    /// 22: several voters change in one step, without a joint configuration
    SeveralVotersAtOnce,
    /// 22: a joint configuration is never left by itself
    JointIsNeverLeft,
    /// 23: a leader that removes itself neither transfers leadership nor steps down
    RemovedLeaderLeads,
    /// 24: the outcome of an earlier attempt to send a snapshot counts for a later one
    EarlierOutcomeCounts,
    /// 24: consensus never hears of the outcome of a snapshot
    SnapshotOutcomeIsLost,
    /// 25: a joining node is promoted before it is caught up
    PromotesBeforeCaughtUp,
    /// 25: a joining node that nobody reaches at its advertised address is promoted
    PromotesTheUnreached,
    /// -: a change is accepted that leaves no majority of live voters
    AcceptsStrandingChange,
    /// -: the roles of the first members are no part of the cluster id
    RoleLeftOutOfClusterId,
    /// 26: a leader answers reads without asking whether it still leads
    ReadsWithoutQuorum,
    /// 26: a read is answered before its index is applied
    ReadsBeforeApplied,
    /// 27: nobody looks at incarnations: a node with an empty disk goes on under its old id
    IncarnationIsNotChecked,
    /// 27: a node goes on although entries are gone that it had acknowledged
    LossIsNotNoticed,
    /// 27: a node goes on under a leader that does not have what is committed
    ProofOfLossIsIgnored,
    /// 27: a node that has started on an older copy of its directory is believed
    RolledBackMayVote,
    /// 27: a node votes after a start before it has heard what others know of it
    VotesBeforeHearing,
    /// 27: starts are not counted
    StartsAreNotCounted,
    /// 28: a restore that fails is passed over: half a state is in service
    FailedRestoreIsIgnored,
    /// 28: a snapshot of which the end is missing is installed
    UnfinishedSnapshotIsInstalled,
    /// 29: the directory is not synced after a snapshot got its name
    DirectoryIsNotSynced,
    /// 29: a snapshot gets its name before its data is synced
    SnapshotIsNotSynced,
    /// 30: a removed node stops at once, although others may still need its vote
    RemovedNodeStopsAtOnce,
    /// 31: a log goes on after a write that failed
    WritesAfterAFailure,
    /// 34: the log is not cut before the slowest member has it
    LogWaitsForTheSlowest,
    /// 35: a leader counts its own log before it is flushed
    UnflushedLogCounts,
    /// 35: an acknowledgement of an earlier term counts in this one
    StaleAcknowledgementCounts,
    /// 36: compaction goes beyond the snapshot
    CompactsBeyondTheSnapshot,
    /// 37: a batch of messages has no limit
    BatchHasNoLimit,
    /// 38: who waits and is dropped hears nothing
    DroppedMeansSilence,
    /// -: a proposal without an outcome has no deadline
    ProposalsHaveNoDeadline,
    /// -: a read without an outcome has no deadline
    ReadsHaveNoDeadline,
    /// -: a leader that is told to stop does not transfer leadership
    StopsWithoutTransfer,
    /// -: a request that comes while no leader is known is refused at once
    NoLeaderIsAnAnswer,
    /// -: a call that is given up resets its stream
    GivenUpCallsAreReset,
    /// -: a request that was forwarded is forwarded again
    ForwardsForEver,
    /// -: a node forwards more than it would take itself
    ForwardsWithoutLimit,
    /// -: a membership change is in force before the commit index that covers it is durable
    ChangeInForceBeforeDurable,
    /// -: a membership change is made again when it comes from the log after a restart
    ChangesApplyTwice,
    /// -: heartbeats and votes wait behind entries
    SignalsWaitBehindEntries,
    /// -: a connection is given up although what is sent over it makes progress
    PayloadIsNoSignOfLife,
    /// -: a snapshot that is being taken at leisure is not taken faster when a follower waits for it
    DueSnapshotIsNotHurried,
    /// -: a joining node refuses a snapshot from before it became a member
    EarlierSnapshotIsRefused,
    /// -: after such a snapshot, a node counts as a member before the log says so
    StandInIsTakenForAMember,
    /// -: a joining node that is started again after such a snapshot takes itself for removed
    NotYetMemberMeansRemoved,
    /// -: the checksum of a record's content is not looked at: a torn one is accepted
    TornRecordIsAccepted,
    /// -: the checksum of an entry is not looked at
    EntryChecksumIsNotChecked,
    /// -: the last record that was found is not written and flushed again, though it may be in no more than a cache
    LastRecordIsNotFlushedAgain,
    /// -: the checksum of a snapshot's block is not looked at
    SnapshotChecksumIsNotChecked,
    /// -: a state machine in memory is given what no majority has yet
    DeliversBeforeMajority,
    /// -: a state machine on disk is given what this node's own log may lose
    OnDiskMachineGetsUnsynced,
    /// -: what was delivered before it was durable is delivered once more
    DeliversTwice,
    /// -: a membership change is in force before this node has it durably
    DeliversChangesBeforeDurable,
    /// -: a leader whose disk is slower than those of the others stays in office
    SlowDiskKeepsTheLeader,
    /// -: an entry that cannot be applied is passed over
    FailedApplyIsSkipped,
}

static ON: LazyLock<Option<Mutant>> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
    let found = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
    Some(*found.unwrap_or_else(|| {
        let names: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        eprintln!("{VARIABLE} is {name:?}, and must be one of: {}", names.join(", "));
        process::exit(2)
    }))
});

impl Mutant {
    /// Whether this is the one that is on.
    pub fn is_on(self) -> bool {
        *ON == Some(self)
    }

    /// Its number in the catalogue, if it is a bug of another system, and what the bug is.
    pub fn row_and_bug(self) -> (Option<u32>, &'static str) {
        let (row, bug) = self.text().split_once(':').expect("every mutation is declared as `row: bug`");
        (row.trim().parse().ok(), bug.trim())
    }
}
