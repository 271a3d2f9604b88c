//! The pages in `docs/operations/`: each command of a page is executed, in the order of the page, with nodes that
//! are processes, in the situation that the page is for. No acknowledged write may be lost.
//!
//! The pages on directories (`check`, `backup`, `lost-quorum`) are tested with `raftify-cli`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cluster;
mod page;
mod pages;
mod situations;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No condition takes this long on any working machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// Repeats `attempt` until it returns a value.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50)); // The polling interval, not the condition.
    }
}
