//! What clients ask for, what they get, and the log entry that carries it.

use serde::{Deserialize, Serialize};

/// What a client asks for, on one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    /// Its value.
    Read,
    /// A new value.
    Write(u64),
    /// A new value, if the old one is this.
    CompareAndSet {
        /// The old value.
        expected: Option<u64>,
        /// The new one.
        new: u64,
    },
}

/// What a client gets.
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
    /// What is done to it.
    pub(crate) operation: Operation,
    /// The number of the client's call, by which entries are told apart.
    pub(crate) call: u64,
    /// Makes it larger.
    pub(crate) padding: String,
}
