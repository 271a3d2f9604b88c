//! Limits bytes per second.
//!
//! Used for sending and for writing snapshots. It has no thread and wakes no task: a caller gets its waiting
//! time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::runtime::worker::{block_for, now};

/// A caller that was delayed by a slow disk or a slow network may catch up by this amount of time.
const CREDIT: Duration = Duration::from_millis(20);

/// A shorter wait costs more than it gains. It is added to the next one.
const SHORTEST_WAIT: Duration = Duration::from_millis(2);

/// A rate that is shared by all callers.
pub(crate) struct RateLimiter {
    /// Zero: no limit.
    bytes_per_second: AtomicU64,
    /// When the bytes that have passed so far conform to the rate.
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// `None`: no limit.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> RateLimiter {
        let bytes_per_second = AtomicU64::new(bytes_per_second.unwrap_or(0));
        RateLimiter { bytes_per_second, next: Mutex::new(None) }
    }

    /// From the next piece on.
    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        self.bytes_per_second.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// The best number of bytes to pass at once, at most `bytes_max`: larger pieces would cause bursts.
    pub(crate) fn piece_bytes(&self, bytes_max: usize) -> usize {
        match usize::try_from(self.bytes_per_second() / 16) {
            Ok(0) | Err(_) => bytes_max,
            Ok(bytes) => bytes.min(bytes_max),
        }
    }

    /// Resolves when this many bytes may pass.
    pub(crate) async fn pass(&self, bytes: usize) {
        let wait = self.reserve(Instant::now(), bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// Blocks until this many bytes may pass.
    pub(crate) fn pass_blocking(&self, bytes: usize) {
        let wait = self.reserve(now(), bytes);
        if !wait.is_zero() {
            block_for(wait);
        }
    }

    fn reserve(&self, now: Instant, bytes: usize) -> Duration {
        let bytes_per_second = self.bytes_per_second();
        if bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let worth = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        let mut next = self.next.lock();
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begin = next.map_or(now, |next| next.max(earliest));
        *next = Some(begin + worth);
        let wait = begin.saturating_duration_since(now);
        if wait < SHORTEST_WAIT { Duration::ZERO } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn what_passes_stays_under_the_rate_and_a_long_pause_is_no_credit() {
        let limiter = RateLimiter::new(Some(1000 * KIB as u64));
        let begin = Instant::now();
        let mut now = begin;
        for _ in 0..1000 {
            now += limiter.reserve(now, 10 * KIB);
        }
        let bound = Duration::from_secs(10) - CREDIT - SHORTEST_WAIT - Duration::from_millis(10);
        assert!(now - begin >= bound, "10 000 KiB passed in {:?}", now - begin);
        assert!(now - begin <= Duration::from_secs(10), "10 000 KiB passed in {:?}", now - begin);

        now += Duration::from_secs(3600);
        let begin = now;
        for _ in 0..100 {
            now += limiter.reserve(now, 10 * KIB);
        }
        let bound = Duration::from_secs(1) - CREDIT - SHORTEST_WAIT - Duration::from_millis(10);
        assert!(now - begin >= bound, "1000 KiB passed in {:?}", now - begin);
    }

    #[test]
    fn zero_is_no_limit() {
        let limiter = RateLimiter::new(None);
        assert_eq!(limiter.reserve(Instant::now(), usize::MAX), Duration::ZERO);
        assert_eq!(limiter.piece_bytes(512 * KIB), 512 * KIB);
        assert_eq!(RateLimiter::new(Some(64 * KIB as u64)).piece_bytes(512 * KIB), 4 * KIB);
        assert_eq!(RateLimiter::new(Some(64 * (KIB * KIB) as u64)).piece_bytes(512 * KIB), 512 * KIB);
    }
}
