//! The results as Markdown: the figures of `docs/performance.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use raftify::BoxError;
use serde_json::Value;

use crate::figures::{Figures, Pick};
use crate::line::Line;
use crate::table::thousands;
use crate::{goals, plot};

/// This program writes the text between these lines of a document.
const BEGIN: &str = "<!-- figures: written by `make performance` -->";
const END: &str = "<!-- end of figures -->";

/// Puts the figures into `document` between its two marks, and the plots into the directory of the same name
/// beside it.
///
/// # Errors
/// If the document has no such marks; it is then unchanged.
pub(crate) fn write(figures: &Figures, document: &Path) -> Result<(), BoxError> {
    let text = std::fs::read_to_string(document)
        .map_err(|error| format!("cannot read {}: {error}", document.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.ok_or_else(|| format!("{} has no line `{BEGIN}` followed by `{END}`", document.display()))?;
    let directory = document.with_extension("");
    let plots = plot::draw(figures, &directory)?;
    let mut figures = markdown(figures);
    let folder = directory.file_name().unwrap_or_default().to_string_lossy();
    for plot in plots {
        let name = plot.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let _ = writeln!(figures, "\n![{}]({folder}/{name})", name.trim_end_matches(".svg")); // Into a String.
    }
    Ok(std::fs::write(document, format!("{before}{BEGIN}\n\n{figures}\n{END}{after}"))?)
}

/// All tables.
pub(crate) fn markdown(figures: &Figures) -> String {
    let mut text = String::new();
    if let Some(machine) = figures.all(&Pick::of("machine")).first() {
        let of = |name: &str| machine.more.get(name).map(shown).unwrap_or_default();
        text += &format!(
            "Measured on: {}, {} cores, {} GiB of memory, Linux {}, {} with {}.\n\n",
            of("cpu"),
            of("cores"),
            of("memory_gib"),
            of("kernel"),
            of("disk"),
            of("file_system")
        );
    }
    text += "### Goals\n\n";
    text += &goals::markdown(&goals::check(figures));
    text += &cluster(figures);
    text += &path(figures);
    let apart = ["machine", "cluster", "path"];
    let mut layers: Vec<&str> = figures.lines.iter().map(|line| line.bench.as_str()).collect();
    layers.retain(|layer| !apart.contains(layer));
    let mut seen = BTreeSet::new();
    layers.retain(|layer| seen.insert(*layer));
    for layer in layers {
        let lines: Vec<&Line> = figures.lines.iter().filter(|line| line.bench == layer).collect();
        text += &format!("\n### `{layer}`\n\n{}", table(&lines));
    }
    text
}

/// A row for each storage, size and place, a column for each number of clients: the median of all runs.
fn cluster(figures: &Figures) -> String {
    let mut rows = BTreeMap::<_, BTreeSet<u64>>::new();
    for line in figures.lines.iter().filter(|line| line.bench == "cluster") {
        let key = (
            line.text("loop").unwrap_or_default(),
            line.number("processes").unwrap_or_default() as u64,
            line.entry_bytes.unwrap_or_default(),
            line.storage.clone().unwrap_or_default(),
        );
        rows.entry(key).or_default().extend(line.clients);
    }
    let columns: BTreeSet<u64> = rows.values().flatten().copied().collect();
    if columns.is_empty() {
        return String::new();
    }
    let mut text =
        "\n### `cluster`: proposals/s · p50 · p99\n\n| loop | processes | bytes | storage |".to_owned();
    text += &columns.iter().map(|clients| format!(" {clients} clients |")).collect::<String>();
    text += &format!("\n|---|---|---|---|{}\n", "---|".repeat(columns.len()));
    for (loop_kind, processes, bytes, storage) in rows.keys() {
        text += &format!("| {loop_kind} | {processes} | {bytes} | {storage} |");
        for clients in &columns {
            let pick = Pick::of("cluster").storage(storage).clients(*clients).entry_bytes(*bytes);
            let pick = pick.with("loop", *loop_kind).with("processes", *processes);
            let figure = |figure: fn(&Line) -> Option<f64>| figures.median(&pick, figure);
            let found =
                (figure(|line| line.ops_per_second), figure(|line| line.p50_us), figure(|line| line.p99_us));
            text += &match found {
                (Some(rate), Some(p50), Some(p99)) => {
                    format!(" {} · {} · {} |", thousands(rate), time(p50), time(p99))
                }
                _ => " |".to_owned(),
            };
        }
        text.push('\n');
    }
    text
}

/// The steps of one proposal: a column for each number of clients.
fn path(figures: &Figures) -> String {
    let lines: Vec<&Line> = figures.lines.iter().filter(|line| line.bench == "path").collect();
    let parts = |line: &Line| -> Vec<(String, f64)> {
        let parts = line.more.get("parts").and_then(Value::as_array);
        let part = |part: &Value| Some((part["part"].as_str()?.to_owned(), part["mean_us"].as_f64()?));
        parts.into_iter().flatten().filter_map(part).collect()
    };
    let Some(names) = lines.first().map(|line| parts(line)) else {
        return String::new();
    };
    let mut text = "\n### `path`: where the time of one proposal goes, mean\n\n| part |".to_owned();
    let all: Vec<_> = lines.iter().map(|line| (line, parts(line))).collect();
    for (line, _) in &all {
        text += &format!(" {} clients |", line.clients.unwrap_or_default());
    }
    text += &format!("\n|---|{}\n", "---|".repeat(all.len()));
    for (place, (name, _)) in names.iter().enumerate() {
        text += &format!("| {name} |");
        for (_, parts) in &all {
            text += &format!(" {} |", parts.get(place).map(|(_, mean)| time(*mean)).unwrap_or_default());
        }
        text.push('\n');
    }
    for (name, field) in
        [("**whole**", "mean_us"), ("*beside: the leader's own durable write*", "leaders_own_write_mean_us")]
    {
        text += &format!("| {name} |");
        for (line, _) in &all {
            text += &format!(" {} |", line.number(field).map(time).unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// A column for each field that any of the lines has.
fn table(lines: &[&Line]) -> String {
    let rows: Vec<BTreeMap<String, Value>> = lines
        .iter()
        .filter_map(|line| match serde_json::to_value(line) {
            Ok(Value::Object(fields)) => {
                Some(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
            }
            _ => None,
        })
        .collect();
    const LEFT_OUT: [&str; 7] =
        ["bench", "nodes", "fsync", "quiet", "max_us", "busy", "disk_fdatasync_p50_us_after"];
    const FIRST: [&str; 11] = [
        "part",
        "verb",
        "way",
        "asked",
        "operation",
        "storage",
        "clients",
        "entry_bytes",
        "ops_per_second",
        "p50_us",
        "p99_us",
    ];
    let has = |name: &str| rows.iter().any(|row| row.contains_key(name));
    let mut columns: Vec<&str> = FIRST.into_iter().filter(|name| has(name)).collect();
    for name in rows.iter().flat_map(BTreeMap::keys) {
        if !columns.contains(&name.as_str()) && !LEFT_OUT.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut text = format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for row in &rows {
        let cells = columns.iter().map(|name| row.get(*name).map(shown).unwrap_or_default());
        text += &format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().map_or(number.to_string(), |number| {
            if number.fract() == 0.0 || number.abs() >= 1000.0 {
                thousands(number)
            } else {
                number.to_string()
            }
        }),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// In a suitable unit.
fn time(microseconds: f64) -> String {
    match microseconds {
        us if us < 1000.0 => format!("{us:.0} µs"),
        us if us < 10_000.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.0} ms", us / 1e3),
    }
}
