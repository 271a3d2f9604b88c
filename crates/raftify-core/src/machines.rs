//! The state machines that a core consists of. Each owns a part of the state and the rules by which it
//! changes. None of them accesses consensus or the core. A machine uses another one only if it contains it,
//! or gets it as a parameter to read.

mod delivery;
mod joiners;
mod leadership;
mod lifecycle;
mod liveness;
mod local_node;
mod membership;
mod own_disk;
mod pending_replies;
mod pipeline;
mod reached_peers;
mod reads;
mod requests;
mod retirement;
mod rollback_guard;
mod snapshot_policy;
mod snapshots;
mod storage_room;

pub(crate) use self::delivery::Delivery;
pub(crate) use self::leadership::{Leadership, TransferWaiter};
pub(crate) use self::lifecycle::Lifecycle;
pub(crate) use self::liveness::Liveness;
pub(crate) use self::local_node::LocalNode;
pub(crate) use self::membership::{Membership, MembershipWaiter};
#[cfg(feature = "testing")]
pub(crate) use self::pending_replies::PendingReplies;
pub(crate) use self::pipeline::Pipeline;
pub(crate) use self::reads::{Read, Reads, RoundKind, Serve};
pub(crate) use self::requests::{ChangeRequest, DeferredRequest, NotServed, Proposal, Requests, Until};
pub(crate) use self::rollback_guard::RollbackGuard;
pub(crate) use self::snapshots::Snapshots;
