//! Histories that must be accepted, and more that must be rejected; random ones are compared with a checker
//! that tries every order.

use proptest::prelude::*;
use raftify_history::{
    Call, Model, Verdict, check, check_each_key,
    register::{Operation, Outcome, Register},
};

type RegisterCall = Call<Operation, Outcome>;

const BUDGET: u64 = 1_000_000;

/// A call of client 0, which does not matter, from the first to the second time.
fn call(called: u64, returned: u64, operation: Operation, outcome: Outcome) -> RegisterCall {
    Call { client: 0, operation, called, returned: Some((returned, outcome)) }
}

fn write(called: u64, returned: u64, value: u64) -> RegisterCall {
    call(called, returned, Operation::Write(value), Outcome::Done)
}

fn delete(called: u64, returned: u64) -> RegisterCall {
    call(called, returned, Operation::Delete, Outcome::Done)
}

fn read(called: u64, returned: u64, value: impl Into<Option<u64>>) -> RegisterCall {
    call(called, returned, Operation::Read, Outcome::Value(value.into()))
}

fn swap(
    called: u64,
    returned: u64,
    expected: impl Into<Option<u64>>,
    new: u64,
    swapped: bool,
) -> RegisterCall {
    call(
        called,
        returned,
        Operation::CompareAndSet { expected: expected.into(), new },
        Outcome::Swapped(swapped),
    )
}

fn unknown(called: u64, operation: Operation) -> RegisterCall {
    Call { client: 0, operation, called, returned: None }
}

#[track_caller]
fn accepted(history: &[RegisterCall]) {
    assert!(by_every_order(history), "the example is wrong");
    let verdict = check(&Register, history, BUDGET);
    assert!(matches!(verdict, Verdict::Linearizable), "{verdict:?}");
}

#[track_caller]
fn rejected(history: &[RegisterCall]) {
    assert!(!by_every_order(history), "the example is wrong");
    let verdict = check(&Register, history, BUDGET);
    assert!(matches!(verdict, Verdict::NotLinearizable(_)), "{verdict:?}");
}

/// Tries every order of every selection of the calls of unknown outcome.
fn by_every_order(history: &[RegisterCall]) -> bool {
    fn from(state: Option<u64>, left: &[RegisterCall]) -> bool {
        let Some(first_return) = left.iter().filter_map(|call| call.returned).map(|(time, _)| time).min()
        else {
            return true; // The other calls may never have taken effect.
        };
        left.iter().enumerate().any(|(index, next)| {
            let outcome = next.returned.as_ref().map(|(_, outcome)| outcome);
            next.called <= first_return
                && Register.step(&state, &next.operation, outcome).is_some_and(|state| {
                    let mut left = left.to_vec();
                    left.remove(index);
                    from(state, &left)
                })
        })
    }
    from(None, history)
}

#[test]
fn calls_one_after_the_other_are_accepted() {
    accepted(&[]);
    accepted(&[
        read(0, 1, None),
        write(2, 3, 1),
        read(4, 5, 1),
        swap(6, 7, 1, 2, true),
        swap(8, 9, 1, 3, false),
        read(10, 11, 2),
        delete(12, 13),
        read(14, 15, None),
        swap(16, 17, None, 4, true),
        read(18, 19, 4),
    ]);
}

#[test]
fn a_read_concurrent_with_a_write_may_see_either() {
    accepted(&[write(0, 10, 1), read(1, 2, None), read(3, 4, 1)]);
    rejected(&[write(0, 10, 1), read(1, 2, 1), read(3, 4, None)]);
}

#[test]
fn a_call_that_begins_when_another_returns_is_concurrent_with_it() {
    accepted(&[write(0, 5, 1), read(5, 6, None)]);
    rejected(&[write(0, 5, 1), read(6, 7, None)]);
}

#[test]
fn stale_reads_are_rejected() {
    rejected(&[write(0, 1, 1), read(2, 3, None)]);
    rejected(&[write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)]);
    rejected(&[write(0, 1, 1), delete(2, 3), read(4, 5, 1)]);
    rejected(&[write(0, 1, 1), write(2, 9, 2), read(3, 4, 2), read(5, 6, 1)]);
}

#[test]
fn lost_writes_are_rejected() {
    rejected(&[write(0, 1, 1), write(2, 3, 2), read(4, 5, 1), read(6, 7, 1)]);
    rejected(&[write(0, 1, 1), swap(2, 3, 1, 2, true), swap(4, 5, 1, 3, true)]);
    rejected(&[write(0, 1, 1), write(2, 3, 2), swap(4, 5, 2, 3, false), read(6, 7, 2)]);
}

