//! The numbers of the protocol, each with its own type, so that a term is never confused with an index.

use std::fmt;
use std::num::{NonZeroU64, ParseIntError};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The id of a node within its cluster. Never zero, and never reused, not even after a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(NonZeroU64);

impl NodeId {
    /// The node that starts a new cluster. All other nodes get their id from a ticket or from a static list
    /// of members.
    pub const FIRST: NodeId = NodeId(NonZeroU64::MIN);

    /// `None` for zero, which means "no node" in the protocol.
    pub const fn new(id: u64) -> Option<NodeId> {
        match NonZeroU64::new(id) {
            Some(id) => Some(NodeId(id)),
            None => None,
        }
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The id after this one, or `None` after 2⁶⁴ − 1 ids.
    pub(crate) fn next(self) -> Option<NodeId> {
        self.0.checked_add(1).map(NodeId)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number was zero where a node id is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("0 is not a node id: ids start at 1")]
pub struct ZeroNodeId;

impl TryFrom<u64> for NodeId {
    type Error = ZeroNodeId;

    fn try_from(id: u64) -> Result<NodeId, ZeroNodeId> {
        NodeId::new(id).ok_or(ZeroNodeId)
    }
}

impl FromStr for NodeId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<NodeId, ParseIntError> {
        text.parse().map(NodeId)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Zero: before the first one.
            pub const ZERO: $name = $name(0);

            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A term: a period with at most one leader (Raft thesis, section 3.3). Starts at 1.
    Term
}

number! {
    /// The index of an entry in the replicated log. The first index is 1; zero is the end of an empty log.
    LogIndex
}

impl LogIndex {
    /// The next index.
    #[must_use]
    pub const fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }

    /// The previous index; zero stays zero.
    #[must_use]
    pub const fn previous(self) -> LogIndex {
        LogIndex(self.0.saturating_sub(1))
    }
}

/// The position of an entry: two logs that agree on a position agree on everything before it (Log Matching,
/// Raft thesis, figure 3.2). An answer is always tied to a position, never to a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// The term in which the entry was proposed.
    pub term: Term,
    /// The index of the entry in the log.
    pub index: LogIndex,
}

impl LogPosition {
    /// The position before the first entry of an empty log.
    pub const ZERO: LogPosition = LogPosition { term: Term::ZERO, index: LogIndex::ZERO };

    /// A position from plain numbers.
    pub const fn new(term: u64, index: u64) -> LogPosition {
        LogPosition { term: Term(term), index: LogIndex(index) }
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of term {}", self.index, self.term)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// In JSON and other text formats it is a string of 16 hexadecimal digits: many programs parse numbers of that
        /// size as floating point, and would change the value.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_u64(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    u64::deserialize(deserializer).map($name)
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<$name, ParseIntError> {
                u64::from_str_radix(text, 16).map($name)
            }
        }
    };
}

random_id! {
    /// The id of a cluster. Messages of another cluster fail request validation.
    ClusterId
}

random_id! {
    /// Random, generated when a data directory is first used. A node that lost its disk keeps its [`NodeId`] but gets a
    /// new incarnation; the other nodes refuse it, because writes that it acknowledged are lost.
    Incarnation
}

random_id! {
    /// Random, generated at each start of a node: two processes that were started on copies of one directory are
    /// different runs.
    RunId
}

/// The owner of a data directory. Written once, checked whenever the directory is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: NodeId,
    /// The incarnation of the directory.
    pub incarnation: Incarnation,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {} (incarnation {})", self.node_id, self.cluster_id, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_keep_all_their_digits_in_text_and_are_numbers_in_bytes() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Text {
            id: ClusterId,
        }
        let text = Text { id: ClusterId(u64::MAX - 1) };
        let toml = toml::to_string(&text).unwrap();
        assert_eq!(toml, "id = \"fffffffffffffffe\"\n");
        assert_eq!(toml::from_str(&toml), Ok(text));
        assert!(toml::from_str::<Text>("id = \"no hex\"").is_err());

        let bytes = postcard::to_stdvec(&Incarnation(300)).unwrap();
        assert_eq!(bytes, postcard::to_stdvec(&300_u64).unwrap());
        assert_eq!(postcard::from_bytes(&bytes), Ok(Incarnation(300)));
    }
}
