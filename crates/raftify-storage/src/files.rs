//! The seam to the file system: what it is asked for, and what it answers.
//!
//! `operations.rs` has the operations that snapshots and the segment log are made durable with, as traits, so that tests
//! record their order, cut after each one, and let each one fail. `names.rs` makes names durable, and notices when a path
//! leads to another file. `descriptors.rs` reserves file descriptors, `size_limit.rs` lets writes beyond `ulimit -f` fail.
//! This room does not know what the files hold.

mod descriptors;
mod error;
mod names;
mod operations;
mod size_limit;

pub(crate) use descriptors::Reserve;
pub(crate) use error::io_error;
pub(crate) use names::{LockedFile, create_durably, sync_names};
pub(crate) use operations::{
    FileOperations, NameOperations, NewFile, OperatingSystem, ReadOnlySystem, SegmentFile, SegmentOperations,
    Work,
};
pub(crate) use size_limit::let_writes_fail;
