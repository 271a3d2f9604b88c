//! Bugs that can be put back, to see whether the tests would notice. Not for users: only a build with
//! `--cfg raftify_mutants` has any of it (`make mutants`).
//!
//! The environment variable `RAFTIFY_MUTANT` names the one that is on, for the whole process. Each is a
//! variant of [`Mutant`] and one or a few `if mutated!(..)` where the bug would be, in all crates of the
//! workspace.

use std::process;
use std::sync::LazyLock;

/// Names the mutation that is on.
pub const VARIABLE: &str = "RAFTIFY_MUTANT";

/// Each with its number in the catalogue of `docs/testing/guarantees.md`, or a dash, and the bug.
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
    /// 2: an append does not truncate the entries after it; the last index is kept as a maximum
    SuffixIsKept,
    /// 3: the commit index is passed to the storage but not written
    CommitIndexIsNotWritten,
    /// 4: every node leads when it starts, without votes
    LeadsByConfiguration,
    /// 5: a membership change that is refused is answered with success
    RefusedChangeSucceeds,
    /// 5: a membership change that is refused because one is pending is never answered
    PendingChangeIsNotAnswered,
    /// 8: a snapshot is sent in one message, beyond the transport's limit
    SnapshotInOneMessage,
    /// 9: reads skip entries that cannot be decoded
    DamagedEntriesAreSkipped,
    /// 9: a restart loses the members, unless a snapshot has them
    MembersAreLostOverRestart,
    /// 9: a snapshot is taken without the members
    SnapshotWithoutMembers,
    /// 10: two joining nodes get the same id
    ReservationsRepeat,
    /// 10: the id of a removed node is given to another node
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
    /// 12: a single voter sends messages to its learners before its term is durable
    SpeaksBeforeItsTermIsDurable,
    /// 14: an installed snapshot leaves the entries after it in the log
    SnapshotKeepsSuffix,
    /// 15: an installed snapshot leaves the old membership in force
    SnapshotKeepsOldMembers,
    /// 16: a rejection counts as an acknowledgement
    RejectionAcknowledges,
    /// 17: a leader commits entries that are durable only on itself
    CommitsWithoutQuorum,
    /// 17: a leader commits entries of earlier terms by counting copies
    CommitsEarlierTermsByCounting,
    /// 18: entries that were fetched for a follower are not compared with the log that may have changed since
    FetchedEntriesAreNotCompared,
    /// 19: a leader whose disk hangs does not step down
    HungDiskKeepsTheLeader,
    /// 19: the only thread of a runtime waits for the disk
    OnlyThreadWaitsForTheDisk,
    /// 20: leadership is transferred to a dead node
    TransfersToTheDead,
    /// 21: a node does not adopt the higher term of a refused pre-vote
    RefusedPreVoteTeachesNothing,
    /// 22: several voters change in one step, without a joint configuration
    SeveralVotersAtOnce,
    /// 22: a joint configuration is not left automatically
    JointIsNeverLeft,
    /// 23: a leader that removes itself neither transfers leadership nor steps down
    RemovedLeaderLeads,
    /// 24: the outcome of an earlier attempt to send a snapshot counts for a later one
    EarlierOutcomeCounts,
    /// 24: the outcome of a snapshot is not reported to consensus
    SnapshotOutcomeIsLost,
    /// 25: a joining node is promoted before it is caught up
    PromotesBeforeCaughtUp,
    /// 25: a joining node that no voter reaches at its advertised address is promoted
    PromotesTheUnreached,
    /// -: a change that leaves no majority of live voters is accepted
    AcceptsStrandingChange,
    /// -: the roles of the first members are not part of the cluster id
    RoleLeftOutOfClusterId,
    /// 26: a leader answers reads without confirming that it still leads
    ReadsWithoutQuorum,
    /// 26: a read is answered before its index is applied
    ReadsBeforeApplied,
    /// 27: incarnations are not checked: a node with an empty disk continues under its old id
    IncarnationIsNotChecked,
    /// 27: a node continues although entries that it acknowledged are missing
    LossIsNotNoticed,
    /// 27: a node continues under a leader that lacks committed entries
    ProofOfLossIsIgnored,
    /// 27: messages of a node that has started on an older copy of its directory are accepted
    RolledBackMayVote,
    /// 27: after a start, a node votes before the other members have reported what they know of it
    VotesBeforeHearing,
    /// 27: starts are not counted
    StartsAreNotCounted,
    /// 28: a failed restore is ignored: the node serves half a state
    FailedRestoreIsIgnored,
    /// 28: a snapshot without its end is installed
    UnfinishedSnapshotIsInstalled,
    /// 29: the directory is not synced after a snapshot is renamed
    DirectoryIsNotSynced,
    /// 29: a snapshot is renamed before its data is synced
    SnapshotIsNotSynced,
    /// 30: a removed node stops at once, although others may still need its vote
    RemovedNodeStopsAtOnce,
    /// 31: a log accepts writes after a failed write
    WritesAfterAFailure,
    /// 34: the log is not truncated until the slowest member has it
    LogWaitsForTheSlowest,
    /// 35: a leader counts its own log before it is flushed
    UnflushedLogCounts,
    /// 35: an acknowledgement of an earlier term counts in this one
    StaleAcknowledgementCounts,
    /// 36: compaction goes beyond the snapshot
    CompactsBeyondTheSnapshot,
    /// 37: a batch of messages has no limit
    BatchHasNoLimit,
    /// -: a leader with a full disk takes proposals
    FullDiskTakesProposals,
    /// -: a leader with a full disk keeps its leadership although another voter has room
    FullDiskKeepsTheLeader,
    /// -: entries that are on their way to a follower are queued a second time
    RepeatsEntriesOnTheirWay,
    /// -: without further entries, followers are not sent the commit index before the next heartbeat
    CommitIsNotAnnounced,
    /// -: proposals wait for more although nothing ends the wait
    BatchWaitsForEver,
    /// -: a follower takes the index of a read from a leader whose disk was rolled back
    RolledBackLeaderConfirmsReads,
    /// 38: a dropped request gets no answer
    DroppedMeansSilence,
    /// -: a proposal without an outcome has no deadline
    ProposalsHaveNoDeadline,
    /// -: a read without an outcome has no deadline
    ReadsHaveNoDeadline,
    /// -: a leader that gets a stop request does not transfer leadership
    StopsWithoutTransfer,
    /// -: a request that comes while no leader is known is refused at once
    NoLeaderIsAnAnswer,
    /// -: an abandoned call resets its stream
    GivenUpCallsAreReset,
    /// -: requests that were written to a stream that broke count as unsent, and are sent again
    BrokenStreamMeansUnsent,
    /// -: the replies of a stream are matched with its requests by their order
    RepliesMatchedByOrder,
    /// -: a node reads a stream of requests without limit, although the client receives no replies
    StreamHasNoLimit,
    /// -: a request that was forwarded is forwarded again
    ForwardsForEver,
    /// -: a node forwards more requests than it would accept itself
    ForwardsWithoutLimit,
    /// -: a membership change is in force before the commit index that covers it is durable
    ChangeInForceBeforeDurable,
    /// -: a membership change is applied again when it is replayed from the log after a restart
    ChangesApplyTwice,
    /// -: heartbeats and votes wait behind entries
    SignalsWaitBehindEntries,
    /// -: a connection is closed although the data sent over it makes progress
    PayloadIsNoSignOfLife,
    /// -: a snapshot that is being written slowly is not sped up when a follower waits for it
    DueSnapshotIsNotHurried,
    /// -: a joining node refuses a snapshot from before it became a member
    EarlierSnapshotIsRefused,
    /// -: after such a snapshot, a node counts as a member before the log says so
    StandInIsTakenForAMember,
    /// -: a joining node that restarts after such a snapshot considers itself removed
    NotYetMemberMeansRemoved,
    /// -: the checksum of a record's content is not verified: a torn record is accepted
    TornRecordIsAccepted,
    /// -: the checksum of an entry is not verified
    EntryChecksumIsNotChecked,
    /// -: the last record found at a start is not written and flushed again, although it may exist only in a cache
    LastRecordIsNotFlushedAgain,
    /// -: the checksum of a snapshot's block is not verified
    SnapshotChecksumIsNotChecked,
    /// -: entries that no majority has yet are applied to a state machine in memory
    DeliversBeforeMajority,
    /// -: entries that this node's own log may lose are applied to a state machine on disk
    OnDiskMachineGetsUnsynced,
    /// -: entries that were delivered before they were durable are delivered again
    DeliversTwice,
    /// -: a membership change is in force before it is durable on this node
    DeliversChangesBeforeDurable,
    /// -: a leader whose disk is slower than those of the others does not step down
    SlowDiskKeepsTheLeader,
    /// -: an entry that cannot be applied is skipped
    FailedApplyIsSkipped,
    /// -: of the survivors of a lost majority, the one with the longest log is chosen, whatever its term
    RecoverPicksByLength,
    /// -: a recovered directory keeps the id of the former cluster
    RecoverKeepsClusterId,
    /// -: a recovered directory keeps the other members
    RecoverKeepsOtherMembers,
    /// -: a restored cluster keeps the id of the former cluster
    RestoreKeepsClusterId,
    /// -: a check does not read the data of snapshots
    CheckTrustsSnapshotData,
    /// -: a slow reader of events holds up the node
    SlowReaderHoldsUpTheNode,
    /// -: a slow reader of events does not learn that it has missed some
    MissedEventsAreNotReported,
    /// -: a query whose read is refused gets no answer
    RefusedQueryIsSilent,
    /// -: the bytes of answered proposals stay counted: a node that was full once refuses forever
    AnsweredBytesStayCounted,
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
