//! The search for an order. Called by [`check`](crate::check) and by the reduction of counterexamples.
//!
//! A depth-first search over *configurations*: the calls that took effect so far, and the state (J. Wing, C.
//! Gong, *Testing and verifying concurrent objects*, 1993). It visits none twice, and works *just in time*:
//! it orders a call when a returning call needs it, not before (G. Lowe, *Testing for linearizability*,
//! 2017). Six rules more keep it from exploding, each justified by an argument that a skipped configuration
//! could do no better:
//!
//! - **Reads at once.** A call that changes no state, is pending and possible now, takes effect now: an order
//!   in which it does so later remains valid when it is moved here.
//! - **A state that is needed is not left.** If calls that have not taken effect are possible only in the
//!   present state, and the state does not recur, only one of these calls may leave it.
//! - **Hidden calls.** Just before a call that overwrites any state, other overwriting calls may take effect
//!   unobserved, or observed only by pending reads. Which of them do is not decided: they are *excused* from
//!   then on. An excused call may return without having taken effect otherwise, and may still take effect
//!   later.
//! - **Dominated configurations.** A configuration is skipped if a visited one at the same event and in the
//!   same state allows every continuation that this one allows: it used fewer calls of unknown outcome, has
//!   more completed reads, more excused calls, and is equal otherwise.
//! - **No unused effects.** A call that need not take effect (of unknown outcome, or excused) is not
//!   overwritten before another call has used its effect, and neither is an overwriting call that would be
//!   hidden: the order without it would do as well.
//! - **Interchangeable unknown calls** take effect in the order in which they were called: each one can take
//!   the position of another that was called later.
//!
//! A call of unknown outcome whose effect was observed is treated like one that returned at the time of that
//! observation.

use std::collections::HashMap;

use crate::{CallRef, Hint, Model};

/// The result of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Order,
    NoOrder,
    BudgetUsedUp,
}

/// Searches for an order that explains `history`, visits at most `budget` configurations, and subtracts the
/// visited ones from it.
pub(crate) fn search<M: Model>(model: &M, history: &[CallRef<'_, M>], budget: &mut u64) -> Found {
    match Search::prepare(model, history) {
        Some(search) => search.run(budget),
        None => Found::NoOrder,
    }
}

/// A call, by its index in the history.
type CallIndex = usize;

enum Event {
    Called(CallIndex),
    Returned(Return),
}

struct Return {
    call: CallIndex,
    /// The other calls that have begun and return later.
    pending: Box<[CallIndex]>,
    /// The slots that belong to reads at this moment.
    reads: Bits,
}

/// The bit that says whether a call has taken effect.
#[derive(Clone, Copy)]
enum Place {
    /// Of calls that return: free again afterwards.
    Owed(usize),
    /// Of calls that never return.
    Unknown(usize),
}

struct Search<'h, M: Model> {
    model: &'h M,
    history: &'h [CallRef<'h, M>],
    hints: Vec<Hint<M::State>>,
    events: Vec<Event>,
    places: Vec<Place>,
    /// The number of slots for calls that return.
    owed: usize,
    /// The numbers of the events at which each call begins and returns.
    begins: Vec<usize>,
    ends: Vec<usize>,
    /// Calls of unknown outcome, in the order of their calls.
    unknown: Vec<CallIndex>,
    /// For a call of unknown outcome, the interchangeable one that was called just before it.
    goes_first: Vec<Option<CallIndex>>,
    /// For each state that occurs once, the calls that are possible only in it.
    needs: HashMap<M::State, Vec<CallIndex>>,
}

#[derive(Clone)]
struct Configuration<S> {
    /// The next event.
    event: usize,
    state: S,
    /// Pending calls that took effect, by slot.
    done: Bits,
    /// Pending calls that may return without having taken effect.
    excused: Bits,
    /// Calls of unknown outcome that took effect.
    used: Bits,
    /// The returning call must have taken effect, though it is excused.
    insists: bool,
    idle: Idle,
}

