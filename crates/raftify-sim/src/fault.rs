//! The kinds of faults, and their ends.

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
    // Only in worlds with joining nodes.
    AdmitNodes,
    JoinerDies,
    NodeMoves,
    ChangeAmidFailure,
    // Only in worlds in which a leader may transfer its leadership because of its disk.
    SlowDiskOfLeader,
    // Only in worlds with a reserve of storage.
    DiskAlmostFull,
}

impl Fault {
    /// In all worlds.
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
    /// Many proposals for one leader.
    Burst,
    /// Removes a node whose roll-back was not detected.
    TakeAway(NodeId),
    /// Restarts a node, which then reports its real address.
    Correct(NodeId),
    /// The operator changes members while some of them are down.
    ChangeAmidFailure,
    /// Ends the wait for a stopping node, in this run of it.
    CutShort(NodeId, u64),
}
