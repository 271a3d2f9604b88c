//! The program: its output, and its errors for wrong arguments. No test here depends on times.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

const FIELDS: [&str; 12] = [
    "bench",
    "storage",
    "nodes",
    "clients",
    "entry_bytes",
    "ops_per_second",
    "p50_us",
    "p99_us",
    "p999_us",
    "fsync",
    "cpu_seconds_per_million",
    "disk_fdatasync_p50_us",
];

fn bench(directory: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raftify-bench"));
    command.args(arguments.split(' ')).arg("--directory").arg(directory);
    command
}

fn run(arguments: &str) -> Output {
    let directory = TempDir::new().expect("a temporary directory");
    bench(directory.path(), arguments).output().expect("the benchmark can be started")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a layer, and checks its lines after that of the machine.
fn check(arguments: &str, count: usize) -> Vec<Value> {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments}: {}", errors(&output));
    let mut lines = lines(&output);
    assert_eq!(lines.remove(0)["bench"], "machine");
    assert_eq!(lines.len(), count, "{lines:?}");
    for line in &lines {
        let fields = line.as_object().expect("a line is an object");
        for field in FIELDS {
            assert!(fields.contains_key(field), "{arguments}: no {field} in {line}");
        }
        assert!(line["disk_fdatasync_p50_us"].as_f64() > Some(0.0), "{line}");
        assert!(line["error"].is_null(), "{line}");
    }
    assert!(errors(&output).contains("ops/s"), "a table is on standard error");
    lines
}

#[test]
fn disk_reports_the_limit() {
    let lines = check("disk --seconds 0.02", 2);
    let ways: Vec<_> = lines.iter().map(|line| line["way"].clone()).collect();
    assert_eq!(ways, ["overwrite", "append"]);
}

#[test]
fn log_measures_each_storage_with_each_batch() {
    let lines = check("log --batch 1,4 --entry-bytes 64 --seconds 0.02 --storage memory,wal,heed", 6);
    let seen: BTreeSet<_> =
        lines.iter().map(|line| (line["storage"].to_string(), line["clients"].as_u64())).collect();
    assert_eq!(seen.len(), 6);
}

#[test]
fn core_needs_no_disk() {
    let lines = check("core --batch 1,4 --entry-bytes 64 --seconds 0.02", 2);
    assert!(lines.iter().all(|line| line["fsync"] == json!(false) && line["nodes"] == json!(3)));
}

