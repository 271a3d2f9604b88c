//! The power goes after every single operation of a real workload, and what was not synced is lost in all
//! ways.
//!
//! Both storages, LMDB inside of them, the snapshot files, conversions, recoveries and restores run unchanged; what they ask of the
//! system is recorded ([`recorder`]). Each beginning of the record, with each remainder of what was not
//! synced, is made a directory ([`disk`]), and opened with the real code: all that was acknowledged must be
//! there, and nothing else but the step in flight, as a prefix of its writes. Some of these directories live
//! on, and lose the power again. Before some cuts the process is killed, and another one opens the directory:
//! what that one found must be there.
//!
//! A program of its own, not a set of tests: it prints how many cuts passed. `cargo test` tries some of them,
//! `make crash-points` (`CRASH_POINTS=all`) every one. A directory that fails is kept.

#![allow(clippy::unwrap_used, reason = "what fails here fails the cut, or the whole")]

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod disk;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod points;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod recorder;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod recoveries;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod workload;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn main() -> std::process::ExitCode {
    points::main()
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn main() {
    println!("only the C library of 64-bit Linux is known here: nothing was tried\n0 passed, 0 failed");
}
