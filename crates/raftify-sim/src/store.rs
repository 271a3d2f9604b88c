//! The user's state machine: a map from keys to values, with write, compare-and-set and delete. Reads do not
//! go through the log. Beside the map there is a digest of all applied entries, so that a skipped or
//! duplicated entry shows even if its value was overwritten since.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::log_picture::Digest;

/// The operation of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Write { key: u64, value: u64 },
    CompareAndSet { key: u64, expected: Option<u64>, new: u64 },
    Delete { key: u64 },
}

/// The result of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Done,
    Swapped(bool),
}

/// Zero means no value: values count from one.
const NOTHING: u64 = 0;

impl Command {
    /// An entry with `padding` additional bytes.
    pub(crate) fn encode(self, padding: usize) -> Bytes {
        let (tag, words) = match self {
            Command::Write { key, value } => (0, [key, value, 0]),
            Command::CompareAndSet { key, expected, new } => (1, [key, expected.unwrap_or(NOTHING), new]),
            Command::Delete { key } => (2, [key, 0, 0]),
        };
        let mut bytes = vec![tag];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(bytes.len() + padding, 0);
        bytes.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Command> {
        let (tag, rest) = bytes.split_first()?;
        let words = rest.first_chunk::<24>()?;
        let word = |at: usize| words[8 * at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let key = word(0)?;
        let value = |word| (word != NOTHING).then_some(word);
        match tag {
            0 => Some(Command::Write { key, value: word(1)? }),
            1 => Some(Command::CompareAndSet { key, expected: value(word(1)?), new: word(2)? }),
            2 => Some(Command::Delete { key }),
            _ => None,
        }
    }
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    values: BTreeMap<u64, u64>,
    applied: Digest,
}

impl Default for Store {
    fn default() -> Self {
        Store { values: BTreeMap::new(), applied: Digest::BEGIN }
    }
}

impl Store {
    pub(crate) fn get(&self, key: u64) -> Option<u64> {
        self.values.get(&key).copied()
    }

    pub(crate) fn apply(&mut self, payload: &[u8]) -> Result<Effect, String> {
        let command = Command::decode(payload).ok_or("the entry cannot be decoded")?;
        self.applied = payload.iter().fold(self.applied, |digest, byte| digest.mixed_with(u64::from(*byte)));
        Ok(match command {
            Command::Write { key, value } => {
                self.values.insert(key, value);
                Effect::Done
            }
            Command::CompareAndSet { key, expected, new } => {
                let swaps = self.get(key) == expected;
                if swaps {
                    self.values.insert(key, new);
                }
                Effect::Swapped(swaps)
            }
            Command::Delete { key } => {
                self.values.remove(&key);
                Effect::Done
            }
        })
    }

    /// The digest of its whole content.
    pub(crate) fn digest(&self) -> Digest {
        self.values
            .iter()
            .fold(self.applied, |digest, (key, value)| digest.mixed_with(*key).mixed_with(*value))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let pairs = self.values.iter().flat_map(|(key, value)| [*key, *value]);
        std::iter::once(self.applied.0).chain(pairs).flat_map(u64::to_le_bytes).collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Store> {
        let (words, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let applied = Digest(words.next()?);
        let mut values = BTreeMap::new();
        while let Some(key) = words.next() {
            values.insert(key, words.next()?);
        }
        Some(Store { values, applied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_states_round_trip() {
        let commands = [
            Command::Write { key: 1, value: 7 },
            Command::CompareAndSet { key: 1, expected: Some(7), new: 8 },
            Command::CompareAndSet { key: 2, expected: None, new: 9 },
            Command::Delete { key: 1 },
        ];
        let mut store = Store::default();
        for command in commands {
            let bytes = command.encode(5);
            assert_eq!(Command::decode(&bytes), Some(command));
            store.apply(&bytes).unwrap();
        }
        assert_eq!((store.get(1), store.get(2)), (None, Some(9)));
        assert_eq!(Store::decode(&store.encode()), Some(store));
        assert!(Store::decode(&[1]).is_none() && Command::decode(&[9; 25]).is_none());
    }

    #[test]
    fn the_digest_covers_overwritten_values() {
        let write = |value| Command::Write { key: 1, value }.encode(0);
        let (mut one, mut other) = (Store::default(), Store::default());
        one.apply(&write(1)).unwrap();
        one.apply(&write(2)).unwrap();
        other.apply(&write(2)).unwrap();
        assert_eq!(one.get(1), other.get(1));
        assert_ne!(one.digest(), other.digest());
    }
}