#[test]
fn a_compare_and_set_that_succeeded_twice_is_rejected() {
    rejected(&[write(0, 1, 1), swap(2, 9, 1, 2, true), swap(2, 9, 1, 3, true)]);
    rejected(&[swap(0, 9, None, 2, true), swap(0, 9, None, 3, true)]);
    accepted(&[swap(0, 9, None, 2, true), swap(0, 9, None, 3, true), delete(0, 9)]);
}

#[test]
fn a_compare_and_set_with_an_impossible_outcome_is_rejected() {
    rejected(&[write(0, 1, 1), swap(2, 3, 1, 2, false)]);
    accepted(&[write(0, 1, 1), swap(2, 3, 1, 2, false), write(2, 3, 5)]);
    rejected(&[write(0, 1, 1), swap(2, 3, 7, 2, true)]);
    rejected(&[swap(0, 1, None, 2, false)]);
}

#[test]
fn reads_from_the_future_are_rejected() {
    rejected(&[read(0, 1, 1), write(2, 3, 1)]);
    rejected(&[read(0, 1, 1), unknown(2, Operation::Write(1))]);
    rejected(&[swap(0, 1, 1, 2, true), write(2, 3, 1)]);
}

#[test]
fn a_value_that_no_call_wrote_is_rejected() {
    rejected(&[write(0, 1, 1), read(0, 3, 2)]);
    rejected(&[unknown(0, Operation::Write(1)), read(0, 3, 2)]);
    rejected(&[swap(0, 1, None, 2, true), swap(0, 3, None, 4, false), read(0, 3, 4)]);
}

#[test]
fn reads_that_disagree_about_the_order_of_writes_are_rejected() {
    rejected(&[write(0, 9, 1), write(0, 9, 2), read(0, 3, 1), read(4, 5, 2), read(6, 7, 1)]);
    rejected(&[write(0, 2, 1), write(0, 2, 2), read(3, 4, 1), read(3, 4, 2), read(5, 6, 1)]);
    accepted(&[write(0, 9, 1), write(0, 9, 2), read(0, 3, 1), read(4, 5, 1), read(6, 7, 2)]);
}

#[test]
fn a_call_of_unknown_outcome_may_take_effect_late_or_never() {
    let unsure = unknown(0, Operation::Write(1));
    accepted(&[unsure, read(1, 2, None), read(3, 4, None)]);
    accepted(&[unsure, read(1, 2, None), write(3, 4, 2), read(5, 6, 1)]);
    rejected(&[unsure, read(1, 2, 1), read(3, 4, None)]);
    rejected(&[unsure, write(1, 2, 2), read(3, 4, 1), read(5, 6, 2)]);
    accepted(&[
        unknown(0, Operation::Delete),
        write(1, 2, 3),
        read(3, 4, 3),
        read(5, 6, None),
        read(7, 8, None),
    ]);
    rejected(&[unknown(0, Operation::Delete), write(1, 2, 3), read(3, 4, None), read(5, 6, 3)]);
    let unsure = unknown(0, Operation::CompareAndSet { expected: Some(5), new: 6 });
    accepted(&[unsure, write(1, 2, 5), read(3, 4, 5), read(5, 6, 6)]);
    rejected(&[unsure, write(1, 2, 5), write(3, 4, 7), read(5, 6, 6)]);
}

#[test]
fn an_unread_write_may_explain_a_failed_compare_and_set() {
    accepted(&[unknown(0, Operation::Write(9)), write(1, 2, 1), swap(3, 4, 1, 2, false)]);
    rejected(&[
        unknown(0, Operation::Write(1)),
        write(1, 2, 2),
        write(3, 4, 1),
        swap(5, 6, 1, 3, false),
        read(7, 8, 1),
    ]);
    accepted(&[write(0, 1, 1), write(2, 9, 2), swap(3, 4, 1, 3, false), swap(10, 11, 1, 4, false)]);
    // Its value must not be the expected one.
    rejected(&[
        unknown(0, Operation::Write(9)),
        swap(3, 4, None, 2, false),
        swap(5, 6, 9, 3, false),
        read(7, 8, None),
    ]);
}

#[test]
fn outcomes_of_another_operation_are_rejected() {
    rejected(&[call(0, 1, Operation::Read, Outcome::Done)]);
    rejected(&[call(0, 1, Operation::Write(1), Outcome::Swapped(false)), write(0, 2, 3)]);
}

#[test]
fn a_history_too_hard_for_the_budget_is_undecided() {
    let history = [write(0, 9, 1), write(0, 9, 2), swap(0, 9, 1, 3, false), swap(0, 9, 2, 4, false)];
    assert!(matches!(check(&Register, &history, 0), Verdict::Undecided));
}

