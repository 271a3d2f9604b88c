//! The operations of clients, their outcomes, and the log entry of an operation.

use serde::{Deserialize, Serialize};

/// An operation of a client on one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    /// Reads its value.
    Read,
    /// Writes a new value.
    Write(u64),
    /// Writes a new value, if the old one is this.
    CompareAndSet {
        /// The expected old value.
        expected: Option<u64>,
        /// The new value.
        new: u64,
    },
}

/// The outcome of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Of a read.
    Value(Option<u64>),
    /// Of a write.
    Done,
    /// Of a compare-and-set: whether the old value was as expected.
    Swapped(bool),
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    /// The register.
    pub(crate) key: u8,
    /// The operation.
    pub(crate) operation: Operation,
    /// The number of the client's call, which identifies the entry.
    pub(crate) call: u64,
    /// Additional bytes.
    pub(crate) padding: String,
}