#[test]
fn cluster_measures_closed_and_open_loops_in_one_process_and_in_three() {
    let arguments =
        "cluster --clients 2 --seconds 0.1 --storage memory --open-loop 0.2 --fill 10 --processes one,three";
    let lines = check(arguments, 4);
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (line["processes"].as_u64(), line["loop"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(seen, [(Some(1), "closed"), (Some(1), "open"), (Some(3), "closed"), (Some(3), "open")]);
    assert!(lines.iter().all(|line| line["ops_per_second"].as_f64() > Some(0.0)));
}

#[test]
fn path_adds_up_to_the_whole() {
    let lines = check("path --clients 2 --seconds 0.2", 1);
    let parts = lines[0]["parts"].as_array().expect("there are parts");
    let sum: f64 = parts.iter().filter_map(|part| part["mean_us"].as_f64()).sum();
    let whole = lines[0]["mean_us"].as_f64().expect("there is a whole");
    assert!(lines[0]["proposals_followed"].as_u64() > Some(0), "{lines:?}");
    assert!((sum - whole).abs() < 1.0, "{sum} against {whole}: each part is rounded to a tenth");
}

#[test]
fn reads_are_measured_on_leader_and_follower() {
    check("read --clients 1 --seconds 0.05 --operation read-index,query", 4);
}

#[test]
fn failover_and_memory_measure_processes() {
    check("failover --times 1", 1);
    check("memory --proposals 200 --every 100 --clients 10", 2);
}

#[test]
fn restart_measures_opening_and_both_ways_to_catch_up() {
    check("restart --entries 2000 --snapshot-bytes 100000 --clients 8", 4);
}

#[test]
fn overload_reports_the_number_of_refused_proposals() {
    let lines = check("overload --seconds 0.2 --entry-bytes 1000 --clients 4", 1);
    assert!(lines[0]["busy"].is_u64() && lines[0]["part_of_best"].is_f64(), "{lines:?}");
}

#[test]
fn two_builds_run_in_turn_and_their_medians_are_compared() {
    let this = env!("CARGO_BIN_EXE_raftify-bench");
    let arguments = "cluster --clients 2 --seconds 0.1 --storage memory --fill 10 --rounds 2";
    let output = run(&format!("{arguments} --against {this}"));
    assert!(output.status.success(), "{}", errors(&output));
    let lines = lines(&output);
    let builds: Vec<_> = lines.iter().map(|line| line["variant"].as_str().unwrap_or_default()).collect();
    assert_eq!(builds, ["", "other", "this", "other", "this", ""]);
    assert_eq!(lines[5]["rounds"], json!(2));
    assert!(lines[5]["ops_per_second_ratio"].as_f64() > Some(0.0), "{lines:?}");
    let output = run(&format!("{arguments} --against no/such/program"));
    assert!(!output.status.success());
    assert!(errors(&output).contains("no/such/program"), "{}", errors(&output));
}

#[test]
fn the_cost_of_tls_and_of_metrics_is_shown_by_runs_without_and_with_them_in_turn() {
    for (arguments, part) in [
        ("cluster --processes one --storage memory --fill 10 --clients 2 --tls both", "tls"),
        ("cluster --processes one --storage memory --fill 10 --clients 2 --metrics both", "metrics"),
        ("client --callers 2 --operation propose --storage memory --tls both --metrics on", "tls"),
    ] {
        let output = run(&format!("{arguments} --seconds 0.1 --rounds 1"));
        assert!(output.status.success(), "{arguments}: {}", errors(&output));
        let lines = lines(&output);
        let text = |line: usize, name: &str| lines[line][name].as_str().unwrap_or_default().to_owned();
        assert_eq!(lines.len(), 4, "{arguments}: {lines:?}");
        assert_eq!([text(1, "variant"), text(2, "variant")], [format!("{part} off"), format!("{part} on")]);
        assert_eq!([text(1, part), text(2, part)], ["", "on"]);
        assert!(text(3, "compared").contains(&format!("ratios to {part} off")), "{lines:?}");
        assert!(lines[3]["ops_per_second_ratio"].as_f64() > Some(0.0), "{lines:?}");
    }
}

#[test]
fn a_failed_layer_is_a_line_and_an_exit_code() {
    let output = run("http --program no/such/program");
    assert!(!output.status.success());
    let lines = lines(&output);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1]["error"].as_str().is_some_and(|error| error.contains("build it with")), "{lines:?}");
}

#[test]
fn wrong_arguments_are_reported_in_one_line() {
    for (arguments, word) in [
        ("cluster --storage paper", "memory, wal, heed"),
        ("cluster --clients many", "--clients"),
        ("memory --proposal 5", "--proposal"),
        ("cluster --tls perhaps", "perhaps"),
        ("nothing", "nothing"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        let errors = errors(&output);
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.starts_with("error: ") && errors.contains(word), "{errors}");
    }
}

#[test]
fn input_without_results_is_rejected_with_its_line() {
    for (input, word) in [("", "there are no results"), ("{\"bench\":\"disk\"}\nnonsense\n", "line 2")] {
        let output = fed("goals", input);
        assert!(!output.status.success());
        assert!(errors(&output).contains(word), "{}", errors(&output));
    }
}

