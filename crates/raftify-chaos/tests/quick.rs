//! A short run as a person starts it: three processes behind the proxy, killed and started again, in some seconds and
//! without root. The long runs are `make chaos`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::{Command, Output};

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
    let faults = ["--faults", "kill-one,kill-majority,kill-all,isolated", "--rounds", "1"];
    let size = ["--network", "proxy", "--nodes", "3", "--clients", "8", "--seed", "1"];
    let output = chaos(&[&faults[..], &size[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("every history is linearizable"), "{said}");
    for fault in ["kill-one", "kill-majority", "kill-all", "isolated"] {
        assert!(said.contains(&format!(" {fault} ")), "{said}");
    }
    assert!(said.lines().last().unwrap().ends_with(" passed, 0 failed"), "{said}");
}

#[test]
fn what_makes_no_sense_is_one_clear_line() {
    for (arguments, expected) in [
        (&["--seed", "seven"][..], "invalid value 'seven'"),
        (&["--nodes", "2"], "2 is not in 3..=9"),
        (&["--faults", "earthquake"], "invalid value 'earthquake'"),
        (&["--network", "proxy", "--programs", "/nowhere"], "/nowhere/memstore-static-members is not there"),
    ] {
        let output = chaos(arguments);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{said}");
    }
}
