//! Short runs of the program: three processes behind the proxy, killed and restarted, and nodes that join and
//! leave, with a small state, in seconds and without root. The long runs are `make chaos`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal};

fn chaos(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.args(arguments).arg("--directory").arg(directory.path()).output().unwrap()
}

/// `cargo test --workspace` has built the programs; without it, they may be missing.
fn build_programs() {
    let beside = Path::new(env!("CARGO_BIN_EXE_chaos")).parent().unwrap();
    for program in ["memstore-static-members", "memstore-dynamic-members"] {
        if !beside.join(program).exists() {
            let target = beside.parent().unwrap();
            let built = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "-p", program, "--target-dir"])
                .arg(target)
                .status()
                .unwrap();
            assert!(built.success(), "{program} cannot be built");
        }
    }
}

#[test]
fn three_killed_and_restarted_processes_lose_no_write_and_stay_linearizable() {
    build_programs();
    let faults = ["--faults", "kill-one,kill-all,isolated", "--rounds", "1", "--state-megabytes", "1"];
    let size = ["--network", "proxy", "--nodes", "3", "--clients", "8", "--seed", "1"];
    let output = chaos(&[&faults[..], &size[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every history is linearizable"), "{said}");
    for fault in ["kill-one", "kill-all", "isolated"] {
        assert!(said.contains(&format!(" {fault} ")), "{said}");
    }
    assert!(said.lines().last().unwrap().ends_with(" passed, 0 failed"), "{said}");
}

#[test]
fn with_tls_renewed_certificates_are_used_without_a_gap_in_the_service() {
    build_programs();
    let faults =
        ["--faults", "renewed-certificates,join,stop-one", "--rounds", "1", "--state-megabytes", "1"];
    let size = ["--network", "proxy", "--nodes", "3", "--clients", "6", "--seed", "1", "--tls", "yes"];
    let output = chaos(&[&faults[..], &size[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("3 nodes with TLS"), "{said}");
    assert!(said.contains(": all served after ") && said.contains("every history is linearizable"), "{said}");
}

#[test]
fn joining_dying_unreachable_leaving_and_moving_nodes_keep_the_cluster_available() {
    build_programs();
    let kinds = [
        "two-joiners",
        "killed-joiner",
        "unreachable-joiner",
        "left-member",
        "replaced-voter",
        "moved-member",
    ];
    let faults = ["--faults", &kinds.join(","), "--rounds", "1", "--state-megabytes", "2"];
    let size = ["--network", "proxy", "--nodes", "3", "--clients", "4", "--seed", "1"];
    let output = chaos(&[&faults[..], &size[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every history is linearizable, and no acknowledged write is missing"), "{said}");
    // Two at once, one that was killed, one that was unreachable, and two exchanges there and back.
    assert!(said.contains("8 times a node became a voter"), "{said}");
}

#[test]
fn few_descriptors_and_cancelled_calls_do_not_affect_other_nodes() {
    build_programs();
    let faults = ["--faults", "few-descriptors,cancelled-calls", "--rounds", "1", "--state-megabytes", "1"];
    let size = ["--network", "proxy", "--nodes", "3", "--clients", "4", "--seed", "1"];
    let output = chaos(&[&faults[..], &size[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every history is linearizable"), "{said}");
    assert!(said.contains(" descriptors: ") && said.contains(" calls through one connection, "), "{said}");
}

#[test]
fn an_interrupted_run_ends_with_its_summary_and_cleans_up() {
    build_programs();
    let directory = tempfile::tempdir().unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--faults", "kill-one", "--network", "proxy", "--nodes", "3", "--clients", "4", "--seed", "1"])
        .args(["--state-megabytes", "1"])
        .arg("--directory")
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    said.find(|line| line.contains(" kill-one ")).unwrap();
    rustix::process::kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    let said: Vec<String> = said.collect();
    assert!(run.wait().unwrap().success(), "{said:#?}");
    assert!(said.iter().any(|line| line.contains(" operations in ")), "{said:#?}");
    assert!(said.last().unwrap().ends_with(" passed, 0 failed"), "{said:#?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn closed_standard_output_ends_the_run_which_cleans_up() {
    build_programs();
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--network", "proxy", "--nodes", "3", "--clients", "4", "--directory"])
        .arg(directory.path())
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn an_invalid_argument_is_reported_in_one_line() {
    for (arguments, expected) in [
        (&["--seed", "seven"][..], "invalid value 'seven'"),
        (&["--minutes", "NaN"], "not a number of minutes"),
        (&["--nodes", "2"], "2 is not in 3..=9"),
        (&["--state-megabytes", "0"], "0 is not in 1..=10000"),
        (&["--faults", "earthquake"], "invalid value 'earthquake'"),
        (&["--tls", "perhaps"], "invalid value 'perhaps'"),
        (&["--network", "proxy", "--programs", "/nowhere"], "/nowhere/memstore-static-members is not there"),
    ] {
        let output = chaos(arguments);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
