//! The last deadline of calls that are answered in time unless the raft loop is blocked, by a disk that hangs
//! or by user code: one timer for all calls of a node, because a timer for each takes longer than the rest of
//! the call.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// A call that was not answered ends at most this time after its deadline.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Lets the waiting calls compare their deadlines with the clock, at intervals.
#[derive(Default)]
pub(crate) struct Backstop {
    checks: Notify,
}

impl Backstop {
    /// Starts the timer in a separate task, which also runs while the node's future is not polled, and ends when
    /// the backstop is dropped. Needs a tokio runtime.
    pub(crate) fn start(self: &Arc<Self>) {
        let backstop: Weak<Backstop> = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut timer = interval(CHECK_INTERVAL);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                timer.tick().await;
                let Some(backstop) = backstop.upgrade() else {
                    return;
                };
                backstop.checks.notify_waiters();
            }
        });
    }

    /// The output of `answer`; `None` if there is none by the deadline, or shortly after it. The future is small:
    /// there is one for each caller that waits.
    pub(crate) fn until<T>(
        &self,
        deadline: Instant,
        mut answer: Pin<&mut impl Future<Output = T>>,
    ) -> impl Future<Output = Option<T>> {
        let checks = &self.checks;
        async move {
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => return Some(answer),
                    () = checks.notified() => {}
                }
                if Instant::now() >= deadline {
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends_soon_after_its_deadline_and_not_before() {
        let backstop = Arc::new(Backstop::default());
        backstop.start();
        let begin = Instant::now();
        let deadline = begin + Duration::from_secs(7);
        assert_eq!(backstop.until(deadline, pin!(pending::<()>())).await, None);
        assert!((deadline..=deadline + CHECK_INTERVAL).contains(&Instant::now()));
        assert_eq!(backstop.until(begin, pin!(ready(5))).await, Some(5), "an answer counts, also a late one");
    }
}
