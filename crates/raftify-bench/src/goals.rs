//! The goals, as ratios within one run as far as possible, and their check.

use std::fmt::Write;

use crate::figures::{Figures, Pick};
use crate::measure::rounded;
use crate::table::thousands;

/// The storage of the goals.
const DEFAULT: &str = "wal";

/// One goal.
pub(crate) struct Goal {
    what: String,
    wanted: String,
    found: String,
    /// `None` if it was not measured.
    met: Option<bool>,
}

impl Goal {
    fn at_least(what: impl Into<String>, wanted: f64, found: Option<f64>, unit: &str) -> Goal {
        Goal::of(what, format!("at least {}", shown(wanted, unit)), found, unit, |found| found >= wanted)
    }

    fn at_most(what: impl Into<String>, wanted: f64, found: Option<f64>, unit: &str) -> Goal {
        Goal::of(what, format!("at most {}", shown(wanted, unit)), found, unit, |found| found <= wanted)
    }

    fn of(
        what: impl Into<String>,
        wanted: String,
        found: Option<f64>,
        unit: &str,
        is_met: impl Fn(f64) -> bool,
    ) -> Goal {
        let text = found.map_or("not measured".to_owned(), |found| shown(found, unit));
        Goal { what: what.into(), wanted, found: text, met: found.map(is_met) }
    }

    pub(crate) fn is_missed(&self) -> bool {
        self.met == Some(false)
    }
}

fn shown(value: f64, unit: &str) -> String {
    let number = if value < 100.0 { rounded(value, 2).to_string() } else { thousands(value) };
    if unit.is_empty() { number } else { format!("{number} {unit}") }
}

/// All goals, in the order of the layers.
pub(crate) fn check(figures: &Figures) -> Vec<Goal> {
    let mut goals = Vec::new();
    cluster(figures, &mut goals);
    log(figures, &mut goals);
    failover(figures, &mut goals);
    memory(figures, &mut goals);
    snapshot(figures, &mut goals);
    overload(figures, &mut goals);
    goals
}

fn cluster(figures: &Figures, goals: &mut Vec<Goal>) {
    let pick = |storage, clients| Pick::cluster(storage).clients(clients).entry_bytes(64);
    let rate = |storage, clients| figures.median(&pick(storage, clients), |line| line.ops_per_second);
    for clients in [256, 1024] {
        let ratio = rate(DEFAULT, clients).zip(rate("memory", clients)).map(|(disk, memory)| disk / memory);
        let what = format!("cluster, {clients} clients: {DEFAULT} against memory");
        goals.push(Goal::at_least(what, 0.75, ratio, ""));
    }
    let p50 = |storage, clients| figures.median(&pick(storage, clients), |line| line.p50_us);
    let sync = figures.median(&pick(DEFAULT, 1), |line| line.disk_fdatasync_p50_us);
    let limit = p50("memory", 1).zip(sync).map(|(memory, sync)| memory + 2.5 * sync);
    let what = "cluster, 1 client: p50, against memory's plus 2.5 fdatasyncs";
    goals.push(Goal::at_most(what, limit.unwrap_or(f64::NAN), limit.and(p50(DEFAULT, 1)), "µs"));
    for (clients, wanted) in [(256, 150_000.0), (1024, 280_000.0)] {
        let what = format!("cluster, {clients} clients");
        goals.push(Goal::at_least(what, wanted, rate(DEFAULT, clients), "proposals/s"));
    }
    for clients in [256, 1024] {
        let p99 = figures.median(&pick(DEFAULT, clients), |line| line.p99_us);
        let ratio = p99.zip(p50(DEFAULT, clients)).map(|(p99, p50)| p99 / p50);
        goals.push(Goal::at_most(format!("cluster, {clients} clients: p99 against p50"), 5.0, ratio, ""));
    }
}

