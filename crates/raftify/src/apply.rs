//! The processing of committed entries: they are applied, the state is captured, restored and copied, and
//! replies are sent.

pub(crate) mod applier;
pub(crate) mod applier_thread;
pub(crate) mod backups;
pub(crate) mod snapshot_taker;
pub(crate) mod snapshots;
