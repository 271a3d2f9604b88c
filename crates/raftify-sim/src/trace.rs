//! The trace of a world, one line for each event: the same for the same seed, byte for byte.

use std::fmt;

use crate::schedule::{SECOND, Time};

/// Changes whenever the text or its meaning changes.
const VERSION: u32 = 2;
const TITLE: &str = "raftify-sim trace";

/// The text, if it is requested.
pub(crate) enum Trace {
    Off,
    On(String),
}

impl Trace {
    /// The trace of the run of `seed`.
    pub(crate) fn on(seed: u64) -> Trace {
        Trace::On(format!("{TITLE} {VERSION} of seed {seed}\n"))
    }

    pub(crate) fn add(&mut self, now: Time, line: fmt::Arguments<'_>) {
        use fmt::Write as _;
        if let Trace::On(text) = self {
            let (seconds, rest) = (now / SECOND, now % SECOND);
            // Writing to a string never fails.
            let _ = writeln!(text, "{seconds}.{rest:06} {line}");
        }
    }

    pub(crate) fn lines(&self) -> &str {
        match self {
            Trace::Off => "",
            Trace::On(text) => text,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Trace::Off => String::new(),
            Trace::On(text) => text,
        }
    }
}

/// The seed of `trace`.
///
/// # Errors
/// If it is not a trace, or one of another version.
pub fn seed_of(trace: &str) -> Result<u64, String> {
    let head = trace.lines().next().unwrap_or_default();
    let rest = head.strip_prefix(TITLE).ok_or("it is not a trace of a simulation")?;
    let (version, seed) = rest.trim().split_once(" of seed ").ok_or("its first line is damaged")?;
    if version != VERSION.to_string() {
        return Err(format!("the trace has version {version}, this program writes version {VERSION}"));
    }
    seed.parse().map_err(|_| format!("its seed is not a number: {seed}"))
}

/// The first difference of two traces: the number of the line, and both lines.
pub fn difference<'a>(one: &'a str, other: &'a str) -> Option<(usize, &'a str, &'a str)> {
    const END: &str = "(its end)";
    if one == other {
        return None;
    }
    let (mut left, mut right) = (one.lines(), other.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (left.next(), right.next()) {
            (None, None) => return Some((number, END, END)),
            (one, other) if one != other => return Some((number, one.unwrap_or(END), other.unwrap_or(END))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_knows_its_seed_and_its_version() {
        let mut trace = Trace::on(17);
        trace.add(1_000_002, format_args!("1 leads"));
        let text = trace.text();
        assert_eq!(text, "raftify-sim trace 2 of seed 17\n1.000002 1 leads\n");
        assert_eq!(seed_of(&text), Ok(17));
        assert!(seed_of("raftify-sim trace 99 of seed 17").unwrap_err().contains("version 99"));
        assert!(seed_of("raftify-sim trace 2 of seed x").unwrap_err().contains("not a number"));
        for other in ["", "raftify-sim trace", "anything"] {
            seed_of(other).unwrap_err();
        }
    }

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n"), Some((2, "b", "c")));
        assert_eq!(difference("a\n", "a\nc\n"), Some((2, "(its end)", "c")));
    }
}
