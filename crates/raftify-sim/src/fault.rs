//! What can go wrong, and how it ends.

use raftify_core::NodeId;

/// A kind of fault, or of intervention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    CrashOfMajority,
    CrashOfAll,
    Pause,
    PartitionTwoWay,
    PartitionOneWay,
    Isolate,
    LinksOneByOne,
    SlowDisk,
    HungDisk,
    DiskError,
    DiskFull,
    BitFlip,
    Wipe,
    RollBack,
    SlowStateMachine,
    ApplyFails,
    SnapshotFails,
    RestoreFails,
    Transfer,
    Demote,
    Campaign,
    Stop,
    ChangeMembers,
    Snapshot,
    // Only in worlds in which nodes join.
    LetNodesIn,
    JoinerDies,
    NodeMoves,
    ChangeAmidFailure,
    // Only in worlds in which who leads may hand over because of its disk.
    SlowDiskOfLeader,
}

impl Fault {
    /// Of all worlds.
    pub(crate) const ALL: [Fault; 25] = [
        Fault::Crash,
        Fault::CrashOfMajority,
        Fault::CrashOfAll,
        Fault::Pause,
        Fault::PartitionTwoWay,
        Fault::PartitionOneWay,
        Fault::Isolate,
        Fault::LinksOneByOne,
        Fault::SlowDisk,
        Fault::HungDisk,
        Fault::DiskError,
        Fault::DiskFull,
        Fault::BitFlip,
        Fault::Wipe,
        Fault::RollBack,
        Fault::SlowStateMachine,
        Fault::ApplyFails,
        Fault::SnapshotFails,
        Fault::RestoreFails,
        Fault::Transfer,
        Fault::Demote,
        Fault::Campaign,
        Fault::Stop,
        Fault::ChangeMembers,
        Fault::Snapshot,
    ];
}

/// The end of a fault, or its next part.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Cut(NodeId, NodeId),
    Restore(Vec<(NodeId, NodeId)>),
    Disk(NodeId),
    StateMachine(NodeId),
    /// A leader is to get many proposals at once.
    Burst,
    /// Who was rolled back, and did not notice, is taken away.
    TakeAway(NodeId),
    /// A node is started again, and says where it really is.
    Correct(NodeId),
    /// The operator changes members, as some of them are down.
    ChangeAmidFailure,
    /// A node that was told to stop, in this life, is waited for no longer.
    CutShort(NodeId, u64),
}