#[test]
fn an_interrupted_run_ends_with_the_table_so_far() {
    let directory = TempDir::new().expect("a temporary directory");
    // Enough for minutes: it must not be finished before it is interrupted.
    let numbers: Vec<String> = (1..=99).map(|number| number.to_string()).collect();
    let numbers = numbers.join(",");
    let mut child =
        bench(directory.path(), &format!("log --seconds 0.02 --batch {numbers} --entry-bytes {numbers}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the benchmark can be started");
    let mut output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    for _ in 0..2 {
        // The machine, and the first result.
        output.read_line(&mut String::new()).expect("a line");
    }
    // The command of the shell: not every system has a program `kill`.
    let interrupt = Command::new("sh").args(["-c", "kill -INT $0", &child.id().to_string()]).status();
    assert!(interrupt.expect("there is a shell").success());
    output.read_to_end(&mut Vec::new()).expect("the rest of the lines");
    let ended = child.wait_with_output().expect("the benchmark ends");
    assert_eq!(ended.status.code(), Some(130), "{}", errors(&ended));
    assert!(errors(&ended).contains("ops/s"), "{}", errors(&ended));
    let left: Vec<_> = directory.path().read_dir().expect("the directory is there").collect();
    assert!(left.is_empty(), "nothing is left behind: {left:?}");
}

fn fed(arguments: &str, input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_raftify-bench"))
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the benchmark can be started");
    child
        .stdin
        .take()
        .expect("standard input is a pipe")
        .write_all(input.as_bytes())
        .expect("it takes its input");
    child.wait_with_output().expect("it ends")
}

/// The results of a full run, with round numbers.
fn results() -> String {
    let mut lines = vec![json!({ "bench": "machine", "cpu": "one & <only>", "cores": 2 })];
    for storage in ["memory", "wal", "heed"] {
        for clients in [1, 64, 256, 1024] {
            lines.push(json!({
                "bench": "cluster", "storage": storage, "clients": clients, "entry_bytes": 64, "loop": "closed",
                "processes": 1, "ops_per_second": 1000.0 * clients as f64, "p50_us": 300.0, "p99_us": 900.0,
                "disk_fdatasync_p50_us": 150.0,
            }));
            lines.push(json!({
                "bench": "log", "storage": storage, "clients": clients, "entry_bytes": 64, "ops_per_second": 6000.0,
                "p50_us": 200.0, "disk_fdatasync_p50_us": 150.0,
            }));
        }
    }
    for million in 1..=5 {
        let bytes = 50_000_000 + million;
        lines.push(
            json!({ "bench": "memory", "proposals": million * 1_000_000, "resident_bytes_max": bytes }),
        );
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn goals_are_checked_and_a_missed_one_is_a_failure() {
    let output = fed("goals", &results());
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "| cluster, 256 clients: wal against memory | at least 0.75 | 1 | met |",
        "| cluster, 1024 clients | at least 280 000 proposals/s | 1 024 000 proposals/s | met |",
        "| log, 1 entry: p50 against the bare fdatasync | at most 1.2 | 1.33 | **not met** |",
        "| memory: growth by the last million proposals | at most 5 % | 0 % | met |",
        "| failover: median | at most 1 000 ms | not measured |  |",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(!output.status.success(), "a goal is missed");
}

#[test]
fn report_replaces_the_figures_of_a_document_and_draws_whole_plots() {
    let directory = TempDir::new().expect("a temporary directory");
    let document = directory.path().join("performance.md");
    let text = "before\n<!-- figures: written by `make performance` -->\nfigures of last year\n<!-- end of figures -->\nafter\n";
    std::fs::write(&document, text).expect("the document can be written");
    let arguments = format!("report {}", document.display());
    let output = fed(&arguments, &results());
    assert!(output.status.success(), "{}", errors(&output));
    let text = std::fs::read_to_string(&document).expect("the document can be read");
    assert!(
        text.starts_with("before\n") && text.ends_with("after\n") && !text.contains("last year"),
        "{text}"
    );
    for plot in ["throughput", "latency", "log", "memory"] {
        assert!(text.contains(&format!("(performance/{plot}.svg)")), "{text}");
        let svg =
            std::fs::read_to_string(directory.path().join("performance").join(plot).with_extension("svg"));
        let svg = svg.expect("the plot is there");
        let svg = roxmltree::Document::parse(&svg).expect("it is well-formed");
        assert_eq!(svg.root_element().tag_name().name(), "svg");
        assert!(svg.descendants().any(|node| node.text().is_some_and(|text| text.trim() == "wal")), "{plot}");
    }
    std::fs::write(&document, "no marks").expect("the document can be written");
    assert!(errors(&fed(&arguments, &results())).contains("has no line"));
}
