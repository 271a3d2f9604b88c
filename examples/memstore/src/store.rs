//! The state machine: a map from text to text.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use raftify::formatter::CustomFormatter;
use raftify::{BoxError, LogPosition, Snapshot, StateMachine};
use serde::{Deserialize, Serialize};

/// The type of replicated entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogEntry {
    /// Sets a key to a value, whether or not it had one.
    Insert {
        /// Never empty when it comes through the web API.
        key: String,
        /// Of any length up to the limit of an entry.
        value: String,
    },
    /// Sets a key to a value if it has the expected one, and changes nothing otherwise.
    CompareAndSet {
        /// As for [`Insert`](LogEntry::Insert).
        key: String,
        /// `None`: only if the key has no value.
        expected: Option<String>,
        /// The new value of the key.
        value: String,
    },
    /// Changes nothing: the reply has the value of the key at this position of the log. With it, a remote
    /// client, which has no local state machine, makes linearizable reads; a node has the cheaper
    /// [`query`](raftify::RaftNode::query).
    Read {
        /// As for [`Insert`](LogEntry::Insert).
        key: String,
    },
}

/// The result of a [`LogEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The key of an insertion has its value.
    Inserted {
        /// The position of the entry in the log.
        position: LogPosition,
        /// Whether the key had a value before.
        replaced: bool,
    },
    /// The key of a [`CompareAndSet`](LogEntry::CompareAndSet) had the expected value, and has the new one
    /// now.
    Swapped {
        /// The position of the entry in the log.
        position: LogPosition,
    },
    /// The key of a [`CompareAndSet`](LogEntry::CompareAndSet) had another value than expected. Nothing was
    /// changed.
    Differs {
        /// Its value.
        actual: Option<Arc<str>>,
    },
    /// The value of the key of a [`Read`](LogEntry::Read), if it has one.
    Value(Option<Arc<str>>),
}

/// The replicated map.
#[derive(Debug, Default)]
pub struct HashStore {
    // Shared with a snapshot while it is written: taking one costs a pointer, and only an insertion during
    // that time copies the map. The values, which may be long, are never copied.
    entries: Arc<HashMap<String, Arc<str>>>,
}

impl HashStore {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Arc<str>> {
        self.entries.get(key).cloned()
    }

    fn insert(&mut self, key: String, value: String) -> Option<Arc<str>> {
        Arc::make_mut(&mut self.entries).insert(key, value.into())
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first keys in lexicographic order, at most `limit`.
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

impl StateMachine for HashStore {
    type LogEntry = LogEntry;
    type Reply = Reply;

    fn apply(&mut self, position: LogPosition, entry: LogEntry) -> Result<Reply, BoxError> {
        Ok(match entry {
            LogEntry::Insert { key, value } => {
                Reply::Inserted { position, replaced: self.insert(key, value).is_some() }
            }
            LogEntry::CompareAndSet { key, expected, value } => {
                let actual = self.get(&key);
                if actual.as_deref() == expected.as_deref() {
                    self.insert(key, value);
                    Reply::Swapped { position }
                } else {
                    Reply::Differs { actual }
                }
            }
            LogEntry::Read { key } => Reply::Value(self.get(&key)),
        })
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(Arc::clone(&self.entries)))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.entries = Snapshot::read_value(reader)?;
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
        match entry {
            LogEntry::Insert { key, value } => format!("insert {} = {}", shortened(key), shortened(value)),
            LogEntry::CompareAndSet { key, expected, value } => {
                let expected = expected.as_deref().map_or("nothing".to_owned(), shortened);
                format!("insert {} = {} if it has {expected}", shortened(key), shortened(value))
            }
            LogEntry::Read { key } => format!("read {}", shortened(key)),
        }
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

/// The text in quotes, shortened if it is long.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(index: u64) -> LogPosition {
        LogPosition::new(1, index)
    }

    fn insert(store: &mut HashStore, index: u64, key: &str, value: &str) -> Reply {
        let entry = LogEntry::Insert { key: key.to_owned(), value: value.to_owned() };
        store.apply(position(index), entry).unwrap()
    }

    #[test]
    fn the_reply_to_an_insertion_shows_whether_it_replaced_a_value() {
        let mut store = HashStore::default();
        let inserted = |index, replaced| Reply::Inserted { position: position(index), replaced };
        assert_eq!(insert(&mut store, 2, "a", "1"), inserted(2, false));
        assert_eq!(insert(&mut store, 3, "a", "2"), inserted(3, true));
        assert_eq!(store.get("a").as_deref(), Some("2"));
        assert_eq!(store.get("b"), None);
    }

    #[test]
    fn compare_and_set_changes_nothing_unless_the_value_is_the_expected_one() {
        let mut store = HashStore::default();
        let mut swap = |index, expected: Option<&str>, value: &str| {
            let (key, expected) = ("a".to_owned(), expected.map(str::to_owned));
            let entry = LogEntry::CompareAndSet { key: key.clone(), expected, value: value.to_owned() };
            let reply = store.apply(position(index), entry).unwrap();
            (reply, store.apply(position(index + 1), LogEntry::Read { key }).unwrap())
        };
        let value = |value: Option<&str>| Reply::Value(value.map(Arc::from));
        let differs = |actual: Option<&str>| Reply::Differs { actual: actual.map(Arc::from) };
        assert_eq!(swap(2, Some("0"), "1"), (differs(None), value(None)));
        assert_eq!(swap(4, None, "1"), (Reply::Swapped { position: position(4) }, value(Some("1"))));
        assert_eq!(swap(6, None, "2"), (differs(Some("1")), value(Some("1"))));
        assert_eq!(swap(8, Some("1"), "2"), (Reply::Swapped { position: position(8) }, value(Some("2"))));
    }

    #[test]
    fn the_first_keys_are_in_order_and_at_most_the_limit() {
        let mut store = HashStore::default();
        for (index, key) in ["d", "a", "c", "b"].into_iter().enumerate() {
            insert(&mut store, index as u64, key, "");
        }
        assert_eq!(store.first_keys(3), ["a", "b", "c"]);
        assert_eq!(store.first_keys(9), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_snapshot_restores_the_captured_state_without_later_changes() {
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
    fn entries_are_shown_as_text_and_long_values_are_shortened() {
        let show = |entry| StoreFormatter.format_entry(&entry, &[]);
        let (key, value) = ("ä".to_owned(), "ö".repeat(70));
        let long = format!("{:?}... (140 bytes)", "ö".repeat(60));
        let expected = Some("1".to_owned());
        assert_eq!(
            show(LogEntry::CompareAndSet { key: key.clone(), expected: None, value: value.clone() }),
            format!("insert \"ä\" = {long} if it has nothing")
        );
        assert_eq!(
            show(LogEntry::CompareAndSet { key: key.clone(), expected, value: "2".to_owned() }),
            "insert \"ä\" = \"2\" if it has \"1\""
        );
        assert_eq!(show(LogEntry::Read { key: key.clone() }), "read \"ä\"");
        assert_eq!(show(LogEntry::Insert { key, value }), format!("insert \"ä\" = {long}"));
    }
}
