//! Reintroduces the bugs of `docs/testing/guarantees.md` one at a time, and checks that each is detected: by
//! the simulator, or else by a test that is assigned to it.
//!
//! Called by `make mutants`, which builds this program, and all tests, with `--cfg raftify_mutants`. An
//! undetected mutation is a failure, and so is a test that fails without a mutation.

#[cfg(raftify_mutants)]
mod hunt;
#[cfg(raftify_mutants)]
mod named_tests;
#[cfg(raftify_mutants)]
mod report;
#[cfg(raftify_mutants)]
mod run;

#[cfg(raftify_mutants)]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(raftify_mutants))]
fn main() -> std::process::ExitCode {
    eprintln!("this program was built without any mutation in it: use `make mutants`");
    std::process::ExitCode::from(2)
}
