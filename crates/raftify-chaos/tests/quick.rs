//! Short runs as a person starts them: three processes behind the proxy, killed and started again, and others that join
//! them and leave, with a small state, in seconds and without root. The long runs are `make chaos`.

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

/// `cargo test --workspace` has built them all; without it, they may be missing.
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
fn three_processes_that_are_killed_and_started_again_lose_nothing_and_never_lie() {
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
fn nodes_that_join_die_hide_leave_and_move_cost_the_clients_nothing() {
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
    assert!(said.contains("every history is linearizable, and nothing acknowledged is missing"), "{said}");
    // Two at once, one that was killed, one that was hidden, and two exchanges there and back.
    assert!(said.contains("8 times a node became a voter"), "{said}");
}

#[test]
fn a_node_with_few_descriptors_and_calls_that_are_given_up_leave_the_others_in_peace() {
    build_programs();
    let faults = ["--faults", "few-descriptors,given-up-calls", "--rounds", "1", "--state-megabytes", "1"];
    let size = ["--network", "proxy", "--nodes", "3", "--clients", "4", "--seed", "1"];
    let output = chaos(&[&faults[..], &size[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every history is linearizable"), "{said}");
    assert!(said.contains(" descriptors: ") && said.contains(" calls through one connection, "), "{said}");
}

#[test]
fn a_run_that_is_interrupted_ends_with_its_summary_and_leaves_nothing() {
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
fn who_stops_listening_ends_the_run_which_leaves_nothing() {
    build_programs();
    let directory = tempfile::tempdir().unwrap();
    let (nobody, to_nobody) = std::io::pipe().unwrap();
    drop(nobody);
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--network", "proxy", "--nodes", "3", "--clients", "4", "--directory"])
        .arg(directory.path())
        .stdout(to_nobody)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn what_makes_no_sense_is_one_clear_line() {
    for (arguments, expected) in [
        (&["--seed", "seven"][..], "invalid value 'seven'"),
        (&["--minutes", "NaN"], "it is no number of minutes"),
        (&["--nodes", "2"], "2 is not in 3..=9"),
        (&["--state-megabytes", "0"], "0 is not in 1..=10000"),
        (&["--faults", "earthquake"], "invalid value 'earthquake'"),
        (&["--network", "proxy", "--programs", "/nowhere"], "/nowhere/memstore-static-members is not there"),
    ] {
        let output = chaos(arguments);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
