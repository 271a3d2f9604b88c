//! Histories of concurrent calls, and a linearizability checker.
//!
//! A test of a cluster records the calls of its clients and their outcomes, and calls [`check`] (one object)
//! or [`check_each_key`] (many independent objects: a history is linearizable if and only if it is so for
//! each object alone). Nothing here depends on Raft. The checker uses only the history: neither a log nor a
//! clock of a server.
//!
//! A history is linearizable if each call can be given one moment between its beginning and its end such that
//! all calls, one after the other at these moments, give the recorded outcomes (M. Herlihy, J. Wing,
//! *Linearizability: a correctness condition for concurrent objects*, 1990).

mod counterexample;
pub mod register;
mod search;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;

pub use counterexample::{Counterexample, CounterexampleCall};

/// The object of the calls of a history, as a sequential specification.
pub trait Model {
    /// The state between two calls.
    type State: Clone + Eq + Hash;
    /// The operation of a call.
    type Operation: Debug;
    /// The outcome of a call.
    type Outcome: Debug;

    /// The state before the first call.
    fn initial(&self) -> Self::State;

    /// The state after `operation`, if it can have had `outcome` in `state`.
    ///
    /// Without an outcome it is unknown whether and how the operation took effect; the result is then the
    /// state if it did.
    fn step(
        &self,
        state: &Self::State,
        operation: &Self::Operation,
        outcome: Option<&Self::Outcome>,
    ) -> Option<Self::State>;

    /// Promises for the search, for each call of `history`. They change the duration of a search, never its
    /// verdict. The default promises nothing.
    fn hints(&self, history: &[CallRef<'_, Self>]) -> Vec<Hint<Self::State>> {
        history.iter().map(|_| Hint::default()).collect()
    }
}

/// Known properties of one call; see [`Model::hints`]. Each field is a promise.
#[derive(Clone, Debug)]
pub struct Hint<S> {
    /// The call never changes the state.
    pub reads: bool,
    /// The call is possible in every state, and leads to this one.
    pub overwrites_with: Option<S>,
    /// The call is possible in this state only, and this state, once left, does not recur.
    pub needs: Option<S>,
    /// Its outcome is unknown, but it must have taken effect before a call that returned at this time.
    pub took_effect_by: Option<u64>,
    /// Two calls of unknown outcome with equal numbers are interchangeable: either can take the position of
    /// the other, if it was called by then.
    pub interchangeable: Option<u64>,
}

impl<S> Default for Hint<S> {
    fn default() -> Self {
        Hint { reads: false, overwrites_with: None, needs: None, took_effect_by: None, interchangeable: None }
    }
}

/// One call of a client. A call that had no effect for certain (it was refused) does not belong in a history.
#[derive(Clone, Debug)]
pub struct Call<O, R> {
    /// The client; only shown.
    pub client: u64,
    /// The operation.
    pub operation: O,
    /// The time of the call: any number that never decreases, from the same clock for all clients.
    pub called: u64,
    /// The time of the answer, and the answer. Without one the outcome is unknown: the call may take effect
    /// at any later time, or never. A call that begins at the moment another one returns counts as
    /// concurrent with it.
    pub returned: Option<(u64, R)>,
}

impl<O: Copy, R: Copy> Copy for Call<O, R> {}

/// A call of a history of the model `M`.
pub type CallRef<'h, M> = Call<&'h <M as Model>::Operation, &'h <M as Model>::Outcome>;

/// The result of [`check`].
#[derive(Debug)]
pub enum Verdict {
    /// There is an order that explains the history.
    Linearizable,
    /// There is no such order.
    NotLinearizable(Counterexample),
    /// The budget was exhausted before the result was known.
    Undecided,
}

/// Checks whether `history`, in any order, is linearizable. `budget` limits the number of visited
/// configurations (the calls that took effect, and the state), and so time and memory. 10⁶ is plenty for some
/// thousand calls of 64 clients.
pub fn check<M: Model>(model: &M, history: &[Call<M::Operation, M::Outcome>], budget: u64) -> Verdict {
    let history: Vec<CallRef<'_, M>> = history
        .iter()
        .map(|call| Call {
            client: call.client,
            operation: &call.operation,
            called: call.called,
            returned: call.returned.as_ref().map(|(time, outcome)| (*time, outcome)),
        })
        .collect();
    match search::search(model, &history, &mut { budget }) {
        search::Found::Order => Verdict::Linearizable,
        search::Found::NoOrder => Verdict::NotLinearizable(counterexample::shrink(model, history, budget)),
        search::Found::BudgetUsedUp => Verdict::Undecided,
    }
}

/// [`check`]s the calls of each key separately, with a budget for each.
pub fn check_each_key<K: Ord, M: Model>(
    model: &M,
    history: impl IntoIterator<Item = (K, Call<M::Operation, M::Outcome>)>,
    budget: u64,
) -> BTreeMap<K, Verdict> {
    let mut keys: BTreeMap<K, Vec<_>> = BTreeMap::new();
    for (key, call) in history {
        keys.entry(key).or_default().push(call);
    }
    keys.into_iter().map(|(key, calls)| (key, check(model, &calls, budget))).collect()
}
