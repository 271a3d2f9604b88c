//! The command line, and the loop over all mutations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use raftify_console::{WRONG_ARGUMENTS, say};
use raftify_core::mutants::Mutant;

use crate::hunt::{self, Hunt};
use crate::named_tests::{self, Executables, TestName};
use crate::report::{self, FoundBy, Outcome};

/// Reintroduces known bugs, one at a time, and requires that the simulator or an assigned test detects each.
#[derive(Parser)]
#[command(name = "mutants", version)]
struct Arguments {
    /// Only these mutations, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The maximum number of seeds for each mutation.
    #[arg(long, default_value_t = 5000)]
    seeds: u64,
    /// The maximum duration for each mutation, on all cores.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only lists the mutations.
    #[arg(long)]
    list: bool,
    /// Runs only the assigned tests, without the simulator.
    #[arg(long)]
    by_tests: bool,
    /// Writes the table into this Markdown file, between its marks.
    #[arg(long)]
    write: Option<PathBuf>,
    /// The output of `cargo test --no-run --message-format=json`.
    #[arg(long, default_value = "target/mutants/tests.json")]
    tests: PathBuf,
    #[command(subcommand)]
    work: Option<Work>,
}

#[derive(Subcommand)]
enum Work {
    /// Simulates every `step`th seed from `first` to `last`: one process of a hunt.
    #[command(hide = true)]
    Simulate { first: u64, last: u64, step: u64 },
}

pub(crate) fn main() -> ExitCode {
    let arguments: Arguments = raftify_console::arguments();
    if let Some(Work::Simulate { first, last, step }) = arguments.work {
        return hunt::simulate((first..=last).step_by(usize::try_from(step).unwrap_or(1).max(1)));
    }
    let chosen = match chosen(&arguments.only) {
        Ok(chosen) => chosen,
        Err(unknown) => {
            eprintln!("there is no mutation {unknown}: --list shows all");
            return ExitCode::from(WRONG_ARGUMENTS);
        }
    };
    if arguments.list {
        for mutant in chosen {
            let (row, bug) = mutant.row_and_bug();
            say!("{:>3}  {:30} {bug}", row.map_or("-".to_owned(), |row| row.to_string()), mutant.name());
        }
        return ExitCode::SUCCESS;
    }
    match try_all(&arguments, &chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(WRONG_ARGUMENTS)
        }
    }
}

fn chosen(only: &[String]) -> Result<Vec<Mutant>, String> {
    let by_name = |name: &String| {
        let found = Mutant::ALL.iter().copied().find(|mutant| mutant.name() == name);
        found.ok_or_else(|| name.clone())
    };
    match only {
        [] => Ok(Mutant::ALL.to_vec()),
        only => only.iter().map(by_name).collect(),
    }
}

/// Whether all results are as expected.
fn try_all(arguments: &Arguments, chosen: &[Mutant]) -> Result<bool, String> {
    let interrupted = raftify_console::interruption();
    let executables = Executables::read(&arguments.tests)?;
    let hunt = Hunt {
        seeds: if arguments.by_tests { 0 } else { arguments.seeds },
        at_most: Duration::from_secs(arguments.seconds),
        interrupted: &interrupted,
    };
    let mut sound = Sound::default();
    let mut outcomes = Vec::new();
    for &mutant in chosen {
        let begin = Instant::now();
        let found_by = match find(mutant, &hunt, &executables, &mut sound) {
            _ if interrupted.load(Ordering::SeqCst) => break,
            Ok(found_by) => found_by,
            Err(error) => FoundBy::Nothing(error),
        };
        let outcome = Outcome { mutant, found_by, took: begin.elapsed() };
        say!("{outcome}");
        outcomes.push(outcome);
    }
    if let (Some(path), false) = (&arguments.write, interrupted.load(Ordering::SeqCst)) {
        report::write(path, &outcomes)?;
    }
    if interrupted.load(Ordering::SeqCst) {
        say!("interrupted: {} of {} were not run", chosen.len() - outcomes.len(), chosen.len());
    }
    let not_found = outcomes.iter().filter(|outcome| !outcome.is_found()).count();
    let failed = not_found + sound.seeds.values().flatten().count();
    say!("{}", report::sum(&outcomes));
    say!("{} passed, {failed} failed", outcomes.len() - not_found);
    Ok(failed == 0)
}

/// The violation in the world of `seed` without any mutation.
fn without(seed: u64, hunt: &Hunt<'_>, sound: &mut Sound) -> Result<Option<String>, String> {
    if let Some(known) = sound.seeds.get(&seed) {
        return Ok(known.clone());
    }
    let violation = hunt.only(seed)?.catch.map(|catch| catch.violation);
    sound.seeds.insert(seed, violation.clone());
    Ok(violation)
}

/// The tests and seeds that pass without any mutation.
#[derive(Default)]
struct Sound {
    tests: BTreeSet<TestName>,
    /// With the violation without a mutation.
    seeds: BTreeMap<u64, Option<String>>,
}

/// The detector of `mutant`.
fn find(
    mutant: Mutant,
    hunt: &Hunt<'_>,
    executables: &Executables,
    sound: &mut Sound,
) -> Result<FoundBy, String> {
    let mut hunted = hunt.find(1, Some(mutant))?;
    while let Some(catch) = hunted.catch {
        let Some(violation) = without(catch.seed, hunt, sound)? else {
            return Ok(FoundBy::Simulator(catch));
        };
        say!("seed {} fails without any mutation: {violation}", catch.seed);
        hunted = hunt.find(catch.seed + 1, Some(mutant))?;
    }
    let test = named_tests::of(mutant);
    if !sound.tests.contains(&test) {
        executables
            .passes(&test, None, hunt.interrupted)?
            .map_err(|what| format!("{test} {what} without it"))?;
        sound.tests.insert(test);
    }
    match executables.passes(&test, Some(mutant), hunt.interrupted)? {
        Err(_) => Ok(FoundBy::Test(test)),
        Ok(()) => Ok(FoundBy::Nothing(format!("neither by {} seeds nor by {test}", hunted.seeds))),
    }
}
