//! Histories of concurrent calls, and a checker that says whether they are linearizable.
//!
//! Whoever tries a cluster records what its clients called and what they were told, and asks [`check`] (one object) or
//! [`check_each_key`] (many independent ones: a history is linearizable if and only if it is for each object alone).
//! Nothing here knows of Raft. The checker believes nothing but the history: neither a log nor a clock of a server.
//!
//! A history is linearizable if each call can be given one moment between its beginning and its end such that all
//! calls, one after the other at these moments, give the outcomes that were seen (M. Herlihy, J. Wing,
//! *Linearizability: a correctness condition for concurrent objects*, 1990).

mod counterexample;
pub mod register;
mod search;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;

pub use counterexample::{Counterexample, CounterexampleCall};

/// What the calls of a history act on, said as a sequential specification.
pub trait Model {
    /// The state between two calls.
    type State: Clone + Eq + Hash;
    /// What a client asks.
    type Operation: Debug;
    /// What it is told.
    type Outcome: Debug;

    /// The state before the first call.
    fn initial(&self) -> Self::State;

    /// The state after `operation`, if it can have had `outcome` in `state`.
    ///
    /// Without an outcome it is not known whether and how the operation took effect; then: the state if it did.
    fn step(
        &self,
        state: &Self::State,
        operation: &Self::Operation,
        outcome: Option<&Self::Outcome>,
    ) -> Option<Self::State>;

    /// What the search may rely on, for each call of `history`. It changes how long a search takes, never its verdict.
    /// The default promises nothing.
    fn hints(&self, history: &[CallRef<'_, Self>]) -> Vec<Hint<Self::State>> {
        history.iter().map(|_| Hint::default()).collect()
    }
}

/// What is known of one call beforehand; see [`Model::hints`]. Each field is a promise.
#[derive(Clone, Debug)]
pub struct Hint<S> {
    /// In no state does the call change the state.
    pub reads: bool,
    /// The call is possible in every state, and leads to this one.
    pub overwrites_with: Option<S>,
    /// The call is possible in this state only, and this state, once left, does not come back.
    pub needs: Option<S>,
    /// Its outcome is unknown, but it must have taken effect before a call that returned at this time.
    pub took_effect_by: Option<u64>,
    /// Of two calls of unknown outcome and equal number, either can stand wherever the other does, if it was called
    /// by then.
    pub interchangeable: Option<u64>,
}

impl<S> Default for Hint<S> {
    fn default() -> Self {
        Hint { reads: false, overwrites_with: None, needs: None, took_effect_by: None, interchangeable: None }
    }
}

/// One call of a client. What definitely had no effect (it was refused) does not belong in a history.
#[derive(Clone, Debug)]
pub struct Call<O, R> {
    /// Who called; only shown.
    pub client: u64,
    /// What was asked.
    pub operation: O,
    /// When it was asked: any number that never falls while time goes on, the same clock for all clients.
    pub called: u64,
    /// When the answer came, and which. Without one the outcome is unknown: the call may take effect at any later
    /// time, or never. A call that begins at the moment another one returns counts as concurrent with it.
    pub returned: Option<(u64, R)>,
}

impl<O: Copy, R: Copy> Copy for Call<O, R> {}

/// A call of somebody else's history.
pub type CallRef<'h, M> = Call<&'h <M as Model>::Operation, &'h <M as Model>::Outcome>;

/// What [`check`] found.
#[derive(Debug)]
pub enum Verdict {
    /// There is an order that explains the history.
    Linearizable,
    /// There is none.
    NotLinearizable(Counterexample),
    /// The budget was used up before either was known.
    Undecided,
}

/// Says whether `history`, in any order, is linearizable. `budget` bounds how many configurations (what has taken
/// effect, and the state) are looked at: it bounds time and memory. 10⁶ is plenty for some thousand calls of 64 clients.
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

/// [`check`]s the calls of each key for themselves, with a budget for each.
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
