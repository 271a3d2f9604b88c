//! The lines as a readable table.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

use crate::line::Line;

const HEADER: [&str; 11] = [
    "bench",
    "storage",
    "clients",
    "bytes",
    "ops/s",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "cpu s/M",
    "fdatasync µs",
    "",
];

/// One row for each line.
pub(crate) fn of(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(HEADER);
    for line in lines {
        table.add_row(row(line));
    }
    for column in 2..HEADER.len() - 1 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn row(line: &Line) -> [String; HEADER.len()] {
    let count = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let number = |value: Option<f64>| value.map(thousands).unwrap_or_default();
    [
        line.bench.clone(),
        line.storage.clone().unwrap_or_default(),
        count(line.clients),
        count(line.entry_bytes),
        number(line.ops_per_second),
        number(line.p50_us),
        number(line.p99_us),
        number(line.p999_us),
        line.cpu_seconds_per_million.map(|seconds| format!("{seconds:.1}")).unwrap_or_default(),
        number(line.disk_fdatasync_p50_us),
        rest(line),
    ]
}

/// The fields of this layer only, without those for programs.
fn rest(line: &Line) -> String {
    const LEFT_OUT: [&str; 3] = ["busy", "disk_fdatasync_p50_us_after", "max_us"];
    let fields = line.more.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
    let text = fields.filter_map(|(name, value)| match value {
        Value::String(text) => Some(format!("{name}={text}")),
        Value::Number(number) => Some(format!("{name}={number}")),
        Value::Bool(false) => Some(format!("{name}=false")),
        _ => None,
    });
    text.collect::<Vec<_>>().join(" ")
}

/// Without decimal places, and with a space between groups of three digits.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 && !text.ends_with('-') {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
