//! The search for an order. Called by [`check`](crate::check) and by who makes counterexamples small.
//!
//! A depth-first search over *configurations*: what has taken effect so far, and the state (J. Wing, C. Gong, *Testing
//! and verifying concurrent objects*, 1993), none looked at twice, and *just in time*: a call is put in the order when
//! one that returns needs it, not before (G. Lowe, *Testing for linearizability*, 2017). Five things more keep
//! it from exploding, each by an argument that what is passed over could not do better:
//!
//! - **Reads at once.** A call that changes no state, is pending and possible now, takes effect now: an order in which it
//!   does so later stays one when it is moved here.
//! - **A state that is needed is not left.** Where calls that have not taken effect are possible only in the present state,
//!   and it does not come back, nothing leads out of it but one of them.
//! - **Hidden calls.** Just before a call that overwrites any state, other overwriting ones may take effect and be seen
//!   by nobody, or only by pending reads of theirs. Which of them do need not be decided: they are *excused* from then
//!   on, free to return without having taken effect otherwise, free to do so later.
//! - **Fewer unknown calls.** Of two configurations that differ in the calls of unknown outcome that took effect, and one
//!   of them used fewer: what can follow the other can follow this one too. So the other is not looked at. What nobody
//!   is owed (calls of unknown outcome, excused ones) and what overwrites is not overwritten before somebody has profited.
//! - **Interchangeable unknown calls** take effect in the order in which they were called: wherever one stands, another
//!   one that was called before could.
//!
//! A call of unknown outcome whose effect was seen is no different from one that returned when that was seen.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

use crate::{CallRef, Hint, Model};

/// What the search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Order,
    NoOrder,
    BudgetUsedUp,
}

/// Looks for an order that explains `history`, at `budget` configurations at most.
pub(crate) fn search<M: Model>(model: &M, history: &[CallRef<'_, M>], budget: u64) -> Found {
    match Search::prepare(model, history) {
        Some(search) => search.run(budget),
        None => Found::NoOrder,
    }
}

/// A call, by its place in the history.
type CallIndex = usize;

enum Event {
    Called(CallIndex),
    /// The call returns; with it, all calls that were called and have not returned before, known ones only.
    Returned(CallIndex, Box<[CallIndex]>),
}

/// Where the bit is that says whether a call has taken effect.
#[derive(Clone, Copy)]
enum Place {
    /// Of calls that return: free again afterwards.
    Owed(usize),
    /// Of calls that never do.
    Unknown(usize),
}

struct Search<'h, M: Model> {
    model: &'h M,
    history: &'h [CallRef<'h, M>],
    hints: Vec<Hint<M::State>>,
    events: Vec<Event>,
    places: Vec<Place>,
    /// The numbers of the events at which each call begins and returns.
    begins: Vec<usize>,
    ends: Vec<usize>,
    /// Calls of unknown outcome, as they were called.
    unknown: Vec<CallIndex>,
    /// For each state that is possible once, the calls that are possible only in it.
    needs: HashMap<M::State, Vec<CallIndex>>,
}

#[derive(Clone)]
struct Configuration<S> {
    /// The next event.
    event: usize,
    state: S,
    /// Pending calls that took effect, by place.
    done: Bits,
    /// Pending calls that may return without.
    excused: Bits,
    /// Calls of unknown outcome that took effect.
    used: Bits,
    /// The last call was one that is owed to nobody, or overwrote, and no read has profited.
    idle: bool,
}