#[test]
fn hundreds_of_calls_of_unknown_outcome_are_checked_within_the_budget() {
    let mut history = Vec::new();
    for n in 0..60 {
        history.push(unknown(n * 10, Operation::Write(1_000 + n)));
        history.push(unknown(n * 10, Operation::CompareAndSet { expected: Some(n), new: 2_000 + n }));
        history.push(unknown(n * 10, Operation::Delete));
        history.push(write(n * 10, n * 10 + 15, n));
        history.push(swap(n * 10 + 1, n * 10 + 12, n, 3_000 + n, false));
    }
    accepted_quickly(&history);
    history.push(read(3_000, 3_001, 1_050));
    accepted_quickly(&history);
    history.push(read(3_010, 3_011, 59));
    let verdict = check(&Register, &history, BUDGET);
    assert!(matches!(verdict, Verdict::NotLinearizable(_)), "{verdict:?}");
}

#[test]
fn keys_are_checked_separately() {
    let history = vec![
        ("good", write(0, 1, 1)),
        ("bad", write(0, 1, 2)),
        ("good", read(2, 3, 1)),
        ("bad", read(2, 3, None)),
    ];
    let verdicts = check_each_key(&Register, history, BUDGET);
    assert!(matches!(verdicts["good"], Verdict::Linearizable));
    assert!(matches!(verdicts["bad"], Verdict::NotLinearizable(_)));
}

#[test]
fn a_counterexample_shows_only_the_contradicting_calls() {
    let mut history: Vec<_> = (0..300).map(|n| write(n * 10, n * 10 + 15, n)).collect();
    history.extend((0..300).map(|n| read(n * 10 + 12, n * 10 + 19, n)));
    accepted_quickly(&history);
    history.push(Call { client: 7, ..read(2_000, 2_001, 150) });
    let Verdict::NotLinearizable(counterexample) = check(&Register, &history, BUDGET) else {
        panic!("must not be linearizable");
    };
    let text = counterexample.to_string();
    assert!(counterexample.calls.len() <= 5, "{text}");
    assert!(text.contains("client 7    Read -> Value(Some(150))"), "{text}");
    assert!(text.contains("Write(150) -> Done"), "{text}");
}

#[track_caller]
fn accepted_quickly(history: &[RegisterCall]) {
    let verdict = check(&Register, history, BUDGET);
    assert!(matches!(verdict, Verdict::Linearizable), "{verdict:?}");
}

/// A history of a correct register: each call takes effect at one moment between its beginning and its end.
fn simulated(clients: u64, calls: usize, random: &mut impl FnMut(u64) -> u64) -> Vec<RegisterCall> {
    let mut state = None;
    let mut next_value = 0;
    // For each client its pending call, with the outcome if it took effect.
    let mut open: Vec<Option<(u64, Operation, Option<Outcome>)>> = vec![None; clients as usize];
    let mut history = Vec::new();
    let mut values = vec![None];
    for now in 0.. {
        let client = random(clients);
        let slot = &mut open[client as usize];
        match slot {
            None if history.len() >= calls => {
                if open.iter().all(Option::is_none) {
                    break;
                }
            }
            None => {
                next_value += 1;
                let guess = values[values.len() - 1 - random(values.len().min(3) as u64) as usize];
                let operation = match random(10) {
                    0..4 => Operation::Read,
                    4..7 => Operation::Write(next_value),
                    7..9 => Operation::CompareAndSet { expected: guess, new: next_value },
                    _ => Operation::Delete,
                };
                *slot = Some((now, operation, None));
            }
            Some((called, operation, outcome @ None)) => {
                if random(20) == 0 {
                    // The client abandons the call, which has no effect.
                    history.push(Call { client, operation: *operation, called: *called, returned: None });
                    *slot = None;
                    continue;
                }
                let new = match *operation {
                    Operation::Read => state,
                    Operation::Write(value) => Some(value),
                    Operation::CompareAndSet { expected, new } if expected == state => Some(new),
                    Operation::CompareAndSet { .. } => state,
                    Operation::Delete => None,
                };
                *outcome = Some(match *operation {
                    Operation::Read => Outcome::Value(state),
                    Operation::CompareAndSet { expected, .. } => Outcome::Swapped(expected == state),
                    Operation::Write(_) | Operation::Delete => Outcome::Done,
                });
                state = new;
                values.push(state);
            }
            Some((called, operation, Some(outcome))) => {
                let returned = (random(20) != 0).then_some((now, *outcome));
                history.push(Call { client, operation: *operation, called: *called, returned });
                *slot = None;
            }
        }
    }
    history
}

