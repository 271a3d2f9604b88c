//! A register: the model of a key of a key-value store. Owns its sequential specification and the hints that
//! follow from unique written values; for values that are not unique, it gives fewer hints, and the search
//! takes longer.

use std::collections::{HashMap, HashSet};

use crate::{CallRef, Hint, Model};

/// A value. Write each value only once in a history: then every read identifies its write.
pub type Value = u64;

/// An operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads the value.
    Read,
    /// Replaces any value by this one.
    Write(Value),
    /// Replaces exactly this value; `None`: only if there is no value.
    CompareAndSet {
        /// The expected value.
        expected: Option<Value>,
        /// The new value.
        new: Value,
    },
    /// Removes any value.
    Delete,
}

/// The outcome of an operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Of a read.
    Value(Option<Value>),
    /// Of a write or delete.
    Done,
    /// Of a compare-and-set: whether the expected value was there and was replaced.
    Swapped(bool),
}

/// A register that is empty at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Register;

impl Model for Register {
    type State = Option<Value>;
    type Operation = Operation;
    type Outcome = Outcome;

    fn initial(&self) -> Option<Value> {
        None
    }

    fn step(
        &self,
        state: &Self::State,
        operation: &Operation,
        outcome: Option<&Outcome>,
    ) -> Option<Self::State> {
        match (operation, outcome) {
            (Operation::Read, Some(Outcome::Value(value))) => (value == state).then_some(*state),
            (Operation::Read, None) => Some(*state),
            (Operation::Write(value), Some(Outcome::Done) | None) => Some(Some(*value)),
            (Operation::Delete, Some(Outcome::Done) | None) => Some(None),
            (Operation::CompareAndSet { expected, new }, Some(Outcome::Swapped(true)) | None) => {
                (expected == state).then_some(Some(*new))
            }
            (Operation::CompareAndSet { expected, .. }, Some(Outcome::Swapped(false))) => {
                (expected != state).then_some(*state)
            }
            _ => None, // An outcome of another kind of operation is never possible.
        }
    }

    fn hints(&self, history: &[CallRef<'_, Self>]) -> Vec<Hint<Self::State>> {
        let mut written = HashSet::new();
        let unique =
            history.iter().filter_map(|call| new_value(call.operation)).all(|value| written.insert(value));
        // When a value was first certainly observed.
        let mut seen: HashMap<Value, u64> = HashMap::new();
        // Values that some call observed as present or absent.
        let mut mentioned: HashSet<Value> = HashSet::new();
        for call in history {
            if let Some(value) = sees(call)
                && let Some((time, _)) = call.returned
            {
                seen.entry(value).and_modify(|first| *first = time.min(*first)).or_insert(time);
            }
            if let Operation::CompareAndSet { expected: Some(value), .. } = call.operation {
                mentioned.insert(*value);
            }
        }
        // A compare-and-set of unknown outcome whose value was observed has found its expected value.
        let mut found = true;
        while std::mem::take(&mut found) {
            for call in history.iter().filter(|call| call.returned.is_none()) {
                if let Operation::CompareAndSet { expected: Some(expected), new } = call.operation
                    && let Some(time) = seen.get(new).copied()
                {
                    let first = seen.entry(*expected).or_insert(u64::MAX);
                    found |= time < *first;
                    *first = time.min(*first);
                }
            }
        }
        mentioned.extend(seen.keys());
        let hint = |call: &CallRef<'_, Self>| {
            let mut hint = Hint {
                reads: matches!(
                    (call.operation, call.returned),
                    (Operation::Read, _)
                        | (Operation::CompareAndSet { .. }, Some((_, Outcome::Swapped(false))))
                ),
                overwrites_with: match (call.operation, call.returned) {
                    (Operation::Write(value), None | Some((_, Outcome::Done))) => Some(Some(*value)),
                    (Operation::Delete, None | Some((_, Outcome::Done))) => Some(None),
                    _ => None,
                },
                ..Hint::default()
            };
            // Every value is written once, so that it does not recur once it is gone; an observation of it is
            // one of that write.
            if unique {
                hint.needs = sees(call).map(Some);
                if call.returned.is_none() {
                    hint.took_effect_by =
                        new_value(call.operation).and_then(|value| seen.get(&value).copied());
                    if let (Operation::CompareAndSet { expected, .. }, Some(_)) =
                        (call.operation, hint.took_effect_by)
                    {
                        hint.needs = expected.map(Some);
                    }
                    // Unknown writes of values that no other call names are interchangeable.
                    hint.interchangeable = match call.operation {
                        Operation::Write(value) if !mentioned.contains(value) => Some(0),
                        Operation::CompareAndSet { expected: None, new } if !mentioned.contains(new) => {
                            Some(1)
                        }
                        Operation::CompareAndSet { expected: Some(old), new } if !mentioned.contains(new) => {
                            old.checked_add(3) // Beyond the largest: no number, and so no promise.
                        }
                        Operation::Delete => Some(2),
                        _ => None,
                    };
                }
            }
            hint
        };
        history.iter().map(hint).collect()
    }
}

/// The value that the operation writes.
fn new_value(operation: &Operation) -> Option<Value> {
    match operation {
        Operation::Write(value) | Operation::CompareAndSet { new: value, .. } => Some(*value),
        Operation::Read | Operation::Delete => None,
    }
}

/// The value that was certainly present when the call took effect.
fn sees(call: &CallRef<'_, Register>) -> Option<Value> {
    match (call.operation, call.returned?.1) {
        (Operation::Read, Outcome::Value(value)) => *value,
        (Operation::CompareAndSet { expected, .. }, Outcome::Swapped(true)) => *expected,
        _ => None,
    }
}
