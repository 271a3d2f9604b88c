//! The results, as lines for the terminal and as the table in `docs/testing/guarantees.md`.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use raftify_core::mutants::Mutant;

use crate::hunt::Catch;
use crate::named_tests::TestName;

/// The result of one mutation.
pub(crate) struct Outcome {
    pub(crate) mutant: Mutant,
    pub(crate) found_by: FoundBy,
    pub(crate) took: Duration,
}

/// The detector of a mutation.
pub(crate) enum FoundBy {
    Simulator(Catch),
    Test(TestName),
    /// With the reason.
    Nothing(String),
}

impl Outcome {
    pub(crate) fn is_found(&self) -> bool {
        !matches!(self.found_by, FoundBy::Nothing(_))
    }

    /// By the simulator, after so many seeds.
    fn seeds(&self) -> Option<u64> {
        match &self.found_by {
            FoundBy::Simulator(catch) => Some(catch.seed),
            _ => None,
        }
    }

    fn row(&self) -> String {
        self.mutant.row_and_bug().0.map_or_else(|| "–".to_owned(), |row| row.to_string())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        write!(f, "{:>3}  {:30} ", self.row(), self.mutant.name())?;
        match &self.found_by {
            FoundBy::Simulator(Catch { seed, violation }) => {
                write!(f, "simulator, seed {seed}, {seconds:.1} s: {violation}")
            }
            FoundBy::Test(test) => write!(f, "{seconds:.1} s: {test}"),
            FoundBy::Nothing(why) => write!(f, "NOT FOUND, {seconds:.1} s: {why}"),
        }
    }
}

/// Reports how many mutations the simulator finds, and the median number of seeds.
pub(crate) fn sum(outcomes: &[Outcome]) -> String {
    let mut seeds: Vec<u64> = outcomes.iter().filter_map(Outcome::seeds).collect();
    seeds.sort_unstable();
    let (all, found) = (outcomes.len(), seeds.len());
    let half = seeds.get(all.saturating_sub(1) / 2);
    let median = half.map_or("fewer than half of them".to_owned(), |seeds| {
        format!("the median over all {all}, counting the others as never found, is {seeds} seeds")
    });
    format!("The simulator finds {found} of {all}; {median}.")
}

const BEGIN: &str = "<!-- mutations: written by `make mutants` with `--write docs/testing/guarantees.md` -->";
const END: &str = "<!-- end of mutations -->";

/// Writes the table between its marks.
pub(crate) fn write(path: &Path, outcomes: &[Outcome]) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(failed)?;
    let missing = || format!("{} has no marks for the table: {BEGIN} and {END}", path.display());
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    fs::write(path, format!("{before}{BEGIN}\n\n{}\n{END}{after}", table(outcomes))).map_err(failed)
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text =
        "| # | bug | mutation | found by | seeds | seconds |\n|---|---|---|---|---|---|\n".to_owned();
    let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
    sorted.sort_by_key(|outcome| (outcome.mutant.row_and_bug().0.unwrap_or(u32::MAX), outcome.mutant));
    for outcome in sorted {
        let (found_by, seeds) = match &outcome.found_by {
            FoundBy::Simulator(Catch { seed, .. }) => ("simulator".to_owned(), seed.to_string()),
            FoundBy::Test(test) => (format!("`{}`", test.name), "–".to_owned()),
            FoundBy::Nothing(_) => ("**nothing**".to_owned(), "–".to_owned()),
        };
        let (row, name, (_, bug)) = (outcome.row(), outcome.mutant.name(), outcome.mutant.row_and_bug());
        let seconds = outcome.took.as_secs_f64();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {row} | {bug} | `{name}` | {found_by} | {seeds} | {seconds:.1} |");
    }
    let _ = writeln!(text, "\n{}", sum(outcomes));
    text
}
