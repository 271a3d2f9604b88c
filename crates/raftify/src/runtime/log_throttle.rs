//! Limits how often a warning is logged whose cause may occur many times a second.

use std::time::Duration;

use tokio::time::Instant;

/// While the cause lasts, the warning is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// When the warning was logged last.
#[derive(Default)]
pub(crate) struct LogThrottle(Option<Instant>);

impl LogThrottle {
    /// Whether to log it now: the first time, and then once per interval.
    pub(crate) fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
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
    async fn a_lasting_condition_is_logged_at_once_and_then_once_per_interval() {
        let mut throttle = LogThrottle::default();
        assert!(throttle.is_due());
        advance(LOG_INTERVAL - Duration::from_millis(1)).await;
        assert!(!throttle.is_due());
        advance(Duration::from_millis(1)).await;
        assert!(throttle.is_due());
        assert!(!throttle.is_due());
    }
}
