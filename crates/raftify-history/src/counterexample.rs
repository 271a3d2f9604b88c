//! Reduces a counterexample to a readable size, and prints it.

use std::fmt;

use crate::search::{Found, search};
use crate::{CallRef, Model};

/// The calls of a history that contradict each other.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// The number of calls that had returned when the history stopped being linearizable, including the call
    /// that caused it.
    pub returned: usize,
    /// The contradicting calls, in the order of their beginnings. The other calls do not matter: the
    /// contradiction remains without the reads among them, and with the writes among them at any moment
    /// or not at all.
    pub calls: Vec<CounterexampleCall>,
}

/// A call of a [`Counterexample`].
#[derive(Clone, Debug)]
pub struct CounterexampleCall {
    /// The client of the call.
    pub client: u64,
    /// The time of the call.
    pub called: u64,
    /// When it returned; `None` if its outcome was unknown, or if it returned after the contradiction.
    pub returned: Option<u64>,
    /// Operation and outcome.
    pub text: String,
    /// Whether the contradiction remains if this call takes effect at any time, or never.
    pub at_any_time: bool,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "not linearizable once {} calls had returned; {} of them contradict each other:",
            self.returned,
            self.calls.len()
        )?;
        for call in &self.calls {
            let returned = call.returned.map_or("".to_owned(), |time| time.to_string());
            let note = if call.at_any_time { " (whenever it takes effect)" } else { "" };
            writeln!(
                f,
                "  {:>12} ..{returned:>12}  client {:<4} {}{note}",
                call.called, call.client, call.text
            )?;
        }
        Ok(())
    }
}

/// The shortest prefix of `history` that is not linearizable, without calls that do not matter. `history` is
/// not linearizable.
pub(crate) fn shrink<M: Model>(model: &M, mut history: Vec<CallRef<'_, M>>, budget: u64) -> Counterexample {
    let contradicts =
        |history: &[CallRef<'_, M>], budget: &mut u64| search(model, history, budget) == Found::NoOrder;

    // A contradiction in a prefix remains in every longer one, so the shortest prefix is found by bisection.
    let mut ends: Vec<u64> = history.iter().filter_map(|call| call.returned).map(|(time, _)| time).collect();
    ends.sort_unstable();
    let until = |time: u64| -> Vec<_> {
        let begun = history.iter().filter(|call| call.called <= time);
        begun
            .map(|call| {
                let returned = call.returned.filter(|(returned, _)| *returned <= time);
                CallRef::<M> { returned, ..*call }
            })
            .collect()
    };
    let shortest = ends.partition_point(|time| !contradicts(&until(*time), &mut { budget }));
    if let Some(time) = ends.get(shortest) {
        history = until(*time);
    }
    let returned = history.iter().filter(|call| call.returned.is_some()).count();

    // Leaving out a read, or making the outcome of another call unknown, removes constraints: if the
    // contradiction remains, it did not depend on them. Large parts first, so that few searches are
    // enough.
    let mut weights = vec![Weight::Full; history.len()];
    let weighed = |weights: &[Weight]| -> Vec<_> {
        let weighed = history.iter().zip(weights).filter_map(|(call, weight)| match weight {
            Weight::Full => Some(*call),
            Weight::Weak => Some(CallRef::<M> { returned: None, ..*call }),
            Weight::None => None,
        });
        weighed.collect()
    };
    let hints = model.hints(&history);
    let lightest: Vec<_> =
        hints.iter().map(|hint| if hint.reads { Weight::None } else { Weight::Weak }).collect();
    // Stop when reducing takes much longer than finding the contradiction.
    let mut left = budget;
    contradicts(&history, &mut left);
    let cost = budget - left + 1_000;
    let mut effort = 8 * cost;
    let mut part = history.len().div_ceil(2);
    while part > 0 {
        for from in (0..history.len()).step_by(part) {
            let to = history.len().min(from + part);
            let before = weights.clone();
            weights[from..to].copy_from_slice(&lightest[from..to]);
            let allowed = (2 * cost).min(effort);
            let mut left = allowed;
            let contradicts = contradicts(&weighed(&weights), &mut left);
            effort -= allowed - left;
            if !contradicts {
                weights = before;
            }
        }
        part /= 2;
    }
    // Calls that may never have taken effect, and whose values were not read, are not shown.
    loop {
        let mut hints = model.hints(&weighed(&weights)).into_iter();
        let mut changed = false;
        for weight in &mut weights {
            let seen =
                *weight != Weight::None && hints.next().is_some_and(|hint| hint.took_effect_by.is_some());
            if *weight == Weight::Weak && !seen {
                *weight = Weight::None;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }

    let shown = history.iter().zip(&weights).filter(|(_, weight)| **weight != Weight::None);
    let mut calls: Vec<_> = shown
        .map(|(call, weight)| CounterexampleCall {
            client: call.client,
            called: call.called,
            returned: call.returned.map(|(time, _)| time),
            text: match call.returned {
                Some((_, outcome)) => format!("{:?} -> {outcome:?}", call.operation),
                None => format!("{:?} -> unknown", call.operation),
            },
            at_any_time: *weight == Weight::Weak,
        })
        .collect();
    calls.sort_by_key(|call| call.called);
    Counterexample { returned, calls }
}

/// How much of a call the counterexample needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Full,
    /// Only that it was called.
    Weak,
    None,
}