fn log(figures: &Figures, goals: &mut Vec<Goal>) {
    let pick = |batch| Pick::of("log").storage(DEFAULT).clients(batch).entry_bytes(64);
    let ratio = figures.median(&pick(1), |line| Some(line.p50_us? / line.disk_fdatasync_p50_us?));
    goals.push(Goal::at_most("log, 1 entry: p50 against the bare fdatasync", 1.2, ratio, ""));
    let rate = figures.median(&pick(256), |line| line.ops_per_second);
    goals.push(Goal::at_least("log, 256 entries at once", 500_000.0, rate, "entries/s"));
}

fn failover(figures: &Figures, goals: &mut Vec<Goal>) {
    let number = |name| figures.median(&Pick::of("failover"), |line| line.number(name));
    let timeout = number("election_timeout_ms");
    let ratio = |name| number(name).zip(timeout).map(|(found, timeout)| found / timeout);
    goals.push(Goal::at_most("failover: median against the election timeout", 1.5, ratio("median_ms"), ""));
    goals.push(Goal::at_most("failover: maximum against the election timeout", 3.0, ratio("max_ms"), ""));
    goals.push(Goal::at_most("failover: median", 1000.0, number("median_ms"), "ms"));
}

fn memory(figures: &Figures, goals: &mut Vec<Goal>) {
    const MILLION: f64 = 1e6;
    let lines = figures.all(&Pick::of("memory"));
    let mut points: Vec<(f64, f64)> = (lines.iter())
        .filter_map(|line| Some((line.number("proposals")?, line.number("resident_bytes_max")?)))
        .collect();
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    let last = points.last().copied();
    let before = last.and_then(|last| points.iter().rfind(|point| point.0 <= last.0 - MILLION));
    let growth = last.zip(before).map(|(last, before)| 100.0 * (last.1 / before.1 - 1.0));
    goals.push(Goal::at_most("memory: growth by the last million proposals", 5.0, growth, "%"));
    let resident = last.map(|(_, bytes)| bytes / 1e6);
    goals.push(Goal::at_most("memory: a node after all of them", 200.0, resident, "MB"));
}

fn snapshot(figures: &Figures, goals: &mut Vec<Goal>) {
    let pick = Pick::of("restart").part("snapshot");
    let number = |name| figures.median(&pick, |line| line.number(name));
    let part = number("part_of_undisturbed");
    goals.push(Goal::at_least("snapshot under load: throughput against undisturbed", 0.6, part, ""));
    let p99 = figures.median(&pick, |line| line.p99_us).map(|p99| p99 / 1e3);
    goals.push(Goal::at_most("snapshot under load: p99", 100.0, p99, "ms"));
    for side in ["leader", "follower"] {
        let field = format!("{side}_resident_growth_bytes");
        let growth = figures.median(&pick, |line| line.number(&field)).map(|bytes| bytes / 1e6);
        goals.push(Goal::at_most(format!("snapshot under load: growth of the {side}"), 64.0, growth, "MB"));
    }
}

fn overload(figures: &Figures, goals: &mut Vec<Goal>) {
    let number = |name| figures.median(&Pick::of("overload"), |line| line.number(name));
    goals.push(Goal::at_least("overload: throughput against its best", 0.8, number("part_of_best"), ""));
    let growth = number("resident_bytes_peak").zip(number("resident_bytes_peak_before"));
    let growth = growth.map(|(after, before)| (after - before) / 1e6);
    goals.push(Goal::at_most(
        "overload: growth of the leader, whose queues hold 64 MiB",
        100.0,
        growth,
        "MB",
    ));
}

/// As a table of Markdown.
pub(crate) fn markdown(goals: &[Goal]) -> String {
    let mut text = "| goal | wanted | found | |\n|---|---|---|---|\n".to_owned();
    for Goal { what, wanted, found, met } in goals {
        let met = match met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "",
        };
        let _ = writeln!(text, "| {what} | {wanted} | {found} | {met} |"); // Writing into a String cannot fail.
    }
    text
}
