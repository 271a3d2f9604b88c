//! One result: a JSON object on one line of standard output. All layers share the first fields, so that a
//! program that reads the lines needs no case for each layer; a field that a layer does not have is `null`.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use raftify::BoxError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::measure::{Measured, rounded};

/// The result of one run of one layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Line {
    /// The layer.
    pub(crate) bench: String,
    pub(crate) storage: Option<String>,
    pub(crate) nodes: Option<u64>,
    /// The number of pending requests; for `log` and `core`, entries in one batch.
    pub(crate) clients: Option<u64>,
    pub(crate) entry_bytes: Option<u64>,
    /// Proposals, reads, entries or syncs.
    pub(crate) ops_per_second: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// Whether every acknowledged write was synced by a majority.
    pub(crate) fsync: Option<bool>,
    /// Of all nodes and clients together.
    pub(crate) cpu_seconds_per_million: Option<f64>,
    /// The limit of the disk, measured just before.
    pub(crate) disk_fdatasync_p50_us: Option<f64>,
    /// The fields of this layer only.
    #[serde(flatten)]
    pub(crate) more: BTreeMap<String, Value>,
}

impl Line {
    pub(crate) fn of(bench: &str) -> Line {
        Line { bench: bench.to_owned(), ..Line::default() }
    }

    /// Adds the results of a load.
    pub(crate) fn measured(mut self, measured: &Measured) -> Line {
        self.ops_per_second = Some(measured.ops_per_second().round());
        self.p50_us = Some(measured.p50_us);
        self.p99_us = Some(measured.p99_us);
        self.p999_us = Some(measured.p999_us);
        self
    }

    /// `seconds` of processor time for `count` operations.
    pub(crate) fn cpu(mut self, seconds: f64, count: u64) -> Line {
        self.cpu_seconds_per_million = Some(rounded(seconds * 1e6 / count.max(1) as f64, 2));
        self
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Line {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// A field of this layer as a number.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.more.get(name)?.as_f64()
    }

    /// A field of this layer as text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.more.get(name)?.as_str()
    }
}

/// A message from a process that measures a layer to the process that shows the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The number of steps.
    Steps(u64),
    /// The next step begins.
    Step(String),
    /// A result.
    Result(Box<Line>),
}

/// Sends [`Report`]s on standard output.
pub(crate) struct Reporter;

impl Reporter {
    pub(crate) fn steps(&self, count: usize) -> Result<(), BoxError> {
        self.tell(&Report::Steps(count as u64))
    }

    pub(crate) fn step(&self, what: impl Into<String>) -> Result<(), BoxError> {
        self.tell(&Report::Step(what.into()))
    }

    pub(crate) fn result(&self, line: Line) -> Result<(), BoxError> {
        self.tell(&Report::Result(Box::new(line)))
    }

    fn tell(&self, report: &Report) -> Result<(), BoxError> {
        let mut output = std::io::stdout().lock();
        serde_json::to_writer(&mut output, report)?;
        writeln!(output)?;
        Ok(output.flush()?)
    }
}

/// Reads result lines; blank ones are skipped.
///
/// # Errors
/// Names the first line that is not a result.
pub(crate) fn read(input: impl BufRead) -> Result<Vec<Line>, BoxError> {
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(input.lines()) {
        let text = text?;
        if !text.trim().is_empty() {
            let line = serde_json::from_str(&text);
            lines.push(
                line.map_err(|error| format!("line {number} is not a result of the benchmark: {error}"))?,
            );
        }
    }
    if lines.is_empty() {
        return Err("there are no results: pass the lines that the benchmark has printed".into());
    }
    Ok(lines)
}
