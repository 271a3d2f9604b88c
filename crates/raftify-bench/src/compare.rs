//! Runs a layer with two builds of this program in alternation, and compares the medians: the load of a
//! shared machine and the state of its disk change within minutes, and so affect both alike.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::line::Line;
use crate::measure::rounded;

/// A comparison with another build.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Against {
    /// Runs this other build of `raftify-bench` and this one in turn, and shows the ratios of the medians
    #[arg(long, value_name = "PATH")]
    pub(crate) against: Option<PathBuf>,
    /// How often each build runs, if two are compared
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
}

/// The builds, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Build {
    /// The other program.
    Other,
    /// This program.
    This,
}

impl Build {
    pub(crate) const BOTH: [Build; 2] = [Build::Other, Build::This];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Build::Other => "other",
            Build::This => "this",
        }
    }
}

type Figure = (&'static str, fn(&Line) -> Option<f64>);

/// The compared figures.
const FIGURES: [Figure; 4] = [
    ("ops_per_second", |line| line.ops_per_second),
    ("p50_us", |line| line.p50_us),
    ("p99_us", |line| line.p99_us),
    ("cpu_seconds_per_million", |line| line.cpu_seconds_per_million),
];

/// One line for each measurement that both builds have made: the medians of this build, and the ratio of each
/// to that of the other build. Below 1 is less.
pub(crate) fn ratios(results: &[(Build, Line)]) -> Vec<Line> {
    let mut order = Vec::new();
    let mut found: BTreeMap<String, BTreeMap<Build, Vec<&Line>>> = BTreeMap::new();
    for (build, line) in results {
        let what = what(line);
        if !found.contains_key(&what) {
            order.push(what.clone());
        }
        found.entry(what).or_default().entry(*build).or_default().push(line);
    }
    order.iter().filter_map(|what| ratio(found.get(what)?)).collect()
}

/// What was measured: the fields of a line that are no figures.
fn what(line: &Line) -> String {
    let text = |name| line.text(name).unwrap_or_default();
    let processes = line.number("processes").unwrap_or_default();
    format!(
        "{} {:?} {:?} {:?} {} {} {} {processes}",
        line.bench,
        line.storage,
        line.clients,
        line.entry_bytes,
        text("operation"),
        text("asked"),
        text("loop")
    )
}

fn ratio(builds: &BTreeMap<Build, Vec<&Line>>) -> Option<Line> {
    let (this, other) = (builds.get(&Build::This)?, builds.get(&Build::Other)?);
    let first = this.first()?;
    let mut line = Line {
        storage: first.storage.clone(),
        nodes: first.nodes,
        clients: first.clients,
        entry_bytes: first.entry_bytes,
        fsync: first.fsync,
        ops_per_second: median(this, |line| line.ops_per_second),
        p50_us: median(this, |line| line.p50_us),
        p99_us: median(this, |line| line.p99_us),
        cpu_seconds_per_million: median(this, |line| line.cpu_seconds_per_million),
        disk_fdatasync_p50_us: median(this, |line| line.disk_fdatasync_p50_us),
        ..Line::of(&first.bench)
    };
    for name in ["operation", "asked", "loop", "processes"] {
        if let Some(value) = first.more.get(name) {
            line.more.insert(name.to_owned(), value.clone());
        }
    }
    line = line.with("compared", "medians, and ratios of this build to the other");
    for (name, figure) in FIGURES {
        if let (Some(this), Some(other)) = (median(this, figure), median(other, figure))
            && other > 0.0
        {
            line = line.with(&format!("{name}_ratio"), rounded(this / other, 3));
        }
    }
    Some(line.with("rounds", this.len().min(other.len())))
}

fn median(lines: &[&Line], figure: impl Fn(&Line) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = lines.iter().filter_map(|line| figure(line)).collect();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(rounded((lower + upper) / 2.0, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(clients: u64, ops_per_second: f64) -> Line {
        Line { clients: Some(clients), ops_per_second: Some(ops_per_second), ..Line::of("cluster") }
    }

    #[test]
    fn the_medians_of_the_same_measurement_are_compared_and_one_that_only_one_build_has_is_left_out() {
        let results = [
            (Build::Other, line(1, 10.0)),
            (Build::This, line(1, 15.0)),
            (Build::Other, line(64, 100.0)),
            (Build::This, line(64, 100.0)),
            (Build::Other, line(1, 1000.0)),
            (Build::This, line(1, 1.0)),
            (Build::Other, line(1, 12.0)),
            (Build::This, line(1, 18.0)),
            (Build::This, line(256, 7.0)),
        ];
        let ratios = ratios(&results);
        let found: Vec<_> = ratios
            .iter()
            .map(|line| (line.clients, line.ops_per_second, line.number("ops_per_second_ratio")))
            .collect();
        assert_eq!(found, [(Some(1), Some(15.0), Some(1.25)), (Some(64), Some(100.0), Some(1.0))]);
    }
}