/// The same history with one outcome replaced, two ends exchanged, or a call made earlier or later.
fn damaged(mut history: Vec<RegisterCall>, random: &mut impl FnMut(u64) -> u64) -> Vec<RegisterCall> {
    if history.is_empty() {
        return history;
    }
    let one = random(history.len() as u64) as usize;
    let values: Vec<Option<u64>> = history
        .iter()
        .map(|call| match call.operation {
            Operation::Write(value) | Operation::CompareAndSet { new: value, .. } => Some(value),
            _ => None,
        })
        .collect();
    let other = values[random(values.len() as u64) as usize];
    let call = &mut history[one];
    match &mut call.returned {
        Some((_, Outcome::Value(value))) => *value = other,
        Some((_, Outcome::Swapped(swapped))) => *swapped = !*swapped,
        Some((returned, Outcome::Done)) => {
            // Moves the beginning or the end of a call to another time.
            if random(2) == 0 { *returned = call.called } else { call.called = *returned }
        }
        None => call.called += random(10),
    }
    history
}

fn random_from(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    move |bound| {
        // splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The register without its hints.
struct Silent;

impl Model for Silent {
    type State = Option<u64>;
    type Operation = Operation;
    type Outcome = Outcome;

    fn initial(&self) -> Option<u64> {
        Register.initial()
    }

    fn step(
        &self,
        state: &Option<u64>,
        operation: &Operation,
        outcome: Option<&Outcome>,
    ) -> Option<Option<u64>> {
        Register.step(state, operation, outcome)
    }
}

#[track_caller]
fn agrees(history: &[RegisterCall]) -> bool {
    let expected = by_every_order(history);
    match check(&Register, history, BUDGET) {
        Verdict::Linearizable => assert!(expected, "accepted, but no order explains {history:#?}"),
        Verdict::NotLinearizable(counterexample) => {
            assert!(!expected, "rejected, but there is an order: {history:#?}\n{counterexample}");
        }
        Verdict::Undecided => panic!("undecided: {history:#?}"),
    }
    let without_hints = check(&Silent, history, BUDGET);
    assert_eq!(matches!(without_hints, Verdict::Linearizable), expected, "without hints: {history:#?}");
    expected
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn histories_of_a_register_are_accepted(seed: u64, clients in 1u64..64, calls in 0usize..1_000) {
        let history = simulated(clients, calls, &mut random_from(seed));
        accepted_quickly(&history);
    }
}

#[test]
fn verdicts_are_those_of_a_checker_that_tries_every_order() {
    let cases = std::env::var("CASES").map_or(4_000, |cases| cases.parse().expect("CASES is a number"));
    let mut rejected = 0;
    for seed in 0..cases {
        let random = &mut random_from(seed);
        let (clients, calls) = (1 + random(5), 1 + random(7) as usize);
        let history = simulated(clients, calls, random);
        assert!(agrees(&history), "the simulated register is not linearizable: {history:#?}");
        rejected += u64::from(!agrees(&damaged(history, random)));
    }
    assert!(rejected > cases / 5, "only {rejected} of {cases} damaged histories were to be rejected");
}

#[test]
fn calls_drawn_at_random_get_the_verdict_of_a_checker_that_tries_every_order() {
    let cases = std::env::var("CASES").map_or(4_000, |cases| cases.parse().expect("CASES is a number"));
    let (mut accepted, mut rejected) = (0, 0);
    for seed in 0..cases {
        let random = &mut random_from(seed);
        // Few values, written once each or, in some histories, more often.
        let unique = random(4) != 0;
        let mut history = Vec::new();
        let mut written = 0;
        for _ in 0..1 + random(7) {
            let called = random(12);
            let mut fresh = |random: &mut dyn FnMut(u64) -> u64| {
                written += 1;
                if unique { written } else { 1 + random(3) }
            };
            let some = |random: &mut dyn FnMut(u64) -> u64| Some(random(4)).filter(|value| *value > 0);
            let (operation, outcome) = match random(6) {
                0 | 1 => (Operation::Read, Outcome::Value(some(random))),
                2 | 3 => (Operation::Write(fresh(random)), Outcome::Done),
                4 => (Operation::Delete, Outcome::Done),
                _ => (
                    Operation::CompareAndSet { expected: some(random), new: fresh(random) },
                    Outcome::Swapped(random(2) == 0),
                ),
            };
            let returned = (random(5) != 0).then(|| (called + random(12), outcome));
            history.push(Call { client: 0, operation, called, returned });
        }
        if agrees(&history) { accepted += 1 } else { rejected += 1 }
    }
    assert!(accepted > cases / 10 && rejected > cases / 10, "{accepted} accepted, {rejected} rejected");
}
