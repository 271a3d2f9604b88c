//! The state machine: a map from text to text.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use raftify::{AbstractStateMachine, BoxError, LogPosition, SnapshotCapture, restore_value};
use serde::{Deserialize, Serialize};

/// What is replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogEntry {
    /// Sets a key to a value, whether or not it had one.
    Insert {
        /// Never empty when it comes through the web API.
        key: String,
        /// Of any length up to the limit of an entry.
        value: String,
    },
}

/// What came of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inserted {
    /// Where in the log it stands.
    pub position: LogPosition,
    /// Whether the key had a value before.
    pub replaced: bool,
}

/// The map that every node holds.
#[derive(Debug, Default)]
pub struct HashStore {
    // Shared with a snapshot while it is written out: taking one costs a pointer, and only an insertion that comes
    // meanwhile copies the map. The values, which may be long, are never copied.
    entries: Arc<HashMap<String, Arc<str>>>,
}

impl HashStore {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Arc<str>> {
        self.entries.get(key).cloned()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first keys in the order of the alphabet, at most `limit`.
    pub fn first_keys(&self, limit: usize) -> Vec<String> {
        let mut keys: Vec<&String> = self.entries.keys().collect();
        if keys.len() > limit {
            keys.select_nth_unstable(limit);
            keys.truncate(limit);
        }
        keys.sort_unstable();
        keys.into_iter().cloned().collect()
    }
}

impl AbstractStateMachine for HashStore {
    type LogEntry = LogEntry;
    type Reply = Inserted;

    fn apply(&mut self, position: LogPosition, entry: LogEntry) -> Result<Inserted, BoxError> {
        let LogEntry::Insert { key, value } = entry;
        let before = Arc::make_mut(&mut self.entries).insert(key, value.into());
        Ok(Inserted { position, replaced: before.is_some() })
    }

    fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError> {
        Ok(SnapshotCapture::of(Arc::clone(&self.entries)))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.entries = restore_value(reader)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(store: &mut HashStore, index: u64, key: &str, value: &str) -> Inserted {
        let entry = LogEntry::Insert { key: key.to_owned(), value: value.to_owned() };
        store.apply(LogPosition::new(1, index), entry).unwrap()
    }

    #[test]
    fn an_insertion_tells_whether_it_replaced_a_value() {
        let mut store = HashStore::default();
        assert!(!insert(&mut store, 2, "a", "1").replaced);
        assert!(insert(&mut store, 3, "a", "2").replaced);
        assert_eq!(store.get("a").as_deref(), Some("2"));
        assert_eq!(store.get("b"), None);
    }

    #[test]
    fn the_first_keys_come_in_order_and_no_more_than_asked_for() {
        let mut store = HashStore::default();
        for (index, key) in ["d", "a", "c", "b"].into_iter().enumerate() {
            insert(&mut store, index as u64, key, "");
        }
        assert_eq!(store.first_keys(3), ["a", "b", "c"]);
        assert_eq!(store.first_keys(9), ["a", "b", "c", "d"]);
    }
}
