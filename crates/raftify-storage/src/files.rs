//! The interface to the file system: its operations and its errors.
//!
//! `operations.rs` has, as traits, the operations that make snapshots and the segment log durable, so that
//! tests can record their order, cut power after each one, and let each one fail. `names.rs` makes names
//! durable, and detects when a path leads to another file. `descriptors.rs` reserves file descriptors,
//! `size_limit.rs` makes writes beyond `ulimit -f` fail. This module does not depend on the content of the
//! files.

mod descriptors;
mod error;
mod names;
mod operations;
mod size_limit;

pub(crate) use descriptors::Reserve;
pub(crate) use error::io_error;
pub(crate) use names::{LockedFile, create_durably, rename_new, sync_names};
pub(crate) use operations::{
    FileOperations, NameOperations, NewFile, OperatingSystem, ReadOnlySystem, SegmentFile, SegmentOperations,
    Work,
};
pub(crate) use size_limit::let_writes_fail;
