//! Warnings of what may happen any number of times a second: told now and then.

use std::time::Duration;

use tokio::time::Instant;

/// As long as something goes on, it is told this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// When something was told last.
#[derive(Default)]
pub(crate) struct LogThrottle(Option<Instant>);

impl LogThrottle {
    /// Whether to tell it now: the first time, and then once in a while.
    pub(crate) fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|told| told.elapsed() >= TOLD_EVERY);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_on_is_told_at_once_and_then_now_and_then() {
        let mut seldom = LogThrottle::default();
        assert!(seldom.is_due());
        advance(TOLD_EVERY - Duration::from_millis(1)).await;
        assert!(!seldom.is_due());
        advance(Duration::from_millis(1)).await;
        assert!(seldom.is_due());
        assert!(!seldom.is_due());
    }
}