/// Whether some call has used the effect of the last call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Idle {
    /// Yes, or no use is required.
    No,
    /// It must not be overwritten before this event is over.
    UntilReturn,
    /// It must not be overwritten before another call has used it.
    UntilProfit,
}

impl<'h, M: Model> Search<'h, M> {
    /// `None` if an effect was observed before its call began.
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
                continue; // It adds no constraint.
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
            owed: 0,
            begins: vec![usize::MAX; history.len()],
            ends: vec![usize::MAX; history.len()],
            unknown: Vec::new(),
            goes_first: vec![None; history.len()],
            needs: HashMap::new(),
        };
        let mut pending: Vec<CallIndex> = Vec::new();
        let (mut free, mut places) = (Vec::new(), 0);
        let mut latest = HashMap::new();
        for (event, (_, returns, index)) in moments.into_iter().enumerate() {
            if returns {
                pending.retain(|other| *other != index);
                if let Place::Owed(place) = search.places[index] {
                    free.push(place);
                }
                search.ends[index] = event;
                let pending = pending.clone().into();
                search.events.push(Event::Returned(Return { call: index, pending, reads: Bits::new(0) }));
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
                search.goes_first[index] =
                    search.hints[index].interchangeable.and_then(|class| latest.insert(class, index));
            }
            if let Some(state) = search.hints[index].needs.clone() {
                search.needs.entry(state).or_default().push(index);
            }
        }
        // Earlier returns come first.
        for event in &mut search.events {
            let Event::Returned(at) = event else { continue };
            at.pending.sort_unstable_by_key(|index| search.ends[*index]);
            at.reads = Bits::new(places);
            for index in at.pending.iter().chain([&at.call]) {
                if let Place::Owed(place) = search.places[*index]
                    && search.hints[*index].reads
                {
                    at.reads.set(place);
                }
            }
        }
        search.owed = places;
        Some(search)
    }

    fn run(&self, budget: &mut u64) -> Found {
        let mut stack = vec![Configuration {
            event: 0,
            state: self.model.initial(),
            done: Bits::new(self.owed),
            excused: Bits::new(self.owed),
            used: Bits::new(self.unknown.len()),
            insists: false,
            idle: Idle::No,
        }];
        let mut seen: HashMap<_, Vec<Configuration<M::State>>> = HashMap::new();
        while let Some(mut configuration) = stack.pop() {
            let Some(at) = self.advance(&mut configuration, &mut stack) else { return Found::Order };
            let seen = seen.entry((configuration.event, configuration.state.clone())).or_default();
            if seen.iter().any(|other| configuration.is_no_better_than(other, &at.reads)) {
                continue;
            }
            seen.retain(|other| !other.is_no_better_than(&configuration, &at.reads));
            seen.push(configuration.clone());
            // Comparing with many configurations takes time as well.
            let Some(left) = budget.checked_sub(1 + seen.len() as u64 / 64) else {
                return Found::BudgetUsedUp;
            };
            *budget = left;
            // The last one pushed is visited first: first those in which the returning call has taken effect,
            // of these the one with the shortest path.
            let unknown = self.unknown.iter().filter(|index| self.begins[**index] < configuration.event);
            let candidates = unknown.chain(at.pending.iter().rev()).chain([&at.call]);
            let mut next: Vec<_> =
                candidates.filter_map(|index| self.take_effect(&configuration, *index, at)).collect();
            next.sort_by_key(|next| self.is_done(next, at.call));
            stack.append(&mut next);
        }
        Found::NoOrder
    }

    /// Advances to the first return of a call that has not taken effect and must; `None` if there is none any
    /// more. An excused call returns, and a configuration that requires its effect stays on the stack.
    fn advance(
        &self,
        configuration: &mut Configuration<M::State>,
        stack: &mut Vec<Configuration<M::State>>,
    ) -> Option<&Return> {
        loop {
            match self.events.get(configuration.event)? {
                Event::Called(index) => {
                    configuration.event += 1;
                    if self.is_read_now(configuration, *index) {
                        self.set_done(configuration, *index);
                        if self.profits(configuration, *index) {
                            configuration.idle = Idle::No;
                        }
                    }
                }
                Event::Returned(at) => {
                    let Place::Owed(place) = self.places[at.call] else {
                        unreachable!("unknown calls do not return")
                    };
                    if !configuration.done.has(place) {
                        if configuration.insists || !configuration.excused.has(place) {
                            return Some(at);
                        }
                        stack.push(Configuration { insists: true, ..configuration.clone() });
                        // It was hidden, together with the calls that observed it or that it observed.
                        self.each_of_the_same(at, |place| {
                            configuration.done.set(place);
                            configuration.excused.clear(place);
                        });
                    }
                    configuration.done.clear(place);
                    configuration.insists = false;
                    if configuration.idle == Idle::UntilReturn {
                        configuration.idle = Idle::No;
                    }
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
        at: &Return,
    ) -> Option<Configuration<M::State>> {
        let hint = &self.hints[index];
        if self.is_done(before, index) || before.idle != Idle::No && hint.overwrites_with.is_some() {
            return None;
        }
        if self.goes_first[index].is_some_and(|other| !self.is_done(before, other)) {
            return None;
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
            self.excuse_hidden(&mut after, at);
        }
        after.state = state;
        let mut profited = false;
        for other in at.pending.iter().chain([&at.call]) {
            if self.is_read_now(&after, *other) {
                self.set_done(&mut after, *other);
                profited |= self.profits(&after, *other);
            }
        }
        after.idle = match hint.overwrites_with {
            _ if profited => Idle::No,
            _ if !owed => Idle::UntilProfit,
            Some(_) => Idle::UntilReturn,
            None => Idle::No,
        };
        Some(after)
    }

    /// Excuses pending overwriting calls, together with the reads that observed them, if all these are
    /// pending: their position can be just before the call that overwrites now.
    fn excuse_hidden(&self, after: &mut Configuration<M::State>, at: &Return) {
        for index in at.pending.iter().chain([&at.call]) {
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

    /// Calls `act` for the slots of the returning call and of those pending that observed it, or that it
    /// observed.
    fn each_of_the_same(&self, at: &Return, mut act: impl FnMut(usize)) {
        let of = |index: CallIndex| {
            self.hints[index].needs.as_ref().or(self.hints[index].overwrites_with.as_ref())
        };
        let needed = of(at.call).filter(|state| self.needs.contains_key(*state));
        let same = at.pending.iter().filter(|other| needed.is_some() && of(**other) == needed);
        for index in same.chain([&at.call]) {
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

    /// Whether a read has used the present state in a way that would be impossible if the call that led to
    /// it, and the read itself, had been hidden.
    fn profits(&self, configuration: &Configuration<M::State>, read: CallIndex) -> bool {
        self.hints[read].needs.as_ref() != Some(&configuration.state)
    }

    fn is_done(&self, configuration: &Configuration<M::State>, index: CallIndex) -> bool {
        if self.begins[index] >= configuration.event {
            return false; // Its slot may still belong to another call.
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

impl<S> Configuration<S> {
    /// Whether `other`, of the same event and state, allows every continuation that this one allows; `reads`
    /// are the slots of reads.
    fn is_no_better_than(&self, other: &Configuration<S>, reads: &Bits) -> bool {
        // In each slot: excused is better than done, and than neither; a read that is done is better than one
        // that is not.
        let words = self.done.0.iter().zip(&self.excused.0).zip(other.done.0.iter().zip(&other.excused.0));
        let mut words = words.zip(&reads.0);
        other.idle <= self.idle
            && other.insists == self.insists
            && other.used.is_subset_of(&self.used)
            && words.all(|(((done, excused), (other_done, other_excused)), reads)| {
                let worse_if_excused = excused & !(other_excused | other_done & reads);
                let worse_if_done = done & !(other_done | other_excused);
                let worse_if_neither = other_done & !(done | reads);
                worse_if_excused | worse_if_done | worse_if_neither == 0
            })
    }
}

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
