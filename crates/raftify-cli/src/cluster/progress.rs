//! Shows on the terminal what a command waits for. Without a terminal, it shows nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line on standard error, until it is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn begin(what: impl Into<String>) -> Progress {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(what.into());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(bar)
    }

    /// Also without a terminal: a line on standard error that stays.
    pub(crate) fn note(&self, what: &str) {
        self.0.suspend(|| eprintln!("{what}"));
    }

    pub(crate) fn say(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