impl<'h, M: Model> Search<'h, M> {
    /// `None` if a call was seen to have taken effect before it began.
    fn prepare(model: &'h M, history: &'h [CallRef<'h, M>]) -> Option<Self> {
        let hints = model.hints(history);
        // Calls come before returns of the same moment: they are concurrent.
        let mut moments = Vec::new();
        for (index, (call, hint)) in history.iter().zip(&hints).enumerate() {
            let returned = call.returned.map(|(time, _)| time).or(hint.took_effect_by);
            if returned.is_some_and(|time| time < call.called) {
                return None;
            }
            if returned.is_none() && hint.reads {
                continue; // It says nothing.
            }
            moments.push((call.called, false, index));
            moments.extend(returned.map(|time| (time, true, index)));
        }
        moments.sort_unstable();

        let mut search = Search {
            model,
            history,
            hints,
            events: Vec::with_capacity(moments.len()),
            places: vec![Place::Unknown(usize::MAX); history.len()],
            begins: vec![usize::MAX; history.len()],
            ends: vec![usize::MAX; history.len()],
            unknown: Vec::new(),
            needs: HashMap::new(),
        };
        let mut pending: Vec<CallIndex> = Vec::new();
        let (mut free, mut places) = (Vec::new(), 0);
        for (event, (_, returns, index)) in moments.into_iter().enumerate() {
            if returns {
                pending.retain(|other| *other != index);
                if let Place::Owed(place) = search.places[index] {
                    free.push(place);
                }
                search.ends[index] = event;
                search.events.push(Event::Returned(index, pending.clone().into()));
                continue;
            }
            search.begins[index] = event;
            search.events.push(Event::Called(index));
            if history[index].returned.is_some() || search.hints[index].took_effect_by.is_some() {
                search.places[index] = Place::Owed(free.pop().unwrap_or_else(|| {
                    places += 1;
                    places - 1
                }));
                pending.push(index);
            } else {
                search.places[index] = Place::Unknown(search.unknown.len());
                search.unknown.push(index);
            }
            if let Some(state) = search.hints[index].needs.clone() {
                search.needs.entry(state).or_default().push(index);
            }
        }
        // Who returns first is served first.
        for event in &mut search.events {
            if let Event::Returned(_, pending) = event {
                pending.sort_unstable_by_key(|index| search.ends[*index]);
            }
        }
        Some(search)
    }

    fn run(&self, budget: u64) -> Found {
        let places =
            self.places.iter().map(|place| if let Place::Owed(place) = place { place + 1 } else { 0 });
        let places = places.max().unwrap_or(0);
        let mut stack = vec![Configuration {
            event: 0,
            state: self.model.initial(),
            done: Bits::new(places),
            excused: Bits::new(places),
            used: Bits::new(self.unknown.len()),
            idle: false,
        }];
        // What was looked at, with the fewest unknown calls used.
        let mut seen = HashMap::new();
        let mut looked_at = 0;
        while let Some(mut configuration) = stack.pop() {
            let Some((returns, pending)) = self.advance(&mut configuration, &mut stack) else {
                return Found::Order;
            };
            if !is_new(&mut seen, &configuration) {
                continue;
            }
            looked_at += 1;
            if looked_at > budget {
                return Found::BudgetUsedUp;
            }
            // The last one pushed is looked at first: those after which the returning call has taken effect, and of
            // these the one that took the shortest way.
            let unknown = self.unknown.iter().filter(|index| self.begins[**index] < configuration.event);
            let candidates = unknown.chain(pending.iter().rev()).chain([&returns]);
            let mut next: Vec<_> = candidates
                .filter_map(|index| self.take_effect(&configuration, *index, returns, pending))
                .collect();
            next.sort_by_key(|next| self.is_done(next, returns));
            stack.append(&mut next);
        }
        Found::NoOrder
    }

    /// Goes on to the first return of a call that has not taken effect and must. An excused one that returns leaves a
    /// configuration on the stack in which it is not excused. `None` if there is no such return any more.
    fn advance(
        &self,
        configuration: &mut Configuration<M::State>,
        stack: &mut Vec<Configuration<M::State>>,
    ) -> Option<(CallIndex, &[CallIndex])> {
        loop {
            match self.events.get(configuration.event)? {
                Event::Called(index) => {
                    configuration.event += 1;
                    if self.is_read_now(configuration, *index) {
                        self.set_done(configuration, *index);
                    }
                }
                Event::Returned(index, pending) => {
                    let Place::Owed(place) = self.places[*index] else {
                        unreachable!("unknown calls do not return")
                    };
                    if !configuration.done.has(place) {
                        if !configuration.excused.has(place) {
                            return Some((*index, pending));
                        }
                        let mut insisting = configuration.clone();
                        self.each_of_the_same(*index, pending, |place| insisting.excused.clear(place));
                        stack.push(insisting);
                        // It was hidden, and with it who saw it, or whom it saw.
                        self.each_of_the_same(*index, pending, |place| {
                            configuration.done.set(place);
                            configuration.excused.clear(place);
                        });
                    }
                    configuration.done.clear(place);
                    configuration.excused.clear(place);
                    configuration.idle = false;
                    configuration.event += 1;
                }
            }
        }
    }

    /// The configuration after the call took effect, if it is possible and can be of use.
    fn take_effect(
        &self,
        before: &Configuration<M::State>,
        index: CallIndex,
        returns: CallIndex,
        pending: &[CallIndex],
    ) -> Option<Configuration<M::State>> {
        let hint = &self.hints[index];
        if self.is_done(before, index) || before.idle && hint.overwrites_with.is_some() {
            return None;
        }
        if let Some(class) = hint.interchangeable
            && let Place::Unknown(place) = self.places[index]
        {
            let earlier = self.unknown[..place].iter().enumerate();
            let mut same = earlier.filter(|(_, other)| self.hints[**other].interchangeable == Some(class));
            if same.any(|(place, _)| !before.used.has(place)) {
                return None;
            }
        }
        let call = &self.history[index];
        let state =
            self.model.step(&before.state, call.operation, call.returned.map(|(_, outcome)| outcome))?;
        if state != before.state
            && let Some(needing) = self.needs.get(&before.state)
            && needing.iter().any(|other| *other != index && !self.is_over(before, *other))
        {
            return None;
        }
        let owed = match self.places[index] {
            Place::Owed(place) => !before.excused.has(place),
            Place::Unknown(_) => false,
        };
        let mut after = before.clone();
        self.set_done(&mut after, index);
        if hint.overwrites_with.is_some() {
            self.excuse_hidden(&mut after, pending, returns);
        }
        after.state = state;
        let mut profited = false;
        for other in pending.iter().chain([&returns]) {
            if self.is_read_now(&after, *other) {
                self.set_done(&mut after, *other);
                profited |= self.hints[*other].needs.as_ref() != Some(&after.state);
            }
        }
        after.idle = !profited && (!owed || hint.overwrites_with.is_some());
        Some(after)
    }

    /// Excuses pending calls that overwrite, with the reads that saw them, if all these are pending: they can stand just
    /// before the call that overwrites now.
    fn excuse_hidden(&self, after: &mut Configuration<M::State>, pending: &[CallIndex], returns: CallIndex) {
        for index in pending.iter().chain([&returns]) {
            let Some(state) = &self.hints[*index].overwrites_with else { continue };
            let saw = self.needs.get(state).map_or(&[][..], Vec::as_slice);
            let hidden = |other: &CallIndex| self.hints[*other].reads && self.begins[*other] < after.event;
            if self.is_done(after, *index) || !saw.iter().all(hidden) {
                continue;
            }
            for other in saw.iter().chain([index]) {
                if let Place::Owed(place) = self.places[*other] {
                    after.excused.set(place);
                }
            }
        }
    }

    /// Calls `act` for the places of the call and of those pending that saw it, or that it saw.
    fn each_of_the_same(&self, index: CallIndex, pending: &[CallIndex], mut act: impl FnMut(usize)) {
        let of = |index: CallIndex| {
            self.hints[index].needs.as_ref().or(self.hints[index].overwrites_with.as_ref())
        };
        let needed = of(index).filter(|state| self.needs.contains_key(*state));
        let same = pending.iter().filter(|other| needed.is_some() && of(**other) == needed);
        for index in same.chain([&index]) {
            if let Place::Owed(place) = self.places[*index] {
                act(place);
            }
        }
    }

    fn is_read_now(&self, configuration: &Configuration<M::State>, index: CallIndex) -> bool {
        let call = &self.history[index];
        self.hints[index].reads
            && !self.is_done(configuration, index)
            && call.returned.is_some_and(|(_, outcome)| {
                self.model.step(&configuration.state, call.operation, Some(outcome)).is_some()
            })
    }

    fn is_done(&self, configuration: &Configuration<M::State>, index: CallIndex) -> bool {
        if self.begins[index] >= configuration.event {
            return false; // Its place may be somebody else's still.
        }
        match self.places[index] {
            Place::Owed(place) => configuration.done.has(place),
            Place::Unknown(place) => configuration.used.has(place),
        }
    }

    /// Whether the call, if it is one that returns, has taken effect, whether or not it is still pending.
    fn is_over(&self, configuration: &Configuration<M::State>, index: CallIndex) -> bool {
        self.ends[index] < configuration.event || self.is_done(configuration, index)
    }

    fn set_done(&self, configuration: &mut Configuration<M::State>, index: CallIndex) {
        match self.places[index] {
            Place::Owed(place) => {
                configuration.done.set(place);
                configuration.excused.clear(place);
            }
            Place::Unknown(place) => configuration.used.set(place),
        }
    }
}

/// Remembers the configuration. False if it, or one with fewer unknown calls used, was remembered before.
fn is_new<S: Clone + Eq + Hash>(seen: &mut Seen<S>, configuration: &Configuration<S>) -> bool {
    let Configuration { event, state, done, excused, used, idle } = configuration;
    match seen.entry((*event, state.clone(), done.clone(), excused.clone(), *idle)) {
        Entry::Vacant(vacant) => {
            vacant.insert(vec![used.clone()]);
            true
        }
        Entry::Occupied(mut occupied) => {
            let fewest = occupied.get_mut();
            if fewest.iter().any(|other| other.is_subset_of(used)) {
                return false;
            }
            fewest.retain(|other| !used.is_subset_of(other));
            fewest.push(used.clone());
            true
        }
    }
}

type Seen<S> = HashMap<(usize, S, Bits, Bits, bool), Vec<Bits>>;

/// A set of small numbers.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(len: usize) -> Self {
        Bits(vec![0; len.div_ceil(64)].into())
    }

    fn has(&self, bit: usize) -> bool {
        self.0[bit / 64] & (1 << (bit % 64)) != 0
    }

    fn set(&mut self, bit: usize) {
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    fn clear(&mut self, bit: usize) {
        self.0[bit / 64] &= !(1 << (bit % 64));
    }

    fn is_subset_of(&self, other: &Bits) -> bool {
        self.0.iter().zip(&other.0).all(|(mine, others)| mine & !others == 0)
    }
}
