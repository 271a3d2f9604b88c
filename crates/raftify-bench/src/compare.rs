//! Runs a layer with two builds of this program, or without and with a part of the nodes, in alternation, and
//! compares the medians: the load of a shared machine and the state of its disk change within minutes, and so
//! affect both alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// The two sides of a comparison, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The base of the ratios: the other build, or without the part.
    Other,
    /// This build, or with the part.
    This,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::Other, Side::This];
}

/// How one side of a comparison runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// In addition to those of the layer.
    pub(crate) arguments: Vec<String>,
    /// The option of the layer that the arguments replace.
    pub(crate) replaced: Option<String>,
}

impl Variant {
    /// The two builds.
    pub(crate) fn builds(other: &Path, this: &Path) -> [Variant; 2] {
        [("other", other), ("this", this)].map(|(name, program)| Variant {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            replaced: None,
        })
    }

    /// The arguments of this side: those of the layer without the options of the comparison, which another
    /// build may not know.
    pub(crate) fn complete(&self, layer: &[String]) -> Vec<String> {
        let left_out: Vec<&str> =
            ["--against", "--rounds"].into_iter().chain(self.replaced.as_deref()).collect();
        let mut kept = Vec::new();
        let mut arguments = layer.iter();
        while let Some(argument) = arguments.next() {
            if left_out.contains(&argument.as_str()) {
                arguments.next(); // Its value.
            } else if !left_out.iter().any(|option| argument.starts_with(&format!("{option}="))) {
                kept.push(argument.clone());
            }
        }
        kept.extend(self.arguments.iter().cloned());
        kept
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

/// One line for each measurement that both sides have made: the medians of the second side, and the ratio of
/// each to that of the first one. Below 1 is less.
pub(crate) fn ratios(results: &[(Side, Line)], [other, this]: [&str; 2]) -> Vec<Line> {
    let compared = format!("medians of {this}, and ratios to {other}");
    let mut order = Vec::new();
    let mut found: BTreeMap<String, BTreeMap<Side, Vec<&Line>>> = BTreeMap::new();
    for (side, line) in results {
        let what = what(line);
        if !found.contains_key(&what) {
            order.push(what.clone());
        }
        found.entry(what).or_default().entry(*side).or_default().push(line);
    }
    order.iter().filter_map(|what| ratio(found.get(what)?, &compared)).collect()
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

fn ratio(sides: &BTreeMap<Side, Vec<&Line>>, compared: &str) -> Option<Line> {
    let (this, other) = (sides.get(&Side::This)?, sides.get(&Side::Other)?);
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
    line = line.with("compared", compared);
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
    fn each_side_gets_the_arguments_of_the_layer_without_those_of_the_comparison() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        let layer = arguments("cluster --tls both --clients 1 --rounds 2 --against=old");
        let variant = Variant {
            name: "tls on".to_owned(),
            program: "bench".into(),
            arguments: arguments("--tls on"),
            replaced: Some("--tls".to_owned()),
        };
        assert_eq!(variant.complete(&layer), arguments("cluster --clients 1 --tls on"));
        let [other, _] = Variant::builds(Path::new("old"), Path::new("new"));
        assert_eq!(other.complete(&layer), arguments("cluster --tls both --clients 1"));
    }

    #[test]
    fn the_medians_of_the_same_measurement_are_compared_and_one_that_only_one_build_has_is_left_out() {
        let results = [
            (Side::Other, line(1, 10.0)),
            (Side::This, line(1, 15.0)),
            (Side::Other, line(64, 100.0)),
            (Side::This, line(64, 100.0)),
            (Side::Other, line(1, 1000.0)),
            (Side::This, line(1, 1.0)),
            (Side::Other, line(1, 12.0)),
            (Side::This, line(1, 18.0)),
            (Side::This, line(256, 7.0)),
        ];
        let ratios = ratios(&results, ["other", "this"]);
        let found: Vec<_> = ratios
            .iter()
            .map(|line| (line.clients, line.ops_per_second, line.number("ops_per_second_ratio")))
            .collect();
        assert_eq!(found, [(Some(1), Some(15.0), Some(1.25)), (Some(64), Some(100.0), Some(1.0))]);
    }
}
