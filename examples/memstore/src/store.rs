//! The state machine: a map from text to text.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use raftify::{AbstractStateMachine, BoxError, CustomFormatter, LogPosition, SnapshotCapture, restore_value};
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

/// Shows entries and snapshots of the store in logs and in the CLI.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreFormatter;

const SHOWN_CHARS_MAX: usize = 60;
const SHOWN_KEYS_MAX: usize = 20;

impl CustomFormatter<LogEntry, HashStore> for StoreFormatter {
    fn format_entry(&self, entry: &LogEntry, _encoded: &[u8]) -> String {
        let LogEntry::Insert { key, value } = entry;
        format!("insert {} = {}", shortened(key), shortened(value))
    }

    fn format_snapshot(&self, data: &mut dyn Read) -> io::Result<String> {
        let mut store = HashStore::default();
        store.restore(data).map_err(io::Error::other)?;
        let mut text = format!("{} keys", store.len());
        for key in store.first_keys(SHOWN_KEYS_MAX) {
            let value = store.get(&key).unwrap_or_default();
            text.push_str(&format!("\n{} = {}", shortened(&key), shortened(&value)));
        }
        if store.len() > SHOWN_KEYS_MAX {
            text.push_str("\n...");
        }
        Ok(text)
    }
}

/// The text in quotes, cut if it is long.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
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

    #[test]
    fn a_snapshot_brings_back_what_it_captured_and_nothing_later() {
        let mut store = HashStore::default();
        insert(&mut store, 2, "a", "1");
        let capture = store.snapshot().unwrap();
        insert(&mut store, 3, "b", "2");
        let mut data = Vec::new();
        capture.write_to(&mut data).unwrap();

        let mut restored = HashStore::default();
        insert(&mut restored, 2, "old", "gone");
        restored.restore(&mut data.as_slice()).unwrap();
        assert_eq!(restored.first_keys(9), ["a"]);
        assert_eq!(StoreFormatter.format_snapshot(&mut data.as_slice()).unwrap(), "1 keys\n\"a\" = \"1\"");
    }

    #[test]
    fn long_values_are_shown_by_their_beginning() {
        let entry = LogEntry::Insert { key: "ä".to_owned(), value: "ö".repeat(70) };
        let shown = StoreFormatter.format_entry(&entry, &[]);
        assert_eq!(shown, format!("insert \"ä\" = \"{}\"... (140 bytes)", "ö".repeat(60)));
    }
}
